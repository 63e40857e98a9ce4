"""Ticks into the input topic, as any producer sends them: each record to the partition of its key, nothing lost."""

import asyncio
from typing import Any

from aiokafka import errors as kafka_errors

from usp_daemon.config import Kafka
from usp_daemon.wire import TransportError

from ._client import client_options
from ._errors import cause_of, permanent
from ._producer import PartitionProducer

CLOSE_TIMEOUT_S = 3.0


class TickProducer:
    """An idempotent producer of records with keys to ``kafka.input_topic``.

    The partition is Kafka's murmur2 hash of the key, as Java's clients choose it, so that a symbol has one partition
    whoever sends it. At most ``max_under_way`` records wait for their acknowledgement: :meth:`send` waits beyond it,
    and as long as the broker is away.
    """

    def __init__(self, kafka: Kafka, *, max_under_way: int = 10_000) -> None:
        self._kafka = kafka
        self._max_under_way = max_under_way
        self._producer: PartitionProducer | None = None
        self._room = asyncio.Event()
        self._idle = asyncio.Event()
        self._error: BaseException | None = None
        self._num_under_way = 0
        self.num_sent = 0
        self.num_acknowledged = 0

    @property
    def num_under_way(self) -> int:
        """Records handed over and neither acknowledged nor refused."""
        return self._num_under_way

    async def open(self) -> None:
        """Connect. Raises :class:`TransportError` when the broker cannot be reached or refuses."""
        options: dict[str, Any] = client_options(self._kafka)
        try:
            self._producer = PartitionProducer(self._kafka, options, None)
        except RuntimeError as error:  # no library for the compression
            raise TransportError(f'kafka.compression = "{self._kafka.compression}": {error}') from error
        self._room.set()
        self._idle.set()
        try:
            async with asyncio.timeout(self._kafka.request_timeout_ms / 1e3):
                await self._producer.start()
        except (kafka_errors.KafkaError, TimeoutError, OSError) as error:
            await self.close()
            raise self._explained(error) from error
        except BaseException:
            await self.close()
            raise

    async def send(self, key: bytes, value: bytes, *, timestamp_ms: int | None = None) -> None:
        """Hand one record over. Raises :class:`TransportError` when one before it was refused."""
        await self._room.wait()
        self._raise_if_refused()
        if self._producer is None:
            raise TransportError("the producer is not open")
        try:
            delivered = await self._producer.client.send(
                self._kafka.input_topic, value, key=key, timestamp_ms=timestamp_ms
            )
        except (kafka_errors.KafkaError, OSError) as error:
            raise self._explained(error) from error
        self.num_sent += 1
        self._num_under_way += 1
        self._idle.clear()
        if self._num_under_way >= self._max_under_way:
            self._room.clear()
        delivered.add_done_callback(self._delivered)

    def _delivered(self, future: "asyncio.Future[Any]") -> None:
        self._num_under_way -= 1
        if future.cancelled():
            error: BaseException | None = kafka_errors.KafkaError("ended before it was acknowledged")
        else:
            error = future.exception()
        if error is None:
            self.num_acknowledged += 1
        elif self._error is None:
            self._error = error
        if self._num_under_way < self._max_under_way or self._error is not None:
            self._room.set()
        if self._num_under_way == 0:
            self._idle.set()

    async def flush(self) -> None:
        """Wait until every record is acknowledged. Raises :class:`TransportError` when one was refused."""
        await self._idle.wait()
        self._raise_if_refused()

    async def close(self) -> None:
        """Stop, within a time even when the broker is away; harmless when repeated."""
        producer, self._producer = self._producer, None
        if producer is not None:
            await producer.close(CLOSE_TIMEOUT_S)

    def _raise_if_refused(self) -> None:
        if self._error is not None:
            raise self._explained(self._error) from self._error

    def _explained(self, error: BaseException) -> TransportError:
        if isinstance(error, TransportError):
            return error
        topic = self._kafka.input_topic
        return permanent(error, self._kafka) or TransportError(
            f"ticks cannot be sent to topic {topic!r} of {self._kafka.bootstrap_servers}: {cause_of(error)!r}"
        )
