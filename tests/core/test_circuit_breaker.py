"""When the circuit breaks, and when it closes again."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from usp_daemon.core import _circuit_breaker as breaker
from usp_daemon.core._parameters import HISTORY_CAPACITY, PredictorConfig
from usp_daemon.core._types import Scalar


class Estimate(eqx.Module):
    """What the breaker reads of a regularity estimate."""

    holder_exponent: Scalar
    holder_error: Scalar
    pointwise_exponent: Scalar
    pointwise_strength: Scalar


CONFIG = PredictorConfig().as_arrays()
update, on_tick = jax.jit(breaker.update), jax.jit(breaker.on_tick)


def estimate(exponent: float, error: float = 0.03, pointwise: float = 1.0, strength: float = 1.0) -> Estimate:
    return Estimate(*(jnp.asarray(value) for value in (exponent, error, pointwise, strength)))


def after(
    *estimates: Estimate,
    state: breaker.BreakerState | None = None,
    config: PredictorConfig = CONFIG,
    length: int = HISTORY_CAPACITY,
) -> breaker.BreakerState:
    """The breaker after estimates from windows of ``length`` periods."""
    now = breaker.init(jnp.float64) if state is None else state
    for one in estimates:
        now = update(now, one, jnp.asarray(length, jnp.int32), config)
    return now


ORDINARY = [estimate(h) for h in (0.52, 0.48, 0.5, 0.51, 0.49)] * 8


def test_a_certain_fall_below_the_threshold_and_the_baseline_breaks_the_circuit() -> None:
    state = after(*ORDINARY)
    assert not bool(state.emergency)
    assert float(state.baseline) == pytest.approx(0.5)
    assert bool(after(estimate(0.25), state=state).emergency)
    # Two standard errors are not there yet.
    assert not bool(after(estimate(0.36), state=state).emergency)
    assert not bool(after(estimate(0.25, error=0.1), state=state).emergency)


def test_emergency_is_held_until_the_exponent_clears_threshold_and_hysteresis() -> None:
    state = after(*ORDINARY, estimate(0.2))
    seen = []
    for exponent in (0.3, 0.41, 0.44, 0.46, 0.41):
        state = after(estimate(exponent, error=0.01), state=state)
        seen.append(bool(state.emergency))
    assert seen == [True, True, True, False, False]


def test_a_series_that_is_always_rough_is_no_emergency() -> None:
    rng = np.random.default_rng(0)
    state = breaker.init(jnp.float64)
    alarms = 0
    for exponent in rng.normal(0.15, 0.03, 400):
        state = after(estimate(float(exponent)), state=state)
        alarms += int(state.emergency)
    # Two standard errors below what is usual, and none is held: 2.3 % of estimates.
    assert alarms <= 0.05 * 400


def test_a_fall_of_a_rough_series_ends_when_it_is_back_at_its_usual() -> None:
    state = after(*[estimate(0.3)] * 30, estimate(0.1))
    assert bool(state.emergency)
    assert not bool(after(estimate(0.29), state=state).emergency)


def test_a_jump_breaks_the_circuit_whatever_the_rest() -> None:
    jump = estimate(0.5, pointwise=0.0, strength=40.0)
    assert bool(after(jump).emergency)
    assert bool(after(*ORDINARY, jump).emergency)
    # A weak line may have a small exponent by chance, and a strong one may be smooth.
    assert not bool(after(*ORDINARY, estimate(0.5, pointwise=0.0, strength=3.0)).emergency)
    assert not bool(after(*ORDINARY, estimate(0.5, pointwise=0.6, strength=40.0)).emergency)
    # It ends with the mark.
    assert not bool(after(*ORDINARY, jump, estimate(0.5)).emergency)


def test_the_baseline_does_not_learn_from_an_emergency() -> None:
    state = after(*ORDINARY)
    fallen = after(*[estimate(0.1)] * 50, state=state)
    assert bool(fallen.emergency)
    assert float(fallen.baseline) == float(state.baseline)


def tick(
    state: breaker.BreakerState, *, regime: bool = False, jumped: bool = False, times: int = 1
) -> breaker.BreakerState:
    for _ in range(times):
        state = on_tick(state, jnp.asarray(regime), jnp.asarray(jumped))
    return state


def test_estimates_from_one_window_count_for_what_is_new_in_it() -> None:
    state = after(*[estimate(0.5, error=0.1)] * 20)
    assert float(state.precision) == pytest.approx(20 * 100.0 * CONFIG.refresh_interval / HISTORY_CAPACITY)
    assert float(state.baseline) == pytest.approx(0.5)


def test_the_newest_estimate_stands_for_all_while_the_history_fills() -> None:
    # A mean-reverting series looks ever rougher as its history grows. That is no fall.
    falling = [0.3, 0.26, 0.22, 0.19, 0.17, 0.15, 0.14]
    state = breaker.init(jnp.float64)
    for number, exponent in enumerate(falling, start=1):
        state = after(estimate(exponent, error=0.06 / number**0.5), state=state, length=50 * number)
        assert not bool(state.emergency)
        assert float(state.baseline) == pytest.approx(exponent)
        assert float(state.precision) == pytest.approx(number / 0.06**2)
    # A fall it is when it cannot be chance.
    assert bool(after(estimate(0.02, error=0.02), state=state, length=400).emergency)


def test_a_new_regime_starts_from_nothing() -> None:
    state = tick(after(*ORDINARY, estimate(0.2)), regime=True)
    assert not bool(state.emergency)
    assert float(state.precision) == 0.0
    assert not bool(after(estimate(0.2), state=state).emergency)
    kept = tick(after(*ORDINARY, estimate(0.2)))
    assert bool(kept.emergency)


@pytest.mark.parametrize("regime", [False, True])
def test_a_tick_that_jumps_breaks_the_circuit_at_once(regime: bool) -> None:
    state = tick(after(*ORDINARY), regime=regime, jumped=True)
    assert bool(state.emergency)
    assert float(state.precision) == 0.0 if regime else float(state.precision) > 0.0
    # Estimates of the next refresh_interval ticks still count the jump, whether or not a line shows it.
    for ticks, expected in ((1, True), (CONFIG.refresh_interval - 2, True), (1, False)):
        state = tick(state, times=ticks)
        assert bool(after(estimate(0.5), state=state).emergency) == expected
    # The end is an estimate's business alone.
    assert bool(tick(state, times=200).emergency)


def test_a_jump_of_a_series_that_is_always_rough_passes() -> None:
    rough = after(*[estimate(0.2)] * 10)
    state = tick(tick(rough, jumped=True), times=CONFIG.refresh_interval)
    # Below the baseline, though not certainly: no reason to hold what the jump began.
    assert not bool(after(estimate(0.16), state=state).emergency)


def test_what_is_rough_for_a_whole_history_is_usual_from_then_on() -> None:
    state = after(*ORDINARY, estimate(0.2))
    for _ in range(HISTORY_CAPACITY // CONFIG.refresh_interval):
        state = after(estimate(0.2), state=tick(state, times=CONFIG.refresh_interval))
        assert bool(state.emergency)
    state = after(estimate(0.2), state=tick(state, times=CONFIG.refresh_interval))
    assert not bool(state.emergency)
    assert float(state.baseline) == pytest.approx(0.2)
    state = after(*[estimate(0.2)] * 20, state=state)
    assert not bool(state.emergency)
    assert bool(after(estimate(0.05), state=state).emergency)


@pytest.mark.parametrize("broken", [(np.nan, 0.1), (0.1, np.nan), (0.0, np.inf), (0.1, 1.0), (0.1, 0.0)])
def test_unknown_exponents_are_no_evidence(broken: tuple[float, float]) -> None:
    state = after(*ORDINARY)
    result = after(estimate(*broken, pointwise=np.nan, strength=np.nan), state=state)
    for before, now in zip(jax.tree.leaves(state), jax.tree.leaves(result), strict=True):
        np.testing.assert_array_equal(before, now)


def test_threshold_and_hysteresis_are_parameters() -> None:
    low = dataclasses.replace(CONFIG, holder_threshold=jnp.asarray(0.2))
    assert not bool(after(*ORDINARY, estimate(0.25), config=low).emergency)
    wide = dataclasses.replace(CONFIG, holder_hysteresis=jnp.asarray(0.08))
    held = after(*ORDINARY, estimate(0.2), estimate(0.46, error=0.01), config=wide)
    assert bool(held.emergency)
    tolerant = dataclasses.replace(CONFIG, jump_exponent_threshold=jnp.asarray(0.7))
    assert not bool(after(estimate(0.5, pointwise=0.6, strength=40.0)).emergency)
    assert bool(after(estimate(0.5, pointwise=0.6, strength=40.0), config=tolerant).emergency)


def test_only_the_signature_expert_has_weight_in_an_emergency() -> None:
    for dtype in (jnp.float32, jnp.float64):
        weights = breaker.emergency_weights(dtype)
        assert weights.dtype == dtype
        np.testing.assert_array_equal(weights, [0, 0, 0, 1])


@pytest.mark.parametrize("delta", [0.5, 1.0, 2.0])
def test_huber_loss(delta: float) -> None:
    errors = np.array([-1e200, -3.0, -delta, -0.1, 0.0, 0.1, delta, 3.0, 1e200])
    small = np.clip(errors, -1e3, 1e3)
    expected = np.where(np.abs(errors) <= delta, 0.5 * small**2, delta * (np.abs(errors) - 0.5 * delta))
    np.testing.assert_allclose(jax.vmap(lambda e: breaker.huber_loss(e, delta))(jnp.asarray(errors)), expected)
    slopes = jax.vmap(jax.grad(lambda e: breaker.huber_loss(e, delta)))(jnp.asarray([-5.0, -0.2, 0.0, 0.2, 5.0]))
    np.testing.assert_allclose(slopes, [-delta, -0.2, 0.0, 0.2, delta], atol=1e-12)
