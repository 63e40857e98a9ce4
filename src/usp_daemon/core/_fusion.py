"""Weights of the four experts after one fusion step, and the forecast made with exactly those weights.

The step goes from the current weights ``rho`` towards the target ``t`` (normalised confidences; a confidence is a
predictive precision, so the better expert gets more) with step size ``tau`` (``learning_rate``):

================  ==================================================================================================
fusion_method     new weights
================  ==================================================================================================
``jko``           ``rho + tau (t - rho)``; the Sinkhorn plan from ``rho`` to ``t`` is reported, and its cost is the free
                  energy
``jko_proximal``  ``argmin_r D(r, rho) / (2 tau) + KL(r | t) + eps <r, log r>``: a Jordan-Kinderlehrer-Otto step
                  [JordanKinderlehrerOtto1998], so the geometry of the forecasts decides how fast weight may move
================  ==================================================================================================

``D`` is the entropic transport cost ``OT_eps(r, rho)`` for the cost between the experts' forecasts, centred at
``rho``: less its tangent there. It is convex, zero at ``rho`` and positive elsewhere, and tends to the squared
Wasserstein distance as eps vanishes. Without centring, a step of any size, even zero, would smear the weights over
experts whose forecasts happen to be near each other on this tick. The entropy in the energy is what makes a volatile
stream spread its weights: the step rests at ``t ** (1 / (1 + eps))``, normalised, which is uniform as eps grows.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ._parameters import PredictorConfig
from ._results import FusionResult, KernelOutput
from ._sinkhorn import (
    compute_cost_matrix,
    compute_sinkhorn_epsilon,
    iterate_to_tolerance,
    leaves_kernel_domain,
    marginal_error,
    regularised_cost,
    stopping_tolerance,
    volatility_coupled_sinkhorn,
)
from ._types import CostMatrix, Count, Flag, Scalar, Weights

FUSION_METHODS: tuple[str, ...] = ("jko", "jko_proximal")


def normalize_confidences(confidences: Float[Array, " kernels"]) -> Weights:
    """Confidences as weights on the simplex.

    Not a number, negative and zero count as no confidence; infinities share the whole between them; where nobody has
    any confidence the weights are uniform.
    """
    infinite = jnp.isposinf(confidences)
    # The reciprocal of what is nearly the largest number may be flushed to zero.
    bounded = jnp.clip(confidences, 0.0, float(jnp.finfo(confidences.dtype).max) / 16.0)
    usable = jnp.where(jnp.isfinite(confidences), bounded, jnp.zeros_like(confidences))
    usable = jnp.where(jnp.any(infinite), infinite.astype(confidences.dtype), usable)
    largest = jnp.max(usable)
    # Dividing by the largest first keeps the sum from overflowing.
    relative = jnp.where(largest > 0.0, usable / jnp.where(largest > 0.0, largest, 1.0), jnp.ones_like(usable))
    return relative / jnp.sum(relative)


def project_to_simplex_sum(weights: Weights) -> Weights:
    """Non-negative weights divided by their sum; uniform where the sum is zero or not finite."""
    clipped = jnp.maximum(weights, 0.0)
    total = jnp.sum(clipped)
    sound = jnp.isfinite(total) & (total > 0.0)
    uniform = jnp.full_like(weights, 1.0 / weights.shape[0])
    return jnp.where(sound, clipped / jnp.where(sound, total, jnp.ones_like(total)), uniform)


def jko_linear_step(current_weights: Weights, target_weights: Weights, step_size: Scalar) -> Weights:
    """``rho + tau (t - rho)`` on the simplex, ``tau`` in [0, 1]: the specification's update."""
    return project_to_simplex_sum(current_weights + step_size * (target_weights - current_weights))


class ProximalStep(NamedTuple):
    """Result of ``jko_proximal_step``: the new weights, the plan that leads to them and how the loop ended."""

    weights: Weights
    plan: CostMatrix
    max_err: Scalar
    iterations: Count
    log_domain: Flag


def jko_proximal_step(
    current_weights: Weights,
    target_weights: Weights,
    cost_matrix: CostMatrix,
    epsilon: Scalar,
    step_size: Scalar,
    config: PredictorConfig,
    wanted: Flag | bool = True,
) -> ProximalStep:
    """``argmin_r D(r, rho) / (2 tau) + KL(r | t) + eps <r, log r>`` by scaling iterations.

    ``current_weights`` (rho) and ``target_weights`` (t) lie on the simplex, ``cost_matrix`` is symmetric with a zero
    diagonal, ``epsilon`` and ``step_size`` (tau) are positive. With ``K = exp(-C / eps)``, ``lambda = 2 tau (1 +
    eps)``, ``q = t ** (1 / (1 + eps))`` and ``gamma = lambda / (eps + lambda)`` the plan is ``diag(u) K diag(v)``,
    its rows sum to rho, its columns to the new weights, and [Peyre2015; ChizatEtAl2018, section 3]

        u = rho / (K v),    v = d ** (1 - gamma) * (q / (K' u)) ** gamma,

    where ``eps log d`` is the slope of ``OT_eps(., rho)`` at rho: ``d * (K d) = rho``, found in the same loop by the
    symmetric iteration [KnightRuizUcar2014]. A weight of zero could never grow, since the slope there is infinite:
    rho is floored at ``numerical_epsilon``. ``max_err`` is the largest gap in any of the three equations, as weights.
    """
    dtype = cost_matrix.dtype
    pull = 2.0 * step_size * (1.0 + epsilon)
    gamma = pull / (epsilon + pull)
    current = project_to_simplex_sum(jnp.maximum(current_weights, jnp.asarray(config.numerical_epsilon, dtype)))
    goal = jnp.log(jnp.maximum(target_weights, float(jnp.finfo(dtype).tiny))) / (1.0 + epsilon)
    scaled_cost = cost_matrix / epsilon
    kernel = jnp.exp(-scaled_cost)
    start = jnp.sqrt(current)
    tolerance, max_iter = stopping_tolerance(config, dtype), jnp.asarray(config.sinkhorn_max_iter, jnp.int32)
    wanted = jnp.asarray(wanted)

    def step(scalings: tuple[Weights, Weights]) -> tuple[tuple[Weights, Weights], Scalar]:
        v, d = scalings
        u = current / jnp.sum(kernel * v[None, :], axis=1)
        arriving = jnp.sum(kernel * u[:, None], axis=0)
        own = jnp.sum(kernel * d[None, :], axis=1)
        new_v = jnp.exp((1.0 - gamma) * jnp.log(d) + gamma * (goal - jnp.log(arriving)))
        # A common factor of v cancels in the plan but would decay slowly: fix it by the mass
        # [SejourneVialardPeyre2022].
        new_v = new_v / jnp.sum(new_v * arriving)
        # Half a step, geometrically: the whole one oscillates.
        new_d = jnp.sqrt(d * (current / own))
        error = jnp.maximum(jnp.max(jnp.abs((new_v - v) * arriving)), jnp.max(jnp.abs(d * own - current)))
        return (new_v, new_d), error

    unsafe = leaves_kernel_domain(cost_matrix, epsilon)
    (v, d), iterations = iterate_to_tolerance(step, (start, start), max_iter, tolerance, wanted & ~unsafe)

    log_current = jnp.log(current)

    def log_step(potentials: tuple[Weights, Weights]) -> tuple[tuple[Weights, Weights], Scalar]:
        log_v, log_d = potentials
        log_u = log_current - jax.nn.logsumexp(log_v[None, :] - scaled_cost, axis=1)
        log_arriving = jax.nn.logsumexp(log_u[:, None] - scaled_cost, axis=0)
        log_own = jax.nn.logsumexp(log_d[None, :] - scaled_cost, axis=1)
        new_v = (1.0 - gamma) * log_d + gamma * (goal - log_arriving)
        new_v = new_v - jax.nn.logsumexp(new_v + log_arriving)
        new_d = 0.5 * (log_d + log_current - log_own)
        moved = jnp.abs(jnp.exp(new_v + log_arriving) - jnp.exp(log_v + log_arriving))
        error = jnp.maximum(jnp.max(moved), jnp.max(jnp.abs(jnp.exp(log_d + log_own) - current)))
        return (new_v, new_d), error

    lost = ~(jnp.all(jnp.isfinite(v)) & jnp.all(jnp.isfinite(d)))
    in_logs = wanted & (unsafe | lost)
    logs = (0.5 * log_current, 0.5 * log_current)
    (log_v, log_d), log_iterations = iterate_to_tolerance(log_step, logs, max_iter, tolerance, in_logs)

    # One more pass over the rows, so that the plan carries exactly the current weights away.
    u = current / jnp.sum(kernel * v[None, :], axis=1)
    log_u = log_current - jax.nn.logsumexp(log_v[None, :] - scaled_cost, axis=1)
    in_kernel = (u[:, None] * kernel) * v[None, :]
    plan = jnp.where(in_logs, jnp.exp(log_u[:, None] + log_v[None, :] - scaled_cost), in_kernel)
    weights = project_to_simplex_sum(jnp.sum(plan, axis=0))
    _, gap = step((v, d))
    _, log_gap = log_step((log_v, log_d))
    max_err = jnp.maximum(marginal_error(plan, current, weights), jnp.where(in_logs, log_gap, gap))
    return ProximalStep(weights, plan, max_err, jnp.where(in_logs, log_iterations, iterations), in_logs)


def fuse_kernel_outputs(
    kernel_outputs: Iterable[KernelOutput],
    current_weights: Weights,
    ema_variance: Scalar,
    config: PredictorConfig,
    *,
    hold: Flag | bool = False,
    held_weights: Weights | None = None,
) -> FusionResult:
    """One fusion step from ``current_weights`` (on the simplex) by ``config.fusion_method``, and the fused forecast.

    ``ema_variance`` (dimensionless, 0 or more) sets the regularisation. The step size is ``config.learning_rate``,
    clamped to [0, 1]. Where ``hold`` is true the weights are ``held_weights`` instead (``current_weights`` unless
    given, divided by their sum), the free energy is 0, the plan is diagonal, no iteration is spent and
    ``sinkhorn_converged`` is false: in grace, in degraded mode, after an entropy reset and in an emergency.

    A forecast that is not finite gets no weight and counts as 0. ``updated_weights`` sums to one within rounding, and
    ``fused_prediction`` is its product with the forecasts. Raises ``ValueError`` while tracing for an unknown method.
    """
    outputs = tuple(kernel_outputs)
    if config.fusion_method not in FUSION_METHODS:
        raise ValueError(f"fusion_method must be one of {', '.join(FUSION_METHODS)}, got {config.fusion_method!r}")
    predictions = jnp.stack([output.prediction for output in outputs])
    confidences = jnp.stack([output.confidence for output in outputs])
    sound = jnp.isfinite(predictions)
    predictions = jnp.where(sound, predictions, jnp.zeros_like(predictions))
    confidences = jnp.where(sound, confidences, jnp.zeros_like(confidences))
    dtype = predictions.dtype
    hold = jnp.asarray(hold)
    kept = project_to_simplex_sum(current_weights if held_weights is None else held_weights)
    current = project_to_simplex_sum(current_weights)
    target = normalize_confidences(confidences)
    step_size = jnp.clip(jnp.asarray(config.learning_rate, dtype), 0.0, 1.0)
    cost = compute_cost_matrix(predictions, config)
    atol = jnp.asarray(config.validation_simplex_atol, dtype)

    transport: Any
    if config.fusion_method == "jko":
        transport = volatility_coupled_sinkhorn(current, target, cost, ema_variance, config, wanted=~hold)
        moved = jko_linear_step(current, target, step_size)
        plan, free_energy, epsilon = transport.transport_matrix, transport.reg_ot_cost, transport.epsilon
    else:
        # The weights and all that led to them are constants to whoever differentiates the forecast.
        frozen = jax.lax.stop_gradient((current, target, cost, step_size))
        constants = jax.lax.stop_gradient(config)
        epsilon = compute_sinkhorn_epsilon(ema_variance.astype(dtype), constants, jnp.max(frozen[2]))
        transport = jko_proximal_step(
            frozen[0], frozen[1], frozen[2], epsilon, jnp.maximum(frozen[3], 1e-6), constants, ~hold
        )
        moved, plan = transport.weights, transport.plan
        free_energy = regularised_cost(plan, frozen[2], epsilon)

    weights = jnp.where(hold, kept, moved)
    return FusionResult(
        fused_prediction=jnp.sum(weights * predictions),
        updated_weights=weights,
        free_energy=jnp.where(hold, jnp.zeros_like(free_energy), free_energy),
        sinkhorn_converged=~hold & (transport.max_err <= atol),
        sinkhorn_epsilon=epsilon,
        sinkhorn_transport=jnp.where(hold, jnp.diag(kept), plan),
        sinkhorn_max_err=jnp.where(hold, jnp.zeros_like(transport.max_err), transport.max_err),
        sinkhorn_iterations=transport.iterations,
        sinkhorn_log_domain=transport.log_domain,
    )
