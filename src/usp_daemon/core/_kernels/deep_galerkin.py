r"""Kernel B: the conditional expectation of a locally fitted diffusion, by a Deep Galerkin network.

The standardised level is taken to follow :math:`dX = (a + bX + cX^3)\,dt + s\,dW` for a while, time in ticks. Its
coefficients come from a recursive ridge regression of the level's increments on (1, x, He3(x)); what one tick of
discrete data says is turned into what the diffusion must be (for :math:`c = 0` exactly: :math:`b = \ln(1 + \beta)`).
The forecast is :math:`V(h, x_t) - x_t`, where V solves the backward Kolmogorov equation and is represented by a network
that was trained once for the whole family [SirignanoSpiliopoulos2018]_. Nothing is trained while the predictor runs.

The entropy of V under the law of the recent levels, on bins fixed when the regime began, says how much richer the
problem has become since; its ratio to the baseline decides the network's tier.
"""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import ndtr
from jaxtyping import Array, Float

from .. import _recursive_ridge as ridge
from .._adaptive import compute_entropy_ratio, scale_dgm_architecture
from .._numerics import ewma_rate, safe_divide
from .._parameters import DGM_TIERS, ENTROPY_BINS_CAPACITY, PredictorConfig, nearest_dgm_tier
from .._results import KernelOutput
from .._types import Count, Flag, Scalar
from . import _dgm_network as network
from ._interface import KernelObservation, RefreshContext

# The third probabilists' Hermite polynomial over its standard deviation keeps the features uncorrelated under the
# level's own law; a unit below one makes the cubic term earn its place (its prior is worth 1 / unit**2 ticks).
_CUBIC_UNIT = 0.25
_HERMITE_SCALE = _CUBIC_UNIT / 6.0**0.5
_MAX_CUBIC = 0.2  # per tick; beyond it one tick would overshoot for every level in use
_PRIOR_VARIANCE = 1.0  # of a coefficient, in units of the noise variance
_LEVEL_STEP_BOUND = 12.0  # levels live in +-6
_UNIT_BOUNDS = (1e-6, 1e6)
_SAMPLES_KEPT = 20  # how much an alarm lets the noise variance remember, ticks

# The law of the recent levels is represented by intervals between these standard normal points.
_LAW_POINTS = np.linspace(-3.6, 3.6, 25)
_BIN_REACH = 8.0  # the bins span this many standard deviations of V on either side, so that a wider law still fits


class DeepGalerkinState(eqx.Module):
    """Everything kernel B knows: the local diffusion, the latest level, its recent law, and the account of entropy."""

    regression: ridge.RidgeState
    noise_variance: Scalar  # of the level's increment that the drift leaves over, level units squared
    num_samples: Count
    level: Scalar
    level_unit: Scalar
    scale: Scalar
    level_mean: Scalar
    level_variance: Scalar
    num_levels: Count  # since the regime began
    tier: Count
    entropy: Scalar  # nats
    baseline_entropy: Scalar  # nats
    entropy_fraction: Scalar  # of ln(bins), the greatest possible; 1 until it was measured
    has_baseline: Flag
    capacity_requested: Flag  # the next refresh shall go one tier further up
    bin_low: Scalar  # outermost edges, relative to the mean of V, units of the symbol
    bin_high: Scalar
    architecture_scaling_events: Count


class LocalDiffusion(eqx.Module):
    """Coefficients of ``dX = (a + bX + cX^3) dt + s dW`` per tick, and how sure the regression is of its drift."""

    constant: Scalar
    slope: Scalar
    cubic: Scalar
    variance: Scalar  # s squared
    drift_error: Scalar  # standard error of the drift at the present level


class DeepGalerkinMetadata(eqx.Module):
    """What kernel B publishes beside its forecast."""

    diffusion: LocalDiffusion
    lower: Scalar  # forecast under the lowest and the highest drift, dimensionless increments
    upper: Scalar
    entropy: Scalar
    entropy_fraction: Scalar
    entropy_ratio: Scalar
    tier: Count


def init(config: PredictorConfig, dtype: Any) -> DeepGalerkinState:
    """A kernel that believes in no drift."""
    zero, count = jnp.zeros((), dtype), jnp.zeros((), jnp.int32)
    return DeepGalerkinState(
        regression=ridge.init(3, jnp.asarray(_PRIOR_VARIANCE, dtype)),
        noise_variance=zero,
        num_samples=count,
        level=zero,
        level_unit=jnp.ones((), dtype),
        scale=zero,
        level_mean=zero,
        level_variance=zero,
        num_levels=count,
        tier=jnp.asarray(_base_tier(config), jnp.int32),
        entropy=zero,
        baseline_entropy=zero,
        entropy_fraction=jnp.ones((), dtype),
        has_baseline=jnp.asarray(False),
        capacity_requested=jnp.asarray(False),
        bin_low=zero,
        bin_high=zero,
        architecture_scaling_events=count,
    )


def _base_tier(config: PredictorConfig) -> int:
    return nearest_dgm_tier(config.dgm_width_size, config.dgm_depth)


def _regressors(level: Scalar) -> Float[Array, "3"]:
    return jnp.stack([jnp.ones_like(level), level, _HERMITE_SCALE * level * (level * level - 3.0)])


def update(state: DeepGalerkinState, observation: KernelObservation, config: PredictorConfig) -> DeepGalerkinState:
    """Learns the drift from the step that led to this tick, then moves to this tick.

    A value that is not finite teaches nothing and leaves the level where it was.
    """
    dtype = state.level.dtype
    inputs = jnp.stack(
        [
            observation.increment,
            observation.level,
            observation.previous_level,
            observation.level_unit,
            observation.scale,
            observation.weight,
        ]
    )
    usable = jnp.all(jnp.isfinite(inputs))
    keep = lambda new, old: jnp.where(usable, new, old)  # noqa: E731
    level = jnp.clip(keep(observation.level, state.level), -network.MAX_LEVEL, network.MAX_LEVEL)
    previous = jnp.clip(keep(observation.previous_level, 0.0), -network.MAX_LEVEL, network.MAX_LEVEL)
    level_unit = jnp.clip(keep(observation.level_unit, state.level_unit), *_UNIT_BOUNDS)
    weight = jnp.where(usable, jnp.clip(observation.weight, 0.0, 1.0), 0.0)
    target = jnp.clip(keep(observation.increment, 0.0) / level_unit, -_LEVEL_STEP_BOUND, _LEVEL_STEP_BOUND)

    prior_variance = jnp.asarray(_PRIOR_VARIANCE, dtype)
    features = _regressors(previous)
    memory = jnp.maximum(config.kernel_b_memory_ticks, 2.0)
    error = target - ridge.predict(state.regression, features)
    forgetting = ridge.forgetting(memory, observation.forget)
    regression = ridge.update(state.regression, features, target, forgetting, weight, prior_variance)
    num_samples = jnp.where(observation.forget, jnp.minimum(state.num_samples, _SAMPLES_KEPT), state.num_samples)
    noise_rate = weight * ewma_rate(num_samples, memory)
    noise_variance = state.noise_variance + noise_rate * (error * error - state.noise_variance)

    num_levels = jnp.where(observation.forget, 0, state.num_levels)
    level_rate = jnp.where(usable, ewma_rate(num_levels, config.entropy_window.astype(dtype)), 0.0)
    deviation = level - state.level_mean
    return DeepGalerkinState(
        regression=regression,
        noise_variance=noise_variance,
        num_samples=num_samples + (weight > 0).astype(jnp.int32),
        level=level,
        level_unit=level_unit,
        scale=jnp.clip(keep(observation.scale, state.scale), 0.0, float(jnp.finfo(dtype).max) ** 0.5),
        level_mean=state.level_mean + level_rate * deviation,
        level_variance=(1.0 - level_rate) * (state.level_variance + level_rate * deviation * deviation),
        num_levels=num_levels + usable.astype(jnp.int32),
        tier=state.tier,
        entropy=state.entropy,
        baseline_entropy=jnp.where(observation.forget, state.entropy, state.baseline_entropy),
        entropy_fraction=state.entropy_fraction,
        has_baseline=state.has_baseline & ~observation.forget,
        capacity_requested=state.capacity_requested & ~observation.forget,
        bin_low=state.bin_low,
        bin_high=state.bin_high,
        architecture_scaling_events=state.architecture_scaling_events,
    )


def _mean_growth(z: Scalar) -> tuple[Scalar, Scalar]:
    """``(exp(z) - 1) / z`` and its own mean over the way there, ``(that - 1) / z``; smooth through zero."""
    small = jnp.abs(z) < 0.05
    divisor = jnp.where(small, 1.0, z)
    first = jnp.where(small, 1.0 + z * (1 / 2 + z * (1 / 6 + z / 24)), jnp.expm1(divisor) / divisor)
    second = jnp.where(small, 1 / 2 + z * (1 / 6 + z * (1 / 24 + z / 120)), (first - 1.0) / divisor)
    return first, second


def local_diffusion(state: DeepGalerkinState) -> LocalDiffusion:
    """The diffusion whose one-tick increments have the regression's mean and residual variance.

    The regression says ``E[dx | x] = alpha + beta x + gamma He3(x)`` per tick. Without gamma the answer is exact:
    ``b = ln(1 + beta)``. The cubic term is added to first order about that linear process, under which
    ``E[He3(X_u) | x] = exp(3bu) He3(x) + (what the noise exceeds -2b by) x``. It is kept where it pushes inwards: a
    diffusion that it drives outwards explodes.
    """
    coefficients = state.regression.coefficients
    gamma = jnp.clip(_HERMITE_SCALE * coefficients[2], -_MAX_CUBIC, 0.0)
    lowest, highest = float(np.expm1(network.MIN_SLOPE)), float(np.expm1(network.MAX_SLOPE))
    linear = jnp.log1p(jnp.clip(coefficients[1], lowest, highest))
    spread, spread_mean = _mean_growth(2.0 * linear)
    kept = jnp.exp(linear)
    variance = state.noise_variance / spread
    cubic = gamma / (kept * spread)
    by_noise = 3.0 * cubic * (variance + 2.0 * linear) * kept * spread_mean
    linear = jnp.log1p(jnp.clip(coefficients[1] - by_noise, lowest, highest))
    slope = linear - 3.0 * cubic
    growth, _ = _mean_growth(linear)
    leverage = ridge.leverage(state.regression, _regressors(state.level))
    return LocalDiffusion(
        constant=coefficients[0] / growth,
        slope=slope,
        cubic=cubic,
        variance=variance,
        drift_error=jnp.sqrt(state.noise_variance * leverage + 1e-30) / growth,
    )


def _scaled(diffusion: LocalDiffusion, level: Scalar, horizon: Scalar) -> network.Problem:
    return network.Problem(
        level=level,
        constant=diffusion.constant * horizon,
        slope=diffusion.slope * horizon,
        cubic=diffusion.cubic * horizon,
        variance=diffusion.variance * horizon,
    )


def predict(state: DeepGalerkinState, config: PredictorConfig) -> KernelOutput:
    """The expected change over ``kernel_b_horizon`` ticks, in units of ``scale``, and its precision.

    With ``kernel_b_drift_uncertainty`` above zero the drift is only known to within that many standard errors, and the
    forecast is the one nearest to "no change" between the two extreme values.
    """
    diffusion = local_diffusion(state)
    horizon = jnp.maximum(config.kernel_b_horizon, 0.0)
    uncertainty = jnp.maximum(config.kernel_b_drift_uncertainty, 0.0) * diffusion.drift_error * horizon
    centre, low, high = network.bracketed_increment(
        _base_tier(config), state.tier, _scaled(diffusion, state.level, horizon), uncertainty
    )
    lower, upper = jnp.minimum(low, high), jnp.maximum(low, high)
    cautious = jnp.clip(0.0, lower, upper)
    forecast = jnp.where(uncertainty > 0, cautious, centre) * state.level_unit
    # drift_error**2 stands for the leverage; a kernel without samples claims nothing.
    variance = (state.noise_variance + diffusion.drift_error**2) * state.level_unit**2
    confidence = jnp.where(state.num_samples > 0, 1.0 / jnp.maximum(variance, 1e-12), 0.0)
    metadata = DeepGalerkinMetadata(
        diffusion=diffusion,
        lower=lower * state.level_unit,
        upper=upper * state.level_unit,
        entropy=state.entropy,
        entropy_fraction=state.entropy_fraction,
        entropy_ratio=entropy_ratio(state),
        tier=state.tier,
    )
    return KernelOutput(prediction=forecast, confidence=confidence, metadata=metadata)


# ---------------------------------------------------------------------------------------------------------------------
# Entropy and tiers


def histogram_entropy(
    nodes: Float[Array, " nodes"], masses: Float[Array, " intervals"], low: Scalar, high: Scalar, num_bins: Count
) -> Scalar:
    """Entropy in nats of a law on ``num_bins`` equal bins between ``low`` and ``high``.

    The law puts ``masses[k]`` uniformly between ``nodes[k]`` and ``nodes[k + 1]``, in either order; what lies outside
    counts for the outermost bins. ``num_bins`` is traced, at most ``ENTROPY_BINS_CAPACITY``. Between 0 and
    ``ln(num_bins)``, and continuous in every argument but the last.
    """
    dtype = nodes.dtype
    bins = jnp.clip(num_bins, 1, ENTROPY_BINS_CAPACITY)
    index = jnp.arange(ENTROPY_BINS_CAPACITY - 1, dtype=dtype) + 1.0
    width = (high - low) / bins.astype(dtype)
    inner_edges = low + width * index
    start = jnp.minimum(nodes[:-1], nodes[1:])
    # A point mass is spread over a sliver of a bin: nothing jumps when it crosses an edge.
    length = jnp.maximum(jnp.abs(nodes[1:] - nodes[:-1]), jnp.maximum(1e-3 * width, jnp.finfo(dtype).tiny * 1e6))
    below = jnp.clip((inner_edges[:, None] - start[None, :]) / length[None, :], 0.0, 1.0)
    cumulative = jnp.sum(below * masses[None, :], axis=1)
    cumulative = jnp.where(
        jnp.arange(ENTROPY_BINS_CAPACITY - 1, dtype=jnp.int32) < bins - 1, cumulative, jnp.sum(masses)
    )
    edges = jnp.concatenate([jnp.zeros((1,), dtype), cumulative, jnp.sum(masses)[None]])
    share = edges[1:] - edges[:-1]
    positive = share > 0
    return -jnp.sum(jnp.where(positive, share * jnp.log(jnp.where(positive, share, 1.0)), 0.0))


def entropy_ratio(state: DeepGalerkinState) -> Scalar:
    """``exp(H - H0)`` in [0.1, 10]: how many times wider V spreads than when the regime began; 1 without a baseline."""
    return compute_entropy_ratio(state.entropy, state.baseline_entropy)


def entropy_retained(state: DeepGalerkinState) -> Scalar:
    """``H / H0`` in [0, 1]: how much of the regime's entropy is left, the quantity that mode collapse is judged by.

    A fraction of ``ln(bins)`` cannot serve there: the bins leave room for wider laws, so a healthy regime starts at
    about two thirds of it. 1 before there is a baseline.
    """
    retained = safe_divide(state.entropy, state.baseline_entropy, 1.0)
    return jnp.clip(jnp.where(state.has_baseline, retained, 1.0), 0.0, 1.0)


def _law_of_value(state: DeepGalerkinState, config: PredictorConfig) -> tuple[Array, Array]:
    """V at the law's points, units of the symbol relative to its mean, and the mass between neighbours."""
    dtype = state.level.dtype
    points = jnp.asarray(_LAW_POINTS, dtype)
    steps = ndtr(points[1:]) - ndtr(points[:-1])
    masses = steps / jnp.sum(steps)
    levels = state.level_mean + jnp.sqrt(state.level_variance + 1e-30) * points
    diffusion = local_diffusion(state)
    spread = lambda value: jnp.broadcast_to(value, levels.shape)  # noqa: E731
    problem = _scaled(diffusion, state.level, jnp.maximum(config.kernel_b_horizon, 0.0))
    # The base network measures whatever tier is in use: a change of tier must not look like a change of the law.
    many = network.Problem(
        levels, spread(problem.constant), spread(problem.slope), spread(problem.cubic), spread(problem.variance)
    )
    weights = network.load_weights(_base_tier(config), dtype.name)
    rise = network.increment(weights, network.clip_to_box(many))
    values = levels + rise
    centre = jnp.sum(0.5 * (values[1:] + values[:-1]) * masses)
    return (values - centre) * state.level_unit * state.scale, masses


_CAPACITIES = np.array([width * depth for width, depth in DGM_TIERS], np.float64)


def _allowed_tiers(config: PredictorConfig) -> Array:
    base = _base_tier(config)
    factor = jnp.asarray(_CAPACITIES / _CAPACITIES[base], config.dgm_scaling_cap.dtype)
    return (factor <= jnp.maximum(config.dgm_scaling_cap, 1.0)) & (jnp.arange(len(DGM_TIERS)) >= base)


def highest_tier(config: PredictorConfig) -> Count:
    """The largest shipped tier within ``dgm_scaling_cap`` times the configured one's capacity."""
    return jnp.max(jnp.where(_allowed_tiers(config), jnp.arange(len(DGM_TIERS)), 0)).astype(jnp.int32)


def highest_tier_on_host(config: PredictorConfig) -> int:
    """:func:`highest_tier` of parameters that are plain numbers, without a device."""
    base = _base_tier(config)
    limit = max(float(config.dgm_scaling_cap), 1.0)
    return max(tier for tier in range(base, len(DGM_TIERS)) if _CAPACITIES[tier] <= limit * _CAPACITIES[base])


def tier_for(width: Scalar | Count, depth: Scalar | Count, config: PredictorConfig) -> Count:
    """The shipped tier whose capacity ``width * depth`` is nearest in ratio to the one asked for.

    Never below the configured tier, nor above its capacity times ``dgm_scaling_cap``; ties go to the smaller network.
    """
    dtype = config.dgm_scaling_cap.dtype
    asked = jnp.maximum(width.astype(dtype) * depth.astype(dtype), 1.0)
    distance = jnp.abs(jnp.log(asked) - jnp.asarray(np.log(_CAPACITIES), dtype))
    return jnp.argmin(jnp.where(_allowed_tiers(config), distance, jnp.inf)).astype(jnp.int32)


def request_capacity(state: DeepGalerkinState, wanted: Flag) -> DeepGalerkinState:
    """Asks the next refresh for one tier more than the entropy alone would take, as a cure for mode collapse."""
    return eqx.tree_at(lambda s: s.capacity_requested, state, state.capacity_requested | wanted)


def refresh(state: DeepGalerkinState, context: RefreshContext, config: PredictorConfig) -> DeepGalerkinState:
    """Measures the entropy of V and chooses the network's tier.

    Once a regime has outlived its grace period and filled the window of the running law, the next refresh fixes the
    bins and the baseline. Above ``dgm_scaling_trigger`` the tier follows the capacity law of the specification, below
    it the configured tier returns.
    """
    del context  # the running law of the levels is all that is needed
    values, masses = _law_of_value(state, config)
    middles = 0.5 * (values[1:] + values[:-1])
    deviation = jnp.sqrt(jnp.sum(masses * middles * middles))
    # Half a window would understate the baseline of a sluggish series; a constant one has no law to compare with.
    enough = jnp.maximum(config.grace_period_steps, config.entropy_window)
    settled = (state.num_levels >= enough) & (deviation > 0)
    rebases = settled & ~state.has_baseline
    low = jnp.where(rebases, -_BIN_REACH * deviation, state.bin_low)
    high = jnp.where(rebases, _BIN_REACH * deviation, state.bin_high)
    measured = rebases | state.has_baseline
    bins = jnp.clip(config.dgm_entropy_num_bins, 2, ENTROPY_BINS_CAPACITY)
    entropy = jnp.where(measured, histogram_entropy(values, masses, low, high, bins), state.entropy)
    fraction = jnp.clip(entropy / jnp.log(bins.astype(entropy.dtype)), 0.0, 1.0)
    baseline = jnp.where(rebases, entropy, state.baseline_entropy)

    ratio = compute_entropy_ratio(entropy, baseline)
    base = jnp.asarray(_base_tier(config), jnp.int32)
    scaled = tier_for(*scale_dgm_architecture(config, ratio), config)
    tier = jnp.where(measured & (ratio > config.dgm_scaling_trigger), scaled, base)
    highest = highest_tier(config)
    tier = jnp.where(state.capacity_requested, jnp.minimum(tier + 1, highest), tier)
    return eqx.tree_at(
        lambda s: (
            s.tier,
            s.entropy,
            s.baseline_entropy,
            s.entropy_fraction,
            s.has_baseline,
            s.capacity_requested,
            s.bin_low,
            s.bin_high,
            s.architecture_scaling_events,
        ),
        state,
        (
            tier,
            entropy,
            baseline,
            jnp.where(measured, fraction, state.entropy_fraction),
            measured,
            jnp.asarray(False),
            low,
            high,
            state.architecture_scaling_events + (tier > state.tier).astype(jnp.int32),
        ),
    )
