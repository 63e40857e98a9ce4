"""Weights after one fusion step, by both methods."""

import dataclasses
import functools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from scipy.special import logsumexp

from usp_daemon.core._fusion import (
    FUSION_METHODS,
    fuse_kernel_outputs,
    jko_proximal_step,
    normalize_confidences,
)
from usp_daemon.core._parameters import PredictorConfig
from usp_daemon.core._results import KernelOutput, PredictionResult
from usp_daemon.core._sinkhorn import compute_cost_matrix

DTYPES = [jnp.float32, jnp.float64]
EVEN = jnp.full(4, 0.25)


@functools.cache
def config_for(method: str = "jko", dtype=jnp.float64, **fields) -> PredictorConfig:
    return dataclasses.replace(PredictorConfig(fusion_method=method), **fields).as_arrays(dtype)


@jax.jit
def fuse(forecasts, confidences, weights, variance, config):
    outputs = [KernelOutput(forecasts[k], confidences[k], None) for k in range(4)]
    return fuse_kernel_outputs(outputs, weights, variance, config)


prox = jax.jit(jko_proximal_step)


def entropic_cost(source: np.ndarray, target: np.ndarray, cost: np.ndarray, epsilon: float) -> float:
    """Optimal ``<P, C> + eps sum P (log P - 1)``, in plain NumPy."""
    g = np.zeros(4)
    for _ in range(3000):
        f = np.log(source) - logsumexp(g[None, :] - cost / epsilon, axis=1)
        previous, g = g, np.log(target) - logsumexp(f[:, None] - cost / epsilon, axis=0)
        if np.max(np.abs(previous - g)) < 1e-14:
            break
    plan = np.exp(f[:, None] + g[None, :] - cost / epsilon)
    return float(np.sum(plan * cost) + epsilon * np.sum(plan * (np.log(plan) - 1.0)))


def random_step(seed: int):
    rng = np.random.default_rng(seed)
    cost = np.asarray(compute_cost_matrix(jnp.asarray(rng.normal(size=4)), PredictorConfig()))
    return rng.dirichlet(np.full(4, 2.0)), rng.dirichlet(np.full(4, 2.0)), cost


# -- confidences


def test_confidences_are_normalised_precisions() -> None:
    np.testing.assert_allclose(normalize_confidences(jnp.asarray([4.0, 2.0, 1.0, 1.0])), [0.5, 0.25, 0.125, 0.125])


@pytest.mark.parametrize(
    ("confidences", "expected"),
    [
        ([0.0, 0.0, 0.0, 0.0], [0.25] * 4),
        ([np.nan, np.nan, -1.0, 0.0], [0.25] * 4),
        ([np.nan, 1.0, -5.0, 1.0], [0.0, 0.5, 0.0, 0.5]),
        ([np.inf, 1.0, np.inf, 1.0], [0.5, 0.0, 0.5, 0.0]),
        ([1e308, 1e308, 1e308, 1e308], [0.25] * 4),
    ],
)
def test_confidences_out_of_the_ordinary(confidences, expected) -> None:
    np.testing.assert_allclose(normalize_confidences(jnp.asarray(confidences)), expected)


def test_the_better_expert_gains_weight() -> None:
    for method in FUSION_METHODS:
        result = fuse(jnp.arange(4.0), jnp.asarray([1.0, 9.0, 1.0, 1.0]), EVEN, jnp.asarray(1.0), config_for(method))
        assert float(result.updated_weights[1]) > 0.25
        assert np.argmax(result.updated_weights) == 1


# -- the specification's step


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("method", FUSION_METHODS)
def test_weights_stay_on_the_simplex(method: str, dtype) -> None:
    rng = np.random.default_rng(0)
    weights = jnp.full(4, 0.25, dtype)
    for _ in range(30):
        forecasts, confidences = (
            jnp.asarray(rng.normal(size=4), dtype),
            jnp.asarray(rng.exponential(size=4) ** 6, dtype),
        )
        result = fuse(forecasts, confidences, weights, jnp.asarray(rng.chisquare(1), dtype), config_for(method, dtype))
        weights = result.updated_weights
        PredictionResult.validate_simplex(weights, 1e-10 if dtype == jnp.float64 else 1e-6)
        assert float(weights.min()) >= 0.0
        np.testing.assert_allclose(result.fused_prediction, jnp.sum(weights * forecasts), rtol=1e-5, atol=1e-6)


def test_linear_step_is_the_convex_combination() -> None:
    weights = jnp.asarray([0.5, 0.2, 0.2, 0.1])
    confidences = jnp.asarray([0.1, 0.2, 0.3, 0.4])
    result = fuse(jnp.arange(4.0), confidences, weights, jnp.asarray(1.0), config_for(learning_rate=0.1))
    np.testing.assert_allclose(result.updated_weights, 0.9 * weights + 0.1 * confidences, atol=1e-15)
    # A worse expert than its weight says loses some of it.
    assert float(result.updated_weights[0]) < 0.5


@pytest.mark.parametrize("rate", [0.0, 1e-3, 1.0, 7.0])
@pytest.mark.parametrize("method", FUSION_METHODS)
def test_any_learning_rate_is_safe(method: str, rate: float) -> None:
    weights = jnp.asarray([0.97, 0.01, 0.01, 0.01])
    confidences = jnp.asarray([0.0, 0.0, 0.0, 1.0])
    result = fuse(jnp.arange(4.0), confidences, weights, jnp.asarray(1.0), config_for(method, learning_rate=rate))
    assert np.all(np.isfinite(result.updated_weights))
    if rate == 0.0:
        np.testing.assert_allclose(result.updated_weights, weights, atol=1e-4)
    if method == "jko" and rate >= 1.0:
        np.testing.assert_allclose(result.updated_weights, confidences, atol=1e-12)


def test_free_energy_is_the_regularised_cost_of_the_plan() -> None:
    weights, confidences, forecasts = (
        jnp.asarray([0.4, 0.3, 0.2, 0.1]),
        jnp.asarray([1.0, 2, 3, 4]),
        jnp.asarray([0.0, 1, 3, 4]),
    )
    config = config_for(sinkhorn_max_iter=5000)
    result = fuse(forecasts, confidences, weights, jnp.asarray(1.0), config)
    cost = np.asarray(compute_cost_matrix(forecasts, config))
    expected = entropic_cost(np.asarray(weights), np.asarray(confidences) / 10.0, cost, float(result.sinkhorn_epsilon))
    assert float(result.free_energy) == pytest.approx(expected, abs=1e-7)
    assert bool(result.sinkhorn_converged)


# -- the proximal step


@jax.jit
@jax.value_and_grad
def proximal_objective(logits, current, target, cost, tangent, epsilon, tau):
    """The objective over whole plans whose rows sum to ``current``: no Sinkhorn iteration anywhere."""
    plan = current[:, None] * jax.nn.softmax(logits.reshape(4, 4), axis=1)
    weights = jnp.sum(plan, axis=0)
    moved = jnp.sum(plan * cost) + epsilon * jnp.sum(plan * (jnp.log(plan) - 1.0)) - jnp.sum(weights * tangent)
    energy = jnp.sum(weights * jnp.log(weights / target)) + epsilon * jnp.sum(weights * jnp.log(weights))
    return moved / (2.0 * tau) + energy


@pytest.mark.parametrize(("seed", "epsilon", "tau"), [(0, 0.15, 0.05), (1, 0.3, 0.3), (2, 0.5, 0.01), (3, 1.0, 1.0)])
def test_proximal_step_is_the_direct_minimiser(seed: int, epsilon: float, tau: float) -> None:
    current, target, cost = random_step(seed)
    kernel = np.exp(-cost / epsilon)
    slope = np.sqrt(current)
    for _ in range(300):
        slope = np.sqrt(slope * current / (kernel @ slope))
    np.testing.assert_allclose(slope * (kernel @ slope), current, atol=1e-12)
    arguments = (current, target, cost, epsilon * np.log(slope), epsilon, tau)
    best = scipy.optimize.minimize(
        lambda logits: tuple(np.asarray(part) for part in proximal_objective(logits, *arguments)),
        -cost.ravel() / epsilon,
        jac=True,
        method="BFGS",
        options={"gtol": 1e-9, "maxiter": 5000},
    )
    expected = np.asarray(current @ np.asarray(jax.nn.softmax(jnp.asarray(best.x.reshape(4, 4)), axis=1)))
    step = prox(*map(jnp.asarray, (current, target, cost)), jnp.asarray(epsilon), jnp.asarray(tau), config_for())
    np.testing.assert_allclose(step.weights, expected, atol=2e-6)
    assert float(step.max_err) < 1e-8


@pytest.mark.parametrize("epsilon", [0.05, 0.15, 1.0])
def test_proximal_step_of_no_size_stays(epsilon: float) -> None:
    current, target, cost = random_step(4)
    step = prox(*map(jnp.asarray, (current, target, cost)), jnp.asarray(epsilon), jnp.asarray(1e-9), config_for())
    np.testing.assert_allclose(step.weights, current, atol=1e-6)


@pytest.mark.parametrize("epsilon", [0.15, 1.0])
def test_proximal_step_of_great_size_ends_at_the_tempered_target(epsilon: float) -> None:
    current, target, cost = random_step(5)
    config = config_for(sinkhorn_max_iter=200_000)
    step = prox(*map(jnp.asarray, (current, target, cost)), jnp.asarray(epsilon), jnp.asarray(1e3), config)
    tempered = target ** (1.0 / (1.0 + epsilon))
    np.testing.assert_allclose(step.weights, tempered / tempered.sum(), atol=2e-3)


def test_proximal_step_rests_at_the_tempered_target() -> None:
    _, target, cost = random_step(6)
    tempered = target ** (1.0 / 1.15)
    tempered /= tempered.sum()
    step = prox(*map(jnp.asarray, (tempered, target, cost)), jnp.asarray(0.15), jnp.asarray(0.05), config_for())
    np.testing.assert_allclose(step.weights, tempered, atol=1e-8)


def test_repeated_proximal_steps_arrive_and_never_climb() -> None:
    weights, target, cost = random_step(7)
    epsilon = 0.5

    def energy(w: np.ndarray) -> float:
        return float(np.sum(w * np.log(w / target)) + epsilon * np.sum(w * np.log(w)))

    energies = [energy(weights)]
    for _ in range(400):
        arguments = map(jnp.asarray, (weights, target, cost, epsilon, 0.5))
        weights = np.asarray(prox(*arguments, config_for()).weights)
        energies.append(energy(weights))
    assert np.all(np.diff(energies) <= 1e-9)
    tempered = target ** (1.0 / (1.0 + epsilon))
    np.testing.assert_allclose(weights, tempered / tempered.sum(), atol=1e-3)


@pytest.mark.parametrize("power_of_ten", range(5))
def test_regularised_energy_spreads_the_weights(power_of_ten: int) -> None:
    epsilon = 10.0**power_of_ten
    weights, cost = EVEN, jnp.asarray(random_step(8)[2])
    target = jax.nn.softmax(-jnp.asarray([1.0, 5.0, 0.2, 0.1]))
    for _ in range(200):
        weights = prox(weights, target, cost, jnp.asarray(epsilon), jnp.asarray(1.0), config_for()).weights
    deviation = float(jnp.max(jnp.abs(weights - 0.25)))
    if power_of_ten == 2:
        assert deviation == pytest.approx(0.0085, rel=0.2)
    if power_of_ten == 4:
        assert deviation < 2e-4


def test_the_plan_decides_the_move() -> None:
    # Two experts deserve more weight alike; one speaks like the present favourite, the other against it.
    weights = jnp.asarray([0.85, 0.05, 0.05, 0.05])
    confidences = jnp.asarray([0.2, 1.0, 1.0, 0.2])
    config = config_for("jko_proximal")
    result = fuse(jnp.asarray([0.0, 0.05, 1.0, 0.6]), confidences, weights, jnp.asarray(1.0), config)
    gained = np.asarray(result.updated_weights - weights)
    assert gained[1] > 5.0 * gained[2] > 0.0
    np.testing.assert_allclose(result.sinkhorn_transport.sum(1), weights, atol=1e-8)
    np.testing.assert_allclose(result.sinkhorn_transport.sum(0), result.updated_weights, atol=1e-8)


def test_a_lost_expert_can_return() -> None:
    weights = jnp.asarray([0.0, 0.0, 0.0, 1.0])
    config = config_for("jko_proximal")
    forecasts, confidences = jnp.asarray([0.0, 0.1, 0.2, 0.3]), jnp.asarray([1.0, 0.01, 0.01, 0.01])
    for _ in range(400):
        weights = fuse(forecasts, confidences, weights, jnp.asarray(1.0), config).updated_weights
    assert float(weights[0]) > 0.5


@pytest.mark.parametrize(
    ("name", "ends"),
    [
        ("sinkhorn_alpha", (0.1, 1.0)),
        ("sinkhorn_epsilon_0", (0.05, 0.5)),
        ("sinkhorn_epsilon_min", (1e-3, 0.1)),
        ("learning_rate", (1e-3, 0.1)),
    ],
)
def test_every_parameter_of_the_step_moves_the_forecast(name: str, ends: tuple[float, float]) -> None:
    forecasts, confidences = jnp.asarray([0.0, 0.3, 0.9, 2.0]), jnp.asarray([1.0, 3.0, 0.3, 0.1])
    moved = []
    for value in ends:
        weights, config = EVEN, config_for("jko_proximal", **{name: value})
        for _ in range(20):
            result = fuse(forecasts, confidences, weights, jnp.asarray(0.25), config)
            weights = result.updated_weights
        moved.append(float(result.fused_prediction))
    assert abs(moved[0] - moved[1]) > 1e-3


@pytest.mark.parametrize("dtype", DTYPES)
def test_proximal_step_in_logarithms_is_the_same(dtype) -> None:
    current, target, cost = (jnp.asarray(x, dtype) for x in random_step(9))
    limit = 495.0 if dtype == jnp.float64 else 61.0
    # Just inside and just outside of the kernel's range the answers must meet.
    scale = limit / float(cost.max())
    config = config_for(dtype=dtype, sinkhorn_max_iter=5000)
    one = jnp.ones((), dtype)
    inside = prox(current, target, cost, one / (0.98 * scale), one * 0.05, config)
    outside = prox(current, target, cost, one / (1.02 * scale), one * 0.05, config)
    assert not bool(inside.log_domain)
    assert bool(outside.log_domain)
    np.testing.assert_allclose(inside.weights, outside.weights, atol=0.03)
    np.testing.assert_allclose(outside.plan.sum(1), current, atol=1e-5)


# -- holding


@jax.jit
def fuse_or_hold(forecasts, weights, hold, held, config):
    outputs = [KernelOutput(forecasts[k], 1.0 + forecasts[k], None) for k in range(4)]
    return fuse_kernel_outputs(outputs, weights, jnp.asarray(1.0), config, hold=hold, held_weights=held)


@pytest.mark.parametrize("method", FUSION_METHODS)
def test_held_weights_are_used_and_cost_nothing(method: str) -> None:
    forecasts, corner, config = jnp.arange(4.0), jnp.asarray([0.0, 0.0, 0.0, 1.0]), config_for(method)
    result = fuse_or_hold(forecasts, EVEN, jnp.asarray(True), corner, config)
    np.testing.assert_array_equal(result.updated_weights, corner)
    assert float(result.fused_prediction) == 3.0
    assert (float(result.free_energy), int(result.sinkhorn_iterations)) == (0.0, 0)
    assert not bool(result.sinkhorn_converged)
    np.testing.assert_array_equal(result.sinkhorn_transport, np.diag(corner))
    np.testing.assert_array_equal(fuse_or_hold(forecasts, EVEN, jnp.asarray(True), None, config).updated_weights, EVEN)
    free = fuse_or_hold(forecasts, EVEN, jnp.asarray(False), corner, config)
    np.testing.assert_allclose(
        free.updated_weights,
        fuse(forecasts, 1.0 + forecasts, EVEN, jnp.asarray(1.0), config).updated_weights,
        atol=1e-12,
    )


# -- robustness


@pytest.mark.parametrize("method", FUSION_METHODS)
@hypothesis.settings(max_examples=40)
@hypothesis.given(
    st.lists(st.floats(), min_size=4, max_size=4),
    st.lists(st.floats(), min_size=4, max_size=4),
    st.lists(st.floats(0, 1), min_size=4, max_size=4),
    st.floats(0, 1e12),
)
def test_any_outputs_give_weights(method, forecasts, confidences, weights, variance) -> None:
    arguments = map(jnp.asarray, (np.clip(forecasts, -1e300, 1e300), confidences, weights, variance))
    result = fuse(*arguments, config_for(method))
    for leaf in jax.tree.leaves(result):
        assert np.all(np.isfinite(np.asarray(leaf, np.float64)))
    PredictionResult.validate_simplex(result.updated_weights, 1e-10)


def test_a_broken_expert_gets_no_weight() -> None:
    config = config_for(learning_rate=1.0)
    result = fuse(jnp.asarray([np.nan, 1.0, 1.0, np.inf]), jnp.ones(4), EVEN, jnp.asarray(1.0), config)
    np.testing.assert_allclose(result.updated_weights, [0.0, 0.5, 0.5, 0.0], atol=1e-12)
    assert float(result.fused_prediction) == pytest.approx(1.0)


@pytest.mark.parametrize("method", FUSION_METHODS)
def test_gradients_are_finite(method: str) -> None:
    for forecasts in (jnp.zeros(4), jnp.arange(4.0), jnp.asarray([0.0, 0.0, 1.0, 1e6])):
        for weights in (EVEN, jnp.asarray([0.0, 0.0, 0.0, 1.0])):
            gradients = jax.grad(
                lambda f, c, w, v: fuse(f, c, w, v, config_for(method)).fused_prediction, argnums=(0, 1, 2, 3)
            )(forecasts, jnp.asarray([0.0, 1.0, 2.0, 3.0]), weights, jnp.asarray(0.0))
            assert all(bool(jnp.all(jnp.isfinite(gradient))) for gradient in gradients)
            # What the forecasts weigh is the derivative by them.
            used = fuse(forecasts, jnp.asarray([0.0, 1.0, 2.0, 3.0]), weights, jnp.asarray(0.0), config_for(method))
            np.testing.assert_allclose(gradients[0], used.updated_weights, atol=1e-9)


@pytest.mark.parametrize("method", FUSION_METHODS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_lane_does_not_depend_on_its_company(method: str, dtype) -> None:
    rng = np.random.default_rng(3)
    width = 32
    batch = jax.jit(jax.vmap(fuse.__wrapped__, in_axes=(0, 0, 0, 0, None)))
    mine, theirs = (
        tuple(
            jnp.asarray(x, dtype)
            for x in (
                rng.normal(size=(width, 4)),
                rng.exponential(size=(width, 4)) ** 5,
                rng.dirichlet(np.ones(4), width),
                rng.chisquare(1, width),
            )
        )
        for _ in range(2)
    )
    config = config_for(method, dtype)
    reference = batch(*mine, config)
    mixed = batch(*(b.at[7].set(a[20]) for a, b in zip(mine, theirs, strict=True)), config)
    for expected, got in zip(jax.tree.leaves(reference), jax.tree.leaves(mixed), strict=True):
        np.testing.assert_array_equal(np.asarray(expected)[20], np.asarray(got)[7])


def test_unknown_method_is_refused() -> None:
    with pytest.raises(ValueError, match="fusion_method must be one of jko, jko_proximal, got 'magic'"):
        fuse(EVEN, EVEN, EVEN, jnp.asarray(1.0), config_for("magic"))
