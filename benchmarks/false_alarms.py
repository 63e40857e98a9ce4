"""How many ticks lie between two alarms on streams without a change, asked and got.

``python -m benchmarks.false_alarms`` simulates streams of several laws and runs them through the whole predictor, with
thresholds resolved for each asked interval. All ticks count, those too while a reference is being fitted.
"""

import argparse
import dataclasses
import math
from collections.abc import Callable, Sequence

import jax.numpy as jnp
import numpy as np

from usp_daemon import core

from . import _engines
from ._command import keep_compiled_programs
from ._suite import Run, Series
from ._table import format_columns

SECOND_NS = 1_000_000_000


def student(generator: np.random.Generator, ticks: int, degrees: float) -> np.ndarray:
    """Student's t, scaled to variance 1."""
    return generator.standard_t(degrees, ticks) * math.sqrt((degrees - 2.0) / degrees)


def autoregression(noise: np.ndarray, coefficient: float) -> np.ndarray:
    """x_t = coefficient x_{t-1} + noise_t."""
    values = np.zeros_like(noise)
    for tick in range(1, len(noise)):
        values[tick] = coefficient * values[tick - 1] + noise[tick]
    return values


def garch(generator: np.random.Generator, ticks: int, alpha: float, beta: float, degrees: float) -> np.ndarray:
    """A random walk whose increments are GARCH(1, 1) with t noise, mean variance 1."""
    noise, increments, variance = student(generator, ticks, degrees), np.empty(ticks), 1.0
    for tick in range(ticks):
        increments[tick] = math.sqrt(variance) * noise[tick]
        variance = (1.0 - alpha - beta) + alpha * increments[tick] ** 2 + beta * variance
    return np.cumsum(increments)


def sine(generator: np.random.Generator, ticks: int) -> np.ndarray:
    """A sine of period 11 to 30 and amplitude 1.6 in noise of deviation 0.3 to 0.8."""
    period, deviation = generator.uniform(11.0, 30.0), generator.uniform(0.3, 0.8)
    return 1.6 * np.sin(2.0 * np.pi * np.arange(ticks) / period) + deviation * generator.standard_normal(ticks)


LAWS: dict[str, Callable[[np.random.Generator, int], np.ndarray]] = {
    "Gaussian": lambda generator, ticks: generator.standard_normal(ticks),
    "t(5)": lambda generator, ticks: student(generator, ticks, 5.0),
    "AR(1), 0.7": lambda generator, ticks: autoregression(generator.standard_normal(ticks), 0.7),
    "sine in noise": sine,
    "GARCH(0.1, 0.88), t(6)": lambda generator, ticks: garch(generator, ticks, 0.1, 0.88, 6.0),
    "GARCH(0.06, 0.93), t(30)": lambda generator, ticks: garch(generator, ticks, 0.06, 0.93, 30.0),
}


def streams(count: int, ticks: int, seed: int) -> list[Series]:
    """``count`` streams of every law, in the order of ``LAWS``."""
    made = []
    for law, (name, draw) in enumerate(LAWS.items()):
        for stream in range(count):
            values = draw(np.random.default_rng([seed, law, stream]), ticks)
            timestamps = SECOND_NS * (1_000_000 + np.arange(ticks, dtype=np.int64))
            made.append(Series(f"{name} {stream}", "alarms", name, timestamps, values, {}))
    return made


def got(series: Sequence[Series], runs: Sequence[Run]) -> dict[str, tuple[float, int]]:
    """Ticks between alarms (infinite without any) and the number of alarms, by law."""
    found = {}
    for law in LAWS:
        chosen = [(one, run) for one, run in zip(series, runs, strict=True) if one.kind == law]
        alarms = sum(len(run.alarms) for _, run in chosen)
        ticks = sum(len(one.values) for one, _ in chosen)
        found[law] = (ticks / alarms if alarms else math.inf, alarms)
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command."""
    options = argparse.ArgumentParser(prog="python -m benchmarks.false_alarms", description="Alarms without a change.")
    options.add_argument("--asked", type=float, nargs="+", default=[1_000.0, 5_000.0, 20_000.0], help="ticks")
    options.add_argument("--streams", type=int, default=20, help="of each law")
    options.add_argument("--ticks", type=int, default=10_000, help="of each stream")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--quiet", action="store_true", help="no progress on standard error")
    chosen = options.parse_args(arguments)
    keep_compiled_programs()
    series = streams(chosen.streams, chosen.ticks, chosen.seed)
    columns = {}
    for asked in chosen.asked:
        config = core.PredictorConfig()
        thresholds = core.resolve_thresholds(
            cusum_k=config.cusum_k, mean_ticks_between_false=asked, reference_fit_ticks=config.reference_fit_ticks
        )
        config = dataclasses.replace(config, **thresholds)
        columns[asked] = got(series, _engines.scan(series, config, dtype=jnp.float64, progress=not chosen.quiet))
    lines = [
        [law, *(f"{columns[asked][law][0]:,.0f} ({columns[asked][law][1]})" for asked in chosen.asked)] for law in LAWS
    ]
    header = ["law", *(f"asked {asked:,.0f}: got (alarms)" for asked in chosen.asked)]
    print(format_columns(header, lines, left=1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
