"""A member of the consumer group.

aiokafka's group coordination runs in tasks of its own; its rebalances reach the service through the listener. A newly
assigned partition is paused at once and given a position, so that aiokafka neither fetches nor moves it to the
committed offset; what it might hand out before the service has said where to begin is dropped here as well.
"""

import asyncio
import logging
import socket
from collections.abc import Collection, Sequence
from typing import Any

from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener
from aiokafka import errors as kafka_errors
from aiokafka.coordinator.assignors.range import RangePartitionAssignor
from aiokafka.structs import OffsetAndMetadata
from aiokafka.structs import TopicPartition as KafkaPartition

from usp_daemon.config import Kafka
from usp_daemon.wire import (
    AbstractGroupConsumer,
    AssignmentListener,
    CommittedOffset,
    FencedError,
    OffsetBounds,
    OffsetOutOfRangeError,
    OutcomeUnknownError,
    RawBatch,
    TopicPartition,
    TransportError,
)

from .._input import raw_batch
from ._errors import FENCED_INSTANCE_CODE, permanent
from ._lenient import read_headers_leniently
from ._shutdown import stop_within
from ._stable_offsets import fetch_stable_offset
from ._watch import ClientWatch

_log = logging.getLogger(__name__)

# Beyond the service's own timeout: what a poll may be held up by a rebalance, which aiokafka would wait out.
GRACE_S = 0.05
PAUSE_S = 1.0  # the most for which a poll without a consumer sleeps
MEMBERSHIP_ERRORS = (
    kafka_errors.UnknownMemberIdError,
    kafka_errors.IllegalGenerationError,
    kafka_errors.RebalanceInProgressError,
)


class KafkaGroupConsumer(AbstractGroupConsumer):
    """One member; the service sees it through the interface only."""

    def __init__(
        self, kafka: Kafka, options: dict[str, Any], listener: AssignmentListener, *, close_timeout_s: float
    ) -> None:
        self._kafka = kafka
        self._options = options
        self._listener = listener
        self._close_timeout_s = close_timeout_s
        self._consumer: AIOKafkaConsumer | None = None
        self._watch: ClientWatch | None = None
        self._rebalances: _Rebalances | None = None
        self._held: set[TopicPartition] = set()
        self._begun: set[TopicPartition] = set()  # where the service has said where to begin
        self._paused: set[TopicPartition] = set()
        self._listener_error: BaseException | None = None
        self._is_wanted = False
        self._rejoining = asyncio.Lock()
        self.before_revocation_ends_fn: Any = None  # awaited with the partitions, after the service's listener

    # -- life

    async def open(self) -> None:
        """Connect and begin to join; the listener is told when the group has divided its partitions."""
        if self._consumer is None:
            await self._start()
        self._is_wanted = True

    async def close(self) -> None:
        """Leave the group, without a word to the listener.

        A static member keeps its partitions until its session ends, so that it may come back.
        """
        self._is_wanted = False
        await self._stop()
        self._held.clear()

    async def rejoin(self) -> None:
        """Give every partition up, leave the group and join it anew.

        Raises :class:`OutcomeUnknownError` when no broker answers; the next :meth:`poll` then tries again.
        """
        if self._rejoining.locked():  # the service and poll may both find that it is time
            async with self._rejoining:
                return
        async with self._rejoining:
            if self._rebalances is not None:
                self._rebalances.active = False
            held = set(self._held)
            if held:
                await self._revoke(held)
            await self._stop()
            await self._start()

    async def _start(self) -> None:
        kafka = self._kafka
        name = socket.gethostname() if kafka.group_instance_id == "auto" else kafka.group_instance_id
        consumer = AIOKafkaConsumer(
            **self._options,
            group_id=kafka.group,
            group_instance_id=name or None,
            isolation_level="read_committed",
            enable_auto_commit=False,
            auto_offset_reset="none",
            # aiokafka's sticky assignor keeps its memory in the class; by range, static members keep their partitions.
            partition_assignment_strategy=(RangePartitionAssignor,),
            session_timeout_ms=kafka.session_timeout_ms,
            heartbeat_interval_ms=kafka.heartbeat_interval_ms,
            rebalance_timeout_ms=kafka.rebalance_timeout_ms,
            fetch_max_wait_ms=kafka.fetch_max_wait_ms,
            max_partition_fetch_bytes=kafka.max_partition_fetch_bytes,
        )
        self._consumer, self._watch = consumer, ClientWatch(consumer._client)
        self._rebalances = _Rebalances(self, consumer)
        self._listener_error = None
        try:
            async with asyncio.timeout(kafka.request_timeout_ms / 1e3):
                await consumer.start()
            consumer.subscribe([kafka.input_topic], listener=self._rebalances)
        except (kafka_errors.KafkaError, TimeoutError, OSError) as error:
            await self._stop()
            raise permanent(error, kafka) or OutcomeUnknownError(
                f"the consumer group {kafka.group!r} cannot be joined now: {error!r}"
            ) from error
        except BaseException:
            await self._stop()
            raise

    async def _stop(self) -> None:
        consumer, watch, rebalances = self._consumer, self._watch, self._rebalances
        self._consumer = self._watch = self._rebalances = None
        self._begun.clear()
        self._paused.clear()
        if consumer is None or watch is None:
            return
        if rebalances is not None:
            rebalances.active = False
        owners = (consumer, consumer._coordinator, consumer._fetcher, consumer._client, consumer._subscription)
        await stop_within(
            self._close_timeout_s, consumer.stop, watch, tuple(owner for owner in owners if owner is not None)
        )

    # -- rebalances

    async def _assign(self, consumer: AIOKafkaConsumer, partitions: Collection[KafkaPartition]) -> None:
        self._held = {TopicPartition(*partition) for partition in partitions}
        self._begun.clear()
        self._paused.clear()
        for partition in partitions:
            consumer.pause(partition)
            consumer.seek(partition, 0)
        try:
            await self._listener.on_assigned(frozenset(self._held))
        except Exception as error:  # aiokafka would log it and go on; whoever polls is told instead
            self._listener_error = error

    async def _revoke(self, partitions: set[TopicPartition]) -> None:
        try:
            await self._listener.on_revoked(frozenset(partitions))
            if self.before_revocation_ends_fn is not None:
                await self.before_revocation_ends_fn(partitions)
        except Exception as error:
            self._listener_error = error
        finally:
            self._held -= partitions
            self._begun -= partitions
            self._paused -= partitions

    # -- records

    async def poll(self, timeout_s: float, max_records: int) -> Sequence[RawBatch]:
        """Next records, one batch a partition and none of them empty."""
        if self._listener_error is not None:
            error, self._listener_error = self._listener_error, None
            raise error
        if not self._is_wanted:
            raise TransportError("the consumer is not open")
        if self._rejoining.locked():
            await asyncio.sleep(min(timeout_s, PAUSE_S))
            return []
        consumer = self._consumer
        if consumer is None or _is_dead(consumer):
            await self._mend(timeout_s)
            return []
        try:
            async with asyncio.timeout(timeout_s + GRACE_S):
                found = await consumer.getmany(timeout_ms=max(0, int(timeout_s * 1e3)), max_records=max_records)
        except TimeoutError:  # a rebalance is under way
            return []
        except kafka_errors.OffsetOutOfRangeError as error:
            self._out_of_range(error)
            return []
        except (kafka_errors.KafkaError, UnicodeDecodeError) as error:
            self._raise_if_permanent(error)
            await asyncio.sleep(min(timeout_s, self._kafka.request_timeout_ms / 1e3, 0.1))
            return []
        return [
            raw_batch(TopicPartition(*partition), records, [record.timestamp for record in records])
            for partition, records in found.items()
            if records and TopicPartition(*partition) in self._begun
        ]

    async def _mend(self, timeout_s: float) -> None:
        """Begin anew after a background task has died, or after a start that failed."""
        _log.warning("kafka_consumer_restarted")
        try:
            await self.rejoin()
        except OutcomeUnknownError as error:
            _log.warning("kafka_consumer_not_restarted: %s", error)
            await asyncio.sleep(min(timeout_s, PAUSE_S))

    def _out_of_range(self, error: kafka_errors.OffsetOutOfRangeError) -> None:
        for kafka_partition, position in error.args[0].items():
            partition = TopicPartition(*kafka_partition)
            if partition not in self._begun:
                continue
            # Silent until the service seeks: aiokafka would ask again, and be told the same, for ever.
            self._begun.discard(partition)
            self._pause(partition)
            raise OffsetOutOfRangeError(
                f"{partition} holds no record at offset {position}: retention has deleted it, or it is not written yet",
                partition,
                position,
            ) from error

    def _raise_if_permanent(self, error: BaseException) -> None:
        kafka = self._kafka
        if isinstance(error, UnicodeDecodeError):
            # aiokafka's reader takes only headers whose names are UTF-8, and a producer may send any bytes.
            _log.warning("kafka_header_is_not_utf8")
            read_headers_leniently()
            return
        if self._watch is not None and self._watch.codes.pop(FENCED_INSTANCE_CODE, 0):
            raise TransportError(
                f"another member of the group {kafka.group!r} has the same kafka.group_instance_id: give every replica "
                "a name of its own"
            ) from error
        if (told := permanent(error, kafka)) is not None:
            raise told from error
        _log.warning("kafka_poll_failed: %r", error)

    # -- positions

    def seek(self, partition: TopicPartition, offset: int) -> None:
        """Read on from ``offset``; records already fetched are dropped."""
        consumer = self._assigned(partition)
        if consumer is None:
            return
        consumer.seek(KafkaPartition(*partition), offset)
        self._begun.add(partition)
        if partition not in self._paused:
            consumer.resume(KafkaPartition(*partition))

    def pause(self, partition: TopicPartition) -> None:
        """Hand out nothing of this partition until :meth:`resume`."""
        if partition in self._held:
            self._paused.add(partition)
            self._pause(partition)

    def resume(self, partition: TopicPartition) -> None:
        """The opposite of :meth:`pause`."""
        self._paused.discard(partition)
        consumer = self._assigned(partition)
        if consumer is not None and partition in self._begun:
            consumer.resume(KafkaPartition(*partition))

    def _pause(self, partition: TopicPartition) -> None:
        consumer = self._assigned(partition)
        if consumer is not None:
            consumer.pause(KafkaPartition(*partition))

    def _assigned(self, partition: TopicPartition) -> AIOKafkaConsumer | None:
        """The consumer, if the partition is held and aiokafka agrees."""
        consumer = self._consumer
        if consumer is None or partition not in self._held or KafkaPartition(*partition) not in consumer.assignment():
            return None
        return consumer

    def position(self, partition: TopicPartition) -> int | None:
        """The offset that comes next; None before the first seek."""
        state = self._state(partition)
        if state is None or partition not in self._begun or not state.has_valid_position:
            return None
        return state.position

    def num_partitions(self) -> int:
        """Partitions that the input topic has, by the metadata at hand."""
        known = None if self._consumer is None else self._consumer.partitions_for_topic(self._kafka.input_topic)
        return len(known or ())

    def end_offset(self, partition: TopicPartition) -> int | None:
        """Where readers of committed records stood still at the last answer of the broker."""
        state = self._state(partition)
        if state is None:
            return None
        return state.lso if state.lso is not None and state.lso >= 0 else state.highwater

    def _state(self, partition: TopicPartition) -> Any:
        consumer = self._assigned(partition)
        if consumer is None:
            return None
        # The public position() is a coroutine, though it waits for nothing once there is a position.
        return consumer._subscription.subscription.assignment.state_value(KafkaPartition(*partition))

    async def committed_with_note(self, partition: TopicPartition) -> CommittedOffset | None:
        """The group's committed offset and its note, once no transaction that would move it is in doubt.

        Brokers before 2.5 cannot be asked to wait for that. There it is final all the same when the partition's writer
        was opened before, which aborts or completes what earlier owners had left.
        """
        consumer = self._opened()
        return await self._answered(
            fetch_stable_offset(consumer, self._kafka.group, KafkaPartition(*partition)),
            f"the committed offset of {partition}",
        )

    async def bounds(self, partition: TopicPartition) -> OffsetBounds:
        """What can be read of the partition at this moment."""
        consumer = self._opened()
        key = KafkaPartition(*partition)

        async def ask() -> OffsetBounds:
            # The end first: retention between the two answers then gives no beginning beyond it.
            end = (await consumer.end_offsets([key]))[key]
            beginning = (await consumer.beginning_offsets([key]))[key]
            return OffsetBounds(beginning, max(beginning, end))

        return await self._answered(ask(), f"the offsets of {partition}")

    async def commit(self, partition: TopicPartition, standing: CommittedOffset) -> None:
        """Commit an offset and its note as a member of the group, for writers that publish without transactions.

        Raises :class:`FencedError` when the group has given the partition to somebody else.
        """
        consumer = self._assigned(partition)
        if consumer is None:
            raise FencedError(f"{partition} is not this replica's any more, and its offset cannot be committed")
        coordinator: Any = consumer._coordinator
        assignment: Any = consumer._subscription.subscription.assignment
        offsets = {KafkaPartition(*partition): OffsetAndMetadata(*standing)}
        try:
            # One attempt, and no more of it after the deadline: aiokafka's commit() leaves a shielded task behind.
            async with asyncio.timeout(self._kafka.request_timeout_ms / 1e3):
                await coordinator.ensure_coordinator_known()
                async with coordinator._commit_lock:
                    await coordinator._do_commit_offsets(assignment, offsets)
        except MEMBERSHIP_ERRORS as error:
            raise FencedError(f"the group takes no commit of {partition} from this replica: {error}") from error
        except (TimeoutError, kafka_errors.KafkaError) as error:
            raise permanent(error, self._kafka) or OutcomeUnknownError(
                f"whether the offset of {partition} was committed is not known: {error!r}"
            ) from error

    def _opened(self) -> AIOKafkaConsumer:
        if self._consumer is None:
            raise TransportError("the consumer is not open")
        return self._consumer

    async def _answered(self, question: Any, what: str) -> Any:
        try:
            async with asyncio.timeout(self._kafka.request_timeout_ms / 1e3):
                return await question
        except (TimeoutError, kafka_errors.KafkaError, OSError) as error:
            raise permanent(error, self._kafka) or OutcomeUnknownError(f"{what} is not known: {error!r}") from error


class _Rebalances(ConsumerRebalanceListener):
    """Passes rebalances on, as long as its consumer is the one in use."""

    def __init__(self, owner: KafkaGroupConsumer, consumer: AIOKafkaConsumer) -> None:
        self._owner = owner
        self._consumer = consumer
        self.active = True

    async def on_partitions_revoked(self, revoked: Collection[KafkaPartition]) -> None:
        partitions = {TopicPartition(*partition) for partition in revoked} & self._owner._held
        if self.active and partitions:
            await self._owner._revoke(partitions)

    async def on_partitions_assigned(self, assigned: Collection[KafkaPartition]) -> None:
        if self.active:
            await self._owner._assign(self._consumer, assigned)


def _is_dead(consumer: AIOKafkaConsumer) -> bool:
    """Whether a background task that nobody restarts has ended: the consumer would be silent for ever."""
    coordinator: Any = consumer._coordinator
    fetcher: Any = consumer._fetcher
    if coordinator is None or fetcher is None:  # it has not begun yet
        return False
    return coordinator._coordination_task.done() or fetcher._fetch_task.done()
