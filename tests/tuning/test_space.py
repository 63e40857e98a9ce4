"""The search space and the way from a candidate to the predictor's parameters."""

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest

from usp_daemon.config import SPECS, ConfigError, MetaOptimization, ParameterClass, Settings
from usp_daemon.core import DGM_TIERS, STRUCTURAL_FIELDS, PredictorConfig, resolve_thresholds
from usp_daemon.core._parameters import nearest_dgm_tier
from usp_daemon.tuning import (
    SearchSpace,
    Tier,
    UnknownParameterError,
    candidate_config,
    candidate_settings,
    choose_structures,
)
from usp_daemon.tuning._space import Kind, network_levels, space_table

DEEP = SearchSpace.from_settings(Settings(), Tier.DEEP)
FAST = SearchSpace.from_settings(Settings(), Tier.FAST)


def test_the_tiers_are_the_specification_s() -> None:
    assert FAST.names == (
        "log_sig_depth",
        "wtmm_buffer_size",
        "besov_cone_c",
        "cusum_k",
        "sinkhorn_alpha",
        "volatility_alpha",
    )
    assert len(DEEP.names) == len(set(DEEP.names)) == 23
    keys = {field.name for field in dataclasses.fields(MetaOptimization)}
    ranged = {key.removesuffix("_min") for key in keys if key.endswith("_min")}
    assert {name for name in ranged if f"{name}_max" in keys} == set(DEEP.names)


@pytest.mark.parametrize("one", DEEP.parameters, ids=lambda one: one.name)
def test_every_parameter_stays_within_its_range_and_its_key_takes_it(one) -> None:  # type: ignore[no-untyped-def]
    spec = SPECS[one.path]
    assert one.structural == (spec.key.parameter_class is ParameterClass.STRUCTURAL) == (one.name in STRUCTURAL_FIELDS)
    places = np.linspace(0.0, 1.0, 101)
    values = [one.at(float(place)) for place in places]
    assert values == sorted(values)
    for value in values:
        assert type(value) is spec.kind
        assert one.low <= value <= one.high
        assert spec.fit(value) == value
    ends = (one.levels[0], one.levels[-1]) if one.levels else (one.low, one.high)
    assert (values[0], values[-1]) == pytest.approx(ends, rel=1e-12)
    if one.logarithmic:
        assert math.isclose(one.at(0.5), math.sqrt(one.low * one.high), rel_tol=1e-12)


def test_powers_of_two_are_levels() -> None:
    assert DEEP["wtmm_buffer_size"].levels == (64, 128, 256, 512)
    assert DEEP["wtmm_buffer_size"].kind is Kind.LEVELS
    assert DEEP["log_sig_depth"].levels == (2, 3, 4, 5)


def test_the_ranges_are_the_settings_own() -> None:
    narrow = MetaOptimization(cusum_k_min=0.4, cusum_k_max=0.6, wtmm_buffer_size_max=128)
    space = SearchSpace.from_settings(narrow)
    assert (space["cusum_k"].low, space["cusum_k"].high) == (0.4, 0.6)
    assert space["wtmm_buffer_size"].levels == (64, 128)


def test_random_candidates_are_accepted_and_repeat_with_the_seed() -> None:
    drawn = [DEEP.random_candidate(np.random.default_rng(seed), {"log_sig_depth": 4}) for seed in range(30)]
    assert drawn[3] == DEEP.random_candidate(np.random.default_rng(3), {"log_sig_depth": 4})
    for candidate in drawn:
        config = candidate_config(Settings(), candidate)
        assert config.log_sig_depth == 4
        assert config.dgm_width_size == PredictorConfig.dgm_width_size
        for name, value in candidate.items():
            assert getattr(config, name) == value


def test_thresholds_follow_the_asked_rate_unless_the_candidate_sets_them() -> None:
    followed = candidate_config(Settings(), {"cusum_k": 0.8})
    asked = resolve_thresholds(cusum_k=0.8, mean_ticks_between_false=50_000, reference_fit_ticks=180)
    assert followed.cusum_h == asked["cusum_h"]
    assert followed.scale_up_ratio == asked["scale_up_ratio"]
    assert candidate_config(Settings(), {"cusum_k": 0.8, "cusum_h": 30.0}).cusum_h == 30.0


def test_what_a_candidate_does_not_name_stays_as_in_the_base() -> None:
    base = candidate_settings(Settings(), {"volatility_alpha": 0.2, "grace_period_steps": 33})
    changed = candidate_settings(base, {"cusum_grace_period_steps": np.int64(7)})
    assert changed["orchestration.volatility_alpha"] == 0.2
    assert changed["orchestration.grace_period_steps"] == 7


@pytest.mark.parametrize(
    "candidate",
    [{"bootstrap_servers": 3}, {"nonsense": 1.0}, {"cusum_k": 99.0}, {"wtmm_buffer_size": 100}, {"cusum_k": math.nan}],
)
def test_what_is_no_candidate_is_refused_by_name(candidate: dict[str, float]) -> None:
    with pytest.raises(UnknownParameterError, match=next(iter(candidate))):
        candidate_settings(Settings(), candidate)


def test_values_that_make_no_sense_together_are_refused_as_in_a_file() -> None:
    with pytest.raises(ConfigError, match="sinkhorn_epsilon_0"):
        candidate_settings(Settings(), {"sinkhorn_epsilon_min": 0.1, "sinkhorn_epsilon_0": 0.05})


def test_network_levels_resolve_to_different_shipped_networks() -> None:
    levels = network_levels(DEEP)
    tiers = [nearest_dgm_tier(width, depth) for width, depth in levels]
    assert tiers == sorted(set(tiers))
    every = {nearest_dgm_tier(w, d) for w in DEEP["dgm_width_size"].levels for d in DEEP["dgm_depth"].levels}
    assert set(tiers) == every
    own = {tier: pair for tier, pair in enumerate(DGM_TIERS) if pair[1] <= 6}
    assert {tier: pair for tier, pair in zip(tiers, levels, strict=True) if tier in own} == own


def test_structures_are_few_different_and_begin_with_the_base_s() -> None:
    base = PredictorConfig(log_sig_depth=4)
    structures = choose_structures(DEEP, base)
    assert structures[0] == {"log_sig_depth": 4, "dgm_width_size": 64, "dgm_depth": 4}
    assert len(structures) <= 8
    assert len({tuple(sorted(one.items())) for one in structures}) == len(structures)
    for one in structures[1:]:
        changed = {name for name in one if one[name] != structures[0][name]}
        assert changed == {"log_sig_depth"} or (changed and changed <= {"dgm_width_size", "dgm_depth"})
    assert choose_structures(DEEP, base, limit=3) == structures[:3]
    assert choose_structures(FAST, base) == [{"log_sig_depth": depth} for depth in (4, 3, 5, 2)]


def test_the_documented_table_is_the_space(repository_root: Path) -> None:
    page = (repository_root / "docs" / "numerics" / "tuning.md").read_text("utf-8")
    assert page.endswith(space_table(DEEP.parameters) + "\n")
