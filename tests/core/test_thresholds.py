"""Base thresholds of the change detector: known laws, orderings, and the rate that the detector itself then shows."""

import dataclasses
import importlib.util
import math
import sys
from types import ModuleType

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from usp_daemon.core import _change_point
from usp_daemon.core._parameters import PredictorConfig
from usp_daemon.core._threshold_table import ALLOWANCES, FIT_TICKS, MEAN_TICKS, STATISTICS, THRESHOLDS
from usp_daemon.core._thresholds import resolve_thresholds

RATIOS = ("cusum_slow_ratio", "scale_up_ratio", "scale_down_ratio", "dynamics_ratio")


def bank_of(resolved: dict[str, float]) -> list[float]:
    """Thresholds in the order of ``STATISTICS``."""
    return [resolved["cusum_h"], *(resolved["cusum_h"] * resolved[name] for name in RATIOS)]


@pytest.fixture(scope="module")
def simulation(request: pytest.FixtureRequest) -> ModuleType:
    path = request.config.rootpath / "scripts" / "simulate_thresholds.py"
    spec = importlib.util.spec_from_file_location("simulate_thresholds", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look their own module up
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("shift", "threshold", "run_length", "tolerance"),
    [(0.0, 4.0, 168.0, 0.05), (0.0, 5.0, 465.0, 0.06), (1.0, 4.0, 8.38, 0.03), (1.0, 5.0, 10.4, 0.03)],
)
def test_cusum_with_known_law_has_the_textbook_run_length(
    simulation: ModuleType, shift: float, threshold: float, run_length: float, tolerance: float
) -> None:
    """Two-sided CUSUM with allowance 0.5 on standard normal noise, law known; textbook values."""
    horizon = 4000 if shift == 0.0 else 200
    passages = simulation.simulate(
        None, horizon=horizon, streams=1500, allowances=(0.5,), adapt_to_kurtosis=False, seed=3, shift=shift
    )
    assert np.mean(passages.passed(0.5, threshold)) == pytest.approx(run_length, rel=tolerance)


def test_table_is_whole() -> None:
    table = np.asarray(THRESHOLDS)
    assert table.shape == (len(FIT_TICKS), len(ALLOWANCES), len(MEAN_TICKS), len(STATISTICS))
    assert np.isfinite(table).all()
    assert (table > 1.0).all()


def test_resolving_at_a_knot_gives_the_table() -> None:
    table = np.asarray(THRESHOLDS)
    for row, fit_ticks in enumerate(FIT_TICKS):
        for column, allowance in enumerate(ALLOWANCES):
            for depth, mean_ticks in enumerate(MEAN_TICKS):
                resolved = resolve_thresholds(
                    cusum_k=allowance, mean_ticks_between_false=mean_ticks, reference_fit_ticks=fit_ticks
                )
                assert bank_of(resolved) == pytest.approx(table[row, column, depth].tolist(), rel=1e-9)


@pytest.mark.parametrize("cusum_k", [0.1, 0.3, 0.5, 1.0])
def test_rarer_false_alarms_need_higher_thresholds(cusum_k: float) -> None:
    asked = [100.0, 300.0, 500.0, 3000.0, 5000.0, 40_000.0, 50_000.0, 200_000.0, 1_000_000.0]
    banks = np.asarray(
        [
            bank_of(resolve_thresholds(cusum_k=cusum_k, mean_ticks_between_false=mean, reference_fit_ticks=150))
            for mean in asked
        ]
    )
    assert (np.diff(banks, axis=0) > 0.0).all()


@pytest.mark.parametrize("mean_ticks", [500.0, 5000.0, 50_000.0])
def test_a_worse_known_reference_needs_higher_thresholds(mean_ticks: float) -> None:
    banks = np.asarray(
        [
            bank_of(resolve_thresholds(cusum_k=0.5, mean_ticks_between_false=mean_ticks, reference_fit_ticks=ticks))
            for ticks in (60, 90, 120, 180, 270, 360, 720)
        ]
    )
    # a doubtful scale adds next to nothing to the ratio for a halved one, whose sums rise on values near zero
    assert (np.diff(np.delete(banks, STATISTICS.index("scale_down"), axis=1), axis=0) < 0.0).all()
    assert (banks[:-1] > 0.97 * banks[1:]).all()


def test_a_larger_allowance_needs_a_lower_level_threshold() -> None:
    levels = [
        bank_of(resolve_thresholds(cusum_k=k, mean_ticks_between_false=5000, reference_fit_ticks=180))[:2]
        for k in (0.1, 0.2, 0.4, 0.5, 0.7, 1.0)
    ]
    assert (np.diff(np.asarray(levels), axis=0) < 0.0).all()


def test_explicit_base_scales_the_whole_bank() -> None:
    arguments = {"cusum_k": 0.5, "mean_ticks_between_false": 5000.0, "reference_fit_ticks": 180}
    auto, explicit = resolve_thresholds(**arguments), resolve_thresholds(**arguments, cusum_h=12.5)
    assert explicit["cusum_h"] == 12.5
    assert {name: auto[name] for name in RATIOS} == {name: explicit[name] for name in RATIOS}


def test_names_are_fields_of_the_parameters() -> None:
    resolved = resolve_thresholds(cusum_k=0.5, mean_ticks_between_false=5000.0, reference_fit_ticks=180)
    assert set(resolved) <= {field.name for field in dataclasses.fields(PredictorConfig)}
    assert all(type(value) is float for value in resolved.values())


@pytest.mark.parametrize("name", ["cusum_k", "mean_ticks_between_false", "reference_fit_ticks", "cusum_h"])
@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_nonsense_is_refused_by_name(name: str, value: float) -> None:
    arguments = {"cusum_k": 0.5, "mean_ticks_between_false": 5000.0, "reference_fit_ticks": 180, "cusum_h": 10.0}
    with pytest.raises(ValueError, match=name):
        resolve_thresholds(**{**arguments, name: value})


@pytest.mark.parametrize(("mean_ticks", "cusum_k", "fit_ticks"), [(1000.0, 0.5, 180), (1500.0, 0.35, 100)])
def test_detector_alarms_at_the_asked_rate(mean_ticks: float, cusum_k: float, fit_ticks: int) -> None:
    """The shipped detector, its own fit included, on fresh Gaussian noise; the second point lies between knots."""
    streams, horizon = 400, round(2 * mean_ticks)
    resolved = resolve_thresholds(cusum_k=cusum_k, mean_ticks_between_false=mean_ticks, reference_fit_ticks=fit_ticks)
    config = PredictorConfig(cusum_k=cusum_k, reference_fit_ticks=fit_ticks, **resolved).as_arrays(jnp.float64)
    generator = np.random.default_rng(11)
    before = generator.standard_normal((streams, 1024))
    after = generator.standard_normal((horizon, streams))

    def start(history: jax.Array) -> _change_point.ChangePointState:
        state = _change_point.init(config, jnp.dtype(jnp.float64))
        newest = history[-1]
        return _change_point.fit_reference(state, history - newest, newest, jnp.ones_like(newest), config)

    def tick(carry, fresh):
        states, past, seen = carry

        def one(state, past, value):
            innovation = (value - _change_point.reference_forecast(state.reference, past)) / state.reference.sd
            return _change_point.update_cusum_statistics(
                state, innovation, jnp.zeros_like(value), jnp.asarray(False), config
            )

        states, alarm = jax.vmap(one)(states, past, fresh)
        # only the first alarm of a reference counts
        raised = alarm.raised & ~seen
        past = jnp.concatenate([fresh[:, None], past[:, :-1]], axis=1)
        return (states, past, seen | raised), (raised, ~seen)

    @eqx.filter_jit
    def run(before: jax.Array, after: jax.Array) -> tuple[jax.Array, jax.Array]:
        states = jax.vmap(start)(before)
        past = before[:, : -_change_point.REFERENCE_ORDER - 1 : -1]
        _, (raised, watched) = jax.lax.scan(tick, (states, past, jnp.zeros((streams,), bool)), after)
        return jnp.sum(raised), jnp.sum(watched)

    alarms, watched_ticks = run(jnp.asarray(before), jnp.asarray(after))
    # about 345 alarms: a standard error of 5 % on the interval between them
    assert int(alarms) > 250
    assert int(watched_ticks) / int(alarms) == pytest.approx(mean_ticks, rel=0.25)
