"""Daemons whose only memory is a topic: each starts on an empty disk, where the one before was killed."""

import pytest
from service_process import (
    NUM_PARTITIONS,
    assert_as_undisturbed,
    bits_of,
    create_topics,
    produce,
    seeded_ticks,
    wait_answered,
)

from group_worlds import until
from usp_daemon.config import Kafka
from usp_daemon.transport.kafka import TopicSnapshotStore

pytestmark = [pytest.mark.kafka, pytest.mark.slow]

NUM_RECORDS = 2_400


async def states_in_topic(servers, process):
    """As ``final_states``, from the topic."""
    topic = process.environment["USP_KAFKA__INPUT_TOPIC"]
    kafka = Kafka(bootstrap_servers=servers, group=process.environment["USP_KAFKA__GROUP"], input_topic=topic)
    async with TopicSnapshotStore(kafka, process.environment["USP_IO__SNAPSHOT_TOPIC"]) as store:
        return {number: bits_of(await store.newest(topic, number, 2**62)) for number in range(NUM_PARTITIONS)}


async def test_killed_on_one_disk_and_continued_on_another_the_answers_are_the_same(
    kafka_bootstrap_servers, topic_name, make_replica, tmp_path
):
    servers, prefix = kafka_bootstrap_servers, topic_name("disks")
    topic = f"{prefix}.ticks"
    await create_topics(servers, prefix, ("quiet", "moved"))
    records = list(seeded_ticks(12, NUM_RECORDS))
    parts = [records[start : start + NUM_RECORDS // 4] for start in range(0, NUM_RECORDS, NUM_RECORDS // 4)]
    await produce(servers, topic, parts[0])

    def replica(number):
        return make_replica(
            servers, group="moved", prefix=prefix, instance=f"r{number}", USP_IO__SNAPSHOT_STORE="topic",
            USP_IO__SNAPSHOT_TOPIC=f"{prefix}.snapshots", USP_IO__SNAPSHOT_PATH=tmp_path / f"disk-{number}",
        )  # fmt: skip

    # Four snapshots are those of the beginning; it dies in the middle of one that has states.
    first = replica(1).start(crash_at="snapshot.before_commit:6")
    await first.wait_ready(holding=NUM_PARTITIONS)
    if first.alive:
        await produce(servers, topic, parts[1])
        parts[1] = []
    assert await first.ended(180) == -9, first.tail()
    second = replica(2).start()
    assert await second.wait_ready(holding=NUM_PARTITIONS), second.tail()
    await produce(servers, topic, parts[1])

    async def all_have_states():
        return all(rows for _, rows in (await states_in_topic(servers, second)).values())

    await until(all_have_states)
    await produce(servers, topic, parts[2], per_second=1_500)
    second.kill()
    third = replica(3).start()
    await produce(servers, topic, parts[3])
    assert await third.wait_ready(holding=NUM_PARTITIONS), third.tail()
    assert all(event["symbols"] > 0 for event in third.events("partition_restored")), third.tail()
    await wait_answered(servers, third)
    assert await third.stop() == 0, third.tail()

    assert not any((tmp_path / f"disk-{number}").exists() for number in (1, 2, 3))
    states = await states_in_topic(servers, third)
    quiet = make_replica(servers, group="quiet", prefix=prefix)
    assert await assert_as_undisturbed(servers, third, quiet, states=states) == NUM_RECORDS
