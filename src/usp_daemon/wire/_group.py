"""The interface between the service and a broker: partitions that a group divides among its members.

One :class:`AbstractGroupConsumer` reads whatever partitions the group assigns to this member; one
:class:`AbstractPartitionWriter` per partition publishes that partition's results together with its offset. Whoever
opened the writer of a partition last is its owner: everybody before is fenced.
"""

import abc
from collections.abc import Collection, Sequence
from typing import NamedTuple

from ._batches import OutputBatch, RawBatch
from ._interface import AbstractSink, AbstractTransportEnd, TransportError


class TopicPartition(NamedTuple):
    """One partition of the input."""

    topic: str
    partition: int

    def __str__(self) -> str:
        return f"{self.topic}/{self.partition}"


class OffsetBounds(NamedTuple):
    """The offsets that can be read: ``beginning`` is the oldest record's, ``end`` the next one's to be written."""

    beginning: int
    end: int


class CommittedOffset(NamedTuple):
    """The next record to be answered, and the note of whoever committed that."""

    offset: int
    note: str


class FencedError(TransportError):
    """Somebody else has taken the partition over; nothing more may be published for it."""


class OutcomeUnknownError(TransportError):
    """Nobody can say whether the last batch was published: open the writer anew and read the committed offset."""


class OffsetOutOfRangeError(TransportError):
    """The records at the position asked for are not there any more (retention), or not yet."""

    def __init__(self, message: str, partition: TopicPartition, position: int) -> None:
        super().__init__(message)
        self.partition = partition
        self.position = position


class RecordTooLargeError(TransportError):
    """The broker takes no record of this size: nothing of the batch was published, and the writer may go on.

    ``output`` is "predictions", "alarms" or "dead_letters", ``index`` the record's place in that part of the batch.
    """

    def __init__(self, message: str, output: str, index: int, origin: tuple[str, int, int]) -> None:
        super().__init__(message)
        self.output = output
        self.index = index
        self.origin = origin


class AssignmentListener(abc.ABC):
    """Told which partitions come and go. Both are awaited inside the rebalance, so they must be quick."""

    @abc.abstractmethod
    async def on_assigned(self, partitions: Collection[TopicPartition]) -> None:
        """These are this member's from now on; each is silent until :meth:`AbstractGroupConsumer.seek` says where."""

    @abc.abstractmethod
    async def on_revoked(self, partitions: Collection[TopicPartition]) -> None:
        """These go as soon as this returns; until then their results may still be published."""


class AbstractGroupConsumer(AbstractTransportEnd):
    """Reads the partitions that are assigned to this member. Opening it joins the group, closing it leaves."""

    @abc.abstractmethod
    async def poll(self, timeout_s: float, max_records: int) -> Sequence[RawBatch]:
        """Next records, one batch a partition and none of them empty; nothing when there are none for ``timeout_s``.

        Raises :class:`OffsetOutOfRangeError`, once for each occasion, and :class:`TransportError` for what does not
        pass by itself (no rights, the group refuses this member); what does pass is retried inside.
        """

    @abc.abstractmethod
    def seek(self, partition: TopicPartition, offset: int) -> None:
        """Read on from ``offset``; records already fetched are dropped. Unassigned partitions are ignored."""

    @abc.abstractmethod
    def pause(self, partition: TopicPartition) -> None:
        """Hand out nothing of this partition until :meth:`resume`. Unassigned partitions are ignored."""

    @abc.abstractmethod
    def resume(self, partition: TopicPartition) -> None:
        """The opposite of :meth:`pause`."""

    @abc.abstractmethod
    def position(self, partition: TopicPartition) -> int | None:
        """The offset that comes next, past what is no record for readers (transaction markers); None if unknown."""

    @abc.abstractmethod
    async def committed_with_note(self, partition: TopicPartition) -> CommittedOffset | None:
        """The group's committed offset and the note beside it; None when there never was one.

        Waits for transactions in doubt to be resolved, so that what is returned is final until the next commit.
        """

    async def committed(self, partition: TopicPartition) -> int | None:
        """The same without the note."""
        standing = await self.committed_with_note(partition)
        return None if standing is None else standing.offset

    @abc.abstractmethod
    async def bounds(self, partition: TopicPartition) -> OffsetBounds:
        """What the broker has of the partition at this moment."""

    @abc.abstractmethod
    def num_partitions(self) -> int:
        """Partitions that the input topic has, as last heard; 0 while nothing was heard."""

    @abc.abstractmethod
    def end_offset(self, partition: TopicPartition) -> int | None:
        """The end of the partition as last heard, without asking: for lag."""

    @abc.abstractmethod
    async def rejoin(self) -> None:
        """Give every partition up, leave the group and join it anew, as after having been fenced.

        ``on_revoked`` is called for what was held.
        """


class AbstractPartitionWriter(AbstractSink):
    """Publishes the results of one partition. :meth:`open` takes the partition over and fences earlier owners."""

    @abc.abstractmethod
    async def publish(self, batch: OutputBatch) -> None:
        """Publish all of ``batch`` and commit its position and note for this partition.

        Exactly once: as one transaction, all of it or nothing. At least once: results first, acknowledged, then the
        offset, at the writer's own pace. Returns when the results are durable. Raises :class:`FencedError` (nothing
        was published), :class:`OutcomeUnknownError`, or :class:`TransportError` when the broker refuses for good.
        """

    @property
    @abc.abstractmethod
    def committed(self) -> int | None:
        """The offset that this writer committed last; None before the first time."""


class AbstractTransport(abc.ABC):
    """A broker as the service sees it."""

    @property
    @abc.abstractmethod
    def is_transactional(self) -> bool:
        """Whether results and offset are published as one, so that they should be gathered for an interval."""

    @abc.abstractmethod
    async def prepare(self) -> Sequence[str]:
        """Check the topics, or create them; returns warnings for the operator, each a sentence.

        Raises :class:`TransportError` that says what is wrong and what to do: no broker, no rights, a topic that is
        missing, has too few partitions or is compacted.
        """

    @abc.abstractmethod
    def consumer(self, listener: AssignmentListener) -> AbstractGroupConsumer:
        """A member of the group, not yet joined."""

    @abc.abstractmethod
    def writer(self, partition: TopicPartition) -> AbstractPartitionWriter:
        """A writer for one partition, not yet opened."""

    @abc.abstractmethod
    async def close(self) -> None:
        """Give everything back; harmless when repeated."""
