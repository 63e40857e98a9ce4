"""The headline: a daemon killed again and again answers exactly what an undisturbed one answers.

``USP_CHAOS=full`` (``make chaos``) kills at 20 random moments and at every named point; otherwise a short form runs.
"""

import asyncio
import random
import signal
import time

import pytest
from service_process import (
    FULL,
    NUM_PARTITIONS,
    assert_as_undisturbed,
    create_topics,
    produce,
    seeded_ticks,
    wait_answered,
)

NUM_RECORDS = 40_000 if FULL else 4_000
RANDOM_KILLS = 20 if FULL else 2
POINTS = (
    "takeover.fenced", "begin.snapshot_written", "restore.loaded", "restore.imported", "replay.caught_up",
    "commit.before:3", "commit.after:3", "snapshot.temp_opened:5", "snapshot.half_written:5",
    "snapshot.before_fsync:5", "snapshot.before_rename:5", "snapshot.before_directory_fsync:5", "snapshot.after:5",
    "transaction.begun:4", "transaction.offsets_sent:4", "transaction.records_sent:4", "transaction.committed:4",
    "revoke.begun", "revoke.committed", "revoke.snapshot_written",
)  # fmt: skip
SHORT_POINTS = ("transaction.records_sent:4", "snapshot.before_rename:5", "revoke.committed")
# A point that is not passed in this time is a test that proves nothing.
POINT_TIMEOUT_S = 120.0

pytestmark = [pytest.mark.kafka, pytest.mark.slow]


async def test_killed_anywhere_the_answers_are_those_of_an_undisturbed_run(
    kafka_bootstrap_servers, topic_name, make_replica
):
    servers, prefix, rng = kafka_bootstrap_servers, topic_name("chaos"), random.Random(7)
    topic = f"{prefix}.ticks"
    await create_topics(servers, prefix, ("quiet", "killed"))
    records = list(seeded_ticks(11, NUM_RECORDS))

    def next_records(count):
        taken, records[:count] = records[:count], []
        return taken

    await produce(servers, topic, next_records(NUM_RECORDS // 4))
    killed = make_replica(servers, group="killed", prefix=prefix, USP_IO__SNAPSHOT_INTERVAL_S=1.0)
    points = POINTS if FULL else SHORT_POINTS
    for point in points:
        killed.start(crash_at=point)
        await feed_until_dead(servers, topic, killed, point, next_records, NUM_RECORDS // (4 * len(points)))
    share = NUM_RECORDS // (4 * RANDOM_KILLS)
    for _ in range(RANDOM_KILLS):
        killed.start()
        if rng.random() < 0.7:
            await killed.wait_ready(holding=NUM_PARTITIONS)
        await produce(servers, topic, next_records(share), per_second=3_000)
        await asyncio.sleep(rng.uniform(0.0, 0.3))
        killed.kill()
    killed.start()
    await produce(servers, topic, next_records(NUM_RECORDS))
    await wait_answered(servers, killed)
    assert await killed.stop() == 0, killed.tail()
    answered = await assert_as_undisturbed(servers, killed, make_replica(servers, group="quiet", prefix=prefix))
    assert answered == NUM_RECORDS
    print(f"{len(points)} kills at points, {RANDOM_KILLS} at random, {answered} records, 0 differences")


async def feed_until_dead(servers, topic, killed, point, next_records, num_records):
    """Little by little, so that there is something to commit and to write a snapshot of until the point is passed."""
    deadline = time.monotonic() + POINT_TIMEOUT_S
    await killed.wait_ready(holding=NUM_PARTITIONS)
    step = max(1, num_records // 30)
    while killed.alive:
        await produce(servers, topic, next_records(min(step, num_records)))
        num_records -= min(step, num_records)
        if point.startswith("revoke.") and killed.alive:
            killed.process.send_signal(signal.SIGTERM)
        await asyncio.sleep(0.2)
        assert time.monotonic() < deadline, f"{point} was not passed\n{killed.tail()}"
    assert killed.process.returncode == -signal.SIGKILL, f"{point}\n{killed.tail()}"
