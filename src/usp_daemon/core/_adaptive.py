"""Parameters that follow the regime: network capacity, stiffness thresholds, and step size and window of the fusion.

The specification's formulas (V-MAJ-1 to V-MAJ-3), traced, so that nothing recompiles when a regime changes. Where a
base value stands in the configuration the formula multiplies it, and the multiplier is 1 in the reference situation:
unit relative variance, and the specification's own defaults of the constants that enter the formula.
"""

import math

import jax.numpy as jnp
import numpy as np

from ._parameters import PredictorConfig
from ._types import Count, Flag, Scalar

# Where the multipliers are 1: the specification's defaults of these parameters.
REFERENCE = PredictorConfig()
# An entropy ratio beyond these says nothing more (the specification's range).
ENTROPY_RATIO_RANGE = (0.1, 10.0)
# Nearer to 1 the stiffness thresholds would leave every range of use.
HOLDER_EXPONENT_CEILING = 0.99
LEARNING_RATE_FLOOR = 1e-6
_POWERS_OF_TWO = np.asarray([2**power for power in range(21)], np.int32)


def compute_entropy_ratio(current_entropy: Scalar, baseline_entropy: Scalar) -> Scalar:
    """How many times more values the network spreads over than at the regime's start: ``exp(H - H0)`` in [0.1, 10].

    Both entropies in nats. A ratio of entropies themselves would change with the unit and with the sign; the
    exponential of their difference is the ratio of the effective numbers of values.
    """
    lowest, highest = ENTROPY_RATIO_RANGE
    growth = jnp.clip(current_entropy - baseline_entropy, math.log(lowest), math.log(highest))
    return jnp.clip(jnp.exp(growth), lowest, highest)


def scale_dgm_architecture(
    config: PredictorConfig, entropy_ratio: Scalar, coupling_beta: Scalar | float | None = None
) -> tuple[Count, Count]:
    """Width and depth that an entropy ratio asks for, from ``dgm_width_size`` by ``dgm_depth`` upwards.

    The capacity asked for is ``width * depth * entropy_ratio ** beta`` (``beta`` is ``dgm_scaling_beta`` unless
    given), at least the base and at most ``dgm_scaling_cap`` times it. As the specification has it the depth becomes
    ``ceil(sqrt(capacity * depth / width))`` and at least one more than it was, the width the next power of two that
    keeps the aspect. Where rounding the width up would break the cap, the largest power of two that fits stands, with
    as much depth as the cap leaves room for. Returns int32 scalars, never below the base's capacity.

    Whether to scale at all (``entropy_ratio > dgm_scaling_trigger``) is the caller's decision.
    """
    dtype = entropy_ratio.dtype
    width, depth = config.dgm_width_size, config.dgm_depth
    base = float(width * depth)
    beta = jnp.asarray(config.dgm_scaling_beta if coupling_beta is None else coupling_beta, dtype)
    limit = base * jnp.maximum(jnp.asarray(config.dgm_scaling_cap, dtype), 1.0)
    asked = jnp.clip(base * jnp.maximum(entropy_ratio, 1.0) ** beta, base, limit)

    # ceil() of a result that rounding has lifted off a whole number would take one step too many.
    slack = 1.0 - 8.0 * float(jnp.finfo(dtype).eps)
    natural_depth = jnp.maximum(jnp.ceil(jnp.sqrt(asked * (depth / width)) * slack), depth + 1.0)
    natural_width = jnp.ceil(jnp.ceil(jnp.sqrt(asked * (depth / width)) * slack) * (width / depth) * slack)
    powers = jnp.asarray(_POWERS_OF_TWO, dtype)
    rounded_up = jnp.min(jnp.where(powers >= natural_width, powers, powers[-1]))
    room = limit * (1.0 + 8.0 * float(jnp.finfo(dtype).eps))
    fits = rounded_up * natural_depth <= room
    widest = jnp.max(jnp.where(powers * natural_depth <= room, powers, 1.0))
    new_width = jnp.where(fits, rounded_up, widest)
    new_depth = jnp.where(fits, natural_depth, jnp.floor(room / widest))
    grown = new_width * new_depth >= base
    whole_width = jnp.where(grown, new_width, float(width)).astype(jnp.int32)
    whole_depth = jnp.where(grown, new_depth, float(depth)).astype(jnp.int32)
    return whole_width, whole_depth


def scaling_table(config: PredictorConfig, ratios: tuple[float, ...]) -> str:
    """Markdown table of width, depth and capacity for each entropy ratio, for the documentation."""
    base = config.dgm_width_size * config.dgm_depth
    rows = ["| entropy ratio | width | depth | capacity | times the base |", "|---:|---:|---:|---:|---:|"]
    for ratio in ratios:
        width, depth = (int(value) for value in scale_dgm_architecture(config, jnp.asarray(ratio)))
        rows.append(f"| {ratio:g} | {width} | {depth} | {width * depth} | {width * depth / base:.2f} |")
    return "\n".join(rows)


def compute_adaptive_stiffness_thresholds(holder_exponent: Scalar, config: PredictorConfig) -> tuple[Scalar, Scalar]:
    """Stiffness below which kernel C integrates explicitly, and above which implicitly, for a path's regularity.

    ``stiffness_low * max(1, c1 / (100 (1 - alpha)^2))`` and ``stiffness_high * max(1, c2 / (1000 (1 - alpha)^2))``
    with the Hölder exponent ``alpha`` clipped to [0, 0.99]. With the default bases this is the specification's
    ``max(100, 25 / (1 - alpha)^2)`` and ``max(1000, 250 / (1 - alpha)^2)``: constant up to alpha = 0.5, growing
    beyond. Dimensionless; the first stays below the second when the configuration has them so.
    """
    dtype = holder_exponent.dtype
    roughness = 1.0 - jnp.clip(holder_exponent, 0.0, HOLDER_EXPONENT_CEILING)
    square = roughness * roughness
    low_factor = jnp.asarray(config.stiffness_c1, dtype) / (REFERENCE.stiffness_low * square)
    high_factor = jnp.asarray(config.stiffness_c2, dtype) / (REFERENCE.stiffness_high * square)
    low = jnp.asarray(config.stiffness_low, dtype) * jnp.maximum(low_factor, 1.0)
    high = jnp.asarray(config.stiffness_high, dtype) * jnp.maximum(high_factor, 1.0)
    return low, jnp.maximum(low, high)


def compute_adaptive_jko_params(
    volatility_sigma_squared: Scalar,
    config: PredictorConfig,
    domain_length: Scalar | float | None = None,
    sinkhorn_epsilon: Scalar | float | None = None,
) -> tuple[Scalar, Scalar]:
    """Window (ticks) and step size of the fusion for a relative variance.

    ``volatility_sigma_squared`` is the dimensionless EWMA variance (1 in the ordinary regime). The specification's
    ``window = c L^2 / sigma^2`` and ``rate = 0.8 * 2 * epsilon * sigma^2`` divided by what they give at unit variance
    and at the default constants multiply ``entropy_window`` and ``learning_rate``. The window is then held to
    [``jko_window_min``, ``jko_window_max``] and the rate to [1e-6, 1]; nothing is asserted. ``domain_length`` and
    ``sinkhorn_epsilon`` are ``jko_domain_length`` and ``sinkhorn_epsilon_0`` unless given.
    """
    dtype = volatility_sigma_squared.dtype
    variance = jnp.maximum(volatility_sigma_squared, 1e-6)
    length = jnp.asarray(config.jko_domain_length if domain_length is None else domain_length, dtype)
    epsilon = jnp.asarray(config.sinkhorn_epsilon_0 if sinkhorn_epsilon is None else sinkhorn_epsilon, dtype)
    longer = (
        jnp.asarray(config.jko_window_factor, dtype)
        / REFERENCE.jko_window_factor
        * (length / REFERENCE.jko_domain_length) ** 2
        / variance
    )
    window = jnp.clip(
        jnp.asarray(config.entropy_window, dtype) * longer,
        jnp.asarray(config.jko_window_min, dtype),
        jnp.asarray(config.jko_window_max, dtype),
    )
    faster = (
        jnp.asarray(config.jko_rate_safety, dtype)
        / REFERENCE.jko_rate_safety
        * (epsilon / REFERENCE.sinkhorn_epsilon_0)
        * jnp.minimum(variance, 1.0 / LEARNING_RATE_FLOOR)
    )
    rate = jnp.clip(jnp.asarray(config.learning_rate, dtype) * faster, LEARNING_RATE_FLOOR, 1.0)
    return window, rate


def collapse_threshold(ema_variance: Scalar, config: PredictorConfig) -> Scalar:
    """Share of the entropy it should have below which the network counts as collapsed.

    ``entropy_threshold * gamma``. The share of entropy that must be kept, gamma, falls as volatility rises: it is
    ``entropy_gamma_default`` at unit relative volatility, inversely proportional to volatility around it, and stays in
    [``entropy_gamma_min``, ``entropy_gamma_max``].
    """
    dtype = ema_variance.dtype
    volatility = jnp.sqrt(jnp.maximum(ema_variance, 1e-6))
    gamma = jnp.clip(
        jnp.asarray(config.entropy_gamma_default, dtype) / volatility,
        jnp.asarray(config.entropy_gamma_min, dtype),
        jnp.asarray(config.entropy_gamma_max, dtype),
    )
    return jnp.asarray(config.entropy_threshold, dtype) * gamma


def update_mode_collapse(
    consecutive_steps: Count,
    entropy_fraction: Scalar,
    entropy_window: Scalar,
    ema_variance: Scalar,
    config: PredictorConfig,
) -> tuple[Count, Flag]:
    """Counts ticks of low entropy in a row; warns from ``max(mode_collapse_min_threshold, window * ratio)`` of them on.

    ``entropy_fraction`` is the entropy of the network's values as a share, in [0, 1], of the entropy it should have,
    ``entropy_window`` the adaptive window in ticks. Returns the new count and the warning.
    """
    low = entropy_fraction < collapse_threshold(ema_variance, config)
    steps = jnp.where(low, jnp.minimum(consecutive_steps + 1, jnp.iinfo(jnp.int32).max // 2), 0)
    ratio = jnp.asarray(config.mode_collapse_window_ratio, entropy_window.dtype)
    needed = jnp.maximum(
        jnp.asarray(config.mode_collapse_min_threshold, entropy_window.dtype), jnp.floor(entropy_window * ratio)
    )
    return steps, steps.astype(entropy_window.dtype) >= needed


__all__ = [
    "collapse_threshold",
    "compute_adaptive_jko_params",
    "compute_adaptive_stiffness_thresholds",
    "compute_entropy_ratio",
    "scale_dgm_architecture",
    "scaling_table",
    "update_mode_collapse",
]
