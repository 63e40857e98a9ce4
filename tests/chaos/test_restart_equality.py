"""The headline: a daemon killed again and again answers exactly what an undisturbed one answers.

``USP_CHAOS=full`` (``make chaos``) kills at 20 random moments and at every named point; otherwise a short form runs.
"""

import os
import random

import pytest
from service_process import (
    ServiceProcess,
    comparable,
    final_states,
    outputs,
    produce,
    seeded_ticks,
    wait_answered,
)

from kafka_broker.clients import create_topic

FULL = os.environ.get("USP_CHAOS") == "full"
NUM_RECORDS = 40_000 if FULL else 4_000
RANDOM_KILLS = 20 if FULL else 2
POINTS = (
    "takeover.fenced", "begin.snapshot_written", "restore.loaded", "restore.imported", "replay.caught_up",
    "commit.before:3", "commit.after:3", "snapshot.temp_opened:6", "snapshot.half_written:6", "snapshot.before_fsync:6",
    "snapshot.before_rename:6", "snapshot.before_directory_fsync:6", "snapshot.after:6", "transaction.begun:4",
    "transaction.offsets_sent:4", "transaction.records_sent:4", "transaction.committed:4",
)  # fmt: skip
SHORT_POINTS = ("transaction.records_sent:4", "snapshot.before_rename:6")

pytestmark = [pytest.mark.kafka, pytest.mark.slow]


async def test_killed_anywhere_the_answers_are_those_of_an_undisturbed_run(
    kafka_bootstrap_servers, topic_name, tmp_path
):
    servers, prefix, rng = kafka_bootstrap_servers, topic_name("chaos"), random.Random(7)
    await create_topic(servers, f"{prefix}.ticks", 4)
    records = list(seeded_ticks(11, NUM_RECORDS))
    first, second = records[: NUM_RECORDS // 2], records[NUM_RECORDS // 2 :]
    await produce(servers, f"{prefix}.ticks", first)

    undisturbed = ServiceProcess(tmp_path / "quiet", servers, group="quiet", prefix=prefix).start()
    assert undisturbed.wait_ready(holding=4)
    killed = ServiceProcess(tmp_path / "killed", servers, group="killed", prefix=prefix)
    crashes = 0
    for point in POINTS if FULL else SHORT_POINTS:
        killed.start(crash_at=point)
        # Either it dies on its way up, or at work; a point that it does not pass in time is a test that proves nothing.
        killed.wait_ready(holding=4)
        if killed.alive:
            await produce(servers, f"{prefix}.ticks", second[:200])
            second = second[200:]
        killed.process.wait(180)
        crashes += 1
    for _ in range(RANDOM_KILLS):
        killed.start()
        if rng.random() < 0.7:
            killed.wait_ready(holding=4)
        share = second[: max(1, len(second) // (2 * RANDOM_KILLS))]
        second = second[len(share) :]
        await produce(servers, f"{prefix}.ticks", share, per_second=3_000)
        killed.kill()
        crashes += 1
    killed.start()
    await produce(servers, f"{prefix}.ticks", second)
    await wait_answered(servers, undisturbed)
    await wait_answered(servers, killed)
    assert killed.stop() == 0, killed.tail()
    assert undisturbed.stop() == 0, undisturbed.tail()

    quiet, disturbed = await outputs(servers, undisturbed), await outputs(servers, killed)
    answered = sum(map(len, quiet["PREDICTIONS"].values())) + sum(map(len, quiet["DEAD_LETTERS"].values()))
    assert answered == NUM_RECORDS
    assert sum(map(len, quiet["ALARMS"].values())) > 0
    assert comparable(disturbed) == comparable(quiet)
    assert final_states(tmp_path / "killed") == final_states(tmp_path / "quiet")
    print(f"{crashes} crashes, {answered} records, 0 differences")
