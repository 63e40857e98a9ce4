r"""Recursive ridge regression with forgetting, in Potter's square-root form.

Minimises :math:`\sum_i \lambda^{t-i} w_i (y_i - \theta^\top x_i)^2 + \text{prior}` one sample at a time. The covariance
is carried as a factor ``root`` with :math:`P = root\, root^\top`, so it cannot turn indefinite, in float32 either; the
textbook form does within 250 ticks at a ridge of 1e-6. Source: Potter's update as in Bierman (1977), *Factorization
Methods for Discrete Sequential Estimation*, ch. II; the exponential window is Haykin (2014), ch. 10.
"""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from ._types import Scalar


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
    projected = jnp.sum(state.root * features[:, None], axis=0)
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
    root = state.root / jnp.sqrt(forgetting)
    projected = jnp.sum(root * features[:, None], axis=0)  # root' x
    noise = 1.0 / jnp.maximum(weight, 1e-12)
    power = jnp.sum(projected * projected)
    innovation_variance = noise + power
    gain = jnp.sum(root * projected[None, :], axis=1) / innovation_variance  # P x / (noise + x'Px)
    shrink = 1.0 / (1.0 + jnp.sqrt(noise / innovation_variance))
    root = root - shrink * gain[:, None] * projected[None, :]
    # Scaling a row keeps the product positive semi-definite: P becomes D P D.
    variances = jnp.sum(root * root, axis=1)
    bound = jnp.minimum(1.0, jnp.sqrt(max_variance / jnp.maximum(variances, 1e-30)))
    error = target - jnp.sum(state.coefficients * features)
    return RidgeState(coefficients=state.coefficients + gain * error, root=root * bound[:, None])


def forget(state: RidgeState, variance_added: Scalar) -> RidgeState:
    """Widens the covariance after a regime change: every coefficient's variance grows by up to ``variance_added``.

    Adding a multiple of the identity needs a new factorisation; scaling each row to the enlarged variance keeps the
    factored form and the correlations instead.
    """
    variances = jnp.sum(state.root * state.root, axis=1)
    growth = jnp.sqrt(1.0 + variance_added / jnp.maximum(variances, 1e-30))
    return RidgeState(coefficients=state.coefficients, root=state.root * growth[:, None])
