"""What only a real broker can do to the transport: die, stop answering, lose an answer, fence a zombie."""

import asyncio
import contextlib
import gc
import time

import pytest
from aiokafka.errors import KafkaConnectionError
from aiokafka.protocol.transaction import EndTxnRequest
from aiokafka.structs import TopicPartition as KafkaPartition

from group_worlds import KafkaWorld, Listener, read, until
from kafka_broker import VERSIONS
from kafka_broker._ports import free_port
from usp_daemon.config import Kafka
from usp_daemon.transport.kafka import KafkaTransport
from usp_daemon.transport.kafka._shutdown import FORCED_S
from usp_daemon.wire import MAX_NOTE_BYTES, FencedError, OutcomeUnknownError, TransportError

pytestmark = pytest.mark.kafka

CLOSE_S = 1.0
# What ending by force may take: its own time, the round and the closing of connections that it may have begun by then,
# and what a machine that does much else adds.
END_S = FORCED_S + 0.2 + 1.0 + 1.0


@pytest.fixture
async def world(kafka_bootstrap_servers):
    async with KafkaWorld(kafka_bootstrap_servers) as world:
        yield world


@pytest.fixture
async def lonely(own_broker):
    """A world whose broker belongs to one test."""
    async with KafkaWorld(own_broker.bootstrap_servers) as world:
        world.kafka_options |= dict(request_timeout_ms=3_000)
        world.broker = own_broker
        yield world


def stop_before_commit(writer):
    """As SIGSTOP inside an open transaction: events that say that it has come so far, and that it may go on."""
    client = writer._producer.client
    commit, reached, go_on = client.commit_transaction, asyncio.Event(), asyncio.Event()

    async def stopped():
        reached.set()
        await go_on.wait()
        await commit()

    client.commit_transaction = stopped
    return reached, go_on


async def test_a_zombie_inside_an_open_transaction_is_fenced_and_leaves_nothing(world):
    transport, consumer, _ = await world.member()
    zombie = await world.writer(transport, 0)
    await zombie.publish(world.batch(0, 1, [b"0"]))
    reached, go_on = stop_before_commit(zombie)
    publishing = asyncio.create_task(zombie.publish(world.batch(0, 2, [b"zombie"])))
    await reached.wait()
    heir = await world.writer(await world.transport(), 0)
    assert await consumer.committed(world.partition(0)) == 1
    await heir.publish(world.batch(0, 2, [b"1"]))
    go_on.set()
    with pytest.raises(FencedError):
        await publishing
    with pytest.raises(OutcomeUnknownError):  # it is spent
        await zombie.publish(world.batch(0, 3, [b"2"]))
    assert await world.predictions(0) == [b"0", b"1"]
    assert await consumer.committed(world.partition(0)) == 2


async def test_the_committed_offset_is_not_told_while_it_is_in_doubt(world):
    _, consumer, _ = await world.member(request_timeout_ms=1_500)
    writer = await world.writer(await world.transport(), 0)
    reached, go_on = stop_before_commit(writer)
    publishing = asyncio.create_task(writer.publish(world.batch(0, 5)))
    await reached.wait()
    with pytest.raises(OutcomeUnknownError):
        await consumer.committed(world.partition(0))
    asking = asyncio.create_task(consumer.committed(world.partition(0)))
    go_on.set()
    await publishing
    assert await asking == 5


async def test_a_lost_answer_to_the_commit_is_told_at_once_and_the_truth_after_reopening(world):
    transport, consumer, _ = await world.member()
    writer = await world.writer(transport, 0)
    watch = writer._producer.watch
    send = watch._send

    async def lose(node_id, request, **options):
        response = await send(node_id, request, **options)
        if isinstance(request, EndTxnRequest):
            raise KafkaConnectionError("lost")
        return response

    watch._send = lose
    started = time.monotonic()
    with pytest.raises(OutcomeUnknownError):
        await writer.publish(world.batch(0, 4, [b"p"]))
    assert time.monotonic() - started < 5.0
    await writer.open()
    assert await consumer.committed(world.partition(0)) == 4
    await writer.publish(world.batch(0, 5, [b"q"]))
    assert await world.predictions(0) == [b"p", b"q"]


async def test_a_broker_killed_while_publishing_and_polling_loses_and_repeats_nothing(lonely):
    world, broker = lonely, lonely.broker
    transport, consumer, _ = await world.member()
    partition = world.partition(0)
    await world.produce(0, [b"%d" % i for i in range(20)])
    consumer.seek(partition, 0)
    assert len((await read(consumer, 20))[partition]) == 20
    writer = await world.writer(transport, 0)
    position = 0
    killed = None
    for _ in range(5):
        position += 1
        await writer.publish(world.batch(0, position, [b"%d" % position]))
    with pytest.raises(OutcomeUnknownError):
        while True:
            if killed is None and position == 8:
                killed = asyncio.get_running_loop().run_in_executor(None, broker.kill)
            await writer.publish(world.batch(0, position + 1, [b"%d" % (position + 1)]))
            position += 1
    await killed
    assert await consumer.poll(0.2, 100) == []
    with pytest.raises(OutcomeUnknownError):
        await writer.open()
    await asyncio.get_running_loop().run_in_executor(None, broker.start)
    await until(lambda: reopened(writer))
    committed = await consumer.committed(partition)
    assert committed in (position, position + 1)
    for following in range(committed + 1, committed + 4):
        await writer.publish(world.batch(0, following, [b"%d" % following]))
    assert await world.predictions(0) == [b"%d" % i for i in range(1, committed + 4)]
    await world.produce(0, [b"after"])
    assert (await read(consumer, 1))[partition] == [(20, b"after")]


@pytest.mark.parametrize(
    ("version", "guarantee"),
    [
        (VERSIONS[0], "exactly_once"),
        (VERSIONS[0], "at_least_once"),
        pytest.param(VERSIONS[1], "exactly_once", marks=pytest.mark.slow),
        pytest.param(VERSIONS[1], "at_least_once", marks=pytest.mark.slow),
    ],
)
async def test_a_note_outlives_the_broker(make_broker, version, guarantee):
    loop = asyncio.get_running_loop()
    broker = await loop.run_in_executor(None, lambda: make_broker(version=version))
    note = "é\N{SNOWMAN}" + "n" * (MAX_NOTE_BYTES - 5)
    async with KafkaWorld(broker.bootstrap_servers) as world:
        transport, consumer, _ = await world.member(guarantee=guarantee)
        for number, kept in ((0, note), (1, "")):
            writer = await world.writer(transport, number)
            await writer.publish(world.batch(number, 1, note="before"))
            await writer.publish(world.batch(number, 2, note=kept))
            await writer.close()
        await loop.run_in_executor(None, broker.kill)
        await loop.run_in_executor(None, broker.start)
        found = []

        async def answered():
            with contextlib.suppress(OutcomeUnknownError):
                found[:] = [await consumer.committed_with_note(world.partition(number)) for number in range(3)]
            return found

        await until(answered)
        assert found == [(2, note), (2, ""), None]


async def test_a_broker_that_takes_no_notes_of_that_size_is_told(make_broker):
    loop = asyncio.get_running_loop()
    broker = await loop.run_in_executor(None, lambda: make_broker(settings={"offset.metadata.max.bytes": 100}))
    async with KafkaWorld(broker.bootstrap_servers) as world:
        transport, consumer, _ = await world.member()
        writer = await world.writer(transport, 0)
        await writer.publish(world.batch(0, 1, note="n" * 100))
        with pytest.raises(TransportError, match=r"offset\.metadata\.max\.bytes") as caught:
            await writer.publish(world.batch(0, 2, note="n" * 101))
        assert not isinstance(caught.value, OutcomeUnknownError)
        await writer.open()
        assert await consumer.committed_with_note(world.partition(0)) == (1, "n" * 100)


async def reopened(writer):
    try:
        await writer.open()
    except OutcomeUnknownError:
        return False
    return True


@pytest.mark.parametrize("guarantee", ["exactly_once", "at_least_once"])
@pytest.mark.parametrize("away", ["kill", "pause"])
async def test_everything_closes_in_time_when_the_broker_is_away(lonely, away, guarantee):
    world, broker = lonely, lonely.broker
    before = asyncio.all_tasks()
    transport = KafkaTransport(world.kafka(), guarantee=guarantee, close_timeout_s=CLOSE_S)
    await transport.prepare()
    listener = Listener()
    consumer = transport.consumer(listener)
    idle, busy = transport.writer(world.partition(0)), transport.writer(world.partition(1))
    try:
        await consumer.open()
        await until(lambda: listener.held)
        consumer.seek(world.partition(0), 0)
        await idle.open()
        await busy.open()
        await busy.publish(world.batch(1, 1))
        await asyncio.get_running_loop().run_in_executor(None, getattr(broker, away))
        publishing = asyncio.create_task(busy.publish(world.batch(1, 2)))
        polling = asyncio.create_task(consumer.poll(0.5, 10))
        started = time.monotonic()
        with pytest.raises(OutcomeUnknownError):
            await publishing
        published_s = time.monotonic() - started
        assert await polling == []
        waited_s = time.monotonic() - started
    finally:
        started = time.monotonic()
        await consumer.close()
        await idle.close()
        await busy.close()
        await transport.close()
    # Not in the test's body, where a failure would keep what is open from being closed in time.
    assert published_s < 3.0 + END_S, "kafka.request_timeout_ms, then ending by force"
    # At the worst its background tasks have died: the consumer is closed, begun anew in vain, and closed again.
    assert waited_s < 0.5 + 3.0 + 2 * (CLOSE_S + END_S)
    # The consumer; then each writer, which at least once tries to commit first.
    assert time.monotonic() - started < (CLOSE_S + END_S) + 2 * (2 * CLOSE_S + END_S)
    assert asyncio.all_tasks() - before == set()
    del transport, consumer, idle, busy
    gc.collect()  # what was left open warns now, and a warning fails the test


@pytest.mark.slow
async def test_a_leader_killed_in_a_cluster_of_three_loses_and_repeats_nothing(make_broker):
    loop = asyncio.get_running_loop()
    cluster = await loop.run_in_executor(None, lambda: make_broker(nodes=3))
    async with KafkaWorld(cluster.bootstrap_servers) as world:
        world.kafka_options |= dict(replication_factor=3, request_timeout_ms=5_000)
        transport, consumer, _ = await world.member()
        writer = await world.writer(transport, 0)
        committed, killing = 0, None
        while committed < 60:
            if committed == 20 and killing is None:
                leader = writer._producer.client.client.cluster.leader_for_partition(
                    KafkaPartition(world.kafka().predictions_topic, 0)
                )
                killing = loop.run_in_executor(None, cluster.kill, leader)
            try:
                await writer.publish(world.batch(0, committed + 1, [b"%d" % (committed + 1)]))
                committed += 1
            except OutcomeUnknownError:
                await until(lambda: reopened(writer))
                committed = await consumer.committed(world.partition(0)) or 0
        await killing
        assert await world.predictions(0) == [b"%d" % i for i in range(1, 61)]
        await world.produce(0, [b"x"])
        consumer.seek(world.partition(0), 0)
        assert await read(consumer, 1) == {world.partition(0): [(0, b"x")]}


async def test_a_session_that_ran_out_gives_partitions_to_others_and_is_fenced(world):
    """The loop's heartbeats stop, as for a process that was stopped; then it goes on."""
    transport, consumer, listener = await world.member(session_timeout_ms=2_000)
    writer = await world.writer(transport, 0)
    heartbeats = consumer._consumer._coordinator._do_heartbeat
    consumer._consumer._coordinator._do_heartbeat = never
    heir_transport, _, others = await world.member(session_timeout_ms=2_000)
    await until(lambda: len(others.held) == 4)
    heirs_writer = await world.writer(heir_transport, 0)
    await heirs_writer.publish(world.batch(0, 1, [b"heir"]))
    with pytest.raises(FencedError):
        await writer.publish(world.batch(0, 1, [b"zombie"]))
    consumer._consumer._coordinator._do_heartbeat = heartbeats
    await consumer.rejoin()
    await until(lambda: len(listener.held) == len(others.held) == 2)
    assert await world.predictions(0) == [b"heir"]


async def never():
    await asyncio.Event().wait()


async def test_at_least_once_refuses_the_commits_of_a_former_member(world):
    transport, consumer, _ = await world.member(guarantee="at_least_once", session_timeout_ms=2_000)
    writer = await world.writer(transport, 0)
    await writer.publish(world.batch(0, 1))
    await until(lambda: writer.committed == 1)
    consumer._consumer._coordinator._do_heartbeat = never
    _, heir, others = await world.member(guarantee="at_least_once", session_timeout_ms=2_000)
    await until(lambda: len(others.held) == 4)

    async def refused():
        try:
            await writer.publish(world.batch(0, 2))
        except FencedError:
            return True
        return False

    await until(refused)
    assert await heir.committed(world.partition(0)) == 1


async def test_closing_the_transport_closes_every_writer(world):
    before = asyncio.all_tasks()
    transport = await world.transport()
    writers = [transport.writer(world.partition(number)) for number in range(4)]
    await asyncio.gather(*(writer.open() for writer in writers))
    assert len(asyncio.all_tasks() - before) > 4
    await transport.close()
    assert asyncio.all_tasks() - before == set()
    with pytest.raises(OutcomeUnknownError):
        await writers[0].publish(world.batch(0, 1))


async def test_a_dead_background_task_does_not_silence_the_consumer(world):
    _, consumer, listener = await world.member()
    await world.produce(0, [b"x"])
    consumer._consumer._fetcher._fetch_task.cancel()
    listener.events.clear()

    async def reassigned():
        await consumer.poll(0.05, 10)
        return any(kind == "assigned" for kind, _ in listener.events)

    await until(reassigned)
    consumer.seek(world.partition(0), 0)
    assert await read(consumer, 1) == {world.partition(0): [(0, b"x")]}


async def test_a_consumer_that_could_not_begin_anew_does_so_when_the_broker_is_back(lonely):
    world, broker = lonely, lonely.broker
    _, consumer, listener = await world.member(request_timeout_ms=1_000)
    await world.produce(0, [b"x"])
    await asyncio.get_running_loop().run_in_executor(None, broker.kill)
    with pytest.raises(OutcomeUnknownError):
        await consumer.rejoin()
    assert listener.held == set()
    assert await consumer.poll(0.1, 10) == []
    await asyncio.get_running_loop().run_in_executor(None, broker.start)

    async def assigned():
        await consumer.poll(0.1, 10)
        return len(listener.held) == 4

    await until(assigned)
    consumer.seek(world.partition(0), 0)
    assert await read(consumer, 1) == {world.partition(0): [(0, b"x")]}


async def test_an_error_of_the_listener_reaches_whoever_polls(world):
    transport = await world.transport()
    listener = Listener()

    async def fail(partitions):
        raise RuntimeError("broke")

    listener.on_assigned = fail
    consumer = transport.consumer(listener)
    await consumer.open()
    try:
        with pytest.raises(RuntimeError, match="broke"):
            async with asyncio.timeout(20):
                while True:
                    await consumer.poll(0.05, 10)
    finally:
        await consumer.close()


async def test_nobody_there_is_said_within_the_time_to_start():
    kafka = Kafka(bootstrap_servers=f"127.0.0.1:{free_port()}", request_timeout_ms=1_000)
    started = time.monotonic()
    with pytest.raises(TransportError, match=r"no Kafka broker could be reached: 127\.0\.0\.1"):
        await KafkaTransport(kafka, start_timeout_s=1.5).prepare()
    assert 0.5 < time.monotonic() - started < 4.0
