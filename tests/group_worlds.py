"""Brokers as the contract suite sees them: one in memory, one real. Each makes members that share one group."""

import abc
import asyncio
import contextlib
import itertools
import uuid
from typing import ClassVar, NamedTuple

from aiokafka import AIOKafkaConsumer
from aiokafka.admin import RecordsToDelete
from aiokafka.structs import TopicPartition as KafkaPartition

from kafka_broker import clients
from usp_daemon.config import Kafka
from usp_daemon.transport import MemoryBroker, MemoryTransport
from usp_daemon.transport.kafka import KafkaTransport
from usp_daemon.wire import AssignmentListener, EncodedRecords, OutputBatch, TopicPartition

PATIENCE_S = 30.0  # how long a condition may take to come true; only a failing test waits so long


class Seen(NamedTuple):
    """One record that a reader of committed records found."""

    key: bytes | None
    value: bytes | None
    timestamp_ms: int
    headers: list[tuple[str, bytes]]


class Listener(AssignmentListener):
    """Keeps what it was told, and what is held now."""

    def __init__(self):
        self.events = []
        self.held = set()
        self.on_revoke_fn = None

    async def on_assigned(self, partitions):
        self.events.append(("assigned", frozenset(partitions)))
        self.held = set(partitions)

    async def on_revoked(self, partitions):
        if self.on_revoke_fn is not None:
            await self.on_revoke_fn(partitions)
        self.events.append(("revoked", frozenset(partitions)))
        self.held -= set(partitions)


class AbstractWorld(abc.ABC):
    """A broker with an input topic of four partitions."""

    numbers = itertools.count()
    options: ClassVar[dict] = {}

    def __init__(self):
        number = next(self.numbers)
        self.kafka_options = dict(
            group=f"group-{number}",
            group_instance_id="",
            input_topic=f"ticks-{number}",
            predictions_topic=f"predictions-{number}",
            alarms_topic=f"alarms-{number}",
            dead_letters_topic=f"dead-letters-{number}",
            replication_factor=1,
            **self.options,
        )
        self._open = contextlib.AsyncExitStack()

    async def __aenter__(self):
        await self._open.__aenter__()
        return self

    async def __aexit__(self, *failure):
        return await self._open.__aexit__(*failure)

    def kafka(self, **options):
        return Kafka(**(self.kafka_options | options))

    def partition(self, number):
        return TopicPartition(self.kafka_options["input_topic"], number)

    async def transport(self, guarantee="exactly_once", **options):
        transport = self.make(self.kafka(**options), guarantee)
        self._open.push_async_callback(transport.close)
        await transport.prepare()
        return transport

    async def member(self, **options):
        """A member that has joined: its transport, consumer and listener."""
        transport = await self.transport(**options)
        listener = Listener()
        consumer = transport.consumer(listener)
        self._open.push_async_callback(consumer.close)
        await consumer.open()
        await until(lambda: listener.events)
        return transport, consumer, listener

    async def writer(self, transport, number):
        writer = transport.writer(self.partition(number))
        self._open.push_async_callback(writer.close)
        await writer.open()
        return writer

    def batch(self, number, position, values=(b"p",), *, alarms=(), dead_letters=(), times=(), note=""):
        """Results of the records up to ``position`` of input partition ``number``."""
        topic = self.kafka_options["input_topic"]

        def records(contents, **more):
            origins = [(topic, number, position - len(contents) + i) for i in range(len(contents))]
            return EncodedRecords([b"k"] * len(contents), list(contents), origins, **more)

        return OutputBatch(
            predictions=records(values, timestamps_ns=times),
            alarms=records(alarms),
            dead_letters=records(dead_letters, headers=[[("usp-reason", b"r"), ("h", b"v")]] * len(dead_letters)),
            positions={self.partition(number): position},
            note=note,
        )

    @abc.abstractmethod
    def make(self, kafka, guarantee): ...

    @abc.abstractmethod
    async def produce(self, number, values, *, topic=None): ...

    @abc.abstractmethod
    async def read_committed(self, topic, number) -> list[Seen]: ...

    @abc.abstractmethod
    async def delete_before(self, number, offset): ...

    async def predictions(self, number):
        records = await self.read_committed(self.kafka_options["predictions_topic"], number)
        return [record.value for record in records]


class MemoryWorld(AbstractWorld):
    options: ClassVar[dict] = dict(heartbeat_interval_ms=20, session_timeout_ms=2_000, rebalance_timeout_ms=2_000)

    def __init__(self):
        super().__init__()
        self.broker = MemoryBroker(marker_delay_s=0.002)

    def make(self, kafka, guarantee):
        return MemoryTransport(self.broker, kafka, guarantee=guarantee)

    async def produce(self, number, values, *, topic=None):
        for i, value in enumerate(values):
            self.broker.produce(
                topic or self.kafka_options["input_topic"], number, b"k", value, 1_000 + i, [("a", b"b")]
            )

    async def read_committed(self, topic, number):
        return [Seen(*record[1:4], list(record.headers)) for record in self.broker.read_committed(topic, number)]

    async def delete_before(self, number, offset):
        self.broker.delete_before(self.kafka_options["input_topic"], number, offset)


class KafkaWorld(AbstractWorld):
    options: ClassVar[dict] = dict(heartbeat_interval_ms=200, session_timeout_ms=6_000, rebalance_timeout_ms=6_000)

    def __init__(self, servers):
        super().__init__()
        run = uuid.uuid4().hex[:8]  # a broker may outlive a test run
        for key in ("group", "input_topic", "predictions_topic", "alarms_topic", "dead_letters_topic"):
            self.kafka_options[key] += f"-{run}"
        self.kafka_options["bootstrap_servers"] = servers
        self.servers = servers

    def make(self, kafka, guarantee):
        return KafkaTransport(kafka, guarantee=guarantee)

    async def produce(self, number, values, *, topic=None):
        topic = topic or self.kafka_options["input_topic"]
        async with clients.producer(self.servers, acks="all") as producer:
            futures = [
                await producer.send(
                    topic, value, key=b"k", partition=number, timestamp_ms=1_000 + i, headers=[("a", b"b")]
                )
                for i, value in enumerate(values)
            ]
            for future in futures:
                await future

    async def read_committed(self, topic, number):
        partition = KafkaPartition(topic, number)
        consumer = AIOKafkaConsumer(
            bootstrap_servers=self.servers, enable_auto_commit=False, isolation_level="read_committed"
        )
        try:
            await consumer.start()
            consumer.assign([partition])
            await consumer.seek_to_beginning(partition)
            end = (await consumer.end_offsets([partition]))[partition]
            records = []
            while await consumer.position(partition) < end:
                for found in (await consumer.getmany(timeout_ms=200)).values():
                    records += [Seen(r.key, r.value, r.timestamp, list(r.headers)) for r in found]
            return records
        finally:
            await consumer.stop()

    async def delete_before(self, number, offset):
        async with clients.admin(self.servers) as admin:
            await admin.delete_records({KafkaPartition(*self.partition(number)): RecordsToDelete(before_offset=offset)})


async def until(condition_fn):
    """Wait for a condition, which may be a coroutine function."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            holds = condition_fn()
            if asyncio.iscoroutine(holds):
                holds = await holds
            if holds:
                return
            await asyncio.sleep(0.005)


async def read(consumer, count):
    """Poll until ``count`` records have come: offsets and values by partition."""
    found = {}
    async with asyncio.timeout(PATIENCE_S):
        while sum(map(len, found.values())) < count:
            for batch in await consumer.poll(0.2, 1_000):
                partition = TopicPartition(batch.topic, batch.partition)
                found.setdefault(partition, []).extend(zip(batch.offsets, batch.values, strict=True))
    return found
