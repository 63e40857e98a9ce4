"""Path regularity: how rough a series is, how sure that is, and whether it has just jumped."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._parameters import WTMM_CAPACITY, PredictorConfig
from .._types import Count, Scalar
from . import holder, wtmm

EXPONENT_FLOOR = -0.5  # maxima lines may leave [0, 1] on short buffers; further out is noise
EXPONENT_CEILING = 1.5


class RegularityResult(eqx.Module):
    """Regularity of one window of history.

    ``holder_exponent`` and ``holder_error`` are the global exponent and its standard error (Whittle), ``wtmm_exponent``
    and ``wtmm_error`` the same by maxima lines; ``spectrum_peak`` and ``spectrum_width`` describe the singularity
    spectrum (a monofractal path has 1 and 0). ``pointwise_exponent`` is that of the strongest recent maxima line, near 0
    at a jump, ``pointwise_strength`` its modulus at one tick over that of the other maxima, ``pointwise_age`` how many
    ticks ago it lies. On a random walk one strongest line in ten has an exponent below 0.1 by chance: a jump is a small
    exponent *and* a strength that chance does not reach.
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
    length = length.astype(jnp.int32)
    holder_exponent, holder_error = holder.whittle_exponent(history, length)

    length = jnp.minimum(length, jnp.clip(config.wtmm_buffer_size, 1, WTMM_CAPACITY).astype(jnp.int32))
    first = jnp.clip(WTMM_CAPACITY - length, 0, WTMM_CAPACITY - 1)
    signal = history[-WTMM_CAPACITY:]
    inside = jnp.arange(WTMM_CAPACITY, dtype=jnp.int32) >= first
    # Relative to the oldest real value and to the largest departure from it: no unit, and no cancellation in float32.
    signal = jnp.where(inside, signal - signal[first], 0.0)
    signal = signal / jnp.maximum(jnp.max(jnp.abs(signal)), jnp.finfo(dtype).tiny)
    maxima = wtmm.modulus_maxima(wtmm.wavelet_transform(signal), inside)
    lines = wtmm.link_maxima(maxima, jnp.asarray(config.besov_cone_c, dtype))
    spectrum = wtmm.singularity_spectrum(lines, first, length)
    since = WTMM_CAPACITY - config.refresh_interval
    exponent, strength, foot = wtmm.strongest_line(lines, jnp.maximum(since, first))
    return RegularityResult(
        holder_exponent=holder_exponent,
        holder_error=holder_error,
        wtmm_exponent=jnp.clip(spectrum.exponent, EXPONENT_FLOOR, EXPONENT_CEILING),
        wtmm_error=spectrum.error,
        spectrum_peak=spectrum.peak,
        spectrum_width=spectrum.width,
        pointwise_exponent=exponent,
        pointwise_strength=strength,
        pointwise_age=(WTMM_CAPACITY - 1 - foot).astype(jnp.int32),
    )


__all__ = ["RegularityResult", "estimate_regularity"]
