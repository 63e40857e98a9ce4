"""Alpha-stable laws against tabulated values, SciPy and their defining properties."""

import math

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from usp_daemon.core import _stable as stable


def draw(seed, num, tail_index, skewness=0.0, scale=1.0, location=0.0, dtype=jnp.float64):
    key = jax.random.key(seed)
    return stable.sample(key, (num,), jnp.asarray(tail_index, dtype), jnp.asarray(skewness, dtype), scale, location)


@pytest.mark.parametrize(
    ("tail_index", "expected"),
    [(1.5, (0.9689, 2.0615, 3.0519)), (1.8, (0.9598, 1.8803, 2.5049)), (1.0, (1.0, 3.0777, 6.3138))],
)
def test_quantiles_known(tail_index, expected):
    quantiles = stable.table_quantiles(jnp.asarray(tail_index))
    np.testing.assert_allclose(quantiles[:3], expected, atol=1e-4)


def test_gaussian_end_of_the_table():
    expected = math.sqrt(2.0) * scipy.stats.norm.ppf(stable.TABLE_LEVELS)
    np.testing.assert_allclose(stable.table_quantiles(jnp.asarray(2.0)), expected, rtol=1e-6)


def test_table_is_what_its_function_gives():
    logs = [[stable.symmetric_quantile(level, a) for level in stable.TABLE_LEVELS] for a in (0.5, 0.8, 1.3, 1.9)]
    for a, row in zip((0.5, 0.8, 1.3, 1.9), logs, strict=True):
        np.testing.assert_allclose(stable.table_quantiles(jnp.asarray(a)), row, rtol=1e-5)


@pytest.mark.parametrize("tail_index", [0.7, 1.25, 1.75])
def test_interpolation_between_tabled_indices(tail_index):
    exact = [stable.symmetric_quantile(level, tail_index) for level in stable.TABLE_LEVELS]
    np.testing.assert_allclose(stable.table_quantiles(jnp.asarray(tail_index)), exact, rtol=0.02)


@pytest.mark.parametrize("tail_index", [0.6, 0.9, 1.1, 1.5, 1.9])
def test_distribution_against_scipy(tail_index):
    for x in (-1.5, 0.3, 2.0, 9.0):
        expected = scipy.stats.levy_stable.cdf(x, tail_index, 0.0)
        assert stable.symmetric_distribution(x, tail_index) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("tail_index", [0.5, 0.8, 1.2, 1.5, 1.8, 2.0])
def test_ratio_and_tail_index_are_inverse(tail_index):
    ratio = stable.ratio_from_tail_index(jnp.asarray(tail_index))
    assert float(stable.tail_index_from_ratio(ratio)) == pytest.approx(tail_index, abs=1e-9)


def test_tail_index_is_clipped_beyond_the_table():
    assert float(stable.tail_index_from_ratio(jnp.asarray(1.7))) == 2.0
    assert float(stable.tail_index_from_ratio(jnp.asarray(1e9))) == 0.5


@pytest.mark.parametrize(("tail_index", "skewness"), [(1.5, 0.5), (1.8, 0.0), (1.2, 0.0), (1.0, 0.5), (0.7, -0.4)])
def test_sampler_against_scipy(tail_index, skewness):
    """Kolmogorov distance to SciPy's distribution function; its 0.999 quantile over sqrt(n) is 1.95 (fixed seed)."""
    num = 10_000
    sample = np.sort(np.asarray(draw(1, num, tail_index, skewness)))
    assert np.all(np.isfinite(sample))
    points = np.quantile(sample, np.linspace(0.01, 0.99, 50))
    empirical = np.searchsorted(sample, points, side="right") / num
    expected = scipy.stats.levy_stable.cdf(points, tail_index, skewness)
    assert np.max(np.abs(empirical - expected)) < 1.95 / math.sqrt(num)


@pytest.mark.parametrize("tail_index", [0.8, 1.2, 1.5, 1.8])
@pytest.mark.parametrize("method", ["quantiles", "characteristic_function"])
def test_parameters_recovered(tail_index, method):
    """Mean estimate over 25 samples of 4000 within four of its own standard errors and 1 % of the truth."""
    fit = stable.fit_quantiles if method == "quantiles" else stable.fit_characteristic_function
    samples = draw(2, 100_000, tail_index, scale=3.0, location=-5.0).reshape(25, 4000)
    fits = jax.vmap(fit)(samples)
    for name, truth, unit in (("tail_index", tail_index, 1.0), ("scale", 3.0, 3.0), ("location", -5.0, 3.0)):
        estimates = np.asarray(getattr(fits, name))
        error = 4.0 * np.std(estimates, ddof=1) / 5.0
        assert abs(np.mean(estimates) - truth) < error + 0.01 * unit, name
        assert error < 0.2 * unit, name


def test_characteristic_function_fit_survives_skewness():
    samples = draw(3, 100_000, 1.5, skewness=0.8, scale=2.0).reshape(25, 4000)
    fits = jax.vmap(stable.fit_characteristic_function)(samples)
    assert float(jnp.mean(fits.tail_index)) == pytest.approx(1.5, abs=0.03)
    assert float(jnp.mean(fits.scale)) == pytest.approx(2.0, rel=0.03)


@pytest.mark.parametrize("tail_index", [0.6, 1.0, 1.5, 2.0])
def test_characteristic_function_at_one(tail_index):
    sample = draw(4, 400_000, tail_index, skewness=0.3)
    value = jnp.hypot(jnp.mean(jnp.cos(sample)), jnp.mean(jnp.sin(sample)))
    assert float(-jnp.log(value)) == pytest.approx(1.0, abs=0.015)


def test_median_of_a_symmetric_law():
    assert abs(float(jnp.median(draw(5, 5000, 1.8)))) < 0.1


@pytest.mark.parametrize("tail_index", [0.6, 1.0, 1.5, 2.0])
def test_median_within_its_standard_error(tail_index):
    """The density at the median is Gamma(1 + 1/alpha) / pi, so the median's standard error is known for every alpha."""
    num, scale, location = 20_000, 2.5, 7.0
    density = math.gamma(1.0 + 1.0 / tail_index) / (math.pi * scale)
    error = 0.5 / (density * math.sqrt(num))
    median = float(jnp.median(draw(6, num, tail_index, scale=scale, location=location)))
    assert abs(median - location) < 4.0 * error


SAMPLE = jax.jit(lambda seed, a, b, s: stable.sample(jax.random.key(seed), (2000,), a, b, s))


@hypothesis.given(
    tail_index=st.floats(0.5, 2.0), skewness=st.floats(-1.0, 1.0), scale=st.floats(0.1, 10.0), seed=st.integers(0, 9999)
)
@hypothesis.settings(max_examples=60)
def test_draws_finite_and_of_the_right_size(tail_index, skewness, scale, seed):
    sample = SAMPLE(seed, jnp.asarray(tail_index), jnp.asarray(skewness), jnp.asarray(scale))
    assert bool(jnp.all(jnp.isfinite(sample)))
    assert float(jnp.log(jnp.mean(jnp.log1p(jnp.abs(sample))))) < math.log(50.0)
    if tail_index >= 1.8:
        # sd of the Gaussian with the same interquartile range: sqrt(2) scale at alpha 2, a little more below
        q25, q75 = jnp.quantile(sample, jnp.asarray([0.25, 0.75]))
        assert 1.2 * scale < float(q75 - q25) / 1.349 < 1.7 * scale


@pytest.mark.parametrize("tail_index", [0.7, 1.0, 1.5, 1.9])
def test_sums_of_independent_draws_are_stable(tail_index):
    first, second = draw(7, 5000, tail_index, scale=1.0), draw(8, 5000, tail_index, scale=3.0)
    scale = (1.0 + 3.0**tail_index) ** (1.0 / tail_index)
    expected = draw(9, 5000, tail_index, scale=scale)
    assert scipy.stats.ks_2samp(np.asarray(first + second), np.asarray(expected)).pvalue > 1e-3
    # and the check can fail: the scale of the sum is not the sum of the scales
    if tail_index > 1.2:
        wrong = draw(9, 5000, tail_index, scale=4.0)
        assert scipy.stats.ks_2samp(np.asarray(first + second), np.asarray(wrong)).pvalue < 1e-3


@pytest.mark.parametrize("tail_index", [0.5, 0.99, 1.0, 1.01, 2.0])
def test_single_precision_draws_are_finite(tail_index):
    sample = draw(10, 200_000, tail_index, skewness=0.9, dtype=jnp.float32)
    assert sample.dtype == jnp.float32
    assert bool(jnp.all(jnp.isfinite(sample)))


def test_fits_of_a_constant_sample_are_finite():
    constant = jnp.full((100,), 3.0)
    for fit in (stable.fit_quantiles, stable.fit_characteristic_function):
        assert all(bool(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(fit(constant)))
