"""How far a campaign is: best trial, last improvement, whether it should end."""

import enum
import math
from collections.abc import Sequence

import msgspec

from ._trials import TrialRecord


class StopReason(enum.StrEnum):
    """Why a run of a campaign ended."""

    TRIALS = "all trials are done"
    PATIENCE = "no improvement within the patience"
    TIME = "the time limit is reached"
    ASKED = "it was asked to stop"
    ELSEWHERE = "the last trials are being evaluated by other workers"


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """A campaign after a group of trials was told. ``best_value`` is inf as long as no trial may be used."""

    num_finished: int
    num_total: int
    best_value: float
    best_number: int | None
    last_improvement: int | None
    num_structures: int
    elapsed_s: float
    latest: tuple[TrialRecord, ...] = ()


def best_of(records: Sequence[TrialRecord]) -> TrialRecord | None:
    """The complete, feasible trial with the lowest value, the earliest of equals."""
    usable = [record for record in records if record.is_feasible]
    return min(usable, key=lambda record: (record.value, record.number)) if usable else None


def last_improvement(records: Sequence[TrialRecord], min_improvement: float) -> int | None:
    """Number of the last trial that was better than all before it by more than ``min_improvement``."""
    best, number = math.inf, None
    for record in records:
        if record.is_feasible and record.value is not None and record.value < best - min_improvement:
            best, number = record.value, record.number
    return number


def best_so_far(records: Sequence[TrialRecord]) -> list[float]:
    """The best feasible value after each trial; inf before the first."""
    best, path = math.inf, []
    for record in records:
        if record.is_feasible and record.value is not None:
            best = min(best, record.value)
        path.append(best)
    return path


def is_out_of_patience(records: Sequence[TrialRecord], patience_trials: int, min_improvement: float) -> bool:
    """Whether the last ``patience_trials`` trials, all of them finished, brought no improvement. 0: never."""
    if patience_trials == 0 or not records:
        return False
    last = last_improvement(records, min_improvement)
    return len(records) - 1 - (last if last is not None else -1) >= patience_trials
