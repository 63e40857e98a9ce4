"""Anchoring to persistence, and the running scores that weigh the kernels.

A kernel's raw forecast d of the next increment e is shrunk to g d. The gain g is the regression of e on d over the
recent past, held to [0, 1] and shrunk as James & Stein (1961) do: a departure from "no change" counts only as far as it
has been earned. With S the exponentially weighted sums, b = S_de / S_dd and its standard error sd,

    g = clip(b, 0, 1) max(0, 1 - (c sd / b)^2) where b > 0, else 0.
"""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from ._circuit_breaker import huber_loss
from ._numerics import huber_weight, safe_divide
from ._parameters import PredictorConfig
from ._types import NUM_KERNELS, Flag, Scalar, Weights


class AnchorState(eqx.Module):
    """Weighted sums of products of forecast and outcome for each of several forecasters, dimensionless."""

    forecast_outcome: Float[Array, " forecasters"]
    forecast_power: Float[Array, " forecasters"]
    outcome_power: Scalar
    weight: Scalar


class ScoreState(eqx.Module):
    """Running absolute error of every kernel's emitted forecast, in units of the scale."""

    loss: Weights
    weight: Scalar


def init(num_forecasters: int, dtype: jnp.dtype) -> AnchorState:
    """No evidence yet: every gain is zero."""
    zeros = jnp.zeros((num_forecasters,), dtype)
    zero = jnp.asarray(0.0, dtype)
    return AnchorState(forecast_outcome=zeros, forecast_power=zeros, outcome_power=zero, weight=zero)


def gains(state: AnchorState, config: PredictorConfig) -> Float[Array, " forecasters"]:
    """How much of each raw forecast has been earned, in [0, 1]."""
    slope = safe_divide(state.forecast_outcome, state.forecast_power)
    explained = slope * state.forecast_outcome
    variance = jnp.maximum(state.outcome_power - explained, 0.01 * state.outcome_power) / jnp.maximum(state.weight, 1.0)
    noise = config.anchor_threshold**2 * safe_divide(variance, state.forecast_power)
    kept = jnp.maximum(1.0 - safe_divide(noise, slope * slope), 0.0)
    return jnp.where(slope > 0.0, jnp.clip(slope, 0.0, 1.0) * kept, 0.0)


def update(
    state: AnchorState,
    forecasts: Float[Array, " forecasters"],
    outcome: Scalar,
    weight: Scalar,
    config: PredictorConfig,
) -> AnchorState:
    """Scores raw ``forecasts`` of an increment against what came."""
    keep = 1.0 - 1.0 / config.anchor_memory_ticks
    return AnchorState(
        forecast_outcome=keep * state.forecast_outcome + weight * forecasts * outcome,
        forecast_power=keep * state.forecast_power + weight * forecasts * forecasts,
        outcome_power=keep * state.outcome_power + weight * outcome * outcome,
        weight=keep * state.weight + weight,
    )


def init_score(dtype: jnp.dtype) -> ScoreState:
    """No score yet: all kernels equal."""
    return ScoreState(loss=jnp.ones((NUM_KERNELS,), dtype), weight=jnp.asarray(0.0, dtype))


def update_score(
    state: ScoreState, errors: Weights, window: Scalar, emergency: Flag, config: PredictorConfig
) -> ScoreState:
    """Averages absolute errors (in units of the scale) over about ``window`` ticks; in emergency Huber's loss stands
    in.
    """
    # In units of delta, so that a large error counts as in the ordinary loss, less half a delta.
    huber = huber_loss(errors, config.huber_delta) / config.huber_delta
    loss = jnp.where(emergency, huber, jnp.minimum(jnp.abs(errors), config.innovation_clip))
    weight = jnp.minimum(state.weight + 1.0, jnp.maximum(window, 1.0))
    return ScoreState(loss=state.loss + (loss - state.loss) / weight, weight=weight)


def confidences(state: ScoreState, config: PredictorConfig) -> Weights:
    """Predictive precision of each kernel from its running score, sharpened by ``confidence_power``; the best has 1."""
    precision = 1.0 / jnp.maximum(state.loss * state.loss, 1e-6)
    relative = precision / jnp.max(precision)
    return jnp.exp(config.confidence_power * jnp.log(jnp.maximum(relative, 1e-30)))


def robust_weight(error: Scalar, config: PredictorConfig) -> Scalar:
    """Weight of a tick whose forecast missed by ``error`` scales: 1 for ordinary errors, falling beyond the clip."""
    return huber_weight(error, 0.5 * config.innovation_clip)
