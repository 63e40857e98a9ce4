"""Whether the best candidate is good enough to be adopted: a test on folds that the search has not seen.

The best of many candidates looks better than it is, the more so the more were tried and the less they differ. Hence the
search is shown the first folds only, few candidates are chosen by them, and one must prove itself on the last folds.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import msgspec
import numpy as np

from usp_daemon.config import MetaOptimization, Settings, Value

from ._evaluation import Evaluation
from ._scorecard import Scorecard

_DEFAULTS = MetaOptimization()
# So many are tested, best first: one may fail for its alarms, or because it suited the selection folds alone.
NUM_FINALISTS = 3


@dataclass(frozen=True)
class DecisionRule:
    """What a candidate must show on the validation folds: at least ``min_gain`` less loss (a share of the base's), and
    so many standard errors of it, ``min_t``.

    Few candidates are tested, chosen on other ticks, so nothing is corrected for many trials. What passes by chance
    meets live probation.
    """

    min_gain: float = _DEFAULTS.min_gain
    min_t: float = _DEFAULTS.min_standard_errors

    @classmethod
    def from_settings(cls, settings: Settings | MetaOptimization) -> "DecisionRule":
        """What ``[meta_optimization]`` asks for."""
        section = settings.meta_optimization if isinstance(settings, Settings) else settings
        return cls(min_gain=section.min_gain, min_t=section.min_standard_errors)


class Decision(msgspec.Struct, frozen=True):
    """The answer, with its evidence. ``candidate`` is what was looked at, empty where nothing came so far.

    ``gain`` is the mean fall of the loss on the validation folds, as a share of the base's; it and its standard error
    are None where there is none that is a number.
    """

    adopted: bool
    reason: str
    candidate: dict[str, Value] = {}
    selection_value: float = 1.0
    gain: float | None = None
    standard_error: float | None = None
    num_blocks: int = 0


@runtime_checkable
class ScorecardSource(Protocol):
    """What a decision asks of the evaluator."""

    @property
    def base_scorecard(self) -> Scorecard:
        """The base's own sums."""
        ...

    @property
    def num_selection_folds(self) -> int:
        """Leading folds that the search was shown; the others are for validation."""
        ...

    def scorecard(self, candidate: Mapping[str, Value]) -> Scorecard | None:
        """A candidate's sums over all folds, None where it was not evaluated."""
        ...

    def validation_constraint(self, card: Scorecard) -> float:
        """The constraint on the validation folds' alarms; at most 0 is feasible."""
        ...

    def evaluate_batch(self, candidates: Sequence[Mapping[str, Value]]) -> list[Evaluation]:
        """Evaluate, so that there are scorecards."""
        ...


def decide(
    candidates: Sequence[Mapping[str, Value]],
    evaluations: Sequence[Evaluation],
    source: ScorecardSource,
    *,
    rule: DecisionRule | None = None,
) -> Decision:
    """Test the best feasible candidates on the validation folds, best first, until one passes; else the base stays.

    Args:
      candidates: what was tried, in any order.
      evaluations: one for each, by the selection folds.
      source: where the sums behind them are; a candidate of an earlier process is evaluated anew.
      rule: what has to be shown.

    Returns:
      The decision. Ties go to the candidate that was tried first.
    """
    usable = [
        index
        for index, one in enumerate(evaluations)
        if not one.pruned and one.constraint <= 0.0 and math.isfinite(one.value)
    ]
    if not usable:
        return Decision(False, "no candidate is feasible")
    usable.sort(key=lambda index: evaluations[index].value)
    finalists = [index for index in usable if evaluations[index].value < 1.0][:NUM_FINALISTS]
    if not finalists:
        best = evaluations[usable[0]].value
        return Decision(False, "no candidate is better than the settings in force", selection_value=best)
    first: Decision | None = None
    for index in finalists:
        verdict = prove(candidates[index], source, rule=rule, selection_value=evaluations[index].value)
        if verdict.adopted:
            return verdict
        first = first or verdict
    assert first is not None
    return first


def prove(
    candidate: Mapping[str, Value],
    source: ScorecardSource,
    *,
    rule: DecisionRule | None = None,
    selection_value: float = 1.0,
) -> Decision:
    """Test one candidate, whose value on the selection folds is ``selection_value``, on the validation folds."""
    rule = rule or DecisionRule()
    card = source.scorecard(candidate)
    if card is None or card.folds_done < source.base_scorecard.folds_done:
        source.evaluate_batch([candidate])
        card = source.scorecard(candidate)

    gain = error = None
    num_blocks = 0

    def answer(adopted: bool, reason: str) -> Decision:
        return Decision(adopted, reason, dict(candidate), selection_value, gain, error, num_blocks)

    if card is None:
        return answer(False, "it asks for more false alarms than are accepted, or makes no sense")
    gains = block_gains(card, source.base_scorecard, source.num_selection_folds)
    num_blocks = len(gains)
    if num_blocks < 2:
        return answer(False, "the validation folds hold too few scored ticks")
    if not np.isfinite(gains).all():
        return answer(False, "its forecasts of the validation folds are not finite")
    gain, error = float(np.mean(gains)), float(np.std(gains, ddof=1) / math.sqrt(num_blocks))
    if source.validation_constraint(card) > 0.0:
        return answer(False, "its alarms on the validation folds are too many or too few")
    if gain < rule.min_gain:
        return answer(False, f"its gain on the validation folds, {gain:.2%}, is below {rule.min_gain:.2%}")
    if gain < rule.min_t * error:
        return answer(False, f"its gain on the validation folds, {gain:.2%} +- {error:.2%}, may be chance")
    return answer(True, f"{gain:.2%} +- {error:.2%} less loss on ticks that the search has not seen")


def block_gains(card: Scorecard, base: Scorecard, first_fold: int) -> np.ndarray:
    """By block of the folds from ``first_fold`` on: how much less the candidate lost, as a share of the base's mean.

    Averaged over symbols, whose losses at one time go together: the blocks, not the symbols, are the units. A symbol
    without any loss is left out; so is a block in which nothing was scored.
    """
    own = card.loss[:, first_fold:].reshape(len(card.loss), -1)
    its = base.loss[:, first_fold:].reshape(len(base.loss), -1)
    count = base.count[:, first_fold:].reshape(len(base.count), -1)
    with np.errstate(invalid="ignore", divide="ignore"):
        usual = its.sum(axis=1) / count.sum(axis=1)  # of one tick
        gains = (its - own) / count / usual[:, None]
    counts = (count > 0) & (usual > 0.0)[:, None]
    gains = np.where(counts, gains, 0.0)
    seen = counts.sum(axis=0)
    return gains.sum(axis=0)[seen > 0] / seen[seen > 0]
