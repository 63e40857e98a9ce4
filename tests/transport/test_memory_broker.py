"""What the broker in memory does over time, under a loop whose clock jumps to the next thing that is due."""

import asyncio
import functools
import selectors

import pytest

from group_worlds import Listener
from usp_daemon.config import Kafka
from usp_daemon.transport import FAULT_POINTS, AbstractFaults, MemoryBroker, MemoryTransport
from usp_daemon.wire import (
    EncodedRecords,
    FencedError,
    OffsetOutOfRangeError,
    OutcomeUnknownError,
    OutputBatch,
    TopicPartition,
    TransportError,
)

P0 = TopicPartition("ticks", 0)
NOTHING = EncodedRecords((), (), ())


class JumpingLoop(asyncio.SelectorEventLoop):
    """Never waits: the clock goes on to the next timer whenever nothing is ready."""

    def __init__(self):
        self._now = 0.0
        super().__init__(_NoWaiting(self))

    def time(self):
        return self._now


class _NoWaiting(selectors.SelectSelector):
    def __init__(self, loop):
        super().__init__()
        self._loop = loop

    def select(self, timeout=None):
        ready = super().select(0)
        if timeout is None and not ready:
            raise RuntimeError("nothing will ever happen")
        if timeout and not ready:
            self._loop._now += timeout
        return ready


def virtual(test):
    """Run a coroutine function as a test under a loop of its own."""

    @functools.wraps(test)
    def run(**arguments):
        with asyncio.Runner(loop_factory=JumpingLoop) as runner:
            runner.run(test(**arguments))

    return run


class Faults(AbstractFaults):
    """Does at each point what a test says, and remembers where it was asked."""

    def __init__(self):
        self.actions = {}
        self.seen = []

    async def at(self, point, transport, partition):
        self.seen.append(point)
        action = self.actions.get(point)
        if isinstance(action, float):
            await asyncio.sleep(action)
        elif action is not None:
            raise action


def now():
    return asyncio.get_running_loop().time()


def batch(position, *values):
    origins = [("ticks", 0, position - len(values) + i) for i in range(len(values))]
    return OutputBatch(EncodedRecords([None] * len(values), values, origins), NOTHING, NOTHING, {P0: position})


def transport(broker, *, faults=None, guarantee="exactly_once", **options):
    return MemoryTransport(broker, Kafka(**{"group_instance_id": ""} | options), guarantee=guarantee, faults=faults)


async def member(broker, **options):
    made = transport(broker, **options)
    await made.prepare()
    listener = Listener()
    consumer = made.consumer(listener)
    await consumer.open()
    return made, consumer, listener


def predictions(broker):
    return [record.value for record in broker.read_committed("predictions", 0)]


async def reach(condition_fn, limit_s=600.0):
    async with asyncio.timeout(limit_s):
        while not condition_fn():
            await asyncio.sleep(0.01)


@virtual
async def test_a_member_that_falls_silent_loses_its_partitions_after_its_session():
    broker = MemoryBroker()
    frozen, _, first = await member(broker)
    await reach(lambda: len(first.held) == 4)
    frozen.freeze()
    began = now()
    _, heir, second = await member(broker)
    await reach(lambda: len(second.held) == 4)
    assert 42.0 <= now() - began <= 45.1, "the session lasts 45 s from the last heartbeat, at most 3 s ago"
    assert len(first.held) == 4, "the zombie knows nothing"
    await heir.close()


@virtual
async def test_a_zombie_comes_back_is_fenced_and_joins_again():
    broker = MemoryBroker()
    zombie, consumer, first = await member(broker)
    await reach(lambda: len(first.held) == 4)
    writer = zombie.writer(P0)
    await writer.open()
    await writer.publish(batch(1, b"0"))
    zombie.freeze()
    late = asyncio.create_task(writer.publish(batch(2, b"zombie")))
    heir, heirs_consumer, second = await member(broker)
    await reach(lambda: len(second.held) == 4)
    heirs_writer = heir.writer(P0)
    await heirs_writer.open()
    assert await heirs_consumer.committed(P0) == 1
    await heirs_writer.publish(batch(2, b"1"))
    zombie.thaw()
    with pytest.raises(FencedError):
        await late
    await reach(lambda: len(first.held) == len(second.held) == 2)
    assert ("revoked", frozenset(TopicPartition("ticks", n) for n in range(4))) in first.events
    assert predictions(broker) == [b"0", b"1"]
    await consumer.close()
    await heirs_consumer.close()


@virtual
async def test_a_killed_member_says_nothing_and_its_session_runs_out():
    broker = MemoryBroker()
    before = asyncio.all_tasks()
    dead, _, first = await member(broker, guarantee="at_least_once")
    await reach(lambda: len(first.held) == 4)
    writer = dead.writer(P0)
    await writer.open()
    await writer.publish(batch(1, b"p"))
    await dead.kill()
    assert asyncio.all_tasks() == before
    began = now()
    _, heir, second = await member(broker, guarantee="at_least_once")
    await reach(lambda: len(second.held) == 4)
    assert 40.0 <= now() - began <= 45.1
    assert await heir.committed(P0) is None, "its pending commit died with it"
    await heir.close()


@virtual
async def test_an_open_transaction_hides_what_follows_until_it_times_out():
    broker = MemoryBroker()
    faults = Faults()
    dead = transport(broker, faults=faults)
    await dead.prepare()
    writer = dead.writer(P0)
    await writer.open()
    faults.actions["publish.commit"] = ConnectionError("died")
    with pytest.raises(OutcomeUnknownError):
        await writer.publish(batch(1, b"dead"))
    broker.produce("predictions", 0, None, b"behind")
    assert predictions(broker) == []
    assert [record.value for record in broker.read_uncommitted("predictions", 0)] == [b"dead", b"behind"]
    began = now()
    await reach(lambda: predictions(broker) == [b"behind"])
    assert 29.9 <= now() - began <= 30.1
    with pytest.raises(OutcomeUnknownError):
        await writer.publish(batch(1, b"again"))


@virtual
async def test_the_next_owner_aborts_what_was_left_open_at_once():
    broker = MemoryBroker()
    faults = Faults()
    dead, heir = transport(broker, faults=faults), transport(broker)
    await dead.prepare()
    left, following = dead.writer(P0), heir.writer(P0)
    await left.open()
    faults.actions["publish.commit"] = ConnectionError("died")
    with pytest.raises(OutcomeUnknownError):
        await left.publish(batch(1, b"dead"))
    began = now()
    await following.open()
    await following.publish(batch(1, b"alive"))
    assert now() == began
    assert predictions(broker) == [b"alive"]


@virtual
async def test_the_committed_offset_waits_for_a_transaction_in_doubt():
    broker = MemoryBroker(marker_delay_s=5.0)
    made, consumer, listener = await member(broker)
    await reach(lambda: listener.held)
    writer = made.writer(P0)
    await writer.open()
    publishing = asyncio.create_task(writer.publish(batch(3, b"p")))
    await reach(lambda: broker.read_uncommitted("predictions", 0))
    began = now()
    assert await consumer.committed(P0) == 3
    assert 4.9 <= now() - began <= 5.1
    await publishing
    assert writer.committed == 3
    await consumer.close()


@virtual
async def test_doubt_that_lasts_beyond_the_request_is_said():
    broker = MemoryBroker()
    faults = Faults()
    made, consumer, listener = await member(broker, faults=faults, transaction_timeout_ms=60_000)
    await reach(lambda: listener.held)
    writer = made.writer(P0)
    await writer.open()
    faults.actions["publish.commit"] = ConnectionError("died")
    with pytest.raises(OutcomeUnknownError):
        await writer.publish(batch(1, b"p"))
    began = now()
    with pytest.raises(OutcomeUnknownError):
        await consumer.committed(P0)
    assert now() - began == pytest.approx(20.0, abs=0.1)
    await writer.open()
    assert await consumer.committed(P0) is None
    await consumer.close()


@pytest.mark.parametrize(
    ("point", "applied"),
    [
        ("publish.begin", False),
        ("publish.offsets", False),
        ("publish.records", False),
        ("publish.commit", False),
        ("publish.committed", True),
    ],
)
@virtual
async def test_a_fault_anywhere_in_a_publication_is_told_by_the_committed_offset(point, applied):
    broker = MemoryBroker()
    faults = Faults()
    made, consumer, listener = await member(broker, faults=faults)
    await reach(lambda: listener.held)
    writer = made.writer(P0)
    await writer.open()
    await writer.publish(batch(1, b"0"))
    faults.actions[point] = ConnectionError("lost")
    with pytest.raises(OutcomeUnknownError):
        await writer.publish(batch(2, b"1"))
    assert point in faults.seen
    faults.actions.clear()
    with pytest.raises(OutcomeUnknownError):  # spent until it is opened anew
        await writer.publish(batch(2, b"1"))
    await writer.open()
    assert await consumer.committed(P0) == (2 if applied else 1)
    if not applied:
        await writer.publish(batch(2, b"1"))
    assert predictions(broker) == [b"0", b"1"]
    await consumer.close()


@pytest.mark.parametrize("point", ["open", "opened"])
@virtual
async def test_a_fault_while_opening_can_be_tried_again(point):
    broker = MemoryBroker()
    faults = Faults()
    made = transport(broker, faults=faults)
    await made.prepare()
    faults.actions[point] = ConnectionError("lost")
    writer = made.writer(P0)
    with pytest.raises(OutcomeUnknownError):
        await writer.open()
    faults.actions.clear()
    await writer.open()
    await writer.publish(batch(1, b"p"))
    assert predictions(broker) == [b"p"]


@virtual
async def test_polls_survive_lost_connections_and_slow_brokers():
    broker = MemoryBroker()
    faults = Faults()
    _, consumer, listener = await member(broker, faults=faults)
    await reach(lambda: listener.held)
    broker.produce("ticks", 0, None, b"x")
    consumer.seek(P0, 0)
    faults.actions["poll"] = ConnectionError("lost")
    began = now()
    assert await consumer.poll(1.0, 10) == []
    assert now() - began == pytest.approx(1.0, abs=0.01)
    faults.actions["poll"] = 2.0
    (found,) = await consumer.poll(1.0, 10)
    assert found.values == [b"x"]
    await consumer.close()


@virtual
async def test_a_lost_connection_delays_joining_and_heartbeats_only():
    broker = MemoryBroker()
    faults = Faults()
    faults.actions["join"] = ConnectionError("lost")
    _, consumer, listener = await member(broker, faults=faults)
    await asyncio.sleep(10.0)
    assert not listener.events
    faults.actions = {"heartbeat": ConnectionError("lost")}
    await reach(lambda: listener.held)
    await asyncio.sleep(40.0)  # less than the session
    faults.actions.clear()
    await asyncio.sleep(100.0)
    assert [kind for kind, _ in listener.events] == ["assigned"]
    await consumer.close()


@virtual
async def test_a_slow_revocation_holds_the_rebalance_up_and_no_longer_than_its_time():
    broker = MemoryBroker()
    _, slow, first = await member(broker)
    await reach(lambda: len(first.held) == 4)

    async def dawdle(partitions):
        first.on_revoke_fn = None
        await asyncio.sleep(100.0)

    first.on_revoke_fn = dawdle
    began = now()
    _, quick, second = await member(broker)
    await reach(lambda: len(second.held) == 4)
    assert 60.0 <= now() - began <= 60.1, "its heartbeats go on, and the time of the rebalance is what counts"
    await reach(lambda: len(first.held) == len(second.held) == 2)
    await slow.close()
    await quick.close()


@virtual
async def test_retention_is_noticed_in_the_middle_of_reading():
    broker = MemoryBroker()
    _, consumer, listener = await member(broker)
    await reach(lambda: listener.held)
    for i in range(10):
        broker.produce("ticks", 0, None, b"%d" % i)
    consumer.seek(P0, 0)
    (found,) = await consumer.poll(1.0, 3)
    assert list(found.offsets) == [0, 1, 2]
    broker.delete_before("ticks", 0, 8)
    with pytest.raises(OffsetOutOfRangeError) as caught:
        await consumer.poll(1.0, 3)
    assert (caught.value.partition, caught.value.position) == (P0, 3)
    assert await consumer.bounds(P0) == (8, 10)
    await consumer.close()


@virtual
async def test_positions_pass_markers_and_aborted_records():
    broker = MemoryBroker()
    faults = Faults()
    _, consumer, listener = await member(broker)
    await reach(lambda: listener.held)
    upstream = transport(broker, faults=faults, group="upstream", input_topic="origin", predictions_topic="ticks")
    await upstream.prepare()
    writer = upstream.writer(TopicPartition("origin", 0))
    await writer.open()

    def results(value):
        return OutputBatch(EncodedRecords([None], [value], [("origin", 0, 0)]), NOTHING, NOTHING, {})

    await writer.publish(results(b"a"))  # offset 0, marker 1
    faults.actions["publish.commit"] = ConnectionError("lost")
    with pytest.raises(OutcomeUnknownError):
        await writer.publish(results(b"aborted"))  # offset 2
    faults.actions.clear()
    consumer.seek(P0, 0)
    (found,) = await consumer.poll(1.0, 10)
    assert list(found.offsets) == [0]
    assert consumer.position(P0) == 2 == consumer.end_offset(P0), "the end of what is stable"
    await writer.open()  # marker 3
    await writer.publish(results(b"b"))  # offset 4, marker 5
    (found,) = await consumer.poll(1.0, 10)
    assert (list(found.offsets), found.values) == ([4], [b"b"])
    assert consumer.position(P0) == 6
    await consumer.close()


@virtual
async def test_commits_come_at_their_own_pace_at_least_once():
    broker = MemoryBroker()
    faults = Faults()
    made, consumer, listener = await member(broker, faults=faults, guarantee="at_least_once")
    await reach(lambda: listener.held)
    writer = made.writer(P0)
    await writer.open()
    for position in range(1, 11):
        await writer.publish(batch(position, b"%d" % position))
        await asyncio.sleep(0.01)
    assert faults.seen.count("commit") <= 1, "ten batches in one interval of 100 ms"
    assert len(predictions(broker)) == 10
    await asyncio.sleep(0.2)
    assert writer.committed == 10 == await consumer.committed(P0)
    await consumer.close()


@virtual
async def test_a_former_members_commits_are_refused():
    broker = MemoryBroker()
    made, consumer, listener = await member(broker, guarantee="at_least_once")
    await reach(lambda: listener.held)
    writer = made.writer(P0)
    await writer.open()
    made.freeze()
    _, heir, second = await member(broker, guarantee="at_least_once")
    await reach(lambda: len(second.held) == 4)
    publishing = asyncio.create_task(writer.publish(batch(1, b"late")))
    consumer._task.cancel()  # it learns nothing of the group before it commits
    made.thaw()
    await publishing
    await asyncio.sleep(1.0)
    with pytest.raises(FencedError):
        await writer.publish(batch(2, b"later"))
    assert await heir.committed(P0) is None
    await consumer.close()
    await heir.close()


@virtual
async def test_history_is_the_same_every_time():
    async def run():
        broker = MemoryBroker(marker_delay_s=0.003)
        faults = Faults()
        history = []
        made, one, first = await member(broker, faults=faults)
        _, two, second = await member(broker)
        await reach(lambda: len(first.held) == len(second.held) == 2)
        for partition in sorted(first.held):
            one.seek(partition, 0)
            for i in range(20):
                broker.produce(*partition, None, b"%d" % i)
        writer = made.writer(sorted(first.held)[0])
        await writer.open()
        for _ in range(6):
            for found in await one.poll(0.5, 7):
                history.append((now(), found.partition, tuple(found.offsets)))
        await two.close()
        await reach(lambda: len(first.held) == 4)
        history.append((now(), tuple(faults.seen)))
        await one.close()
        return history

    began = now()
    one = await run()
    shift = now()
    two = await run()
    assert [entry[1:] for entry in one] == [entry[1:] for entry in two]
    assert [entry[0] - began for entry in one] == pytest.approx([entry[0] - shift for entry in two])


@virtual
async def test_partitions_that_do_not_suffice_are_refused():
    broker = MemoryBroker()
    broker.create_topic("ticks", 3)
    broker.create_topic("alarms", 2)
    with pytest.raises(TransportError, match="'alarms' has 2 partitions"):
        await transport(broker).prepare()
    with pytest.raises(TransportError, match="no topic 'nothing'"):
        await transport(broker, predictions_topic="nothing", create_topics=False).prepare()


@virtual
async def test_every_point_is_reached():
    broker = MemoryBroker()
    faults = Faults()
    made, consumer, listener = await member(broker, faults=faults)
    await reach(lambda: listener.held)
    await consumer.poll(5.0, 1)
    await consumer.bounds(P0)
    await consumer.committed(P0)
    writer = made.writer(P0)
    await writer.open()
    await writer.publish(batch(1, b"p"))
    direct, direct_consumer, direct_listener = await member(broker, faults=faults, guarantee="at_least_once", group="g")
    await reach(lambda: direct_listener.held)
    writer = direct.writer(P0)
    await writer.open()
    await writer.publish(batch(1, b"p"))
    await writer.close()
    await consumer.close()
    await direct_consumer.close()
    assert set(faults.seen) == set(FAULT_POINTS)
