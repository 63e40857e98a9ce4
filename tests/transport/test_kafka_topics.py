"""What is said about topics at start."""

import pytest

from group_worlds import KafkaWorld
from kafka_broker import clients
from usp_daemon.transport.kafka import KafkaTransport
from usp_daemon.wire import TransportError

pytestmark = pytest.mark.kafka


@pytest.fixture
async def world(kafka_bootstrap_servers):
    async with KafkaWorld(kafka_bootstrap_servers) as world:
        yield world


async def make(world, topic, partitions, **settings):
    configs = {name.replace("_", "."): value for name, value in settings.items()}
    async with clients.admin(world.servers) as admin:
        response = await admin.create_topics([clients.NewTopic(topic, partitions, 1, topic_configs=configs)])
        assert response.topic_errors[0][1] == 0


async def partitions_of(world, *topics):
    async with clients.admin(world.servers) as admin:
        return [len(topic["partitions"]) for topic in await admin.describe_topics(list(topics))]


async def test_missing_topics_are_created_with_as_many_partitions_as_the_input_has(world):
    kafka = world.kafka(num_partitions=7, replication_factor=-1)
    await make(world, kafka.input_topic, 3)
    warnings = await KafkaTransport(kafka).prepare()
    topics = (kafka.input_topic, kafka.predictions_topic, kafka.alarms_topic, kafka.dead_letters_topic)
    assert await partitions_of(world, *topics) == [3] * 4
    assert all("keeps the producer's time" in warning for warning in warnings)
    await KafkaTransport(kafka).prepare()  # all there by now


async def test_an_input_that_is_created_has_the_partitions_asked_for(world):
    kafka = world.kafka(num_partitions=2)
    await KafkaTransport(kafka).prepare()
    assert await partitions_of(world, kafka.input_topic, kafka.alarms_topic) == [2, 2]


async def test_missing_topics_are_named_where_none_may_be_created(world):
    kafka = world.kafka(create_topics=False)
    await make(world, kafka.input_topic, 1)
    with pytest.raises(TransportError, match=f"missing topics: {kafka.predictions_topic}, .*create_topics"):
        await KafkaTransport(kafka).prepare()


async def test_an_output_with_too_few_partitions_is_refused(world):
    kafka = world.kafka()
    await make(world, kafka.input_topic, 4)
    await make(world, kafka.alarms_topic, 2)
    with pytest.raises(TransportError, match=f"{kafka.alarms_topic}' has 2 partitions but .* has 4.*add partitions"):
        await KafkaTransport(kafka).prepare()


async def test_a_compacted_input_is_refused(world):
    kafka = world.kafka()
    await make(world, kafka.input_topic, 1, cleanup_policy="compact")
    with pytest.raises(TransportError, match=r"is compacted.*cleanup\.policy=delete"):
        await KafkaTransport(kafka).prepare()


async def test_short_retention_and_the_producers_time_are_warned_of(world):
    kafka = world.kafka()
    await make(world, kafka.input_topic, 1, retention_ms="60000", message_timestamp_type="LogAppendTime")
    (warning,) = await KafkaTransport(kafka, min_retention_s=3600.0).prepare()
    assert "keeps records for 60 s only" in warning
    assert await KafkaTransport(kafka, min_retention_s=60.0).prepare() == []


async def test_too_many_replicas_are_explained(world):
    with pytest.raises(TransportError, match=r"could not be created: .*kafka\.replication_factor"):
        await KafkaTransport(world.kafka(replication_factor=9)).prepare()


async def test_topics_must_differ(world):
    kafka = world.kafka(alarms_topic="same", predictions_topic="same")
    with pytest.raises(TransportError, match="must differ"):
        await KafkaTransport(kafka).prepare()
