"""The service: one replica of a group, from joining it to leaving it in order.

    supervisor
      +-- consume      polls the broker, fills the inboxes, pauses what is full
      +-- stages       decode, step, encode (see _stages)
      +-- owner[i]     one task a partition: bring it up, then commit its answers and write its snapshots
      +-- rejoin       leaves and joins the group again after this replica was fenced
      +-- epochs       reads the log of configuration epochs and adopts the newest
      +-- watchdog     turns, and says when something else does not

Every task has a name and the supervisor awaits it: if one dies, all end, and the process with them.
"""

import asyncio
import concurrent.futures
import contextlib
import dataclasses
import enum
import time
import types
from collections.abc import Awaitable, Callable, Collection, Coroutine, Hashable, Mapping
from typing import Any

from usp_daemon.persistence import AbstractSnapshotStore, PersistenceError
from usp_daemon.telemetry import PartitionState, RebalanceKind, get_logger
from usp_daemon.wire import (
    AbstractGroupConsumer,
    AbstractTransport,
    AssignmentListener,
    FencedError,
    OffsetOutOfRangeError,
    OutcomeUnknownError,
    TickDecoder,
    TopicPartition,
    TransportError,
)

from ._commit import Committer
from ._epochs import EpochBook, EpochError
from ._observer import Observer
from ._partition import OwnedPartition
from ._recovery import Recovery, RecoveryError, RecoveryPolicy
from ._stages import Exported, Stages, StatefulPredictor
from ._tap import Tap

_log = get_logger(__name__)

_POLL_S = 0.1
_LAG_INTERVAL_S = 1.0
_HEARTBEAT_S = 0.25
_STORE_RETRY_S = 5.0
_LOOK_AGAIN_S = 0.1
_EPOCH_INTERVAL_S = 0.5


class Outcome(enum.Enum):
    """How a run ended."""

    DRAINED = "drained"  # all that was read is answered and committed, and snapshots stand there
    UNFINISHED = "unfinished"  # the time was up; recovery does the rest
    STALLED = "stalled"  # a part made no progress although it had work


class StalledError(Exception):
    """A part makes no progress and cannot be helped from inside."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DaemonOptions:
    """Numbers of the settings' [delivery], [service], [io] and [kafka] sections that the service acts on, in seconds
    and records.
    """

    group: str
    commit_interval_s: float = 0.1
    commit_max_records: int = 20_000
    max_batch: int = 4_096
    max_queued_records: int = 8_192
    snapshot_interval_s: float = 30.0
    shutdown_timeout_s: float = 25.0
    handover_timeout_s: float = 30.0
    stall_timeout_s: float = 120.0
    retry_backoff_s: float = 0.2


class StopRequest:
    """Asks a daemon to end; :meth:`hurry` leaves whatever is not done to recovery."""

    def __init__(self) -> None:
        self.requested = asyncio.Event()
        self.hurried = asyncio.Event()

    def stop(self) -> None:
        """End in order; asked a second time, hurry."""
        if self.requested.is_set():
            self.hurry()
        self.requested.set()

    def hurry(self) -> None:
        """End now."""
        self.requested.set()
        self.hurried.set()


class Daemon(AssignmentListener):
    """One replica. Everything outside is handed in; :meth:`run` is called once, with ``epochs`` open.

    ``companions`` are further tasks by name that run as long as the service works, ``tap`` is told of live ticks.
    """

    def __init__(
        self,
        *,
        transport: AbstractTransport,
        predictor: StatefulPredictor,
        store: AbstractSnapshotStore,
        decoder: TickDecoder,
        epochs: EpochBook,
        key_fn: Callable[[str, int, str], Hashable],
        policy: RecoveryPolicy,
        options: DaemonOptions,
        observer: Observer | None = None,
        wall_clock: Callable[[], float] = time.time,
        crash_fn: Callable[[str], None] = lambda point: None,
        executor: concurrent.futures.Executor | None = None,
        companions: Mapping[str, Callable[[], Coroutine[Any, Any, None]]] = types.MappingProxyType({}),
        tap: Tap | None = None,
    ) -> None:
        self._options = options
        self._transport = transport
        self._predictor = predictor
        self._store = store
        self._epochs = epochs
        self._companions = companions
        self._observer = observer or Observer()
        self._crash_fn = crash_fn
        self._owned: dict[TopicPartition, OwnedPartition] = {}
        self._tasks: asyncio.TaskGroup | None = None
        self._consumer: AbstractGroupConsumer = transport.consumer(self)
        self._must_rejoin = asyncio.Event()
        self._closing = False
        self._has_rejoined_for_silence = False
        self._stages = Stages(
            predictor=predictor,
            decoder=decoder,
            current_fn=lambda: epochs.current,
            key_fn=key_fn,
            observer=self._observer,
            max_batch=options.max_batch,
            max_pending=options.max_queued_records,
            taken_fn=self._after_taking,
            executor=executor,
            tap=tap,
        )
        self._committer = Committer(
            transport=transport,
            consumer=self._consumer,
            observer=self._observer,
            interval_s=options.commit_interval_s if transport.is_transactional else 0.0,
            max_records=options.commit_max_records,
            backoff_s=options.retry_backoff_s,
            committed_fn=lambda owner: self._stages.notify(),
            crash_fn=crash_fn,
        )
        self._recovery = Recovery(
            store=store,
            consumer=self._consumer,
            committer=self._committer,
            predictor=predictor,
            epochs=epochs,
            policy=policy,
            group=options.group,
            observer=self._observer,
            wall_clock=wall_clock,
            crash_fn=crash_fn,
        )

    # What it is doing

    @property
    def partitions(self) -> dict[TopicPartition, OwnedPartition]:
        """The partitions that this replica owns at the moment."""
        return dict(self._owned)

    @property
    def unready(self) -> list[str]:
        """Why work may not be expected of it, a reason each; empty when it may."""
        if self._tasks is None:
            return ["not started"]
        if self._closing:
            return ["shutting down"]
        return [
            f"{owner.partition}: {owner.state.value}" + (f": {owner.reason}" if owner.reason else "")
            for owner in self._owned.values()
            if owner.state is not PartitionState.RUNNING
        ]

    def symbols(self, partition: TopicPartition) -> dict[str, Hashable]:
        """The symbols seen in a partition that this replica runs, with the keys of their states; else none."""
        owner = self._owned.get(partition)
        is_running = owner is not None and owner.state is PartitionState.RUNNING
        return self._stages.symbols(partition) if is_running else {}

    async def export_states(self, partition: TopicPartition, then_fn: Callable[[Exported], None]) -> None:
        """Give ``then_fn``, which must not wait, the states of a partition that runs, between two steps."""
        owner = self._owned.get(partition)
        if owner is not None and owner.state is PartitionState.RUNNING:
            await self._stages.export(owner, then_fn)

    # Life

    async def run(self, stop: StopRequest) -> Outcome:
        """Join the group and work until ``stop`` is asked for.

        Raises, in an exception group, ``TransportError`` when the broker refuses for good and whatever kills a stage.
        """
        outcome = Outcome.UNFINISHED
        try:
            async with asyncio.TaskGroup() as tasks:
                self._tasks = tasks
                await self._store.open()
                # Joining may assign partitions at once, so it comes after there is somebody to own them.
                await self._consumer.open()
                standing = [
                    tasks.create_task(self._stages.run(), name="daemon.stages"),
                    tasks.create_task(self._watch(), name="daemon.watchdog"),
                    tasks.create_task(self._rejoin_when_fenced(), name="daemon.rejoin"),
                    tasks.create_task(self._epochs.follow(_EPOCH_INTERVAL_S), name="daemon.epochs"),
                ]
                standing += [tasks.create_task(run_fn(), name=name) for name, run_fn in self._companions.items()]
                consuming = tasks.create_task(self._consume(), name="daemon.consume")
                await stop.requested.wait()
                self._closing = True
                _log.info("shutdown_begun", partitions=len(self._owned))
                consuming.cancel()
                outcome = await self._end(stop)
                for task in standing:
                    task.cancel()
                for owner in self._owned.values():
                    for task in (owner.task, owner.handover):
                        if task is not None:
                            task.cancel()
        except* StalledError as stalled:
            _log.error("stalled", error=str(stalled.exceptions[0]))
            outcome = Outcome.STALLED
        finally:
            await self._close()
        return outcome

    async def _end(self, stop: StopRequest) -> Outcome:
        """Hand everything over, within the time there is; returns whether all of it was done."""
        handing_over = asyncio.create_task(self._hand_over_all(list(self._owned.values())), name="daemon.drain")
        hurried = asyncio.create_task(stop.hurried.wait(), name="daemon.hurried")
        # A fifth of the time is kept for closing connections.
        done, _ = await asyncio.wait(
            {handing_over, hurried}, timeout=0.8 * self._options.shutdown_timeout_s, return_when=asyncio.FIRST_COMPLETED
        )
        hurried.cancel()
        if handing_over in done:
            return Outcome.DRAINED if handing_over.result() else Outcome.UNFINISHED
        handing_over.cancel()
        await asyncio.wait({handing_over}, timeout=1.0)
        return Outcome.UNFINISHED

    async def _close(self) -> None:
        """Give everything back; nothing here may hang or hide how the run ended."""
        allowed_s = 0.2 * self._options.shutdown_timeout_s
        writers = [owner.writer.close() for owner in self._owned.values() if owner.writer is not None]
        closing: list[Awaitable[None]] = [*writers, self._consumer.close(), self._store.close()]
        tasks = [asyncio.ensure_future(each) for each in closing]
        _, late = await asyncio.wait(tasks, timeout=allowed_s)
        for task in late:
            task.cancel()
        for task in tasks:
            if task.done() and not task.cancelled() and (error := task.exception()) is not None:
                _log.warning("close_failed", error=repr(error))
        if late:
            _log.warning("close_timed_out", left=len(late), after_s=allowed_s)
        self._owned.clear()

    # Intake

    async def _consume(self) -> None:
        loop = asyncio.get_running_loop()
        lag_at = 0.0
        while True:
            began = loop.time()
            try:
                polled = await self._consumer.poll(_POLL_S, self._options.max_batch)
            except OffsetOutOfRangeError as error:
                self._restart(error.partition, str(error))
                continue
            counts: dict[TopicPartition, int] = {}
            for raw in polled:
                owner = self._owned.get(TopicPartition(raw.topic, raw.partition))
                if owner is None or not owner.receives:
                    continue
                owner.accept(raw)
                owner.progress_at = loop.time()
                counts[owner.partition] = counts.get(owner.partition, 0) + len(raw)
                if owner.num_queued >= self._options.max_queued_records and not owner.paused:
                    owner.paused = True
                    self._consumer.pause(owner.partition)
                self._observer.queued(owner.partition, owner.num_queued, owner.paused)
            if polled:
                self._stages.notify()
                self._observer.polled(loop.time() - began, counts)
            if loop.time() >= lag_at:
                lag_at = loop.time() + _LAG_INTERVAL_S
                self._report_lag()

    def _after_taking(self, owner: OwnedPartition) -> None:
        if owner.paused and owner.num_queued <= self._options.max_queued_records // 2:
            owner.paused = False
            self._consumer.resume(owner.partition)
        self._observer.queued(owner.partition, owner.num_queued, owner.paused)

    def _report_lag(self) -> None:
        for owner in self._owned.values():
            end = self._consumer.end_offset(owner.partition)
            if end is None or not owner.receives:
                continue
            position = self._consumer.position(owner.partition)
            # Markers of transactions are no records: with nothing under way all is answered.
            busy = owner.num_queued or owner.num_in_stages or owner.pending
            behind = end - (owner.committed if busy or position is None else position)
            self._observer.lag(owner.partition, max(behind, 0), owner.oldest_waiting_ns())

    # Assignment

    async def on_assigned(self, partitions: Collection[TopicPartition]) -> None:
        """See :class:`AssignmentListener`."""
        self._observer.rebalanced(RebalanceKind.ASSIGNED, len(partitions))
        if self._tasks is None or self._closing:
            return
        for partition in sorted(partitions):
            self._adopt(partition, self._tasks)

    async def on_revoked(self, partitions: Collection[TopicPartition]) -> None:
        """See :class:`AssignmentListener`."""
        self._observer.rebalanced(RebalanceKind.REVOKED, len(partitions))
        owners = [owner for partition in partitions if (owner := self._owned.get(partition)) is not None]
        await self._hand_over_all(owners)

    def _adopt(self, partition: TopicPartition, tasks: asyncio.TaskGroup) -> None:
        owner = OwnedPartition(partition)
        owner.assigned_at = asyncio.get_running_loop().time()
        self._owned[partition] = owner
        self._observer.partition_state(partition, owner.state)
        owner.task = tasks.create_task(self._own(owner), name=f"daemon.owner.{partition}")

    async def _own(self, owner: OwnedPartition) -> None:
        """Everything that happens to one partition while it is held."""
        try:
            position = await self._bring_up(owner)
            await self._serve(owner, position)
        except FencedError as error:
            _log.warning("partition_lost", partition=str(owner.partition), error=str(error))
            self._enter(owner, PartitionState.LOST, str(error))
            self._must_rejoin.set()
        except (RecoveryError, EpochError) as error:
            _log.error("partition_failed", partition=str(owner.partition), error=str(error))
            self._enter(owner, PartitionState.FAILED, str(error))

    async def _bring_up(self, owner: OwnedPartition) -> int:
        """Recovery; a broker that does not answer, or a disk that is full or away, is asked again."""
        while True:
            try:
                return await self._recovery.bring_up(owner)
            except FencedError:
                raise
            except PersistenceError as error:
                _log.error("snapshot_store_failed", partition=str(owner.partition), error=str(error))
                self._enter(owner, PartitionState.FAILED, str(error))
                await asyncio.sleep(_STORE_RETRY_S)
            except TransportError as error:
                _log.warning("restore_interrupted", partition=str(owner.partition), error=str(error))
                await asyncio.sleep(10.0 * self._options.retry_backoff_s)

    async def _serve(self, owner: OwnedPartition, position: int) -> None:
        assert self._tasks is not None
        loop = asyncio.get_running_loop()
        owner.progress_at = loop.time()
        # Records come as soon as there is a position, and one that nobody accepts would be a gap.
        self._enter(owner, PartitionState.REPLAYING)
        self._stages.add(owner)
        self._consumer.seek(owner.partition, position)
        self._consumer.resume(owner.partition)
        tending = self._tasks.create_task(self._tend(owner), name=f"daemon.tend.{owner.partition}")
        try:
            await self._committer.run(owner)
        finally:
            tending.cancel()

    async def _tend(self, owner: OwnedPartition) -> None:
        """Goes live when the replay has caught up, and takes snapshots."""
        while owner.state is PartitionState.REPLAYING:
            if self._has_caught_up(owner):
                self._crash_fn("replay.caught_up")
                self._enter(owner, PartitionState.RUNNING)
                self._observer.restored(owner.partition, asyncio.get_running_loop().time() - owner.assigned_at)
                _log.info("partition_running", partition=str(owner.partition), offset=owner.committed)
                break
            await self._moved(owner)
        pause_s = self._options.snapshot_interval_s
        while True:
            # Also where another epoch begins, so that no replay need go far into the former one.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await owner.snapshot_due.wait()
            owner.snapshot_due.clear()
            pause_s = self._options.snapshot_interval_s
            if owner.stepped_in_engine != owner.last_snapshot_offset and not await self._take_snapshot(owner):
                pause_s = min(pause_s, 10.0)

    async def _moved(self, owner: OwnedPartition) -> None:
        """Until the partition has moved on; now and then anyway, because markers of transactions tell nobody."""
        owner.moved.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LOOK_AGAIN_S):
                await owner.moved.wait()

    def _has_caught_up(self, owner: OwnedPartition) -> bool:
        if owner.stepped_in_engine >= owner.silent_below:
            return True
        # Between the last record and the committed offset there may be nothing but markers of transactions.
        position = self._consumer.position(owner.partition)
        at_end = position is not None and position >= owner.silent_below
        return at_end and not owner.inbox and owner.num_in_stages == 0

    async def _take_snapshot(self, owner: OwnedPartition) -> bool:
        exported = await self._stages.export(owner)
        if exported.offset == owner.last_snapshot_offset:
            return True
        while owner.committed < exported.offset:  # step 8: only at committed offsets
            await self._moved(owner)
        return await self._save(owner, exported)

    async def _save(self, owner: OwnedPartition, exported: Exported) -> bool:
        started, offset = time.perf_counter(), exported.offset
        try:
            if not owner.lock_held:
                await self._store.acquire(*owner.partition)
                owner.lock_held = True
            info = await self._store.save(
                self._recovery.snapshot(owner.partition, offset, exported.states, exported.epoch)
            )
        except PersistenceError as error:
            _log.error("snapshot_failed", partition=str(owner.partition), offset=offset, error=str(error))
            self._observer.snapshot_failed(owner.partition, type(error).__name__)
            return False
        owner.last_snapshot_offset = offset
        seconds = time.perf_counter() - started
        self._observer.snapshot_saved(owner.partition, seconds, info.size_bytes)
        return True

    # Handing over

    async def _hand_over_all(self, owners: Collection[OwnedPartition]) -> bool:
        """Give partitions up in order, side by side; returns whether each was left drained with a snapshot."""
        assert self._tasks is not None
        for owner in owners:
            if owner.handover is None:  # a shutdown and a rebalance may ask at the same time
                name = f"daemon.handover.{owner.partition}"
                owner.handover = self._tasks.create_task(self._hand_over(owner), name=name)
        done = await asyncio.gather(*(asyncio.shield(owner.handover) for owner in owners if owner.handover is not None))
        return all(done)

    async def _hand_over(self, owner: OwnedPartition) -> bool:
        clean = owner.state not in (PartitionState.LOST, PartitionState.FAILED)
        if owner.state is PartitionState.RUNNING:
            self._enter(owner, PartitionState.REVOKING)
            self._crash_fn("revoke.begun")
            try:
                async with asyncio.timeout(self._options.handover_timeout_s):
                    clean = await self._drain(owner)
            except TimeoutError:
                clean = False
                limit = self._options.handover_timeout_s
                _log.warning("handover_timed_out", partition=str(owner.partition), after_s=limit)
        await self._let_go(owner)
        return clean

    async def _drain(self, owner: OwnedPartition) -> bool:
        """Answer and commit what was stepped, then leave a snapshot exactly there."""
        owner.clear_inbox()
        owner.draining = True
        owner.wake.set()
        assert owner.task is not None
        drained = asyncio.create_task(owner.drained.wait(), name=f"daemon.drained.{owner.partition}")
        try:
            await asyncio.wait({drained, owner.task}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            drained.cancel()
        if not owner.drained.is_set():
            return False  # fenced in the middle of it
        self._crash_fn("revoke.committed")
        if owner.committed == owner.last_snapshot_offset:
            return True
        saved = await self._save(owner, await self._stages.export(owner))
        self._crash_fn("revoke.snapshot_written")
        return saved

    async def _let_go(self, owner: OwnedPartition) -> None:
        """End the partition's task, forget its state, close its writer, free its lock."""
        self._owned.pop(owner.partition, None)
        owner.clear_inbox()
        if owner.state is not PartitionState.LOST:
            owner.state = PartitionState.REVOKING
        task = owner.task
        if task is not None and task is not asyncio.current_task() and not task.done():
            task.cancel()
            await asyncio.wait({task})
        await owner.idle.wait()
        owner.state = PartitionState.LOST
        self._stages.remove(owner)
        await self._predictor.release(*owner.partition)
        if owner.writer is not None:
            await owner.writer.close()
        if owner.lock_held:
            await self._store.release(*owner.partition)
        self._observer.partition_state(owner.partition, None)

    def _enter(self, owner: OwnedPartition, state: PartitionState, reason: str = "") -> None:
        owner.state, owner.reason = state, reason
        self._observer.partition_state(owner.partition, state)
        self._stages.notify()

    def _restart(self, partition: TopicPartition, reason: str) -> None:
        """Give the partition up and bring it up again: recovery then meets what polling has met, and decides."""
        owner = self._owned.get(partition)
        if owner is None or not owner.receives or self._tasks is None:
            return
        _log.warning("partition_restarted", partition=str(partition), reason=reason)
        self._consumer.pause(partition)
        self._tasks.create_task(self._restart_in_order(owner, self._tasks), name=f"daemon.restart.{partition}")

    async def _restart_in_order(self, owner: OwnedPartition, tasks: asyncio.TaskGroup) -> None:
        revoked_meanwhile = owner.handover is not None
        await self._hand_over_all([owner])
        if not revoked_meanwhile and not self._closing and owner.partition not in self._owned:
            self._adopt(owner.partition, tasks)

    async def _rejoin_when_fenced(self) -> None:
        while True:
            await self._must_rejoin.wait()
            self._must_rejoin.clear()
            try:
                await self._consumer.rejoin()
            except OutcomeUnknownError as error:  # polling goes on trying
                _log.warning("rejoin_failed", error=str(error))

    # Watching

    async def _watch(self) -> None:
        """Notices an event loop that is late, a worker that hangs, and partitions that stand still."""
        loop = asyncio.get_running_loop()
        limit_s = self._options.stall_timeout_s
        look_at = loop.time() + limit_s / 4.0
        while True:
            asked = loop.time() + _HEARTBEAT_S
            await asyncio.sleep(_HEARTBEAT_S)
            self._observer.heartbeat(max(loop.time() - asked, 0.0))
            for partition in self._owned:
                self._observer.symbols(partition, self._stages.num_symbols(partition))
            since = self._stages.stepping_since
            if since is not None and time.monotonic() - since > limit_s:
                self._observer.stalled("step", time.monotonic() - since)
                raise StalledError(f"one step of the predictor has taken more than {limit_s:g} s")
            if loop.time() >= look_at:
                look_at = loop.time() + limit_s / 4.0
                await self._look_for_silence(limit_s)

    async def _look_for_silence(self, limit_s: float) -> None:
        """A partition that has input and gets none for too long: join the group anew, and give up the second time."""
        loop = asyncio.get_running_loop()
        for owner in list(self._owned.values()):
            still_s = loop.time() - owner.progress_at
            if not owner.receives or owner.paused or owner.inbox or owner.num_in_stages or owner.pending:
                continue
            if still_s < limit_s:
                continue
            try:
                end = (await self._consumer.bounds(owner.partition)).end
            except TransportError:
                return  # the broker is away: that is no stall
            position = self._consumer.position(owner.partition)
            if owner.partition not in self._owned or (position is not None and position >= end):
                owner.progress_at = loop.time()
                continue
            self._observer.stalled("consume", still_s)
            if self._has_rejoined_for_silence:
                raise StalledError(f"{owner.partition} has input up to {end} and has received none for {still_s:.0f} s")
            _log.error("consumer_silent", partition=str(owner.partition), position=position, end=end, for_s=still_s)
            self._has_rejoined_for_silence = True
            self._must_rejoin.set()
            return
        if any(loop.time() - owner.progress_at < limit_s for owner in self._owned.values()):
            self._has_rejoined_for_silence = False
