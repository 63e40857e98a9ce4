"""One producer of one partition's results: opening, sending batches of records, closing, all within deadlines.

Batches are built off the event loop and sent as wholes, which costs a tenth of sending records one by one. Of each
topic only one is under way at a time: when the broker refuses it, its sequence numbers can be given back and the
records sent again in smaller batches.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Sequence
from typing import Any, TypeVar

from aiokafka import AIOKafkaProducer
from aiokafka import errors as kafka_errors
from aiokafka.producer.message_accumulator import BatchBuilder
from aiokafka.structs import RecordMetadata
from aiokafka.structs import TopicPartition as KafkaPartition

from usp_daemon.config import Kafka
from usp_daemon.wire import OutcomeUnknownError, RecordTooLargeError, TopicPartition

from .._output import Output, OutputRecord
from ._errors import REFUSED_ERRORS
from ._shutdown import stop_within
from ._watch import ClientWatch

_T = TypeVar("_T")

# A transaction that follows another at once is told to wait until the first one's markers are written. That takes
# milliseconds, and aiokafka then waits for as long as this.
RETRY_BACKOFF_MS = 20


class PartitionProducer:
    """An aiokafka producer with its watch. ``transactional_id`` None is an idempotent producer without transactions."""

    def __init__(self, kafka: Kafka, options: dict[str, Any], transactional_id: str | None) -> None:
        self._kafka = kafka
        options = {**options, "retry_backoff_ms": RETRY_BACKOFF_MS}
        self.client = AIOKafkaProducer(
            **options,
            acks="all",
            enable_idempotence=True,
            transactional_id=transactional_id,
            transaction_timeout_ms=kafka.transaction_timeout_ms,
            compression_type=None if kafka.compression == "none" else kafka.compression,
            max_batch_size=kafka.max_request_bytes,
            max_request_size=kafka.max_request_bytes,
        )
        self.watch = ClientWatch(self.client.client)

    @property
    def transaction_error(self) -> BaseException | None:
        """What has ended the transaction. Others come of it: aiokafka then sends the records outside of any."""
        manager = self.client._txn_manager
        waiter = None if manager is None else manager._transaction_waiter
        return waiter.exception() if waiter is not None and waiter.done() and not waiter.cancelled() else None

    async def start(self) -> None:
        """Connect; with a transactional id: take it over, which ends what earlier owners left."""
        await self.client.start()

    async def close(self, timeout_s: float) -> None:
        """Stop within ``timeout_s`` and a little; 0 ends it at once."""
        client = self.client
        owners = (client, client._sender, client._message_accumulator, client.client)
        await stop_within(timeout_s, client.stop, self.watch, owners)
        # Asked for, so that nobody reports as overlooked what the caller has been told already.
        manager = client._txn_manager
        if manager is not None:
            for future in (manager._transaction_waiter, manager._pid_waiter):
                if future is not None and future.done() and not future.cancelled():
                    future.exception()

    async def guarded(self, work: Awaitable[_T], what: str, deadline_s: float) -> _T:
        """Await ``work``, but no longer than until the sender has died, a connection was lost, or the time is up."""
        task = asyncio.ensure_future(work)
        sender = self.client._sender.sender_task
        assert sender is not None
        try:
            await asyncio.wait(
                {task, sender, self.watch.failure}, timeout=deadline_s, return_when=asyncio.FIRST_COMPLETED
            )
            if task.done():
                return task.result()
            if sender.done():
                raise (None if sender.cancelled() else sender.exception()) or OutcomeUnknownError(f"{what} was ended")
            if self.watch.failure.done():
                raise self.watch.failure.result()
            raise TimeoutError(f"{what} took longer than {deadline_s:g} s")
        finally:
            if not task.done():
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError, Exception):
                    await task

    async def send(self, output: Output, partition: int) -> None:
        """Send every record of ``output`` to ``partition`` of its topic and wait until they are acknowledged."""
        records = list(output)
        batches = await asyncio.to_thread(self._batches, records)
        for index, (batch, first, count) in enumerate(batches):
            batches[index] = None  # type: ignore[call-overload]  # a megabyte each
            await self._send(batch, output, records, first, count, partition)

    async def begin(self, batch: BatchBuilder, topic: str, partition: int) -> "asyncio.Future[RecordMetadata]":
        """Hand ``batch`` over; what is returned is done when it is acknowledged."""
        delivered = await self.client.send_batch(batch, topic, partition=partition)
        # Asked for, as whoever waits may have been told of the same failure by the sender, and have gone.
        delivered.add_done_callback(lambda future: future.cancelled() or future.exception())
        return delivered

    async def _send(
        self,
        batch: BatchBuilder,
        output: Output,
        records: Sequence[OutputRecord],
        first: int,
        count: int,
        partition: int,
    ) -> None:
        delivered = await self.begin(batch, output.topic, partition)
        try:
            await delivered
            return
        except REFUSED_ERRORS as error:
            refusal = error
        self._give_sequence_back(KafkaPartition(output.topic, partition), count)
        part = records[first : first + count]
        if isinstance(refusal, kafka_errors.InvalidTimestampError):
            # The topic takes no times so far from the broker's clock: the results count for more than their times.
            if all(record.timestamp_ms is None for record in part):
                raise refusal
            part = [record._replace(timestamp_ms=None) for record in part]
            sizes = [count]
        elif count == 1:
            raise self._too_large(output, first, batch.size()) from refusal
        else:
            sizes = [count // 2, count - count // 2]
        start = 0
        rest = list(records)
        rest[first : first + count] = part
        for size in sizes:
            smaller = await asyncio.to_thread(self._batch, rest, first + start, size)
            await self._send(smaller, output, rest, first + start, size, partition)
            start += size

    def _batches(self, records: Sequence[OutputRecord]) -> list[tuple[BatchBuilder, int, int]]:
        """Batches of at most max_request_bytes, or of one record, each with the index of its first and their number."""
        batches = []
        first = 0
        while first < len(records):
            batch = self._batch(records, first, len(records) - first)
            batches.append((batch, first, batch.record_count()))
            first += batch.record_count()
        return batches

    def _batch(self, records: Sequence[OutputRecord], first: int, limit: int) -> BatchBuilder:
        batch = self.client.create_batch()
        for index in range(first, first + limit):
            timestamp_ms, key, value, headers = records[index]
            if batch.append(timestamp=timestamp_ms, key=key, value=value, headers=headers) is None:
                break
        batch.close()
        return batch

    def _give_sequence_back(self, partition: KafkaPartition, count: int) -> None:
        """A refused batch has used up numbers that the broker has not seen; without them it would miss records."""
        manager = self.client._txn_manager
        assert manager is not None
        manager.increment_sequence_number(partition, -count)

    def _too_large(self, output: Output, index: int, size_bytes: int) -> RecordTooLargeError:
        source, partition, offset = origin = output.records.origins[index]
        return RecordTooLargeError(
            f"the {output.name} record of {TopicPartition(source, partition)} offset {offset} takes {size_bytes} "
            f"bytes, more than topic {output.topic!r} takes: raise its max.message.bytes",
            output.name,
            index,
            origin,
        )
