"""Parameters that follow the regime."""

import dataclasses
import functools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from usp_daemon.core._adaptive import (
    collapse_threshold,
    compute_adaptive_jko_params,
    compute_adaptive_stiffness_thresholds,
    compute_entropy_ratio,
    scale_dgm_architecture,
    scaling_table,
    update_mode_collapse,
)
from usp_daemon.core._parameters import PredictorConfig

DTYPES = [jnp.float32, jnp.float64]


@functools.cache
def config_for(dtype=jnp.float64, **fields) -> PredictorConfig:
    return dataclasses.replace(PredictorConfig(), **fields).as_arrays(dtype)


scale = jax.jit(scale_dgm_architecture)


# -- entropy and capacity


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("entropy", "baseline", "expected"),
    [
        (2.0, 2.0, 1.0),
        (np.log(50.0), np.log(25.0), 2.0),
        (-3.0, -3.0 + np.log(4.0), 0.25),
        (9.0, 0.0, 10.0),
        (0.0, 9.0, 0.1),
    ],
)
def test_entropy_ratio_counts_effective_values(entropy: float, baseline: float, expected: float, dtype) -> None:
    ratio = compute_entropy_ratio(jnp.asarray(entropy, dtype), jnp.asarray(baseline, dtype))
    assert ratio.dtype == dtype
    assert float(ratio) == pytest.approx(expected, rel=1e-6)
    assert 0.1 <= ratio <= 10.0


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("ratio", "expected"), [(2.0, (128, 6)), (4.0, (128, 7)), (8.0, (128, 8)), (10.0, (128, 8))])
def test_known_architectures_from_64_by_4(ratio: float, expected: tuple[int, int], dtype) -> None:
    width, depth = scale(config_for(dtype), jnp.asarray(ratio, dtype))
    assert (int(width), int(depth)) == expected


def test_capacity_meets_a_fivefold_entropy() -> None:
    width, depth = scale(config_for(), jnp.asarray(5.0))
    assert pytest.approx(789.8, abs=0.1) == 256 * 5.0**0.7
    assert 789.8 <= int(width) * int(depth) <= 4 * 256


@pytest.mark.parametrize("width", [32, 64, 96, 128, 160, 224, 256])
@pytest.mark.parametrize("depth", [2, 3, 4, 6])
def test_cap_holds_and_width_is_a_power_of_two(width: int, depth: int) -> None:
    config = config_for(dgm_width_size=width, dgm_depth=depth)
    ratios = jnp.linspace(0.1, 10.0, 200)
    widths, depths = jax.jit(jax.vmap(lambda ratio: scale_dgm_architecture(config, ratio)))(ratios)
    widths, capacities = np.asarray(widths), np.asarray(widths * depths)
    assert capacities.max() <= 4 * width * depth
    assert capacities.min() >= width * depth
    grown = widths != width
    assert np.all(np.log2(widths[grown]) % 1 == 0)
    asked = width * depth * np.minimum(np.maximum(np.asarray(ratios), 1.0) ** 0.7, 4.0)
    # What is asked is given unless the cap, in whole layers of a power of two, is in the way.
    short = capacities < asked * (1 - 1e-9)
    assert np.all(capacities[short] + widths[short] > 4 * width * depth)


@pytest.mark.parametrize("cap", [1.0, 1.3, 2.0, 8.0])
def test_other_caps_and_couplings(cap: float) -> None:
    width, depth = scale(config_for(dgm_scaling_cap=cap), jnp.asarray(10.0))
    assert 256 <= int(width) * int(depth) <= cap * 256
    steep = scale(config_for(dgm_scaling_cap=8.0), jnp.asarray(3.0), jnp.asarray(1.0))
    flat = scale(config_for(dgm_scaling_cap=8.0), jnp.asarray(3.0), jnp.asarray(0.5))
    assert int(steep[0] * steep[1]) >= 3 * 256
    assert int(flat[0] * flat[1]) < int(steep[0] * steep[1])


def test_documented_table_is_the_computed_one(repository_root) -> None:
    page = (repository_root / "docs" / "numerics" / "adaptive.md").read_text(encoding="utf-8")
    assert scaling_table(config_for(), (2.0, 4.0, 5.0, 8.0, 10.0)) in page
    assert scaling_table(config_for(dgm_width_size=96, dgm_depth=2), (2.0, 4.0, 8.0)) in page


# -- stiffness


@pytest.mark.parametrize(
    ("exponent", "expected"), [(0.0, (100, 1000)), (0.2, (100, 1000)), (0.5, (100, 1000)), (0.8, (625, 6250))]
)
def test_known_stiffness_thresholds(exponent: float, expected: tuple[float, float]) -> None:
    got = compute_adaptive_stiffness_thresholds(jnp.asarray(exponent), config_for())
    np.testing.assert_allclose(got, expected, rtol=1e-12)


def test_stiffness_bases_are_multiplied() -> None:
    config = config_for(stiffness_low=50.0, stiffness_high=5000.0)
    np.testing.assert_allclose(compute_adaptive_stiffness_thresholds(jnp.asarray(0.8), config), (312.5, 31250.0))


@hypothesis.given(st.floats(-10, 10), st.floats(50, 500), st.floats(500.5, 5000))
def test_stiffness_thresholds_stay_in_order(exponent: float, low: float, high: float) -> None:
    config = dataclasses.replace(PredictorConfig(), stiffness_low=low, stiffness_high=high)
    got_low, got_high = compute_adaptive_stiffness_thresholds(jnp.asarray(exponent), config)
    assert low <= float(got_low) <= float(got_high) < np.inf


# -- fusion


@pytest.mark.parametrize("dtype", DTYPES)
def test_unit_variance_leaves_the_bases(dtype) -> None:
    window, rate = compute_adaptive_jko_params(jnp.ones((), dtype), config_for(dtype))
    assert window.dtype == rate.dtype == dtype
    np.testing.assert_allclose([window, rate], [100.0, 0.05], rtol=1e-6)


def test_specified_windows_and_rates() -> None:
    # With the specification's c = 5 and 1.6 eps as bases, its own formulas.
    config = config_for(entropy_window=5, learning_rate=0.16)
    for variance, window, rate in (
        (0.001, 500.0, 1.6e-4),
        (0.1, 50.0, 1.6e-2),
        (0.5, 10.0, 0.08),
        (6.25, 10.0, 1.0),
        (1e9, 10.0, 1.0),
    ):
        got = compute_adaptive_jko_params(jnp.asarray(variance), config)
        np.testing.assert_allclose(got, (window, rate), rtol=1e-12)


def test_all_constants_of_the_formulas_matter() -> None:
    half = jnp.asarray(0.5)
    base = compute_adaptive_jko_params(half, config_for())
    np.testing.assert_allclose(base, (200.0, 0.025))
    for name, value, expected in (
        ("jko_domain_length", 1.2, (288.0, 0.025)),
        ("jko_window_factor", 4.0, (160.0, 0.025)),
        ("jko_window_max", 150, (150.0, 0.025)),
        ("jko_rate_safety", 0.4, (200.0, 0.0125)),
        ("sinkhorn_epsilon_0", 0.2, (200.0, 0.05)),
        ("learning_rate", 0.1, (200.0, 0.05)),
        ("entropy_window", 50, (100.0, 0.025)),
    ):
        np.testing.assert_allclose(
            compute_adaptive_jko_params(half, config_for(**{name: value})), expected, err_msg=name
        )


@hypothesis.given(st.floats(0, 1e300))
def test_window_and_rate_are_clamped_not_asserted(variance: float) -> None:
    window, rate = compute_adaptive_jko_params(jnp.asarray(variance), PredictorConfig())
    assert 10.0 <= float(window) <= 500.0
    assert 1e-6 <= float(rate) <= 1.0


def test_regimes_change_without_recompilation() -> None:
    traces = []

    @jax.jit
    def everything(value, config):
        traces.append(None)
        return (
            compute_adaptive_jko_params(value, config),
            compute_adaptive_stiffness_thresholds(value, config),
            scale_dgm_architecture(config, value),
        )

    for value in (0.1, 0.7, 3.0):
        everything(jnp.asarray(value), config_for(stiffness_low=50.0 + value, dgm_scaling_beta=value))
    assert len(traces) == 1


# -- mode collapse


@pytest.mark.parametrize(
    ("volatility", "gamma"), [(0.01, 1.0), (0.8, 1.0), (1.0, 0.8), (1.25, 0.64), (1.6, 0.5), (100.0, 0.5)]
)
def test_collapse_threshold_falls_with_volatility(volatility: float, gamma: float) -> None:
    assert float(collapse_threshold(jnp.asarray(volatility**2), config_for())) == pytest.approx(0.8 * gamma)


def test_warning_after_enough_low_ticks_in_a_row() -> None:
    config, one = config_for(), jnp.asarray(1.0)
    count, warnings = jnp.asarray(0, jnp.int32), []
    for fraction in [0.3] * 19 + [0.9] + [0.3] * 21:
        count, warning = update_mode_collapse(count, jnp.asarray(fraction), jnp.asarray(200.0), one, config)
        warnings.append(bool(warning))
    # max(10, 200 * 0.1) = 20 in a row: the single clean tick starts the count anew.
    assert warnings == [False] * 39 + [True, True]


def test_shortest_wait_before_a_warning_is_configured() -> None:
    count, config = jnp.asarray(0, jnp.int32), config_for(mode_collapse_min_threshold=3)
    seen = []
    for _ in range(4):
        count, warning = update_mode_collapse(count, jnp.asarray(0.1), jnp.asarray(10.0), jnp.asarray(1.0), config)
        seen.append(bool(warning))
    assert seen == [False, False, True, True]


def test_discrete_entropies_of_known_laws() -> None:
    def fraction(values: np.ndarray) -> float:
        share = np.histogram(values, bins=50, range=(values.min() - 1e-9, values.max() + 1e-9))[0] / values.size
        share = share[share > 0]
        return float(-np.sum(share * np.log(share)) / np.log(50.0))

    threshold = float(collapse_threshold(jnp.asarray(4.0), config_for()))  # gamma at its least, 0.5
    assert fraction(np.linspace(0, 1, 5000)) == pytest.approx(1.0, abs=1e-3)
    assert fraction(np.sin(np.linspace(-3, 3, 5000))) > threshold
    assert fraction(np.zeros(5000)) < threshold
