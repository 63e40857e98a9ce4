"""Kernel C on simulated streams: coefficients recovered, schemes by stiffness, no dead parameter, never a NaN."""

import dataclasses
import functools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from usp_daemon.core import _stable as stable
from usp_daemon.core._kernels import levy_sde
from usp_daemon.core._kernels._interface import KernelObservation, RefreshContext
from usp_daemon.core._parameters import HISTORY_CAPACITY, PredictorConfig

REFRESH_INTERVAL = 50


def refresh_context(dtype=jnp.float64, holder_exponent=0.5):
    zero = jnp.zeros((), dtype)
    return RefreshContext(
        history=jnp.zeros((HISTORY_CAPACITY,), dtype),
        length=jnp.zeros((), jnp.int32),
        level=zero,
        level_unit=zero + 1.0,
        holder_exponent=zero + holder_exponent,
        regime_started=jnp.zeros((), bool),
    )


def observe(increment, previous_level, level, level_unit, weight=1.0, forget=False, dtype=jnp.float64):
    real = functools.partial(jnp.asarray, dtype=dtype)
    return KernelObservation(
        value=real(level),
        increment=real(increment),
        level=real(level),
        previous_level=real(previous_level),
        level_unit=real(level_unit),
        scale=real(1.0),
        weight=real(weight),
        forget=jnp.asarray(forget),
    )


@jax.jit
def _stream(config, levels, level_unit):
    """Runs the kernel over standardised levels, refreshing every REFRESH_INTERVAL ticks."""
    dtype = levels.dtype
    context = refresh_context(dtype)

    def step(state, tick):
        number, previous, level = tick
        increment = (level - previous) * level_unit
        state = levy_sde.update(state, observe(increment, previous, level, level_unit, dtype=dtype), config)
        state = jax.lax.cond(
            number % REFRESH_INTERVAL == 0, lambda s: levy_sde.refresh(s, context, config), lambda s: s, state
        )
        return state, levy_sde.predict(state, config)

    numbers = jnp.arange(1, levels.shape[0])
    return jax.lax.scan(step, levy_sde.init(config, dtype), (numbers, levels[:-1], levels[1:]))


def stream(series, dtype=jnp.float64, **changes):
    """Final state, outputs, increments and the number of units of the series in one unit of scale."""
    series = np.asarray(series)
    increments = np.diff(series)
    scale = np.median(np.abs(increments)) / 0.6745
    spread = series.std()
    levels = jnp.asarray((series - series.mean()) / spread, dtype)
    config = PredictorConfig(**changes).as_arrays(dtype)
    state, outputs = _stream(config, levels, jnp.asarray(spread / scale, dtype))
    return state, outputs, increments / scale, scale


def autoregression(persistence, num, seed=0, jump_rate=0.0, jump_scale=1.0):
    rng = np.random.default_rng(seed)
    noise = rng.normal(size=num) + jump_scale * rng.normal(size=num) * (rng.random(num) < jump_rate)
    series = np.zeros(num)
    for t in range(1, num):
        series[t] = persistence * series[t - 1] + noise[t]
    return series


# ---- coefficients --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("jump_rate", "jump_scale"), [(0.0, 1.0), (0.02, 8.0), (0.01, 15.0)])
def test_coefficients_of_an_ornstein_uhlenbeck_process_with_jumps(jump_rate, jump_scale):
    series = autoregression(0.9, 20_000, seed=1, jump_rate=jump_rate, jump_scale=jump_scale)
    _, outputs, _, scale = stream(series, kernel_c_memory_ticks=4000.0)
    last = jax.tree.map(lambda leaf: leaf[-1], outputs.metadata)
    assert float(last.mean_reversion) == pytest.approx(np.log(0.9), abs=0.02)
    assert float(last.sigma) * scale == pytest.approx(1.0, rel=0.06)
    # some 100 jumps are in the window of two memories
    assert float(last.jump_rate) == pytest.approx(jump_rate, rel=0.35, abs=2e-3)
    if jump_rate > 0.0:
        assert float(last.jump_scale) * scale == pytest.approx(jump_scale, rel=0.3)


@pytest.mark.parametrize("tail_index", [1.5, 1.8, 2.0])
def test_tail_index_recovered_and_quantiles_cover(tail_index):
    noise = stable.sample(jax.random.key(3), (20_000,), jnp.asarray(tail_index), jnp.asarray(0.0))
    _, outputs, increments, _ = stream(np.cumsum(np.asarray(noise)), kernel_c_memory_ticks=4000.0)
    assert float(outputs.metadata.tail_index[-1]) == pytest.approx(tail_index, abs=0.1)
    realised, quantiles = increments[1001:], np.asarray(outputs.metadata.quantiles)[1000:-1]
    for low, high, nominal in ((0, 4, 0.95), (1, 3, 0.80)):
        coverage = np.mean((realised > quantiles[:, low]) & (realised < quantiles[:, high]))
        assert coverage == pytest.approx(nominal, abs=0.02)


def test_forecast_beats_persistence_where_the_level_reverts():
    series = autoregression(0.5, 4000, seed=2)
    _, outputs, increments, _ = stream(series)
    error = increments[501:] - np.asarray(outputs.prediction)[500:-1]
    # exact: sqrt(1 / (2 (1 - phi) / (1 - phi^2))) = 0.866 of the error of "no change"
    ratio = np.sqrt(np.mean(error**2) / np.mean(increments[501:] ** 2))
    assert ratio == pytest.approx(np.sqrt(0.75), abs=0.02)
    # and its own account of the variance is right
    assert float(np.mean(error**2) * np.mean(np.asarray(outputs.confidence)[500:])) == pytest.approx(1.0, abs=0.12)


def test_random_walk_is_left_alone():
    series = np.cumsum(np.random.default_rng(4).normal(size=4000))
    _, outputs, increments, _ = stream(series)
    error = increments[501:] - np.asarray(outputs.prediction)[500:-1]
    assert np.mean(error**2) / np.mean(increments[501:] ** 2) < 1.03


def test_standing_prices_do_not_turn_every_move_into_a_jump():
    rng = np.random.default_rng(5)
    moves = rng.choice([-1.0, 1.0], size=6000) * (rng.random(6000) < 0.1)
    levels = jnp.asarray(np.cumsum(moves) / 10.0)
    config = PredictorConfig().as_arrays()
    state, _ = _stream(config, levels, jnp.asarray(10.0 / np.sqrt(0.1)))
    assert float(state.move_rate) == pytest.approx(0.1, abs=0.03)
    assert float(state.jump_rate) < 0.005


def test_nothing_is_learnt_without_weight():
    config = PredictorConfig().as_arrays()
    state, _ = _stream(config, jnp.asarray(autoregression(0.7, 300)), jnp.asarray(1.3))
    after = levy_sde.update(state, observe(50.0, -3.0, 4.0, 1.3, weight=0.0), config)
    remembered = {"level", "level_unit", "previous_abs_residual", "previous_is_jump", "previous_weight"}
    for field in dataclasses.fields(state):
        if field.name in remembered:
            continue
        before_leaves, after_leaves = (
            jax.tree.leaves(getattr(state, field.name)),
            jax.tree.leaves(getattr(after, field.name)),
        )
        for before_leaf, after_leaf in zip(before_leaves, after_leaves, strict=True):
            np.testing.assert_allclose(after_leaf, before_leaf, rtol=1e-9, atol=1e-12, err_msg=field.name)
    # the tick after a gap has no neighbour to form a bipower product with
    assert float(after.previous_weight) == 0.0


def test_regime_change_makes_the_past_worth_no_more_than_the_prior():
    config = PredictorConfig().as_arrays()
    state, _ = _stream(config, jnp.asarray(autoregression(0.7, 1000)), jnp.asarray(1.3))
    assert float(state.count) > 300.0
    after = levy_sde.update(state, observe(0.1, 0.2, 0.3, 1.3, forget=True), config)
    assert float(after.count) == pytest.approx(float(config.sde_prior_ticks))
    assert float(jnp.sum(after.drift.root**2)) > 2.0 * float(jnp.sum(state.drift.root**2))


# ---- schemes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("persistence", "scheme"),
    [(0.9, levy_sde.EXPLICIT), (0.5, levy_sde.EXPLICIT), (0.03, levy_sde.MIXED), (-0.5, levy_sde.IMPLICIT)],
)
def test_observed_streams_reach_every_scheme(persistence, scheme):
    state, _, _, _ = stream(autoregression(persistence, 3000, seed=6), kernel_c_memory_ticks=2000.0)
    assert int(state.scheme) == scheme
    explicit, implicit = int(state.solver_explicit_count), int(state.solver_implicit_count)
    num_refreshes = (3000 - 1) // REFRESH_INTERVAL
    assert max(explicit, implicit) <= num_refreshes
    assert explicit + implicit >= num_refreshes
    if scheme == levy_sde.EXPLICIT:
        assert implicit == 0
    if scheme == levy_sde.IMPLICIT:
        assert implicit > 0.9 * num_refreshes
    assert float(state.stiffness) == pytest.approx(-50.0 * float(state.rate))


def test_rough_paths_keep_the_base_thresholds_and_smooth_ones_raise_them():
    """At exponent 0.8 the thresholds are 625 and 6250, at 0.5 and below 100 and 1000."""
    config = PredictorConfig().as_arrays()
    state, _, _, _ = stream(autoregression(0.03, 3000, seed=6), kernel_c_memory_ticks=2000.0)
    assert 100.0 < float(state.stiffness) < 625.0
    rough = levy_sde.refresh(state, refresh_context(holder_exponent=0.2), config)
    smooth = levy_sde.refresh(state, refresh_context(holder_exponent=0.8), config)
    assert int(rough.scheme) == levy_sde.MIXED
    assert int(smooth.scheme) == levy_sde.EXPLICIT


def test_schemes_and_parameters_change_without_recompilation():
    traces = 0

    def refresh(state, context, config):
        nonlocal traces
        traces += 1
        return levy_sde.refresh(state, context, config)

    compiled = jax.jit(refresh)
    schemes = set()
    state = levy_sde.init(PredictorConfig().as_arrays(), jnp.float64)
    for slope in (-0.1, -0.97, -1.2):
        drift = dataclasses.replace(state.drift, coefficients=jnp.asarray([0.0, slope]))
        for changes in ({}, {"sde_dt": 0.1}, {"sde_numel_integrations": 50}, {"stiffness_low": 400.0}):
            config = PredictorConfig(**changes).as_arrays()
            schemes.add(int(compiled(dataclasses.replace(state, drift=drift), refresh_context(), config).scheme))
    assert traces == 1
    assert schemes == {levy_sde.EXPLICIT, levy_sde.MIXED, levy_sde.IMPLICIT}


# ---- every parameter is alive --------------------------------------------------------------------------------------


# The schemes agree to their order in sde_dt, so the thresholds between them show where the steps are coarse.
@pytest.mark.parametrize(
    ("name", "low", "high", "persistence", "base"),
    [
        ("sde_dt", 0.001, 1.0, 0.5, {}),
        ("sde_numel_integrations", 50, 200, 0.3, {"sde_dt": 0.001}),
        ("sde_diffusion_sigma", 0.05, 5.0, 0.5, {}),
        ("stiffness_low", 50.0, 500.0, 0.03, {"sde_dt": 0.1}),
        ("stiffness_high", 500.0, 5000.0, -0.5, {"sde_dt": 0.05}),
        ("sde_prior_ticks", 5.0, 100.0, 0.5, {}),
        ("kernel_c_memory_ticks", 100.0, 2000.0, 0.5, {}),
        ("kernel_c_horizon", 1.0, 2.0, 0.5, {}),
        ("stiffness_scale", 20.0, 100.0, 0.03, {"sde_dt": 0.1}),
        ("stiffness_c1", 25.0, 100.0, 0.03, {"sde_dt": 0.1}),
        ("stiffness_c2", 250.0, 1000.0, -0.5, {"sde_dt": 0.05}),
    ],
)
def test_parameter_moves_the_forecast(name, low, high, persistence, base):
    series = autoregression(persistence, 2000, seed=7)
    _, outputs_low, _, _ = stream(series, **base, **{name: low})
    _, outputs_high, _, _ = stream(series, **base, **{name: high})
    change = np.abs(np.asarray(outputs_low.prediction - outputs_high.prediction))
    assert np.max(change * np.sqrt(np.asarray(outputs_low.confidence))) > 1e-3


@pytest.mark.parametrize(
    ("name", "low", "high"), [("kernel_c_alpha", 1.2, 2.0), ("kernel_c_alpha_gaussian_threshold", 1.5, 1.99)]
)
def test_tail_parameter_moves_the_quantiles(name, low, high):
    noise = stable.sample(jax.random.key(8), (1000,), jnp.asarray(1.7), jnp.asarray(0.0))
    series = np.cumsum(np.asarray(noise))
    _, outputs_low, _, _ = stream(series, **{name: low})
    _, outputs_high, _, _ = stream(series, **{name: high})
    difference = np.abs(np.asarray(outputs_low.metadata.quantiles - outputs_high.metadata.quantiles))
    assert np.max(difference[100:, 4]) > 1e-2


# ---- robustness ----------------------------------------------------------------------------------------------------


@functools.partial(jax.jit, static_argnames="dtype")
def _wild(config, ticks, dtype):
    context = refresh_context(dtype)

    def step(carry, tick):
        state, is_finite = carry
        number, increment, previous, level, unit, weight, forget = tick
        observation = observe(increment, previous, level, unit, weight, forget, dtype)
        state = levy_sde.update(state, observation, config)
        state = jax.lax.cond(
            number % REFRESH_INTERVAL == 0, lambda s: levy_sde.refresh(s, context, config), lambda s: s, state
        )
        leaves = jax.tree.leaves((state, levy_sde.predict(state, config)))
        return (state, is_finite & jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in leaves]))), None

    return jax.lax.scan(step, (levy_sde.init(config, dtype), jnp.asarray(True)), ticks)[0]


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_stays_finite_over_wild_dead_and_constant_ticks(dtype):
    num = 100_000
    rng = np.random.default_rng(9)
    mode = (np.arange(num) // 1000) % 5
    increment = np.where(mode == 0, rng.standard_cauchy(num), rng.normal(size=num))
    increment = np.where(mode == 1, 0.0, increment)
    increment = np.where(mode == 2, 1e-30 * increment, increment)
    increment = np.where(mode == 3, 30.0, increment)
    ticks = (
        np.arange(num),
        np.clip(increment, -30.0, 30.0),
        np.where(mode == 3, 6.0, np.clip(3.0 * rng.normal(size=num), -6.0, 6.0)),
        np.where(mode == 1, 0.0, np.clip(3.0 * rng.normal(size=num), -6.0, 6.0)),
        np.exp(rng.uniform(-12.0, 12.0, num)),
        np.where(mode == 4, rng.uniform(size=num), 1.0),
        rng.random(num) < 1e-3,
    )
    ticks = tuple(jnp.asarray(t, dtype) if t.dtype == np.float64 else jnp.asarray(t) for t in ticks)
    state, is_finite = _wild(PredictorConfig().as_arrays(dtype), ticks, dtype)
    assert bool(is_finite)
    assert all(leaf.dtype in (dtype, jnp.int32) for leaf in jax.tree.leaves(state))


_one_tick = jax.jit(
    lambda config, increment, previous, level, unit, weight: levy_sde.predict(
        levy_sde.refresh(
            levy_sde.update(
                levy_sde.init(config, jnp.float64), observe(increment, previous, level, unit, weight), config
            ),
            refresh_context(),
            config,
        ),
        config,
    )
)


@hypothesis.given(
    increment=st.floats(-100.0, 100.0),
    previous=st.floats(-6.0, 6.0),
    level=st.floats(-6.0, 6.0),
    unit=st.floats(1e-9, 1e9),
    weight=st.floats(0.0, 1.0),
    sde_dt=st.floats(1e-3, 1.0),
    horizon=st.floats(0.1, 20.0),
    low=st.floats(50.0, 500.0),
    high=st.floats(500.0, 5000.0),
)
@hypothesis.settings(max_examples=100)
def test_any_tick_under_any_parameters_is_finite(increment, previous, level, unit, weight, sde_dt, horizon, low, high):
    config = PredictorConfig(
        sde_dt=sde_dt, kernel_c_horizon=horizon, stiffness_low=low, stiffness_high=high
    ).as_arrays()
    output = _one_tick(config, *(jnp.asarray(v) for v in (increment, previous, level, unit, weight)))
    assert all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(output))
    assert float(output.confidence) > 0.0


@jax.jit
@functools.partial(jax.grad, argnums=(0, 1))
def _forecast_gradient(coefficient, increment, config):
    state = levy_sde.init(config, jnp.float64)
    drift = dataclasses.replace(state.drift, coefficients=jnp.stack([0.1 * coefficient, coefficient]))
    state = levy_sde.refresh(dataclasses.replace(state, drift=drift), refresh_context(), config)
    state = levy_sde.update(state, observe(increment, 0.5, 0.7, 1.0), config)
    output = levy_sde.predict(state, config)
    return output.prediction + jnp.log(output.confidence) + jnp.sum(output.metadata.quantiles)


@pytest.mark.parametrize("slope", [0.3, 0.0, -1e-9, -0.5, -0.97, -1.0, -1.5])
@pytest.mark.parametrize("increment", [0.0, 0.4, -30.0])
def test_gradients_are_finite(slope, increment):
    """Through refresh, update and forecast, also where clips and schemes meet."""
    config = PredictorConfig().as_arrays()
    gradients = _forecast_gradient(jnp.asarray(slope), jnp.asarray(increment), config)
    assert all(bool(jnp.isfinite(g)) for g in gradients)


def test_lanes_do_not_see_each_other():
    """Sixteen lanes of a batch give what each gives in another company."""
    config = PredictorConfig().as_arrays()
    levels = jnp.stack([jnp.asarray(autoregression(0.1 * (k % 10) - 0.2, 120, seed=k)) for k in range(16)])
    batch = jax.jit(jax.vmap(_stream, in_axes=(None, 0, None)))
    unit = jnp.asarray(1.3)
    state, outputs = batch(config, levels, unit)
    other_state, other = batch(config, levels[::-1], unit)
    for a, b in zip(jax.tree.leaves((state, outputs)), jax.tree.leaves((other_state, other)), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b)[::-1])
