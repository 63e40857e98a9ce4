"""What the forecasts are worth: intervals mean what they say, and no plain forecaster is better by much."""

from collections.abc import Callable
from statistics import NormalDist

import numpy as np
import pytest

from usp_daemon.core import QUANTILE_LEVELS, PredictorConfig

from . import lanes

pytestmark = pytest.mark.slow

CONFIG = PredictorConfig(fusion_method="jko_proximal")
LEVELS = np.asarray(QUANTILE_LEVELS)
NORMAL = np.asarray([NormalDist().inv_cdf(level) for level in QUANTILE_LEVELS])
NUM_TICKS, WARM_UP, SEEDS = 1300, 300, 8


def brownian(g: np.random.Generator, num: int) -> np.ndarray:
    return np.cumsum(g.standard_normal(num))


def autoregression(g: np.random.Generator, num: int) -> np.ndarray:
    out = np.zeros(num)
    for t in range(1, num):
        out[t] = 0.6 * out[t - 1] + g.standard_normal()
    return out


def ornstein_uhlenbeck(g: np.random.Generator, num: int) -> np.ndarray:
    """Exact steps of dX = -X dt + 0.5 dW, a fifth of a unit of time each."""
    keep = np.exp(-0.2)
    spread = 0.5 * np.sqrt((1.0 - keep**2) / 2.0)
    out = np.ones(num)
    for t in range(1, num):
        out[t] = keep * out[t - 1] + spread * g.standard_normal()
    return out


def garch(g: np.random.Generator, num: int) -> np.ndarray:
    variance, out = 1.0, np.zeros(num)
    for t in range(1, num):
        step = np.sqrt(variance) * g.standard_normal()
        variance = 0.05 + 0.1 * step**2 + 0.85 * variance
        out[t] = out[t - 1] + step
    return out


def stable_noise(g: np.random.Generator, num: int) -> np.ndarray:
    """A walk of symmetric stable steps of index 1.7, by the method of Chambers, Mallows and Stuck."""
    index = 1.7
    angle, exponential = g.uniform(-0.5 * np.pi, 0.5 * np.pi, num), g.exponential(1.0, num)
    first = np.sin(index * angle) / np.cos(angle) ** (1.0 / index)
    return np.cumsum(first * (np.cos((1.0 - index) * angle) / exponential) ** ((1.0 - index) / index))


def regime_switch(g: np.random.Generator, num: int) -> np.ndarray:
    out = np.zeros(num)
    for t in range(1, num):
        level, spread, memory = ((0.0, 1.0, 0.8), (5.0, 1.0, 0.3), (5.0, 2.5, 0.9))[(t // 400) % 3]
        out[t] = level + memory * (out[t - 1] - level) + spread * g.standard_normal()
    return out


FAMILIES: dict[str, Callable[[np.random.Generator, int], np.ndarray]] = {
    made.__name__: made for made in (brownian, autoregression, ornstein_uhlenbeck, garch, stable_noise, regime_switch)
}


def crps(quantiles: np.ndarray, outcomes: np.ndarray) -> np.ndarray:
    """Continuous ranked probability score on the grid of levels: twice the mean pinball loss."""
    gap = outcomes[..., None] - quantiles
    return 2.0 * np.mean(np.maximum(LEVELS * gap, (LEVELS - 1.0) * gap), axis=-1)


def persistence(values: np.ndarray) -> np.ndarray:
    """Quantiles of "no change" with a normal law whose variance is an exponentially weighted mean (0.94) of squares."""
    increments = np.diff(values, axis=0)
    variance = np.empty_like(increments)
    variance[0] = increments[0] ** 2
    for t in range(1, len(increments)):
        variance[t] = 0.94 * variance[t - 1] + 0.06 * increments[t] ** 2
    variance = np.concatenate([variance[:1], variance])  # what is known at each tick
    return values[..., None] + np.sqrt(variance)[..., None] * NORMAL


@pytest.fixture(scope="module")
def scored():
    """By family: outcomes, the predictor's quantiles and the plain forecaster's, arrays by (tick, seed)."""
    table = np.concatenate(
        [
            np.stack([make(np.random.default_rng([seed, k]), NUM_TICKS) for seed in range(SEEDS)], axis=1)
            for k, make in enumerate(FAMILIES.values())
        ],
        axis=1,
    )
    run = lanes.run(table, CONFIG)
    assert run.finite.all()
    ours, plain = run.prediction.quantiles[WARM_UP:-1], persistence(table)[WARM_UP:-1]
    outcomes = table[WARM_UP + 1 :]
    at = {name: slice(k * SEEDS, (k + 1) * SEEDS) for k, name in enumerate(FAMILIES)}
    return {name: (outcomes[:, s], ours[:, s], plain[:, s]) for name, s in at.items()}


@pytest.mark.parametrize("family", list(FAMILIES))
def test_outcomes_are_uniform_on_the_quantiles(scored, family: str) -> None:
    """Kolmogorov and Smirnov's distance of the outcomes' ranks from uniform, on the grid of levels."""
    outcomes, ours, _ = scored[family]
    below = np.mean(outcomes[..., None] < ours, axis=0)  # by (seed, level)
    distance = np.max(np.abs(below - LEVELS), axis=1)
    critical = 1.63 / np.sqrt(len(outcomes))  # one per cent, for independent ranks
    assert distance.max() < critical
    # Quantiles that learn from their own misses are nearer than independent ranks would be.
    assert np.median(distance) < 0.5 * critical
    for low, high in ((0.25, 0.75), (0.1, 0.9), (0.025, 0.975)):
        inside = below[:, np.searchsorted(LEVELS, high)] - below[:, np.searchsorted(LEVELS, low)]
        np.testing.assert_allclose(inside.mean(), high - low, atol=0.02)


@pytest.mark.parametrize("family", list(FAMILIES))
def test_scores_are_not_worse_than_persistence(scored, family: str) -> None:
    outcomes, ours, plain = scored[family]
    ratio = crps(ours, outcomes).mean(axis=0) / crps(plain, outcomes).mean(axis=0)
    learnable = {"autoregression": 0.95, "ornstein_uhlenbeck": 1.0, "regime_switch": 0.98}
    assert np.median(ratio) < learnable.get(family, 1.01)
    # A law without variance has a mean score that a few jumps decide.
    assert ratio.max() < (1.15 if family == "stable_noise" else 1.03)


def test_score_of_a_known_law() -> None:
    """The score of a standard normal forecast of 0 is (sqrt(2) - 1) / sqrt(pi) (Gneiting and Raftery, 2007)."""
    exact = (np.sqrt(2.0) - 1.0) / np.sqrt(np.pi)
    assert crps(NORMAL, np.asarray(0.0)) == pytest.approx(exact, rel=0.03)
