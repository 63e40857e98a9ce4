"""One trial as plain data, to and from Optuna's record of it."""

import datetime
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import msgspec
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState

from usp_daemon.config import Value

from ._evaluation import Evaluation, problem_of

# Names under which a trial's record keeps what Optuna has no place for.
EVALUATION, OUTSIDE, WORKER = "evaluation", "outside", "worker"
CONSTRAINT = "feasibility"
CONSTRAINT_ATTRIBUTE = f"constraints:{CONSTRAINT}"  # where Optuna keeps what Trial.set_constraint is given

State = Literal["running", "complete", "pruned", "failed"]
_STATES: dict[TrialState, State] = {
    TrialState.RUNNING: "running",
    TrialState.WAITING: "running",
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
}
OPTUNA_STATES: dict[State, TrialState] = {
    "running": TrialState.RUNNING,
    "complete": TrialState.COMPLETE,
    "pruned": TrialState.PRUNED,
    "failed": TrialState.FAIL,
}
_LARGEST = sys.float_info.max


class TrialRecord(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A trial: where it was tried and what came of it.

    ``params`` lie in the space; ``outside`` holds the true values of those that do not (of the settings at the start
    only). ``value`` is None unless complete or pruned, ``fold_values`` are those of the folds that were done. Times
    are unix nanoseconds by the worker's clock.
    """

    number: int
    state: State
    params: dict[str, float | int | str | bool]
    outside: dict[str, float | int | str | bool] = {}
    value: float | None = None
    constraint: float | None = None
    fold_values: tuple[float, ...] = ()
    seconds: float = 0.0
    worker: str = ""
    reason: str = ""
    started_ns: int | None = None
    ended_ns: int | None = None

    @property
    def is_finished(self) -> bool:
        """Whether its outcome is known."""
        return self.state != "running"

    @property
    def is_feasible(self) -> bool:
        """Whether it is complete and may be used."""
        return self.state == "complete" and (self.constraint is None or self.constraint <= 0.0)

    @property
    def candidate(self) -> dict[str, Value]:
        """What the evaluator is asked about."""
        return {**self.params, **self.outside}

    def running_means(self) -> list[float]:
        """Means of the first 1, 2, ... fold values."""
        means, total = [], 0.0
        for count, value in enumerate(self.fold_values, 1):
            total += value
            means.append(total / count)
        return means


def record_of(trial: FrozenTrial) -> TrialRecord:
    """The record of a trial in a storage."""
    stored: Mapping[str, Any] = trial.user_attrs.get(EVALUATION, {})
    constraint = trial.constraints.get(CONSTRAINT)
    state = _STATES[trial.state]
    known = state in ("complete", "pruned")
    return TrialRecord(
        number=trial.number,
        state=state,
        params=dict(trial.params),
        outside=dict(trial.user_attrs.get(OUTSIDE, {})),
        value=float(stored.get("value", trial.value)) if known else None,
        constraint=constraint if state == "complete" else None,
        fold_values=tuple(stored.get("fold_values", ())) if known else (),
        seconds=float(stored.get("seconds", 0.0)) if state != "running" else 0.0,
        worker=str(trial.user_attrs.get(WORKER, "")),
        reason=str(stored.get("reason", "")) if state != "running" else "",
        started_ns=_unix_ns(trial.datetime_start),
        ended_ns=_unix_ns(trial.datetime_complete),
    )


def frozen_of(record: TrialRecord, space: Mapping[str, BaseDistribution]) -> FrozenTrial:
    """Optuna's record of a trial; number and identity are given by the storage that takes it."""
    attributes: dict[str, Any] = {WORKER: record.worker}
    if record.outside:
        attributes[OUTSIDE] = dict(record.outside)
    if record.is_finished:
        attributes[EVALUATION] = outcome_of(record)
    means = record.running_means()
    trial = FrozenTrial(
        number=record.number,
        trial_id=record.number,
        state=OPTUNA_STATES[record.state],
        value=record.value if record.state in ("complete", "pruned") else None,
        datetime_start=_local_time(record.started_ns) or datetime.datetime.now(),
        datetime_complete=(_local_time(record.ended_ns) or datetime.datetime.now()) if record.is_finished else None,
        params=dict(record.params),
        distributions=dict(space),
        user_attrs=attributes,
        system_attrs={},
        intermediate_values={len(means): means[-1]} if record.state == "pruned" and means else {},
    )
    if record.state == "complete" and record.constraint is not None:
        trial.set_constraint(CONSTRAINT, record.constraint)
    return trial


def finished_record(record: TrialRecord, evaluation: Evaluation, ended_ns: int) -> TrialRecord:
    """The running trial ``record`` with its outcome.

    A value that is not finite, or a constraint that is not a number, makes it a failed one.
    """
    reason = problem_of(evaluation)
    seconds = max(float(evaluation.seconds), 0.0)
    if reason:
        return msgspec.structs.replace(record, state="failed", reason=reason, seconds=seconds, ended_ns=ended_ns)
    constraint = min(max(float(evaluation.constraint), -_LARGEST), _LARGEST)  # JSON has no infinity
    return msgspec.structs.replace(
        record,
        state="pruned" if evaluation.pruned else "complete",
        value=float(evaluation.value),
        constraint=None if evaluation.pruned else constraint,
        fold_values=tuple(min(max(float(value), -_LARGEST), _LARGEST) for value in evaluation.fold_values),
        seconds=seconds,
        ended_ns=ended_ns,
    )


def encoded(record: TrialRecord) -> bytes:
    """The record as a line of JSON; floating point numbers survive it bit for bit."""
    return msgspec.json.encode(record)


def by_number(records: Sequence[TrialRecord]) -> list[TrialRecord]:
    """The records in the order of their numbers."""
    return sorted(records, key=lambda record: record.number)


def stored_evaluation(trial: FrozenTrial) -> dict[str, Any] | None:
    """The outcome that was written for a trial that is still called running, or None."""
    stored = trial.user_attrs.get(EVALUATION)
    return dict(stored) if isinstance(stored, Mapping) else None


def with_stored(record: TrialRecord, stored: Mapping[str, Any]) -> TrialRecord:
    """The running trial ``record`` with the outcome that was written for it."""
    return msgspec.convert({**msgspec.to_builtins(record), **stored}, TrialRecord)


def outcome_of(record: TrialRecord) -> dict[str, Any]:
    """What is written for a finished trial before its state, in one piece; the rest follows from it."""
    return {
        "state": record.state,
        "value": record.value,
        "constraint": record.constraint,
        "fold_values": list(record.fold_values),
        "seconds": record.seconds,
        "reason": record.reason,
        "ended_ns": record.ended_ns,
    }


def _unix_ns(moment: datetime.datetime | None) -> int | None:
    return None if moment is None else round(moment.timestamp() * 1e6) * 1000  # the storages keep local times


def _local_time(unix_ns: int | None) -> datetime.datetime | None:
    return None if unix_ns is None else datetime.datetime.fromtimestamp(unix_ns / 1e9)
