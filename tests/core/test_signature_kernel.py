"""Kernel D: the sliding window equals the window, and the regression learns what persistence cannot."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from usp_daemon.core import _signature_algebra as algebra
from usp_daemon.core._kernels import signature as kernel
from usp_daemon.core._kernels._interface import KernelObservation, RefreshContext
from usp_daemon.core._parameters import HISTORY_CAPACITY, PredictorConfig


def observe(increment, level, level_unit=1.0, weight=1.0, forget=False):
    dtype = increment.dtype
    return KernelObservation(
        value=level,
        increment=increment,
        level=level,
        previous_level=level - increment,
        level_unit=jnp.asarray(level_unit, dtype),
        scale=jnp.ones((), dtype),
        weight=jnp.asarray(weight, dtype),
        forget=jnp.asarray(forget),
    )


def refresh_context(dtype):
    scalar = jnp.zeros((), dtype)
    return RefreshContext(
        history=jnp.zeros((HISTORY_CAPACITY,), dtype),
        length=jnp.asarray(0, jnp.int32),
        level=scalar,
        level_unit=scalar + 1,
        holder_exponent=scalar,
        regime_started=jnp.asarray(False),
    )


@functools.partial(jax.jit, static_argnames=("config_depth", "refresh_every"))
def run(increments, levels, config_depth=3, refresh_every=0, config=None):
    """Feeds a whole series; returns the final state and, per tick, the forecast made after it and its precision."""
    config = config or PredictorConfig(log_sig_depth=config_depth).as_arrays(increments.dtype)

    def step(carry, tick):
        state, count = carry
        state = kernel.update(state, observe(*tick), config)
        if refresh_every:
            refreshed = kernel.refresh(state, refresh_context(increments.dtype), config)
            state = jax.tree.map(lambda new, old: jnp.where(count % refresh_every == 0, new, old), refreshed, state)
        output = kernel.predict(state, config)
        return (state, count + 1), (output.prediction, output.confidence)

    carry, outputs = jax.lax.scan(step, (kernel.init(config, increments.dtype), 1), (increments, levels))
    return carry[0], outputs


def relative_error(increments, forecasts, burn_in=300):
    """Mean absolute error over persistence's."""
    increments, forecasts = np.asarray(increments), np.asarray(forecasts)
    return np.abs(increments[burn_in:] - forecasts[burn_in - 1 : -1]).mean() / np.abs(increments[burn_in:]).mean()


def normalised(series):
    """Increments in units of their sd and the level in the same units about its mean."""
    increments = np.diff(series)
    scale = np.std(increments)
    return jnp.asarray(increments / scale), jnp.asarray((series[1:] - series.mean()) / scale)


@pytest.mark.parametrize("depth", [2, 3, 5])
def test_sliding_update_equals_recomputation_over_ten_thousand_ticks(depth):
    increments = jnp.asarray(np.random.default_rng(0).normal(size=10_000).clip(-6, 6))
    config = PredictorConfig(log_sig_depth=depth).as_arrays(jnp.float64)
    window = config.signature_window

    @jax.jit
    def slide_all(increments):
        def step(carry, latest):
            levels, recent, count = carry
            levels = kernel.slide(levels, recent, latest, window)
            recent = jnp.concatenate([recent[1:], latest[None]])
            rebuilt = kernel.window_signature(recent, depth)
            gap = functools.reduce(jnp.maximum, [jnp.max(jnp.abs(a - b)) for a, b in zip(levels, rebuilt, strict=True)])
            levels = jax.tree.map(lambda new, old: jnp.where(count % 50 == 0, new, old), rebuilt, levels)
            return (levels, recent, count + 1), gap

        recent = jnp.zeros((window + 1,))
        return jax.lax.scan(step, (kernel.window_signature(recent, depth), recent, 1), increments)[1]

    assert float(jnp.max(slide_all(increments))) < 1e-10


def test_window_signature_is_that_of_the_documented_path():
    increments = np.random.default_rng(1).normal(size=17)
    clock = np.concatenate([[0.0], np.cumsum(kernel.clock_increments(16))])
    assert clock[-1] == pytest.approx(1.0)
    lead = np.concatenate([[0.0], np.cumsum(increments[1:])])
    lag = np.concatenate([[-increments[0]], lead[:-1]])
    points = [(clock[0], lead[0] / 4, lead[0] - lag[0])]
    for tick in range(1, 17):
        middle = 0.5 * (clock[tick - 1] + clock[tick])
        points.append((middle, lead[tick - 1] / 4, lead[tick - 1] - lag[tick]))
        points.append((clock[tick], lead[tick] / 4, lead[tick] - lag[tick]))
    expected = algebra.zero(3, 4, jnp.float64)
    for step in np.diff(np.array(points), axis=0):
        expected = algebra.multiply(expected, algebra.exponential(jnp.asarray(step), 4))
    computed = kernel.window_signature(jnp.asarray(increments), 4)
    for left, right in zip(computed, expected, strict=True):
        np.testing.assert_allclose(left, right, atol=1e-13)


@pytest.mark.parametrize(("depth", "size"), [(2, 6), (3, 14), (4, 32), (5, 80)])
def test_state_has_the_size_of_the_log_signature(depth, size):
    state = kernel.init(PredictorConfig(log_sig_depth=depth).as_arrays(), jnp.float64)
    assert state.features.shape == (size,) and state.ridge.root.shape == (size, size)
    assert kernel.num_features(depth) == size


def test_the_first_feature_is_the_intercept_and_features_are_of_order_one():
    rms = []
    for seed in range(40):
        walk = np.random.default_rng(seed).normal(size=100)
        # The level is what a walk covers in twice the window.
        levels = np.convolve(walk, np.ones(32))[:100]
        features = np.asarray(run(jnp.asarray(walk), jnp.asarray(levels))[0].features)
        assert features[0] == pytest.approx(1.0, abs=1e-12)
        rms.append(features)
    rms = np.sqrt(np.mean(np.square(rms), axis=0))
    assert np.all(rms < 3.0) and np.all(rms > 0.3), rms


def test_learns_a_sign_alternating_series():
    signs = (-1.0) ** np.arange(1500)
    series = np.cumsum(signs) + 0.2 * np.random.default_rng(3).normal(size=1500)
    increments, levels = normalised(series)
    assert relative_error(increments, run(increments, levels)[1][0]) < 0.35


def test_learns_an_autoregression_of_order_two():
    rng = np.random.default_rng(4)
    noise = rng.normal(size=4000)
    series = np.zeros(4000)
    for tick in range(2, 4000):
        series[tick] = 1.5 * series[tick - 1] - 0.8 * series[tick - 2] + noise[tick]
    increments, levels = normalised(series)
    # The exact conditional mean leaves the noise and nothing else.
    oracle = np.abs(noise[301:]).mean() / np.abs(np.diff(series)[300:]).mean()
    assert oracle < 0.7
    assert relative_error(increments, run(increments, levels)[1][0]) < 1.05 * oracle


def test_costs_next_to_nothing_on_a_random_walk():
    increments = jnp.asarray(np.random.default_rng(5).normal(size=4000))
    assert relative_error(increments, run(increments, jnp.cumsum(increments) / 20)[1][0]) < 1.02


def test_learns_a_nonlinear_map_that_no_linear_filter_sees():
    # dx_t = |dx_{t-1}| - mean + noise: nearly uncorrelated, a function of the quadratic variation.
    rng = np.random.default_rng(6)
    increments = np.zeros(5000)
    for tick in range(1, 5000):
        increments[tick] = 1.2 * (abs(increments[tick - 1]) - 0.8) + 0.3 * rng.normal()
    increments = jnp.asarray(increments / np.std(increments))
    levels = jnp.zeros_like(increments)
    forecasts = run(increments, levels)[1][0]
    past, future = np.asarray(increments[:-1]), np.asarray(increments[1:])
    slope, intercept = np.polyfit(past, future, 1)
    linear = np.abs(future - slope * past - intercept).mean() / np.abs(future).mean()
    assert relative_error(increments, forecasts) < 0.9 * linear


def test_depth_changes_the_forecast():
    increments = jnp.asarray(np.random.default_rng(7).normal(size=300))
    levels = jnp.cumsum(increments) / 10
    forecasts = [np.asarray(run(increments, levels, config_depth=depth)[1][0]) for depth in (2, 3, 4)]
    assert np.max(np.abs(forecasts[0] - forecasts[1])) > 1e-3
    assert np.max(np.abs(forecasts[1] - forecasts[2])) > 1e-3


def test_ridge_and_memory_change_the_forecast_without_recompilation():
    increments = jnp.asarray(np.random.default_rng(8).normal(size=300))
    levels = jnp.cumsum(increments) / 10
    base = PredictorConfig().as_arrays(jnp.float64)
    run(increments, levels, config=base)
    compiled = run._cache_size()
    reference = np.asarray(run(increments, levels, config=base)[1][0])
    for change in ({"kernel_ridge_lambda": 1e-4}, {"kernel_d_memory_ticks": 100.0}):
        other = PredictorConfig(**change).as_arrays(jnp.float64)
        assert np.max(np.abs(np.asarray(run(increments, levels, config=other)[1][0]) - reference)) > 1e-3
    assert run._cache_size() == compiled


def test_confidence_is_the_precision_of_the_forecast():
    increments = jnp.asarray(0.5 * np.random.default_rng(9).normal(size=3000))
    _, (forecasts, confidence) = run(increments, jnp.zeros_like(increments))
    errors = np.asarray(increments[1:] - forecasts[:-1])[1000:]
    assert np.mean(errors**2 * np.asarray(confidence[:-1])[1000:]) == pytest.approx(1.0, abs=0.12)
    assert float(confidence[0]) < float(confidence[-1])


def test_weight_zero_teaches_nothing_and_forgetting_widens():
    config = PredictorConfig().as_arrays(jnp.float64)
    increments = jnp.asarray(np.random.default_rng(10).normal(size=200))
    state, _ = run(increments, jnp.zeros_like(increments))
    tick = jnp.asarray(5.0)
    ignored = kernel.update(state, observe(tick, tick, weight=0.0), config)
    learnt = kernel.update(state, observe(tick, tick), config)
    np.testing.assert_allclose(ignored.ridge.coefficients, state.ridge.coefficients, atol=1e-9)
    assert float(ignored.error_variance) == float(state.error_variance)
    assert float(jnp.max(jnp.abs(learnt.ridge.coefficients - state.ridge.coefficients))) > 1e-4
    forgotten = kernel.update(state, observe(tick, tick, forget=True), config)
    assert float(kernel.predict(forgotten, config).metadata.leverage) > float(
        kernel.predict(learnt, config).metadata.leverage
    )


@pytest.mark.parametrize("kind", ["noise", "dead", "wild", "mixed"])
def test_float32_stays_finite_over_long_runs(kind):
    rng = np.random.default_rng(11)
    ticks = 60_000
    series = {
        "noise": rng.normal(size=ticks),
        "dead": np.zeros(ticks),
        "wild": np.clip(rng.standard_cauchy(size=ticks) * 3, -24, 24),
        "mixed": np.where(rng.uniform(size=ticks) < 0.9, 0.0, np.clip(rng.standard_t(2, size=ticks), -24, 24)),
    }[kind]
    increments = jnp.asarray(series, jnp.float32)
    levels = jnp.clip(jnp.asarray(np.cumsum(series) / 30, jnp.float32), -6, 6)
    state, (forecasts, confidence) = run(increments, levels, refresh_every=50)
    for leaf in jax.tree.leaves(state):
        assert np.isfinite(np.asarray(leaf)).all()
    assert np.isfinite(np.asarray(forecasts)).all() and np.isfinite(np.asarray(confidence)).all()
    assert float(jnp.min(confidence)) > 0
    assert forecasts.dtype == jnp.float32


def test_float32_follows_float64():
    increments = np.random.default_rng(12).normal(size=2000)
    levels = np.cumsum(increments) / 20
    double = run(jnp.asarray(increments), jnp.asarray(levels), refresh_every=50)[1][0]
    single = run(jnp.asarray(increments, jnp.float32), jnp.asarray(levels, jnp.float32), refresh_every=50)[1][0]
    assert np.max(np.abs(np.asarray(double) - np.asarray(single, np.float64))) < 1e-2


def test_gradients_are_finite():
    config = PredictorConfig().as_arrays(jnp.float64)
    state = kernel.init(config, jnp.float64)

    def forecast(increment):
        later = kernel.update(state, observe(increment, increment), config)
        later = kernel.update(later, observe(increment, increment), config)
        return kernel.predict(later, config).prediction

    slope = jax.jit(jax.grad(forecast))
    for value in (0.0, 1.0, -30.0):
        assert np.isfinite(float(slope(jnp.asarray(value))))
