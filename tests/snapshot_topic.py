"""A snapshot topic as tests see it: raw records in and out, with keys and headers as its documentation says."""

import contextlib
import json
import struct
import uuid

from aiokafka import AIOKafkaConsumer
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.structs import TopicPartition

from kafka_broker import clients
from snapshot_samples import GROUP
from usp_daemon.config import Kafka
from usp_daemon.transport.kafka import TopicSnapshotStore


class TopicWorld:
    """Topics that no other test uses, and the stores that were made on them."""

    def __init__(self, servers):
        self.servers = servers
        self.run = uuid.uuid4().hex[:8]
        self.topic = f"snapshots-{self.run}"
        self.events = []
        self._open = contextlib.AsyncExitStack()

    async def __aenter__(self):
        return self

    async def __aexit__(self, *failure):
        await self._open.aclose()

    def kafka(self, **options):
        values = dict(
            bootstrap_servers=self.servers, group=GROUP, input_topic=f"in-{self.run}",
            predictions_topic=f"p-{self.run}", alarms_topic=f"a-{self.run}",
            dead_letters_topic=f"d-{self.run}", replication_factor=1,
            num_partitions=4, request_timeout_ms=20_000, transaction_timeout_ms=20_000,
        )  # fmt: skip
        return Kafka(**(values | options))

    def make(self, *, keep=3, compression="none", crash_fn=lambda point: None, **kafka_options):
        store = TopicSnapshotStore(
            self.kafka(**kafka_options), self.topic, keep=keep, compression=compression,
            observe_fn=self.events.append, crash_fn=crash_fn,
        )  # fmt: skip
        self._open.push_async_callback(store.close)
        return store

    async def store(self, **options):
        store = self.make(**options)
        await store.open()
        return store

    async def holder(self, topic="ticks", partition=2, **options):
        store = await self.store(**options)
        await store.acquire(topic, partition)
        return store

    async def records(self, partition=2):
        """(log offset, key, value, headers) of every committed record."""
        place = TopicPartition(self.topic, partition)
        consumer = AIOKafkaConsumer(
            bootstrap_servers=self.servers, enable_auto_commit=False, isolation_level="read_committed"
        )
        try:
            await consumer.start()
            consumer.assign([place])
            await consumer.seek_to_beginning(place)
            end = (await consumer.end_offsets([place]))[place]
            found = []
            while await consumer.position(place) < end:
                for records in (await consumer.getmany(timeout_ms=200)).values():
                    found += [(r.offset, r.key, r.value, list(r.headers)) for r in records]
            return found
        finally:
            await consumer.stop()

    async def kept(self, partition=2):
        """What compaction leaves once it has done all it may: the last value of each key that has one."""
        last = {key: value for _, key, value, _ in await self.records(partition)}
        return {key.decode(): value for key, value in last.items() if value is not None}

    async def put(self, records, partition=2):
        """Append (key, value, headers); returns the log offset of the first."""
        async with clients.producer(self.servers, acks="all") as producer:
            sent = [
                await producer.send_and_wait(self.topic, value, key=key, partition=partition, headers=headers)
                for key, value, headers in records
            ]
        return sent[0].offset

    async def rewrite(self, offset, *, chunk_fn=lambda chunk, value: value, manifest_fn=lambda manifest: manifest):
        """Write the snapshot at ``offset`` once more over itself, changed; a chunk that becomes None is left out."""
        records = await self.records()
        key, manifest = next(
            (key, json.loads(value))
            for _, key, value, _ in reversed(records)
            if key.endswith(b"/manifest") and value and json.loads(value)["offset"] == offset
        )
        base = key.removesuffix(b"manifest")
        copies, first = [], None
        for log_offset, other, value, headers in records:
            if not other.startswith(base) or other == key or value is None or log_offset < manifest["first"]:
                continue
            changed = chunk_fn(int(other.removeprefix(base)), value)
            # Nothing may be skipped on the word of a chunk whose successors are not there.
            ids = [(name, struct.pack(">16sI", content[:16], 0)) for name, content in headers]
            copies.append((b"left out", b"x", []) if changed is None else (other, changed, ids))
        if copies:
            first = await self.put(copies)
        manifest = manifest_fn(manifest | {"first": manifest["first"] if first is None else first})
        content = manifest if isinstance(manifest, bytes) else json.dumps(manifest).encode()
        await self.put([(key, content, [])])

    async def create(self, topic, partitions, **configs):
        settings = {name.replace("_", "."): str(value) for name, value in configs.items()}
        async with clients.admin(self.servers) as admin:
            response = await admin.create_topics([clients.NewTopic(topic, partitions, 1, topic_configs=settings)])
            assert response.topic_errors[0][1] == 0

    async def settings(self, topic):
        async with clients.admin(self.servers) as admin:
            (response,) = await admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, topic)])
            return {entry[0]: entry[1] for entry in response.resources[0][4]}
