"""A client with exactly the rights that the documentation lists, and with one of them missing at a time."""

import asyncio
import contextlib
import dataclasses
import re
from pathlib import Path

import pytest
from aiokafka.protocol.admin import CreateAclsRequest

from group_worlds import KafkaWorld, Listener, read, until
from kafka_broker import VERSIONS, Broker, clients, fetch
from kafka_broker.fixtures import unavailable_is_skipped
from snapshot_samples import sample
from usp_daemon.persistence import Epoch, EpochLogError, SnapshotStoreError
from usp_daemon.transport.kafka import KafkaTransport, TopicEpochLog, TopicSnapshotStore
from usp_daemon.wire import OutcomeUnknownError, TransportError

pytestmark = pytest.mark.kafka

DOCS = Path(__file__).resolve().parents[2] / "docs"
ACLS = {
    "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
    "super.users": "User:ANONYMOUS",
}
TOPIC, GROUP, CLUSTER, TRANSACTIONAL_ID = 2, 3, 4, 5
LITERAL, PREFIXED = 3, 4
OPERATIONS = {"READ": 3, "WRITE": 4, "CREATE": 5, "DESCRIBE": 8, "DESCRIBE_CONFIGS": 10, "IDEMPOTENT_WRITE": 12}
ALLOW = 3
CREATE_ROW = "cluster, or each topic"
OLD_BROKERS_ROW = "cluster"


def documented(page):
    """Resource to operations, as the table of rights in ``page`` has them."""
    section = (DOCS / page).read_text("utf-8").partition("# Rights\n")[2].partition("\n#")[0]
    rights = {}
    for resource, operations in re.findall(r"^\| ([^|]+) \| ([A-Z_, ]+) \|", section, re.MULTILINE):
        rights.setdefault(resource, []).extend(operations.split(", "))
    return rights


RIGHTS = documented("kafka.md") | documented("snapshots.md")
SNAPSHOTS_ROW = "topic `io.snapshot_topic`"
CREATE_SNAPSHOTS_ROW = "topic `io.snapshot_topic`, or the cluster"


def test_the_tables_of_rights_are_found():
    assert RIGHTS.keys() == {
        "topic, input", "topics, outputs", "group `kafka.group`", "transactional id, prefix `{group}-`",
        CREATE_ROW, OLD_BROKERS_ROW, SNAPSHOTS_ROW, CREATE_SNAPSHOTS_ROW,
    }  # fmt: skip
    assert {operation for operations in RIGHTS.values() for operation in operations} <= OPERATIONS.keys()


@pytest.fixture(scope="module", params=[VERSIONS[0], pytest.param(VERSIONS[1], marks=pytest.mark.slow)])
def forbidding(request, tmp_path_factory):
    with unavailable_is_skipped():
        fetch(request.param)
        broker = Broker(tmp_path_factory.mktemp("rights"), version=request.param, security=True, settings=ACLS)
    broker.start()
    yield broker
    broker.kill()


@pytest.fixture
async def world(forbidding):
    """Topics and a group of its own; members are the user, who has no right, what produces and reads is not."""
    async with KafkaWorld(forbidding.bootstrap_servers) as world:
        user = forbidding.credentials.user
        world.kafka_options |= dict(
            bootstrap_servers=forbidding.listeners["SASL_PLAINTEXT"],
            security_protocol="SASL_PLAINTEXT",
            sasl_mechanism="PLAIN",
            sasl_username=user.name,
            sasl_password=user.password,
            request_timeout_ms=5_000,
        )
        world.snapshots = world.kafka().group + ".snapshots"
        yield world


async def grant(world, *without):
    """All rights that the pages list, but the (resource, operation) in ``without``, if need be with the topic's key."""
    kafka = world.kafka()
    keys = ("input_topic", "predictions_topic", "alarms_topic", "dead_letters_topic")
    topics = {key: getattr(kafka, key) for key in keys}
    outputs = dict(list(topics.items())[1:])
    resources = {
        "topic, input": (TOPIC, {"input_topic": kafka.input_topic}, LITERAL),
        "topics, outputs": (TOPIC, outputs, LITERAL),
        "group `kafka.group`": (GROUP, {"group": kafka.group}, LITERAL),
        "transactional id, prefix `{group}-`": (TRANSACTIONAL_ID, {"": f"{kafka.group}-"}, PREFIXED),
        CREATE_ROW: (TOPIC, topics, LITERAL),
        SNAPSHOTS_ROW: (TOPIC, {"snapshots": world.snapshots}, LITERAL),
        CREATE_SNAPSHOTS_ROW: (TOPIC, {"snapshots": world.snapshots}, LITERAL),
    }
    granted = []
    async with clients.admin(world.servers) as admin:
        for resource, (kind, names, pattern) in resources.items():
            for key, name in names.items():
                for operation in RIGHTS[resource]:
                    if (resource, operation) in without or (resource, operation, key) in without:
                        continue
                    acl = CreateAclsRequest(kind, name, pattern, "User:usp", "*", OPERATIONS[operation], ALLOW)
                    response = await admin._send_request(acl)
                    assert [code for code, _ in response.creation_responses] == [0]
                    granted.append((kind, name, operation))
    return granted


async def make_topics(world):
    """By the super-user."""
    async with clients.admin(world.servers) as admin:
        kafka = world.kafka()
        names = (kafka.input_topic, kafka.predictions_topic, kafka.alarms_topic, kafka.dead_letters_topic)
        made = [clients.NewTopic(name, 4, 1) for name in names]
        made.append(clients.NewTopic(world.snapshots, 4, 1, topic_configs={"cleanup.policy": "compact"}))
        response = await admin.create_topics(made)
        assert {error[1] for error in response.topic_errors} == {0}


def epoch_1():
    return Epoch(
        number=1, settings={}, config_hash="", base_hash="", created_ns=0, proposed_by="", reason=""
    )  # fmt: skip


@pytest.mark.parametrize("guarantee", ["exactly_once", "at_least_once"])
async def test_with_the_rights_of_the_documentation_everything_works(world, guarantee):
    assert len(await grant(world)) > 20
    kafka = world.kafka()
    warnings = await KafkaTransport(kafka, guarantee=guarantee).prepare()  # creates the topics
    assert not any("no right" in warning for warning in warnings)
    transport, consumer, _ = await world.member(guarantee=guarantee)
    await world.produce(0, [b"x"])
    consumer.seek(world.partition(0), 0)
    assert await read(consumer, 1) == {world.partition(0): [(0, b"x")]}
    writer = await world.writer(transport, 0)
    await writer.publish(world.batch(0, 1, [b"p"], alarms=[b"a"], dead_letters=[b"d"], note="n"))
    await until(lambda: writer.committed == 1)
    assert await consumer.committed_with_note(world.partition(0)) == (1, "n")
    assert await consumer.bounds(world.partition(0)) == (0, 1)
    assert await world.predictions(0) == [b"p"]
    async with contextlib.AsyncExitStack() as opened:
        store = TopicSnapshotStore(kafka, world.snapshots)
        opened.push_async_callback(store.close)
        await store.open()
        await store.acquire(kafka.input_topic, 0)
        await store.save(dataclasses.replace(sample(1), group=kafka.group, topic=kafka.input_topic, partition=0))
        assert (await store.newest(kafka.input_topic, 0, 1)).offset == 1
        log = TopicEpochLog(kafka, world.snapshots)
        opened.push_async_callback(log.close)
        await log.open()
        assert await log.append(epoch_1())
        assert await log.read() == (epoch_1(),)


async def test_without_the_right_to_read_the_input(world):
    await make_topics(world)
    await grant(world, ("topic, input", "READ"))
    transport = await world.transport()
    consumer = transport.consumer(Listener())
    try:
        await consumer.open()
        with pytest.raises(TransportError, match=rf"no right to use .*{world.kafka().input_topic}.*READ"):
            async with asyncio.timeout(30):
                while True:
                    await consumer.poll(0.1, 10)
                    for number in range(4):
                        consumer.seek(world.partition(number), 0)
    finally:
        await consumer.close()


@pytest.mark.parametrize("guarantee", ["exactly_once", "at_least_once"])
@pytest.mark.parametrize("key", ["predictions_topic", "alarms_topic", "dead_letters_topic"])
async def test_without_the_right_to_write_an_output(world, key, guarantee):
    await make_topics(world)
    await grant(world, ("topics, outputs", "WRITE", key))
    transport = await world.transport(guarantee)
    writer = await world.writer(transport, 0)
    batch = world.batch(0, 1, [b"p"], alarms=[b"a"], dead_letters=[b"d"])
    with pytest.raises(TransportError, match=rf"no right to use .*{getattr(world.kafka(), key)}.*WRITE") as caught:
        await writer.publish(batch)
    assert not isinstance(caught.value, OutcomeUnknownError)


async def test_without_the_right_to_the_group(world):
    await make_topics(world)
    await grant(world, ("group `kafka.group`", "READ"))
    transport = await world.transport()
    consumer = transport.consumer(Listener())
    expected = rf"no right to use the consumer group '{world.kafka().group}': allow READ"
    try:
        await consumer.open()
        with pytest.raises(TransportError, match=expected):
            async with asyncio.timeout(30):
                while True:
                    await consumer.poll(0.1, 10)
        with pytest.raises(TransportError, match=expected):
            await consumer.committed(world.partition(0))
    finally:
        await consumer.close()
    writer = await world.writer(transport, 0)
    with pytest.raises(TransportError, match=expected) as caught:
        await writer.publish(world.batch(0, 1))
    assert not isinstance(caught.value, OutcomeUnknownError)


TRANSACTIONAL_ROW = "transactional id, prefix `{group}-`"


async def test_without_the_right_to_transactional_ids(world):
    await make_topics(world)
    await grant(world, (TRANSACTIONAL_ROW, "WRITE"), (TRANSACTIONAL_ROW, "DESCRIBE"))
    transport = await world.transport()
    group = world.kafka().group
    expected = rf"transactional ids that begin with '{group}': allow WRITE and DESCRIBE"
    with pytest.raises(TransportError, match=expected) as caught:
        await transport.writer(world.partition(0)).open()
    assert not isinstance(caught.value, OutcomeUnknownError)
    log = TopicEpochLog(world.kafka(), world.snapshots)
    await log.open()
    with pytest.raises(EpochLogError, match=expected):
        await log.append(epoch_1())
    await log.close()


@pytest.mark.parametrize("key", ["input_topic", "alarms_topic"])
async def test_without_the_right_to_create_a_topic(world, key):
    await grant(world, (CREATE_ROW, "CREATE", key))
    name = getattr(world.kafka(), key)
    with pytest.raises(TransportError, match=rf"no right to create topic '{name}': .*CREATE"):
        await KafkaTransport(world.kafka(), start_timeout_s=10.0).prepare()


async def test_without_the_right_to_see_a_topic(world):
    await make_topics(world)
    await grant(world, ("topics, outputs", "DESCRIBE", "alarms_topic"), ("topics, outputs", "WRITE", "alarms_topic"),
                (CREATE_ROW, "CREATE"))  # fmt: skip
    name = world.kafka().alarms_topic
    transport = KafkaTransport(world.kafka(create_topics=False), start_timeout_s=10.0)
    with pytest.raises(TransportError, match=rf"({name}.*|'{name}': .*)DESCRIBE"):
        await transport.prepare()


async def test_without_the_right_to_see_the_settings_of_the_input(world):
    await make_topics(world)
    await grant(world, ("topic, input", "DESCRIBE_CONFIGS"))
    warnings = await KafkaTransport(world.kafka()).prepare()
    assert any(re.search(rf"no right .*{world.kafka().input_topic}.*DESCRIBE_CONFIGS", text) for text in warnings)


@pytest.mark.parametrize("operation", ["READ", "WRITE"])
async def test_without_a_right_to_the_topic_of_snapshots(world, operation):
    await make_topics(world)
    await grant(world, (SNAPSHOTS_ROW, operation))
    kafka = world.kafka(transaction_timeout_ms=5_000)
    log = TopicEpochLog(kafka, world.snapshots, start_timeout_s=10.0)
    store = TopicSnapshotStore(kafka, world.snapshots, start_timeout_s=10.0)
    expected = rf"no right to use .*{world.snapshots}.*{operation}"
    await log.open()
    with pytest.raises(EpochLogError, match=expected):
        await log.append(epoch_1())
    await store.open()
    with pytest.raises(SnapshotStoreError, match=expected):
        await store.acquire(kafka.input_topic, 0)
    await log.close()
    await store.close()
