"""The search space and the way from a candidate to the predictor's parameters."""

import dataclasses
import math
from pathlib import Path

import numpy as np
import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from usp_daemon.config import MUTABLE, SPECS, ConfigError, MetaOptimization, ParameterClass, Settings
from usp_daemon.core import DGM_TIERS, STRUCTURAL_FIELDS, nearest_dgm_tier, resolve_thresholds
from usp_daemon.tuning import (
    PARAMETERS,
    Tier,
    TuningError,
    UnknownParameterError,
    candidate_config,
    candidate_settings,
    parameters_of,
    search_space,
)
from usp_daemon.tuning._space import space_table, with_shipped_network

DEFAULT = MetaOptimization()
FAST = ["log_sig_depth", "wtmm_buffer_size", "besov_cone_c", "cusum_k", "sinkhorn_alpha", "volatility_alpha"]
BASE = {"dgm_width_size": 64, "dgm_depth": 4}


def names(tier: str) -> list[str]:
    return [one.name for one in parameters_of(tier)]


def test_the_tiers_are_the_specification_s_and_two_more() -> None:
    assert names("fast") == FAST
    assert names("deep")[:6] == FAST and len(names("deep")) == 23
    assert names("wide")[:23] == names("deep") and len(set(names("wide"))) == len(PARAMETERS) == 30
    assert set(names("sensitive")) < set(names("wide"))
    keys = {field.name for field in dataclasses.fields(MetaOptimization)}
    ranged = {key.removesuffix("_min") for key in keys if key.endswith("_min")}
    assert {name for name in ranged if f"{name}_max" in keys} == set(names("wide"))
    with pytest.raises(TuningError, match="fast, sensitive, deep, wide"):
        parameters_of("shallow")


@pytest.mark.parametrize("one", PARAMETERS, ids=lambda one: one.name)
def test_every_parameter_is_drawn_within_its_range_and_its_key_takes_it(one) -> None:  # type: ignore[no-untyped-def]
    spec = SPECS[one.path]
    assert one.is_structural == (spec.key.parameter_class is ParameterClass.STRUCTURAL)
    assert one.is_structural == (one.name in STRUCTURAL_FIELDS)
    assert one.path in MUTABLE, "what is found could not be applied"
    drawn = one.distribution(DEFAULT)
    low, high = getattr(DEFAULT, f"{one.name}_min"), getattr(DEFAULT, f"{one.name}_max")
    assert low <= (SPECS[one.path].default if SPECS[one.path].default != "auto" else low) <= high
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    for _ in range(50):
        value = study.ask({one.name: drawn}).params[one.name]
        assert type(value) is spec.kind and low <= value <= high
        assert spec.fit(value) == value
    if isinstance(drawn, FloatDistribution):
        assert drawn.log == one.logarithmic
    else:
        assert isinstance(drawn, CategoricalDistribution if spec.key.power_of_two else IntDistribution)


def test_beside_the_specification_s_an_eighth_to_eight_times_the_default_is_searched() -> None:
    for one in parameters_of("wide")[23:]:
        drawn, default = one.distribution(DEFAULT), float(SPECS[one.path].default)  # type: ignore[arg-type]
        assert isinstance(drawn, FloatDistribution) and drawn.log and not one.is_structural
        assert (drawn.low, drawn.high) == pytest.approx((default / 8, default * 8))


def test_the_ranges_are_the_settings_own() -> None:
    space = search_space(MetaOptimization(cusum_k_min=0.4, cusum_k_max=0.6, wtmm_buffer_size_max=128), Tier.DEEP)
    assert space["cusum_k"] == FloatDistribution(0.4, 0.6)
    assert space["wtmm_buffer_size"] == CategoricalDistribution([64, 128])


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


def every_pair(space):  # type: ignore[no-untyped-def]
    widths, depths = space["dgm_width_size"], space["dgm_depth"]
    return [(width, depth) for width in widths.choices for depth in range(depths.low, depths.high + 1)]


def test_one_shipped_network_is_one_structure() -> None:
    space = search_space(DEFAULT, Tier.DEEP)
    found: dict[int, set[tuple[int, int]]] = {}
    for width, depth in every_pair(space):
        changed = with_shipped_network({"dgm_width_size": width, "dgm_depth": depth, "cusum_k": 0.3}, BASE, space)
        pair = changed["dgm_width_size"], changed["dgm_depth"]
        assert changed["cusum_k"] == 0.3 and pair in every_pair(space)
        assert nearest_dgm_tier(*pair) == nearest_dgm_tier(width, depth)
        found.setdefault(nearest_dgm_tier(width, depth), set()).add(pair)
    assert all(len(pairs) == 1 for pairs in found.values()) and len(found) > 3
    for tier, (pair,) in ((tier, tuple(pairs)) for tier, pairs in found.items()):
        assert pair == DGM_TIERS[tier] or DGM_TIERS[tier] not in every_pair(space)


def test_the_settings_own_pair_stands_for_its_network() -> None:
    space = search_space(DEFAULT, Tier.DEEP)
    own = {"dgm_width_size": 32, "dgm_depth": 6}
    tier = nearest_dgm_tier(32, 6)
    assert DGM_TIERS[tier] != (32, 6)
    for width, depth in every_pair(space):
        changed = with_shipped_network({"dgm_width_size": width, "dgm_depth": depth}, own, space)
        assert (changed == own) == (nearest_dgm_tier(width, depth) == tier)
    assert with_shipped_network({"cusum_k": 0.3}, {}, search_space(DEFAULT, Tier.FAST)) == {"cusum_k": 0.3}


def test_the_documented_table_is_the_space(repository_root: Path) -> None:
    page = (repository_root / "docs" / "numerics" / "tuning.md").read_text("utf-8")
    assert page.endswith(space_table(DEFAULT) + "\n")
