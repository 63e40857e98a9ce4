"""What learners take along into another structure, against regressions solved anew and signatures computed anew."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from usp_daemon.core import DGM_TIERS, PredictorConfig, _migration
from usp_daemon.core._kernels import deep_galerkin, signature


def regression(samples, targets, prior_precision=1.0):
    """Coefficients and covariance of a ridge regression, by the normal equations."""
    covariance = np.linalg.inv(samples.T @ samples + prior_precision * np.eye(samples.shape[1]))
    return covariance @ (samples.T @ targets), covariance


@pytest.mark.parametrize("kept", [[0, 1, 2], [0, 3, 6], [5], [0, 1, 2, 3, 4, 5, 6], [1, 2, 4, 6]])
def test_without_some_regressors_it_is_the_regression_on_the_others(kept):
    rng = np.random.default_rng(0)
    kept = np.array(kept)
    coefficients, roots, expected = [], [], []
    for _ in range(5):
        samples = rng.normal(size=(40, 7)) @ rng.normal(size=(7, 7))  # strongly correlated
        targets = samples @ rng.normal(size=7) + rng.normal(size=40)
        theta, covariance = regression(samples, targets)
        rotation = np.linalg.qr(rng.normal(size=(7, 7)))[0]  # any square root of the covariance serves
        coefficients.append(theta)
        roots.append(np.linalg.cholesky(covariance) @ rotation)
        expected.append(regression(samples[:, kept], targets))
    theta, root = _migration.reduced_regression(np.stack(coefficients), np.stack(roots), kept)
    for i, (expected_theta, expected_covariance) in enumerate(expected):
        assert np.allclose(theta[i], expected_theta, rtol=1e-9, atol=1e-12)
        assert np.allclose(root[i] @ root[i].T, expected_covariance, rtol=1e-9, atol=1e-12)


def test_a_regressor_without_a_share_leaves_every_bit():
    rng = np.random.default_rng(1)
    coefficients, root = rng.normal(size=(3, 5)), rng.normal(size=(3, 5, 5))
    root[:, 4, :4] = root[:, :4, 4] = 0.0
    root[0, 4, 1] = 0.5  # the first symbol's has one
    theta, reduced = _migration.reduced_regression(coefficients, root, np.arange(4))
    assert theta[1:].tobytes() == coefficients[1:, :4].tobytes()
    assert reduced[1:].tobytes() == root[1:, :4, :4].tobytes()
    assert not np.allclose(theta[0], coefficients[0, :4])


def test_certain_and_repeated_coefficients_stay_finite():
    root = np.zeros((2, 4, 4))
    root[0] = np.outer(np.ones(4), [1.0, 0.0, 0.0, 0.0])  # all coefficients are one
    root[1, 0, 0] = 1.0  # three are known exactly
    theta, reduced = _migration.reduced_regression(np.ones((2, 4)), root, np.array([0, 1]))
    assert np.isfinite(theta).all()
    assert np.isfinite(reduced).all()
    assert np.allclose(reduced[0], 0.0)


@pytest.mark.parametrize("depth", [1, 2, 4])
@pytest.mark.parametrize("window", [2, 5, 16])
def test_signatures_of_windows(window, depth):
    increments = np.random.default_rng(window).normal(size=(200, window + 1))  # more than one chunk
    expected = jax.vmap(lambda row: signature.window_signature(row, depth))(jnp.asarray(increments))
    found = _migration.window_signatures(increments, depth)
    assert len(found) == depth
    for left, right in zip(found, expected, strict=True):
        assert left.shape == right.shape
        assert np.allclose(left, right, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("window", [2, 8, 16])
def test_a_word_means_the_same_at_every_depth(window):
    deepest = signature.word_scales(4, window)
    for depth in (1, 2, 3):
        scales = signature.word_scales(depth, window)
        assert np.array_equal(scales, deepest[: scales.size])
    words = signature.algebra.lyndon_words(signature.DIMENSION, 5)
    assert words[: signature.num_features(3)] == signature.algebra.lyndon_words(signature.DIMENSION, 3)


@pytest.mark.parametrize("cap", [0.5, 1.0, 2.0, 4.0, 100.0])
@pytest.mark.parametrize("tier", range(len(DGM_TIERS)))
def test_the_highest_tier_without_a_device(tier, cap):
    width, depth = DGM_TIERS[tier]
    config = dataclasses.replace(PredictorConfig(), dgm_width_size=width, dgm_depth=depth, dgm_scaling_cap=cap)
    assert deep_galerkin.highest_tier_on_host(config) == int(deep_galerkin.highest_tier(config.as_arrays()))
