"""What the service reports about itself, as plain calls; metrics, health and tests listen."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from usp_daemon.compute import PartitionMigration
from usp_daemon.telemetry import (
    Health,
    PartitionState,
    RebalanceKind,
    ResetReason,
    ServiceMetrics,
    Stage,
    TransactionOutcome,
    get_logger,
)
from usp_daemon.wire import TopicPartition

from ._epochs import ProgramEpoch
from ._results import Answer

_log = get_logger(__name__)

_CONFLICTS_LOGGED = 20


class Observer:
    """Ignores everything; override what is of interest. Calls come from the event loop, one a batch or rarer."""

    def partition_state(self, partition: TopicPartition, state: PartitionState | None) -> None:
        """The partition is now in ``state``; None when it is not this replica's any more."""

    def polled(self, seconds: float, num_records: Mapping[TopicPartition, int]) -> None:
        """A poll ended and brought so many records of each partition."""

    def queued(self, partition: TopicPartition, num_records: int, paused: bool) -> None:
        """So many records wait to be stepped; ``paused`` while no more are fetched."""

    def lag(self, partition: TopicPartition, num_records: int, oldest_ns: int | None) -> None:
        """So many records are not answered yet; ``oldest_ns`` is the record time of the oldest one that was read."""

    def stage(self, stage: str, seconds: float, num_records: int) -> None:
        """One batch passed ``stage``: decode, step, encode, publish."""

    def answered(self, partition: TopicPartition, answers: Sequence[Answer]) -> None:
        """These answers are published and committed."""

    def replayed(self, partition: TopicPartition, num_records: int, num_left: int) -> None:
        """Records were stepped again without publishing."""

    def restored(self, partition: TopicPartition, seconds: float) -> None:
        """The partition runs, so long after its assignment."""

    def commit(self, partition: TopicPartition, outcome: TransactionOutcome) -> None:
        """A transaction ended."""

    def writer_reset(self, partition: TopicPartition, reason: ResetReason) -> None:
        """The writer is opened anew."""

    def broker_away(self, reason: str) -> None:
        """The broker does not answer."""

    def snapshot_saved(self, partition: TopicPartition, seconds: float, size_bytes: int) -> None:
        """A snapshot was written."""

    def snapshot_failed(self, partition: TopicPartition, reason: str) -> None:
        """A snapshot could not be written; the one before stands."""

    def rebalanced(self, kind: RebalanceKind, num_partitions: int) -> None:
        """Partitions came or went."""

    def symbol_conflict(self, symbol: str, first: TopicPartition, second: TopicPartition) -> None:
        """One symbol came in two partitions: it has two states."""

    def symbols(self, partition: TopicPartition, num_symbols: int) -> None:
        """So many symbols were seen in the partition."""

    def stepping(self, is_stepping: bool) -> None:
        """The predictor began a step, or ended one."""

    def heartbeat(self, loop_lag_s: float) -> None:
        """The event loop turned, ``loop_lag_s`` later than asked."""

    def stalled(self, what: str, seconds: float) -> None:
        """A part has made no progress for so long although it has work."""

    def epoch_adopted(self, epoch: ProgramEpoch) -> None:
        """New records are answered under ``epoch`` from now on."""

    def reloaded(self, outcome: str, seconds: float) -> None:
        """A change of the configuration was dealt with."""

    def compiled(self, num_programs: int, seconds: float) -> None:
        """Programs were compiled while the service ran."""

    def migrated(self, migration: PartitionMigration) -> None:
        """A partition's states were taken to another structure."""


class Observers(Observer):
    """Tells several observers, in order."""

    def __init__(self, *observers: Observer) -> None:
        for name in vars(Observer):
            if not name.startswith("_"):
                setattr(self, name, _all_of([getattr(observer, name) for observer in observers]))


def _all_of(calls: Sequence[Callable[..., None]]) -> Callable[..., None]:
    def tell(*arguments: Any, **named: Any) -> None:
        for call in calls:
            call(*arguments, **named)

    return tell


class TelemetryObserver(Observer):
    """Turns what is reported into metrics and health."""

    def __init__(self, metrics: ServiceMetrics, health: Health) -> None:
        self._metrics = metrics
        self._health = health
        self._num_conflicts = 0

    def partition_state(self, partition: TopicPartition, state: PartitionState | None) -> None:
        """See :class:`Observer`."""
        if state is None:
            self._metrics.record_given_up(partition)
            self._health.record_given_up(partition)
            return
        self._metrics.record_assigned(partition)
        self._metrics.record_state(partition, state)
        self._health.record_state(partition, state)
        if state is PartitionState.LOST:
            self._metrics.record_fenced()

    def polled(self, seconds: float, num_records: Mapping[TopicPartition, int]) -> None:
        """See :class:`Observer`."""
        self._metrics.record_poll(seconds, num_records)
        if num_records:
            self._health.broker_back()

    def queued(self, partition: TopicPartition, num_records: int, paused: bool) -> None:
        """See :class:`Observer`."""
        self._metrics.record_queue(partition, num_records, is_paused=paused)

    def lag(self, partition: TopicPartition, num_records: int, oldest_ns: int | None) -> None:
        """See :class:`Observer`."""
        self._metrics.record_lag(partition, num_records, oldest_ns)
        self._health.record_waiting(partition, num_records > 0)

    def stage(self, stage: str, seconds: float, num_records: int) -> None:
        """See :class:`Observer`."""
        if stage == Stage.STEP:
            self._metrics.record_step(seconds, num_records)
        else:
            self._metrics.record_stage(Stage(stage), seconds)

    def stepping(self, is_stepping: bool) -> None:
        """See :class:`Observer`."""
        if is_stepping:
            self._health.beat_worker()
        else:
            self._health.worker_stopped()

    def answered(self, partition: TopicPartition, answers: Sequence[Answer]) -> None:
        """See :class:`Observer`."""
        outputs = [answer.output for answer in answers]
        stamps = [
            np.asarray(records.timestamps_ns, np.int64)
            for output in outputs
            for records in (output.predictions, output.dead_letters)
        ]
        dead: dict[str, int] = {}
        for answer in answers:
            for reason, count in answer.reasons.items():
                dead[reason] = dead.get(reason, 0) + count
        self._metrics.record_commit(
            partition,
            num_predictions=sum(len(output.predictions) for output in outputs),
            record_timestamps_ns=np.concatenate(stamps) if stamps else (),
            alarm_kinds=[kind for answer in answers for kind in answer.alarm_kinds],
            refused_reasons=np.concatenate([answer.refused_reasons for answer in answers]),
            dead_letters=dead,
            alarm_sources=[
                {"symbol": key.decode("utf-8", "replace"), "partition": str(number), "offset": str(offset)}
                for output in outputs
                for key, (_, number, offset) in zip(output.alarms.keys, output.alarms.origins, strict=True)
                if key is not None
            ],
            rows=[answer.rows for answer in answers],
        )
        self._health.record_progress(partition)
        self._health.broker_back()

    def replayed(self, partition: TopicPartition, num_records: int, num_left: int) -> None:
        """See :class:`Observer`."""
        self._metrics.record_replayed(partition, num_records, num_left)
        self._health.record_progress(partition)

    def restored(self, partition: TopicPartition, seconds: float) -> None:
        """See :class:`Observer`."""
        self._metrics.record_restored(partition, seconds)

    def commit(self, partition: TopicPartition, outcome: TransactionOutcome) -> None:
        """See :class:`Observer`."""
        self._metrics.record_transaction(outcome)

    def writer_reset(self, partition: TopicPartition, reason: ResetReason) -> None:
        """See :class:`Observer`."""
        self._metrics.record_producer_reset(reason)

    def broker_away(self, reason: str) -> None:
        """See :class:`Observer`."""
        self._health.broker_away(reason)

    def snapshot_saved(self, partition: TopicPartition, seconds: float, size_bytes: int) -> None:
        """See :class:`Observer`."""
        self._metrics.record_snapshot(partition, seconds, size_bytes)

    def snapshot_failed(self, partition: TopicPartition, reason: str) -> None:
        """See :class:`Observer`."""
        self._metrics.record_snapshot_failed()

    def rebalanced(self, kind: RebalanceKind, num_partitions: int) -> None:
        """See :class:`Observer`."""
        self._metrics.record_rebalance(kind)
        self._health.broker_back()

    def symbol_conflict(self, symbol: str, first: TopicPartition, second: TopicPartition) -> None:
        """See :class:`Observer`."""
        self._metrics.record_symbol_conflicts()
        self._num_conflicts += 1
        if self._num_conflicts <= _CONFLICTS_LOGGED:
            _log.warning("symbol_in_two_partitions", symbol=symbol, first=str(first), second=str(second))

    def symbols(self, partition: TopicPartition, num_symbols: int) -> None:
        """See :class:`Observer`."""
        self._metrics.record_symbols(partition, num_symbols)

    def heartbeat(self, loop_lag_s: float) -> None:
        """See :class:`Observer`."""
        self._metrics.record_event_loop_lag(loop_lag_s)
        self._health.beat_loop()

    def epoch_adopted(self, epoch: ProgramEpoch) -> None:
        """See :class:`Observer`."""
        self._metrics.record_epoch(epoch.number, epoch.config_hash)

    def reloaded(self, outcome: str, seconds: float) -> None:
        """See :class:`Observer`."""
        self._metrics.record_reload(outcome, seconds)

    def compiled(self, num_programs: int, seconds: float) -> None:
        """See :class:`Observer`."""
        self._metrics.record_compilations(num_programs, seconds)

    def migrated(self, migration: PartitionMigration) -> None:
        """See :class:`Observer`."""
        _log.warning(
            "states_migrated",
            partition=f"{migration.topic}/{migration.partition}",
            symbols=migration.num_symbols,
            lost=list(migration.report.lost),
            seconds=round(migration.seconds, 4),
        )
        self._metrics.record_migration(migration.num_symbols)
