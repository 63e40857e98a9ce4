"""Every parameter that the tuner searches does something: a parameter without effect would be searched in vain."""

import dataclasses
from typing import NamedTuple

import numpy as np
import pytest

from usp_daemon.config._tuning_section import MetaOptimization
from usp_daemon.core import STRUCTURAL_FIELDS, PredictionResult, PredictorConfig

from . import lanes, series

pytestmark = pytest.mark.slow

# Under "jko" the regularisation of the transport decides no weight, by the specification's own formula.
FUSION_METHOD = "jko_proximal"
BASE = PredictorConfig(fusion_method=FUSION_METHOD)

# The specification's search space. The two ends of each range are the defaults of the keys that the tuner reads,
# ``meta_optimization.<name>_min`` and ``_max``; all other parameters have their defaults.
TUNABLES = (
    "log_sig_depth",
    "wtmm_buffer_size",
    "besov_cone_c",
    "cusum_k",
    "sinkhorn_alpha",
    "volatility_alpha",
    "dgm_width_size",
    "dgm_depth",
    "dgm_entropy_num_bins",
    "stiffness_low",
    "stiffness_high",
    "sde_dt",
    "sde_numel_integrations",
    "sde_diffusion_sigma",
    "kernel_ridge_lambda",
    "cusum_h",
    "grace_period_steps",
    "sinkhorn_epsilon_min",
    "sinkhorn_epsilon_0",
    "learning_rate",
    "entropy_window",
    "entropy_threshold",
    "holder_threshold",
)
TRACED = tuple(name for name in TUNABLES if name not in STRUCTURAL_FIELDS)
NUM_TICKS = 800
# Only a jump that maxima lines of one kind catch and those of the other miss tells the first two apart, and only a path
# that turns rough without an alarm the third: it takes series, and seeds, on which that happens.
JUMPY = (("jumps", 5), ("jumps", 6), ("jumps", 21), ("overshoot", 0), ("overshoot", 2), ("overshoot", 6))
FURTHER = {
    "wtmm_buffer_size": JUMPY,
    "besov_cone_c": JUMPY,
    "holder_threshold": tuple(("roughness_change", seed) for seed in (0, 1, 2)),
}


class Effect(NamedTuple):
    """How far two runs are apart: largest move of a forecast in its own scale, and ticks with another alarm."""

    moved: np.ndarray  # by series
    alarms: np.ndarray

    def __str__(self) -> str:
        names = [*series.FAMILIES, *(f"further {i}" for i in range(len(self.moved) - len(series.FAMILIES)))]
        rows = zip(names, self.moved, self.alarms, strict=True)
        return ", ".join(f"{name}: {moved:.1e} and {alarms} alarms" for name, moved, alarms in rows)


def ends(name: str) -> tuple[float, float]:
    """The least and the greatest value that the tuner tries."""
    space = MetaOptimization()
    return getattr(space, f"{name}_min"), getattr(space, f"{name}_max")


def effect(low: PredictionResult, high: PredictionResult) -> Effect:
    """Compares two runs of the same series, arrays by (tick, series)."""
    apart = np.abs(low.predicted_next - high.predicted_next) / np.minimum(low.scale, high.scale)
    return Effect(apart.max(axis=0), np.sum(low.alarm_kind != high.alarm_kind, axis=0))


def series_for(name: str) -> np.ndarray:
    """What a tunable is tried on: a column each."""
    columns = [series.table(NUM_TICKS)]
    for family, seed in FURTHER.get(name, ()):
        columns.append(series.FAMILIES[family](np.random.default_rng([seed]), NUM_TICKS)[:, None])
    return np.concatenate(columns, axis=1)


@pytest.fixture(scope="module")
def traced_effects() -> dict[str, Effect]:
    """All traced tunables at once: both ends of each on every series are lanes of one program."""
    columns, configs = [], []
    for name in TRACED:
        for value in ends(name):
            table = series_for(name)
            columns.append(table)
            configs += [dataclasses.replace(BASE, **{name: value})] * table.shape[1]
    prediction = lanes.run(np.concatenate(columns, axis=1), configs).prediction
    found, left = {}, 0
    for name in TRACED:
        width = series_for(name).shape[1]
        first, second = (lanes.columns(prediction, slice(at, at + width)) for at in (left, left + width))
        found[name] = effect(first, second)
        left += 2 * width
    return found


def structural_effect(name: str) -> Effect:
    """Two programs, one for each end."""
    first, second = (
        lanes.run(series_for(name), dataclasses.replace(BASE, **{name: value})).prediction for value in ends(name)
    )
    return effect(first, second)


def test_the_search_space_has_the_specification_s() -> None:
    keys = {field.name for field in dataclasses.fields(MetaOptimization)}
    lows = {key.removesuffix("_min") for key in keys if key.endswith("_min")}
    assert {name for name in lows if f"{name}_max" in keys} >= set(TUNABLES)
    assert len(TUNABLES) == 23


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in TRACED else pytest.mark.long) for name in TUNABLES]
)
def test_every_tunable_matters(name: str, request: pytest.FixtureRequest) -> None:
    """From one end of its range to the other a forecast moves by over 1e-3 of its scale, or an alarm differs."""
    found = request.getfixturevalue("traced_effects")[name] if name in TRACED else structural_effect(name)
    assert found.moved.max() > 1e-3 or found.alarms.any(), f"{name} does nothing: {found}"


def test_a_lane_does_nothing_on_its_own() -> None:
    """The comparison is no accident of the lane: equal parameters in two lanes give equal bits."""
    table = series.table(100)
    prediction = lanes.run(np.concatenate([table, table], axis=1), BASE).prediction
    for field in dataclasses.fields(PredictionResult):
        both = getattr(prediction, field.name)
        half = table.shape[1]
        assert both[:, :half].tobytes() == both[:, half:].tobytes(), field.name
