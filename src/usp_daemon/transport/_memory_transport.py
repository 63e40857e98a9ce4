"""The transport over :class:`MemoryBroker`: the same protocol as over Kafka, without a network.

A simulation passes ``faults``, which is asked at named points and may raise, sleep, or raise after the fact: then the
answer is lost although the broker has acted. :meth:`MemoryTransport.freeze` stops a member as SIGSTOP does.
"""

import abc
import asyncio
import contextlib
import socket
from collections import deque
from collections.abc import Sequence

from usp_daemon.config import Kafka
from usp_daemon.wire import (
    AbstractGroupConsumer,
    AbstractPartitionWriter,
    AbstractTransport,
    AssignmentListener,
    CommittedOffset,
    FencedError,
    OffsetBounds,
    OffsetOutOfRangeError,
    OutcomeUnknownError,
    OutputBatch,
    RawBatch,
    TopicPartition,
    TransportError,
)

from ._input import raw_batch
from ._memory_broker import Membership, MemoryBroker, MemoryRecord, UnknownMemberError
from ._output import outputs_of, standing_after

FAULT_POINTS = (
    "prepare",
    "join",  # before joining the group
    "heartbeat",  # before each heartbeat
    "poll",  # before each look at the logs
    "bounds",
    "committed",  # before the committed offset is asked for
    "commit",  # at least once: before the offset is committed
    "open",  # before the writer takes its partition over
    "opened",  # after it did
    "publish.begin",  # before the transaction begins
    "publish.offsets",  # before the offset is added to it
    "publish.records",  # before each output's records are added to it
    "publish.commit",  # before the decision to commit
    "publish.committed",  # after it: what is raised here loses the answer
)


class AbstractFaults(abc.ABC):
    """What goes wrong, and where."""

    @abc.abstractmethod
    async def at(self, point: str, transport: "MemoryTransport", partition: TopicPartition | None) -> None:
        """Called at each point of ``FAULT_POINTS``.

        May sleep, or raise ``ConnectionError`` for what a lost connection does there, or any error of the interface,
        which then goes through as it is.
        """


class MemoryTransport(AbstractTransport):
    """One member of a group on a shared :class:`MemoryBroker`.

    ``kafka`` gives topics, group and times, under the names they have for Kafka.
    """

    def __init__(
        self,
        broker: MemoryBroker,
        kafka: Kafka | None = None,
        *,
        guarantee: str = "exactly_once",
        commit_interval_ms: int = 100,
        faults: AbstractFaults | None = None,
    ) -> None:
        self.broker = broker
        self.kafka = kafka or Kafka()
        self.commit_interval_s = commit_interval_ms / 1e3
        self._is_transactional = guarantee == "exactly_once"
        self._faults = faults
        self._running = asyncio.Event()
        self._running.set()
        self._consumer: _MemoryConsumer | None = None
        self._writers: list[_MemoryWriter] = []

    @property
    def is_transactional(self) -> bool:
        """Whether results and offset are published as one."""
        return self._is_transactional

    async def prepare(self) -> Sequence[str]:
        """Check the topics, or create them."""
        await self.reach("prepare")
        kafka, broker = self.kafka, self.broker
        topics = (kafka.input_topic, kafka.predictions_topic, kafka.alarms_topic, kafka.dead_letters_topic)
        wanted = broker.num_partitions(kafka.input_topic) or kafka.num_partitions
        for topic in topics:
            if broker.num_partitions(topic) is None and not kafka.create_topics:
                raise TransportError(f"there is no topic {topic!r}: create it, or set kafka.create_topics")
            broker.create_topic(topic, wanted)
        for topic in topics[1:]:
            if (count := broker.num_partitions(topic) or 0) < wanted:
                raise TransportError(
                    f"topic {topic!r} has {count} partitions but the input {kafka.input_topic!r} has {wanted}: give it "
                    "as many"
                )
        return ()

    def consumer(self, listener: AssignmentListener) -> "_MemoryConsumer":
        """A member of the group, not yet joined."""
        self._consumer = _MemoryConsumer(self, listener)
        return self._consumer

    def writer(self, partition: TopicPartition) -> AbstractPartitionWriter:
        """A writer for one partition, not yet opened."""
        writer = (_TransactionalWriter if self._is_transactional else _DirectWriter)(self, partition)
        self._writers.append(writer)
        return writer

    async def close(self) -> None:
        """Give everything back; harmless when repeated."""
        writers, self._writers = self._writers, []
        for writer in writers:
            await writer.close()
        if self._consumer is not None:
            await self._consumer.close()

    async def kill(self) -> None:
        """End as SIGKILL does: nothing is committed, nobody is told, and what is under way never goes on."""
        self.freeze()
        for writer in self._writers:
            await writer.abandon()
        self._writers.clear()
        if self._consumer is not None:
            await self._consumer.abandon()
            self._consumer = None

    def freeze(self) -> None:
        """Let nothing of this member happen until :meth:`thaw`; it goes on where it stood, knowing nothing."""
        self._running.clear()

    def thaw(self) -> None:
        """The opposite of :meth:`freeze`."""
        self._running.set()

    async def reach(self, point: str, partition: TopicPartition | None = None) -> None:
        """Every call of the broker passes here: it yields, waits while frozen, and lets faults have their say."""
        await asyncio.sleep(0)
        await self._running.wait()
        if self._faults is not None:
            await self._faults.at(point, self, partition)
            await self._running.wait()

    async def commit_as_member(self, partition: TopicPartition, standing: CommittedOffset) -> None:
        """Commit an offset outside any transaction. Raises :class:`FencedError` when the group has moved on."""
        await self.reach("commit", partition)
        member = self._consumer.membership if self._consumer is not None else None
        try:
            if member is None:
                raise UnknownMemberError
            self.broker.commit(self.kafka.group, member.member_id, member.generation, [(partition, standing)])
        except UnknownMemberError:
            raise FencedError(f"the group no longer takes this member's commits for {partition}") from None


class _MemoryConsumer(AbstractGroupConsumer):
    """A member of the group. One task keeps the membership: joining, heartbeats, rebalances."""

    def __init__(self, transport: MemoryTransport, listener: AssignmentListener) -> None:
        self._transport = transport
        self._broker = transport.broker
        self._listener = listener
        self._task: asyncio.Task[None] | None = None
        self._error: BaseException | None = None
        self.membership: Membership | None = None
        self._positions: dict[TopicPartition, int | None] = {}  # None until the service has said where to begin
        self._paused: set[TopicPartition] = set()
        self._turns: deque[TopicPartition] = deque()
        name = transport.kafka.group_instance_id
        self._instance_id = socket.gethostname() if name == "auto" else name

    async def open(self) -> None:
        """Begin to join the group; the listener is told when that is done."""
        if self._broker.num_partitions(self._transport.kafka.input_topic) is None:
            raise TransportError(f"there is no topic {self._transport.kafka.input_topic!r}")
        self._start("")

    async def close(self) -> None:
        """Leave the group, without a word to the listener; a static member keeps its place until its session ends."""
        await self._stop()
        if self.membership is not None and not self._instance_id:
            self._broker.leave(self._transport.kafka.group, self.membership.member_id)
        self.membership = None
        self._positions.clear()

    async def rejoin(self) -> None:
        """Give every partition up, leave the group and join it anew."""
        await self._stop()
        held = tuple(self._positions)
        self._positions.clear()
        if held:
            await self._listener.on_revoked(held)
        if self.membership is not None:
            self._broker.leave(self._transport.kafka.group, self.membership.member_id)
            self.membership = None
        self._start("")

    async def abandon(self) -> None:
        """Stop without a word to the broker."""
        await self._stop()
        self.membership = None
        self._positions.clear()

    def _start(self, member_id: str) -> None:
        self._error = None
        self._task = asyncio.create_task(self._keep_membership(member_id), name="memory group membership")

    async def _stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    async def _keep_membership(self, member_id: str) -> None:
        kafka = self._transport.kafka
        try:
            while True:
                try:
                    await self._join(member_id)
                    member_id = await self._stay()
                except UnknownMemberError:
                    member_id = ""
                except ConnectionError:
                    await asyncio.sleep(kafka.heartbeat_interval_ms / 1e3)
        except Exception as error:  # whoever polls is told
            self._error = error

    async def _join(self, member_id: str) -> None:
        kafka = self._transport.kafka
        held = tuple(self._positions)
        if held:
            # As aiokafka does it, the member's heartbeats go on in a revocation, though not in an assignment.
            beating = asyncio.create_task(self._beat(), name="memory group heartbeats")
            try:
                await self._listener.on_revoked(held)
            finally:
                beating.cancel()
                await asyncio.gather(beating, return_exceptions=True)
        # Only now: until the listener has returned, results of what is held may still be published.
        self._positions.clear()
        self._paused.clear()
        await self._transport.reach("join")
        self.membership = await self._broker.join(
            kafka.group,
            kafka.input_topic,
            member_id,
            instance_id=self._instance_id,
            session_timeout_s=kafka.session_timeout_ms / 1e3,
            rebalance_timeout_s=kafka.rebalance_timeout_ms / 1e3,
        )
        self._positions = dict.fromkeys(self.membership.partitions)
        self._turns = deque(self.membership.partitions)
        await self._listener.on_assigned(self.membership.partitions)

    async def _beat(self) -> None:
        while True:
            with contextlib.suppress(UnknownMemberError):
                await self._stay()

    async def _stay(self) -> str:
        """Heartbeats, until the group rebalances; returns the name to join again with."""
        member = self.membership
        assert member is not None
        while True:
            await asyncio.sleep(self._transport.kafka.heartbeat_interval_ms / 1e3)
            try:
                await self._transport.reach("heartbeat")
            except ConnectionError:
                continue
            if self._broker.heartbeat(self._transport.kafka.group, member.member_id, member.generation):
                return member.member_id

    async def poll(self, timeout_s: float, max_records: int) -> Sequence[RawBatch]:
        """Next records, one batch a partition and none of them empty."""
        deadline = asyncio.get_running_loop().time() + timeout_s
        while True:
            if self._error is not None:
                error, self._error = self._error, None
                raise error
            try:
                await self._transport.reach("poll")
                batches = self._fetch(max_records)
            except ConnectionError:
                batches = []
            if batches or asyncio.get_running_loop().time() >= deadline:
                return batches
            await self._broker.changed(deadline)

    def _fetch(self, max_records: int) -> list[RawBatch]:
        batches: list[RawBatch] = []
        for partition in tuple(self._turns):
            position = self._positions.get(partition)
            if position is None or partition in self._paused or max_records <= 0:
                continue
            try:
                records, next_position = self._broker.fetch(partition, position, max_records)
            except OffsetOutOfRangeError:
                if batches:  # these first; the partition is out of range the next time too
                    break
                self._positions[partition] = None
                raise
            self._positions[partition] = next_position
            if records:
                max_records -= len(records)
                batches.append(raw_batch(partition, records, [record.timestamp_ms for record in records]))
                self._turns.remove(partition)  # whoever has had its turn comes last
                self._turns.append(partition)
        return batches

    def seek(self, partition: TopicPartition, offset: int) -> None:
        """Read on from ``offset``."""
        if partition in self._positions:
            self._positions[partition] = offset
            self._broker.wake()

    def pause(self, partition: TopicPartition) -> None:
        """Hand out nothing of this partition until :meth:`resume`."""
        if partition in self._positions:
            self._paused.add(partition)

    def resume(self, partition: TopicPartition) -> None:
        """The opposite of :meth:`pause`."""
        self._paused.discard(partition)
        self._broker.wake()

    def position(self, partition: TopicPartition) -> int | None:
        """The offset that comes next; None before the first seek."""
        return self._positions.get(partition)

    async def committed_with_note(self, partition: TopicPartition) -> CommittedOffset | None:
        """The group's committed offset and its note, once no transaction that would move it is in doubt."""
        try:
            await self._transport.reach("committed", partition)
            async with asyncio.timeout(self._transport.kafka.request_timeout_ms / 1e3):
                return await self._broker.committed_with_note(self._transport.kafka.group, partition)
        except (ConnectionError, TimeoutError) as error:
            raise OutcomeUnknownError(f"the committed offset of {partition} is not known: {error}") from error

    async def bounds(self, partition: TopicPartition) -> OffsetBounds:
        """What the broker has of the partition at this moment."""
        try:
            await self._transport.reach("bounds", partition)
        except ConnectionError as error:
            raise OutcomeUnknownError(f"the offsets of {partition} are not known: {error}") from error
        return self._broker.bounds(partition)

    def num_partitions(self) -> int:
        """Partitions that the input topic has."""
        return self._broker.num_partitions(self._transport.kafka.input_topic) or 0

    def end_offset(self, partition: TopicPartition) -> int | None:
        """The end of the partition."""
        return self._broker.bounds(partition).end if partition in self._positions else None


class _MemoryWriter(AbstractPartitionWriter):
    """What both writers share."""

    def __init__(self, transport: MemoryTransport, partition: TopicPartition) -> None:
        self._transport = transport
        self._broker = transport.broker
        self._partition = partition
        self._committed: int | None = None

    @property
    def committed(self) -> int | None:
        """The offset that this writer committed last."""
        return self._committed

    async def abandon(self) -> None:
        """Stop without a word to the broker."""

    def _records(self, batch: OutputBatch) -> list[tuple[TopicPartition, list[MemoryRecord]]]:
        return [
            (
                TopicPartition(output.topic, self._partition.partition),
                [MemoryRecord(-1, r.key, r.value, r.timestamp_ms or 0, tuple(r.headers)) for r in output],
            )
            for output in outputs_of(batch, self._transport.kafka)
        ]


class _TransactionalWriter(_MemoryWriter):
    """Results and offset in one transaction."""

    def __init__(self, transport: MemoryTransport, partition: TopicPartition) -> None:
        super().__init__(transport, partition)
        kafka = transport.kafka
        self._transactional_id = f"{kafka.group}-{partition.topic}-{partition.partition}"
        self._epoch: int | None = None  # None while what is published could not be trusted

    async def open(self) -> None:
        """Take the partition over: earlier owners are fenced and what they left open is aborted."""
        try:
            await self._transport.reach("open", self._partition)
            async with asyncio.timeout(self._transport.kafka.request_timeout_ms / 1e3):
                epoch = await self._broker.init_producer(self._transactional_id)
            await self._transport.reach("opened", self._partition)
        except (ConnectionError, TimeoutError) as error:
            raise OutcomeUnknownError(f"the writer of {self._partition} could not be opened: {error}") from error
        self._epoch = epoch

    async def close(self) -> None:
        """Nothing is kept here that would have to be written."""
        self._epoch = None

    async def publish(self, batch: OutputBatch) -> None:
        """Publish and commit all of ``batch`` or nothing."""
        standing = standing_after(batch, self._partition)
        epoch, self._epoch = self._epoch, None
        if epoch is None:
            raise OutcomeUnknownError(f"the writer of {self._partition} must be opened (anew) first")
        try:
            await self._publish(batch, standing, epoch)
        except (ConnectionError, TimeoutError) as error:
            raise OutcomeUnknownError(f"what was published for {self._partition} is not known: {error}") from error
        self._epoch = epoch
        if standing is not None:
            self._committed = standing.offset

    async def _publish(self, batch: OutputBatch, standing: CommittedOffset | None, epoch: int) -> None:
        transport, broker, name, kafka = self._transport, self._broker, self._transactional_id, self._transport.kafka
        await transport.reach("publish.begin", self._partition)
        broker.begin(name, epoch, kafka.transaction_timeout_ms / 1e3)
        await transport.reach("publish.offsets", self._partition)
        if standing is not None:
            broker.add_offset(name, epoch, kafka.group, self._partition, standing)
        for partition, records in self._records(batch):
            await transport.reach("publish.records", self._partition)
            broker.add_records(name, epoch, partition, records)
        await transport.reach("publish.commit", self._partition)
        await broker.end(name, epoch, commit=True)
        await transport.reach("publish.committed", self._partition)


class _DirectWriter(_MemoryWriter):
    """Results at once, the offset at its own pace and as a member of the group."""

    def __init__(self, transport: MemoryTransport, partition: TopicPartition) -> None:
        super().__init__(transport, partition)
        self._pending: CommittedOffset | None = None
        self._committing: asyncio.Task[None] | None = None
        self._error: TransportError | None = None

    async def open(self) -> None:
        """Nothing fences at this guarantee."""
        await self._transport.reach("open", self._partition)
        self._pending = self._error = None

    async def abandon(self) -> None:
        """Stop without a word to the broker."""
        if self._committing is not None:
            self._committing.cancel()
            await asyncio.gather(self._committing, return_exceptions=True)
            self._committing = None

    async def close(self) -> None:
        """Commit what is pending."""
        await self.abandon()
        if self._error is None:
            await self._commit()

    async def publish(self, batch: OutputBatch) -> None:
        """Append the results; the offset follows within the interval."""
        standing = standing_after(batch, self._partition)
        if self._error is not None:
            raise self._error
        try:
            for partition, records in self._records(batch):
                await self._transport.reach("publish.records", self._partition)
                for record in records:
                    self._broker.produce(*partition, *record[1:])
            await self._transport.reach("publish.committed", self._partition)
        except ConnectionError as error:
            raise OutcomeUnknownError(f"what was published for {self._partition} is not known: {error}") from error
        if standing is not None:
            self._pending = standing
            if self._committing is None or self._committing.done():
                self._committing = asyncio.create_task(self._commit_later(), name=f"commit of {self._partition}")

    async def _commit_later(self) -> None:
        await asyncio.sleep(self._transport.commit_interval_s)
        await self._commit()

    async def _commit(self) -> None:
        standing, self._pending = self._pending, None
        if standing is None:
            return
        try:
            await self._transport.commit_as_member(self._partition, standing)
        except ConnectionError:
            self._pending = self._pending or standing
        except TransportError as error:
            self._error = error
        else:
            self._committed = standing.offset
