"""The broker dies, is away, stalls, is slow and cuts connections: afterwards everything is answered, once.

``USP_CHAOS=full`` lets it be away for half a minute and repeats the proxy's faults.
"""

import asyncio
import contextlib
import time

import pytest
from service_process import (
    FULL,
    NUM_PARTITIONS,
    assert_as_undisturbed,
    committed_offsets,
    create_topics,
    produce,
    seeded_ticks,
    wait_answered,
)

from kafka_broker import Fault, Proxy

# Both longer than the session, which is 6 s.
AWAY_S = (8.0, 30.0) if FULL else (8.0,)
NUM_RECORDS = 20_000 if FULL else 3_000
ROUNDS = 5 if FULL else 1
SHUTDOWN_TIMEOUT_S = 10.0
# Threads and the interpreter still have to end.
SHUTDOWN_GRACE_S = 3.0
LEFT_TO_RECOVERY = 75

pytestmark = [pytest.mark.kafka, pytest.mark.slow]


@pytest.mark.parametrize("away_s", AWAY_S)
async def test_broker_killed_under_load_and_away(own_broker, topic_name, make_replica, away_s):
    servers, prefix = own_broker.bootstrap_servers, topic_name("broker")
    topic = f"{prefix}.ticks"
    await create_topics(servers, prefix, ("quiet", "patient"))
    records = list(seeded_ticks(41, NUM_RECORDS))
    half = NUM_RECORDS // 2
    replica = make_replica(servers, group="patient", prefix=prefix).start()
    await replica.wait_ready(holding=NUM_PARTITIONS)
    await produce(servers, topic, records[:half])
    await asyncio.to_thread(own_broker.kill)
    began = time.monotonic()
    assert replica.alive
    await asyncio.sleep(away_s)
    assert replica.alive, replica.tail()
    live = await asyncio.to_thread(replica.http, "/livez")
    assert live is not None and live[0] == 200, live  # a broker that is away is no reason to restart the replica
    await asyncio.to_thread(own_broker.start)
    gone_s = time.monotonic() - began
    back = time.monotonic()
    await produce(servers, topic, records[half:])
    await wait_answered(servers, replica)
    recovered_s = time.monotonic() - back
    await replica.wait_ready(60.0, holding=NUM_PARTITIONS)
    assert await replica.stop() == 0, replica.tail()
    answered = await assert_as_undisturbed(servers, replica, make_replica(servers, group="quiet", prefix=prefix))
    assert answered == NUM_RECORDS
    print(f"away for {gone_s:.1f} s, all answered {recovered_s:.1f} s after, {answered} records, 0 differ")


async def test_connections_stall_are_slow_are_reset_and_refused(own_broker, topic_name, make_replica):
    servers, prefix = own_broker.bootstrap_servers, topic_name("proxy")
    await create_topics(servers, prefix, ("quiet", "proxied"))
    records = list(seeded_ticks(43, NUM_RECORDS))
    async with Proxy(own_broker.proxy_routes) as proxy:
        replica = make_replica(own_broker.listeners["PROXIED"], group="proxied", prefix=prefix).start()
        await replica.wait_ready(holding=NUM_PARTITIONS)
        load = asyncio.create_task(produce(servers, f"{prefix}.ticks", records, per_second=NUM_RECORDS / (30 * ROUNDS)))
        try:
            for _ in range(ROUNDS):
                for _ in range(3):
                    await asyncio.sleep(1.0)
                    await proxy.reset()
                proxy.delay_s = 0.2
                await asyncio.sleep(4.0)
                proxy.delay_s = 0.0
                await stalled(proxy, Fault.STALL, 3.0)
                await stalled(proxy, Fault.STALL, 8.0)  # the session runs out
                await stalled(proxy, Fault.DROP, 3.0)
                proxy.fault = Fault.REFUSE
                await proxy.cut()
                await asyncio.sleep(3.0)
                proxy.fault = Fault.NONE
                assert replica.alive, replica.tail()
            await load
        finally:
            load.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await load
        assert proxy.num_accepted > 20
        await wait_answered(servers, replica)
        await replica.wait_ready(60.0, holding=NUM_PARTITIONS)
        assert await replica.stop() == 0, replica.tail()
        num_accepted = proxy.num_accepted
    answered = await assert_as_undisturbed(servers, replica, make_replica(servers, group="quiet", prefix=prefix))
    assert answered == NUM_RECORDS
    print(f"{ROUNDS} rounds of faults, {num_accepted} connections, {answered} records, 0 differ")


async def stalled(proxy, fault, seconds):
    """One fault and its end. A connection that has lost bytes in its middle is of no more use, so it is reset."""
    proxy.fault = fault
    await asyncio.sleep(seconds)
    if fault is Fault.DROP:
        await proxy.reset()
    proxy.fault = Fault.NONE
    await asyncio.sleep(1.0)


@pytest.mark.parametrize("is_something_left", [True, False], ids=["answers left", "nothing left"])
async def test_shutdown_while_the_broker_is_away(own_broker, topic_name, make_replica, is_something_left):
    servers, prefix = own_broker.bootstrap_servers, topic_name("leaving")
    topic = f"{prefix}.ticks"
    await create_topics(servers, prefix, ("quiet", "leaving"))
    records = list(seeded_ticks(47, 3_000))
    # Answers that wait for a commit so far ahead are there when the broker goes.
    replica = make_replica(
        servers, group="leaving", prefix=prefix, USP_SERVICE__SHUTDOWN_TIMEOUT_S=SHUTDOWN_TIMEOUT_S,
        USP_DELIVERY__COMMIT_INTERVAL_MS=5_000 if is_something_left else 100, USP_KAFKA__TRANSACTION_TIMEOUT_MS=20_000,
    ).start()  # fmt: skip
    await replica.wait_ready(holding=NUM_PARTITIONS)
    await produce(servers, topic, records[:1_500])
    if is_something_left:
        while await replica.metric("usp_records_consumed_total") < 1_500:
            await asyncio.sleep(0.05)
        before = await committed_offsets(servers, "leaving", topic)
        assert sum(before) < 1_500
    else:
        await wait_answered(servers, replica)
        before = None
    await asyncio.to_thread(own_broker.kill)
    began = time.monotonic()
    code = await replica.stop(SHUTDOWN_TIMEOUT_S + 30.0)
    seconds = time.monotonic() - began
    assert seconds < SHUTDOWN_TIMEOUT_S + SHUTDOWN_GRACE_S
    assert code == (LEFT_TO_RECOVERY if is_something_left else 0), replica.tail()
    await asyncio.to_thread(own_broker.start)
    if before is not None:
        # aiokafka takes "I am still loading the group" for "no offset is committed".
        while None in (after := await committed_offsets(servers, "leaving", topic)):
            await asyncio.sleep(0.1)
        assert after == before
    await produce(servers, topic, records[1_500:])
    replica.start()
    await wait_answered(servers, replica)
    assert await replica.stop() == 0, replica.tail()
    answered = await assert_as_undisturbed(servers, replica, make_replica(servers, group="quiet", prefix=prefix))
    assert answered == len(records)
    print(f"ended with {code} after {seconds:.1f} s without a broker, {answered} records, 0 differ")
