"""Circuit breaker: when a path loses its regularity, only the expert made for rough paths is believed.

An absolute bound on the Hölder exponent would hold every series that is always rough in emergency for good, so the
exponent must be *certainly* below the bound and *certainly* below what the series itself has shown since its regime
began. A jump is its own reason: it has a pointwise exponent near 0, whatever the rest of the path looks like
[MallatHwang1992].
"""

from typing import Any, Protocol, runtime_checkable

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from ._parameters import PredictorConfig
from ._types import NUM_KERNELS, Flag, KernelType, Scalar, Weights

# Both bounds are two standard errors away.
CONFIDENCE = 2.0


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
    baseline: Scalar
    precision: Scalar  # sum of 1 / error^2 of the estimates behind the baseline; 0 when there is none


def init(dtype: Any) -> BreakerState:
    """No emergency and no baseline."""
    return BreakerState(
        emergency=jnp.asarray(False), baseline=jnp.asarray(0.0, dtype), precision=jnp.asarray(0.0, dtype)
    )


def on_regime(state: BreakerState, started: Flag) -> BreakerState:
    """Forgets the baseline and ends the emergency where a new regime has ``started``."""
    return BreakerState(
        emergency=state.emergency & ~started,
        baseline=jnp.where(started, jnp.zeros_like(state.baseline), state.baseline),
        precision=jnp.where(started, jnp.zeros_like(state.precision), state.precision),
    )


def update(state: BreakerState, regularity: Regularity, config: PredictorConfig) -> BreakerState:
    """The breaker after a new estimate of regularity.

    ============  ==========================================================================================
    in, when      ``H + 2 se < holder_threshold`` and ``H + 2 se(H - baseline) < baseline``, or a jump
    out, when     no jump, and ``H > holder_threshold + holder_hysteresis`` or H is back at the baseline within
                  one standard error
    a jump is     a pointwise exponent below ``jump_exponent_threshold`` on a line at least ``alarm_jump_sigmas``
                  as strong as the usual one
    ============  ==========================================================================================

    Estimates that are not finite count as unknown (no evidence of anything). The baseline learns outside emergencies
    only.
    """
    dtype = state.baseline.dtype
    known = jnp.isfinite(regularity.holder_exponent) & jnp.isfinite(regularity.holder_error)
    # An error of 1 is wider than the exponent's whole range: it is how "unknown" is said.
    known = known & (regularity.holder_error > 0.0) & (regularity.holder_error < 1.0)
    exponent = jnp.where(known, regularity.holder_exponent, 0.5)
    error = jnp.where(known, regularity.holder_error, 1.0)
    threshold = jnp.asarray(config.holder_threshold, dtype)
    usual = state.precision > 0.0
    baseline_variance = 1.0 / jnp.where(usual, state.precision, 1.0)
    difference_error = jnp.sqrt(error * error + baseline_variance)

    rough = known & (exponent + CONFIDENCE * error < threshold)
    unusual = usual & (exponent + CONFIDENCE * difference_error < state.baseline)
    jump = (regularity.pointwise_exponent < jnp.asarray(config.jump_exponent_threshold, dtype)) & (
        regularity.pointwise_strength >= jnp.asarray(config.alarm_jump_sigmas, dtype)
    )
    recovered = exponent > threshold + jnp.asarray(config.holder_hysteresis, dtype)
    back = ~usual | (exponent + difference_error >= state.baseline)
    emergency = jump | (rough & unusual) | (state.emergency & ~(recovered | back))

    learns = known & ~emergency
    gained = jnp.where(learns, 1.0 / (error * error), 0.0)
    precision = state.precision + gained
    baseline = state.baseline + gained / jnp.where(precision > 0.0, precision, 1.0) * (exponent - state.baseline)
    return BreakerState(emergency=emergency, baseline=baseline, precision=precision)


def emergency_weights(dtype: Any) -> Weights:
    """All weight on the signature expert, whose features hold for rough paths."""
    return (jnp.arange(NUM_KERNELS) == int(KernelType.SIGNATURE)).astype(dtype)


def huber_loss(error: Float[Array, "..."], delta: Scalar | float) -> Float[Array, "..."]:
    """``error^2 / 2`` up to ``delta`` (in units of ``error``), ``delta (|error| - delta / 2)`` beyond [Huber1964]."""
    size = jnp.abs(error)
    inside = jnp.minimum(size, delta)
    # Written with the part inside, the square cannot overflow and the slope at zero is zero.
    return inside * (size - 0.5 * inside)


__all__ = ["BreakerState", "emergency_weights", "huber_loss", "init", "on_regime", "update"]
