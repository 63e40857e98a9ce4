"""When a candidate is adopted: on folds that the search has not seen, and only if the gain is no accident."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from fake_lanes import FakePrograms

from usp_daemon.config import Settings, Value
from usp_daemon.tuning import DecisionRule, Evaluation, FoldPlan, History, WalkForwardEvaluator, decide
from usp_daemon.tuning._decision import block_gains
from usp_daemon.tuning._scorecard import NUM_BLOCKS, Scorecard

SELECTION, VALIDATION = 3, 2


def card(losses: np.ndarray, count: int = 50) -> Scorecard:
    """Mean losses by (symbol, fold, block)."""
    made = Scorecard.empty(*losses.shape[:2])
    made.loss, made.count = losses * count, np.full(losses.shape, count)
    return made


def drawn(seed: int, symbols: int = 1, level: float = 1.0) -> np.ndarray:
    shape = (symbols, SELECTION + VALIDATION, NUM_BLOCKS)
    return level * np.random.default_rng(seed).uniform(0.8, 1.2, shape)


class Source:
    """Scorecards by the candidate's only parameter; alarms on demand."""

    num_selection_folds = SELECTION

    def __init__(self, base: Scorecard, cards: dict[float, Scorecard], constraint: float = 0.0) -> None:
        self.base_scorecard, self.cards, self.constraint = base, cards, constraint
        self.evaluated: list[Mapping[str, Value]] = []

    def scorecard(self, candidate: Mapping[str, Value]) -> Scorecard | None:
        return self.cards.get(float(candidate["x"])) if candidate in self.evaluated else None

    def validation_constraint(self, card: Scorecard) -> float:
        return self.constraint

    def evaluate_batch(self, candidates: Sequence[Mapping[str, Value]]) -> list[Evaluation]:
        self.evaluated += candidates
        return []


def outcome(mine: np.ndarray, base: np.ndarray, value: float = 0.9, constraint: float = 0.0, **rule: float):  # type: ignore[no-untyped-def]
    source = Source(card(base), {1.0: card(mine)}, constraint)
    return decide([{"x": 1.0}], [Evaluation(value)], source, rule=DecisionRule(**rule))


def test_a_gain_that_lasts_is_adopted_with_its_size() -> None:
    base = drawn(0)
    decision = outcome(0.97 * base, base)
    assert decision.adopted
    assert decision.candidate == {"x": 1.0}
    assert decision.gain == pytest.approx(0.03)
    assert decision.num_blocks == VALIDATION * NUM_BLOCKS


def test_only_the_validation_folds_count() -> None:
    base = drawn(0)
    mine = base.copy()
    mine[:, :SELECTION] *= 0.5
    decision = outcome(mine, base, value=0.5)
    assert not decision.adopted and decision.gain == 0.0 and decision.candidate == {"x": 1.0}
    assert decision.selection_value == 0.5


def test_a_gain_that_one_block_makes_may_be_chance() -> None:
    base = drawn(0)
    mine = base.copy()
    mine[0, SELECTION, 0] *= 0.5
    mine[0, SELECTION, 1:3] *= 1.1
    decision = outcome(mine, base, min_t=1.0)
    assert decision.gain > 0.01
    assert not decision.adopted and "may be chance" in decision.reason
    assert outcome(mine, base, min_t=0.1).adopted


def test_a_gain_too_small_to_matter_is_not_worth_a_change() -> None:
    base = drawn(0)
    assert "below" in outcome(0.999 * base, base).reason
    assert outcome(0.999 * base, base, min_gain=0.0005).adopted


def test_chance_alone_is_rarely_adopted() -> None:
    """Candidates that differ by noise: about one in twenty passes two standard errors, one in six one."""
    for errors, least, most in ((2.0, 0.01, 0.08), (1.0, 0.1, 0.24)):
        adopted = [
            outcome(drawn(2 * seed + 1), drawn(2 * seed), min_gain=0.002, min_t=errors).adopted for seed in range(400)
        ]
        assert least < np.mean(adopted) < most


def test_the_best_feasible_candidate_is_the_one_that_is_tested() -> None:
    base = drawn(0)
    source = Source(card(base), {x: card(0.9 * base) for x in (1.0, 2.0, 3.0, 4.0)})
    candidates = [{"x": x} for x in (1.0, 2.0, 3.0, 4.0)]
    evaluations = [
        Evaluation(0.7, pruned=True),
        Evaluation(0.6, constraint=0.1),
        Evaluation(0.9),
        Evaluation(math.inf),
    ]
    assert decide(candidates, evaluations, source).candidate == {"x": 3.0}
    assert source.evaluated == [{"x": 3.0}]  # its sums were not there: they are those of an earlier process


def test_the_next_best_are_tested_where_the_best_fails_and_no_more_than_three() -> None:
    base = drawn(0)
    values = {1.0: 0.6, 2.0: 0.7, 3.0: 0.8, 4.0: 0.9}
    candidates = [{"x": x} for x in values]
    evaluations = [Evaluation(value) for value in values.values()]
    cards = {x: card(1.1 * base) for x in values}
    third = Source(card(base), {**cards, 3.0: card(0.9 * base)})
    assert decide(candidates, evaluations, third).candidate == {"x": 3.0}
    fourth = Source(card(base), {**cards, 4.0: card(0.9 * base)})
    decision = decide(candidates, evaluations, fourth)
    assert not decision.adopted and decision.candidate == {"x": 1.0}, "the reason is that of the best"
    assert fourth.evaluated == [{"x": 1.0}, {"x": 2.0}, {"x": 3.0}]


def test_reasons_to_stay() -> None:
    base = drawn(0)
    source = Source(card(base), {})
    assert "feasible" in decide([], [], source).reason
    assert "feasible" in decide([{"x": 1.0}], [Evaluation(0.5, constraint=1.0)], source).reason
    assert "better" in decide([{"x": 1.0}], [Evaluation(1.0)], source).reason
    assert "alarms" in outcome(0.9 * base, base, constraint=0.5).reason
    broken = 0.9 * base
    broken[0, -1, -1] = np.inf
    assert "finite" in outcome(broken, base).reason


def test_symbols_weigh_alike_whatever_their_unit() -> None:
    base = np.concatenate([drawn(0), drawn(1, level=1e6)])
    mine = base.copy()
    mine[0] *= 0.9
    gains = block_gains(card(mine), card(base), SELECTION)
    assert gains.mean() == pytest.approx(0.05)


def test_symbols_and_blocks_without_anything_are_left_out() -> None:
    base = card(np.concatenate([drawn(0), np.zeros_like(drawn(1))]))
    mine = card(np.concatenate([0.9 * drawn(0), np.zeros_like(drawn(1))]))
    for one in (base, mine):
        one.count[:, -1, -1] = 0
        one.loss[:, -1, -1] = 0.0
    gains = block_gains(mine, base, SELECTION)
    assert len(gains) == VALIDATION * NUM_BLOCKS - 1
    assert np.isfinite(gains).all()
    # the block without ticks makes the base's mean loss that of the others
    assert gains.mean() == pytest.approx(0.1)


def test_with_the_evaluator() -> None:
    """What suits the series is adopted; what only suited its beginning is not."""
    generator = np.random.default_rng(0)
    calm = generator.standard_normal(1500)
    turns = np.concatenate([calm[:1125], np.cumsum(3.0 * generator.standard_normal(375))])
    plan = FoldPlan(train_ratio=0.3, n_folds=3, n_validation=2, embargo=10, min_test=20)
    adopted = {}
    for name, values in (("calm", calm), ("turns", turns)):
        ticks = History.from_arrays({name: (10**9 * np.arange(len(values)), values)})
        judge = WalkForwardEvaluator(
            ticks, Settings(), folds=plan, keep_programs=False, programs=FakePrograms(), chunk_ticks=50
        )
        candidates = [{"volatility_alpha": alpha, "cusum_h": 40.0} for alpha in (0.05, 0.2)]
        evaluations = judge.evaluate_batch(candidates)
        assert len(evaluations[0].fold_values) == 3
        assert evaluations[0].value < 1.0 < evaluations[1].value
        adopted[name] = decide(candidates, evaluations, judge).adopted
    assert adopted == {"calm": True, "turns": False}
