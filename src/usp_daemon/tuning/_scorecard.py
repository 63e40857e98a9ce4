"""What is kept of a candidate's run, and the numbers made of it: relative value, constraint.

Everything here is plain NumPy on small arrays, so that the decision can be tested without the predictor.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ._folds import Fold

# Blocks that a fold's scored ticks are cut into, for paired comparisons whose units are longer than a loss's memory.
NUM_BLOCKS = 4
# An alarm counts as the same when it comes within so many ticks of the base's.
ALARM_TOLERANCE_TICKS = 50
# How many times the base's alarms a candidate may raise, and what share of them it must keep.
ALARM_GROWTH = 1.5
ALARM_SHARE_KEPT = 0.5
# Counts are small, so that a candidate is refused only for what chance explains in at most one case out of twenty.
ALARM_CONFIDENCE = 0.95
# Loss, in mean absolute increments, below which two candidates count as equally good: a series at rest costs nothing.
_LOSS_FLOOR = 1e-6


@dataclass(frozen=True)
class Observations:
    """One candidate's run over one symbol, an entry a tick."""

    loss: np.ndarray  # of the forecast made before the tick, NaN where there is none
    alarm: np.ndarray
    accepted: np.ndarray


@dataclass
class Scorecard:
    """Sums by symbol, fold and block; a fold that was not done is NaN in ``loss`` and 0 elsewhere."""

    loss: np.ndarray  # (symbols, folds, blocks) summed over the scored ticks
    count: np.ndarray  # (symbols, folds, blocks) scored ticks
    alarms: np.ndarray  # (symbols, folds)
    kept: np.ndarray  # (symbols, folds) alarms of the base that this candidate raises too

    @classmethod
    def empty(cls, num_symbols: int, num_folds: int) -> "Scorecard":
        """Nothing done yet."""
        blocks = (num_symbols, num_folds, NUM_BLOCKS)
        folds = (num_symbols, num_folds)
        return cls(np.full(blocks, np.nan), np.zeros(blocks, int), np.zeros(folds, int), np.zeros(folds, int))

    def enter(self, symbol: int, number: int, fold: Fold, seen: Observations, base: Observations) -> None:
        """Score one fold of one symbol on the ticks that the base run let in and had a forecast for.

        Both sides are thereby scored on the same ticks. A loss that is not finite there makes the block's infinite.
        """
        rows = np.arange(fold.test.start, fold.test.stop)
        scored = base.accepted[rows] & np.isfinite(base.loss[rows])
        loss = np.where(np.isfinite(seen.loss[rows]), seen.loss[rows], np.inf)
        edges = np.linspace(0, len(rows), NUM_BLOCKS + 1).astype(int)
        for block, part in enumerate(map(slice, edges[:-1], edges[1:])):
            self.loss[symbol, number, block] = np.where(scored, loss, 0.0)[part].sum()
            self.count[symbol, number, block] = np.count_nonzero(scored[part])
        raised = np.flatnonzero(seen.alarm[: fold.test.stop])  # a later fold's ticks change nothing here
        self.alarms[symbol, number] = int(seen.alarm[rows].sum())
        for row in rows[base.alarm[rows]]:
            self.kept[symbol, number] += bool(np.any(np.abs(raised - row) <= ALARM_TOLERANCE_TICKS))

    @property
    def folds_done(self) -> int:
        """Leading folds that every symbol has finished."""
        missing = np.isnan(self.loss).sum(axis=(0, 2)) > 0
        return int(np.argmax(np.append(missing, True)))


def fold_values(card: Scorecard, base: Scorecard, increments: np.ndarray, folds: slice) -> tuple[float, ...]:
    """Geometric mean over symbols of the candidate's mean loss over the base's, for each of ``folds`` (all done).

    ``increments`` (symbols) is the size of a symbol's typical move, against which a loss of 0 is no loss. A symbol
    that never moves, or of which nothing was scored, does not count; a fold without any is worth 1. Infinite where the
    candidate said something that is not a number.
    """
    values = []
    for number in range(*folds.indices(card.loss.shape[1])):
        own, its = card.loss[:, number].sum(axis=1), base.loss[:, number].sum(axis=1)
        floor = _LOSS_FLOOR * increments * base.count[:, number].sum(axis=1)
        counts = floor > 0.0
        if not counts.any():
            values.append(1.0)
            continue
        ratio = (own[counts] + floor[counts]) / (its[counts] + floor[counts])
        values.append(float(np.exp(np.mean(np.log(ratio)))))
    return tuple(values)


def alarm_constraint(card: Scorecard, base: Scorecard, folds: slice, *, mean_ticks_between_false: float) -> float:
    """How far a candidate's alarms in ``folds`` are outside what is allowed; at most 0 is inside.

    It may raise ``ALARM_GROWTH`` times the base's alarms, or as many as the operator's asked rate of false ones gives
    on so many ticks, whichever is more; and it must keep the share ``ALARM_SHARE_KEPT`` of the base's. On recorded
    ticks nobody knows which alarms are false, and counts are small: both limits are widened to where chance alone
    would carry a candidate that stands exactly on them in one case out of twenty.
    """
    ticks, before = int(base.count[:, folds].sum()), int(base.alarms[:, folds].sum())
    raised, missed = int(card.alarms[:, folds].sum()), before - int(card.kept[:, folds].sum())
    most = poisson_quantile(max(ALARM_GROWTH * before, ticks / mean_ticks_between_false), ALARM_CONFIDENCE)
    most_missed = binomial_quantile(before, 1.0 - ALARM_SHARE_KEPT, ALARM_CONFIDENCE)
    return max((raised - most) / max(most, 1), (missed - most_missed) / max(most_missed, 1))


def poisson_quantile(mean: float, level: float) -> int:
    """The least count whose cumulative Poisson probability reaches ``level``."""
    if mean > 500.0:  # the normal law is close enough, and the first term would underflow
        return math.ceil(statistics.NormalDist(mean, math.sqrt(mean)).inv_cdf(level))
    term = total = math.exp(-mean)
    count = 0
    while total < level:
        count += 1
        term *= mean / count
        total += term
    return count


def binomial_quantile(trials: int, probability: float, level: float) -> int:
    """The least count whose cumulative binomial probability reaches ``level``."""
    total = 0.0
    for count in range(trials + 1):
        total += math.exp(
            math.lgamma(trials + 1)
            - math.lgamma(count + 1)
            - math.lgamma(trials - count + 1)
            + count * math.log(probability)
            + (trials - count) * math.log1p(-probability)
        )
        if total >= level:
            return count
    return trials


def mean_value(values: Sequence[float]) -> float:
    """Mean over folds; infinite of nothing, or where a fold's is not finite."""
    total = math.fsum(values) if values and all(math.isfinite(value) for value in values) else math.inf
    return total / len(values) if values else math.inf
