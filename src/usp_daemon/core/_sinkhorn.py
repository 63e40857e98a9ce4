"""Entropic optimal transport between two vectors of weights, with a regularisation that follows volatility.

The plan ``P`` minimises ``<P, C> + epsilon * sum(P * (log P - 1))`` among the plans whose rows sum to the source and
whose columns sum to the target. It has the form ``P = diag(u) K diag(v)`` with ``K = exp(-C / epsilon)``, and
Sinkhorn's iteration fixes the two marginals in turn [Cuturi2013; PeyreCuturi2019, eq. 4.15]. Two domains do the same
arithmetic:

========  ===========================================================  ==========================================
domain    iteration                                                    used
========  ===========================================================  ==========================================
kernel    ``u = a / (K v)``, ``v = b / (K' u)``                        always first: ``K`` costs one exponential
log       ``f = eps log a - eps logsumexp((g - C) / eps)``, ``g``      where ``K`` underflows, or the kernel domain
          alike                                                        lost a scaling to overflow
========  ===========================================================  ==========================================

Both loops stop by themselves, and under ``vmap`` a lane that has stopped is frozen, so that its result does not
depend on the lanes beside it; a tile in which no lane needs the log domain runs that loop zero times.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ._parameters import PredictorConfig
from ._results import SinkhornResult
from ._types import CostMatrix, Count, Flag, Scalar, Weights

# Iterations between two looks at the marginal error. Five keep the loop's own cost below the arithmetic's on a CPU.
CHECK_EVERY = 5
# The stopping tolerance, as a fraction of the tolerance that convergence is judged by: stopping early must not show.
STOPPING_FRACTION = 1e-3
# The kernel domain is trusted while exp(-C / epsilon) stays above tiny ** 0.7: the scalings need the rest of the range.
KERNEL_DOMAIN_RANGE = 0.7

Domain = Literal["auto", "kernel", "log"]


def compute_sinkhorn_epsilon(ema_variance: Scalar, config: PredictorConfig, cost_scale: Scalar | float = 1.0) -> Scalar:
    """The regularisation that volatility asks for: ``max(epsilon_min * cost_scale, epsilon_0 * (1 + alpha * sigma))``.

    ``ema_variance`` is the dimensionless EWMA variance of innovations (0 or more), ``sigma`` its root. ``cost_scale``
    is the largest entry of the cost that the regularisation will meet. The floor is relative to it, because what
    Sinkhorn's speed of convergence and the range of its kernel depend on is ``max(C) / epsilon``
    [FranklinLorenz1989]; so ``max(C) / epsilon <= 1 / epsilon_min``, and the floor binds where forecasts are spread
    and volatility is low.

    Dimensionless and positive. No gradient flows through it, in either direction.
    """
    variance = jax.lax.stop_gradient(jnp.asarray(ema_variance))
    dtype = variance.dtype
    sigma = jnp.sqrt(jnp.maximum(variance, jnp.asarray(config.numerical_epsilon, dtype)))
    coupled = jnp.asarray(config.sinkhorn_epsilon_0, dtype) * (1.0 + jnp.asarray(config.sinkhorn_alpha, dtype) * sigma)
    floor = jnp.asarray(config.sinkhorn_epsilon_min, dtype) * jnp.asarray(cost_scale, dtype)
    return jax.lax.stop_gradient(jnp.maximum(floor, coupled))


def compute_cost_matrix(predictions: Float[Array, " kernels"], config: PredictorConfig) -> CostMatrix:
    """Squared differences between the experts' forecasts, divided by their mean over distinct pairs.

    Scale-free: multiplying or shifting every ``predictions`` leaves it unchanged. Non-negative, symmetric, zero
    diagonal; its largest entry lies between 1.5 and 3 for four forecasts. All zeros when the forecasts are equal to
    rounding.
    """
    del config
    dtype = predictions.dtype
    limits = jnp.finfo(dtype)
    # Two divisors that only keep the squares in range: they cancel in the end, so they need no derivative.
    magnitude = jax.lax.stop_gradient(jnp.max(jnp.abs(predictions)))
    unit = predictions / jnp.where(magnitude >= limits.tiny, magnitude, jnp.ones_like(magnitude))
    difference = unit[:, None] - unit[None, :]
    widest = jax.lax.stop_gradient(jnp.max(jnp.abs(difference)))
    distinct = widest > 8.0 * limits.eps
    relative = difference / jnp.where(distinct, widest, jnp.ones_like(widest))
    squared = relative * relative
    num_pairs = predictions.shape[0] * (predictions.shape[0] - 1)
    mean = jnp.sum(squared) / num_pairs
    return jnp.where(distinct, squared / jnp.where(distinct, mean, jnp.ones_like(mean)), jnp.zeros_like(squared))


class _Iterate(NamedTuple):
    """Where a loop stands: what it iterates on, how many iterations it took and the last error it saw."""

    value: Any
    iterations: Count
    error: Scalar


def iterate_to_tolerance(
    step: Callable[[Any], tuple[Any, Scalar]], start: Any, max_iter: Count, tolerance: Scalar, wanted: Flag
) -> tuple[Any, Count]:
    """Repeats ``value, error = step(value)`` until the error is at most ``tolerance``; returns the value and the count.

    Looks at the error once in ``CHECK_EVERY`` iterations and never exceeds ``max_iter`` (at least one block is run, and
    the limit is rounded down to whole blocks). Runs nothing where ``wanted`` is false. Under ``vmap`` every lane is
    frozen at its own stop.
    """
    num_blocks = jnp.maximum(max_iter // CHECK_EVERY, 1)

    def unfinished(at: _Iterate) -> Flag:
        return wanted & (at.iterations < num_blocks * CHECK_EVERY) & (at.error > tolerance)

    def block(at: _Iterate) -> _Iterate:
        value, error = at.value, at.error
        for _ in range(CHECK_EVERY):
            value, error = step(value)
        return _Iterate(value, at.iterations + CHECK_EVERY, error)

    first = _Iterate(start, jnp.zeros((), jnp.int32), jnp.full_like(tolerance, jnp.inf))
    last = jax.lax.while_loop(unfinished, block, first)
    return last.value, last.iterations


def stopping_tolerance(config: PredictorConfig, dtype: Any) -> Scalar:
    """Marginal error at which iterations stop: well inside ``validation_simplex_atol``, but not below rounding."""
    atol = jnp.asarray(config.validation_simplex_atol, dtype)
    return jnp.maximum(STOPPING_FRACTION * atol, 4.0 * float(jnp.finfo(dtype).eps))


def leaves_kernel_domain(cost_matrix: CostMatrix, epsilon: Scalar) -> Flag:
    """Whether ``exp(-C / epsilon)`` reaches so near to underflow that the scalings may leave the number range."""
    reach = -KERNEL_DOMAIN_RANGE * float(np.log(jnp.finfo(cost_matrix.dtype).tiny))
    return jnp.max(cost_matrix) > reach * epsilon


def safe_log(value: Array) -> Array:
    """Logarithm with a very low finite value (-1e30) at and below zero, whose gradient there is zero."""
    positive = value > 0.0
    return jnp.where(positive, jnp.log(jnp.where(positive, value, jnp.ones_like(value))), jnp.full_like(value, -1e30))


def _scale_kernel(
    source: Weights, target: Weights, kernel: CostMatrix, max_iter: Count, tolerance: Scalar, wanted: Flag
) -> tuple[tuple[Weights, Weights], Count]:
    """The scalings ``(u, v)`` by Sinkhorn's iteration on the kernel itself."""
    tiny = float(jnp.finfo(kernel.dtype).tiny)

    def step(scalings: tuple[Weights, Weights]) -> tuple[tuple[Weights, Weights], Scalar]:
        u, v = scalings
        row = jnp.sum(kernel * v[None, :], axis=1)
        # The last pair met its columns exactly, so its error is in its rows, whose sums are needed here anyway.
        error = jnp.max(jnp.abs(u * row - source))
        u = source / jnp.maximum(row, tiny)
        v = target / jnp.maximum(jnp.sum(kernel * u[:, None], axis=0), tiny)
        return (u, v), error

    return iterate_to_tolerance(step, (jnp.ones_like(source), jnp.ones_like(target)), max_iter, tolerance, wanted)


def _scale_logarithms(
    source: Weights, target: Weights, scaled_cost: CostMatrix, max_iter: Count, tolerance: Scalar, wanted: Flag
) -> tuple[tuple[Weights, Weights], Count]:
    """The same on logarithms: ``(f / epsilon, g / epsilon)``; ``scaled_cost`` is ``C / epsilon``."""
    log_source, log_target = safe_log(source), safe_log(target)

    def step(potentials: tuple[Weights, Weights]) -> tuple[tuple[Weights, Weights], Scalar]:
        f, g = potentials
        row = jax.nn.logsumexp(g[None, :] - scaled_cost, axis=1)
        error = jnp.max(jnp.abs(jnp.exp(f + row) - source))
        f = log_source - row
        g = log_target - jax.nn.logsumexp(f[:, None] - scaled_cost, axis=0)
        return (f, g), error

    return iterate_to_tolerance(step, (jnp.zeros_like(source), jnp.zeros_like(target)), max_iter, tolerance, wanted)


def _solve(
    source: Weights,
    target: Weights,
    cost_matrix: CostMatrix,
    epsilon: Scalar,
    max_iter: Count,
    tolerance: Scalar,
    wanted: Flag,
    domain: Domain,
) -> tuple[CostMatrix, Weights, Weights, Count, Flag]:
    """Plan, logarithms of both scalings, iterations, and whether the log domain gave them."""
    scaled_cost = cost_matrix / epsilon
    kernel = jnp.exp(-scaled_cost)
    unsafe = leaves_kernel_domain(cost_matrix, epsilon)
    in_kernel = wanted & (~unsafe if domain == "auto" else jnp.asarray(domain == "kernel"))
    (u, v), iterations = _scale_kernel(source, target, kernel, max_iter, tolerance, in_kernel)
    lost = ~(jnp.all(jnp.isfinite(u)) & jnp.all(jnp.isfinite(v)))
    in_logs = wanted & ((unsafe | lost) if domain == "auto" else jnp.asarray(domain == "log"))
    (f, g), log_iterations = _scale_logarithms(source, target, scaled_cost, max_iter, tolerance, in_logs)
    plan = jnp.where(in_logs, jnp.exp(f[:, None] + g[None, :] - scaled_cost), (u[:, None] * kernel) * v[None, :])
    return (
        plan,
        jnp.where(in_logs, f, safe_log(u)),
        jnp.where(in_logs, g, safe_log(v)),
        jnp.where(in_logs, log_iterations, iterations),
        in_logs,
    )


def regularised_cost(plan: CostMatrix, cost_matrix: CostMatrix, epsilon: Scalar) -> Scalar:
    """``<P, C> + epsilon * sum(P * (log P - 1))``, where 0 log 0 is 0."""
    positive = plan > 0.0
    entropy = jnp.where(positive, plan * jnp.log(jnp.where(positive, plan, jnp.ones_like(plan))), 0.0) - plan
    return jnp.sum(plan * cost_matrix) + epsilon * jnp.sum(entropy)


@jax.custom_jvp
def _regularised_cost(
    source: Weights,
    target: Weights,
    cost_matrix: CostMatrix,
    epsilon: Scalar,
    plan: CostMatrix,
    log_u: Weights,
    log_v: Weights,
) -> Scalar:
    """``regularised_cost`` with the derivative of the optimal value."""
    del source, target, log_u, log_v
    return regularised_cost(plan, cost_matrix, epsilon)


@_regularised_cost.defjvp
def _regularised_cost_jvp(primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Scalar, Scalar]:
    """Envelope theorem: the plan is optimal, so the cost moves as ``<P, dC> + <f, da> + <g, db>``."""
    source, target, _, epsilon, plan, log_u, log_v = primals
    source_dot, target_dot, cost_dot = tangents[:3]
    # An empty marginal has an infinite slope; zero keeps what differentiates through it finite.
    f = jnp.where(source > 0.0, epsilon * log_u, jnp.zeros_like(log_u))
    g = jnp.where(target > 0.0, epsilon * log_v, jnp.zeros_like(log_v))
    slope = jnp.sum(plan * cost_dot) + jnp.sum(f * source_dot) + jnp.sum(g * target_dot)
    return _regularised_cost(*primals), slope


def volatility_coupled_sinkhorn(
    source_weights: Weights,
    target_weights: Weights,
    cost_matrix: CostMatrix,
    ema_variance: Scalar,
    config: PredictorConfig,
    *,
    wanted: Flag | bool = True,
    domain: Domain = "auto",
    tolerance: Scalar | float | None = None,
) -> SinkhornResult:
    """The entropic transport plan between two vectors of weights, at the regularisation that volatility asks for.

    ``source_weights`` and ``target_weights`` lie on the simplex (zeros allowed), ``cost_matrix`` is non-negative,
    ``ema_variance`` dimensionless. At most ``sinkhorn_max_iter`` iterations. Where ``wanted`` is false none is made
    and the plan means nothing. ``domain`` pins one of the two domains and ``tolerance`` the marginal error to stop at,
    for tests and benchmarks.

    ``reg_ot_cost`` is differentiable in both marginals (up to a constant each) and in the cost; the plan itself,
    epsilon and the diagnostics carry no gradient. ``converged`` says that both marginals are met within
    ``validation_simplex_atol``; ``max_err`` is the largest gap.
    """
    dtype = cost_matrix.dtype
    epsilon = compute_sinkhorn_epsilon(ema_variance.astype(dtype), config, jax.lax.stop_gradient(jnp.max(cost_matrix)))
    source, target, cost = jax.lax.stop_gradient((source_weights, target_weights, cost_matrix))
    max_iter = jnp.asarray(config.sinkhorn_max_iter, jnp.int32)
    stop_at = stopping_tolerance(config, dtype) if tolerance is None else jnp.asarray(tolerance, dtype)
    plan, log_u, log_v, iterations, log_domain = _solve(
        source, target, cost, epsilon, max_iter, stop_at, jnp.asarray(wanted), domain
    )
    max_err = marginal_error(plan, source, target)
    return SinkhornResult(
        transport_matrix=plan,
        reg_ot_cost=_regularised_cost(source_weights, target_weights, cost_matrix, epsilon, plan, log_u, log_v),
        converged=max_err <= jnp.asarray(config.validation_simplex_atol, dtype),
        epsilon=epsilon,
        max_err=max_err,
        iterations=iterations,
        log_domain=log_domain,
    )


def marginal_error(plan: CostMatrix, source: Weights, target: Weights) -> Scalar:
    """The largest absolute gap between the plan's row or column sums and the two marginals."""
    rows = jnp.max(jnp.abs(jnp.sum(plan, axis=1) - source))
    columns = jnp.max(jnp.abs(jnp.sum(plan, axis=0) - target))
    return jnp.maximum(rows, columns)
