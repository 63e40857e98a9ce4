"""Circuit breaker: when a path loses its regularity, only the expert made for rough paths is believed.

An absolute bound on the Hölder exponent would hold every series that is always rough in emergency for good, so the
exponent must be *certainly* below the bound and *certainly* below what the series itself has shown since its regime
began. A jump is its own reason: it has a pointwise exponent near 0, whatever the rest of the path looks like
[MallatHwang1992]. The maxima lines that measure that exponent are drawn on refresh; the gate knows a jump when it lets
one in, so that the forecast made on that very tick is already the emergency's.
"""

from typing import Any, Protocol, runtime_checkable

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from ._parameters import HISTORY_CAPACITY, PredictorConfig
from ._regularity import JUMP_STRENGTH
from ._types import NUM_KERNELS, Count, Flag, KernelType, Scalar, Weights

# Standard errors to the threshold and to the baseline. Those stated hold for self-similar paths; on mean-reverting ones
# estimates spread up to twice as far.
CONFIDENCE, BASELINE_CONFIDENCE = 2.0, 3.0
_LONG_AGO = 1_000_000_000


@runtime_checkable
class Regularity(Protocol):
    """What the breaker reads: a global exponent with its standard error, and the strongest recent singularity."""

    holder_exponent: Scalar
    holder_error: Scalar
    pointwise_exponent: Scalar
    pointwise_strength: Scalar


class BreakerState(eqx.Module):
    """Whether there is an emergency, and the exponent that is usual for the series: precision-weighted mean so far."""

    emergency: Flag
    rough: Flag  # by the global exponent, with hysteresis; a jump passes by itself
    baseline: Scalar
    precision: Scalar  # 1 / error^2 of the baseline; 0 when there is none
    ticks_rough: Count
    ticks_since_jump: Count


def init(dtype: Any) -> BreakerState:
    """No emergency and no baseline."""
    return BreakerState(
        emergency=jnp.asarray(False),
        rough=jnp.asarray(False),
        baseline=jnp.asarray(0.0, dtype),
        precision=jnp.asarray(0.0, dtype),
        ticks_rough=jnp.asarray(0, jnp.int32),
        ticks_since_jump=jnp.asarray(_LONG_AGO, jnp.int32),
    )


def on_tick(state: BreakerState, regime_started: Flag, jumped: Flag) -> BreakerState:
    """The breaker of one accepted tick, before its forecast is weighed.

    A new regime forgets the baseline and ends the emergency, unless the tick has itself ``jumped``: that starts one.
    """
    rough = state.rough & ~regime_started
    return BreakerState(
        emergency=(state.emergency & ~regime_started) | jumped,
        rough=rough,
        baseline=jnp.where(regime_started, jnp.zeros_like(state.baseline), state.baseline),
        precision=jnp.where(regime_started, jnp.zeros_like(state.precision), state.precision),
        ticks_rough=jnp.where(rough, state.ticks_rough + 1, 0).astype(jnp.int32),
        ticks_since_jump=jnp.where(jumped, 0, jnp.minimum(state.ticks_since_jump + 1, _LONG_AGO)).astype(jnp.int32),
    )


def update(state: BreakerState, regularity: Regularity, length: Count, config: PredictorConfig) -> BreakerState:
    """The breaker after a new estimate of regularity, made from the last ``length`` periods.

    ============  ==========================================================================================
    rough, when   ``H + 2 se < holder_threshold`` and ``H + 3 se(H - baseline) < baseline``, until
                  ``H > holder_threshold + holder_hysteresis`` or H is back at the baseline within one standard error
    a jump is     a pointwise exponent below ``jump_exponent_threshold`` on a maxima line that stands out, or a
                  tick that jumped less than ``refresh_interval`` ticks ago
    emergency     while either holds
    ============  ==========================================================================================

    Estimates that are not finite count as unknown (no evidence of anything). The baseline learns outside emergencies
    only, from each estimate as much as the ticks since the one before can have added; while the history still fills,
    the newest estimate, which has seen all there is, stands for all of them. What has been rough for as long as the
    whole history is usual now: the baseline starts anew.
    """
    dtype = state.baseline.dtype
    known = jnp.isfinite(regularity.holder_exponent) & jnp.isfinite(regularity.holder_error)
    # An error of 1 is wider than the exponent's whole range: it is how "unknown" is said.
    known = known & (regularity.holder_error > 0.0) & (regularity.holder_error < 1.0)
    exponent = jnp.where(known, regularity.holder_exponent, 0.5)
    error = jnp.where(known, regularity.holder_error, 1.0)
    threshold = jnp.asarray(config.holder_threshold, dtype)
    outlived = state.ticks_rough >= HISTORY_CAPACITY
    usual = (state.precision > 0.0) & ~outlived
    baseline_variance = 1.0 / jnp.where(usual, state.precision, 1.0)
    difference_error = jnp.sqrt(error * error + baseline_variance)

    certain = known & (exponent + CONFIDENCE * error < threshold)
    unusual = usual & (exponent + BASELINE_CONFIDENCE * difference_error < state.baseline)
    marked = (regularity.pointwise_exponent < jnp.asarray(config.jump_exponent_threshold, dtype)) & (
        regularity.pointwise_strength >= JUMP_STRENGTH
    )
    jump = marked | (state.ticks_since_jump < config.refresh_interval)
    recovered = exponent > threshold + jnp.asarray(config.holder_hysteresis, dtype)
    back = ~usual | (exponent + difference_error >= state.baseline)
    rough = (certain & unusual) | (state.rough & ~(recovered | back))
    emergency = jump | rough

    learns = known & ~emergency
    filling = length < HISTORY_CAPACITY
    new_share = jnp.where(filling, 1.0, config.refresh_interval / HISTORY_CAPACITY)
    gained = jnp.where(learns, new_share / (error * error), 0.0)
    kept = jnp.where(outlived | (learns & filling), 0.0, state.precision)
    precision = kept + gained
    baseline = state.baseline + gained / jnp.where(precision > 0.0, precision, 1.0) * (exponent - state.baseline)
    return BreakerState(
        emergency=emergency,
        rough=rough,
        baseline=baseline,
        precision=precision,
        ticks_rough=jnp.where(rough, state.ticks_rough, 0),
        ticks_since_jump=state.ticks_since_jump,
    )


def emergency_weights(dtype: Any) -> Weights:
    """All weight on the signature expert, whose features hold for rough paths."""
    return (jnp.arange(NUM_KERNELS) == int(KernelType.SIGNATURE)).astype(dtype)


def huber_loss(error: Float[Array, "..."], delta: Scalar | float) -> Float[Array, "..."]:
    """``error^2 / 2`` up to ``delta`` (in units of ``error``), ``delta (|error| - delta / 2)`` beyond [Huber1964]."""
    size = jnp.abs(error)
    inside = jnp.minimum(size, delta)
    # Written with the part inside, the square cannot overflow and the slope at zero is zero.
    return inside * (size - 0.5 * inside)


__all__ = ["BreakerState", "emergency_weights", "huber_loss", "init", "on_tick", "update"]
