"""Reading one partition of the snapshot topic: only committed records, nothing in doubt, every wait bounded."""

import asyncio
import types
from collections.abc import Iterable, Sequence
from typing import Any, Protocol, Self

from aiokafka import AIOKafkaConsumer
from aiokafka import errors as kafka_errors
from aiokafka.protocol.offset import OffsetRequest, OffsetResetStrategy
from aiokafka.structs import ConsumerRecord
from aiokafka.structs import TopicPartition as KafkaPartition

from usp_daemon.config import Kafka
from usp_daemon.persistence import DamagedSnapshotError, SnapshotReadError

from ._errors import cause_of, permanent
from ._lenient import read_headers_leniently
from ._shutdown import stop_within
from ._snapshot_records import Assembly, Entry, PartitionIndex
from ._watch import ClientWatch

BROKER_ERRORS = (kafka_errors.KafkaError, TimeoutError, OSError)
POLL_MS = 200
# Beyond a chunk or a few, larger answers gain nothing and hold the event loop up while they are checked.
FETCH_BYTES = 4 << 20
READ_UNCOMMITTED = 0  # in a request for offsets
RETRY_PAUSE_S = 0.1


class LogIndex(Protocol):
    """What is kept of a partition that was read up to the log offset ``position``."""

    position: int

    def reset(self) -> None:
        """Know nothing: the log is another one."""

    def take(
        self, log_offset: int, key: bytes | None, value: bytes | None, headers: Iterable[tuple[str, bytes]]
    ) -> int:
        """Note one record; returns the log offset before which nothing else can be of concern."""
        ...


class SnapshotReader:
    """A consumer of one partition without a group; ``async with`` connects and disconnects, or ``open`` and ``close``.

    It may be kept: nothing is fetched between the calls, and each asks the broker anew where the log ends. Every method
    raises :class:`SnapshotReadError` when the broker does not answer, or refuses.
    """

    def __init__(
        self, kafka: Kafka, options: dict[str, Any], topic: str, partition: int, *, close_timeout_s: float
    ) -> None:
        self._kafka = kafka
        self._partition = KafkaPartition(topic, partition)
        self._name = f"snapshot topic {topic!r}, partition {partition}"
        self._deadline_s = kafka.request_timeout_ms / 1e3
        # Somebody's open transaction may hold back what is behind it for as long.
        self._patience_s = (kafka.request_timeout_ms + kafka.transaction_timeout_ms) / 1e3
        self._close_timeout_s = close_timeout_s
        self._has_fetched = False
        self._consumer = AIOKafkaConsumer(
            **options,
            group_id=None,
            isolation_level="read_committed",
            enable_auto_commit=False,
            auto_offset_reset="none",
            fetch_max_wait_ms=kafka.fetch_max_wait_ms,
            max_partition_fetch_bytes=max(kafka.max_partition_fetch_bytes, FETCH_BYTES),
        )
        self._watch = ClientWatch(self._consumer._client)

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: types.TracebackType | None,
    ) -> None:
        await self.close(by_force=exception is not None)

    async def open(self) -> None:
        """Connect."""
        try:
            async with asyncio.timeout(self._deadline_s):
                await self._consumer.start()
        except BaseException as error:
            await self._stop(0.0)
            if not isinstance(error, BROKER_ERRORS):
                raise
            raise self._told(error) from error
        self._consumer.assign([self._partition])

    async def close(self, *, by_force: bool = False) -> None:
        """Disconnect; ``by_force`` waits for nobody."""
        await self._stop(0.0 if by_force else self._close_timeout_s)

    async def _stop(self, timeout_s: float) -> None:
        consumer = self._consumer
        owners = (consumer, consumer._coordinator, consumer._fetcher, consumer._client, consumer._subscription)
        await stop_within(timeout_s, consumer.stop, self._watch, tuple(owner for owner in owners if owner is not None))

    async def scan(self, index: LogIndex) -> None:
        """Bring ``index`` up to what was in the partition when this was called, what is committed of it.

        What somebody's transaction still holds back is waited for: it may be older than what is to be found.
        """
        beginning, end = await self._beginning(), await self._end()
        if index.position > end:
            index.reset()  # the topic was made anew, and ends before what was known of it
        position = max(index.position, beginning)
        self._consumer.seek(self._partition, position)
        self._consumer.resume(self._partition)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._patience_s
        # The first time also where there is nothing to be had: whether this client may read shows in no other way.
        while position < end or not self._has_fetched:
            try:
                records = await self._poll()
                self._has_fetched = True
            except kafka_errors.OffsetOutOfRangeError:
                if index.position == 0 and loop.time() > deadline:
                    raise SnapshotReadError(f"{self._name}: its beginning moves on while it is read") from None
                index.reset()  # the topic was made anew meanwhile
                position, end = await self._beginning(), await self._end()
                self._consumer.seek(self._partition, position)
                continue
            for record in records:
                position = max(position, index.take(record.offset, record.key, record.value, record.headers))
            reached = await self._position()
            has_moved = bool(records) or reached > position
            if reached < position:
                self._consumer.seek(self._partition, position)
            else:  # also over markers of transactions, and what was aborted or compacted away
                position = reached
            if has_moved:
                deadline = loop.time() + self._patience_s
            elif loop.time() > deadline:
                raise SnapshotReadError(
                    f"{self._name}: read up to offset {position} of {end} within {self._patience_s:g} s; no broker "
                    "answers, or somebody's transaction stays open"
                )
        self._consumer.pause(self._partition)
        index.position = position

    async def load(self, index: PartitionIndex, entry: Entry) -> bytearray:
        """The bytes of a snapshot. Raises :class:`DamagedSnapshotError` when they are not all there."""
        assert entry.manifest is not None
        assembly = Assembly(index.keys, entry)
        position = entry.manifest.first
        self._consumer.seek(self._partition, position)
        self._consumer.resume(self._partition)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._patience_s
        while not assembly.is_complete and position < entry.log_offset:
            try:
                records = await self._poll()
            except kafka_errors.OffsetOutOfRangeError:
                raise DamagedSnapshotError("its chunks lie before the beginning of the log") from None
            for record in records:
                if record.offset < entry.log_offset:
                    assembly.take(record.key, record.value, record.headers)
            reached = await self._position()
            if reached > position:
                position = reached
                deadline = loop.time() + self._patience_s
            elif loop.time() > deadline:
                raise SnapshotReadError(
                    f"{self._name}: {assembly.num_found} of {entry.manifest.num_chunks} chunks came, and then no "
                    f"answer for {self._patience_s:g} s"
                )
        return assembly.finish()

    async def _beginning(self) -> int:
        try:
            async with asyncio.timeout(self._deadline_s):
                return (await self._consumer.beginning_offsets([self._partition]))[self._partition]
        except BROKER_ERRORS as error:
            raise self._told(error) from error

    async def _end(self) -> int:
        """The high watermark, at this moment.

        Neither of aiokafka's own will do: ``highwater()`` is that of the last records fetched, and ``end_offsets()`` of
        a consumer of committed records is where the oldest open transaction begins.
        """
        topic, partition = self._partition
        request = OffsetRequest(-1, READ_UNCOMMITTED, [(topic, [(partition, OffsetResetStrategy.LATEST)])])
        client = self._consumer._client
        try:
            async with asyncio.timeout(self._deadline_s):
                while True:
                    leader = client.cluster.leader_for_partition(self._partition)
                    if leader is not None and leader != -1:
                        ((_, ((_, code, *answer),)),) = (await client.send(leader, request)).topics
                        error = kafka_errors.for_code(code)
                        if error is kafka_errors.NoError:
                            return answer[1]  # after the record's time
                        if not error.retriable:
                            raise error(self._partition)
                    await asyncio.sleep(RETRY_PAUSE_S)
                    await client.force_metadata_update()
        except BROKER_ERRORS as error:
            raise self._told(error) from error

    async def _position(self) -> int:
        try:
            async with asyncio.timeout(self._deadline_s):
                return await self._consumer.position(self._partition)
        except BROKER_ERRORS as error:
            raise self._told(error) from error

    async def _poll(self) -> Sequence[ConsumerRecord[bytes | None, bytes | None]]:
        try:
            async with asyncio.timeout(self._deadline_s):
                found = await self._consumer.getmany(self._partition, timeout_ms=POLL_MS)
        except kafka_errors.OffsetOutOfRangeError:
            raise
        except UnicodeDecodeError:
            read_headers_leniently()  # a stranger's record; see there
            return []
        except BROKER_ERRORS as error:
            raise self._told(error) from error
        return found.get(self._partition, [])

    def _told(self, error: BaseException) -> SnapshotReadError:
        told = permanent(error, self._kafka)
        return SnapshotReadError(f"{self._name} cannot be read now: {told or repr(cause_of(error))}")
