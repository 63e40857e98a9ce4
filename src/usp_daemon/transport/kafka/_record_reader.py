"""Committed records of some topics, for somebody who looks on: no group, no commits, no trace at the broker."""

import asyncio
import logging
from collections.abc import Collection, Sequence
from typing import NamedTuple

from aiokafka import AIOKafkaConsumer
from aiokafka import errors as kafka_errors

from usp_daemon.config import Kafka
from usp_daemon.wire import TransportError

from ._client import check_reachable, client_options
from ._errors import cause_of, permanent
from ._lenient import read_headers_leniently
from ._shutdown import stop_within
from ._watch import ClientWatch

_log = logging.getLogger(__name__)

CLOSE_TIMEOUT_S = 3.0
# Between attempts at what the broker has refused for the moment.
PAUSE_S = 0.2


class ReadRecord(NamedTuple):
    """One record as it stands in its topic; ``timestamp_ms`` is the record's own time, negative where it has none."""

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    timestamp_ms: int


class MissingTopicsError(TransportError):
    """Topics that are not there, or that this client may not see."""

    def __init__(self, topics: Sequence[str]) -> None:
        self.topics = tuple(topics)
        super().__init__(
            f"missing topics: {', '.join(topics)}; `usp-daemon run` creates them when it starts. If they "
            "are there, this client needs the right to DESCRIBE and READ them"
        )


class RecordReader:
    """Reads ``topics`` from their oldest record on, or only what comes after :meth:`open`; transactions count once they
    are committed. Partitions that are added later are read too. ``new_topics`` are read from their oldest record on in
    any case.
    """

    def __init__(
        self, kafka: Kafka, topics: Sequence[str], *, from_beginning: bool, new_topics: Collection[str] = ()
    ) -> None:
        self._kafka = kafka
        self._topics = tuple(topics)
        self._from_beginning = from_beginning
        self._new_topics = frozenset(new_topics)
        self._consumer: AIOKafkaConsumer | None = None
        self._watch: ClientWatch | None = None

    async def open(self) -> None:
        """Connect and find the position in every partition.

        Raises :class:`MissingTopicsError` when a topic is not there, and :class:`TransportError` when no broker can be
        reached, or it refuses.
        """
        options = client_options(self._kafka)
        await check_reachable(options)
        consumer = AIOKafkaConsumer(
            **options,
            group_id=None,
            isolation_level="read_committed",
            enable_auto_commit=False,
            auto_offset_reset="earliest" if self._from_beginning else "latest",
            fetch_max_wait_ms=self._kafka.fetch_max_wait_ms,
            max_partition_fetch_bytes=self._kafka.max_partition_fetch_bytes,
        )
        self._consumer, self._watch = consumer, ClientWatch(consumer._client)
        try:
            async with asyncio.timeout(self._kafka.request_timeout_ms / 1e3):
                await consumer.start()
                known = await consumer.topics()
                missing = [topic for topic in self._topics if topic not in known]
                if missing:
                    raise MissingTopicsError(missing)
                assigned = consumer._subscription.wait_for_assignment()
                consumer.subscribe(list(self._topics))
                await assigned
                if new := [each for each in consumer.assignment() if each.topic in self._new_topics]:
                    await consumer.seek_to_beginning(*new)
                # Asked for now, so that "latest" is the end at this moment and not at the first poll.
                for partition in consumer.assignment():
                    await consumer.position(partition)
        except (kafka_errors.KafkaError, TimeoutError, OSError) as error:
            await self.close()
            raise permanent(error, self._kafka) or TransportError(
                f"topics {', '.join(self._topics)} of {self._kafka.bootstrap_servers} cannot be read: "
                f"{cause_of(error)!r}"
            ) from error
        except BaseException:
            await self.close()
            raise

    async def read(self, timeout_s: float, max_records: int = 1_000) -> list[ReadRecord]:
        """The next records, in order within a partition; none when none come within ``timeout_s``.

        A broker that is away is waited for. Raises :class:`TransportError` when it refuses for good.
        """
        consumer = self._consumer
        if consumer is None:
            raise TransportError("the reader is not open")
        try:
            found = await consumer.getmany(timeout_ms=int(timeout_s * 1e3), max_records=max_records)
        except UnicodeDecodeError:  # a header whose name is not UTF-8: a dead letter keeps its original's headers
            read_headers_leniently()
            return []
        except kafka_errors.KafkaError as error:
            if (told := permanent(error, self._kafka)) is not None:
                raise told from error
            _log.warning("kafka_read_failed: %r", error)
            await asyncio.sleep(PAUSE_S)
            return []
        return [
            ReadRecord(partition.topic, partition.partition, record.offset, record.key, record.value, record.timestamp)
            for partition, records in found.items()
            for record in records
        ]

    async def close(self) -> None:
        """Stop, within a time even when the broker is away; harmless when repeated."""
        consumer, watch, self._consumer, self._watch = self._consumer, self._watch, None, None
        if consumer is None or watch is None:
            return
        owners = (consumer, consumer._coordinator, consumer._fetcher, consumer._client, consumer._subscription)
        await stop_within(CLOSE_TIMEOUT_S, consumer.stop, watch, tuple(owner for owner in owners if owner is not None))
