"""One suite over every broker: what the service may rely on."""

import asyncio

import pytest

from group_worlds import KafkaWorld, MemoryWorld, read, until
from usp_daemon.wire import MAX_NOTE_BYTES, FencedError, OffsetOutOfRangeError, OutcomeUnknownError


@pytest.fixture(params=["memory", pytest.param("kafka", marks=pytest.mark.kafka)])
async def world(request):
    servers = request.getfixturevalue("kafka_bootstrap_servers") if request.param == "kafka" else ""
    async with KafkaWorld(servers) if servers else MemoryWorld() as world:
        yield world


def values(count, start=0):
    return [b"%d" % i for i in range(start, start + count)]


async def test_nothing_comes_before_the_seek_and_everything_after_it(world):
    _transport, consumer, listener = await world.member()
    assert {partition.partition for partition in listener.held} == {0, 1, 2, 3}
    await world.produce(0, values(5))
    await world.produce(1, values(5))
    assert await consumer.poll(0.3, 100) == []
    assert consumer.position(world.partition(0)) is None
    consumer.seek(world.partition(0), 2)
    assert await read(consumer, 3) == {world.partition(0): [(2, b"2"), (3, b"3"), (4, b"4")]}
    assert await consumer.poll(0.1, 100) == []
    assert consumer.position(world.partition(0)) == 5


async def test_records_come_with_everything_they_hold(world):
    _, consumer, _ = await world.member()
    await world.produce(3, [b"x", None, b""])
    consumer.seek(world.partition(3), 0)
    batches = []
    while sum(map(len, batches)) < 3:
        batches += await consumer.poll(1.0, 100)
    assert all(
        (batch.topic, batch.source, batch.partition) == (*[world.partition(3).topic] * 2, 3) for batch in batches
    )
    assert [value for batch in batches for value in batch.values] == [b"x", None, b""]
    assert [key for batch in batches for key in batch.keys] == [b"k"] * 3
    assert [time for batch in batches for time in batch.record_timestamps_ns] == [
        1_000_000_000, 1_001_000_000, 1_002_000_000
    ]  # fmt: skip
    assert [list(headers) for batch in batches for headers in batch.headers] == [[("a", b"b")]] * 3


async def test_order_holds_over_small_polls_and_no_poll_exceeds_its_limit(world):
    _, consumer, listener = await world.member()
    for number in range(4):
        await world.produce(number, values(50))
    for partition in listener.held:
        consumer.seek(partition, 0)
    found = {}
    while sum(map(len, found.values())) < 200:
        batches = await consumer.poll(1.0, 7)
        assert sum(map(len, batches)) <= 7
        assert all(len(batch) for batch in batches)
        for batch in batches:
            found.setdefault(batch.partition, []).extend(batch.offsets)
    assert found == {number: list(range(50)) for number in range(4)}


async def test_a_seek_drops_what_was_fetched(world):
    _, consumer, _ = await world.member()
    await world.produce(0, values(100))
    consumer.seek(world.partition(0), 0)
    assert (await consumer.poll(5.0, 3))[0].offsets[0] == 0
    consumer.seek(world.partition(0), 90)
    assert [offset for offset, _ in (await read(consumer, 10))[world.partition(0)]] == list(range(90, 100))
    consumer.seek(world.partition(0), 10)
    assert [offset for offset, _ in (await read(consumer, 90))[world.partition(0)]] == list(range(10, 100))


async def test_a_paused_partition_is_silent_and_loses_nothing(world):
    _, consumer, _ = await world.member()
    for number in (0, 1):
        await world.produce(number, values(10))
        consumer.seek(world.partition(number), 0)
    consumer.pause(world.partition(0))
    assert set(await read(consumer, 10)) == {world.partition(1)}
    assert await consumer.poll(0.2, 100) == []
    consumer.resume(world.partition(0))
    assert [offset for offset, _ in (await read(consumer, 10))[world.partition(0)]] == list(range(10))


async def test_partitions_of_others_are_ignored(world):
    _, consumer, _ = await world.member()
    stranger = world.partition(77)
    consumer.seek(stranger, 0)
    consumer.pause(stranger)
    consumer.resume(stranger)
    assert consumer.position(stranger) is None
    assert consumer.end_offset(stranger) is None


async def test_bounds_follow_the_log(world):
    _, consumer, _ = await world.member()
    partition = world.partition(2)
    assert await consumer.bounds(partition) == (0, 0)
    await world.produce(2, values(6))
    assert await consumer.bounds(partition) == (0, 6)
    await world.delete_before(2, 4)
    assert await consumer.bounds(partition) == (4, 6)
    consumer.seek(partition, 4)
    await read(consumer, 2)
    assert consumer.end_offset(partition) == 6


async def test_a_position_outside_the_log_is_told_once_and_mended_by_a_seek(world):
    _, consumer, _ = await world.member()
    partition = world.partition(1)
    await world.produce(1, values(10))
    await world.delete_before(1, 6)
    for position in (2, 50):
        consumer.seek(partition, position)
        with pytest.raises(OffsetOutOfRangeError) as caught:
            await until_raised(consumer)
        assert (caught.value.partition, caught.value.position) == (partition, position)
        assert await consumer.poll(0.2, 100) == []
    consumer.seek(partition, 6)
    assert [offset for offset, _ in (await read(consumer, 4))[partition]] == [6, 7, 8, 9]


async def until_raised(consumer):
    async with asyncio.timeout(10):
        while True:
            assert await consumer.poll(0.5, 100) == []


async def test_results_and_offset_are_published_together(world):
    transport, consumer, _ = await world.member()
    partition = world.partition(1)
    writer = await world.writer(transport, 1)
    assert await consumer.committed(partition) is None
    assert writer.committed is None
    times = (1_700_000_000_123_000_000, 1_700_000_000_456_999_999)
    await writer.publish(world.batch(1, 7, [b"p0", b"p1"], alarms=[b"a"], dead_letters=[b"d"], times=times))
    assert writer.committed == 7
    assert await consumer.committed(partition) == 7
    assert await consumer.committed(world.partition(0)) is None
    topics = world.kafka()
    await until(lambda: has(world, topics.predictions_topic, 1, 2))
    source = f"{partition.topic}/1/".encode()
    predictions = await world.read_committed(topics.predictions_topic, 1)
    assert [tuple(record) for record in predictions] == [
        (b"k", b"p0", 1_700_000_000_123, [("usp-source", source + b"5")]),
        (b"k", b"p1", 1_700_000_000_456, [("usp-source", source + b"6")]),
    ]
    (alarm,) = await world.read_committed(topics.alarms_topic, 1)
    assert (alarm.value, alarm.headers) == (b"a", [("usp-source", source + b"6")])
    (letter,) = await world.read_committed(topics.dead_letters_topic, 1)
    assert letter.headers == [("usp-source", source + b"6"), ("usp-reason", b"r"), ("h", b"v")]
    assert await world.read_committed(topics.predictions_topic, 0) == []


async def has(world, topic, number, count):
    return len(await world.read_committed(topic, number)) >= count


async def test_batches_follow_one_another_in_order(world):
    transport, consumer, _ = await world.member()
    writer = await world.writer(transport, 0)
    for position in range(10, 60, 10):
        await writer.publish(world.batch(0, position, values(10, position - 10)))
        assert writer.committed == position
    await writer.publish(world.batch(0, 70, ()))  # a stretch without results
    assert await consumer.committed(world.partition(0)) == 70
    await until(lambda: has(world, world.kafka().predictions_topic, 0, 50))
    assert await world.predictions(0) == values(50)


async def test_positions_of_another_partition_are_refused(world):
    writer = await world.writer(await world.transport(), 0)
    with pytest.raises(ValueError, match="positions"):
        await writer.publish(world.batch(1, 3))


async def test_whoever_opens_a_writer_fences_the_one_before(world):
    transport, consumer, _ = await world.member()
    first = await world.writer(transport, 0)
    await first.publish(world.batch(0, 1, [b"first"]))
    second = await world.writer(await world.transport(), 0)
    with pytest.raises(FencedError):
        await first.publish(world.batch(0, 2, [b"zombie"]))
    await second.publish(world.batch(0, 2, [b"second"]))
    assert await consumer.committed(world.partition(0)) == 2
    await until(lambda: has(world, world.kafka().predictions_topic, 0, 2))
    assert await world.predictions(0) == [b"first", b"second"]


async def test_writers_of_different_partitions_do_not_disturb_each_other(world):
    transport, consumer, _ = await world.member()
    writers = [await world.writer(transport, number) for number in range(4)]
    await asyncio.gather(*(w.publish(world.batch(n, 5, [b"%d" % n])) for n, w in enumerate(writers)))
    assert [await consumer.committed(world.partition(number)) for number in range(4)] == [5] * 4


async def test_a_publication_that_was_cut_short_leaves_nothing_or_all(world):
    transport, consumer, _ = await world.member()
    writer = await world.writer(transport, 0)
    await writer.publish(world.batch(0, 1, [b"0"]))
    task = asyncio.create_task(writer.publish(world.batch(0, 2, [b"1"])))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    with pytest.raises(OutcomeUnknownError):
        await writer.publish(world.batch(0, 3, [b"2"]))
    again = await world.writer(transport, 0)
    committed = await consumer.committed(world.partition(0))
    assert committed in (1, 2)
    await again.publish(world.batch(0, 3, [b"2"]))
    await until(lambda: has(world, world.kafka().predictions_topic, 0, committed + 1))
    assert await world.predictions(0) == [*[b"0", b"1", b"2"][:committed], b"2"]


NOTE = '{"epochs":[[1,0],[12,9007199254740993]],"é":"\N{SNOWMAN}"}'


async def test_a_note_stands_beside_the_offset_and_goes_with_it(world):
    transport, consumer, _ = await world.member()
    writer = await world.writer(transport, 0)
    assert await consumer.committed_with_note(world.partition(0)) is None
    await writer.publish(world.batch(0, 1, note=NOTE))
    assert await consumer.committed_with_note(world.partition(0)) == (1, NOTE)
    await writer.publish(world.batch(0, 2))
    assert await consumer.committed_with_note(world.partition(0)) == (2, "")
    longest = "n" * MAX_NOTE_BYTES
    await writer.publish(world.batch(0, 3, note=longest))
    assert await consumer.committed_with_note(world.partition(0)) == (3, longest)
    with pytest.raises(ValueError, match="4000 bytes, not 4001"):
        await writer.publish(world.batch(0, 4, note=longest + "n"))
    await writer.publish(world.batch(0, 4, note=NOTE))
    assert await consumer.committed_with_note(world.partition(0)) == (4, NOTE)
    assert len(await world.predictions(0)) == 4


async def test_of_a_publication_that_was_cut_short_the_note_tells_the_same_as_the_offset(world):
    transport, consumer, _ = await world.member()
    writer = await world.writer(transport, 0)
    await writer.publish(world.batch(0, 1, note="1"))
    task = asyncio.create_task(writer.publish(world.batch(0, 2, note="2")))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await world.writer(transport, 0)
    offset, note = await consumer.committed_with_note(world.partition(0))
    assert note == str(offset)


async def test_at_least_once_commits_the_note_with_the_offset(world):
    transport, consumer, _ = await world.member(guarantee="at_least_once")
    writer = await world.writer(transport, 0)
    await writer.publish(world.batch(0, 1, note="a"))
    await writer.publish(world.batch(0, 2, note="b"))
    await until(lambda: writer.committed == 2)
    assert await consumer.committed_with_note(world.partition(0)) == (2, "b")


async def test_a_writer_may_be_opened_anew(world):
    transport, consumer, _ = await world.member()
    writer = await world.writer(transport, 0)
    await writer.publish(world.batch(0, 1))
    await writer.open()
    await writer.publish(world.batch(0, 2))
    assert await consumer.committed(world.partition(0)) == 2


async def test_two_members_share_the_partitions_and_hand_over(world):
    _, one, first = await world.member()
    await world.produce(0, values(3))
    _, two, second = await world.member()
    await until(lambda: len(first.held) == len(second.held) == 2)
    assert first.held | second.held == {world.partition(number) for number in range(4)}
    assert ("revoked", frozenset(world.partition(number) for number in range(4))) in first.events
    owner = one if world.partition(0) in first.held else two
    other = two if owner is one else one
    other.seek(world.partition(0), 0)  # not its own
    owner.seek(world.partition(0), 1)
    assert await read(owner, 2) == {world.partition(0): [(1, b"1"), (2, b"2")]}
    assert await other.poll(0.1, 100) == []
    await two.close()
    await until(lambda: len(first.held) == 4)
    assert one.position(world.partition(0)) is None, "an assignment begins with a seek"
    assert await one.poll(0.2, 100) == []


async def test_what_is_held_may_be_published_until_revocation_ends(world):
    transport, _one, first = await world.member()
    writer = await world.writer(transport, 0)
    committed = []

    async def flush(partitions):
        if not committed:
            await writer.publish(world.batch(0, 9))
            committed.append(writer.committed)

    first.on_revoke_fn = flush
    _, two, second = await world.member()
    await until(lambda: len(first.held) == len(second.held) == 2)
    assert committed == [9]
    assert await two.committed(world.partition(0)) == 9


async def test_rejoining_gives_everything_up_first(world):
    _, consumer, listener = await world.member()
    consumer.seek(world.partition(0), 0)
    listener.events.clear()
    await consumer.rejoin()
    await until(lambda: len(listener.events) >= 2)
    everything = frozenset(world.partition(number) for number in range(4))
    assert listener.events[0] == ("revoked", everything)
    assert listener.events[-1] == ("assigned", everything)
    assert consumer.position(world.partition(0)) is None
    await world.produce(0, values(2))
    consumer.seek(world.partition(0), 0)
    assert await read(consumer, 2) == {world.partition(0): [(0, b"0"), (1, b"1")]}


async def test_rejoining_twice_at_once_while_polling_is_rejoining(world):
    """The service finds that it was fenced on several partitions at once, and polls all the time."""
    _, consumer, listener = await world.member()
    ended = False

    async def poll():
        while not ended:
            await consumer.poll(0.01, 10)

    polling = asyncio.create_task(poll())
    listener.events.clear()
    await asyncio.gather(*(asyncio.create_task(consumer.rejoin()) for _ in range(2)))
    everything = frozenset(world.partition(number) for number in range(4))
    await until(lambda: bool(listener.events) and listener.events[-1] == ("assigned", everything))
    await world.produce(0, values(1))

    def has_read():
        # The membership given up may be counted out later, and then the group divides its partitions once more.
        if consumer.position(world.partition(0)) is None:
            consumer.seek(world.partition(0), 0)
        return consumer.position(world.partition(0)) == 1

    await until(has_read)
    ended = True
    await polling


async def test_a_static_member_that_restarts_keeps_its_partitions(world):
    _, _one, first = await world.member(group_instance_id="a")
    _, two, second = await world.member(group_instance_id="b")
    await until(lambda: len(first.held) == len(second.held) == 2)
    held, seen = set(second.held), len(first.events)
    await two.close()
    _, _, again = await world.member(group_instance_id="b")
    assert again.held == held
    assert first.events[seen:] == []


async def test_at_least_once_publishes_at_once_and_commits_soon(world):
    transport, consumer, _ = await world.member(guarantee="at_least_once")
    assert not transport.is_transactional
    writer = await world.writer(transport, 0)
    await writer.publish(world.batch(0, 2, [b"0", b"1"]))
    assert await world.predictions(0) == [b"0", b"1"]
    await until(lambda: writer.committed == 2)
    assert await consumer.committed(world.partition(0)) == 2
    await writer.publish(world.batch(0, 3, [b"2"]))
    await writer.close()
    assert writer.committed == 3
    assert await consumer.committed(world.partition(0)) == 3


async def test_closing_twice_is_harmless(world):
    transport, consumer, _ = await world.member()
    writer = await world.writer(transport, 0)
    for _ in range(2):
        await writer.close()
        await consumer.close()
        await transport.close()
    assert await world.predictions(0) == []


async def test_what_was_never_opened_may_be_closed(world):
    transport = await world.transport()
    await transport.writer(world.partition(0)).close()
    await transport.close()
