"""The evaluator's own doing, on a predictor that is a plain loop: scoring, causality, pruning, limits."""

import math
from typing import Any

import numpy as np
import pytest
from fake_lanes import FakePrograms, steps

from usp_daemon.config import MetaOptimization, Settings
from usp_daemon.core import PredictorConfig
from usp_daemon.tuning import (
    BatchEvaluator,
    EvaluationStoppedError,
    FoldPlan,
    History,
    HistoryError,
    Progress,
    TooShortError,
    UnknownParameterError,
    WalkForwardEvaluator,
)
from usp_daemon.tuning._objective import WORST_VALUE

SECOND = 1_000_000_000
PLAN = FoldPlan(train_ratio=0.4, n_folds=3, n_validation=0, embargo=10, min_test=20)
BASE_ALPHA = PredictorConfig.volatility_alpha
BASE_H = PredictorConfig.cusum_h


def noise(num: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, num]).standard_normal(num)


def history(**values: np.ndarray) -> History:
    return History.from_arrays({name: (SECOND * np.arange(len(v)), v) for name, v in values.items()})


def evaluator(ticks: History, settings: Settings | None = None, **changes: Any) -> WalkForwardEvaluator:
    usual: dict[str, Any] = {"folds": PLAN, "chunk_ticks": 25, "num_threads": 2, "programs": FakePrograms()}
    return WalkForwardEvaluator(ticks, settings or Settings(), keep_programs=False, **{**usual, **changes})


TWO = history(calm=noise(500), walk=np.cumsum(noise(730, 1)))


def expected(ticks: History, alpha: float, plan: FoldPlan = PLAN) -> list[float]:
    """The fold values by the plain loop."""
    by_symbol = []
    for one in ticks.symbols:
        mine, base = (steps(one.values, a, BASE_H)[0] for a in (alpha, BASE_ALPHA))
        by_symbol.append([np.nansum(mine[f.test]) / np.nansum(base[f.test]) for f in plan.split(len(one))])
    return np.exp(np.mean(np.log(by_symbol), axis=0)).tolist()


def test_values_are_those_of_the_plain_loop() -> None:
    judge = evaluator(TWO)
    assert isinstance(judge, BatchEvaluator)
    alphas = [0.05, 0.2, 0.3, 0.1, 0.9]
    for alpha, one in zip(alphas, judge.evaluate_batch([{"volatility_alpha": a} for a in alphas]), strict=True):
        assert one.fold_values == pytest.approx(expected(TWO, alpha), rel=1e-5)
        assert one.value == pytest.approx(np.mean(one.fold_values), rel=1e-12)
        assert not one.pruned


def test_the_base_is_worth_exactly_one() -> None:
    judge = evaluator(TWO)
    named = {"volatility_alpha": BASE_ALPHA, "cusum_h": BASE_H}
    for one in judge.evaluate_batch([{}, named, {"volatility_alpha": 0.2}])[:2]:
        assert (one.value, one.fold_values) == (1.0, (1.0, 1.0, 1.0))
        assert one.constraint <= 0.0
    # and not only because it is recognised: a parameter that this predictor does not have changes nothing
    assert judge.evaluate_batch([{"besov_cone_c": 2.0}])[0].value == 1.0


def test_a_planted_effect_is_found() -> None:
    """Around a fixed level a sluggish forecast is better, along a random walk a quick one."""
    choices = [{"volatility_alpha": alpha} for alpha in (0.05, 0.1, 0.2, 0.3)]
    calm = evaluator(TWO.only(["calm"])).evaluate_batch(choices)
    walk = evaluator(TWO.only(["walk"])).evaluate_batch(choices)
    assert [one.value for one in calm] == sorted(one.value for one in calm)
    assert [one.value for one in walk] == sorted((one.value for one in walk), reverse=True)
    assert calm[-1].value > 1.02 and walk[-1].value < 0.98


def test_company_order_and_threads_change_nothing() -> None:
    candidates = [{"volatility_alpha": 0.05 + 0.01 * k} for k in range(23)]
    together = [one.fold_values for one in evaluator(TWO).evaluate_batch(candidates)]
    judge = evaluator(TWO, num_threads=1)
    alone = [judge.evaluate_batch([one])[0].fold_values for one in reversed(candidates)]
    assert together == alone[::-1]


def test_it_is_a_plain_function_too() -> None:
    judge = evaluator(TWO)
    assert judge({"volatility_alpha": 0.2}) == judge.evaluate_batch([{"volatility_alpha": 0.2}])[0].value
    assert judge({"cusum_h": 3.0}) == math.inf


def test_what_comes_after_a_fold_changes_nothing_of_its_score() -> None:
    candidates = [{"volatility_alpha": 0.2}, {"volatility_alpha": 0.05}]
    values = noise(500)
    plan = PLAN.split(500)
    first = evaluator(history(a=values)).evaluate_batch(candidates)
    for number, fold in enumerate(plan[:-1]):
        changed = values.copy()
        changed[fold.test.stop :] = 1e3 * noise(500 - fold.test.stop, 9)
        second = evaluator(history(a=changed)).evaluate_batch(candidates)
        for one, two in zip(first, second, strict=True):
            # the typical move of the whole series enters only as a guard against a division by zero
            assert one.fold_values[: number + 1] == pytest.approx(two.fold_values[: number + 1], rel=1e-3)
            assert one.fold_values[number + 1] != pytest.approx(two.fold_values[number + 1], rel=1e-3)


def test_ticks_in_training_and_embargo_are_not_scored() -> None:
    """A spike that only they see leaves the losses of the test ticks alone once the level has forgotten it."""
    judge = evaluator(history(a=noise(500)))
    judge.evaluate_batch([{"volatility_alpha": 0.3}])
    card = judge.scorecard({"volatility_alpha": 0.3})
    assert card is not None
    folds = PLAN.split(500)
    losses, _ = steps(noise(500), 0.3, BASE_H)
    assert card.loss.sum(axis=2)[0] == pytest.approx([losses[fold.test].sum() for fold in folds])
    assert card.count.sum(axis=2)[0].tolist() == [fold.test.stop - fold.test.start for fold in folds]


def test_gaps_are_not_scored_and_do_no_harm() -> None:
    values = noise(500)
    values[[0, 1, 250, 251, 252, 333, 499]] = np.nan
    judge = evaluator(history(a=values))
    (one,) = judge.evaluate_batch([{"volatility_alpha": 0.25}])
    assert one.fold_values == pytest.approx(expected(history(a=values), 0.25), rel=1e-5)
    assert judge.base_scorecard.count.sum() == sum(np.isfinite(values[fold.test]).sum() for fold in PLAN.split(500))


def test_who_is_pruned_runs_no_further_and_changes_nothing_for_the_others() -> None:
    candidates = [{"volatility_alpha": 0.052 + 0.005 * k} for k in range(40)]
    whole_programs, pruned_programs = FakePrograms(), FakePrograms()
    whole = evaluator(TWO, programs=whole_programs).evaluate_batch(candidates)
    told: list[tuple[int, int, float]] = []

    def odd_ones(index: int, folds_done: int, mean: float) -> bool:
        told.append((index, folds_done, mean))
        return index % 2 == 1 and folds_done == 1

    half = evaluator(TWO, programs=pruned_programs).evaluate_batch(candidates, prune_fn=odd_ones)
    for index, (one, two) in enumerate(zip(whole, half, strict=True)):
        assert two.pruned == (index % 2 == 1)
        assert two.fold_values == one.fold_values[: 1 if two.pruned else 3]
    assert told[:2] == [(0, 1, whole[0].fold_values[0]), (1, 1, whole[1].fold_values[0])]
    assert {index for index, done, _ in told if done == 2} == set(range(0, 40, 2))
    assert all(mean == pytest.approx(np.mean(whole[index].fold_values[:done])) for index, done, mean in told)
    assert pruned_programs.made[3].rows_run < 0.9 * whole_programs.made[3].rows_run


def test_everybody_may_be_pruned() -> None:
    judge = evaluator(TWO)
    for _ in range(2):  # with the base on board, and without
        (one,) = judge.evaluate_batch([{"volatility_alpha": 0.2}], prune_fn=lambda *_: True)
        assert one.pruned and len(one.fold_values) == 1
    assert judge.base_scorecard.folds_done == 3


def test_candidates_of_several_structures_are_compared_with_the_same_base() -> None:
    programs = FakePrograms()
    judge = evaluator(TWO, programs=programs)
    other = judge.evaluate_batch([{"log_sig_depth": 4, "volatility_alpha": 0.2}, {"log_sig_depth": 2}])
    same = judge.evaluate_batch([{"volatility_alpha": 0.2}])
    assert other[0].fold_values == same[0].fold_values  # this predictor computes the same in every structure
    assert other[1].value == 1.0
    assert judge.num_programs == len(programs) == 3
    structures = [judge.structure_of(one) for one in ({}, {"volatility_alpha": 0.2}, {"log_sig_depth": 4})]
    assert structures[0] == structures[1] != structures[2]


def test_thresholds_below_the_asked_rate_are_refused_without_a_run() -> None:
    programs = FakePrograms()
    judge = evaluator(TWO, programs=programs)
    low, contradictory = judge.evaluate_batch(
        [{"cusum_h": 0.9 * BASE_H}, {"sinkhorn_epsilon_min": 0.1, "sinkhorn_epsilon_0": 0.05}]
    )
    for one in (low, contradictory):
        assert one.value == WORST_VALUE and one.constraint > 0.0 and one.fold_values == ()
    assert not programs.made
    # a larger allowance needs less, a smaller one more
    assert judge.evaluate_batch([{"cusum_h": 0.9 * BASE_H, "cusum_k": 0.7}])[0].constraint <= 0.0
    assert judge.evaluate_batch([{"cusum_h": BASE_H, "cusum_k": 0.4}])[0].constraint > 0.0


def test_a_threshold_that_the_operator_chose_by_hand_is_the_limit() -> None:
    from usp_daemon.tuning import candidate_settings

    by_hand = candidate_settings(Settings(), {"cusum_h": 6.0})
    judge = evaluator(TWO, by_hand)
    assert judge.evaluate_batch([{"cusum_h": 6.5, "volatility_alpha": 0.2}])[0].value < WORST_VALUE
    assert judge.evaluate_batch([{"cusum_h": 5.5}])[0].value == WORST_VALUE


def test_what_is_not_finite_is_infeasible_and_never_nan() -> None:
    (one,) = evaluator(TWO).evaluate_batch([{"kernel_ridge_lambda": 1e-3}])
    assert one.value == WORST_VALUE and one.constraint >= 1.0
    assert all(math.isfinite(value) for value in one.fold_values)


def test_unknown_names_are_an_error_not_a_bad_candidate() -> None:
    with pytest.raises(UnknownParameterError, match="nonsense"):
        evaluator(TWO).evaluate_batch([{"nonsense": 1.0}])


def test_symbols_that_are_too_short_are_left_out_by_name() -> None:
    judge = evaluator(history(long=noise(500), short=noise(60)))
    assert judge.symbols == ("long",)
    assert "60 ticks are too few" in judge.skipped["short"]
    with pytest.raises(HistoryError, match="short: 60 ticks"):
        evaluator(history(short=noise(60)))


def test_it_stops_between_chunks_when_asked_or_when_the_time_is_over() -> None:
    calls: list[Progress] = []
    judge = evaluator(TWO, progress_fn=calls.append, stop_fn=lambda: len(calls) >= 3, num_threads=1)
    with pytest.raises(EvaluationStoppedError, match="asked"):
        judge.evaluate_batch([{"volatility_alpha": 0.2}])
    assert [one.rows_done for one in calls] == [25, 50, 75]
    with pytest.raises(EvaluationStoppedError, match="time"):
        evaluator(TWO, time_limit_s=-1.0).evaluate_batch([{"volatility_alpha": 0.2}])


def test_the_fingerprint_is_that_of_ticks_base_and_folds() -> None:
    one = evaluator(TWO).fingerprint
    assert evaluator(TWO, num_threads=1).fingerprint == one
    others = [
        evaluator(TWO.only(["calm"])),
        evaluator(TWO, folds=FoldPlan(0.5, 3, 0, 10, 20)),
        evaluator(TWO, score="absolute_error"),
        evaluator(TWO, Settings(kernels=type(Settings().kernels)(sde_dt=0.02))),
    ]
    assert len({one, *(other.fingerprint for other in others)}) == 5


def test_the_plan_is_that_of_the_settings() -> None:
    plan = FoldPlan.from_settings(
        Settings(meta_optimization=MetaOptimization(train_ratio=0.6, n_folds=4, embargo_ticks=7))
    )
    assert plan == FoldPlan(train_ratio=0.6, n_folds=4, embargo=7)
    section = MetaOptimization(holdout=0.4, validation_folds=3)
    assert FoldPlan.from_settings(section) == FoldPlan(n_validation=3, holdout=0.4)


def test_the_newest_share_is_kept_from_the_search() -> None:
    plan = FoldPlan(train_ratio=0.5, n_folds=3, n_validation=2, embargo=10, min_test=20, holdout=0.4)
    tests = [fold.test for fold in plan.split(1000)]
    assert tests == [slice(310, 400), slice(410, 500), slice(510, 600), slice(610, 800), slice(810, 1000)]
    alone = FoldPlan(train_ratio=0.5, n_folds=3, n_validation=0, embargo=10, min_test=20)
    assert tests[:3] == [fold.test for fold in alone.split(600)]
    with pytest.raises(TooShortError):
        FoldPlan(train_ratio=0.3, n_folds=1, n_validation=5, holdout=0.1).split(1000)


def test_a_score_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="score"):
        evaluator(TWO, score="mape")
