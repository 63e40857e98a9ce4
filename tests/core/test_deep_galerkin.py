"""Kernel B: the diffusion is recovered, the forecast is its conditional mean, tiers follow the entropy, never a NaN."""

import dataclasses
import functools

import equinox as eqx
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from usp_daemon.core._kernels import deep_galerkin
from usp_daemon.core._kernels._interface import KernelObservation, RefreshContext
from usp_daemon.core._parameters import DGM_TIERS, HISTORY_CAPACITY, PredictorConfig

SMALL = PredictorConfig(dgm_width_size=32, dgm_depth=2)


def context(dtype=jnp.float64):
    zero = jnp.zeros((), dtype)
    return RefreshContext(
        history=jnp.zeros((HISTORY_CAPACITY,), dtype),
        length=jnp.zeros((), jnp.int32),
        level=zero,
        level_unit=zero,
        holder_exponent=zero,
        regime_started=jnp.zeros((), bool),
    )


def observe(increment, previous, level, unit=1.0, scale=1.0, weight=1.0, forget=False, dtype=jnp.float64):
    real = functools.partial(jnp.asarray, dtype=dtype)
    return KernelObservation(
        value=real(level),
        increment=real(increment),
        level=real(level),
        previous_level=real(previous),
        level_unit=real(unit),
        scale=real(scale),
        weight=real(weight),
        forget=jnp.asarray(forget),
    )


def stream(levels, unit=1.0, scale=1.0, dtype=jnp.float64):
    """Observations of a level that is already standardised."""
    levels = np.asarray(levels)
    build = functools.partial(observe, dtype=dtype)
    full = functools.partial(jnp.full, levels.size - 1, dtype=dtype)
    increments = jnp.asarray(np.diff(levels) * unit, dtype)
    before, after = jnp.asarray(levels[:-1], dtype), jnp.asarray(levels[1:], dtype)
    return jax.vmap(build)(increments, before, after, full(unit), full(scale))


@functools.partial(jax.jit, static_argnums=3)
def _run(state, observations, config, refresh_every):
    def step(carry, observation):
        state, count = carry
        state = deep_galerkin.update(state, observation, config)
        if refresh_every:
            due = (count + 1) % refresh_every == 0
            fresh = deep_galerkin.refresh(state, context(state.level.dtype), config)
            state = jax.tree.map(lambda a, b: jnp.where(due, a, b), fresh, state)
        return (state, count + 1), (deep_galerkin.predict(state, config), state)

    (state, _), outputs = jax.lax.scan(step, (state, jnp.zeros((), jnp.int32)), observations)
    return state, outputs


BLOCK = 500


def run(levels, config=SMALL, dtype=jnp.float64, refresh_every=0, state=None, **units):
    """Final state and all outputs; whole blocks, the last one padded, so that every length runs the same program."""
    traced = config.as_arrays(dtype)
    state = deep_galerkin.init(traced, dtype) if state is None else state
    size = len(levels) - 1
    padded = np.concatenate([levels, np.full(-size % BLOCK, levels[-1])])
    observations = stream(padded, dtype=dtype, **units)
    blocks = []
    for start in range(0, len(padded) - 1, BLOCK):
        block = jax.tree.map(lambda leaf, start=start: leaf[start : start + BLOCK], observations)
        state, outputs = _run(state, block, traced, refresh_every)
        blocks.append(outputs)
    outputs = jax.tree.map(lambda *parts: np.concatenate(parts)[:size], *blocks)
    return jax.tree.map(lambda leaf: jnp.asarray(leaf[size - 1]), outputs[1]), outputs


def autoregression(phi, size, seed=0, spread=1.0):
    rng = np.random.default_rng(seed)
    noise = rng.standard_normal(size) * spread * np.sqrt(1.0 - phi**2)
    levels = np.zeros(size)
    for t in range(1, size):
        levels[t] = phi * levels[t - 1] + noise[t]
    return levels


def double_well(slope, cubic, sigma, size, seed=0, substeps=20):
    rng = np.random.default_rng(seed)
    levels = np.empty(size)
    x = 1.0
    noise = rng.standard_normal((size, substeps)) * sigma / np.sqrt(substeps)
    for t in range(size):
        for k in range(substeps):
            x += (slope * x + cubic * x**3) / substeps + noise[t, k]
        levels[t] = x
    return levels


# ---------------------------------------------------------------------------------------------------------------------
# Learning and forecasting


@pytest.mark.parametrize("dtype", [jnp.float64, jnp.float32])
@pytest.mark.parametrize("phi", [0.3, 0.9, 0.98])
def test_an_autoregression_becomes_the_ornstein_uhlenbeck_process_behind_it(phi, dtype):
    state, _ = run(autoregression(phi, 6000), dataclasses.replace(SMALL, kernel_b_memory_ticks=6000.0), dtype)
    diffusion = deep_galerkin.local_diffusion(state)
    traced = SMALL.as_arrays(dtype)
    for level in (-2.0, -1.0, 0.0, 1.0, 2.0):
        at = eqx.tree_at(lambda s: s.level, state, jnp.asarray(level, dtype))
        forecast = float(deep_galerkin.predict(at, traced).prediction)
        assert level + forecast == pytest.approx(phi * level, abs=5.0 * np.sqrt((1 - phi**2) / 6000) + 0.01)
    if phi >= 0.9:
        # Far from white noise the diffusion itself is known: its slope, and its own noise, not that of one tick
        # (s^2 = -2 b in the stationary state of variance one).
        assert float(diffusion.slope) == pytest.approx(np.log(phi), abs=0.02)
        assert float(diffusion.variance) == pytest.approx(-2.0 * np.log(phi), rel=0.1)
        assert float(diffusion.cubic) > -0.02
    assert diffusion.slope.dtype == dtype


def test_the_forecast_of_an_autoregression_is_its_conditional_mean():
    phi, unit = 0.9, 1.0 / np.sqrt(1.0 - 0.9**2)
    levels = autoregression(phi, 4000)
    _, (output, _) = run(levels, unit=unit)
    truth = (phi - 1.0) * levels[1:] * unit
    error = np.asarray(output.prediction)[1500:] - truth[1500:]
    assert np.sqrt(np.mean(error**2)) < 0.25 * np.std(truth)


def test_a_double_well_is_recovered_and_forecast():
    slope, cubic, sigma = 0.1, -0.1, 0.35
    levels = double_well(slope, cubic, sigma, 20_000)
    state, (output, states) = run(levels, dataclasses.replace(SMALL, kernel_b_memory_ticks=20_000.0))
    diffusion = deep_galerkin.local_diffusion(state)
    assert float(diffusion.slope) == pytest.approx(slope, abs=0.03)
    assert float(diffusion.cubic) == pytest.approx(cubic, abs=0.03)
    assert float(diffusion.variance) == pytest.approx(sigma**2, rel=0.1)
    # Against the best straight line, in hindsight, on the second half: the cubic term must pay.
    before, change = levels[10_000:-1], np.diff(levels[10_000:])
    line = np.polyval(np.polyfit(before, change, 1), before)
    forecast = np.asarray(output.prediction)[9_999:-1]
    assert np.asarray(states.level)[9_999] == pytest.approx(before[0])
    assert np.mean((change - forecast) ** 2) < np.mean((change - line) ** 2)


def test_a_random_walk_is_left_alone():
    # Level standard deviation of thirty increments: an error of the network in level units would show thirtyfold.
    levels = np.cumsum(np.random.default_rng(3).standard_normal(3000)) / 30.0
    _, (output, _) = run(np.clip(levels, -6, 6), unit=30.0)
    assert np.sqrt(np.mean(np.asarray(output.prediction)[1000:] ** 2)) < 0.15


def test_no_drift_is_forecast_as_exactly_no_change():
    config = SMALL.as_arrays()
    state = deep_galerkin.init(config, jnp.float64)
    state = eqx.tree_at(lambda s: (s.level, s.noise_variance), state, (jnp.asarray(1.7), jnp.asarray(0.3)))
    assert float(deep_galerkin.predict(state, config).prediction) == 0.0


def test_a_sample_without_weight_teaches_nothing():
    config = SMALL.as_arrays()
    state, _ = run(autoregression(0.8, 300))
    after = deep_galerkin.update(state, observe(5.0, 0.0, 5.0, weight=0.0), config)
    np.testing.assert_allclose(after.regression.coefficients, state.regression.coefficients, atol=1e-9)
    assert float(after.noise_variance) == float(state.noise_variance)
    assert float(after.level) == 5.0


def test_an_alarm_makes_the_kernel_learn_faster():
    config = SMALL.as_arrays()
    state, _ = run(autoregression(0.5, 3000))
    stays = deep_galerkin.update(state, observe(0.1, 1.0, 1.1), config)
    forgets = deep_galerkin.update(state, observe(0.1, 1.0, 1.1, forget=True), config)
    assert float(jnp.sum(forgets.regression.root**2)) > 3.0 * float(jnp.sum(stays.regression.root**2))
    later = [run(autoregression(0.95, 300, seed=5), state=one)[0] for one in (stays, forgets)]
    errors = [abs(np.exp(float(deep_galerkin.local_diffusion(one).slope)) - 0.95) for one in later]
    assert errors[1] < 0.6 * errors[0]


def test_confidence_is_the_precision_of_the_forecast_error():
    phi, unit = 0.7, 2.0
    levels = autoregression(phi, 4000)
    _, (output, _) = run(levels, unit=unit)
    expected = 1.0 / (unit**2 * (1.0 - phi**2))
    assert float(output.confidence[-1]) == pytest.approx(expected, rel=0.15)


# ---------------------------------------------------------------------------------------------------------------------
# Parameters


def test_the_horizon_carries_the_forecast_further():
    levels = autoregression(0.8, 2000)
    forecasts = []
    for horizon in (0.5, 1.0, 2.0):
        config = dataclasses.replace(SMALL, kernel_b_horizon=horizon)
        state, (output, _) = run(levels, config)
        slope = float(deep_galerkin.local_diffusion(state).slope)
        forecasts.append(float(output.prediction[-1]) / np.expm1(horizon * slope))
    # E[X_{t+h}] - x is proportional to exp(bh) - 1 but for the constant and the cubic term.
    assert forecasts[0] == pytest.approx(forecasts[1], rel=0.15)
    assert forecasts[2] == pytest.approx(forecasts[1], rel=0.15)


def test_drift_uncertainty_pulls_towards_no_change_and_brackets_the_forecast():
    levels = autoregression(0.8, 400)
    sure = run(levels)[1][0]
    unsure = run(levels, dataclasses.replace(SMALL, kernel_b_drift_uncertainty=1.0))[1][0]
    very_unsure = run(levels, dataclasses.replace(SMALL, kernel_b_drift_uncertainty=1e3))[1][0]
    late = slice(100, None)
    lower, upper = np.asarray(unsure.metadata.lower)[late], np.asarray(unsure.metadata.upper)[late]
    centre = np.asarray(sure.prediction)[late]
    assert np.all(lower <= centre + 1e-9) and np.all(centre <= upper + 1e-9)
    assert np.all(np.abs(np.asarray(unsure.prediction)[late]) <= np.abs(centre) + 1e-9)
    assert np.max(np.abs(np.asarray(unsure.prediction)[late] - centre)) > 0.01
    assert np.all(np.asarray(very_unsure.prediction)[late] == 0.0)
    np.testing.assert_array_equal(np.asarray(sure.metadata.lower), np.asarray(sure.metadata.upper))


def test_memory_decides_how_soon_a_new_drift_is_believed():
    levels = np.concatenate([autoregression(0.3, 1500), autoregression(0.95, 150, seed=1)])
    slopes = [
        float(deep_galerkin.local_diffusion(run(levels, dataclasses.replace(SMALL, kernel_b_memory_ticks=m))[0]).slope)
        for m in (50.0, 5000.0)
    ]
    assert slopes[0] > slopes[1] + 0.3


# ---------------------------------------------------------------------------------------------------------------------
# Entropy and tiers


def entropy_of(values, low, high, bins=50):
    masses = jnp.full((len(values) - 1,), 1.0 / (len(values) - 1))
    return float(
        deep_galerkin.histogram_entropy(
            jnp.asarray(values), masses, jnp.asarray(low), jnp.asarray(high), jnp.asarray(bins, jnp.int32)
        )
    )


def test_entropy_of_laws_with_known_answers():
    grid = np.linspace(0.0, 1.0, 4001)
    assert entropy_of(grid, 0.0, 1.0) == pytest.approx(np.log(50), abs=1e-9)
    assert entropy_of(np.full(4001, 0.311), 0.0, 1.0) == pytest.approx(0.0, abs=1e-9)
    sine = entropy_of(np.sin(np.linspace(-3.0, 3.0, 4001)), -1.0, 1.0)
    counts = np.histogram(np.sin(np.linspace(-3.0, 3.0, 2_000_001)), bins=50, range=(-1.0, 1.0))[0]
    share = counts[counts > 0] / counts.sum()
    assert sine == pytest.approx(-np.sum(share * np.log(share)), abs=2e-3)
    assert sine / np.log(50) > 0.9  # not collapsed; the constant is


def test_entropy_is_continuous_when_mass_crosses_an_edge():
    values = [entropy_of(np.full(9, at), 0.0, 1.0, bins=10) for at in np.linspace(0.4999, 0.5001, 2001)]
    assert np.max(np.abs(np.diff(values))) < 0.02
    assert max(values) == pytest.approx(np.log(2), abs=1e-3)


def test_bins_are_traced_and_mass_outside_counts_at_the_ends():
    assert entropy_of(np.linspace(0.0, 1.0, 1001), 0.0, 1.0, bins=128) == pytest.approx(np.log(128), abs=1e-9)
    assert entropy_of(np.linspace(5.0, 6.0, 11), 0.0, 1.0) == pytest.approx(0.0, abs=1e-12)


def widened(dtype=jnp.float64, factor=3.5, config=SMALL):
    """A known process, a regime that begins quietly, and the same process with ``factor`` times its spread."""
    known, _ = run(autoregression(0.6, 1000, spread=0.5), config, dtype)
    known = eqx.tree_at(lambda s: s.num_levels, known, jnp.zeros((), jnp.int32))
    quiet = autoregression(0.6, 400, seed=7, spread=0.5)
    wide = autoregression(0.6, 500, seed=9, spread=0.5 * factor)
    return run(np.concatenate([quiet, wide]), config, dtype, refresh_every=50, state=known)


def test_a_wider_law_raises_the_entropy_ratio_above_two_and_the_tier_with_it():
    final, (_, states) = widened()
    ratio = np.exp(np.asarray(states.entropy - states.baseline_entropy))
    assert np.all((ratio[50:400] > 0.5) & (ratio[50:400] < 1.8))
    assert ratio[-1] > 2.0
    assert int(np.max(states.tier[:400])) == 0 and int(final.tier) == 1
    assert int(final.architecture_scaling_events) >= 1


def test_the_ratio_of_entropies_is_the_ratio_of_spreads():
    _, (_, states) = widened(factor=2.0)
    ratio = np.exp(np.asarray(states.entropy - states.baseline_entropy))
    assert np.mean(ratio[600:]) / np.mean(ratio[100:400]) == pytest.approx(2.0, rel=0.15)


def test_a_narrower_law_shows_as_entropy_lost():
    _, (_, states) = widened(factor=0.2)
    retained = np.asarray(jax.vmap(deep_galerkin.entropy_retained)(states))
    assert np.all(retained[:49] == 1.0)  # no baseline yet
    assert np.min(retained[100:400]) > 0.7
    assert np.max(retained[700:]) < 0.64


@pytest.mark.parametrize(
    ("name", "values"),
    [("dgm_scaling_trigger", (2.0, 9.0)), ("dgm_scaling_beta", (0.3, 1.0)), ("dgm_scaling_cap", (1.5, 4.0))],
)
def test_scaling_parameters_decide_the_tier(name, values):
    base = PredictorConfig(dgm_width_size=64, dgm_depth=4)
    state = eqx.tree_at(
        lambda s: (s.level_variance, s.num_levels, s.level_unit, s.scale, s.has_baseline, s.bin_low, s.bin_high),
        deep_galerkin.init(base.as_arrays(), jnp.float64),
        (*(jnp.asarray(v) for v in (1.0, 99, 1.0, 1.0, True)), jnp.asarray(-2.7), jnp.asarray(2.7)),
    )
    state = eqx.tree_at(lambda s: s.baseline_entropy, state, jnp.asarray(2.3))
    tiers = [
        int(deep_galerkin.refresh(state, context(), dataclasses.replace(base, **{name: value}).as_arrays()).tier)
        for value in values
    ]
    assert tiers[0] != tiers[1]


def test_the_configured_tier_returns_when_the_law_narrows():
    final, _ = widened()
    later, _ = run(autoregression(0.6, 600, seed=4, spread=0.5), state=final, refresh_every=50)
    assert int(later.tier) == 0
    assert float(later.baseline_entropy) == float(final.baseline_entropy)


def test_a_regime_start_rebases_the_entropy():
    config = SMALL.as_arrays()
    final, _ = widened()
    fresh = deep_galerkin.update(final, observe(0.0, 0.0, 0.0, forget=True), config)
    assert float(deep_galerkin.entropy_ratio(fresh)) == 1.0
    early = deep_galerkin.refresh(fresh, context(), config)
    assert not bool(early.has_baseline)  # the grace period is not over
    later, _ = run(autoregression(0.6, 200, seed=2, spread=1.75), state=fresh, refresh_every=50)
    assert bool(later.has_baseline) and int(later.tier) == 0
    assert float(later.bin_high) > 2.0 * float(final.bin_high)


def test_a_request_for_capacity_adds_one_tier_within_the_cap():
    config = dataclasses.replace(SMALL, dgm_width_size=64, dgm_depth=4).as_arrays()
    state = deep_galerkin.init(config, jnp.float64)
    asked = deep_galerkin.request_capacity(state, jnp.asarray(True))
    raised = deep_galerkin.refresh(asked, context(), config)
    assert (int(state.tier), int(raised.tier)) == (1, 2)
    assert int(deep_galerkin.refresh(raised, context(), config).tier) == 1
    capped = dataclasses.replace(config, dgm_scaling_cap=jnp.asarray(1.5))
    assert int(deep_galerkin.refresh(asked, context(), capped).tier) == 1


@pytest.mark.parametrize(
    ("base", "width", "depth", "cap", "expected"),
    [
        ((64, 4), 64, 4, 4.0, (64, 4)),
        ((64, 4), 128, 6, 4.0, (128, 6)),
        ((64, 4), 128, 5, 4.0, (128, 6)),  # 768 / 640 is less than 640 / 512
        ((64, 4), 1024, 64, 4.0, (128, 8)),
        ((64, 4), 1024, 64, 3.0, (128, 6)),
        ((64, 4), 8, 1, 4.0, (64, 4)),  # never below the configured tier
        ((32, 2), 128, 8, 4.0, (64, 4)),
        ((128, 8), 1024, 64, 4.0, (128, 8)),
    ],
)
def test_tiers_are_the_nearest_within_the_cap(base, width, depth, cap, expected):
    config = dataclasses.replace(SMALL, dgm_width_size=base[0], dgm_depth=base[1], dgm_scaling_cap=cap).as_arrays()
    tier = jax.jit(deep_galerkin.tier_for)(jnp.asarray(width), jnp.asarray(depth), config)
    assert DGM_TIERS[int(tier)] == expected
    factor = np.prod(DGM_TIERS[int(tier)]) / np.prod(base)
    assert 1.0 <= factor <= cap


# ---------------------------------------------------------------------------------------------------------------------
# Robustness, dtypes, compilations


reals = st.floats(allow_nan=True, allow_infinity=True, width=64)


@hypothesis.settings(max_examples=40)
@hypothesis.given(
    rows=st.lists(st.tuples(reals, reals, reals, reals, reals, reals, st.booleans()), min_size=8, max_size=8),
    single=st.booleans(),
)
def test_garbage_never_makes_the_kernel_non_finite(rows, single):
    dtype = jnp.float32 if single else jnp.float64
    config = SMALL.as_arrays(dtype)
    state = deep_galerkin.init(config, dtype)
    with np.errstate(over="ignore"):
        columns = [np.asarray(column, np.float32 if single else np.float64) for column in zip(*rows, strict=True)][:6]
    forget = jnp.asarray([row[6] for row in rows])
    build = jax.vmap(lambda *v: KernelObservation(*v[:6], v[5], v[6]))
    observations = build(*(jnp.asarray(column, dtype) for column in columns), forget)
    state, (output, _) = _run(state, observations, config, 3)
    for leaf in jax.tree.leaves((state, output)):
        assert np.all(np.isfinite(np.asarray(leaf, np.float64)))


@pytest.mark.parametrize("dtype", [jnp.float64, jnp.float32])
def test_constant_and_wild_streams_stay_finite(dtype):
    wild = np.where(np.arange(3000) % 3 == 0, 6.0, -6.0)
    for levels in (np.zeros(3000), wild):
        state, (output, _) = run(levels, dtype=dtype, refresh_every=50)
        assert np.all(np.isfinite(np.asarray(output.prediction)))
        assert np.all(np.abs(np.asarray(output.prediction)) < 20.0)
        assert np.isfinite(float(state.entropy)) and state.entropy.dtype == dtype


def test_state_keeps_its_structure_and_dtypes():
    for dtype in (jnp.float32, jnp.float64):
        config = SMALL.as_arrays(dtype)
        state = deep_galerkin.init(config, dtype)
        after = deep_galerkin.update(state, observe(0.3, 0.1, 0.4, dtype=dtype), config)
        after = deep_galerkin.refresh(after, context(dtype), config)
        shapes = [jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), one) for one in (state, after)]
        assert jax.tree.structure(state) == jax.tree.structure(after)
        assert jax.tree.leaves(shapes[0]) == jax.tree.leaves(shapes[1])


def test_one_program_serves_every_tier_and_every_parameter():
    count = 0

    def step(state, observation, config):
        nonlocal count
        count += 1
        state = deep_galerkin.update(state, observation, config)
        return deep_galerkin.refresh(state, context(), config), deep_galerkin.predict(state, config)

    compiled = jax.jit(step)
    config = dataclasses.replace(SMALL, dgm_width_size=64, dgm_depth=4).as_arrays()
    state = deep_galerkin.init(config, jnp.float64)
    for tier in range(1, len(DGM_TIERS)):
        state = eqx.tree_at(lambda s: s.tier, state, jnp.asarray(tier, jnp.int32))
        config = eqx.tree_at(lambda c: c.kernel_b_horizon, config, jnp.asarray(1.0 + 0.1 * tier))
        config = eqx.tree_at(lambda c: c.dgm_entropy_num_bins, config, jnp.asarray(20 * tier, jnp.int32))
        compiled(state, observe(0.1, 0.2, 0.3), config)
    assert count == 1
    assert compiled._cache_size() == 1


def test_gradients_through_learning_and_forecast_are_finite():
    config = PredictorConfig(dgm_width_size=128, dgm_depth=8).as_arrays()
    state, _ = run(autoregression(0.8, 200), refresh_every=50)
    state = eqx.tree_at(lambda s: s.tier, state, jnp.asarray(5, jnp.int32))

    @jax.jit
    def forecast(state, level):
        observation = eqx.tree_at(lambda o: o.level, observe(0.3, 0.1, 0.4), level)
        return deep_galerkin.predict(deep_galerkin.update(state, observation, config), config).prediction

    derivative = jax.jit(jax.grad(forecast, argnums=(0, 1), allow_int=True))
    gradient, by_level = derivative(state, jnp.asarray(0.4))
    reals_only = [leaf for leaf in jax.tree.leaves(gradient) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    assert all(np.all(np.isfinite(leaf)) for leaf in reals_only)
    numeric = (forecast(state, jnp.asarray(0.4 + 1e-5)) - forecast(state, jnp.asarray(0.4 - 1e-5))) / 2e-5
    assert float(by_level) == pytest.approx(float(numeric), rel=1e-5)
    _, fresh = derivative(deep_galerkin.init(config, jnp.float64), jnp.asarray(0.0))
    assert np.isfinite(fresh)
