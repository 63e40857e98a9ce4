r"""Recursive ridge regression with forgetting, in Potter's square-root form.

Minimises :math:`\sum_i \lambda^{t-i} w_i (y_i - \theta^\top x_i)^2 + \text{prior}` one sample at a time. The covariance
is carried as a factor ``root`` with :math:`P = root\, root^\top`, so it cannot turn indefinite, in float32 either; the
textbook form does within 250 ticks at a ridge of 1e-6. Source: Potter's update as in Bierman (1977), *Factorization
Methods for Discrete Sequential Estimation*, ch. II; the exponential window is Haykin (2014), ch. 10.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ._types import Flag, Scalar

_TINY = 4  # regressors
# By how much what was learned before a regime change counts less. Detectors err: a false alarm must not cost a model.
_REGIME_DISCOUNT = 4.0


class RidgeState(eqx.Module):
    """A running regression: ``coefficients`` and a square root of their covariance (in units of the noise variance)."""

    coefficients: Float[Array, " features"]
    root: Float[Array, "features features"]


def init(num_features: int, prior_variance: Scalar) -> RidgeState:
    """A regression that knows nothing: coefficients zero, each with variance ``prior_variance``."""
    return RidgeState(
        coefficients=jnp.zeros((num_features,), prior_variance.dtype),
        root=jnp.sqrt(prior_variance) * jnp.eye(num_features, dtype=prior_variance.dtype),
    )


def predict(state: RidgeState, features: Float[Array, " features"]) -> Scalar:
    """The regression's value at ``features``."""
    return jnp.sum(state.coefficients * features)


def leverage(state: RidgeState, features: Float[Array, " features"]) -> Scalar:
    """Variance of :func:`predict` in units of the noise variance: features' P features."""
    projected = _product(features, state.root)
    return jnp.sum(projected * projected)


def update(
    state: RidgeState,
    features: Float[Array, " features"],
    target: Scalar,
    forgetting: Scalar,
    weight: Scalar,
    max_variance: Scalar,
) -> RidgeState:
    """Learns one sample.

    ``forgetting`` in (0, 1] discounts the past, ``weight`` in [0, 1] discounts this sample (0 leaves the coefficients
    as they are), ``max_variance`` bounds each coefficient's variance, so that directions nobody excites do not wind up.
    """
    # Three readings of the old root and one writing of the new one: the step's cost is in moving it.
    projected = _product(features, state.root)  # root' x
    covariances = _product(state.root, projected)  # P x
    variances = jnp.sum(state.root * state.root, axis=1)
    noise = 1.0 / jnp.maximum(weight, 1e-12)
    power = jnp.sum(projected * projected)
    # Forgetting divides P; it enters through the scalars alone, and through the rows' scale in the end.
    innovation_variance = noise + power / forgetting
    gain = covariances / (forgetting * innovation_variance)  # P x / (noise + x'Px)
    shrink = 1.0 / (1.0 + jnp.sqrt(noise / innovation_variance))
    step = shrink * gain
    # The rows' squares after the step, without another reading; where nearly all of a row goes, rounding may leave too
    # little, but a row cannot keep less than the share that the noise has in the innovation.
    remaining = variances - step * (2.0 * covariances - step * power)
    remaining = jnp.maximum(remaining, variances * (noise / innovation_variance)) / forgetting
    remaining = jnp.maximum(remaining, 1e-30)
    # Scaling a row keeps the product positive semi-definite: P becomes D P D.
    bounded = jnp.minimum(1.0, max_variance / remaining)
    scale = jnp.sqrt(bounded / forgetting)
    root = scale[:, None] * (state.root - step[:, None] * projected[None, :])
    error = target - jnp.sum(state.coefficients * features)
    return RidgeState(coefficients=state.coefficients + gain * error, root=root)


def _product(left: Float[Array, "..."], right: Float[Array, "..."]) -> Float[Array, "..."]:
    """``left @ right`` of a matrix and a vector in either order.

    A sum over an axis stays scalar code under XLA on a CPU, because additions may not be reordered; a product does not.
    """
    if left.shape[-1] <= _TINY:  # a few terms, which fuse with what is around them
        return jnp.sum(left[:, None] * right, axis=0) if left.ndim == 1 else jnp.sum(left * right[None, :], axis=1)
    return jnp.matmul(left, right, precision=jax.lax.Precision.HIGHEST)


def forgetting(memory: Scalar, regime_changed: Flag) -> Scalar:
    """The factor for :func:`update`: an exponential window of ``memory`` ticks, or much less on a regime change."""
    return jnp.where(regime_changed, 1.0 / _REGIME_DISCOUNT, 1.0 - 1.0 / memory)


def discount(state: RidgeState, factor: Scalar, max_variance: Scalar) -> RidgeState:
    """Makes all that was learned count less: the covariance times ``factor`` (1 or more), up to ``max_variance``.

    Rows are scaled, so that the factored form and the correlations stay. As forgetting of 1 / ``factor`` in
    :func:`update` does, but without a sample.
    """
    variances = jnp.maximum(jnp.sum(state.root * state.root, axis=1), 1e-30)
    growth = jnp.sqrt(jnp.minimum(factor, jnp.maximum(max_variance / variances, 1.0)))
    return RidgeState(coefficients=state.coefficients, root=state.root * growth[:, None])
