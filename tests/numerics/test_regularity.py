"""Regularity estimates against paths whose exponents are known, and the maxima lines' own rules."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from usp_daemon.core._parameters import HISTORY_CAPACITY, WTMM_CAPACITY, PredictorConfig
from usp_daemon.core._regularity import RegularityResult, estimate_regularity, holder, wtmm


@functools.lru_cache(maxsize=16)
def fractional_brownian_motion(exponent, length, paths, seed):
    """Exact samples by circulant embedding (Davies and Harte 1987)."""
    lags = np.arange(length + 1.0)
    covariance = 0.5 * (
        np.abs(lags + 1) ** (2 * exponent) - 2 * lags ** (2 * exponent) + np.abs(lags - 1) ** (2 * exponent)
    )
    eigenvalues = np.fft.fft(np.concatenate([covariance, covariance[-2:0:-1]])).real
    assert eigenvalues.min() > -1e-10
    size, rng = eigenvalues.size, np.random.default_rng(seed)
    noise = rng.normal(size=(paths, size)) + 1j * rng.normal(size=(paths, size))
    increments = np.fft.fft(noise * np.sqrt(np.maximum(eigenvalues, 0) / size), axis=1).real[:, :length]
    return np.cumsum(increments, axis=1)


@jax.jit
def estimate_all(histories, length, config):
    return jax.vmap(lambda history: estimate_regularity(history, length, config))(histories)


def estimate(paths, dtype=jnp.float64, length=None, **parameters):
    paths = np.atleast_2d(paths)
    filler = np.repeat(paths[:, :1], HISTORY_CAPACITY - paths.shape[1], axis=1)
    config = PredictorConfig(**{"wtmm_buffer_size": WTMM_CAPACITY, **parameters}).as_arrays(dtype)
    length = jnp.asarray(paths.shape[1] if length is None else length, jnp.int32)
    result = estimate_all(jnp.asarray(np.concatenate([filler, paths], axis=1), dtype), length, config)
    return jax.tree.map(np.asarray, result)


def maxima_lines(path, cone=1.5):
    signal = jnp.asarray(path[-WTMM_CAPACITY:] - path[-WTMM_CAPACITY])
    inside = jnp.ones((WTMM_CAPACITY,), bool)

    @jax.jit
    def lines_of(signal, cone):
        maxima = wtmm.modulus_maxima(wtmm.wavelet_transform(signal), inside)
        return maxima, wtmm.link_maxima(maxima, cone)

    return jax.tree.map(np.asarray, lines_of(signal, jnp.asarray(cone)))


def test_accuracy_of_both_estimators_over_the_grid():
    """Bias and standard deviation; run with -s to print the table that the documentation shows."""
    limits = {128: (0.02, 0.08, 0.07, 0.19), 256: (0.015, 0.055, 0.05, 0.13), 1024: (0.008, 0.028, 0.04, 0.09)}
    print("\n|     n |   H | Whittle bias |    sd | stated | maxima bias |    sd | stated | D peak | width |")
    for length, (bias, sd, wtmm_bias, wtmm_sd) in limits.items():
        for exponent in (0.1, 0.3, 0.5, 0.7, 0.9):
            result = estimate(fractional_brownian_motion(exponent, length, 100, 1))
            whittle, maxima = result.holder_exponent, result.wtmm_exponent
            print(
                f"| {length:5d} | {exponent} | {whittle.mean() - exponent:+12.3f} | {whittle.std():.3f} "
                f"|  {result.holder_error.mean():.3f} | {maxima.mean() - exponent:+11.3f} | {maxima.std():.3f} "
                f"|  {result.wtmm_error.mean():.3f} |   {result.spectrum_peak.mean():.2f} "
                f"|  {result.spectrum_width.mean():.2f} |"
            )
            assert abs(whittle.mean() - exponent) < bias and whittle.std() < sd
            assert abs(maxima.mean() - exponent) < wtmm_bias and maxima.std() < wtmm_sd
            # What is stated is what is reached.
            assert 0.75 < result.holder_error.mean() / whittle.std() < 1.3
            assert 0.8 < result.wtmm_error.mean() / maxima.std() < 2.5
            assert result.spectrum_peak.mean() == pytest.approx(1.0, abs=0.2)
            assert abs(result.spectrum_width.mean()) < 0.15


@pytest.mark.parametrize("exponent", [0.3, 0.5, 0.7])
def test_mean_over_seeds_is_within_five_percent(exponent):
    result = estimate(fractional_brownian_motion(exponent, 1000, 60, 2))
    assert result.holder_exponent.mean() == pytest.approx(exponent, rel=0.05)
    assert result.holder_exponent.std() < 0.03


def test_one_brownian_window_of_a_thousand_ticks():
    for seed in range(5):
        path = np.cumsum(np.random.default_rng(seed).normal(size=1000))
        assert abs(float(estimate(path).holder_exponent[0]) - 0.5) < 0.05


def test_one_persistent_window_within_ten_percent():
    result = estimate(fractional_brownian_motion(0.7, 1024, 20, 3))
    assert np.all(np.abs(result.holder_exponent / 0.7 - 1.0) < 0.1)


def test_a_step_is_a_jump_pointwise_and_nothing_special_globally():
    path = np.where(np.arange(1000) < 500, 1.0, 3.0)
    for after in (1, 10, 40):
        seen = estimate(path[: 500 + after])
        assert seen.pointwise_exponent[0] < 0.3
        assert abs(seen.pointwise_exponent[0]) < 0.1
        assert abs(int(seen.pointwise_age[0]) - (after - 1)) <= 2
        assert abs(seen.holder_exponent[0] - 0.5) < 0.05
    # Later than the refresh interval it is no longer fresh.
    assert estimate(path[:600]).pointwise_exponent[0] == 1.0


def test_fifty_to_a_hundred_after_a_hundred_noisy_samples():
    rng = np.random.default_rng(4)
    for age in (0, 1, 5, 30):
        paths = np.cumsum(rng.normal(size=(40, 101 + age)), axis=1) + 50.0
        paths[:, 100:] += 50.0
        result = estimate(paths)
        assert np.mean(result.pointwise_exponent < 0.3) > 0.95
        assert np.median(np.abs(result.pointwise_age - age)) <= 2


@pytest.mark.parametrize("exponent", [0.1, 0.5, 0.9])
def test_gaussian_paths_have_no_jumps(exponent):
    result = estimate(fractional_brownian_motion(exponent, 256, 500, 5))
    assert np.mean(result.pointwise_exponent < 0.3) <= 0.002


def test_kink_and_jump_have_the_exponents_of_mallat_and_hwang():
    place = np.arange(WTMM_CAPACITY, dtype=float)
    for exponent in (0.0, 0.5, 1.0):
        path = np.where(place > 480, np.maximum(place - 480, 0.0) ** exponent, 0.0)
        _, lines = maxima_lines(path)
        slope, strength, foot = jax.jit(lambda lines: wtmm.strongest_line(lines, 50))(jax.tree.map(jnp.asarray, lines))
        assert float(slope) == pytest.approx(exponent, abs=0.2)
        assert abs(int(foot) - 480) <= 2
        # Nothing else happens on the step's path; the others end on a slope, which breaks off like a kink of its own.
        assert float(strength) > (wtmm.JUMP_STRENGTH if exponent == 0.0 else 0.5)


@pytest.mark.parametrize("cone", [1.0, 1.5, 3.0])
@pytest.mark.parametrize("exponent", [0.2, 0.8])
def test_linked_maxima_stay_within_the_cone_and_each_is_in_one_line(cone, exponent):
    maxima, lines = maxima_lines(fractional_brownian_motion(exponent, 1024, 3, 6)[0], cone)
    links = 0
    for scale in range(1, wtmm.NUM_SCALES):
        here = np.flatnonzero(lines.modulus[scale])
        below = lines.child[scale][here]
        step = wtmm.SCALES[scale] - wtmm.SCALES[scale - 1]
        assert np.all(np.abs(below - here) <= np.ceil(cone * step))
        assert len(set(below)) == len(below)
        assert np.all(lines.modulus[scale - 1][below] > 0)
        np.testing.assert_array_equal(lines.modulus[scale][here], maxima[scale][here])
        # No rival at the coarser scale was nearer in strength: the child's strongest candidate is this one.
        for place, child in zip(here, below, strict=True):
            reach = int(np.ceil(cone * step))
            rivals = maxima[scale][max(child - reach, 0) : child + reach + 1]
            assert maxima[scale][place] >= rivals.max() * (1 - 2e-4)
        expected = np.maximum(lines.modulus[scale][here], lines.supremum[scale - 1][below])
        np.testing.assert_array_equal(lines.supremum[scale][here], expected)
        links += len(here)
    assert links > 200


def test_monofractal_lines_give_the_exact_scaling_function():
    # tau(q) = q H - 1: on every scale 1/a as many lines, each with supremum a^H.
    exponent = 0.35
    modulus = np.zeros((wtmm.NUM_SCALES, WTMM_CAPACITY))
    for scale, width in enumerate(wtmm.SCALES):
        inner = np.arange(65, WTMM_CAPACITY - 65)
        count = round(380.0 / width)
        modulus[scale, inner[np.linspace(0, len(inner) - 1, count).astype(int)]] = width**exponent
    lines = wtmm.MaximaLines(
        modulus=jnp.asarray(modulus), child=jnp.zeros(modulus.shape, jnp.int32), supremum=jnp.asarray(modulus)
    )
    spectrum = jax.jit(wtmm.singularity_spectrum)(
        lines, jnp.asarray(0, jnp.int32), jnp.asarray(WTMM_CAPACITY, jnp.int32)
    )
    np.testing.assert_allclose(spectrum.scaling, wtmm.MOMENTS * exponent - 1.0, atol=0.01)
    assert float(spectrum.exponent) == pytest.approx(exponent, abs=1e-9)
    assert float(spectrum.peak) == pytest.approx(1.0, abs=0.01)
    assert abs(float(spectrum.width)) < 1e-9
    # D is concave and its argmax on the grid is the exponent.
    dimension = np.asarray(spectrum.dimension)
    assert np.all(np.diff(dimension, 2) < 1e-9)
    assert wtmm.EXPONENTS[np.argmax(dimension)] == pytest.approx(exponent, abs=0.025)


def test_wavelet_transform_equals_direct_convolution():
    path = np.cumsum(np.random.default_rng(7).normal(size=WTMM_CAPACITY))
    transform = np.asarray(jax.jit(wtmm.wavelet_transform)(jnp.asarray(path)))
    place = np.arange(-2000, 2500)
    extended = path[np.clip(place, 0, WTMM_CAPACITY - 1)]
    for scale in (3, 9, 15):
        width = wtmm.SCALES[scale]
        for centre in (0, 200, 400, 511):
            u = (place - centre) / width
            wavelet = (1 - u**2) * np.exp(-0.5 * u**2) / width
            expected = np.sum(wavelet * extended)
            assert transform[scale, centre] == pytest.approx(expected, abs=2e-3 * np.ptp(path))


def test_decimation_keeps_the_exponent_and_widens_the_error():
    # Self-similar paths do not lose their exponent; what is lost is the number of samples, and the error says so.
    paths = fractional_brownian_motion(0.4, 1024, 60, 8)
    whole = estimate(paths)
    for octave in (1, 2, 3):
        thinned = estimate(paths[:, :: 2**octave])
        assert thinned.holder_exponent.mean() == pytest.approx(0.4, abs=0.03)
        assert thinned.holder_error.mean() / whole.holder_error.mean() == pytest.approx(2 ** (octave / 2), rel=0.06)
        assert thinned.wtmm_error.mean() > whole.wtmm_error.mean()


@pytest.mark.parametrize("unit", [1e-9, 1e9])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_units_do_not_matter(unit, dtype):
    paths = fractional_brownian_motion(0.5, 300, 8, 9)
    here, there = estimate(paths, dtype), estimate(paths * unit, dtype)
    # The maxima lines are in single precision; a maximum that is just one may not be in other units.
    np.testing.assert_allclose(there.holder_exponent, here.holder_exponent, atol=1e-4)
    assert np.median(np.abs(there.wtmm_exponent - here.wtmm_exponent)) < 1e-4
    assert there.holder_exponent.dtype == there.wtmm_exponent.dtype == np.dtype(dtype)


def test_buffer_size_and_cone_matter():
    paths = fractional_brownian_motion(0.5, 600, 8, 10)
    base = estimate(paths, wtmm_buffer_size=128)
    longer = estimate(paths, wtmm_buffer_size=512)
    assert np.all(np.abs(base.wtmm_exponent - longer.wtmm_exponent) > 1e-3)
    assert longer.wtmm_error.mean() < base.wtmm_error.mean()
    np.testing.assert_array_equal(base.holder_exponent, longer.holder_exponent)
    narrow, wide = (estimate(paths, besov_cone_c=cone) for cone in (1.0, 3.0))
    assert np.mean(np.abs(narrow.wtmm_exponent - wide.wtmm_exponent) > 1e-3) > 0.8


def test_what_lies_before_the_valid_part_is_never_seen():
    path = fractional_brownian_motion(0.5, 1024, 1, 11)[0]
    disturbed = path.copy()
    disturbed[:700] = 1e3 * np.random.default_rng(12).normal(size=700)
    for left, right in zip(
        jax.tree.leaves(estimate(path, length=324)), jax.tree.leaves(estimate(disturbed, length=324)), strict=True
    ):
        np.testing.assert_array_equal(left, right)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
@pytest.mark.parametrize("length", [0, 1, 2, 20, 64, 1024])
def test_degenerate_series_give_finite_defined_values(dtype, length):
    ramp = np.arange(1024.0)
    series = {
        "zero": np.zeros(1024),
        "constant": np.full(1024, 1e6),
        "ramp": ramp,
        "sine": np.sin(ramp / 20),
        "alternating": (-1.0) ** ramp,
        "spike": np.where(ramp == 1000, 1e6, 0.0),
        "tiny": 1e-30 * np.cumsum(np.random.default_rng(13).normal(size=1024)),
        "huge": 1e6 * np.random.default_rng(14).standard_cauchy(size=1024).clip(-1e4, 1e4),
        "ticks": np.cumsum(np.random.default_rng(15).choice([-1.0, 0, 0, 0, 0, 0, 0, 1.0], size=1024)),
    }
    result = estimate(np.stack(list(series.values())), dtype, length=length)
    for leaf in jax.tree.leaves(result):
        assert np.isfinite(leaf).all()
    assert np.all((result.holder_exponent > 0) & (result.holder_exponent < 1))
    assert np.all((result.wtmm_error > 0) & (result.wtmm_error <= 1))
    assert np.all((result.holder_error > 0) & (result.holder_error <= 1))
    flat = slice(0, 2)
    assert np.all(result.holder_exponent[flat] == 0.5) and np.all(result.holder_error[flat] == 1.0)
    assert np.all(result.wtmm_exponent[flat] == 0.5) and np.all(result.wtmm_error[flat] == 1.0)
    assert np.all(result.pointwise_exponent[flat] == 1.0) and np.all(result.pointwise_strength[flat] == 0.0)
    if length < holder.MIN_INCREMENTS:
        assert np.all(result.holder_error == 1.0)


def test_unknown_is_what_an_empty_history_gives():
    empty = estimate(np.zeros(1024), length=0)
    for left, right in zip(jax.tree.leaves(empty), jax.tree.leaves(RegularityResult.unknown(jnp.float64)), strict=True):
        assert left[0] == right and left.dtype == right.dtype


def test_lanes_do_not_feel_their_company():
    paths = fractional_brownian_motion(0.5, 1024, 64, 16)
    wide = estimate(paths)
    company = np.concatenate([paths[::-1][:48] * 3.0, paths[16:32]])
    for whole, turned, elsewhere in zip(
        *map(jax.tree.leaves, (wide, estimate(paths[::-1]), estimate(company))), strict=True
    ):
        np.testing.assert_array_equal(whole[::-1], turned)
        np.testing.assert_array_equal(whole[16:32], elsewhere[48:])


def test_parameters_change_without_recompilation():
    path = fractional_brownian_motion(0.5, 300, 1, 17)
    estimate(path)
    compiled = estimate_all._cache_size()
    for parameters in ({"besov_cone_c": 2.0}, {"wtmm_buffer_size": 64}):
        estimate(path, **parameters)
    estimate(path, length=100)
    assert estimate_all._cache_size() == compiled
