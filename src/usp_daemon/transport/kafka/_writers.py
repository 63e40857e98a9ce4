"""Publishing one partition's results: in one transaction with the offset, or at least once.

What a crash costs, step by step, exactly once:

==========================  =====================================================================
before the offset is added  nothing was sent; the next owner answers the records again
before EndTxn               the next owner's start aborts everything; it answers the records again
after EndTxn was sent       all or nothing; the next owner's start waits until it is decided
==========================  =====================================================================

A writer whose publication failed is spent: its producer is ended at once, so that nothing of it goes on in the
background, and must be opened anew.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from aiokafka import errors as kafka_errors
from aiokafka.structs import TopicPartition as KafkaPartition

from usp_daemon.config import Kafka
from usp_daemon.wire import (
    AbstractPartitionWriter,
    CommittedOffset,
    FencedError,
    OutcomeUnknownError,
    OutputBatch,
    RecordTooLargeError,
    TopicPartition,
    TransportError,
)

from .._output import outputs_of, standing_after
from ._errors import FENCED_ERRORS, cause_of, permanent
from ._producer import PartitionProducer

_log = logging.getLogger(__name__)

CommitFn = Callable[[TopicPartition, CommittedOffset], Awaitable[None]]


class KafkaWriter(AbstractPartitionWriter):
    """What both writers share: a producer that is there or is not."""

    def __init__(
        self,
        kafka: Kafka,
        options: dict[str, Any],
        partition: TopicPartition,
        transactional_id: str | None,
        *,
        close_timeout_s: float,
    ) -> None:
        self._kafka = kafka
        self._options = options
        self._partition = partition
        self._transactional_id = transactional_id
        self._close_timeout_s = close_timeout_s
        self._deadline_s = kafka.request_timeout_ms / 1e3
        self._producer: PartitionProducer | None = None
        self._committed: int | None = None
        self._is_retired = False

    @property
    def committed(self) -> int | None:
        """The offset that this writer committed last."""
        return self._committed

    @property
    def partition(self) -> TopicPartition:
        """Whose results this writer publishes."""
        return self._partition

    @property
    def is_retired(self) -> bool:
        """Whether it was closed, and not opened again since."""
        return self._is_retired

    async def open(self) -> None:
        """Take the partition over: earlier owners are fenced, and what they left open is aborted or completed.

        Raises :class:`OutcomeUnknownError` when the broker does not answer in time, so that it may be tried again.
        """
        await self._discard()
        self._is_retired = False
        try:
            producer = PartitionProducer(self._kafka, self._options, self._transactional_id)
        except RuntimeError as error:  # no library for the compression
            raise TransportError(f'kafka.compression = "{self._kafka.compression}": {error}') from error
        self._producer = producer
        try:
            async with asyncio.timeout(self._deadline_s):
                await producer.start()
        except BaseException as error:
            await self._discard()
            if not isinstance(error, kafka_errors.KafkaError | TimeoutError | OSError):
                raise
            raise permanent(error, self._kafka) or OutcomeUnknownError(
                f"the writer of {self._partition} cannot be opened now: {cause_of(error)!r}"
            ) from error

    async def close(self) -> None:
        """Stop the producer, within a time even when the broker is away."""
        await self._discard(self._close_timeout_s)
        self._is_retired = True

    async def _discard(self, timeout_s: float = 0.0) -> None:
        producer, self._producer = self._producer, None
        if producer is not None:
            await producer.close(timeout_s)

    @contextlib.asynccontextmanager
    async def _publishing(self) -> AsyncIterator[PartitionProducer]:
        """The producer, to publish with; a failure other than a refused record ends it and is told as it is known."""
        producer = self._producer
        if producer is None:
            raise OutcomeUnknownError(f"the writer of {self._partition} must be opened (anew) first")
        try:
            yield producer
        except RecordTooLargeError:
            raise
        except Exception as error:
            cause = producer.transaction_error or error
            await self._discard()
            raise self._explained(producer, cause) from error
        except BaseException:
            await self._discard()
            raise

    async def _send(self, producer: PartitionProducer, batch: OutputBatch) -> None:
        """Send all records of ``batch`` and wait until they are acknowledged."""
        try:
            async with asyncio.TaskGroup() as sending:
                for output in outputs_of(batch, self._kafka):
                    sending.create_task(producer.send(output, self._partition.partition))
        except BaseExceptionGroup as group:
            raise _first(group) from group

    def _explained(self, producer: PartitionProducer, error: BaseException) -> TransportError:
        error = cause_of(error)
        if isinstance(error, TransportError):
            return error
        if self._transactional_id is not None and (producer.watch.fenced or isinstance(error, FENCED_ERRORS)):
            return FencedError(
                f"somebody else has taken {self._partition} over, or its transaction lasted longer than "
                f"kafka.transaction_timeout_ms = {self._kafka.transaction_timeout_ms}: {error!r}"
            )
        return permanent(error, self._kafka) or OutcomeUnknownError(
            f"whether the last results of {self._partition} were published is not known: {error!r}"
        )


class TransactionalWriter(KafkaWriter):
    """Results and offset in one transaction."""

    def __init__(
        self,
        kafka: Kafka,
        options: dict[str, Any],
        partition: TopicPartition,
        transactional_id: str,
        *,
        close_timeout_s: float,
        crash_fn: Callable[[str], None] = lambda point: None,
    ) -> None:
        super().__init__(kafka, options, partition, transactional_id, close_timeout_s=close_timeout_s)
        self._crash_fn = crash_fn

    async def publish(self, batch: OutputBatch) -> None:
        """Publish and commit all of ``batch`` or nothing."""
        standing = standing_after(batch, self._partition)
        async with self._publishing() as producer:
            producer.watch.reset()
            try:
                await self._publish(producer, batch, standing)
            except RecordTooLargeError:
                await self._abort(producer)
                raise
        if standing is not None:
            self._committed = standing.offset

    async def _publish(self, producer: PartitionProducer, batch: OutputBatch, standing: CommittedOffset | None) -> None:
        client = producer.client
        if standing is None and not outputs_of(batch, self._kafka):
            return

        async def fill() -> None:
            await client.begin_transaction()
            self._crash_fn("transaction.begun")
            # First and once: offsets that follow records, or one another, meet races in aiokafka (#1004, #1098).
            if standing is not None:
                offsets = {KafkaPartition(*self._partition): tuple(standing)}
                await client.send_offsets_to_transaction(offsets, self._kafka.group)
                self._crash_fn("transaction.offsets_sent")
            await self._send(producer, batch)

        deadline_s = min(self._deadline_s, self._kafka.transaction_timeout_ms / 1e3)
        await producer.guarded(fill(), "filling the transaction", deadline_s)
        self._crash_fn("transaction.records_sent")
        # Every record is acknowledged; only now may the transaction be decided.
        await producer.guarded(client.commit_transaction(), "committing the transaction", self._deadline_s)
        self._crash_fn("transaction.committed")
        if producer.watch.failure.done():
            # aiokafka has retried by itself. A late copy of the first attempt could end a later transaction of the same
            # epoch, so this producer may not begin one.
            raise producer.watch.failure.result()

    async def _abort(self, producer: PartitionProducer) -> None:
        try:
            await producer.guarded(producer.client.abort_transaction(), "aborting the transaction", self._deadline_s)
        except Exception as error:
            _log.warning("kafka_abort_failed: %r", error)
            await self._discard()


class DirectWriter(KafkaWriter):
    """Results at once and acknowledged; the offset at its own pace, as a member of the group.

    Nothing fences a former owner's results at this guarantee; its commits the group refuses.
    """

    def __init__(
        self,
        kafka: Kafka,
        options: dict[str, Any],
        partition: TopicPartition,
        *,
        commit_fn: CommitFn,
        commit_interval_s: float,
        close_timeout_s: float,
    ) -> None:
        super().__init__(kafka, options, partition, None, close_timeout_s=close_timeout_s)
        self._commit_fn = commit_fn
        self._commit_interval_s = commit_interval_s
        self._pending: CommittedOffset | None = None
        self._commits: asyncio.Task[None] | None = None
        self._refusal: TransportError | None = None

    async def open(self) -> None:
        """Connect."""
        self._pending = self._refusal = None
        await super().open()

    async def close(self) -> None:
        """Commit what is pending and stop the producer, within a time even when the broker is away."""
        await self._stop_commits()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._close_timeout_s):
                await self.commit_pending()
        await super().close()

    async def publish(self, batch: OutputBatch) -> None:
        """Send the results and wait until they are acknowledged; the offset follows within the interval."""
        standing = standing_after(batch, self._partition)
        if self._refusal is not None:
            raise self._refusal
        async with self._publishing() as producer:
            await producer.guarded(self._send(producer, batch), "publishing", self._deadline_s)
        producer.watch.reset()
        if standing is not None:
            self._pending = standing
            if self._commits is None:
                self._commits = asyncio.create_task(self._keep_committing(), name=f"commits of {self._partition}")

    async def _keep_committing(self) -> None:
        while self._refusal is None:
            await asyncio.sleep(self._commit_interval_s)
            await self.commit_pending()

    async def commit_pending(self) -> None:
        """Commit now what is published and not committed yet."""
        standing = self._pending
        if standing is None or self._refusal is not None:
            return
        try:
            await self._commit_fn(self._partition, standing)
        except OutcomeUnknownError as error:
            _log.warning("kafka_commit_failed: %s", error)
            return
        except TransportError as error:
            self._refusal = error
            return
        self._committed = standing.offset
        if self._pending == standing:
            self._pending = None

    async def _stop_commits(self) -> None:
        task, self._commits = self._commits, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The first failure of several outputs; a record that is too large only if nothing worse has happened."""
    errors = list(group.exceptions)
    worse = [error for error in errors if not isinstance(error, RecordTooLargeError)]
    first = (worse or errors)[0]
    return _first(first) if isinstance(first, BaseExceptionGroup) else first
