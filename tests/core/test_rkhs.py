"""Kernel A: what it learns of linear, seasonal and nonlinear symbols, and that it never breaks."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from usp_daemon.core import PredictorConfig
from usp_daemon.core import _standardize as standardize
from usp_daemon.core._kernels import rkhs
from usp_daemon.core._kernels._interface import KernelObservation, RefreshContext

INTERVAL = 50


def _run(values: np.ndarray, dtype=jnp.float64, **changes):
    """Ticks through kernel A alone, refreshed every fifty: last state, forecasts and linear parts in scales, ...."""
    config = dataclasses.replace(PredictorConfig(), **changes).as_arrays(dtype)
    kind = np.dtype(dtype)
    values = values[: len(values) // INTERVAL * INTERVAL]

    def step(carry, value):
        kernel, scales, history, previous = carry
        increment = value - previous
        scales = standardize.update_scale(scales, value, increment, jnp.asarray(True), config)
        scale = standardize.floored_scale(scales, value)
        level, level_unit = standardize.standardized_level(scales, value, scale)
        none = jnp.asarray(0, jnp.int32)
        history = standardize.push(history, value, none, jnp.zeros_like(value), none)
        observation = KernelObservation(
            value=value,
            increment=jnp.clip(increment / scale, -12.0, 12.0),
            level=level,
            previous_level=standardize.standardized_level(scales, previous, scale)[0],
            level_unit=level_unit,
            scale=scale,
            weight=jnp.ones_like(value),
            forget=jnp.asarray(False),
        )
        kernel = rkhs.update(kernel, observation, history, config)
        output = rkhs.predict(kernel, config)
        said = (output.prediction, output.metadata.linear, output.confidence, scale)
        return (kernel, scales, history, value), said

    def block(carry, chunk):
        (kernel, scales, history, last), said = jax.lax.scan(step, carry, chunk)
        scale = standardize.floored_scale(scales, last)
        level, level_unit = standardize.standardized_level(scales, last, scale)
        context = RefreshContext(
            history=jnp.clip((standardize.ordered(history) - last) / scale, -1e6, 1e6),
            length=history.length,
            level=level,
            level_unit=level_unit,
            holder_exponent=jnp.full_like(last, 0.5),
            regime_started=jnp.asarray(False),
        )
        return (rkhs.refresh(kernel, context, config), scales, history, last), said

    first = jnp.asarray(values[0], dtype)
    carry = (rkhs.init(config, kind), standardize.init_scale(kind), standardize.init_history(kind), first)
    chunks = jnp.asarray(values, dtype).reshape(-1, INTERVAL)
    carry, said = jax.jit(lambda c, x: jax.lax.scan(block, c, x))(carry, chunks)
    prediction, linear, confidence, scale = (np.asarray(leaf).reshape(-1) for leaf in said)
    return carry[0], prediction, linear, confidence, scale


def _mean_absolute(values, prediction, scale, start):
    """Mean absolute error of the forecasts and of "no change", both from tick ``start`` on."""
    values = values[: prediction.size]
    increments = np.diff(values)
    errors = increments - (prediction * scale)[:-1]
    return np.abs(errors[start:]).mean(), np.abs(increments[start:]).mean()


def _autoregression(num: int, first: float, second: float, seed: int) -> np.ndarray:
    noise = np.random.default_rng(seed).standard_normal(num)
    out = np.zeros(num)
    for t in range(2, num):
        out[t] = first * out[t - 1] + second * out[t - 2] + noise[t]
    return out


def test_an_autoregression_is_learnt_to_within_a_few_per_cent_of_the_best() -> None:
    values = _autoregression(3000, 1.3, -0.6, 1)
    _, _, linear, _, scale = _run(values)
    error, persistence = _mean_absolute(values, linear, scale, 1000)
    best = np.abs(values[1002:] - 1.3 * values[1001:-1] + 0.6 * values[1000:-2]).mean()
    assert error < 1.05 * best
    assert error < 0.9 * persistence


def test_a_season_of_twenty_four_is_found_and_used() -> None:
    time = np.arange(1500)
    # A daily profile that no short recursion of the last ticks can follow.
    profile = np.random.default_rng(2).standard_normal(24).cumsum()
    profile -= np.linspace(0.0, profile[-1], 24)
    values = 5.0 * profile[time % 24] + np.random.default_rng(3).standard_normal(1500)
    state, prediction, _, _, scale = _run(values)
    assert int(state.season_length) == 24
    assert float(state.season_correlation) > 0.25
    error, persistence = _mean_absolute(values, prediction, scale, 700)
    assert error < 0.6 * persistence


@pytest.mark.parametrize(("season", "noise"), [(50, 1.0), (24, 1.0)])
def test_a_smooth_season_is_found_under_noise_that_hides_it_in_the_increments(season: int, noise: float) -> None:
    time = np.arange(1500)
    values = 3.0 * np.sin(2.0 * np.pi * time / season) + noise * np.random.default_rng(7).standard_normal(1500)
    increments = np.diff(values)
    lagged = np.corrcoef(increments[season:], increments[:-season])[0, 1]
    assert lagged < PredictorConfig().season_min_correlation
    state, *_ = _run(values)
    assert abs(int(state.season_length) - season) <= 1


def test_a_season_is_not_taken_for_its_multiples() -> None:
    time = np.arange(1500)
    profile = np.random.default_rng(11).standard_normal(12)
    values = 2.0 * profile[time % 12] + np.random.default_rng(12).standard_normal(1500)
    state, *_ = _run(values)
    assert int(state.season_length) == 12


def test_the_mean_over_seasons_is_better_than_the_last_two() -> None:
    # A profile without a short recursion, under white noise of variance 1. One season back forecasts with the variance
    # 2 of two noises; the mean of eight, which is all that is averaged, with 1 + 1/8.
    time = np.arange(3000)
    profile = 3.0 * np.random.default_rng(13).standard_normal(24)
    values = profile[time % 24] + np.random.default_rng(14).standard_normal(3000)
    _, prediction, _, _, scale = _run(values)
    error, _ = _mean_absolute(values, prediction, scale, 1500)
    expected = np.sqrt(2.0 / np.pi)
    assert error < 1.2 * expected
    assert error < 0.95 * np.sqrt(1.5) * expected  # the mean of two


def test_what_was_learned_without_the_season_does_not_hold_up_what_is_learned_with_it() -> None:
    # Nearly free of noise: the errors before the season was found are a hundred times those after it.
    time = np.arange(600)
    profile = np.random.default_rng(15).standard_normal(24).cumsum()
    profile -= np.linspace(0.0, profile[-1], 24)
    values = profile[time % 24] + 0.01 * np.random.default_rng(16).standard_normal(600)
    state, prediction, _, _, scale = _run(values)
    assert int(state.season_length) == 24
    error, persistence = _mean_absolute(values, prediction, scale, 200)
    assert error < 0.03 * persistence


@pytest.mark.parametrize("seed", range(3))
def test_no_season_is_seen_in_noise(seed: int) -> None:
    walk = np.cumsum(np.random.default_rng(seed).standard_normal(1000))
    state, *_ = _run(walk)
    assert int(state.season_length) == 0
    assert float(state.season_correlation) == 0.0


def test_a_threshold_is_seen_at_short_delays() -> None:
    # SETAR: which of two autoregressions holds depends on the side of zero.
    noise = np.random.default_rng(17).standard_normal(4000)
    values = np.zeros(4000)
    for t in range(1, 4000):
        values[t] = (0.8 * values[t - 1] if values[t - 1] <= 0.0 else 1.0 - 0.9 * values[t - 1]) + noise[t]
    _, prediction, linear, _, scale = _run(values)
    both, _ = _mean_absolute(values, prediction, scale, 2000)
    alone, _ = _mean_absolute(values, linear, scale, 2000)
    best = np.abs(noise[2001:]).mean()
    assert both - best < 0.8 * (alone - best)


def test_the_gaussian_part_sees_what_a_linear_recursion_cannot() -> None:
    values = np.empty(3000)
    values[0] = 0.3
    for t in range(1, 3000):
        values[t] = 3.9 * values[t - 1] * (1.0 - values[t - 1])
    _, prediction, linear, _, scale = _run(values)
    both, _ = _mean_absolute(values, prediction, scale, 1500)
    alone, _ = _mean_absolute(values, linear, scale, 1500)
    assert both < 0.5 * alone


def test_a_random_walk_is_left_almost_alone() -> None:
    values = np.cumsum(np.random.default_rng(4).standard_normal(4000))
    _, _, linear, _, scale = _run(values)
    error, persistence = _mean_absolute(values, linear, scale, 2000)
    assert error < 1.03 * persistence


def test_the_units_of_the_symbol_do_not_matter() -> None:
    values = _autoregression(1000, 0.8, 0.0, 5)
    expected = _run(values)[1]
    for factor in (1e-3, 1e5):
        np.testing.assert_allclose(_run(factor * values)[1][50:], expected[50:], atol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
@pytest.mark.parametrize("name", ["constant", "dead then alive", "wild", "ramp", "huge"])
def test_nothing_it_is_fed_makes_it_say_anything_but_a_number(dtype, name: str) -> None:
    generator = np.random.default_rng(6)
    values = {
        "constant": np.full(500, 3.0),
        "dead then alive": np.concatenate([np.zeros(250), generator.standard_normal(250)]),
        "wild": generator.standard_cauchy(500) ** 3,
        "ramp": np.linspace(0.0, 1e9, 500),
        "huge": 1e15 * generator.standard_normal(500),
    }[name]
    state, prediction, linear, confidence, _ = _run(values, dtype)
    assert np.isfinite(prediction).all()
    assert np.isfinite(linear).all()
    assert np.isfinite(confidence).all()
    assert (confidence > 0).all()
    for leaf in jax.tree.leaves(state):
        assert np.isfinite(np.asarray(leaf)).all()
