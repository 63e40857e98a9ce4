"""Intervals: right coverage in the long run whatever the law of the errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from usp_daemon.core import PredictorConfig
from usp_daemon.core import _calibration as calibration
from usp_daemon.core._parameters import QUANTILE_LEVELS

CONFIG = PredictorConfig().as_arrays()
LEVELS = np.asarray(QUANTILE_LEVELS)


@jax.jit
def _scan(errors, fallback=1.0):
    """Feeds errors; returns the quantiles that stood before each of them, in units of the error, and the volatility."""
    one = jnp.asarray(fallback, errors.dtype)

    def step(state, error):
        scale = calibration.volatility(state, one)
        return calibration.update(state, error, one, CONFIG), (scale * state.quantiles, scale)

    return jax.lax.scan(step, calibration.init(errors.dtype), errors)


def _coverage(errors: np.ndarray, start: int) -> np.ndarray:
    _, (quantiles, _) = _scan(jnp.asarray(errors), float(np.mean(np.abs(errors))))
    return np.mean(errors[start:, None] < np.asarray(quantiles)[start:], axis=0)


LAWS = {
    "normal": lambda g, n: g.standard_normal(n),
    "t3": lambda g, n: g.standard_t(3, n),
    "skewed": lambda g, n: g.exponential(1.0, n) - 1.0,
    "scaled": lambda g, n: 1e-5 * g.standard_t(4, n),
}


@pytest.mark.parametrize("law", list(LAWS))
def test_every_level_covers_what_it_says(law: str) -> None:
    errors = LAWS[law](np.random.default_rng(1), 20_000)
    np.testing.assert_allclose(_coverage(errors, 2000), LEVELS, atol=0.02)


def test_coverage_holds_through_bursts_of_volatility() -> None:
    generator = np.random.default_rng(2)
    log_volatility = np.zeros(20_000)
    for t in range(1, 20_000):
        log_volatility[t] = 0.98 * log_volatility[t - 1] + 0.2 * generator.standard_normal()
    covered = _coverage(np.exp(log_volatility) * generator.standard_normal(20_000), 2000)
    np.testing.assert_allclose(covered, LEVELS, atol=0.02)


def test_coverage_comes_back_after_the_errors_triple() -> None:
    errors = np.random.default_rng(3).standard_normal(8000)
    errors[4000:] *= 3.0
    _, (quantiles, _) = _scan(jnp.asarray(errors))
    inside = (errors > np.asarray(quantiles)[:, 3]) & (errors < np.asarray(quantiles)[:, 35])  # 0.1 and 0.9
    assert inside[1000:4000].mean() == pytest.approx(0.8, abs=0.03)
    assert inside[4100:4500].mean() == pytest.approx(0.8, abs=0.08)
    assert inside[5000:].mean() == pytest.approx(0.8, abs=0.03)


def test_the_first_intervals_are_normal_ones_of_the_fallback_scale() -> None:
    state = calibration.init(np.dtype("float64"))
    assert float(calibration.volatility(state, jnp.asarray(2.5))) == 2.5
    np.testing.assert_allclose(np.asarray(state.quantiles)[[0, 19, 38]], [-1.95996398, 0.0, 1.95996398], atol=1e-8)


def test_volatility_is_the_standard_deviation_of_normal_errors() -> None:
    _, (_, scale) = _scan(jnp.asarray(7.0 * np.random.default_rng(4).standard_normal(4000)))
    assert np.mean(np.asarray(scale)[500:]) == pytest.approx(7.0, rel=0.05)


def test_one_wild_error_moves_the_volatility_by_a_bounded_amount() -> None:
    errors = np.random.default_rng(5).standard_normal(400)
    errors[300] = 1e9
    _, (_, scale) = _scan(jnp.asarray(errors))
    assert float(scale[301]) < 2.0 * float(scale[300])


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
@pytest.mark.parametrize("errors", [np.zeros(500), np.full(500, 1e15), np.where(np.arange(500) % 7, 0.0, 1e15)])
def test_nothing_but_finite_ordered_quantiles(dtype, errors) -> None:
    errors = jnp.asarray(errors, dtype)
    config = PredictorConfig().as_arrays(dtype)
    one = jnp.ones((), dtype)

    def step(state, error):
        return calibration.update(state, error, one, config), None

    state, _ = jax.jit(lambda e: jax.lax.scan(step, calibration.init(np.dtype(dtype)), e))(errors)
    for leaf in jax.tree.leaves(state):
        assert np.isfinite(np.asarray(leaf)).all()
    assert (np.diff(np.asarray(state.quantiles)) >= 0).all()
    assert float(calibration.volatility(state, one)) > 0.0
