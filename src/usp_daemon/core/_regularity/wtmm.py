r"""Wavelet transform modulus maxima: the singularity spectrum and the exponent of the strongest recent singularity.

The second derivative of a Gaussian at 19 dense dyadic scales, :math:`a_j = 2^{j/3}`, normalised so that a singularity
of exponent h has a modulus growing as :math:`a^h`. A modulus maximum is linked to one at the next finer scale if they
lie within :math:`C (a_j - a_{j-1})` ticks (rounded up) of each other and each is the other's strongest candidate; a
line is what reaches the finest scale. With the supremum of the modulus along each line up to scale a:

.. math:: Z(q, a) = \sum_{lines} \sup^q, \quad Z \sim a^{\tau(q)}, \quad D(h) = \min_q (q h - \tau(q)).

Sources: Muzy, Bacry & Arneodo (1991, 1993); Mallat & Hwang (1992); Mallat (2009), *A Wavelet Tour of Signal
Processing*, ch. 6.
"""

import functools
import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from .._parameters import WTMM_CAPACITY
from .._types import Count, Scalar

NUM_SCALES = 19
SCALES = 2.0 ** (np.arange(NUM_SCALES) / 3.0)  # ticks: 1 ... 64
PADDING = WTMM_CAPACITY // 2  # four of the widest wavelets on either side
MOMENTS = np.arange(-4, 9) * 0.5  # q from -2 to 4
EXPONENTS = np.linspace(-0.5, 1.5, 81)  # h
FIRST_FITTED = 3  # a = 2: below, sampling smooths the path
POINTWISE_SCALE = 9  # a = 8: a singularity must dominate from one tick to eight
MAX_CONE = 3.0
MIN_ERROR = 0.01  # what sampled scales leave unsure where all lines agree, as on a periodic series
JUMP_STRENGTH = 4.0  # what fewer than one Gaussian window in a thousand reaches
MAX_STRENGTH = 1e6  # finite where there is nothing to compare with: a lone jump on a flat line
BUFFER_TO_SCALE = 8.0  # the widest scale fitted is this part of the buffer
_PLACE_MASK = WTMM_CAPACITY - 1  # a power of two less one
_SHIFTS = (1, 3, 9, 27)  # dilation by up to 40 ticks, the widest link: 3 * (64 - 50.8)


class MaximaLines(eqx.Module):
    """Modulus maxima per scale (finest first) and position, and how they hang together.

    ``modulus`` is zero where no line passes; ``child`` is the position of the same line one scale finer; ``supremum``
    is the largest modulus on the line up to this scale.
    """

    modulus: Float[Array, "scales time"]
    child: Int[Array, "scales time"]
    supremum: Float[Array, "scales time"]


class SingularitySpectrum(eqx.Module):
    """``scaling`` is tau on MOMENTS, ``dimension`` D on EXPONENTS; ``exponent`` is where D peaks, at ``peak``."""

    scaling: Float[Array, " moments"]
    dimension: Float[Array, " exponents"]
    exponent: Scalar
    error: Scalar
    peak: Scalar
    width: Scalar


@functools.lru_cache(maxsize=1)
def _filters() -> np.ndarray:
    """Fourier transforms of the wavelets, one row per scale, on the frequencies of the padded buffer."""
    frequencies = 2.0 * np.pi * np.arange(WTMM_CAPACITY + 1) / (2 * WTMM_CAPACITY)
    stretched = SCALES[:, None] * frequencies[None, :]
    return np.sqrt(2.0 * np.pi) * stretched**2 * np.exp(-0.5 * stretched**2)


def wavelet_transform(signal: Float[Array, " time"]) -> Float[Array, "scales time"]:
    """Continuous wavelet transform of ``signal``, which goes on at its first and last values beyond its ends.

    A constant continuation makes a jump on the very last tick look as it will look later.
    """
    padded = jnp.concatenate(
        [
            jnp.broadcast_to(signal[:1], (PADDING,)),
            signal,
            jnp.broadcast_to(signal[-1:], (PADDING,)),
        ]
    )
    spectrum = jnp.fft.rfft(padded)
    filtered = spectrum[None, :] * jnp.asarray(_filters(), spectrum.dtype)
    return jnp.fft.irfft(filtered, padded.shape[0], axis=1)[:, PADDING : PADDING + signal.shape[0]]


def modulus_maxima(transform: Float[Array, "scales time"], inside: Bool[Array, " time"]) -> Float[Array, "scales time"]:
    """The modulus at its local maxima along time, zero elsewhere and outside the buffer."""
    modulus = jnp.abs(transform)
    before = jnp.concatenate([modulus[:, :1], modulus[:, :-1]], axis=1)
    after = jnp.concatenate([modulus[:, 1:], modulus[:, -1:]], axis=1)
    # Rounding leaves a texture of maxima on flat stretches; they are no singularities.
    floor = 1e-5 * jnp.max(modulus, axis=1, keepdims=True)
    peaks = (modulus > before) & (modulus >= after) & (modulus > floor) & inside[None, :]
    return jnp.where(peaks, modulus, 0.0)


def _ordered_keys(modulus: Float[Array, " time"]) -> Int[Array, " time"]:
    """Integers that sort as the moduli do (to 14 bits) and carry the position in their lowest bits."""
    bits = jax.lax.bitcast_convert_type(modulus.astype(jnp.float32), jnp.int32)
    return (bits & ~_PLACE_MASK) | jnp.arange(modulus.shape[0], dtype=jnp.int32)


def _strongest_within(modulus: Float[Array, " time"], radius: Count, num_shifts: int) -> Int[Array, " time"]:
    """Per position, the key of the largest modulus at most ``radius`` ticks away.

    Up to four three-point maxima: once radius r is covered, a shift of up to 2 r + 1 leaves no gap.
    """
    size, margin = modulus.shape[0], _SHIFTS[-1]
    best = _ordered_keys(modulus)
    covered = jnp.asarray(0, jnp.int32)
    for largest in _SHIFTS[:num_shifts]:
        shift = jnp.clip(radius - covered, 0, largest)
        covered = covered + shift
        padded = jnp.pad(best, margin)
        before = jax.lax.dynamic_slice(padded, (margin - shift,), (size,))
        after = jax.lax.dynamic_slice(padded, (margin + shift,), (size,))
        best = jnp.maximum(best, jnp.maximum(before, after))
    return best


def link_radius(cone: Scalar) -> Int[Array, " scales"]:
    """How many ticks a line may move between scale j - 1 and j: ``cone`` times the step in scale, rounded up."""
    steps = jnp.asarray(np.diff(SCALES, prepend=SCALES[0]), cone.dtype)
    return jnp.maximum(jnp.ceil(jnp.clip(cone, 0.0, MAX_CONE) * steps), 1.0).astype(jnp.int32)


@functools.lru_cache(maxsize=1)
def _scale_groups() -> tuple[tuple[int, int, int], ...]:
    """Runs of scales (begin, end) whose widest links need the same number of shifts."""
    widest = np.ceil(MAX_CONE * np.diff(SCALES, prepend=SCALES[0]))
    needed = 1 + np.searchsorted(np.cumsum(_SHIFTS), widest)
    edges = [1, *(1 + np.flatnonzero(np.diff(needed[1:])) + 1), NUM_SCALES]
    return tuple((int(begin), int(end), int(needed[begin])) for begin, end in itertools.pairwise(edges))


def link_maxima(maxima: Float[Array, "scales time"], cone: Scalar) -> MaximaLines:
    """Joins maxima of neighbouring scales into lines that reach the finest scale, each maximum in one line at most."""
    place = jnp.arange(maxima.shape[1], dtype=jnp.int32)

    def one_scale(
        finer: tuple[Array, Array], inputs: tuple[Array, Array], num_shifts: int
    ) -> tuple[tuple[Array, Array], tuple[Array, Array, Array]]:
        finer_modulus, finer_supremum = finer
        coarser, radius = inputs
        child_key = _strongest_within(finer_modulus, radius, num_shifts)
        parent = _strongest_within(coarser, radius, num_shifts) & _PLACE_MASK
        child = child_key & _PLACE_MASK
        linked = (coarser > 0.0) & (child_key > _PLACE_MASK) & (parent[child] == place)
        modulus = jnp.where(linked, coarser, 0.0)
        supremum = jnp.where(linked, jnp.maximum(coarser, finer_supremum[child]), 0.0)
        return (modulus, supremum), (modulus, child, supremum)

    finest = maxima[0]
    state, radii = (finest, finest), link_radius(cone)
    pieces = [(finest[None], place[None], finest[None])]
    for begin, end, num_shifts in _scale_groups():
        step = functools.partial(one_scale, num_shifts=num_shifts)
        state, piece = jax.lax.scan(step, state, (maxima[begin:end], radii[begin:end]))
        pieces.append(piece)
    modulus, child, supremum = (jnp.concatenate(parts) for parts in zip(*pieces, strict=True))
    return MaximaLines(modulus=modulus, child=child, supremum=supremum)


def _fit(values: Float[Array, "scales other"], weights: Float[Array, " scales"]) -> Float[Array, " other"]:
    """Slopes of weighted regressions of each column on log scale."""
    coefficients = _fit_coefficients(weights)
    return jnp.sum(values * coefficients[:, None], axis=0)


def _fit_coefficients(weights: Float[Array, " scales"]) -> Float[Array, " scales"]:
    log_scale = jnp.asarray(np.log(SCALES), weights.dtype)
    total = jnp.maximum(jnp.sum(weights), 1e-12)
    centred = log_scale - jnp.sum(weights * log_scale) / total
    return weights * centred / jnp.maximum(jnp.sum(weights * centred * centred), 1e-12)


def singularity_spectrum(lines: MaximaLines, first: Count, length: Count) -> SingularitySpectrum:
    """Scaling function and singularity spectrum of the lines whose wavelet fits between ``first`` and the buffer's end.

    D(h) peaks where the minimum over q changes from a negative to a positive q: at tau'(0), the vertex of the discrete
    Legendre transform, taken exactly rather than to the grid of h.
    """
    dtype = lines.modulus.dtype
    scales = jnp.asarray(SCALES, dtype)
    place = jnp.arange(lines.modulus.shape[1]).astype(dtype)
    reach = jnp.minimum(place - first.astype(dtype), lines.modulus.shape[1] - 1.0 - place)
    used = (lines.modulus > 0.0) & (reach[None, :] >= scales[:, None])
    counts = jnp.sum(used.astype(dtype), axis=1)
    fitted = (jnp.arange(NUM_SCALES) >= FIRST_FITTED) & (scales * BUFFER_TO_SCALE <= length.astype(dtype))
    weights = jnp.where(fitted & (counts >= 2.0), counts, 0.0)
    known = jnp.sum((weights > 0.0).astype(dtype)) >= 3.0

    zero = int(np.flatnonzero(MOMENTS == 0.0)[0])
    step = float(MOMENTS[1] - MOMENTS[0])
    # Two neighbours are never both maxima, so that pairs hold all there is in half the room.
    supremum = _pairwise_sum(jnp.where(used, lines.supremum, 0.0))
    used = supremum > 0.0
    log_supremum = jnp.log(jnp.where(used, supremum, 1.0))
    # Powers are taken relative to the scale's mean logarithm, so that float32 does not overflow for any unit.
    centre = jnp.sum(log_supremum, axis=1) / jnp.maximum(counts, 1.0)
    spread = jnp.where(used, log_supremum - centre[:, None], 0.0)
    moments = jnp.asarray(MOMENTS, dtype)
    root = jnp.exp(step * jnp.clip(spread, -20.0, 20.0)) * used.astype(dtype)
    log_partition = _log_power_sums(spread, used, root) + moments[None, :] * centre[:, None]
    scaling = _fit(jnp.where((weights > 0.0)[:, None], log_partition, 0.0), weights)

    exponent = (scaling[zero + 1] - scaling[zero - 1]) / (2.0 * step)
    grid = jnp.asarray(EXPONENTS, dtype)
    dimension = jnp.min(grid[:, None] * moments[None, :] - scaling[None, :], axis=1)
    peak = -scaling[zero]
    # h runs over tau'(q); the spectrum's width is what is left between the moments of order -1 and 1.
    far = round(1.0 / step)
    low = (scaling[zero + far] - scaling[zero + far - 1]) / step
    high = (scaling[zero - far + 1] - scaling[zero - far]) / step

    variances = jnp.sum(spread * spread, axis=1) / jnp.maximum(counts - 1.0, 1.0)
    coefficients = _fit_coefficients(weights)
    error = jnp.sum(jnp.abs(coefficients) * jnp.sqrt(variances / jnp.maximum(counts, 1.0)))
    return SingularitySpectrum(
        scaling=jnp.where(known, scaling, 0.5 * moments - 1.0),
        dimension=jnp.where(known, dimension, 0.0),
        exponent=jnp.where(known, exponent, 0.5),
        error=jnp.where(known, jnp.clip(error, MIN_ERROR, 1.0), 1.0),
        peak=jnp.where(known, peak, 0.0),
        width=jnp.where(known, high - low, 0.0),
    )


def _pairwise_sum(values: Float[Array, "scales time"]) -> Float[Array, "scales pairs"]:
    return values[:, 0::2] + values[:, 1::2]


def _log_power_sums(
    spread: Float[Array, "scales time"], used: Bool[Array, "scales time"], root: Float[Array, "scales time"]
) -> Float[Array, "scales moments"]:
    """Log of the sum over lines of exp(q spread) for every q of MOMENTS, by repeated multiplication."""
    one = used.astype(spread.dtype)
    inverse = jnp.where(used, 1.0 / jnp.where(used, root, 1.0), 0.0)
    zero = int(np.flatnonzero(MOMENTS == 0.0)[0])
    sums = {zero: jnp.sum(one, axis=1)}
    upward, downward = one, one
    for index in range(zero + 1, MOMENTS.size):
        upward = upward * root
        sums[index] = jnp.sum(upward, axis=1)
    for index in range(zero - 1, -1, -1):
        downward = downward * inverse
        sums[index] = jnp.sum(downward, axis=1)
    stacked = jnp.stack([sums[index] for index in range(MOMENTS.size)], axis=1)
    return jnp.log(jnp.maximum(stacked, 1e-30))


def strongest_line(lines: MaximaLines, recent: int) -> tuple[Scalar, Scalar, Count]:
    """Exponent, strength and foot of the strongest line that reaches scale 8 from a foot in the last ``recent`` ticks.

    The strongest is the one with the largest modulus at its foot. The exponent is the slope of log modulus on log scale
    along the line, from one tick to eight. The strength is the modulus at the foot over the root mean square of the
    finest maxima elsewhere. Where no line qualifies the exponent is 1, the strength 0 and the foot the last position.
    """
    dtype, size = lines.modulus.dtype, lines.modulus.shape[1]
    # A line bends towards its foot by up to its scale, so it may start that much earlier than the singularity; and two
    # lines at one scale are further apart than that, so the strongest of each block of eight ticks stands for all.
    reach = round(float(SCALES[POINTWISE_SCALE]))
    num_blocks = min(-(-(recent + reach) // reach), size // reach)
    tail = lines.modulus[POINTWISE_SCALE, size - num_blocks * reach :].reshape(num_blocks, reach)
    position = jnp.argmax(tail, axis=1).astype(jnp.int32)
    position = position + jnp.arange(size - num_blocks * reach, size, reach, dtype=jnp.int32)
    moduli = []
    for scale in range(POINTWISE_SCALE, -1, -1):
        moduli.append(lines.modulus[scale][position])
        position = lines.child[scale][position]
    fresh = (moduli[0] > 0.0) & (position >= size - recent)
    best = jnp.argmax(jnp.where(fresh, moduli[-1], 0.0))
    found, foot = fresh[best], position[best]
    log_modulus = jnp.log(jnp.maximum(jnp.stack(moduli[::-1])[:, best], jnp.finfo(dtype).tiny))
    log_scale = np.log(SCALES[: POINTWISE_SCALE + 1])
    log_scale = (log_scale - log_scale.mean()) / np.sum((log_scale - log_scale.mean()) ** 2)
    slope = jnp.sum(log_modulus * jnp.asarray(log_scale, dtype))

    finest = lines.modulus[0]
    distance = jnp.abs(jnp.arange(size, dtype=jnp.int32) - foot)
    elsewhere = ((finest > 0.0) & (distance > reach)).astype(dtype)
    typical = jnp.sqrt(jnp.sum(finest * finest * elsewhere) / jnp.maximum(jnp.sum(elsewhere), 1.0))
    strength = jnp.minimum(finest[foot] / jnp.maximum(typical, jnp.finfo(dtype).tiny), MAX_STRENGTH)
    return jnp.where(found, slope, 1.0), jnp.where(found, strength, 0.0), jnp.where(found, foot, size - 1)
