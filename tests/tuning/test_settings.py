"""Every key of [meta_optimization] is the schema's, and each of them does something."""

import dataclasses
import pathlib
from typing import Any

import numpy as np
import optuna
import pytest

from tuning_landscapes import FoldedBowl, bowl, essence, settings_for
from usp_daemon.config import SPECS, ConfigError, MetaOptimization, Settings, parse_settings
from usp_daemon.transport import InputError
from usp_daemon.tune_commands import walk_forward_evaluator
from usp_daemon.tuning import (
    BayesianMetaOptimizer,
    CampaignMismatchError,
    DecisionRule,
    MetaOptimizationConfig,
    WalkForwardEvaluator,
    load_meta_optimization_config,
    search_space,
)

NAMES = [spec.name for spec in SPECS.values() if spec.section == "meta_optimization"]
ENDS = [name for name in NAMES if name.endswith(("_min", "_max"))]
# Another value than the default for each key that is no end of a range.
# Those of the two kinds of tests below.
FOLDS = {"train_ratio", "n_folds", "embargo_ticks", "holdout", "validation_folds"}
RULE = {"min_gain", "min_standard_errors"}
ELSEWHERE = {*FOLDS, *RULE, "max_deep_tuning_iterations", "min_improvement"}
OTHERS: dict[str, Any] = {
    "n_trials": 12,
    "n_startup_trials": 4,
    "max_deep_tuning_iterations": 9,
    "multivariate": False,
    "enable_deep_tuning": True,
    "default_tier": "deep",
    "batch_size": 3,
    "max_structures": 2,
    "pruning": False,
    "patience_trials": 1,
    "min_improvement": 0.5,
    "time_limit_s": 1.0,
    "seed": 7,
    "checkpoint_path": "elsewhere",
    "storage_url": "sqlite:///campaigns.db",
    "train_ratio": 0.5,
    "n_folds": 3,
    "embargo_ticks": 7,
    "holdout": 0.3,
    "validation_folds": 3,
    "min_gain": 0.4,
    "min_standard_errors": 9.0,
}


def test_defaults_are_the_schemas() -> None:
    """GAP-6.3: no default of its own, no key missing, none more."""
    config = MetaOptimizationConfig()
    assert {field.name: getattr(config, field.name) for field in dataclasses.fields(config)} == dataclasses.asdict(
        MetaOptimization()
    )
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.n_trials = 3  # type: ignore[misc]


def test_loaded_from_a_file(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text("[meta_optimization]\nn_trials = 77\ncusum_k_max = 0.8\n")
    config = load_meta_optimization_config(path)
    assert (config.n_trials, config.cusum_k_max, config.n_folds) == (77, 0.8, MetaOptimization().n_folds)
    assert load_meta_optimization_config(parse_settings({"meta_optimization": {"n_trials": 66}})).n_trials == 66
    path.write_text("[meta_optimization]\nn_trials = 0\n")
    with pytest.raises(ConfigError, match=r"meta_optimization\.n_trials"):
        load_meta_optimization_config(path)


def test_constructor_refuses_what_the_schema_refuses() -> None:
    for changes in ({"n_trials": 0}, {"cusum_k_min": 0.9, "cusum_k_max": 0.5}, {"seed": -1}, {"pruning": "yes"}):
        with pytest.raises(ConfigError):
            MetaOptimizationConfig(**changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ENDS)
def test_end_of_a_range_bounds_what_is_tried(name: str) -> None:
    parameter, which = name[:-4], name[-3:]
    default = search_space(MetaOptimizationConfig(), "wide")[parameter]
    spec = SPECS[f"meta_optimization.{name}"]
    low, high = (getattr(MetaOptimization(), f"{parameter}_{end}") for end in ("min", "max"))
    other: Any = low + (high - low) / 4 if which == "min" else high - (high - low) / 4
    if spec.key.power_of_two:
        other = low * 2 if which == "min" else high // 2
    elif spec.kind is int:
        other = low + 1 if which == "min" else high - 1
    changed = search_space(MetaOptimizationConfig(**{name: other}), "wide")[parameter]
    assert changed != default
    if isinstance(changed, optuna.distributions.CategoricalDistribution):
        values: Any = changed.choices
        assert (min(values) if which == "min" else max(values)) == other
    else:
        assert (changed.low if which == "min" else changed.high) == other  # type: ignore[attr-defined]


def outcome(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> Any:
    """What a campaign under these settings comes to, seen from outside."""
    directory = tmp_path / str(len(list(tmp_path.iterdir())))
    directory.mkdir()
    monkeypatch.chdir(directory)
    now = 0.0

    def clock() -> float:
        nonlocal now
        now += 0.4
        return now

    evaluator = FoldedBowl()
    config = MetaOptimizationConfig(
        **{
            "n_trials": 40,
            "max_deep_tuning_iterations": 10,
            "checkpoint_path": "here",
            "patience_trials": 0,
            "default_tier": "fast",
            **changes,
        }
    )
    optimizer = BayesianMetaOptimizer(evaluator, config, Settings(), worker="here", clock_fn=clock)
    optimizer.optimize()
    return (
        essence(optimizer.records),
        [len(batch) for batch in evaluator.batches],
        sorted(str(path.relative_to(directory)) for path in directory.rglob("*")),
    )


@pytest.mark.parametrize("name", sorted(set(OTHERS) - ELSEWHERE))
def test_key_changes_a_campaign(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    assert outcome(tmp_path, monkeypatch, **{name: OTHERS[name]}) != outcome(tmp_path, monkeypatch)


def test_remaining_keys_change_a_campaign(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = {"enable_deep_tuning": True, "max_deep_tuning_iterations": 12}
    assert len(outcome(tmp_path, monkeypatch, **deep)[0]) == 12
    assert len(outcome(tmp_path, monkeypatch, **{**deep, "max_deep_tuning_iterations": 9})[0]) == 9
    patient = {"patience_trials": 8, "n_trials": 40}
    assert outcome(tmp_path, monkeypatch, **patient) != outcome(
        tmp_path, monkeypatch, **patient, min_improvement=OTHERS["min_improvement"]
    )


def test_validation_keys_reach_the_folds(tmp_path: pathlib.Path) -> None:
    """They are what the evaluator splits by, and part of the campaign's identity."""
    values = {name: OTHERS[name] for name in FOLDS}
    times = 10**9 * np.arange(4000, dtype=np.int64)
    arrays = {"a": (times, np.sin(times / 7e9))}
    changed = walk_forward_evaluator(arrays, Settings(), MetaOptimizationConfig(**values))
    assert isinstance(changed, WalkForwardEvaluator)
    folds = changed._folds[0]
    # 1,200 ticks are kept from the search in 3 blocks of 400; half of the 2,800 before is 3 folds of about 467
    assert [fold.test for fold in folds[:3]] == [slice(1407, 1866), slice(1873, 2333), slice(2340, 2800)]
    assert [fold.test for fold in folds[3:]] == [slice(2807, 3200), slice(3207, 3600), slice(3607, 4000)]
    with pytest.raises(InputError, match="too few"):
        walk_forward_evaluator({"a": (times[:99], times[:99] * 1.0)}, Settings(), MetaOptimizationConfig(**values))
    BayesianMetaOptimizer(bowl, settings_for(tmp_path), Settings()).open()
    for name, value in values.items():
        with pytest.raises(CampaignMismatchError, match=name):
            BayesianMetaOptimizer(bowl, settings_for(tmp_path, **{name: value}), Settings()).open()


def test_rule_s_keys_reach_the_decision() -> None:
    rule = DecisionRule.from_settings(MetaOptimizationConfig(min_gain=0.4, min_standard_errors=9.0))
    assert rule == DecisionRule(min_gain=0.4, min_t=9.0)
    assert DecisionRule.from_settings(Settings()) == DecisionRule()


def test_every_key_is_accounted_for() -> None:
    assert set(NAMES) >= set(OTHERS) | set(ENDS)
    assert len(ENDS) == 60
