"""Regularisation, cost and the loop around Sinkhorn's iteration."""

import dataclasses
import functools

import hypothesis
import hypothesis.extra.numpy
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from usp_daemon.core._parameters import PredictorConfig
from usp_daemon.core._sinkhorn import (
    CHECK_EVERY,
    compute_cost_matrix,
    compute_sinkhorn_epsilon,
    regularised_cost,
    volatility_coupled_sinkhorn,
)

DTYPES = [jnp.float32, jnp.float64]


@functools.cache
def config_for(dtype=jnp.float64, **fields) -> PredictorConfig:
    return dataclasses.replace(PredictorConfig(), **fields).as_arrays(dtype)


@jax.jit
def solve(source, target, forecasts, variance, config):
    cost = compute_cost_matrix(forecasts, config)
    return volatility_coupled_sinkhorn(source, target, cost, variance, config)


def problems(seed: int, count: int, dtype=jnp.float64):
    rng = np.random.default_rng(seed)
    source, target = rng.dirichlet(np.ones(4), count), rng.dirichlet(np.full(4, 0.3), count)
    return tuple(jnp.asarray(x, dtype) for x in (source, target, rng.normal(size=(count, 4)), rng.chisquare(1, count)))


# -- regularisation


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("sigma", "expected"), [(0.02, 0.101), (0.1, 0.105), (0.5, 0.125), (2.0, 0.2)])
def test_epsilon_of_known_volatilities(sigma: float, expected: float, dtype) -> None:
    epsilon = compute_sinkhorn_epsilon(jnp.asarray(sigma**2, dtype), config_for(dtype))
    assert epsilon.dtype == dtype
    assert float(epsilon) == pytest.approx(expected, rel=4 * float(jnp.finfo(dtype).eps))


def test_floor_binds_on_a_spread_cost_and_bounds_the_kernel() -> None:
    config = config_for(sinkhorn_epsilon_min=0.1, sinkhorn_epsilon_0=0.1)
    low = dataclasses.replace(config, sinkhorn_epsilon_min=jnp.asarray(1e-3))
    calm = jnp.asarray(0.01)
    assert float(compute_sinkhorn_epsilon(calm, low, 2.0)) == pytest.approx(0.105)
    assert float(compute_sinkhorn_epsilon(calm, config, 2.0)) == pytest.approx(0.2)
    source, target, forecasts, variance = (x[0] for x in problems(0, 1))
    at_floor = solve(source, target, forecasts, 0.0 * variance, config)
    ratio = jnp.max(compute_cost_matrix(forecasts, config)) / at_floor.epsilon
    assert float(ratio) == pytest.approx(1.0 / 0.1)


def test_no_gradient_passes_the_regularisation() -> None:
    config = config_for()
    assert float(jax.grad(lambda v: compute_sinkhorn_epsilon(v, config))(jnp.asarray(0.3))) == 0.0
    slope = jax.grad(
        lambda a: compute_sinkhorn_epsilon(jnp.asarray(0.3), dataclasses.replace(config, sinkhorn_alpha=a))
    )
    assert float(slope(jnp.asarray(0.5))) == 0.0
    through = jax.grad(lambda v: solve(*(x[0] for x in problems(1, 1)[:3]), v, config).reg_ot_cost)
    assert float(through(jnp.asarray(0.3))) == 0.0


# -- cost


@pytest.mark.parametrize("dtype", DTYPES)
def test_cost_is_free_of_scale_and_shift(dtype) -> None:
    forecasts = jnp.asarray([0.3, -1.2, 0.8, 0.1], dtype)
    cost = compute_cost_matrix(forecasts, config_for(dtype))
    tolerance = 200 * float(jnp.finfo(dtype).eps)
    for factor, shift in ((1e-6, 0.0), (1e6, 0.0), (1.0, 5.0), (-3.0, 1.0)):
        other = compute_cost_matrix(forecasts * factor + shift, config_for(dtype))
        np.testing.assert_allclose(other, cost, rtol=tolerance, atol=tolerance)
    assert np.all(np.diag(cost) == 0.0)
    np.testing.assert_array_equal(cost, cost.T)
    assert float(cost.sum() / 12) == pytest.approx(1.0, rel=1e-6)


@pytest.mark.parametrize("value", [0.0, 1.0, -64123.5, 1e30])
@pytest.mark.parametrize("dtype", DTYPES)
def test_identical_forecasts_cost_nothing(value: float, dtype) -> None:
    cost = compute_cost_matrix(jnp.full(4, value, dtype), config_for(dtype))
    np.testing.assert_array_equal(cost, np.zeros((4, 4)))


@hypothesis.given(
    hypothesis.extra.numpy.arrays(np.float64, 4, elements=st.floats(allow_nan=False, allow_infinity=False))
)
def test_cost_of_any_forecasts_is_finite_and_bounded(forecasts: np.ndarray) -> None:
    cost = np.asarray(compute_cost_matrix(jnp.asarray(forecasts), PredictorConfig()))
    assert np.all(np.isfinite(cost))
    assert cost.min() >= 0.0
    assert cost.max() <= 3.0 + 1e-9


# -- plan


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("epsilon", [0.05, 0.15, 1.0])
def test_both_domains_agree(epsilon: float, dtype) -> None:
    config = config_for(dtype, sinkhorn_epsilon_0=epsilon, sinkhorn_alpha=0.0, sinkhorn_max_iter=400)

    def both(source, target, forecasts):
        cost = compute_cost_matrix(forecasts, config)
        zero = jnp.zeros((), dtype)
        return tuple(
            volatility_coupled_sinkhorn(source, target, cost, zero, config, domain=domain)
            for domain in ("kernel", "log")
        )

    kernel, log = jax.jit(jax.vmap(both))(*problems(2, 64, dtype)[:3])
    tolerance = 1e-9 if dtype == jnp.float64 else 2e-5
    np.testing.assert_allclose(kernel.transport_matrix, log.transport_matrix, atol=tolerance, rtol=0)
    np.testing.assert_allclose(kernel.reg_ot_cost, log.reg_ot_cost, atol=10 * tolerance, rtol=0)
    assert not kernel.log_domain.any()
    assert log.log_domain.all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_underflowing_kernel_is_solved_in_logarithms(dtype) -> None:
    config = config_for(dtype, sinkhorn_epsilon_0=2e-3, sinkhorn_alpha=0.0, sinkhorn_epsilon_min=0.0)
    config = dataclasses.replace(config, sinkhorn_max_iter=jnp.asarray(20_000, jnp.int32))
    source = jnp.asarray([0.4, 0.3, 0.2, 0.1], dtype)
    target = jnp.asarray([0.1, 0.1, 0.1, 0.7], dtype)
    result = solve(source, target, jnp.asarray([-1.0, 0.0, 0.4, 1.0], dtype), jnp.zeros((), dtype), config)
    assert bool(result.log_domain)
    # Potentials near C / epsilon = 1500 carry that many units in the last place into the plan.
    gap = 1e-6 if dtype == jnp.float64 else 2e-4
    assert float(result.max_err) <= gap
    assert bool(result.converged) == (float(result.max_err) <= 1e-6)
    np.testing.assert_allclose(result.transport_matrix.sum(1), source, atol=gap)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("epsilon", [1e-3, 0.1, 1e4])
def test_marginals_with_zeros(epsilon: float, dtype) -> None:
    config = config_for(dtype, sinkhorn_epsilon_0=epsilon, sinkhorn_alpha=0.0, sinkhorn_epsilon_min=0.0)
    corner = jnp.asarray([0.0, 0.0, 0.0, 1.0], dtype)
    even = jnp.full(4, 0.25, dtype)
    forecasts, zero = jnp.asarray([0.2, -1.0, 3.0, 0.1], dtype), jnp.zeros((), dtype)
    for source, target in ((corner, even), (even, corner), (corner, corner), (corner[::-1], corner)):
        result = solve(source, target, forecasts, zero, config)
        rounding = 3e3 * float(jnp.finfo(dtype).eps) if result.log_domain else 1e-6
        np.testing.assert_allclose(result.transport_matrix, np.outer(source, target), atol=max(rounding, 1e-6))
        assert np.isfinite(float(result.reg_ot_cost))
        assert bool(result.converged) == (float(result.max_err) <= 1e-6)


@hypothesis.settings(max_examples=60)
@hypothesis.given(
    st.lists(st.floats(0, 1), min_size=8, max_size=8),
    st.lists(st.floats(-1e6, 1e6), min_size=4, max_size=4),
    st.floats(0, 1e300),
    st.floats(1e-4, 10.0),
)
def test_any_problem_gives_finite_numbers(masses, forecasts, variance, epsilon) -> None:
    source, target = (np.asarray(masses[:4]) + 1e-9, np.asarray(masses[4:]) + 1e-9)
    config = config_for(sinkhorn_epsilon_0=epsilon, sinkhorn_epsilon_min=0.0)
    result = solve(source / source.sum(), target / target.sum(), jnp.asarray(forecasts), jnp.asarray(variance), config)
    for leaf in jax.tree.leaves(result):
        assert np.all(np.isfinite(np.asarray(leaf, np.float64)))
    assert float(result.transport_matrix.min()) >= 0.0
    # The columns are met after every iteration, the rows in the limit.
    np.testing.assert_allclose(result.transport_matrix.sum(0), target / target.sum(), atol=1e-8)


def test_volatility_shock_stays_within_bounds() -> None:
    config = config_for()
    source, target, forecasts, _ = (x[0] for x in problems(4, 1))
    for sigma in (0.01, 1.0, 1e4):
        result = solve(source, target, forecasts, jnp.asarray(sigma**2), config)
        assert bool(result.converged)
        transport = float(jnp.sum(result.transport_matrix * compute_cost_matrix(forecasts, config)))
        assert 0.0 <= transport <= 3.0 * (1.0 + sigma)
        assert float(result.epsilon) >= float(config.sinkhorn_epsilon_min)


def test_iterations_are_limited_and_reported() -> None:
    config, zero = config_for(sinkhorn_epsilon_0=0.05, sinkhorn_alpha=0.0), jnp.asarray(0.0)
    rising = jnp.asarray([0.1, 0.2, 0.3, 0.4])
    arguments = (rising[::-1], rising, jnp.arange(4.0), zero)
    results = {
        limit: solve(*arguments, dataclasses.replace(config, sinkhorn_max_iter=jnp.asarray(limit, jnp.int32)))
        for limit in (5, 12, 50, 50_000)
    }
    assert [int(results[limit].iterations) for limit in (5, 12, 50)] == [5, 10, 50]
    assert float(results[5].max_err) > float(results[50].max_err)
    assert not bool(results[5].converged)
    assert bool(results[50_000].converged)
    assert int(results[50_000].iterations) % CHECK_EVERY == 0


def test_unwanted_problem_costs_no_iteration() -> None:
    source, target, forecasts, variance = problems(7, 16)
    config = config_for()
    wanted = jnp.arange(16, dtype=jnp.int32) % 2 == 0

    def one(a, b, f, v, w):
        return volatility_coupled_sinkhorn(a, b, compute_cost_matrix(f, config), v, config, wanted=w)

    iterations = jax.jit(jax.vmap(one))(source, target, forecasts, variance, wanted).iterations
    np.testing.assert_array_equal(np.asarray(iterations) > 0, wanted)


# -- derivatives


def test_gradient_of_the_cost_is_that_of_finite_differences() -> None:
    config = config_for(sinkhorn_max_iter=20_000)
    source, target, forecasts, variance = (x[0] for x in problems(8, 1))
    cost = compute_cost_matrix(forecasts, config)
    epsilon = compute_sinkhorn_epsilon(variance, config, jnp.max(cost))
    # The regularisation must not move along with the cost, as it does not in the derivative.
    config = dataclasses.replace(
        config, sinkhorn_epsilon_0=epsilon, sinkhorn_alpha=jnp.asarray(0.0), sinkhorn_epsilon_min=jnp.asarray(0.0)
    )

    def value(source, target, cost):
        return volatility_coupled_sinkhorn(source, target, cost, variance, config).reg_ot_cost

    gradients = jax.grad(value, argnums=(0, 1, 2))(source, target, cost)
    rng = np.random.default_rng(0)
    for argument, gradient in enumerate(gradients):
        direction = rng.normal(size=gradient.shape)
        if argument < 2:
            direction -= direction.mean()  # along the simplex
        step = 1e-5
        shifted = [list((source, target, cost)) for _ in range(2)]
        shifted[0][argument] = shifted[0][argument] + step * direction
        shifted[1][argument] = shifted[1][argument] - step * direction
        numeric = (value(*shifted[0]) - value(*shifted[1])) / (2 * step)
        assert float(jnp.sum(gradient * direction)) == pytest.approx(float(numeric), abs=2e-5)


def test_gradients_are_finite_at_the_corners() -> None:
    config = config_for()
    corner, even = jnp.asarray([1.0, 0.0, 0.0, 0.0]), jnp.full(4, 0.25)
    for forecasts in (jnp.zeros(4), jnp.asarray([0.0, 0.0, 1.0, 1e9])):
        gradients = jax.grad(lambda a, b, f: solve(a, b, f, jnp.asarray(1.0), config).reg_ot_cost, argnums=(0, 1, 2))(
            corner, even, forecasts
        )
        assert all(bool(jnp.all(jnp.isfinite(gradient))) for gradient in gradients)


def test_regularised_cost_of_a_plan_with_zeros() -> None:
    plan, cost = jnp.diag(jnp.full(4, 0.25)), jnp.ones((4, 4))
    expected = 1.0 + 0.1 * (np.log(0.25) - 1.0)
    assert float(regularised_cost(plan, cost, jnp.asarray(0.1))) == pytest.approx(expected)


# -- batches


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [16, 32, 64])
def test_a_lane_does_not_depend_on_its_company(width: int, dtype) -> None:
    config = config_for(dtype)
    batch = jax.jit(jax.vmap(solve.__wrapped__, in_axes=(0, 0, 0, 0, None)))
    mine = problems(9, width, dtype)
    slow = tuple(jnp.roll(x, 1, axis=0) for x in problems(10, width, dtype))
    hard = dataclasses.replace(config)
    reference = batch(*mine, config)
    for lane in (0, 3, width - 1):
        mixed = tuple(theirs.at[(lane + 1) % width].set(ours[lane]) for ours, theirs in zip(mine, slow, strict=True))
        result = batch(*mixed, hard)
        for expected, got in zip(jax.tree.leaves(reference), jax.tree.leaves(result), strict=True):
            np.testing.assert_array_equal(np.asarray(expected)[lane], np.asarray(got)[(lane + 1) % width])


def test_one_lane_in_the_log_domain_leaves_the_others_as_they_were() -> None:
    config = config_for(sinkhorn_epsilon_0=1e-3, sinkhorn_alpha=1.0, sinkhorn_epsilon_min=0.0)
    batch = jax.jit(jax.vmap(solve.__wrapped__, in_axes=(0, 0, 0, 0, None)))
    source, target, forecasts, _ = problems(11, 16)
    volatile = jnp.full(16, 1e4)
    alone = batch(source, target, forecasts, volatile, config)
    mixed = batch(source, target, forecasts, volatile.at[5].set(0.0), config)
    assert bool(mixed.log_domain[5])
    assert int(mixed.log_domain.sum()) == 1
    others = np.arange(16) != 5
    np.testing.assert_array_equal(
        np.asarray(alone.transport_matrix)[others], np.asarray(mixed.transport_matrix)[others]
    )


def test_traced_parameters_do_not_recompile() -> None:
    traces = []

    @jax.jit
    def counted(source, target, forecasts, variance, config):
        traces.append(None)
        return solve.__wrapped__(source, target, forecasts, variance, config)

    arguments = tuple(x[0] for x in problems(12, 1))
    results = [
        counted(
            *arguments, config_for(sinkhorn_epsilon_0=e, sinkhorn_alpha=a, sinkhorn_epsilon_min=m, sinkhorn_max_iter=n)
        )
        for e, a, m, n in ((0.1, 0.5, 0.01, 200), (0.05, 0.1, 0.001, 50), (0.5, 1.0, 0.1, 500))
    ]
    assert len(traces) == 1
    assert len({float(result.epsilon) for result in results}) == 3
