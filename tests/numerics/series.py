"""Synthetic series of known kinds, a seed each: what the tests of the whole predictor feed it."""

from collections.abc import Callable

import numpy as np


def autoregression(generator: np.random.Generator, num: int) -> np.ndarray:
    """AR(1) with coefficient 0.7."""
    out = np.zeros(num)
    for t in range(1, num):
        out[t] = 0.7 * out[t - 1] + generator.standard_normal()
    return out


def double_well(generator: np.random.Generator, num: int) -> np.ndarray:
    """Diffusion in a double well: drift x - x^3, ten Euler steps a tick of 0.3."""
    out = np.zeros(num)
    x = 1.0
    for t in range(num):
        for _ in range(10):
            x += 0.03 * (x - x**3) + np.sqrt(0.03) * 0.6 * generator.standard_normal()
        out[t] = x
    return out


def stiff_reversion(generator: np.random.Generator, num: int) -> np.ndarray:
    """A level so strongly held that a tick nearly forgets the one before, with a shock of 9 once in 40 ticks."""
    out = np.zeros(num)
    for t in range(1, num):
        shock = 9.0 * np.sign(generator.standard_normal()) if generator.random() < 1.0 / 40.0 else 0.0
        out[t] = 0.03 * out[t - 1] + generator.standard_normal() + shock
    return out


def jumps(generator: np.random.Generator, num: int) -> np.ndarray:
    """A random walk, loud and calm by turns, with steps of 10 to 18 of its calm sizes that stay."""
    size = np.where((np.arange(num) // 200) % 2 == 0, 2.0, 1.0)
    steps = (generator.random(num) < 1.0 / 60.0) * generator.uniform(10.0, 18.0, num)
    return np.cumsum(size * generator.standard_normal(num) + steps * np.sign(generator.standard_normal(num)))


def overshoot(generator: np.random.Generator, num: int) -> np.ndarray:
    """A random walk with rare steps of 18 of its sizes that give back 60 % five ticks later."""
    moves = generator.standard_normal(num)
    at = 40
    while at < num - 20:
        step = 18.0 * np.sign(generator.standard_normal())
        moves[at] += step
        moves[at + 5] -= 0.6 * step
        at += int(generator.integers(60, 140))
    return np.cumsum(moves)


def narrowing(generator: np.random.Generator, num: int) -> np.ndarray:
    """Weakly persistent, its spread falls to four tenths after tick 105 and rises again at 500."""
    out = np.zeros(num)
    for t in range(1, num):
        spread = 0.4 if 105 <= t < 500 else 1.0
        out[t] = 0.15 * out[t - 1] + spread * generator.standard_normal()
    return out


def regime_switch(generator: np.random.Generator, num: int) -> np.ndarray:
    """Level, spread and persistence change every 300 ticks."""
    regimes = ((0.0, 1.0, 0.3), (6.0, 1.0, 0.8), (6.0, 3.0, 0.0), (0.0, 0.7, -0.5))
    out = np.zeros(num)
    for t in range(1, num):
        level, spread, memory = regimes[(t // 300) % len(regimes)]
        out[t] = level + memory * (out[t - 1] - level) + spread * generator.standard_normal()
    return out


def seasonal(generator: np.random.Generator, num: int) -> np.ndarray:
    """A wave of 24 ticks under noise."""
    return 3.0 * np.sin(2.0 * np.pi * np.arange(num) / 24.0) + generator.standard_normal(num)


def discrete(generator: np.random.Generator, num: int) -> np.ndarray:
    """A price on a grid: half of the moves are nothing, the others one step."""
    return 100.0 + 0.25 * np.cumsum(generator.integers(-1, 2, num) * (generator.random(num) < 0.75))


def roughness_change(generator: np.random.Generator, num: int) -> np.ndarray:
    """A smooth path that turns rough after two thirds and smooth again: integrated noise, then white noise on top."""
    smooth = np.cumsum(0.9 * np.cumsum(generator.standard_normal(num)) * 0.02 + generator.standard_normal(num) * 0.1)
    rough = np.where((np.arange(num) // 300) % 3 == 2, generator.standard_normal(num), 0.0)
    return smooth + rough


FAMILIES: dict[str, Callable[[np.random.Generator, int], np.ndarray]] = {
    "autoregression": autoregression,
    "double_well": double_well,
    "stiff_reversion": stiff_reversion,
    "jumps": jumps,
    "regime_switch": regime_switch,
    "seasonal": seasonal,
    "discrete": discrete,
    "roughness_change": roughness_change,
    "narrowing": narrowing,
    "overshoot": overshoot,
}


def table(num: int, names: tuple[str, ...] = tuple(FAMILIES), seed: int = 0) -> np.ndarray:
    """A column for each family."""
    columns = [FAMILIES[name](np.random.default_rng([seed, index]), num) for index, name in enumerate(names)]
    return np.stack(columns, axis=1)
