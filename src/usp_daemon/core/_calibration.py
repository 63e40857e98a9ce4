"""Online conformal intervals: running quantiles of the standardised forecast errors.

The errors of the fused forecast are divided by a volatility that blends a fast and a slow running mean absolute error;
every level of the quantile grid then follows its own stochastic-gradient path on the pinball loss (Gibbs & Candes,
2021), so each level's coverage is right in the long run whatever the law of the errors.
"""

from statistics import NormalDist

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ._numerics import SD_FROM_MEAN_ABSOLUTE
from ._parameters import QUANTILE_LEVELS, PredictorConfig
from ._types import Count, Scalar

_LEVELS = np.asarray(QUANTILE_LEVELS)
_NORMAL_QUANTILES = np.asarray([NormalDist().inv_cdf(level) for level in QUANTILE_LEVELS])
INDEX_OF = {level: index for index, level in enumerate(QUANTILE_LEVELS)}
_FAST, _SLOW = 0.06, 0.01


class CalibrationState(eqx.Module):
    """Quantiles of error over volatility, and the two running mean absolute errors behind the volatility."""

    quantiles: Float[Array, " levels"]
    fast_error: Scalar
    slow_error: Scalar
    num_errors: Count


def init(dtype: jnp.dtype) -> CalibrationState:
    """Gaussian quantiles and no volatility."""
    return CalibrationState(
        quantiles=jnp.asarray(_NORMAL_QUANTILES, dtype),
        fast_error=jnp.asarray(0.0, dtype),
        slow_error=jnp.asarray(0.0, dtype),
        num_errors=jnp.asarray(0, jnp.int32),
    )


def volatility(state: CalibrationState, fallback: Scalar) -> Scalar:
    """Robust standard deviation of the forecast error, in units of the symbol; ``fallback`` before the first errors."""
    blended = SD_FROM_MEAN_ABSOLUTE * (0.5 * state.fast_error + 0.5 * state.slow_error)
    floor = 1e-3 * fallback
    return jnp.where(state.num_errors > 5, jnp.maximum(blended, floor), fallback)


def update(state: CalibrationState, error: Scalar, fallback: Scalar, config: PredictorConfig) -> CalibrationState:
    """Learns from the stored forecast's ``error`` (units of the symbol)."""
    dtype = error.dtype
    current = volatility(state, fallback)
    standardized = error / current
    count = state.num_errors.astype(dtype)
    rate = jnp.maximum(config.calibration_rate, 0.5 / (count + 10.0))
    levels = jnp.asarray(_LEVELS, dtype)
    below = (standardized < state.quantiles).astype(dtype)
    # The step shrinks with the local spread of the grid, so that tails and centre travel at their own pace.
    moved = state.quantiles + rate * (levels - below)
    size = jnp.minimum(jnp.abs(error), jnp.where(state.num_errors > 20, 8.0 * current, jnp.inf))
    fast = jnp.maximum(jnp.asarray(_FAST, dtype), 1.0 / (count + 1.0))
    slow = jnp.maximum(jnp.asarray(_SLOW, dtype), 1.0 / (count + 1.0))
    return CalibrationState(
        quantiles=jax.lax.cummax(moved),
        fast_error=state.fast_error + fast * (size - state.fast_error),
        slow_error=state.slow_error + slow * (size - state.slow_error),
        num_errors=state.num_errors + 1,
    )
