"""Random schedules of crashes, zombies, lost connections, rebalances and stops: the output is that of one quiet run."""

import asyncio
import json
import random

import pytest
from replicas import Replica, SharedDisk, expected_output, new_broker, published, seeded_record
from virtual_time import run_virtually

from usp_daemon.wire import TopicPartition

CRASH_POINTS = (
    "takeover.fenced", "begin.snapshot_written", "restore.loaded", "restore.imported", "replay.caught_up",
    "commit.before", "commit.after", "revoke.begun", "revoke.committed", "revoke.snapshot_written",
    "snapshot.before_rename", "snapshot.after", "transport.publish.begin", "transport.publish.offsets",
    "transport.publish.records", "transport.publish.commit", "transport.publish.committed", "transport.open",
    "transport.opened", "transport.committed", "transport.join", "transport.heartbeat", "transport.poll",
    "epoch.appended",
)  # fmt: skip


def edited_settings(rng):
    """An edit of the configuration: always a traced key, sometimes a structural one as well."""
    changes = {"orchestration.cusum_k": round(rng.random(), 3)}
    return changes | ({"kernels.log_sig_depth": rng.choice((2, 3, 4))} if rng.random() < 0.5 else {})


async def schedule(seed: int, *, num_partitions: int = 3, num_records: int = 240) -> dict:
    """One random history; returns what happened, having compared the output."""
    rng = random.Random(seed)
    broker, disk = new_broker(num_partitions), SharedDisk()
    replicas = [Replica(f"r{i}", broker, disk, seed * 10 + i) for i in range(rng.randint(1, 3))]
    kafka = replicas[0].kafka
    for replica in replicas:
        replica.fault_rate = rng.choice((0.0, 0.0, 0.005, 0.02))
        replica.write_failure = rng.choice((0.0, 0.2))
        replica.start()

    async def produce():
        for number in range(num_records):
            partition = rng.randrange(num_partitions)
            value, stamp_ms = seeded_record(rng, partition, number)
            broker.produce("ticks", partition, b"k", value, stamp_ms)
            if rng.random() < 0.3:
                await asyncio.sleep(rng.random() * 0.4)

    producing = asyncio.create_task(produce())
    edits = []
    for _ in range(rng.randint(3, 9)):
        await asyncio.sleep(rng.random() * 6.0)
        replica = rng.choice(replicas)
        if replica.task.done():
            replica.start()
            continue
        action = rng.random()
        if action < 0.2:
            edits.append(asyncio.create_task(replica.propose(**edited_settings(rng))))
        elif action < 0.4:
            await replica.kill()
        elif action < 0.65:
            replica.crash_at[rng.choice(CRASH_POINTS)] = rng.randint(1, 6)
        elif action < 0.8:  # a zombie
            replica.transport.freeze()
            asyncio.get_running_loop().call_later(rng.choice((1.0, 9.0, 20.0)), replica.transport.thaw)
        else:
            await asyncio.wait({asyncio.create_task(replica.stop())}, timeout=30.0)
    await producing
    for edit in edits:
        edit.cancel()
    await asyncio.gather(*edits, return_exceptions=True)
    # The storm is over: whoever is dead comes back, and all of it must be answered.
    for replica in replicas:
        replica.crash_at.clear()
        replica.transport.thaw()
        replica.fault_rate = replica.faults.rate = replica.write_failure = 0.0
        replica.daemon._store.write_failure = 0.0
        if replica.task.done():
            replica.start()
    inputs = [TopicPartition("ticks", p) for p in range(num_partitions)]
    ends = [broker.bounds(partition).end for partition in inputs]
    deadline = asyncio.get_running_loop().time() + 300.0
    while [await broker.committed("g", partition) for partition in inputs] != ends:
        assert asyncio.get_running_loop().time() < deadline, [replica.daemon.unready for replica in replicas]
        await asyncio.sleep(0.5)
    for partition in range(num_partitions):
        assert published(broker, kafka, partition) == await expected_output(
            broker, "ticks", partition, epochs=disk.epochs
        ), partition
    for replica in replicas:
        await asyncio.wait({asyncio.create_task(replica.stop())}, timeout=60.0)
        if not replica.task.done():
            await replica.kill()
    for replica in replicas:
        assert not replica.deaths, replica.deaths
    notes = [await broker.committed_with_note("g", partition) for partition in inputs]
    num_switches = sum(len(json.loads(standing.note)["epochs"]) - 1 for standing in notes)
    points = set().union(*(replica.points_passed for replica in replicas))
    return {"points": points, "replicas": replicas, "num_switches": num_switches}


@pytest.mark.parametrize("seed", range(40))
def test_any_schedule_gives_the_output_of_one_quiet_run(seed):
    run_virtually(schedule(seed))
