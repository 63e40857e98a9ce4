"""Path regularity: how rough a series is, how sure that is, and whether it has just jumped."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._parameters import WTMM_CAPACITY, PredictorConfig
from .._types import Count, Scalar
from . import holder, wtmm
from .wtmm import JUMP_STRENGTH

EXPONENT_FLOOR = -0.5  # maxima lines may leave [0, 1] on short buffers; further out is noise
EXPONENT_CEILING = 1.5


class RegularityResult(eqx.Module):
    """Regularity of one window of history.

    ``holder_exponent`` and ``holder_error`` are the global exponent and its standard error (Whittle).
    ``wtmm_exponent`` and ``wtmm_error`` are the same by maxima lines; ``spectrum_peak`` and ``spectrum_width`` describe
    the singularity spectrum (a monofractal path has 1 and 0). ``pointwise_exponent`` is that of the strongest recent
    maxima line, near 0 at a jump, and 1 where no line stands out from the others; ``pointwise_strength`` is the line's
    modulus at one tick over that of the others, ``pointwise_age`` how many ticks ago it lies.
    """

    holder_exponent: Scalar
    holder_error: Scalar
    wtmm_exponent: Scalar
    wtmm_error: Scalar
    spectrum_peak: Scalar
    spectrum_width: Scalar
    pointwise_exponent: Scalar
    pointwise_strength: Scalar
    pointwise_age: Count

    @classmethod
    def unknown(cls, dtype: Any) -> "RegularityResult":
        """What is said before there is anything to estimate from."""
        half, one, zero = (jnp.asarray(value, dtype) for value in (0.5, 1.0, 0.0))
        return cls(
            holder_exponent=half,
            holder_error=one,
            wtmm_exponent=half,
            wtmm_error=one,
            spectrum_peak=zero,
            spectrum_width=zero,
            pointwise_exponent=one,
            pointwise_strength=zero,
            pointwise_age=jnp.asarray(0, jnp.int32),
        )


def estimate_regularity(history: Float[Array, " history"], length: Count, config: PredictorConfig) -> RegularityResult:
    """Regularity of the last ``length`` values of ``history``.

    Args:
        history: past values, oldest first, in any unit; entries before the last ``length`` are ignored.
        length: number of real values, int32.
        config: ``wtmm_buffer_size`` values are seen by the maxima lines (all by the global estimate), ``besov_cone_c``
            bounds how far a line moves per step of scale, ``refresh_interval`` is how far back a jump is recent.

    Returns:
        Finite numbers for every finite input: where nothing can be estimated the exponents are 0.5 with error 1, and
        the pointwise exponent is 1 with strength 0.
    """
    dtype = history.dtype
    history, length = jax.lax.stop_gradient(history), length.astype(jnp.int32)
    holder_exponent, holder_error = holder.whittle_exponent(history, length)

    length = jnp.minimum(length, jnp.clip(config.wtmm_buffer_size, 1, WTMM_CAPACITY).astype(jnp.int32))
    first = jnp.clip(WTMM_CAPACITY - length, 0, WTMM_CAPACITY - 1)
    signal = history[-WTMM_CAPACITY:]
    inside = jnp.arange(WTMM_CAPACITY, dtype=jnp.int32) >= first
    # Relative to the oldest real value and to the largest departure from it: free of units and offset. In that form
    # single precision is far below the estimate's own error, and half the price.
    signal = jnp.where(inside, signal - signal[first], 0.0)
    signal = signal / jnp.maximum(jnp.max(jnp.abs(signal)), jnp.finfo(dtype).tiny)
    transform = wtmm.wavelet_transform(signal.astype(jnp.float32))
    cone = jnp.asarray(config.besov_cone_c, dtype).astype(jnp.float32)
    lines = wtmm.link_maxima(wtmm.modulus_maxima(transform, inside), cone)
    spectrum = wtmm.singularity_spectrum(lines, first, length)
    exponent, strength, foot = wtmm.strongest_line(lines, min(config.refresh_interval, WTMM_CAPACITY))
    stands_out = strength >= wtmm.JUMP_STRENGTH
    return RegularityResult(
        holder_exponent=holder_exponent,
        holder_error=holder_error,
        wtmm_exponent=jnp.clip(spectrum.exponent, EXPONENT_FLOOR, EXPONENT_CEILING).astype(dtype),
        wtmm_error=spectrum.error.astype(dtype),
        spectrum_peak=spectrum.peak.astype(dtype),
        spectrum_width=spectrum.width.astype(dtype),
        pointwise_exponent=jnp.where(stands_out, exponent, 1.0).astype(dtype),
        pointwise_strength=strength.astype(dtype),
        pointwise_age=(WTMM_CAPACITY - 1 - foot).astype(jnp.int32),
    )


__all__ = ["JUMP_STRENGTH", "RegularityResult", "estimate_regularity"]
