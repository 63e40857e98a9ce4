"""Sinkhorn against solvers that share nothing with it: a linear program and POT."""

import dataclasses
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linprog

from usp_daemon.core._parameters import PredictorConfig
from usp_daemon.core._sinkhorn import compute_cost_matrix, volatility_coupled_sinkhorn

with warnings.catch_warnings():
    # POT looks for every array library there is, and some of those warn when imported.
    warnings.simplefilter("ignore")
    import ot

POSITIONS = np.arange(4.0)
GRID_COST = (POSITIONS[:, None] - POSITIONS[None, :]) ** 2
SOURCE = np.array([0.4, 0.3, 0.2, 0.1])


def config_for(epsilon: float, max_iter: int = 50_000) -> PredictorConfig:
    """Parameters under which the regularisation is exactly ``epsilon``."""
    fields = {"sinkhorn_epsilon_0": epsilon, "sinkhorn_alpha": 0.0, "sinkhorn_epsilon_min": 0.0}
    return dataclasses.replace(PredictorConfig(), sinkhorn_max_iter=max_iter, **fields).as_arrays(jnp.float64)


@jax.jit
def solve(source, target, cost, config):
    return volatility_coupled_sinkhorn(source, target, cost, jnp.asarray(0.0), config)


def linear_program(source: np.ndarray, target: np.ndarray, cost: np.ndarray) -> float:
    """Exact transport cost."""
    size = len(source)
    sums = np.zeros((2 * size, size * size))
    for i in range(size):
        sums[i, i * size : (i + 1) * size] = 1.0
        sums[size + i, i::size] = 1.0
    return float(linprog(cost.ravel(), A_eq=sums, b_eq=np.concatenate([source, target])).fun)


def random_problem(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    forecasts = jnp.asarray(rng.normal(size=4))
    cost = np.asarray(compute_cost_matrix(forecasts, PredictorConfig()))
    return rng.dirichlet(np.ones(4)), rng.dirichlet(np.ones(4)), cost


def test_known_transport_cost_of_a_reversed_histogram() -> None:
    result = solve(SOURCE, SOURCE[::-1].copy(), GRID_COST, config_for(0.02))
    assert linear_program(SOURCE, SOURCE[::-1], GRID_COST) == pytest.approx(1.4, abs=1e-12)
    assert np.sum(np.asarray(result.transport_matrix) * GRID_COST) == pytest.approx(1.4, abs=1e-7)


@pytest.mark.parametrize("seed", range(8))
def test_small_regularisation_approaches_the_linear_program(seed: int) -> None:
    source, target, cost = random_problem(seed)
    exact = linear_program(source, target, cost)
    gaps = []
    for epsilon in (0.1, 0.03, 0.01):
        result = solve(source, target, cost, config_for(epsilon))
        assert bool(result.converged)
        gaps.append(float(np.sum(np.asarray(result.transport_matrix) * cost)) - exact)
        # The entropic plan is at most eps * ln(16) worse than the best one [PeyreCuturi2019, section 4.1].
        assert -1e-7 <= gaps[-1] <= epsilon * np.log(16.0)
    assert gaps[0] >= gaps[1] - 1e-7 >= gaps[2] - 2e-7


@pytest.mark.parametrize("epsilon", [0.02, 0.105, 0.5, 5.0, 1e4])
@pytest.mark.parametrize("seed", range(3))
def test_plan_is_that_of_pot(seed: int, epsilon: float) -> None:
    source, target, cost = random_problem(seed)
    expected = ot.sinkhorn(source, target, cost, epsilon, method="sinkhorn_log", stopThr=1e-14, numItermax=200_000)
    result = solve(source, target, cost, config_for(epsilon))
    # What is left is the stopping tolerance of 1e-9 in the marginals, amplified by slow convergence.
    np.testing.assert_allclose(result.transport_matrix, expected, atol=1e-7)


@pytest.mark.parametrize("power_of_ten", range(5))
def test_large_regularisation_tends_to_the_product_of_the_marginals(power_of_ten: int) -> None:
    epsilon = 10.0**power_of_ten
    source, target, cost = random_problem(5)
    plan = np.asarray(solve(source, target, cost, config_for(epsilon)).transport_matrix)
    assert np.max(np.abs(plan - np.outer(source, target))) < 3.0 / epsilon
    np.testing.assert_allclose(plan.sum(0), target, atol=1e-9)


@pytest.mark.parametrize(("epsilon", "published"), [(1.0, 28), (0.1, 125), (0.01, 852)])
def test_iterations_needed_on_the_grid_are_the_published_ones(epsilon: float, published: int) -> None:
    tolerance = 1e-6 / 1e-3  # the loop stops at a thousandth of the tolerance
    config = dataclasses.replace(config_for(epsilon), validation_simplex_atol=jnp.asarray(tolerance))
    result = solve(SOURCE, np.array([0.1, 0.2, 0.3, 0.4]), GRID_COST, config)
    # Whole blocks of five, and the error is seen one iteration late.
    assert 0.5 * published <= int(result.iterations) <= 2.0 * published + 6
