"""A replica that was suspended past its session wakes up and believes that it still owns its partitions.

At rest, inside an open transaction, and between a commit and what follows it: the other replica takes over, and what
the zombie then does must leave no trace. ``USP_CHAOS=full`` adds the rarer points.
"""

import asyncio
import time

import pytest
from service_process import (
    FULL,
    NUM_PARTITIONS,
    ChaosTimeoutError,
    assert_as_undisturbed,
    create_topics,
    produce,
    seeded_ticks,
    wait_answered,
)

NUM_RECORDS = 12_000 if FULL else 2_000
AT_REST = "at rest"
SHORT_POINTS = (AT_REST, "transaction.records_sent:2")
POINTS = (
    *SHORT_POINTS, "commit.before:2", "transaction.begun:2", "transaction.offsets_sent:2", "transaction.committed:2",
    "commit.after:2", "snapshot.half_written:2", "snapshot.before_rename:2",
)  # fmt: skip
TAKEOVER_TIMEOUT_S = 90.0
# What README and the help call the end of a replica that another has replaced, or that could not finish.
ALLOWED_CODES = (1, 69, 75)

pytestmark = [pytest.mark.kafka, pytest.mark.slow]


@pytest.mark.parametrize("point", POINTS if FULL else SHORT_POINTS)
async def test_who_wakes_up_after_the_session_leaves_no_trace(kafka_bootstrap_servers, topic_name, make_replica, point):
    servers, prefix = kafka_bootstrap_servers, topic_name("zombie")
    topic = f"{prefix}.ticks"
    await create_topics(servers, prefix, ("quiet", "pair"))
    records = list(seeded_ticks(23, NUM_RECORDS))
    quarter = NUM_RECORDS // 4
    other = make_replica(servers, group="pair", prefix=prefix, instance="r1").start()
    await other.wait_ready(holding=NUM_PARTITIONS)
    # The second one comes when the partitions have begun, so that its own first commits are those of records.
    zombie = make_replica(servers, group="pair", prefix=prefix, instance="r0")
    zombie.start(stop_at="" if point == AT_REST else point)
    await zombie.wait_ready(holding=NUM_PARTITIONS // 2)
    await other.wait_ready(holding=NUM_PARTITIONS // 2)
    owned = await zombie.running()

    await produce(servers, topic, records[:quarter])
    if point == AT_REST:
        await wait_answered(servers, other)
        zombie.pause()
    fed = await feed_until_suspended(servers, topic, zombie, records[quarter : 2 * quarter])
    await produce(servers, topic, records[quarter + fed : 3 * quarter])
    began = time.monotonic()
    assert await other.wait_ready(TAKEOVER_TIMEOUT_S, holding=NUM_PARTITIONS), other.tail()
    takeover_s = time.monotonic() - began
    await wait_answered(servers, other)
    assert zombie.suspended

    zombie.resume()
    await produce(servers, topic, records[3 * quarter :], per_second=2_000)
    rejoined = await zombie.wait_ready(TAKEOVER_TIMEOUT_S, holding=NUM_PARTITIONS // 2)
    if not rejoined:
        assert zombie.process.returncode in ALLOWED_CODES, zombie.tail()
    await wait_answered(servers, other)
    for replica in (zombie, other):
        if replica.alive:
            assert await replica.stop() == 0, replica.tail()
    answered = await assert_as_undisturbed(servers, other, make_replica(servers, group="quiet", prefix=prefix))
    assert answered == NUM_RECORDS
    ending = "rejoined" if rejoined else f"ended with {zombie.process.returncode}"
    print(f"{point}: owned {sorted(owned)}, replaced after {takeover_s:.1f} s, {ending}, {answered} records, 0 differ")


async def feed_until_suspended(servers, topic, zombie, records):
    """Little by little until the replica has stopped itself; returns how many records that took."""
    deadline, fed, step = time.monotonic() + 60.0, 0, max(1, len(records) // 60)
    while not zombie.suspended:
        if time.monotonic() > deadline:
            raise ChaosTimeoutError(f"the point was not passed\n{zombie.tail()}")
        await produce(servers, topic, records[fed : fed + step])
        fed = min(fed + step, len(records))
        await asyncio.sleep(0.2)
    return fed
