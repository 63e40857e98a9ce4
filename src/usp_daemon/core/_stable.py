r"""Alpha-stable laws: quantiles, estimates from quantiles and from the characteristic function, and a sampler.

The parametrisation is S1 of Samorodnitsky & Taqqu (1994): tail index ``alpha`` in (0, 2], skewness ``beta`` in [-1, 1],
``scale`` > 0 and ``location``, with :math:`|\varphi(u)| = \exp(-|scale\, u|^\alpha)`. At alpha = 2 it is the Gaussian
law with variance ``2 scale**2``. Below 2 there is no variance, at or below 1 no mean, so everything here goes by
quantiles (McCulloch 1986) or by the empirical characteristic function (Koutrouvelis 1980), never by moments.
"""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from ._types import Scalar

MIN_TAIL_INDEX = 0.5
MAX_TAIL_INDEX = 2.0

# Quantiles of the standard symmetric law at TABLE_LEVELS for tail indices 0.5, 0.6 ... 2.0, from `symmetric_quantile`.
TABLE_LEVELS = (0.75, 0.9, 0.95, 0.975)
TABLE_TAIL_INDICES = np.linspace(MIN_TAIL_INDEX, MAX_TAIL_INDEX, 16)
_TABLE = np.array(
    [
        [1.283833, 12.741343, 57.304028, 241.923397],  # 0.5
        [1.162104, 7.864009, 27.439819, 90.942014],  # 0.6
        [1.090064, 5.591792, 16.235162, 45.198340],  # 0.7
        [1.045535, 4.343949, 10.956246, 26.715800],  # 0.8
        [1.017583, 3.580521, 8.067902, 17.708017],  # 0.9
        [1.000000, 3.077684, 6.313752, 12.706205],  # 1.0
        [0.988852, 2.729263, 5.164646, 9.650911],  # 1.1
        [0.981537, 2.479628, 4.368675, 7.644543],  # 1.2
        [0.976379, 2.297138, 3.794667, 6.250696],  # 1.3
        [0.972367, 2.162196, 3.369861, 5.239067],  # 1.4
        [0.968933, 2.061463, 3.051941, 4.481367],  # 1.5
        [0.965774, 1.985262, 2.814293, 3.905599],  # 1.6
        [0.962738, 1.926543, 2.637307, 3.473113],  # 1.7
        [0.959756, 1.880297, 2.504881, 3.158396],  # 1.8
        [0.956803, 1.843045, 2.404272, 2.933772],  # 1.9
        [0.953873, 1.812388, 2.326174, 2.771808],  # 2.0
    ]
)
_LOG_RATIO = np.log(_TABLE[:, 2] / _TABLE[:, 0])


def symmetric_distribution(x: float, tail_index: float, num_nodes: int = 20_000) -> float:
    """Distribution function at ``x`` of the standard symmetric law, by Zolotarev's integral (Nolan 1997, theorem 1).

    Host-side NumPy: it makes the table above and checks it.
    """
    if x < 0.0:
        return 1.0 - symmetric_distribution(-x, tail_index, num_nodes)
    if tail_index == 1.0:
        return 0.5 + math.atan(x) / math.pi
    if x == 0.0:
        return 0.5
    theta = (np.arange(num_nodes) + 0.5) * (0.5 * math.pi / num_nodes)
    exponent = tail_index / (tail_index - 1.0)
    log_v = (
        exponent * (np.log(np.cos(theta)) - np.log(np.sin(tail_index * theta)))
        if tail_index < 2.0
        else (-2.0 * np.log(2.0 * np.sin(theta)))
    )
    if tail_index < 2.0:
        log_v = log_v + np.log(np.cos((tail_index - 1.0) * theta)) - np.log(np.cos(theta))
    integrand = np.exp(-np.exp(np.minimum(exponent * math.log(x) + log_v, 700.0)))
    area = 0.5 * float(np.mean(integrand))
    return 1.0 - area if tail_index > 1.0 else 0.5 + area


def symmetric_quantile(level: float, tail_index: float) -> float:
    """Quantile at ``level`` in (0, 1) of the standard symmetric law, by bisection of its distribution function."""
    if level < 0.5:
        return -symmetric_quantile(1.0 - level, tail_index)
    low, high = 0.0, 1.0
    while symmetric_distribution(high, tail_index) < level:
        high *= 2.0
    for _ in range(50):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if symmetric_distribution(middle, tail_index) < level else (low, middle)
    return 0.5 * (low + high)


def tail_index_from_ratio(ratio: Scalar) -> Scalar:
    """McCulloch's estimate of the tail index from ``ratio`` = (q95 - q05) / (q75 - q25), for a symmetric law.

    Clipped to [MIN_TAIL_INDEX, MAX_TAIL_INDEX]; a ratio below the Gaussian's 2.439 gives 2.
    """
    log_ratio = jnp.log(jnp.maximum(ratio, 1.0))
    nodes = jnp.asarray(_LOG_RATIO[::-1].copy(), ratio.dtype)  # the ratio falls as the index rises
    values = jnp.asarray(TABLE_TAIL_INDICES[::-1].copy(), ratio.dtype)
    return jnp.interp(log_ratio, nodes, values)


def ratio_from_tail_index(tail_index: Scalar) -> Scalar:
    """(q95 - q05) / (q75 - q25) of a symmetric law of this tail index: the inverse of :func:`tail_index_from_ratio`."""
    log_ratio = jnp.interp(
        tail_index, jnp.asarray(TABLE_TAIL_INDICES, tail_index.dtype), jnp.asarray(_LOG_RATIO, tail_index.dtype)
    )
    return jnp.exp(log_ratio)


def table_quantiles(tail_index: Scalar) -> Float[Array, " levels"]:
    """Quantiles of the standard symmetric law at ``TABLE_LEVELS``, log-linear between the tabled indices."""
    grid = jnp.asarray(TABLE_TAIL_INDICES, tail_index.dtype)
    logs = jnp.asarray(np.log(_TABLE), tail_index.dtype)
    position = jnp.clip((tail_index - grid[0]) / (grid[1] - grid[0]), 0.0, grid.shape[0] - 1.0)
    left = jnp.minimum(position.astype(jnp.int32), grid.shape[0] - 2)
    part = position - left.astype(tail_index.dtype)
    return jnp.exp((1.0 - part) * logs[left] + part * logs[left + 1])


class StableFit(eqx.Module):
    """Parameters of a stable law fitted to a sample, in the units of the sample."""

    tail_index: Scalar
    scale: Scalar
    location: Scalar


def fit_quantiles(sample: Float[Array, " sample"]) -> StableFit:
    """McCulloch's quantile estimates for a sample of a symmetric law.

    Tail index from the spread ratio, scale from the interquartile range, location from the median. Skewness biases
    them: use :func:`fit_characteristic_function` when the law may be skewed.
    """
    levels = jnp.asarray([0.05, 0.25, 0.5, 0.75, 0.95], sample.dtype)
    q05, q25, q50, q75, q95 = jnp.quantile(sample, levels)
    interquartile = q75 - q25
    tiny = jnp.finfo(sample.dtype).tiny
    tail_index = tail_index_from_ratio((q95 - q05) / jnp.maximum(interquartile, tiny))
    return StableFit(tail_index=tail_index, scale=0.5 * interquartile / table_quantiles(tail_index)[0], location=q50)


def fit_characteristic_function(sample: Float[Array, " sample"]) -> StableFit:
    r"""Tail index and scale of any stable law, skewed or not, by regression on the empirical characteristic function.

    :math:`\log(-\log|\varphi(u)|^2) = \log(2\,scale^\alpha) + \alpha\log u` is a straight line in log u
    (Koutrouvelis 1980); ten points u = pi k / 25 after division by half the interquartile range. ``location`` is the
    median.
    """
    q25, q50, q75 = jnp.quantile(sample, jnp.asarray([0.25, 0.5, 0.75], sample.dtype))
    spread = jnp.maximum(0.5 * (q75 - q25), jnp.finfo(sample.dtype).tiny)
    standard = (sample - q50) / spread
    points = math.pi * jnp.arange(1, 11).astype(sample.dtype) / 25.0
    phases = points[:, None] * standard[None, :]
    power = jnp.mean(jnp.cos(phases), axis=1) ** 2 + jnp.mean(jnp.sin(phases), axis=1) ** 2
    response = jnp.log(-jnp.log(jnp.clip(power, 1e-12, 1.0 - 1e-6)))
    abscissa = jnp.log(points)
    centred = abscissa - jnp.mean(abscissa)
    slope = jnp.sum(centred * response) / jnp.sum(centred * centred)
    tail_index = jnp.clip(slope, MIN_TAIL_INDEX, MAX_TAIL_INDEX)
    intercept = jnp.mean(response) - tail_index * jnp.mean(abscissa)
    return StableFit(
        tail_index=tail_index, scale=spread * jnp.exp((intercept - math.log(2.0)) / tail_index), location=q50
    )


def sample(
    key: PRNGKeyArray,
    shape: tuple[int, ...],
    tail_index: Scalar,
    skewness: Scalar,
    scale: Scalar | float = 1.0,
    location: Scalar | float = 0.0,
) -> Float[Array, "..."]:
    """Draws from S1(tail_index, skewness, scale, location) by the method of Chambers, Mallows & Stuck (1976).

    The formulas are those corrected by Weron (1996).
    All parameters may be traced. Within 1e-4 of tail index 1 the index is taken to be 1, where the general formula
    loses all its digits.
    """
    angle_key, waiting_key = jax.random.split(key)
    dtype = tail_index.dtype
    half_pi = 0.5 * math.pi
    # The open interval: at the ends the cosine is 0.
    edge = float(jnp.finfo(dtype).eps)
    angle = half_pi * jax.random.uniform(angle_key, shape, dtype, minval=-1.0 + edge, maxval=1.0 - edge)
    waiting = jnp.maximum(jax.random.exponential(waiting_key, shape, dtype), jnp.finfo(dtype).tiny)

    is_one = jnp.abs(tail_index - 1.0) < 1e-4
    alpha = jnp.where(is_one, 1.5, tail_index)
    tangent = skewness * jnp.tan(half_pi * alpha)
    shift = jnp.arctan(tangent) / alpha
    spread = (1.0 + tangent**2) ** (0.5 / alpha)
    turned = alpha * (angle + shift)
    # angle - turned lies in (-pi/2, pi/2) but for rounding
    rest = jnp.maximum(jnp.cos(angle - turned), jnp.finfo(dtype).tiny)
    general = spread * jnp.sin(turned) / jnp.cos(angle) ** (1.0 / alpha) * (rest / waiting) ** ((1.0 - alpha) / alpha)

    tilted = half_pi + skewness * angle
    tilted = jnp.maximum(tilted, jnp.finfo(dtype).tiny)
    cauchy_like = (tilted * jnp.tan(angle) - skewness * jnp.log(half_pi * waiting * jnp.cos(angle) / tilted)) / half_pi
    scale = jnp.asarray(scale, dtype)
    one = scale * cauchy_like + skewness * scale * jnp.log(scale) / half_pi
    limit = jnp.finfo(dtype).max
    return jnp.clip(jnp.where(is_one, one, scale * general) + jnp.asarray(location, dtype), -limit, limit)
