"""Sizes, times, header names and compression that a real broker takes or refuses."""

import pytest
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.record.util import calc_crc32c

from group_worlds import KafkaWorld, read, until
from kafka_broker import clients
from usp_daemon.wire import RecordTooLargeError, TopicPartition

pytestmark = pytest.mark.kafka


@pytest.fixture
async def world(kafka_bootstrap_servers):
    async with KafkaWorld(kafka_bootstrap_servers) as world:
        yield world


async def configure(world, topic, **settings):
    configs = {name.replace("_", "."): value for name, value in settings.items()}
    resource = ConfigResource(ConfigResourceType.TOPIC, topic, configs)
    async with clients.admin(world.servers) as admin:
        await admin.alter_configs([resource])

        async def in_force():
            (response,) = await admin.describe_configs([resource])
            return {entry[0]: entry[1] for entry in response.resources[0][4]} == configs

        await until(in_force)


def bodies(count, size):
    return [b"%06d" % i + bytes(size - 6) for i in range(count)]


async def test_results_beyond_one_request_are_split_within_one_transaction(world):
    transport, consumer, _ = await world.member(max_request_bytes=16_384)
    writer = await world.writer(transport, 0)
    expected = bodies(60, 1_000)
    await writer.publish(world.batch(0, 60, expected, alarms=bodies(40, 1_000)))
    assert await consumer.committed(world.partition(0)) == 60
    assert await world.predictions(0) == expected


async def test_a_batch_that_the_topic_refuses_is_split_and_the_transaction_goes_on(world):
    transport, consumer, _ = await world.member()
    await configure(world, world.kafka().predictions_topic, max_message_bytes="5000")
    writer = await world.writer(transport, 0)
    expected = bodies(50, 1_000)
    await writer.publish(world.batch(0, 50, expected))
    await writer.publish(world.batch(0, 51, [b"next"]))
    assert await world.predictions(0) == [*expected, b"next"]
    assert await consumer.committed(world.partition(0)) == 51


@pytest.mark.parametrize("guarantee", ["exactly_once", "at_least_once"])
async def test_a_record_too_large_for_the_topic_is_named_and_the_writer_goes_on(world, guarantee):
    transport, _, _ = await world.member(guarantee=guarantee)
    await configure(world, world.kafka().predictions_topic, max_message_bytes="5000")
    writer = await world.writer(transport, 0)
    await writer.publish(world.batch(0, 1, [b"before"]))
    records = [*bodies(5, 1_000), bytes(9_000), *bodies(5, 1_000)]
    with pytest.raises(RecordTooLargeError, match=r"offset 16 takes 9\d\d\d bytes, more than topic") as caught:
        await writer.publish(world.batch(0, 22, records))
    assert (caught.value.output, caught.value.index) == ("predictions", 5)
    assert caught.value.origin == (world.kafka().input_topic, 0, 16)
    await writer.publish(world.batch(0, 23, [b"after"]))
    predictions = await world.predictions(0)
    assert (predictions[0], predictions[-1]) == (b"before", b"after")
    if guarantee == "exactly_once":
        assert len(predictions) == 2


async def test_times_that_the_topic_refuses_give_way_to_the_clock(world):
    transport, _, _ = await world.member()
    await configure(world, world.kafka().predictions_topic, message_timestamp_after_max_ms="1000")
    writer = await world.writer(transport, 0)
    far = 4_000_000_000 * 10**9
    await writer.publish(world.batch(0, 2, [b"a", b"b"], times=(far, far)))
    await writer.publish(world.batch(0, 3, [b"c"]))
    records = await world.read_committed(world.kafka().predictions_topic, 0)
    assert [record.value for record in records] == [b"a", b"b", b"c"]
    assert all(record.timestamp_ms < far // 10**6 for record in records)


async def test_header_names_that_are_no_text_stop_nothing(world):
    _, consumer, _ = await world.member()
    topic = world.kafka().input_topic
    async with clients.producer(world.servers, acks="all") as producer:
        batch = producer.create_batch()
        for value in (b"before", b"bad", b"after"):
            # a name of the same length, which is replaced below by bytes that are no UTF-8
            headers = [("name", b"v"), ("none", None)] if value == b"bad" else []
            batch.append(key=None, value=value, timestamp=1_000, headers=headers)
        batch.close()
        build = batch._build

        def spoiled():
            data = bytearray(build()).replace(b"name", b"\xff\xfe\xfd\xfc")
            data[17:21] = calc_crc32c(bytes(data[21:])).to_bytes(4, "big")
            return data

        batch._build = spoiled
        await (await producer.send_batch(batch, topic, partition=0))
    await world.produce(0, [b"later"])
    consumer.seek(world.partition(0), 0)
    found = {}
    while len(found) < 4:
        for raw in await consumer.poll(1.0, 100):
            found |= dict(zip(raw.offsets, zip(raw.values, raw.headers, strict=True), strict=True))
    assert [value for _, (value, _) in sorted(found.items())] == [b"before", b"bad", b"after", b"later"]
    assert found[1][1] == [("\ufffd" * 4, b"v"), ("none", b"")]


async def test_times_beyond_64_bits_of_nanoseconds_count_as_none(world):
    _, consumer, _ = await world.member()
    topic = world.kafka().input_topic
    await configure(world, topic, message_timestamp_after_max_ms=str(2**63 - 1))
    async with clients.producer(world.servers, acks="all") as producer:
        await producer.send_and_wait(topic, b"x", partition=0, timestamp_ms=2**62)
        await producer.send_and_wait(topic, b"y", partition=0, timestamp_ms=(2**63 - 1) // 10**6)
    consumer.seek(world.partition(0), 0)
    times = []
    while len(times) < 2:
        times += [time for raw in await consumer.poll(1.0, 10) for time in raw.record_timestamps_ns]
    assert times == [-1, (2**63 - 1) // 10**6 * 10**6]


async def test_records_larger_than_a_fetch_come_through(world):
    _, consumer, _ = await world.member(max_partition_fetch_bytes=1_024)
    large = bytes(500_000)
    await world.produce(0, [b"small", large, b"small"])
    await world.produce(1, [large])
    for number in (0, 1):
        consumer.seek(world.partition(number), 0)
    found = await read(consumer, 4)
    assert [len(value) for _, value in found[world.partition(0)]] == [5, 500_000, 5]
    assert [len(value) for _, value in found[world.partition(1)]] == [500_000]


async def test_positions_pass_transaction_markers(world):
    """The input may be written in transactions too; the last offset of each is a marker."""
    _, consumer, _ = await world.member()
    other = await world.transport(predictions_topic=world.kafka().input_topic, input_topic=f"{world.kafka().group}-x")
    upstream = other.writer(TopicPartition(f"{world.kafka().group}-x", 0))
    await upstream.open()
    for position in (1, 2):
        batch = world.batch(0, position, [b"p"])
        positions = {upstream.partition: position}
        await upstream.publish(type(batch)(batch.predictions, batch.alarms, batch.dead_letters, positions))
    consumer.seek(world.partition(0), 0)
    assert (await read(consumer, 2))[world.partition(0)] == [(0, b"p"), (2, b"p")]
    assert await consumer.poll(0.3, 10) == []
    assert consumer.position(world.partition(0)) == 4 == consumer.end_offset(world.partition(0))


async def test_results_are_compressed(world):
    transport, _, _ = await world.member(compression="gzip")
    await configure(world, world.kafka().predictions_topic, max_message_bytes="20000")
    writer = await world.writer(transport, 0)
    expected = bodies(100, 1_000)
    sent = []
    send = writer._producer.client.send_batch

    async def counted(batch, *arguments, **options):
        sent.append(batch)
        return await send(batch, *arguments, **options)

    writer._producer.client.send_batch = counted
    await writer.publish(world.batch(0, 100, expected))
    assert await world.predictions(0) == expected
    assert len(sent) == 1, "100 kB went through as one batch of less than 20 kB"
