"""The recursive regression: equal to the batch solution, and never indefinite."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from usp_daemon.core import _recursive_ridge as ridge


def _batch_solution(
    features: np.ndarray, targets: np.ndarray, weights: np.ndarray, ridge_strength: float
) -> np.ndarray:
    gram = features.T @ (weights[:, None] * features) + ridge_strength * np.eye(features.shape[1])
    return np.linalg.solve(gram, features.T @ (weights * targets))


def _fit(state, features, targets, weights, forgetting, max_variance):
    def step(carry, sample):
        x, y, w = sample
        return ridge.update(carry, x, y, forgetting, w, max_variance), None

    return jax.jit(lambda s, data: jax.lax.scan(step, s, data)[0])(state, (features, targets, weights))


@pytest.mark.parametrize("weighted", [False, True])
def test_without_forgetting_it_is_the_batch_ridge_solution(weighted: bool) -> None:
    generator = np.random.default_rng(1)
    num, size, strength = 400, 6, 0.3
    features = generator.standard_normal((num, size))
    targets = features @ generator.standard_normal(size) + generator.standard_normal(num)
    weights = generator.uniform(0.1, 1.0, num) if weighted else np.ones(num)
    prior = jnp.asarray(1.0 / strength)
    state = _fit(
        ridge.init(size, prior),
        jnp.asarray(features), jnp.asarray(targets), jnp.asarray(weights), jnp.asarray(1.0), prior,
    )  # fmt: skip
    expected = _batch_solution(features, targets, weights, strength)
    np.testing.assert_allclose(state.coefficients, expected, rtol=1e-9, atol=1e-11)
    covariance = np.linalg.inv(features.T @ (weights[:, None] * features) + strength * np.eye(size))
    np.testing.assert_allclose(state.root @ state.root.T, covariance, rtol=1e-8, atol=1e-12)
    x = generator.standard_normal(size)
    np.testing.assert_allclose(ridge.predict(state, jnp.asarray(x)), expected @ x, rtol=1e-9)
    np.testing.assert_allclose(ridge.leverage(state, jnp.asarray(x)), x @ covariance @ x, rtol=1e-8)


def test_forgetting_is_an_exponential_window() -> None:
    generator = np.random.default_rng(2)
    num, size, forgetting = 600, 3, 0.99
    features = generator.standard_normal((num, size))
    # The law changes halfway: with forgetting the second half must win.
    coefficients = np.where(np.arange(num)[:, None] < 300, [[1.0, -1.0, 0.5]], [[-2.0, 0.0, 1.0]])
    targets = np.sum(features * coefficients, axis=1) + 0.1 * generator.standard_normal(num)
    prior = jnp.asarray(1e6)
    state = _fit(
        ridge.init(size, prior),
        jnp.asarray(features), jnp.asarray(targets), jnp.ones(num), jnp.asarray(forgetting), prior,
    )  # fmt: skip
    discounts = forgetting ** np.arange(num - 1, -1, -1.0)
    expected = _batch_solution(features, targets, discounts, 1e-6 * forgetting**num)
    np.testing.assert_allclose(state.coefficients, expected, rtol=1e-6, atol=1e-8)


def test_a_sample_without_weight_teaches_nothing() -> None:
    prior = jnp.asarray(2.0)
    state = ridge.init(3, prior)
    x = jnp.asarray([1.0, -2.0, 0.5])
    state = ridge.update(state, x, jnp.asarray(1.0), jnp.asarray(1.0), jnp.asarray(1.0), prior)
    after = ridge.update(state, x, jnp.asarray(1e3), jnp.asarray(1.0), jnp.asarray(0.0), prior)
    np.testing.assert_allclose(after.coefficients, state.coefficients, atol=1e-8)
    np.testing.assert_allclose(after.root, state.root, atol=1e-10)


def _trained(prior) -> ridge.RidgeState:
    state = ridge.init(3, prior)
    for k in range(30):
        x = jnp.asarray([np.sin(k), np.cos(2.0 * k), 1.0])
        state = ridge.update(state, x, jnp.asarray(float(k % 3)), jnp.asarray(1.0), jnp.asarray(1.0), prior)
    return state


@pytest.mark.parametrize("factor", [1.0, 4.0, 1e9])
def test_a_discount_is_a_tick_of_much_forgetting_without_a_sample(factor: float) -> None:
    prior = jnp.asarray(1.0)
    state = _trained(prior)
    less = ridge.discount(state, jnp.asarray(factor), prior)
    one = jnp.asarray(1.0)
    expected = ridge.update(state, jnp.zeros(3), one, jnp.asarray(1.0 / factor), one, prior)
    np.testing.assert_array_equal(less.coefficients, state.coefficients)
    np.testing.assert_allclose(less.root, expected.root, rtol=1e-12)
    before, after = (np.sum(np.square(np.asarray(each.root)), axis=1) for each in (state, less))
    np.testing.assert_allclose(after, np.minimum(factor * before, 1.0), rtol=1e-12)


def test_a_variance_above_the_bound_is_not_made_larger_by_a_discount() -> None:
    state = _trained(jnp.asarray(1.0))
    less = ridge.discount(state, jnp.asarray(4.0), jnp.asarray(1e-9))
    np.testing.assert_array_equal(less.root, state.root)


def test_a_regime_change_makes_the_past_count_a_quarter() -> None:
    memory = jnp.asarray(200.0)
    assert float(ridge.forgetting(memory, jnp.asarray(False))) == pytest.approx(0.995)
    assert float(ridge.forgetting(memory, jnp.asarray(True))) == pytest.approx(0.25)


@pytest.mark.parametrize("prior", [1.0, 1e6])
def test_float32_stays_positive_definite_over_a_million_dead_constant_and_wild_ticks(prior: float) -> None:
    size, num = 6, 500_000
    bound = jnp.asarray(prior, jnp.float32)
    forgetting = jnp.asarray(0.995, jnp.float32)

    def sample(index, key):
        noise = jax.random.normal(key, (size + 1,), jnp.float32)
        phase = (index // 1000) % 5
        dead = jnp.zeros_like(noise)
        constant = jnp.full_like(noise, 3.0)
        collinear = jnp.full_like(noise, 1.0) * noise[0]
        wild = noise * jnp.exp(4.0 * noise[::-1])
        row = jnp.stack([dead, constant, collinear, wild, noise])[phase]
        return row[:size], row[size]

    def step(state, index):
        x, y = sample(index, jax.random.fold_in(jax.random.key(3), index))
        state = ridge.update(state, x, y, forgetting, jnp.asarray(1.0, jnp.float32), bound)
        variances = jnp.sum(state.root * state.root, axis=1)
        healthy = jnp.all(jnp.isfinite(state.coefficients)) & jnp.all(jnp.isfinite(state.root))
        return state, (healthy, jnp.max(variances))

    state, (healthy, variances) = jax.jit(lambda s: jax.lax.scan(step, s, jnp.arange(num, dtype=jnp.int32)))(
        ridge.init(size, bound)
    )
    assert bool(jnp.all(healthy))
    assert float(jnp.max(variances)) <= prior * 1.001
    covariance = np.asarray(state.root, np.float64) @ np.asarray(state.root, np.float64).T
    assert np.all(np.diag(covariance) > 0)
    assert np.linalg.eigvalsh(covariance).min() > -1e-12 * np.trace(covariance)
    # It still learns, once the window has let go of wild samples (up to 1e17 times the power of an ordinary one).
    generator = np.random.default_rng(4)
    truth = generator.standard_normal(size)
    features = generator.standard_normal((12_000, size)).astype(np.float32)
    targets = (features @ truth).astype(np.float32)
    learnt = _fit(state, jnp.asarray(features), jnp.asarray(targets), jnp.ones(12_000, jnp.float32), forgetting, bound)
    np.testing.assert_allclose(learnt.coefficients, truth, atol=0.02)


@pytest.mark.parametrize("size", [3, 6, 24])
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-9), (np.float32, 1e-3)])
def test_one_update_is_forgetting_potter_s_step_and_bound_in_turn(size: int, dtype, tolerance: float) -> None:
    # Each on its own, on the covariance itself and in float64; the bound binds for some coefficients only.
    generator = np.random.default_rng(size)
    root = generator.standard_normal((size, size)).astype(dtype)
    coefficients, features = generator.standard_normal((2, size)).astype(dtype)
    forgetting, weight, bound = 0.98, 0.7, 1.1 * float(np.median(np.sum(root**2, axis=1)))
    arguments = [jnp.asarray(value, dtype) for value in (1.7, forgetting, weight, bound)]
    state = ridge.RidgeState(jnp.asarray(coefficients), jnp.asarray(root))
    updated = ridge.update(state, jnp.asarray(features), *arguments)

    wide = root.astype(np.float64)
    covariance = wide @ wide.T / forgetting
    gain = covariance @ features / (1.0 / weight + features @ covariance @ features)
    covariance = covariance - np.outer(gain, features @ covariance)
    variances = np.diag(covariance)
    scale = np.sqrt(np.minimum(1.0, bound / variances))
    assert 0 < np.sum(variances > bound) < size
    expected = scale[:, None] * covariance * scale[None, :]
    found = np.asarray(updated.root, np.float64)
    np.testing.assert_allclose(found @ found.T, expected, atol=tolerance * np.max(np.abs(expected)))
    expected = coefficients + gain * (1.7 - coefficients @ features)
    np.testing.assert_allclose(updated.coefficients, expected, rtol=tolerance, atol=tolerance)
