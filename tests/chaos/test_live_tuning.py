"""The daemon beside a real broker is asked for a campaign, is killed in the middle of it, and goes on with it."""

import asyncio
import json
import os
import pathlib
import signal
import time

import pytest
from service_process import NUM_PARTITIONS, create_topics, produce, seeded_ticks, wait_answered

pytestmark = [pytest.mark.kafka, pytest.mark.slow, pytest.mark.long]

CONFIG = """
[tuning]
schedule_hours = 0.0
cpu_share = 8.0

[meta_optimization]
default_tier = "fast"
min_gain = 0.0
holdout = 0.25
n_trials = 12
n_startup_trials = 2
batch_size = 4
n_folds = 1
train_ratio = 0.5
max_structures = 1

[security]
min_ticks_between_mutations = 0
"""
TIMEOUT_S = 400.0


def audit(replica):
    """Lines of the log of changes."""
    path = replica.directory / "io" / "mutations.log"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def campaign_processes():
    found = []
    for path in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if b"usp_daemon.campaign_process" in path.read_bytes():
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


async def until(condition, replica):
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        assert replica.alive and time.monotonic() < deadline, replica.tail()
        await asyncio.sleep(0.1)


async def test_a_campaign_ends_with_the_daemon_and_goes_on_with_it(kafka_bootstrap_servers, topic_name, make_replica):
    servers, prefix = kafka_bootstrap_servers, topic_name("tuned")
    topic = f"{prefix}.ticks"
    await create_topics(servers, prefix, ("tuned",))
    replica = make_replica(servers, group="tuned", prefix=prefix, USP_TUNING__MODE="autonomous")
    path = replica.directory / "config" / "config.toml"
    path.parent.mkdir(parents=True)
    path.write_text(CONFIG)
    others = set(campaign_processes())
    replica.start()
    assert await replica.wait_ready(holding=NUM_PARTITIONS), replica.tail()
    records = list(seeded_ticks(11, 8_000))
    await produce(servers, topic, records, per_second=2_000)
    await wait_answered(servers, replica)
    await asyncio.sleep(2.0)  # the recorder writes once a second

    os.kill(replica.process.pid, signal.SIGUSR1)
    await until(lambda: replica.events("tuner_progress"), replica)
    (child,) = set(campaign_processes()) - others
    replica.kill()
    await asyncio.sleep(1.0)
    assert child not in campaign_processes(), "the campaign outlived the daemon"
    replica.start()
    assert await replica.wait_ready(holding=NUM_PARTITIONS), replica.tail()
    await until(lambda: any(line["event"] == "CAMPAIGN_ENDED" for line in audit(replica)), replica)
    started, ended = audit(replica)[:2]
    assert started["event"] == "CAMPAIGN_STARTED" and ended["event"] == "CAMPAIGN_ENDED"
    assert started["reason"].split(",")[0].split()[1] == ended["reason"].split(":")[0].split()[1]
    assert ended["evidence"]["trials"] == 12
    seen = [event["num_trials"] for event in replica.events("tuner_progress")]
    assert seen == sorted(seen) and len(seen) == len(set(seen)), f"trials were evaluated again: {seen}"
    assert await replica.stop() == 0, replica.tail()
    assert not replica.events("tuner_failed") and not replica.events("recorder_failed"), replica.tail()
