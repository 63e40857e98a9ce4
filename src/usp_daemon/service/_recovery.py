"""From "this partition is ours" to a state that is exactly what it was: snapshot, then silent replay.

What cannot be recovered is never passed over in silence: a policy of the operator's decides, and without one the
partition stops and says why.
"""

import asyncio
import dataclasses
import time
from collections.abc import Callable, Mapping
from typing import Any

from usp_daemon.compute import StateFormatError
from usp_daemon.persistence import AbstractSnapshotStore, PartitionLockedError, Snapshot
from usp_daemon.telemetry import PartitionState, get_logger
from usp_daemon.wire import AbstractGroupConsumer, OffsetBounds, TopicPartition

from ._commit import Committer, nothing_but
from ._epochs import EpochBook, EpochError, ProgramEpoch, Switches
from ._observer import Observer
from ._partition import OwnedPartition
from ._stages import StatefulPredictor

_log = get_logger(__name__)

# A former owner on the same host needs a moment to write its last snapshot and let go.
_LOCK_ATTEMPTS = 20
_LOCK_PAUSE_S = 0.25


class RecoveryError(Exception):
    """The partition cannot go on; the text says what is missing and what the operator can do."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RecoveryPolicy:
    """The operator's decisions, as in the settings' [recovery] section; ``initial_offset`` is [kafka]'s."""

    on_state_missing: str = "fail"
    on_input_missing: str = "fail"
    on_state_incompatible: str = "fail"
    require_exact: bool = False
    initial_offset: str = "earliest"


@dataclasses.dataclass(frozen=True, slots=True)
class ExportedStates:
    """States as a predictor imports them."""

    symbols: tuple[str, ...]
    arrays: Mapping[str, Any]


class Recovery:
    """Brings one partition after the other up; see the module's text."""

    def __init__(
        self,
        *,
        store: AbstractSnapshotStore,
        consumer: AbstractGroupConsumer,
        committer: Committer,
        predictor: StatefulPredictor,
        epochs: EpochBook,
        policy: RecoveryPolicy,
        group: str,
        observer: Observer,
        wall_clock: Callable[[], float] = time.time,
        crash_fn: Callable[[str], None] = lambda point: None,
    ) -> None:
        self._store = store
        self._consumer = consumer
        self._committer = committer
        self._predictor = predictor
        self._epochs = epochs
        self._policy = policy
        self._group = group
        self._observer = observer
        self._wall_clock = wall_clock
        self._crash_fn = crash_fn

    async def bring_up(self, owner: OwnedPartition) -> int:
        """Steps 1 to 3 of the protocol; returns the offset from which records are to be polled.

        Raises :class:`RecoveryError` where the policy says stop.
        """
        partition = owner.partition
        owner.state = PartitionState.RESTORING
        self._observer.partition_state(partition, owner.state)
        standing = await self._committer.take_over(owner)
        await self._lock(owner)
        bounds = await self._consumer.bounds(partition)
        if standing is None:
            committed = await self._begin(owner, bounds)
        else:
            committed = standing.offset
            await self._read_note(owner, standing.note)
        owner.committed = committed
        position, num_symbols = await self._restore(owner, committed, bounds)
        self._crash_fn("restore.imported")
        owner.taken = owner.stepped_in_engine = position
        owner.silent_below = committed
        owner.last_snapshot_offset = position
        _log.info(
            "partition_restored",
            partition=str(partition),
            snapshot_offset=position,
            committed_offset=committed,
            symbols=num_symbols,
        )
        return position

    async def _lock(self, owner: OwnedPartition) -> None:
        """Take the store's lock; go on without it when its holder does not let go.

        Who owns the partition the broker has decided, and a holder that hangs has been fenced. Until it lets go this
        replica cannot save, so a crash would cost a longer replay, and nothing else.
        """
        for attempt in range(_LOCK_ATTEMPTS):
            try:
                await self._store.acquire(*owner.partition)
            except PartitionLockedError as error:
                if attempt == 0:
                    _log.warning("snapshot_lock_held", partition=str(owner.partition), error=str(error))
                await asyncio.sleep(_LOCK_PAUSE_S)
            else:
                owner.lock_held = True
                return
        _log.warning("snapshot_lock_missing", partition=str(owner.partition))

    async def _read_note(self, owner: OwnedPartition, note: str) -> None:
        """Where which epoch began; what is newest there is at most what this replica goes on with."""
        try:
            owner.switches = Switches.from_note(note)
        except ValueError as error:
            raise RecoveryError(f"{owner.partition}: {error}") from error
        last = owner.switches.last
        if last is not None and last > self._epochs.current.number:
            await self._epochs.adopt_newest()
            if last > self._epochs.current.number:
                raise RecoveryError(
                    f"{owner.partition} was answered under epoch {last}, and the newest one in the log of epochs is "
                    f"{self._epochs.current.number}: bring the log back"
                )

    def snapshot(self, partition: TopicPartition, offset: int, states: Any, epoch: ProgramEpoch) -> Snapshot:
        """A snapshot of ``states``, which stand at ``offset``, the last record below it answered under ``epoch``."""
        return Snapshot(
            topic=partition.topic,
            partition=partition.partition,
            offset=offset,
            group=self._group,
            symbols=tuple(states.symbols),
            arrays=states.arrays,
            identity=epoch.identity,
            settings=epoch.settings,
            config_hash=epoch.config_hash,
            config_epoch=epoch.number,
            num_input_partitions=self._consumer.num_partitions(),
            created_ns=int(self._wall_clock() * 1e9),
            counters={},
        )

    async def _begin(self, owner: OwnedPartition, bounds: OffsetBounds) -> int:
        """The group is new: its first offset is pinned, with an empty snapshot there, before anything is read."""
        partition = owner.partition
        start = bounds.end if self._policy.initial_offset == "latest" else bounds.beginning
        known = await self._store.list(*partition)
        if any(info.offset > bounds.beginning for info in known):
            found = await self._store.newest(*partition, not_above=bounds.end)
            if found is not None and found.symbols:
                raise RecoveryError(
                    f"{partition}: the group {self._group!r} has no committed offset, but there is a snapshot at "
                    f"offset {found.offset}: its offsets have expired or were deleted. Set the group's offset to where "
                    "publishing ended, or move the snapshots away to begin anew"
                )
        # The snapshot first: a committed offset without one would look like lost state.
        epoch = self._epochs.current
        await self._store.save(self.snapshot(partition, start, ExportedStates((), {}), epoch))
        self._crash_fn("begin.snapshot_written")
        owner.committed = start
        owner.switches = Switches([(epoch.number, start)])
        await self._committer.publish(owner, nothing_but(partition, start, owner.switches.note(below=start)))
        _log.info("partition_begun", partition=str(partition), offset=start)
        return start

    async def _restore(self, owner: OwnedPartition, committed: int, bounds: OffsetBounds) -> tuple[int, int]:
        """Loads states into the predictor; returns the offset at which they stand and how many symbols they are."""
        partition, policy = owner.partition, self._policy
        await self._predictor.release(*partition)
        await self._predictor.limit_partitions(self._consumer.num_partitions())
        owner.epochs.clear()
        owner.epoch = self._epochs.current
        snapshot = await self._store.newest(*partition, not_above=committed)
        self._crash_fn("restore.loaded")
        if snapshot is None:
            if policy.on_state_missing == "fail":
                raise RecoveryError(
                    f"{partition}: offset {committed} is committed, but there is no usable snapshot at or below it in "
                    f'{self._store}. Bring the snapshots back, or set recovery.on_state_missing = "reset-state" to '
                    "start its symbols anew"
                )
            _log.warning("state_reset", partition=str(partition), offset=committed, reason="no snapshot")
            return await self._anew(owner, committed, bounds), 0
        if snapshot.num_input_partitions != self._consumer.num_partitions():
            _log.warning(
                "partition_count_changed",
                partition=str(partition),
                then=snapshot.num_input_partitions,
                now=self._consumer.num_partitions(),
                consequence="symbols that moved to another partition start anew there",
            )
        position = snapshot.offset
        if position < bounds.beginning and (position < committed or committed < bounds.beginning):
            position = await self._input_missing(owner, position, committed, bounds)
            if position is None:
                return await self._anew(owner, max(committed, bounds.beginning), bounds), 0
        try:
            was = await self._epoch_of(owner, snapshot, position, committed)
            if snapshot.symbols:
                states = ExportedStates(snapshot.symbols, snapshot.arrays)
                await self._predictor.import_states(*partition, states, was.parameters)
        except (StateFormatError, EpochError) as error:
            if policy.on_state_incompatible == "fail":
                raise RecoveryError(
                    f"{partition}: the snapshot at offset {snapshot.offset} cannot be used by this version: {error}. "
                    'Start the version that wrote it, or set recovery.on_state_incompatible = "reset-state"'
                ) from error
            _log.warning("state_reset", partition=str(partition), offset=committed, reason=str(error))
            return await self._anew(owner, committed, bounds), 0
        owner.epoch = was
        return position, len(snapshot.symbols)

    async def _epoch_of(self, owner: OwnedPartition, snapshot: Snapshot, position: int, committed: int) -> ProgramEpoch:
        """The epoch of the snapshot; fills what is needed for the replay from ``position`` to ``committed``."""
        partition, switches = owner.partition, owner.switches
        if snapshot.config_hash == self._epochs.current.config_hash:
            was = self._epochs.current
        else:
            was = await self._epochs.made_of(snapshot.settings, snapshot.config_hash)
        if position >= committed:
            return was
        if switches.is_full and switches.at(position) is None:
            raise RecoveryError(
                f"{partition}: the snapshot at offset {position} is older than the last changes of configuration that "
                "the broker remembers: under which settings the records after it were answered is not known. Bring a "
                'newer snapshot back, or move the old ones away and set recovery.on_state_missing = "reset-state"'
            )
        owner.epochs[0] = was
        for number in switches.numbers(position, committed):
            owner.epochs[number] = await self._epochs.get(number)
        first = owner.epochs[switches.at(position) or 0]
        self._check_exact(partition, snapshot, first)
        return was

    async def _anew(self, owner: OwnedPartition, offset: int, bounds: OffsetBounds) -> int:
        """Where symbols start anew; what was answered above it (``skip`` aside, nothing) is replayed as it was."""
        position = self._readable(owner, offset, bounds)
        owner.epochs[0] = self._epochs.current
        if position < owner.committed:
            for number in owner.switches.numbers(position, owner.committed):
                owner.epochs[number] = await self._epochs.get(number)
        return position

    def _readable(self, owner: OwnedPartition, offset: int, bounds: OffsetBounds) -> int:
        """``offset``, unless retention has deleted the records there, which the policy must allow."""
        if offset >= bounds.beginning:
            return offset
        if self._policy.on_input_missing == "fail":
            raise RecoveryError(_deleted(owner.partition, offset, bounds))
        _log.warning("input_skipped", partition=str(owner.partition), first=offset, next=bounds.beginning)
        return bounds.beginning

    async def _input_missing(
        self, owner: OwnedPartition, position: int, committed: int, bounds: OffsetBounds
    ) -> int | None:
        """Retention was faster than recovery: where to go on from with the snapshot's state, None to start anew."""
        partition, policy = owner.partition, self._policy
        if policy.on_input_missing == "fail":
            raise RecoveryError(_deleted(partition, position, bounds))
        _log.warning(
            "input_missing",
            partition=str(partition),
            wanted=position,
            beginning=bounds.beginning,
            policy=policy.on_input_missing,
        )
        return bounds.beginning if policy.on_input_missing == "skip" else None

    def _check_exact(self, partition: TopicPartition, snapshot: Snapshot, epoch: ProgramEpoch) -> None:
        if snapshot.config_hash != epoch.config_hash and snapshot.config_epoch != epoch.number:
            return  # taken where another epoch began, perhaps of another structure: nothing to compare with
        different = sorted(name for name in epoch.identity if snapshot.identity.get(name) != epoch.identity[name])
        if not different or not snapshot.symbols:
            return
        names = ", ".join(different)
        if self._policy.require_exact:
            raise RecoveryError(
                f"{partition}: the replay from offset {snapshot.offset} would run on another program than the one "
                f"that published ({names} differ), and recovery.require_exact forbids that. Start the former version, "
                "stop it in order, then start this one"
            )
        _log.warning("replay_not_exact", partition=str(partition), different=names)


def _deleted(partition: TopicPartition, offset: int, bounds: OffsetBounds) -> str:
    return (
        f"{partition}: the records from offset {offset} are needed, but the topic begins at {bounds.beginning}: "
        'retention has deleted them. Set recovery.on_input_missing = "skip" to keep the state and go on from there, or '
        '"reset-state" to start anew, and lengthen the retention'
    )
