"""Kafka as the service sees it."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Any

from aiokafka import errors as kafka_errors
from aiokafka.admin import AIOKafkaAdminClient

from usp_daemon.config import Kafka
from usp_daemon.wire import (
    AbstractPartitionWriter,
    AbstractTransport,
    AssignmentListener,
    CommittedOffset,
    FencedError,
    TopicPartition,
    TransportError,
)

from ._client import UnreachableError, check_reachable, client_options
from ._consumer import KafkaGroupConsumer
from ._errors import permanent
from ._shutdown import stop_within
from ._topics import prepare_topics
from ._watch import ClientWatch
from ._writers import DirectWriter, TransactionalWriter

_log = logging.getLogger(__name__)

ATTEMPT_PAUSE_S = 0.5
CLOSE_TIMEOUT_S = 3.0


class KafkaTransport(AbstractTransport):
    """One member of a consumer group, with a producer for each partition that it holds.

    ``commit_interval_ms`` is for at_least_once only; ``start_timeout_s`` is what :meth:`prepare` may take to reach a
    broker, ``close_timeout_s`` what each close may take before it ends by force. ``crash_fn`` is called at named
    points of a transaction, for tests that kill the process there.
    """

    def __init__(
        self,
        kafka: Kafka,
        *,
        guarantee: str = "exactly_once",
        commit_interval_ms: int = 100,
        min_retention_s: float = 86_400.0,
        start_timeout_s: float = 60.0,
        close_timeout_s: float = CLOSE_TIMEOUT_S,
        crash_fn: Callable[[str], None] = lambda point: None,
    ) -> None:
        self._kafka = kafka
        self._is_transactional = guarantee == "exactly_once"
        self._commit_interval_s = commit_interval_ms / 1e3
        self._min_retention_s = min_retention_s
        self._start_timeout_s = start_timeout_s
        self._close_timeout_s = close_timeout_s
        self._crash_fn = crash_fn
        self._cached_options: dict[str, Any] | None = None
        self._consumer: KafkaGroupConsumer | None = None
        self._writers: list[DirectWriter | TransactionalWriter] = []

    @property
    def is_transactional(self) -> bool:
        """Whether results and offset are published as one."""
        return self._is_transactional

    @property
    def _options(self) -> dict[str, Any]:
        if self._cached_options is None:
            self._cached_options = client_options(self._kafka)
        return self._cached_options

    async def prepare(self) -> Sequence[str]:
        """Check the topics, or create them; returns warnings for the operator."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._start_timeout_s
        options = self._options
        while True:
            try:
                async with asyncio.timeout_at(deadline):
                    await check_reachable(options)
                    return await self._prepare(options)
            except (TransportError, kafka_errors.KafkaError, OSError, TimeoutError) as error:
                told = error if isinstance(error, TransportError) else permanent(error, self._kafka)
                if told is not None and not (isinstance(told, UnreachableError) and told.may_pass):
                    raise told from error
                if loop.time() + ATTEMPT_PAUSE_S >= deadline:
                    raise told or TransportError(
                        f"the Kafka brokers at {self._kafka.bootstrap_servers} did not do what was asked within "
                        f"{self._start_timeout_s:g} s: {error!r}"
                    ) from error
                _log.info("kafka_not_ready: %s", told or repr(error))
                await asyncio.sleep(ATTEMPT_PAUSE_S)

    async def _prepare(self, options: dict[str, Any]) -> Sequence[str]:
        admin = AIOKafkaAdminClient(**options)
        watch = ClientWatch(admin._client)
        try:
            await admin.start()
            return await prepare_topics(admin, self._kafka, min_retention_s=self._min_retention_s)
        finally:
            await stop_within(self._close_timeout_s, admin.close, watch, (admin, admin._client))

    def consumer(self, listener: AssignmentListener) -> KafkaGroupConsumer:
        """A member of the group, not yet joined."""
        consumer = KafkaGroupConsumer(self._kafka, self._options, listener, close_timeout_s=self._close_timeout_s)
        consumer.before_revocation_ends_fn = self._commit_pending
        self._consumer = consumer
        return consumer

    def writer(self, partition: TopicPartition) -> AbstractPartitionWriter:
        """A writer for one partition, not yet opened."""
        writer: DirectWriter | TransactionalWriter
        if self._is_transactional:
            name = f"{self._kafka.group}-{partition.topic}-{partition.partition}"
            writer = TransactionalWriter(
                self._kafka,
                self._options,
                partition,
                name,
                close_timeout_s=self._close_timeout_s,
                crash_fn=self._crash_fn,
            )
        else:
            writer = DirectWriter(
                self._kafka,
                self._options,
                partition,
                commit_fn=self._commit,
                commit_interval_s=self._commit_interval_s,
                close_timeout_s=self._close_timeout_s,
            )
        self._writers = [known for known in self._writers if not known.is_retired]
        self._writers.append(writer)
        return writer

    async def close(self) -> None:
        """Give everything back, whatever the service has not closed itself; harmless when repeated."""
        writers, self._writers = self._writers, []
        await asyncio.gather(*(writer.close() for writer in writers))
        if self._consumer is not None:
            await self._consumer.close()

    async def _commit(self, partition: TopicPartition, standing: CommittedOffset) -> None:
        if self._consumer is None:
            raise FencedError(f"there is no consumer to commit {partition} with")
        await self._consumer.commit(partition, standing)

    async def _commit_pending(self, partitions: set[TopicPartition]) -> None:
        for writer in self._writers:
            if isinstance(writer, DirectWriter) and writer.partition in partitions:
                await writer.commit_pending()
