"""Kernel A: projection on the past in a reproducing kernel Hilbert space.

Two recursive ridge regressions of the next increment. The linear one (the Wiener part) sees the last increments, the
level and, where a season was found, increments and level differences one and two seasons back and their means over up
to eight. The Gaussian one sees random Fourier features (Rahimi & Recht, 2007) of the level at one, two or many delays,
and is fitted to what the linear one leaves. Neither is refitted from scratch.
"""

from typing import NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from .. import _recursive_ridge as ridge
from .._numerics import cosine, select_tree
from .._parameters import HISTORY_CAPACITY, PredictorConfig
from .._recursive_ridge import RidgeState
from .._results import KernelOutput
from .._standardize import HistoryState, lagged
from .._types import Count, Flag, Scalar
from ._interface import KernelObservation, RefreshContext

# Seasons that the seasonal means reach back to, as far as the history holds them.
_SEASONS_AVERAGED = 8
_NUM_SEASONAL = 9
_MIN_SEASON = 4
_MAX_SEASON = HISTORY_CAPACITY // 2 - 4
# Differences in which a season is looked for: over so many ticks. The longer ones show a smooth season under noise.
_SPANS = (1, 4, 16)
_WIDEST_SPAN = _SPANS[-1]
_SEASON_SIGNIFICANCE = 5.0  # standard deviations of a chance correlation
_OBSOLETE = 4.0  # ratio of variances without and with a season from which the Gaussian part begins anew
_INPUT_BOUND = 5.0
# Of the random features, the shares that see the present value alone and the last two; the rest see the long embedding.
_NARROW_SHARES = (3 / 16, 3 / 8)
_BANDWIDTHS = (0.5, 0.6, 1.2)  # of these three, in units of kernel_a_bandwidth
_LONG_REACH = 16
# Of 24 draws the one that did best on simulated threshold, switching and chaotic series.
_PROJECTION_SEED = 6


class RkhsState(eqx.Module):
    """Both regressions, the features that await their target, and the season."""

    linear: RidgeState
    gaussian: RidgeState
    linear_features: Float[Array, " features"]
    gaussian_features: Float[Array, " random"]
    error_variance: Scalar
    season_length: Count
    season_correlation: Scalar


class RkhsMetadata(eqx.Module):
    """The two parts' raw forecasts (dimensionless increments) and the season."""

    linear: Scalar
    gaussian: Scalar
    season_length: Count
    season_correlation: Scalar


def num_linear_features(config: PredictorConfig) -> int:
    """Intercept, increments, level, seasonal regressors."""
    return 2 + config.kernel_a_lags + _NUM_SEASONAL


def delays(config: PredictorConfig) -> tuple[int, ...]:
    """Delays of the long embedding: now, and then geometrically from 1 to 16."""
    dimension = config.kernel_a_embedding_dim
    geometric = np.geomspace(1.0, _LONG_REACH, dimension - 1) if dimension > 1 else np.empty(0)
    return (0, *np.round(geometric).astype(int).tolist())


def random_projection(config: PredictorConfig) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Delays in use, frequencies (delays, features) and phases: fixed, the same for every symbol and every run.

    Three Gaussian kernels share the features: over the present value, over the last two, over the long embedding. A
    frequency is zero at the delays that its kernel does not see.
    """
    long, num_features = delays(config), config.kernel_a_features
    used = sorted(set(long))
    generator = np.random.default_rng(_PROJECTION_SEED)
    frequencies = generator.standard_normal((len(used), num_features))
    phases = generator.uniform(0.0, 2.0 * np.pi, num_features)
    widths = np.stack([np.isin(used, seen) / b for seen, b in zip(((0,), (0, 1), long), _BANDWIDTHS, strict=True)])
    num_one, num_two = (int(share * num_features) for share in _NARROW_SHARES)
    frequencies *= np.repeat(widths, (num_one, num_two, num_features - num_one - num_two), axis=0).T
    return np.asarray(used, np.int32), frequencies, phases


def _prior_variance(config: PredictorConfig, dtype: jnp.dtype) -> Scalar:
    return jnp.asarray(1.0 / (config.kernel_ridge_lambda * config.kernel_ridge_reference), dtype)


def init(config: PredictorConfig, dtype: jnp.dtype) -> RkhsState:
    """Both parts at "no change", no season."""
    prior = _prior_variance(config, dtype)
    size, random_size = num_linear_features(config), config.kernel_a_features
    return RkhsState(
        linear=ridge.init(size, prior),
        gaussian=ridge.init(random_size, prior),
        linear_features=jnp.zeros((size,), dtype),
        gaussian_features=jnp.zeros((random_size,), dtype),
        error_variance=jnp.asarray(1.0, dtype),
        season_length=jnp.asarray(0, jnp.int32),
        season_correlation=jnp.asarray(0.0, dtype),
    )


def _seasonal_lags(state: RkhsState) -> Int[Array, " lags"]:
    """The next tick's own phase k seasons ago for k = 1, 2, ..., then the tick before each, the one before that, and
    the one after the first: periods before the newest tick.
    """
    season = jnp.maximum(state.season_length, 2)
    back = season * jnp.arange(1, _SEASONS_AVERAGED + 1, dtype=jnp.int32)
    return jnp.concatenate([back - 1, back, back + 1, (season - 2)[None]]).astype(jnp.int32)


def _seasonal_regressors(
    state: RkhsState, past: Float[Array, " lags"], now: Scalar, length: Count, scale: Scalar
) -> Float[Array, " seasonal"]:
    """From the values at :func:`_seasonal_lags`: of one and two seasons back, and of the mean over all that are held.

    An increment is that from the present phase to the next one, a gap the next phase's value less the present one.
    """
    season, many = state.season_length, _SEASONS_AVERAGED
    at_next, at_present, at_previous = past[:many], past[many : 2 * many], past[2 * many : 3 * many]
    increments, preceding, gaps = at_next - at_present, at_present - at_previous, at_next - now
    held = season * jnp.arange(1, many + 1, dtype=jnp.int32) < length - 1
    share = held.astype(scale.dtype) / jnp.maximum(jnp.sum(held), 1).astype(scale.dtype)
    regressors = jnp.stack(
        [
            past[3 * many] - at_next[0],
            increments[0],
            preceding[0],
            increments[1],
            gaps[0],
            gaps[1],
            jnp.sum(share * increments),
            jnp.sum(share * preceding),
            jnp.sum(share * gaps),
        ]
    )
    bounded = jnp.clip(regressors / scale, -2.0 * _INPUT_BOUND, 2.0 * _INPUT_BOUND)
    return jnp.where((season > 0) & (length > 2 * season), bounded, 0.0)


def _features(
    state: RkhsState, observation: KernelObservation, history: HistoryState, config: PredictorConfig
) -> tuple[Float[Array, " features"], Float[Array, " random"]]:
    steps, frequencies, phases = random_projection(config)
    num_recent = max(config.kernel_a_lags, int(steps[-1])) + 1
    lags = jnp.concatenate([jnp.arange(num_recent, dtype=jnp.int32), _seasonal_lags(state)])
    past = lagged(history, lags)
    recent, now = past[: config.kernel_a_lags + 1], past[0]
    # Differences first: in single precision a value over a scale far below it may be infinite.
    increments = jnp.clip((recent[:-1] - recent[1:]) / observation.scale, -_INPUT_BOUND, _INPUT_BOUND)
    seasonal = _seasonal_regressors(state, past[num_recent:], now, history.length, observation.scale)
    linear = jnp.concatenate([jnp.ones((1,), now.dtype), increments, observation.level[None], seasonal])
    embedding = observation.level + (past[steps] - now) / observation.scale / observation.level_unit
    embedding = jnp.clip(embedding, -_INPUT_BOUND, _INPUT_BOUND)
    projected = jnp.sum(embedding[:, None] * jnp.asarray(frequencies, now.dtype), axis=0) / config.kernel_a_bandwidth
    amplitude = float(np.sqrt(2.0 / config.kernel_a_features))
    return linear, amplitude * cosine(projected + jnp.asarray(phases, now.dtype))


def update(
    state: RkhsState, observation: KernelObservation, history: HistoryState, config: PredictorConfig
) -> RkhsState:
    """Learns the present increment from the features of one tick ago, then stores those of the present tick."""
    forgetting = ridge.forgetting(config.kernel_a_memory_ticks, observation.forget)
    prior = _prior_variance(config, observation.scale.dtype)
    target = observation.increment
    weight = observation.weight
    linear_error = target - ridge.predict(state.linear, state.linear_features)
    linear = ridge.update(state.linear, state.linear_features, target, forgetting, weight, prior)
    gaussian_error = linear_error - ridge.predict(state.gaussian, state.gaussian_features)
    gaussian = ridge.update(state.gaussian, state.gaussian_features, linear_error, forgetting, weight, prior)
    rate = 0.02 * weight
    variance = state.error_variance + rate * (gaussian_error * gaussian_error - state.error_variance)
    linear_features, gaussian_features = _features(state, observation, history, config)
    return RkhsState(
        linear=linear,
        gaussian=gaussian,
        linear_features=linear_features,
        gaussian_features=gaussian_features,
        error_variance=jnp.maximum(variance, config.kernel_a_min_variance),
        season_length=state.season_length,
        season_correlation=state.season_correlation,
    )


def parts(state: RkhsState) -> tuple[Scalar, Scalar]:
    """Raw forecasts of the next increment by the linear part and by the Gaussian correction to it."""
    return ridge.predict(state.linear, state.linear_features), ridge.predict(state.gaussian, state.gaussian_features)


def predict(state: RkhsState, config: PredictorConfig) -> KernelOutput:
    """The sum of both parts, with the precision that leverage and the running error variance give."""
    linear, gaussian = parts(state)
    leverage = ridge.leverage(state.linear, state.linear_features)
    variance = state.error_variance * (1.0 + leverage)
    del config
    return KernelOutput(
        prediction=linear + gaussian,
        confidence=1.0 / variance,
        metadata=RkhsMetadata(
            linear=linear,
            gaussian=gaussian,
            season_length=state.season_length,
            season_correlation=state.season_correlation,
        ),
    )


class _SeasonSearch(NamedTuple):
    """What one span of differences shows: by lag, the pooled autocorrelation, that over its bar, and the best lag."""

    correlation: Float[Array, " lags"]
    strength: Float[Array, " lags"]
    season: Count
    found: Flag


def _search_season(
    autocovariance: Float[Array, " reach"], span: int, num_increments: Scalar, config: PredictorConfig
) -> _SeasonSearch:
    """Looks for a season in the differences over ``span`` ticks, whose autocovariance follows from that of increments.

    ``autocovariance`` is unnormalised, at lags from minus ``_WIDEST_SPAN`` on. A lag is judged with its double: chance
    and chaos do not return twice. Of lags that are nearly as good the shortest counts, since multiples of a
    season correlate as well as the season.
    """
    dtype = autocovariance.dtype
    smoothed = autocovariance
    for _ in range(2):
        sums = jnp.concatenate([jnp.zeros((1,), dtype), jnp.cumsum(smoothed)])
        smoothed = sums[span:] - sums[:-span]
    smoothed = smoothed[_WIDEST_SPAN - span + 1 :]
    lag = jnp.arange(_MAX_SEASON + 1, dtype=jnp.int32)
    distance = lag.astype(dtype)
    overlap = jnp.maximum(num_increments - distance, 1.0) + jnp.maximum(num_increments - 2.0 * distance, 0.0)
    both = smoothed[: _MAX_SEASON + 1] + smoothed[: 2 * _MAX_SEASON + 1 : 2]
    correlation = both / jnp.maximum(smoothed[0], 1e-12) * num_increments / overlap
    deviation = jnp.sqrt(span / overlap)
    strength = correlation / jnp.maximum(config.season_min_correlation, _SEASON_SIGNIFICANCE * deviation)
    neighbours = jnp.maximum(jnp.roll(correlation, 1), jnp.roll(correlation, -1))
    shortest = max(_MIN_SEASON, span + 2 if span > 1 else 0)
    candidate = (lag >= shortest) & (lag < _MAX_SEASON) & (2.0 * distance + 8.0 <= num_increments)
    candidate = candidate & (correlation >= neighbours) & (strength > 1.0)
    best = jnp.max(jnp.where(candidate, correlation, -1.0))
    season = jnp.argmax(candidate & (correlation > 0.95 * best - deviation)).astype(jnp.int32)
    return _SeasonSearch(correlation, strength, season, jnp.any(candidate))


def refresh(state: RkhsState, context: RefreshContext, config: PredictorConfig) -> RkhsState:
    """Looks for a season: the highest autocorrelation of clipped increments, or else of differences over 4 or 16 ticks.

    A season in place stays until its own evidence halves or another's exceeds it by a tenth. A new one leaves the
    errors smaller than those that both regressions have learned from, and their past counts less by that ratio.
    """
    dtype = context.history.dtype
    capacity = context.history.shape[0]
    increments = jnp.clip(context.history[1:] - context.history[:-1], -4.0, 4.0)
    index = jnp.arange(capacity - 1, dtype=jnp.int32)
    valid = index >= capacity - context.length
    n = jnp.maximum(jnp.sum(valid), 1).astype(dtype)
    mean = jnp.sum(jnp.where(valid, increments, 0.0)) / n
    centred = jnp.where(valid, increments - mean, 0.0)
    spectrum = jnp.fft.rfft(centred, 2 * capacity)
    covariance = jnp.fft.irfft(jnp.abs(spectrum) ** 2, 2 * capacity).astype(dtype)
    # The transform is circular: its end holds the negative lags.
    covariance = jnp.roll(covariance, _WIDEST_SPAN)[: 2 * (_MAX_SEASON + _WIDEST_SPAN) + 1]
    searches = [_search_season(covariance, span, n, config) for span in _SPANS]

    current = state.season_length
    place = jnp.clip(current, 0, _MAX_SEASON)
    in_place = jnp.max(jnp.stack([search.strength[place] for search in searches]))
    chosen = searches[-1]
    for search in reversed(searches[:-1]):
        chosen = select_tree(search.found, search, chosen)
    keeps = (current > 0) & (in_place > 0.5) & ~(chosen.found & (chosen.strength[chosen.season] > 1.1 * in_place))
    length = jnp.where(keeps, current, jnp.where(chosen.found, chosen.season, 0))
    correlation = jnp.where(length > 0, chosen.correlation[length], 0.0)
    explained = jnp.where(current > 0, jnp.maximum(chosen.correlation[place], 0.0), 0.0)
    changed = (length > 0) & (length != current)
    ratio = jnp.maximum(1.0 - explained, 1e-3) / jnp.maximum(1.0 - correlation, 1e-3)
    factor = jnp.where(changed, jnp.maximum(ratio, 1.0), 1.0)
    prior = _prior_variance(config, dtype)
    # Where the season explains most, there is nothing left of what the Gaussian part had been correcting.
    gaussian = select_tree(
        factor > _OBSOLETE,
        ridge.init(config.kernel_a_features, prior),
        ridge.discount(state.gaussian, factor, prior),
    )
    return eqx.tree_at(
        lambda s: (s.season_length, s.season_correlation, s.linear, s.gaussian),
        state,
        (length, correlation, ridge.discount(state.linear, factor, prior), gaussian),
    )
