"""What a campaign tries, in what company, and when it ends."""

import math
import pathlib
from typing import Any

import msgspec
import optuna
import pytest
import scipy.stats

from tuning_landscapes import OPTIMUM, FoldedBowl, bowl, essence, settings_for
from usp_daemon.config import SPECS, ParameterClass, Settings, parse_settings
from usp_daemon.tuning import (
    BayesianMetaOptimizer,
    Evaluation,
    MetaOptimizationConfig,
    Progress,
    StopReason,
    TuningError,
    search_space,
)
from usp_daemon.tuning._pruning import prune_fn_of

STRUCTURAL = {spec.name for spec in SPECS.values() if spec.key.parameter_class is ParameterClass.STRUCTURAL}


def optimizer_for(evaluator: Any, base: Settings | None = None, **changes: Any) -> BayesianMetaOptimizer:
    options = {name: changes.pop(name) for name in ("tier", "progress_fn", "clock_fn", "storage") if name in changes}
    return BayesianMetaOptimizer(
        evaluator,
        settings_for(pathlib.Path("unused"), **changes),
        base or Settings(),
        worker="here",
        storage=options.pop("storage", None) or optuna.storages.InMemoryStorage(),
        **options,
    )


def test_usage_of_the_specification() -> None:
    """Chapter 8.2.3: a plain function, a result with best_params."""
    config = MetaOptimizationConfig(default_tier="fast")
    optimizer = BayesianMetaOptimizer(bowl, config, storage=optuna.storages.InMemoryStorage())
    assert optimizer.study is None
    result = optimizer.optimize(n_trials=40)
    assert result.n_trials == len(result.study.trials) == 40
    assert result.best_value == bowl(result.best_params) == result.study.best_value
    assert result.best_value < bowl(optimizer.campaign.base) - 0.03
    assert result.stop_reason is StopReason.TRIALS


@pytest.mark.slow
def test_better_than_random_search() -> None:
    """T-73: over 20 seeds, the best of 50 trials is lower than the best of 50 random ones (Mann-Whitney)."""

    def modelled(seed: int) -> float:
        return optimizer_for(bowl, seed=seed).optimize(50).best_value

    def at_random(seed: int) -> float:
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
        space = search_space(MetaOptimizationConfig(), "fast")
        return min(bowl(study.ask(space).params) for _ in range(50))

    ours, theirs = [modelled(seed) for seed in range(20)], [at_random(seed) for seed in range(20)]
    assert scipy.stats.mannwhitneyu(ours, theirs, alternative="less").pvalue < 0.05


def test_first_trial_is_the_settings_at_the_start() -> None:
    base = parse_settings({"orchestration": {"cusum_k": 0.33}, "kernels": {"log_sig_depth": 4}})
    evaluator = FoldedBowl()
    optimizer = optimizer_for(evaluator, base)
    optimizer.optimize(1)
    assert evaluator.batches == [[{
        "log_sig_depth": 4, "wtmm_buffer_size": 128, "besov_cone_c": 1.5, "cusum_k": 0.33, "sinkhorn_alpha": 0.5,
        "volatility_alpha": 0.1,
    }]]  # fmt: skip
    assert optimizer.best_changes() == {}


def test_settings_outside_of_the_ranges_are_judged_as_they_are() -> None:
    """The ranges bound what is tried, not what is there: the record keeps the nearest point and the true value."""
    base = parse_settings({"orchestration": {"cusum_k": 1.7}, "kernels": {"log_sig_depth": 1}})
    evaluator = FoldedBowl(constraint_fn=lambda candidate: -1.0)
    optimizer = optimizer_for(evaluator, base)
    optimizer.optimize(20)
    first = evaluator.batches[0][0]
    assert (first["cusum_k"], first["log_sig_depth"]) == (1.7, 1)
    record = optimizer.records[0]
    assert (record.params["cusum_k"], record.params["log_sig_depth"]) == (1.0, 2)
    assert record.candidate == first
    assert all(0.1 <= candidate["cusum_k"] <= 1.0 for batch in evaluator.batches for candidate in batch[1:])


@pytest.mark.parametrize("tier", ["fast", "deep"])
def test_every_trial_is_in_range_and_fits_the_schema(tier: str) -> None:
    evaluator = FoldedBowl()
    optimizer = optimizer_for(evaluator, tier=tier)
    optimizer.optimize(40)
    space = search_space(optimizer.meta_config, tier)
    assert len(space) == {"fast": 6, "deep": 23}[tier]
    for batch in evaluator.batches:
        for candidate in batch:
            assert set(candidate) == set(space)
            document: dict[str, dict[str, Any]] = {"orchestration": {}, "kernels": {}}
            for name, value in candidate.items():
                assert type(value) in (int, float)
                section = "kernels" if f"kernels.{name}" in SPECS else "orchestration"
                document[section][name] = value
            parse_settings(document)  # raises where two values make no sense together
    assert optimizer.get_best_config().content_hash()


@pytest.mark.parametrize("max_structures", [1, 3, 8])
def test_few_structures_are_visited_and_evaluated_together(max_structures: int) -> None:
    evaluator = FoldedBowl()
    optimizer = optimizer_for(evaluator, tier="deep", max_structures=max_structures, pruning=False)
    optimizer.optimize(80)

    def structure(candidate: dict[str, Any]) -> tuple[Any, ...]:
        return tuple(candidate[name] for name in sorted(STRUCTURAL & set(candidate)))

    groups = [{structure(candidate) for candidate in batch} for batch in evaluator.batches]
    assert all(len(group) == 1 for group in groups)
    assert len(set().union(*groups)) == max_structures
    startup = {structure(record.params) for record in optimizer.records[:10]}
    assert {structure(record.params) for record in optimizer.records[10:]} <= startup
    assert max(len(batch) for batch in evaluator.batches) > 1
    # one call per structure in a batch of eight
    assert len(evaluator.batches) <= 10 * min(max_structures, 8)


def test_evaluator_may_say_what_a_structure_is() -> None:
    """Widths and depths that resolve to one network are one structure, and keep one pair of values."""

    class Resolving(FoldedBowl):
        def structure_of(self, candidate: Any) -> Any:
            return candidate["dgm_width_size"] * candidate["dgm_depth"] > 300

    evaluator = Resolving()
    optimizer = optimizer_for(evaluator, tier="deep")
    optimizer.optimize(24)
    pairs = {(record.params["dgm_width_size"], record.params["dgm_depth"]) for record in optimizer.records}
    assert len(pairs) == 2


def test_good_structures_are_preferred() -> None:
    optimizer = optimizer_for(lambda candidate: bowl(candidate) + 0.5 * abs(candidate["log_sig_depth"] - 4))
    optimizer.optimize(60)
    late = [record.params["log_sig_depth"] for record in optimizer.records[40:]]
    assert late.count(OPTIMUM["log_sig_depth"]) > len(late) / 2


def test_batches_are_of_the_size_that_is_set() -> None:
    evaluator = FoldedBowl()
    optimizer_for(evaluator, batch_size=5, max_structures=1, n_startup_trials=1).optimize(12)
    assert [len(batch) for batch in evaluator.batches] == [5, 5, 2]


def test_infeasible_trials_are_not_the_best_and_are_avoided() -> None:
    """The bowl falls towards cusum_k = 0.7, of which only values below 0.5 are feasible."""
    evaluator = FoldedBowl(constraint_fn=lambda candidate: candidate["cusum_k"] - 0.5, spread=0.0)
    optimizer = optimizer_for(evaluator, pruning=False)
    result = optimizer.optimize(60)
    assert result.best_params["cusum_k"] <= 0.5
    assert result.best_number == result.study.best_trial.number
    feasible = [record for record in optimizer.records if record.is_feasible]
    assert result.best_value == min(record.value for record in feasible if record.value is not None)
    lowest = min(optimizer.records, key=lambda record: record.value or math.inf)
    assert not lowest.is_feasible, "the constraint was never in the way"
    late = [record.is_feasible for record in optimizer.records[30:]]
    assert sum(late) > 0.6 * len(late)


def test_without_a_feasible_trial_there_is_no_best() -> None:
    optimizer = optimizer_for(FoldedBowl(constraint_fn=lambda candidate: 1.0))
    result = optimizer.optimize(9)
    assert result.best_params == {} and result.best_value == math.inf and result.best_number is None
    assert optimizer.best_changes() == {}
    assert optimizer.get_best_config() == optimizer.base_config


def test_hopeless_trials_are_given_up_after_a_fold() -> None:
    pruned, whole = FoldedBowl(spread=0.0), FoldedBowl(spread=0.0)
    optimizer = optimizer_for(pruned)
    optimizer.optimize(60)
    unpruned = optimizer_for(whole, pruning=False)
    unpruned.optimize(60)
    given_up = [record for record in optimizer.records if record.state == "pruned"]
    assert len(given_up) > 5
    assert not [record for record in unpruned.records if record.state == "pruned"]
    assert min(record.number for record in given_up) >= 16, "pruned before there was anything to compare with"
    for record in given_up:
        assert len(record.fold_values) == 1
        earlier = [
            other.fold_values[0]
            for other in optimizer.records[: record.number - record.number % 8]
            if other.is_feasible
        ]
        assert record.fold_values[0] > sorted(earlier)[(len(earlier) - 1) // 2]
    assert optimizer._result(StopReason.TRIALS).best_number not in [record.number for record in given_up]


def test_pruning_looks_at_earlier_batches_only() -> None:
    """Else a batch that was interrupted would be judged by what of it was done before."""
    optimizer = optimizer_for(FoldedBowl(), pruning=False)
    optimizer.optimize(40)
    campaign = msgspec.structs.replace(optimizer.campaign, pruning=True)
    rules = [prune_fn_of(campaign, optimizer.records[:count], 27) for count in (24, 28, 40)]
    means = [0.5 + 0.001 * step for step in range(700)]
    decisions = [[rule(0, 1, mean) for mean in means] for rule in rules if rule is not None]
    assert len(decisions) == 3 and decisions[0] == decisions[1] == decisions[2]
    later = prune_fn_of(campaign, optimizer.records, 39)
    assert later is not None and [later(0, 1, mean) for mean in means] != decisions[0]
    assert prune_fn_of(campaign, optimizer.records, 15) is None


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_trial_without_a_finite_value_has_failed(bad: float) -> None:
    def value_fn(candidate: Any) -> float:
        return bad if candidate["cusum_k"] > 0.6 else bowl(candidate)

    optimizer = optimizer_for(value_fn)
    result = optimizer.optimize(40)
    failed = [record for record in optimizer.records if record.state == "failed"]
    assert failed and all(record.params["cusum_k"] > 0.6 and record.value is None for record in failed)
    assert str(bad) in failed[0].reason
    assert result.n_trials == 40
    late = [record.state for record in optimizer.records[24:]]
    assert late.count("failed") < 0.4 * len(late), "failures are not learnt from"


def test_constraint_that_is_no_number_fails_the_trial() -> None:
    optimizer = optimizer_for(FoldedBowl(constraint_fn=lambda candidate: math.nan))
    optimizer.optimize(3)
    assert {record.state for record in optimizer.records} == {"failed"}


def test_ends_by_patience() -> None:
    evaluator = FoldedBowl(value_fn=lambda candidate: 1.0, spread=0.0)
    optimizer = optimizer_for(evaluator, patience_trials=20)
    result = optimizer.optimize(200)
    # trial 0 is the last improvement; the end of the batch in which 20 more are done is 24
    assert (result.stop_reason, result.n_trials) == (StopReason.PATIENCE, 24)
    assert optimizer.optimize(200).n_trials == 24


def test_small_improvements_do_not_count() -> None:
    values = iter(1.0 - 1e-6 * index for index in range(1000))
    falling: Any = lambda candidate: next(values)  # noqa: E731
    assert optimizer_for(falling, patience_trials=16).optimize(200).n_trials == 24
    values = iter(1.0 - 1e-6 * index for index in range(1000))
    assert optimizer_for(falling, patience_trials=16, min_improvement=1e-7).optimize(64).n_trials == 64


def test_ends_by_time() -> None:
    now = 0.0

    def evaluate(candidate: Any) -> float:
        nonlocal now
        now += 10.0
        return bowl(candidate)

    optimizer = optimizer_for(evaluate, time_limit_s=150.0, clock_fn=lambda: now)
    result = optimizer.optimize(100)
    assert (result.stop_reason, result.n_trials) == (StopReason.TIME, 16)  # 80 s, 160 s
    assert optimizer.optimize(total_trials=30).n_trials == 30  # each run has its own limit


def test_ends_when_asked() -> None:
    seen: list[Progress] = []

    def note(progress: Progress) -> None:
        seen.append(progress)
        optimizer.stop()

    optimizer = optimizer_for(FoldedBowl(), progress_fn=note)
    result = optimizer.optimize(100)
    assert (result.stop_reason, result.n_trials) == (StopReason.ASKED, 8)
    assert seen[-1].num_finished == 8 and seen[-1].num_total == 100
    assert sum(len(progress.latest) for progress in seen) == 8
    assert optimizer.optimize(total_trials=9).n_trials == 9


def test_progress_says_what_the_records_say() -> None:
    seen: list[Progress] = []
    optimizer = optimizer_for(FoldedBowl(), progress_fn=seen.append)
    result = optimizer.optimize(30)
    last = seen[-1]
    assert (last.best_value, last.best_number) == (result.best_value, result.best_number)
    assert last.num_structures == len({record.params["log_sig_depth"] for record in optimizer.records})
    assert [progress.num_finished for progress in seen] == sorted(progress.num_finished for progress in seen)


def test_number_of_trials_is_that_of_the_tier() -> None:
    changes: dict[str, Any] = {"n_trials": 11, "max_deep_tuning_iterations": 13}
    assert optimizer_for(bowl, **changes).optimize().n_trials == 11
    assert optimizer_for(bowl, tier="deep", **changes).optimize().n_trials == 13
    assert optimizer_for(bowl, enable_deep_tuning=True, **changes).optimize().n_trials == 13


def test_evaluator_must_judge_every_candidate() -> None:
    class Short(FoldedBowl):
        def evaluate_batch(self, candidates: Any, *, prune_fn: Any = None) -> list[Evaluation]:
            return super().evaluate_batch(candidates, prune_fn=prune_fn)[:-1]

    with pytest.raises(TuningError, match="judged"):
        optimizer_for(Short()).optimize(4)
    with pytest.raises(TypeError, match="evaluate_batch"):
        optimizer_for(object())
    with pytest.raises(ValueError, match="number of trials"):
        optimizer_for(bowl).optimize(-1)


def test_best_settings_are_the_base_with_the_best_values() -> None:
    base = parse_settings({"kafka": {"group": "mine"}, "orchestration": {"grace_period_steps": 31}})
    optimizer = optimizer_for(FoldedBowl(), base)
    result = optimizer.optimize(30)
    best = optimizer.get_best_config()
    assert best["kafka.group"] == "mine" and best["orchestration.grace_period_steps"] == 31
    changed = {path for path, value in best.items() if value != base[path]}
    assert changed == set(optimizer.best_changes()) and changed
    for name, value in result.best_params.items():
        assert value in (best[path] for path in SPECS if path.endswith(f".{name}"))


def test_word_auto_is_resolved_for_the_first_trial() -> None:
    from usp_daemon.compute import predictor_config

    evaluator = FoldedBowl()
    optimizer_for(evaluator, tier="deep").optimize(1)
    assert evaluator.batches[0][0]["cusum_h"] == float(predictor_config(Settings()).cusum_h)


def test_records_are_equal_whatever_the_storage(tmp_path: pathlib.Path) -> None:
    in_memory = optimizer_for(FoldedBowl())
    in_memory.optimize(20)
    in_a_file = BayesianMetaOptimizer(FoldedBowl(), settings_for(tmp_path), Settings(), worker="elsewhere")
    in_a_file.optimize(20)
    assert essence(in_memory.records) == essence(in_a_file.records)
    assert (tmp_path / "usp-fast.journal").exists()
