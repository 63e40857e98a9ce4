"""The topics at start: there, with enough partitions, kept long enough, and not compacted."""

import asyncio
from collections.abc import Sequence
from typing import Any

from aiokafka import errors as kafka_errors
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from usp_daemon.config import Kafka
from usp_daemon.wire import TransportError

TOPIC_ALREADY_EXISTS = 36
POLICY_VIOLATION = 44
TOPIC_AUTHORIZATION_FAILED, CLUSTER_AUTHORIZATION_FAILED = 29, 31
UNKNOWN_TOPIC = 3
DEFAULT_REPLICATION = -1
# What a broker takes in one batch unless told otherwise.
DEFAULT_MESSAGE_BYTES = 1_048_588
LEADER_PAUSE_S = 0.05


async def prepare_topics(admin: AIOKafkaAdminClient, kafka: Kafka, *, min_retention_s: float) -> list[str]:
    """Check the topics, or create them; returns warnings."""
    outputs = (kafka.predictions_topic, kafka.alarms_topic, kafka.dead_letters_topic)
    topics = (kafka.input_topic, *outputs)
    if len(set(topics)) < len(topics):
        raise TransportError(f"the topics of [kafka] must differ from one another, and are {', '.join(topics)}")
    counts = await _partition_counts(admin, topics)
    missing = [topic for topic in topics if topic not in counts]
    if missing and not kafka.create_topics:
        raise TransportError(
            f"missing topics: {', '.join(missing)}; create them (or set kafka.create_topics, with the right to "
            "CREATE), or give this client the right to DESCRIBE them"
        )
    if missing:
        num_partitions = counts.get(kafka.input_topic, kafka.num_partitions)
        await _create(admin, missing, num_partitions, kafka.replication_factor)
        counts |= await _usable_counts(admin, missing)
    _check_counts(counts, kafka, outputs)
    return await _check_input(admin, kafka, min_retention_s)


async def prepare_snapshot_topic(admin: AIOKafkaAdminClient, kafka: Kafka, topic: str) -> list[str]:
    """Check the topic of snapshots, or create it with settings under which compaction keeps it small."""
    others = (kafka.input_topic, kafka.predictions_topic, kafka.alarms_topic, kafka.dead_letters_topic)
    if topic in others:
        raise TransportError(f"io.snapshot_topic = {topic!r} is also a topic of [kafka]; it must have one of its own")
    counts = await _partition_counts(admin, (kafka.input_topic, topic))
    wanted = counts.get(kafka.input_topic, kafka.num_partitions)
    if topic not in counts:
        if not kafka.create_topics:
            raise TransportError(
                f"missing topic: {topic}; create it with cleanup.policy=compact and {wanted} partitions (or set "
                "kafka.create_topics, with the right to CREATE), or give this client the right to DESCRIBE it"
            )
        await _create(admin, [topic], wanted, kafka.replication_factor, _snapshot_settings(kafka))
        counts |= await _usable_counts(admin, [topic])
    if counts[topic] < wanted:
        raise TransportError(
            f"the snapshot topic {topic!r} has {counts[topic]} partitions but the input {kafka.input_topic!r} has "
            f"{wanted}, and a snapshot goes to the partition of the same number: add partitions to {topic!r}"
        )
    settings = await _settings(admin, topic)
    if settings is None:
        return [f"no right to read the settings of topic {topic!r} (DESCRIBE_CONFIGS), so its clean-up is not checked"]
    if settings.get("cleanup.policy") != "compact":
        raise TransportError(
            f"the snapshot topic {topic!r} has cleanup.policy={settings.get('cleanup.policy')}: it must be compact and "
            "nothing else, or snapshots are deleted by age, or none ever is"
        )
    largest = int(settings.get("max.message.bytes") or DEFAULT_MESSAGE_BYTES)
    if largest < kafka.max_request_bytes:
        raise TransportError(
            f"the snapshot topic {topic!r} takes batches of {largest} bytes (max.message.bytes), less than "
            f"kafka.max_request_bytes = {kafka.max_request_bytes}: raise the one or lower the other"
        )
    return []


def _snapshot_settings(kafka: Kafka) -> dict[str, str]:
    return {
        "cleanup.policy": "compact",
        # The segment that is being written is never compacted, and what was replaced stays until the dirty part is
        # this share of the log.
        "segment.bytes": str(64 << 20),
        "segment.ms": "600000",
        "min.cleanable.dirty.ratio": "0.3",
        "max.message.bytes": str(max(kafka.max_request_bytes, DEFAULT_MESSAGE_BYTES)),
    }


async def _partition_counts(admin: AIOKafkaAdminClient, topics: Sequence[str]) -> dict[str, int]:
    found = {}
    for topic in await admin.describe_topics(list(topics)):
        code, name = topic["error_code"], topic["topic"]
        if code == TOPIC_AUTHORIZATION_FAILED:
            raise TransportError(
                f"no right to see topic {name!r}: allow DESCRIBE and "
                f"{'READ' if name == topics[0] else 'WRITE'} on it to this client"
            )
        if code == 0:
            found[name] = len(topic["partitions"])
        elif code != UNKNOWN_TOPIC:
            raise kafka_errors.for_code(code)(f"description of topic {name!r}")
    return found


async def _create(
    admin: AIOKafkaAdminClient,
    topics: Sequence[str],
    num_partitions: int,
    replication_factor: int,
    settings: dict[str, str] | None = None,
) -> None:
    # aiokafka takes "the broker's default" only together with a (here empty) list of replicas.
    replicas: dict[int, list[int]] | None = {} if replication_factor == DEFAULT_REPLICATION else None
    response: Any = await admin.create_topics(
        [
            NewTopic(
                topic,
                num_partitions,
                replication_factor,
                replica_assignments=replicas,
                topic_configs=settings or {},
            )
            for topic in topics
        ]
    )
    for name, code, *rest in response.topic_errors:
        if code in (0, TOPIC_ALREADY_EXISTS):  # another replica was quicker
            continue
        if code in (TOPIC_AUTHORIZATION_FAILED, CLUSTER_AUTHORIZATION_FAILED):
            raise TransportError(f"no right to create topic {name!r}: create it, or allow CREATE to this client")
        error = kafka_errors.for_code(code)
        reason = rest[0] if rest and rest[0] else error.__name__
        raise TransportError(
            f"topic {name!r} with {num_partitions} partitions and {replication_factor} replicas could not be created: "
            f"{reason}; see kafka.num_partitions and kafka.replication_factor"
        )


async def _usable_counts(admin: AIOKafkaAdminClient, topics: Sequence[str]) -> dict[str, int]:
    """Partitions of topics that were just created, by us or by another replica, once all of them can be used.

    Without limit, like all here: the caller has a deadline.
    """
    while True:
        described = await admin.describe_topics(list(topics))
        if all(
            topic["error_code"] == 0
            and all(partition["error_code"] == 0 and partition["leader"] >= 0 for partition in topic["partitions"])
            for topic in described
        ):
            return {topic["topic"]: len(topic["partitions"]) for topic in described}
        await asyncio.sleep(LEADER_PAUSE_S)


def _check_counts(counts: dict[str, int], kafka: Kafka, outputs: Sequence[str]) -> None:
    wanted = counts[kafka.input_topic]
    for topic in outputs:
        if counts[topic] < wanted:
            raise TransportError(
                f"topic {topic!r} has {counts[topic]} partitions but the input {kafka.input_topic!r} has {wanted}, and "
                f"results go to the partition of the same number: add partitions to {topic!r}"
            )


async def _check_input(admin: AIOKafkaAdminClient, kafka: Kafka, min_retention_s: float) -> list[str]:
    topic = kafka.input_topic
    settings = await _settings(admin, topic)
    if settings is None:
        return [
            f"no right to read the settings of topic {topic!r} (DESCRIBE_CONFIGS), so its retention and clean-up are "
            "not checked"
        ]
    if "compact" in (settings.get("cleanup.policy") or ""):
        raise TransportError(
            f"the input topic {topic!r} is compacted (cleanup.policy={settings['cleanup.policy']}): recovery reads it "
            "again and needs every record; set cleanup.policy=delete"
        )
    warnings = []
    retention_ms = int(settings.get("retention.ms") or -1)
    if 0 <= retention_ms < min_retention_s * 1e3:
        warnings.append(
            f"the input topic {topic!r} keeps records for {retention_ms / 1e3:g} s only (retention.ms={retention_ms}), "
            f"less than recovery.min_retention_s = {min_retention_s:g}: after an outage longer than that, state is lost"
        )
    if settings.get("message.timestamp.type") == "CreateTime":
        warnings.append(
            f"the input topic {topic!r} keeps the producer's time of a record (message.timestamp.type=CreateTime), so "
            "the check of clock skew compares the producer's clock with itself; LogAppendTime makes it the broker's"
        )
    return warnings


async def _settings(admin: AIOKafkaAdminClient, topic: str) -> dict[str, str | None] | None:
    responses: list[Any] = await admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, topic)])
    for response in responses:
        for code, message, _, _, entries in response.resources:
            if code in (TOPIC_AUTHORIZATION_FAILED, CLUSTER_AUTHORIZATION_FAILED):
                return None
            if code:
                raise kafka_errors.for_code(code)(f"settings of topic {topic!r}: {message}")
            return {entry[0]: entry[1] for entry in entries}
    return None
