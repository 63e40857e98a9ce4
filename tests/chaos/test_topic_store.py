"""Daemons whose only memory is a topic: each starts on an empty disk, where the one before was killed."""

import pytest
from service_process import (
    ServiceProcess,
    bits_of,
    comparable,
    final_states,
    outputs,
    produce,
    seeded_ticks,
    wait_answered,
)

from group_worlds import until
from kafka_broker import clients
from usp_daemon.config import Kafka
from usp_daemon.transport.kafka import TopicSnapshotStore

pytestmark = [pytest.mark.kafka, pytest.mark.slow]

NUM_RECORDS = 2_400


@pytest.fixture
def started():
    """Processes that do not outlive the test, however it ends."""
    found = []
    yield found
    for process in found:
        if process.alive:
            process.kill()


async def states_in_topic(servers, process):
    """As ``final_states``, from the topic."""
    topic = process.environment["USP_KAFKA__INPUT_TOPIC"]
    kafka = Kafka(bootstrap_servers=servers, group=process.environment["USP_KAFKA__GROUP"], input_topic=topic)
    async with TopicSnapshotStore(kafka, process.environment["USP_IO__SNAPSHOT_TOPIC"]) as store:
        return {partition: bits_of(await store.newest(topic, partition, 2**62)) for partition in range(4)}


async def test_killed_on_one_disk_and_continued_on_another_the_answers_are_the_same(
    make_broker, topic_name, tmp_path, started
):
    # The ticks' times lie years back, and retention goes by them.
    servers, prefix = make_broker(settings={"log.retention.ms": -1}).bootstrap_servers, topic_name("chaos")
    await clients.create_topic(servers, f"{prefix}.ticks", 4)
    records = list(seeded_ticks(12, NUM_RECORDS))
    parts = [records[start : start + NUM_RECORDS // 4] for start in range(0, NUM_RECORDS, NUM_RECORDS // 4)]
    await produce(servers, f"{prefix}.ticks", parts[0])
    quiet = ServiceProcess(tmp_path / "quiet", servers, group="quiet", prefix=prefix).start()
    started.append(quiet)

    def replica(number):
        process = ServiceProcess(
            tmp_path / f"disk-{number}", servers, group="moved", prefix=prefix, instance=f"r{number}",
            USP_IO__SNAPSHOT_STORE="topic", USP_IO__SNAPSHOT_TOPIC=f"{prefix}.snapshots",
        )  # fmt: skip
        started.append(process)
        return process

    # Four snapshots are those of the beginning; it dies in the middle of one that has states.
    first = replica(1).start(crash_at="snapshot.before_commit:6")
    first.wait_ready(holding=4)
    if first.alive:
        await produce(servers, f"{prefix}.ticks", parts[1])
        parts[1] = []
    assert first.process.wait(180) == -9, first.tail()
    second = replica(2).start()
    assert second.wait_ready(holding=4), second.tail()
    await produce(servers, f"{prefix}.ticks", parts[1])

    async def all_have_states():
        return all(rows for _, rows in (await states_in_topic(servers, second)).values())

    await until(all_have_states)
    await produce(servers, f"{prefix}.ticks", parts[2], per_second=1_500)
    second.kill()
    third = replica(3).start()
    await produce(servers, f"{prefix}.ticks", parts[3])
    assert third.wait_ready(holding=4), third.tail()
    assert all(event["symbols"] > 0 for event in third.events("partition_restored")), third.tail()
    for process in (quiet, third):
        await wait_answered(servers, process)
        assert process.stop() == 0, process.tail()

    assert not any((tmp_path / f"disk-{number}" / "snapshots").exists() for number in (1, 2, 3))
    expected, found = await outputs(servers, quiet), await outputs(servers, third)
    answered = sum(map(len, expected["PREDICTIONS"].values())) + sum(map(len, expected["DEAD_LETTERS"].values()))
    assert answered == NUM_RECORDS
    assert comparable(found) == comparable(expected)
    states, quiet_states = await states_in_topic(servers, third), final_states(tmp_path / "quiet")
    assert {p: offset for p, (offset, _) in states.items()} == {p: offset for p, (offset, _) in quiet_states.items()}
    different = [s for p, (_, rows) in states.items() for s, bits in quiet_states[p][1].items() if rows.get(s) != bits]
    assert not different, f"{len(different)} states differ"
    assert states == quiet_states
