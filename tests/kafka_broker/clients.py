"""Short uses of aiokafka that close what they open; ``options`` are those of its clients, such as security."""

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import for_code


@asynccontextmanager
async def admin(servers: str, **options: Any) -> AsyncIterator[AIOKafkaAdminClient]:
    client = AIOKafkaAdminClient(bootstrap_servers=servers, **options)
    try:
        await client.start()
        yield client
    finally:
        await client.close()


async def create_topic(servers: str, topic: str, partitions: int = 1, replicas: int = 1, **options: Any) -> None:
    """Raises the broker's error, which aiokafka leaves in the response."""
    async with admin(servers, **options) as client:
        response = await client.create_topics([NewTopic(topic, partitions, replicas)])
    for name, code, *rest in response.topic_errors:  # type: ignore[attr-defined]
        if code:
            raise for_code(code)(f"{name}: {rest}")


@asynccontextmanager
async def producer(servers: str, **options: Any) -> AsyncIterator[AIOKafkaProducer]:
    client = AIOKafkaProducer(bootstrap_servers=servers, **options)
    try:
        await client.start()
        yield client
    finally:
        await client.stop()


async def produce(servers: str, topic: str, values: Iterable[bytes], **options: Any) -> None:
    """Returns once every replica in sync has every value."""
    async with producer(servers, acks="all", **options) as client:
        for waiting in [await client.send(topic, value, partition=0) for value in values]:
            await waiting


async def consume(servers: str, topic: str, **options: Any) -> list[bytes]:
    """The values of partition 0 from its start to its end at the time of the call, as far as the isolation allows."""
    partition = TopicPartition(topic, 0)
    client = AIOKafkaConsumer(bootstrap_servers=servers, enable_auto_commit=False, **options)
    try:
        await client.start()
        client.assign([partition])
        await client.seek_to_beginning(partition)
        end = (await client.end_offsets([partition]))[partition]
        values = []
        while await client.position(partition) < end:
            for records in (await client.getmany(timeout_ms=200)).values():
                values += [record.value for record in records]
        return values
    finally:
        await client.stop()
