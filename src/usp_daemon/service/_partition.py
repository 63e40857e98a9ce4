"""One partition of the input while this replica owns it.

ASSIGNED --> RESTORING --> REPLAYING --> RUNNING --> REVOKING --> (gone)
    |            |             |            |
    |            +---> FAILED  |            +--> LOST (fenced: somebody else owns it)
    +---------------- revoked at any time --------------------> (gone)
"""

import asyncio
import collections
import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Any

from usp_daemon.telemetry import PartitionState
from usp_daemon.wire import AbstractPartitionWriter, RawBatch, TopicPartition

from ._epochs import ProgramEpoch, Switches
from ._results import Answer


class OwnedPartition:
    """Queues, offsets and counters of one partition for one assignment.

    Offsets name the *next* record: everything below ``taken`` has left the inbox, below ``stepped_in_engine`` it is in
    the predictor's state, below ``committed`` it is answered for good. Records below ``silent_below`` were answered by
    an earlier owner: they are stepped, and nothing is said about them.

    ``switches`` is where which epoch began, ``epochs`` those among them that are still needed, made ready: what is
    replayed goes by them. ``epoch`` is the one in force at ``stepped_in_engine``.
    """

    def __init__(self, partition: TopicPartition) -> None:
        self.partition = partition
        self.state = PartitionState.ASSIGNED
        self.reason = ""
        self.assigned_at = 0.0
        self.writer: AbstractPartitionWriter | None = None
        self.task: asyncio.Task[Any] | None = None
        self.handover: asyncio.Task[bool] | None = None
        # intake
        self.inbox: collections.deque[RawBatch] = collections.deque()
        self.num_queued = 0
        self.paused = False
        self.taken = 0
        self.silent_below = 0
        # settings
        self.switches = Switches()
        self.epochs: dict[int, ProgramEpoch] = {}
        self.epoch: ProgramEpoch | None = None
        # between inbox and pending
        self.num_in_stages = 0
        self.idle = asyncio.Event()
        self.idle.set()
        self.stepped_in_engine = 0
        # waiting for their commit
        self.pending: list[Answer] = []
        self.num_pending = 0
        self.pending_since: float | None = None
        self.wake = asyncio.Event()
        self.draining = False
        self.drained = asyncio.Event()
        self.committed = 0
        self.progress_at = 0.0
        self.moved = asyncio.Event()  # set whenever a record is stepped or a commit confirmed
        # snapshots
        self.snapshot_due = asyncio.Event()
        self.last_snapshot_offset = -1
        self.lock_held = False

    @property
    def receives(self) -> bool:
        """Whether records that are polled belong into the inbox."""
        return self.state in (PartitionState.REPLAYING, PartitionState.RUNNING)

    def accept(self, raw: RawBatch) -> None:
        """Put a polled batch into the inbox, without what was taken before (a fetch may overlap a seek)."""
        if raw.offsets[0] < self.taken:
            kept = next((i for i, offset in enumerate(raw.offsets) if offset >= self.taken), len(raw))
            raw = slice_raw(raw, kept, len(raw))
        if not len(raw):
            return
        self.taken = raw.offsets[-1] + 1
        self.inbox.append(raw)
        self.num_queued += len(raw)

    def take(self, limit: int, current_fn: Callable[[], ProgramEpoch]) -> "Taken | None":
        """Up to ``limit`` records of one epoch from the inbox, all silent or none; None when it is empty.

        Live records come under what ``current_fn`` says is current, which begins here if it is another one than before.
        """
        if not self.inbox or limit <= 0:
            return None
        raw = self.inbox.popleft()
        first = raw.offsets[0]
        silent = first < self.silent_below
        if silent:
            number = self.switches.at(first)
            epoch = self.epochs[number or 0]
        else:
            epoch = current_fn()
            if self.switches.last != epoch.number:
                self.switches.append(epoch.number, first)
                self.epochs.clear()
                self.snapshot_due.set()
        bounds = (self.silent_below, self.switches.next_after(first)) if silent else ()
        stop = min(len(raw), limit)
        for bound in bounds:
            if bound is not None and raw.offsets[stop - 1] >= bound:
                stop = next(i for i, offset in enumerate(raw.offsets) if offset >= bound)
        if stop < len(raw):
            self.inbox.appendleft(slice_raw(raw, stop, len(raw)))
            raw = slice_raw(raw, 0, stop)
        self.num_queued -= len(raw)
        return Taken(raw, silent, epoch)

    def oldest_waiting_ns(self) -> int | None:
        """Record time of the oldest record that waits here for its step or its commit; None when there is none."""
        for raw in (*(answer.batch.raw for answer in self.pending[:1]), *itertools.islice(self.inbox, 1)):
            if raw.record_timestamps_ns is not None:
                return int(raw.record_timestamps_ns[0])
        return None

    def clear_inbox(self) -> None:
        """Forget what was fetched and not yet taken; whoever owns the partition next reads it again."""
        self.inbox.clear()
        self.num_queued = 0

    def deliver(self, answer: Answer, now: float) -> None:
        """An answer that waits for its commit."""
        self.pending.append(answer)
        self.num_pending += len(answer.batch.raw)
        if self.pending_since is None:
            self.pending_since = now
        self.wake.set()

    def take_pending(self) -> Sequence[Answer]:
        """Everything that waits for its commit."""
        answers, self.pending, self.num_pending, self.pending_since = self.pending, [], 0, None
        return answers


@dataclasses.dataclass(frozen=True, slots=True)
class Taken:
    """Records of one partition that are stepped under one epoch; ``silent`` ones were answered before."""

    raw: RawBatch
    silent: bool
    epoch: ProgramEpoch


def slice_raw(raw: RawBatch, start: int, stop: int) -> RawBatch:
    """The records from ``start`` up to ``stop`` of ``raw``."""
    if start == 0 and stop == len(raw):
        return raw
    return dataclasses.replace(
        raw,
        offsets=raw.offsets[start:stop],
        values=raw.values[start:stop],
        keys=None if raw.keys is None else raw.keys[start:stop],
        headers=None if raw.headers is None else raw.headers[start:stop],
        record_timestamps_ns=None if raw.record_timestamps_ns is None else raw.record_timestamps_ns[start:stop],
        faults={position - start: fault for position, fault in raw.faults.items() if start <= position < stop},
    )
