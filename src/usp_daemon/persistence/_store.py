"""The interface between the service and whatever keeps snapshots, and what a store reports on the way."""

import abc
import dataclasses
import enum
import logging
import types
from typing import Self

from ._snapshot import Snapshot, SnapshotInfo


class SnapshotEventKind(enum.Enum):
    """What happened to a snapshot that an operator, or a metric, should know of."""

    # Damaged; kept under another name. The one before it is used.
    QUARANTINED = "snapshot_quarantined"
    # Damaged, but left where it is: the partition's lock is not held, or the disk refuses the new name.
    DAMAGED = "snapshot_damaged"
    # In a format newer than this program; left alone. The one before it is used.
    NEWER_VERSION = "snapshot_of_newer_version"
    # The disk failed to read it; left alone. The one before it is used.
    UNREADABLE = "snapshot_unreadable"
    # Beyond the offset that was saved last, hence of another history of the topic; kept under another name.
    SUPERSEDED = "snapshot_superseded"
    # What a process that died while saving has left; removed.
    ORPHAN_REMOVED = "snapshot_orphan_removed"
    # Should have been removed or renamed, and could not be.
    NOT_TIDIED = "snapshot_not_tidied"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotEvent:
    """One such happening. ``offset`` is None where no snapshot is concerned."""

    kind: SnapshotEventKind
    topic: str
    partition: int
    locator: str
    reason: str
    offset: int | None = None


def log_event(event: SnapshotEvent) -> None:
    """What a store does with events unless told otherwise: one line of the standard logging each."""
    fields = {"topic": event.topic, "partition": event.partition, "offset": event.offset, "locator": event.locator}
    level = logging.INFO if event.kind is SnapshotEventKind.ORPHAN_REMOVED else logging.WARNING
    text = "%s: %s (%s)"
    logging.getLogger(__name__).log(level, text, event.kind.value, event.locator, event.reason, extra=fields)


class AbstractSnapshotStore(abc.ABC):
    """Snapshots of partitions, by topic, partition and offset, for one consumer group.

    Opened before use and closed after it; ``async with`` does both. No method blocks the event loop. Every method
    raises :class:`SnapshotStoreError` or one of its kinds when the store cannot do its work.
    """

    @abc.abstractmethod
    async def open(self) -> None:
        """Acquire what is needed."""

    @abc.abstractmethod
    async def close(self) -> None:
        """Finish what was begun, release every partition, give everything back; harmless when repeated."""

    @abc.abstractmethod
    async def acquire(self, topic: str, partition: int) -> None:
        """Become the one that saves this partition; harmless when already so.

        Raises :class:`PartitionLockedError`, naming the holder, when another is.
        """

    @abc.abstractmethod
    async def release(self, topic: str, partition: int) -> None:
        """Let another become it, once what was begun is finished; harmless when not held."""

    @abc.abstractmethod
    async def save(self, snapshot: Snapshot) -> SnapshotInfo:
        """Keep ``snapshot``, whose arrays must not change meanwhile; when this returns, it is durable.

        One at the same offset is replaced, in one step. Raises :class:`PartitionNotHeldError`,
        :class:`SnapshotContentError`, :class:`InsufficientStorageError` and :class:`SnapshotWriteError`; whatever was
        kept before is then still there. Cancelling the caller does not stop a snapshot that has been begun.
        """

    @abc.abstractmethod
    async def list(self, topic: str, partition: int) -> tuple[SnapshotInfo, ...]:
        """What is kept of a partition, highest offset first. Only headers are looked at, so one may be damaged."""

    @abc.abstractmethod
    async def newest(self, topic: str, partition: int, not_above: int) -> Snapshot | None:
        """The whole snapshot with the highest offset that is not above ``not_above``; None when there is none.

        A damaged one on the way is put aside, kept, and reported; one in a newer format is left alone and reported; the
        one before is taken.
        """

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: types.TracebackType | None,
    ) -> None:
        await self.close()
