"""Kernel A: projection on the past in a reproducing kernel Hilbert space.

Two recursive ridge regressions of the next increment. The linear one (the Wiener part) sees the last increments, the
level and, where a season was found, the increments and level differences one and two seasons back. The Gaussian one
sees random Fourier features (Rahimi & Recht, 2007) of a delay embedding with geometric delays, and is fitted to what
the linear one leaves. Neither is refitted from scratch.
"""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from .. import _recursive_ridge as ridge
from .._numerics import cosine
from .._parameters import HISTORY_CAPACITY, PredictorConfig
from .._recursive_ridge import RidgeState
from .._results import KernelOutput
from .._standardize import HistoryState, lagged
from .._types import Count, Scalar
from ._interface import KernelObservation, RefreshContext

_NUM_SEASONAL = 6
_MIN_SEASON = 4
_MAX_SEASON = HISTORY_CAPACITY // 2 - 4
_INPUT_BOUND = 5.0


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
    """Delays of the embedding: now, and then geometrically from 1 to ``kernel_a_lags``."""
    dimension = config.kernel_a_embedding_dim
    geometric = np.geomspace(1.0, config.kernel_a_lags, dimension - 1) if dimension > 1 else np.empty(0)
    return (0, *np.round(geometric).astype(int).tolist())


def random_projection(config: PredictorConfig) -> tuple[np.ndarray, np.ndarray]:
    """Frequencies of a unit Gaussian kernel and phases: fixed, the same for every symbol and every run."""
    generator = np.random.default_rng(20260219)
    frequencies = generator.standard_normal((config.kernel_a_embedding_dim, config.kernel_a_features))
    return frequencies, generator.uniform(0.0, 2.0 * np.pi, config.kernel_a_features)


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


def lags_needed(state: RkhsState, config: PredictorConfig) -> Int[Array, " lags"]:
    """Periods before the newest tick at which values are wanted: a run of recent ones, then the seasonal ones."""
    season = jnp.maximum(state.season_length, 2)
    recent = jnp.arange(config.kernel_a_lags + 1, dtype=jnp.int32)
    seasonal = jnp.stack([season - 2, season - 1, season, season + 1, 2 * season - 1, 2 * season])
    return jnp.concatenate([recent, seasonal.astype(jnp.int32)])


def _features(
    state: RkhsState, observation: KernelObservation, history: HistoryState, config: PredictorConfig
) -> tuple[Float[Array, " features"], Float[Array, " random"]]:
    num_lags = config.kernel_a_lags
    past = lagged(history, lags_needed(state, config))
    recent, seasonal = past[: num_lags + 1], past[num_lags + 1 :]
    # Differences first: in single precision a value over a scale far below it may be infinite.
    increments = jnp.clip((recent[:-1] - recent[1:]) / observation.scale, -_INPUT_BOUND, _INPUT_BOUND)
    now = recent[0]
    found = (state.season_length > 0) & (history.length > 2 * state.season_length)
    differences = jnp.stack(
        [
            seasonal[0] - seasonal[1],
            seasonal[1] - seasonal[2],
            seasonal[2] - seasonal[3],
            seasonal[4] - seasonal[5],
            seasonal[1] - now,
            seasonal[4] - now,
        ]
    )
    differences = differences / observation.scale
    differences = jnp.where(found, jnp.clip(differences, -2.0 * _INPUT_BOUND, 2.0 * _INPUT_BOUND), 0.0)
    one = jnp.ones((1,), now.dtype)
    linear = jnp.concatenate([one, increments, observation.level[None], differences])
    steps = jnp.asarray(delays(config), jnp.int32)
    embedding = observation.level + (recent[steps] - now) / observation.scale / observation.level_unit
    embedding = jnp.clip(embedding, -_INPUT_BOUND, _INPUT_BOUND)
    frequencies, phases = random_projection(config)
    projected = jnp.sum(embedding[:, None] * jnp.asarray(frequencies, now.dtype), axis=0) / config.kernel_a_bandwidth
    amplitude = float(np.sqrt(2.0 / config.kernel_a_features))
    return linear, amplitude * cosine(projected + jnp.asarray(phases, now.dtype))


def update(
    state: RkhsState, observation: KernelObservation, history: HistoryState, config: PredictorConfig
) -> RkhsState:
    """Learns the present increment from the features of one tick ago, then stores those of the present tick."""
    forgetting = 1.0 - 1.0 / config.kernel_a_memory_ticks
    prior = _prior_variance(config, observation.scale.dtype)
    target = observation.increment
    weight = observation.weight
    linear_error = target - ridge.predict(state.linear, state.linear_features)
    # A regime change widens both.
    widen = jnp.where(observation.forget, 0.1 * prior, 0.0)
    linear = ridge.update(state.linear, state.linear_features, target, forgetting, weight, prior, widen)
    gaussian_error = linear_error - ridge.predict(state.gaussian, state.gaussian_features)
    gaussian = ridge.update(state.gaussian, state.gaussian_features, linear_error, forgetting, weight, prior, widen)
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


def refresh(state: RkhsState, context: RefreshContext, config: PredictorConfig) -> RkhsState:
    """Looks for a season: the highest autocorrelation of clipped increments, significant, confirmed and clearly
    better.
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
    covariance = jnp.fft.irfft(jnp.abs(spectrum) ** 2, 2 * capacity)[: _MAX_SEASON + 1].astype(dtype)
    lag = jnp.arange(_MAX_SEASON + 1, dtype=jnp.int32)
    overlap = jnp.maximum(n - lag.astype(dtype), 1.0)
    correlation = covariance / jnp.maximum(covariance[0], 1e-12) * n / overlap
    neighbours = jnp.maximum(jnp.roll(correlation, 1), jnp.roll(correlation, -1))
    candidate = (
        (lag >= _MIN_SEASON) & (lag < _MAX_SEASON) & (2 * lag + 8 < context.length) & (correlation >= neighbours)
    )
    score = jnp.where(candidate, correlation, -1.0)
    best = jnp.max(score)
    # Among peaks that are as good, the shortest: multiples of a season correlate as well as the season.
    season = jnp.argmax(score > 0.95 * best).astype(jnp.int32)
    bar = jnp.maximum(config.season_min_correlation, 4.0 / jnp.sqrt(n))
    found = best > bar
    current = correlation[jnp.clip(state.season_length, 0, _MAX_SEASON)]
    keeps = (state.season_length > 0) & (current > 0.5 * bar) & (score[season] < 1.1 * current)
    length = jnp.where(keeps, state.season_length, jnp.where(found, season, 0))
    return eqx.tree_at(
        lambda s: (s.season_length, s.season_correlation),
        state,
        (length, jnp.where(length > 0, correlation[length], 0.0)),
    )
