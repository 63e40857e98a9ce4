"""Replicas come and go under load: partitions move with their state, and never have two owners."""

import asyncio
import contextlib
import itertools

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

CYCLES = 4 if FULL else 1
PER_SECOND = 250
MOST_RECORDS = 1_000_000

pytestmark = [pytest.mark.kafka, pytest.mark.slow]


class OwnershipWatch:
    """Looks, as often as it can, for a partition that two replicas call RUNNING at the same time.

    Two scrapes are never of the same moment. A partition counts as owned twice only if the first replica had it both
    before and after the second one was asked.
    """

    def __init__(self, replicas):
        self._replicas = replicas
        self.num_looks = 0
        self.doubles = []

    async def run(self):
        """Until cancelled."""
        while True:
            for one, other in (self._replicas, self._replicas[::-1]):
                before = await one.running()
                between = await other.running()
                after = await one.running()
                if found := before & between & after:
                    self.doubles.append((one.name, other.name, found))
            self.num_looks += 1
            await asyncio.sleep(0.02)


async def test_partitions_move_under_load_with_their_state(kafka_bootstrap_servers, topic_name, make_replica):
    servers, prefix = kafka_bootstrap_servers, topic_name("rebalance")
    await create_topics(servers, prefix, ("quiet", "moving"))
    moved = asyncio.Event()
    # The load lasts as long as the moves do, however slow the machine is.
    records = itertools.takewhile(lambda record: not moved.is_set(), seeded_ticks(31, MOST_RECORDS))
    first = make_replica(servers, group="moving", prefix=prefix, instance="r0").start()
    await first.wait_ready(holding=NUM_PARTITIONS)
    second = make_replica(servers, group="moving", prefix=prefix, instance="r1")
    watch = OwnershipWatch((first, second))
    load = asyncio.create_task(produce(servers, f"{prefix}.ticks", records, per_second=PER_SECOND))
    watching = asyncio.create_task(watch.run())
    moves = 0
    try:
        for _ in range(CYCLES):
            for leave_in_order in (True, False):
                await asyncio.sleep(1.0)
                second.start()
                await second.wait_ready(holding=NUM_PARTITIONS // 2)
                await first.wait_ready(holding=NUM_PARTITIONS // 2)
                # Half-way between two snapshots, so that who takes over from a killed one has something to replay.
                await asyncio.sleep(3.0)
                if leave_in_order:
                    assert await second.stop() == 0, second.tail()
                else:
                    second.kill()
                await first.wait_ready(holding=NUM_PARTITIONS)
                moves += NUM_PARTITIONS
        assert not load.done()
        moved.set()
        await load
    finally:
        for task in (load, watching):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
    await wait_answered(servers, first)
    assert await first.stop() == 0, first.tail()
    assert watch.doubles == []
    restored = [event for replica in (first, second) for event in replica.events("partition_restored")]
    carried = [event for event in restored if event["symbols"] > 0]
    # Whoever leaves in order leaves a snapshot exactly where it stopped: nothing has to be replayed.
    exact = [event for event in carried if event["snapshot_offset"] == event["committed_offset"]]
    assert len(carried) >= moves
    assert len(carried) > len(exact) >= moves // 2
    answered = await assert_as_undisturbed(servers, first, make_replica(servers, group="quiet", prefix=prefix))
    assert answered > 10 * PER_SECOND
    print(
        f"{4 * CYCLES} moves of {NUM_PARTITIONS // 2} partitions, {len(carried)} restored with state, {len(exact)} "
        f"without replay, {watch.num_looks} looks at who owns what, {answered} records, 0 differ"
    )
