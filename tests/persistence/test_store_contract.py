"""What every snapshot store does, whatever it keeps snapshots in."""

import asyncio
import random

import pytest

from snapshot_samples import GROUP, assert_same, sample
from snapshot_topic import TopicWorld
from usp_daemon.persistence import (
    AbstractSnapshotStore,
    DirectoryStore,
    PartitionNotHeldError,
    SnapshotContentError,
    SnapshotEventKind,
    SnapshotStoreError,
    encode_snapshot,
)

NO_LIMIT = 2**62


class DirectoryWorld:
    def __init__(self, path):
        self.path = path
        self.events = []
        self.stores = []

    async def store(self, *, keep=3, group=GROUP, **options):
        store = DirectoryStore(self.path, group=group, keep=keep, fsync=False, observe_fn=self.events.append, **options)
        await store.open()
        self.stores.append(store)
        return store

    async def holder(self, topic="ticks", partition=2, **options):
        store = await self.store(**options)
        await store.acquire(topic, partition)
        return store

    async def damage(self, offset):
        (path,) = self.path.rglob(f"{offset:020d}.usp")
        data = bytearray(path.read_bytes())
        data[-100] ^= 1
        path.write_bytes(data)

    async def close(self):
        for store in self.stores:
            await store.close()


class KafkaTopicWorld(TopicWorld):
    async def damage(self, offset):
        def flip(chunk, value):
            return value if chunk else value[:-50] + bytes([value[-50] ^ 1]) + value[-49:]

        await self.rewrite(offset, chunk_fn=flip)


@pytest.fixture(params=["directory", pytest.param("topic", marks=pytest.mark.kafka)])
async def world(request, tmp_path):
    if request.param == "directory":
        world = DirectoryWorld(tmp_path)
        yield world
        await world.close()
    else:
        servers = request.getfixturevalue("kafka_bootstrap_servers")
        async with KafkaTopicWorld(servers) as world:
            yield world


def offsets(infos):
    return [info.offset for info in infos]


async def test_the_newest_not_above_an_offset(world):
    store = await world.holder()
    assert isinstance(store, AbstractSnapshotStore)
    assert await store.newest("ticks", 2, 100) is None
    assert await store.list("ticks", 2) == ()
    infos = [await store.save(sample(offset)) for offset in (5, 9, 20)]
    assert await store.list("ticks", 2) == tuple(reversed(infos))
    info = infos[-1]
    assert (info.topic, info.partition, info.offset) == ("ticks", 2, 20)
    assert (info.created_ns, info.size_bytes) == (sample().created_ns, len(encode_snapshot(sample(20))))
    assert len({info.locator for info in infos}) == 3
    for not_above, expected in ((4, None), (5, 5), (8, 5), (19, 9), (20, 20), (NO_LIMIT, 20)):
        found = await store.newest("ticks", 2, not_above)
        assert (found and found.offset) == expected
        if found is not None:
            assert_same(found, sample(expected))
    assert not world.events


async def test_saving_twice_at_one_offset_replaces(world):
    store = await world.holder()
    for offset, epoch in ((5, 1), (9, 2), (9, 3), (5, 4)):
        await store.save(sample(offset, config_epoch=epoch))
    assert offsets(await store.list("ticks", 2)) == [5]
    assert (await store.newest("ticks", 2, 100)).config_epoch == 4


async def test_another_store_finds_what_one_has_saved(world):
    first = await world.holder()
    await first.save(sample(5))
    reading = await world.store()  # holds nothing
    assert_same(await reading.newest("ticks", 2, 5), sample(5))
    await first.save(sample(6))
    assert offsets(await reading.list("ticks", 2)) == [6, 5]
    await first.close()
    assert_same(await (await world.holder()).newest("ticks", 2, 100), sample(6))


async def test_topics_partitions_and_groups_do_not_mix(world):
    store = await world.store()
    places = [("ticks", 2), ("ticks", 1), ("ticks.2", 2), ("tick", 3)]
    for number, (topic, partition) in enumerate(places):
        await store.acquire(topic, partition)
        await store.save(sample(10 + number, topic=topic, partition=partition))
    for number, (topic, partition) in enumerate(places):
        found = await store.newest(topic, partition, 100)
        assert (found.topic, found.partition, found.offset) == (topic, partition, 10 + number)
        assert len(await store.list(topic, partition)) == 1
    other = await world.holder(group="another")
    assert await other.newest("ticks", 2, 100) is None
    with pytest.raises(SnapshotContentError, match="group"):
        await other.save(sample())


async def test_the_last_few_are_kept(world):
    store = await world.holder()
    for offset in (1, 10, 9_999_999_999, 10_000_000_000, 2**63 - 1):
        await store.save(sample(offset))
    expected = [2**63 - 1, 10_000_000_000, 9_999_999_999]
    assert offsets(await store.list("ticks", 2)) == expected
    for offset in expected:
        assert_same(await store.newest("ticks", 2, offset), sample(offset))
    assert not world.events


async def test_one_is_always_kept(world):
    store = await world.holder(keep=1)
    for offset in (1, 2, 3):
        await store.save(sample(offset))
        assert offsets(await store.list("ticks", 2)) == [offset]


async def test_offsets_that_were_set_back_supersede(world):
    """What lies beyond is from before the reset; it must neither be handed out later nor crowd out the new ones."""
    store = await world.holder()
    for offset in (100, 200, 300):
        await store.save(sample(offset))
    await store.save(sample(150))
    assert offsets(await store.list("ticks", 2)) == [150, 100]
    assert [(e.kind, e.offset) for e in sorted(world.events, key=lambda e: e.offset)] == [
        (SnapshotEventKind.SUPERSEDED, 200), (SnapshotEventKind.SUPERSEDED, 300)
    ]  # fmt: skip
    assert (await store.newest("ticks", 2, 1000)).offset == 150
    assert offsets(await (await world.store()).list("ticks", 2)) == [150, 100]


async def test_damage_falls_back_through_all_that_are_kept(world):
    store = await world.holder()
    for offset in (1, 2, 3):
        await store.save(sample(offset))
    for offset, expected in ((3, 2), (2, 1), (1, None)):
        await world.damage(offset)
        found = await store.newest("ticks", 2, 100)
        assert (found and found.offset) == expected
        assert world.events[-1].kind in (SnapshotEventKind.QUARANTINED, SnapshotEventKind.DAMAGED)
        assert world.events[-1].offset == offset
        assert "SHA-256" in world.events[-1].reason
    assert len(world.events) == 3  # each is met once
    await store.save(sample(4))
    assert_same(await store.newest("ticks", 2, 100), sample(4))


async def test_damaged_ones_do_not_crowd_out_whole_ones(world):
    store = await world.holder()
    for offset in (1, 2, 3):
        await store.save(sample(offset))
    await world.damage(3)
    assert (await store.newest("ticks", 2, 100)).offset == 2
    await store.save(sample(4))
    for offset in (4, 2, 1):
        assert_same(await store.newest("ticks", 2, offset), sample(offset))


async def test_a_compressed_snapshot(world):
    snapshot = sample(num_symbols=500, width=20)
    store = await world.holder(compression="gzip")
    info = await store.save(snapshot)
    assert info.size_bytes < len(encode_snapshot(snapshot))
    assert_same(await store.newest("ticks", 2, 100), snapshot)


async def test_what_is_not_held_is_not_saved(world):
    store = await world.store()
    await store.release("ticks", 2)  # harmless
    with pytest.raises(PartitionNotHeldError, match="acquired"):
        await store.save(sample())
    await store.acquire("ticks", 2)
    await store.acquire("ticks", 2)
    await store.save(sample())
    await store.release("ticks", 2)
    await store.release("ticks", 2)
    with pytest.raises(PartitionNotHeldError):
        await store.save(sample(8))
    await store.acquire("ticks", 2)
    await store.save(sample(9))
    assert offsets(await store.list("ticks", 2)) == [9, 7]


async def test_what_cannot_be_written_leaves_the_former_ones(world):
    store = await world.holder()
    await store.save(sample(5))
    with pytest.raises(SnapshotContentError):
        await store.save(sample(6, settings={"kafka.sasl_password": "x"}))
    assert_same(await store.newest("ticks", 2, 100), sample(5))
    await store.save(sample(7))


async def test_closing_twice_and_using_a_closed_store(world):
    store = await world.holder()
    await store.open()
    await store.close()
    await store.close()
    for use in (store.save(sample()), store.newest("ticks", 2, 1), store.list("ticks", 2), store.acquire("ticks", 2)):
        with pytest.raises(SnapshotStoreError, match="not open"):
            await use


async def test_a_cancelled_caller_leaves_a_whole_snapshot(world):
    loop, begun = asyncio.get_running_loop(), asyncio.Event()

    def crash(point):
        if point == "snapshot.half_written":
            loop.call_soon_threadsafe(begun.set)

    store = await world.holder(crash_fn=crash)
    save = asyncio.create_task(store.save(sample(num_symbols=200)))
    await begun.wait()
    save.cancel()
    with pytest.raises(asyncio.CancelledError):
        await save
    assert_same(await store.newest("ticks", 2, 100), sample(num_symbols=200))


async def test_against_a_model_in_memory(world):
    """Saves, damage and new stores in any order: what is handed out is what a dictionary says."""
    generator, model, keep = random.Random(3), {}, 3
    store = await world.holder(keep=keep)
    steps = 60 if isinstance(world, DirectoryWorld) else 25
    for step in range(steps):
        action = generator.choice(("save", "save", "save", "damage", "reopen"))
        offset = generator.randint(0, 30)
        if action == "save":
            await store.save(sample(offset, config_epoch=step))
            model = {o: epoch for o, epoch in model.items() if o < offset} | {offset: step}
            model = dict(sorted(model.items())[-keep:])
        elif action == "damage" and model:
            offset = generator.choice(sorted(model))
            await world.damage(offset)
            found = await store.newest("ticks", 2, offset)
            assert found is None or found.offset < offset
            del model[offset]
        elif action == "reopen":
            await store.close()
            store = await world.holder(keep=keep)
        limit = generator.randint(-1, 31)
        found = await store.newest("ticks", 2, limit)
        expected = max((o for o in model if o <= limit), default=None)
        assert (None if found is None else (found.offset, found.config_epoch)) == (
            None if expected is None else (expected, model[expected])
        )
