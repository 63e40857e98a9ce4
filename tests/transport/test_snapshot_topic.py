"""Snapshots in a topic: what only a broker, a zombie or compaction can do to them."""

import asyncio
import contextlib
import json
import random
import re
import time

import hypothesis
import pytest
from hypothesis import strategies as st

from group_worlds import until
from kafka_broker import clients
from snapshot_samples import GROUP, assert_same, frame_by_hand, sample
from snapshot_topic import TopicWorld
from usp_daemon.persistence import (
    FORMAT_VERSION,
    PartitionNotHeldError,
    SnapshotEventKind,
    SnapshotReadError,
    SnapshotStoreError,
    SnapshotWriteError,
    encode_snapshot,
)
from usp_daemon.transport.kafka._snapshot_records import Keys, Manifest, PartitionIndex, chunk_header, cut
from usp_daemon.transport.kafka._snapshot_topic import TOPIC_CRASH_POINTS

KIND = SnapshotEventKind
BASE = f"{GROUP}/ticks/2"
SMALL = {"max_request_bytes": 16_384}


@pytest.fixture
async def world(kafka_bootstrap_servers):
    async with TopicWorld(kafka_bootstrap_servers) as world:
        yield world


def large(offset, num_symbols=500):
    """About 380 kB."""
    return sample(offset, num_symbols=num_symbols, width=80)


def producer_of(store):
    return store._partitions["ticks", 2].producer


# What is written


async def test_a_snapshot_larger_than_a_request_is_cut_into_chunks(world):
    store = await world.holder(**SMALL)
    info = await store.save(large(5))
    content = encode_snapshot(large(5))
    assert info.size_bytes == len(content) > 20 * 16_384
    kept = await world.kept()
    manifest = json.loads(kept.pop(f"{BASE}/0/manifest"))
    assert json.loads(kept.pop(f"{BASE}/owner")).keys() == {"id", "instance", "since_ns"}
    chunks = [kept.pop(f"{BASE}/0/{number}") for number in range(manifest["num_chunks"])]
    assert not kept
    assert b"".join(chunks) == content
    assert max(map(len, chunks)) == manifest["chunk_bytes"] < 16_384
    assert (manifest["offset"], manifest["size_bytes"]) == (5, len(content))
    assert manifest["sha256"] == content[-32:].hex()
    assert_same(await (await world.store(**SMALL)).newest("ticks", 2, 5), large(5))


async def test_compaction_can_leave_nothing_but_what_is_kept(world):
    """Snapshots that grow, shrink, are replaced and superseded; also with a smaller number to keep."""
    store = await world.holder(keep=3, **SMALL)
    for offset, num_symbols in ((1, 100), (2, 10), (3, 200), (4, 5), (5, 50), (5, 20), (6, 90), (4, 30)):
        await store.save(large(offset, num_symbols))
    assert await expected_keys(world, store) == set(await world.kept())
    assert [info.offset for info in await store.list("ticks", 2)] == [4]  # 1 to 3 had gone before
    await store.save(large(7, 10))
    await store.close()
    store = await world.holder(keep=1, **SMALL)
    assert_same(await store.newest("ticks", 2, 100), large(7, 10))
    await store.save(large(9, 10))
    assert await expected_keys(world, store) == set(await world.kept())
    assert len(await store.list("ticks", 2)) == 1
    assert len(world.events) == 2
    assert {event.kind for event in world.events} == {KIND.SUPERSEDED}


async def expected_keys(world, store):
    keys = {f"{BASE}/owner"}
    for info in await store.list("ticks", 2):
        manifest = json.loads((await world.kept())[f"{info.name}/manifest"])
        keys |= {f"{info.name}/manifest", *(f"{info.name}/{chunk}" for chunk in range(manifest["num_chunks"]))}
    return keys


async def test_a_former_owner_that_was_killed_leaves_nothing_of_its_save(world):
    class Dead(BaseException):
        pass

    def die(point):
        if point == dying_at:
            raise Dead

    dying_at = ""
    store = await world.holder(crash_fn=die, keep=1, **SMALL)
    await store.save(large(5))
    for point in TOPIC_CRASH_POINTS[:-1]:
        dying_at = point
        before = await world.kept()
        with pytest.raises(Dead):
            await store.save(large(6))
        heir = await world.holder(keep=1, **SMALL)
        after = await world.kept()
        assert {**before, f"{BASE}/owner": b""} == {**after, f"{BASE}/owner": b""}
        assert_same(await heir.newest("ticks", 2, 100), large(5))
        store = await world.holder(crash_fn=die, keep=1, **SMALL)


# Damage


DAMAGES = {
    "a flipped bit": (dict(chunk_fn=lambda c, v: v if c != 1 else v[:-1] + bytes([v[-1] ^ 1])), "SHA-256"),
    "the first chunk is missing": (dict(chunk_fn=lambda c, v: None if c == 0 else v), "chunk 0 of"),
    "one chunk is missing": (dict(chunk_fn=lambda c, v: None if c == 1 else v), "chunk 1 of"),
    "the last chunks are missing": (dict(chunk_fn=lambda c, v: None if c > 1 else v), "chunk 2 of"),
    "a short chunk": (dict(chunk_fn=lambda c, v: v[:-1] if c == 1 else v), "expected"),
    "another hash": (dict(manifest_fn=lambda m: m | {"sha256": "0" * 64}), "manifest's SHA-256"),
    "another save's chunks": (dict(manifest_fn=lambda m: m | {"id": "0" * 32}), "chunk 0 of"),
    "another size": (dict(manifest_fn=lambda m: m | {"size_bytes": m["size_bytes"] - 1}), "expected"),
    "another number": (dict(manifest_fn=lambda m: m | {"num_chunks": m["num_chunks"] + 1}), "contradict"),
    "no manifest": (dict(manifest_fn=lambda m: b"{"), "cannot be read"),
    "another offset": (dict(manifest_fn=lambda m: m | {"offset": 99}), "belongs to"),
    "a promise of much": (
        dict(manifest_fn=lambda m: m | {"size_bytes": 2**62, "num_chunks": 999_999_999, "chunk_bytes": 2**31 - 1}),
        "contradict",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
async def test_a_damaged_one_is_passed_over(world, damage):
    change, reason = DAMAGES[damage]
    store = await world.holder(**SMALL)
    for offset in (5, 6):
        await store.save(large(offset, 60))
    await world.rewrite(6, **change)
    assert_same(await store.newest("ticks", 2, 100), large(5, 60))
    (event,) = world.events
    assert event.kind is KIND.DAMAGED
    assert re.search(reason, event.reason), event.reason
    await store.save(large(7, 60))
    assert_same(await store.newest("ticks", 2, 100), large(7, 60))


async def test_a_newer_version_is_passed_over_and_left_alone(world):
    store = await world.holder()
    for offset in (1, 2):
        await store.save(sample(offset))
    newer = frame_by_hand(FORMAT_VERSION + 1, b"?", b"?")
    await world.rewrite(
        2,
        chunk_fn=lambda c, v: newer,
        manifest_fn=lambda m: m | {"size_bytes": len(newer), "sha256": newer[-32:].hex()},
    )
    assert (await store.newest("ticks", 2, 100)).offset == 1
    assert [event.kind for event in world.events] == [KIND.NEWER_VERSION]
    await store.save(sample(3))
    assert [info.offset for info in await store.list("ticks", 2)] == [3, 2, 1]


async def test_strangers_records_are_ignored(world):
    store = await world.holder()
    await store.save(sample(5))
    strange = [
        (b"\xff", b"?", []), (f"{BASE}/x/1".encode(), b"?", []), (f"{BASE}/0/0".encode(), b"?", []),
        (f"{BASE}/0/1/manifest".encode(), b"{", []), (f"{GROUP}/ticks/22/0/manifest".encode(), b"{", []),
        (f"{BASE}/1/manifest".encode(), None, []),
    ]  # fmt: skip
    await world.put(strange)
    assert_same(await store.newest("ticks", 2, 100), sample(5))
    assert not world.events


# Zombies


async def test_the_save_of_a_former_owner_is_fenced(world):
    zombie = await world.holder()
    await zombie.save(sample(5))
    heir = await world.holder()
    await heir.save(sample(9))
    for _ in range(2):
        with pytest.raises(PartitionNotHeldError, match="another replica has taken it over"):
            await zombie.save(sample(20))
    await heir.save(sample(10))  # has not been fenced in turn
    assert [info.offset for info in await heir.list("ticks", 2)] == [10, 9, 5]
    await zombie.acquire("ticks", 2)  # the group has given it back
    await zombie.save(sample(11))
    with pytest.raises(PartitionNotHeldError):
        await heir.save(sample(12))


async def test_a_zombie_stopped_before_its_commit_is_fenced_and_leaves_nothing(world):
    zombie = await world.holder(**SMALL)
    await zombie.save(large(5))
    client = producer_of(zombie).client
    commit, reached, go_on = client.commit_transaction, asyncio.Event(), asyncio.Event()

    async def stopped():
        reached.set()
        await go_on.wait()
        await commit()

    client.commit_transaction = stopped
    late = asyncio.create_task(zombie.save(large(30)))
    await reached.wait()
    heir = await world.holder(**SMALL)
    assert_same(await heir.newest("ticks", 2, 100), large(5))
    await heir.save(large(9))
    go_on.set()
    with pytest.raises(PartitionNotHeldError):
        await late
    assert [info.offset for info in await heir.list("ticks", 2)] == [9, 5]
    await heir.save(large(10))
    assert_same(await heir.newest("ticks", 2, 100), large(10))


async def test_a_replica_that_was_cut_off_does_not_fence_its_heir(world):
    cut_off = await world.holder()
    await cut_off.save(sample(5))
    await cut_off._partitions["ticks", 2].drop()  # as after a lost connection
    heir = await world.holder()
    producer = producer_of(heir)
    with pytest.raises(PartitionNotHeldError):
        await cut_off.save(sample(20))
    await heir.save(sample(9))
    assert producer_of(heir) is producer


async def test_a_producer_that_was_lost_is_opened_anew(world):
    store = await world.holder()
    await store.save(sample(5))
    await store._partitions["ticks", 2].drop()
    await store.save(sample(6))
    assert [info.offset for info in await store.list("ticks", 2)] == [6, 5]


async def test_whoever_has_the_claim_takes_back_what_was_fenced_without_one(world):
    store = await world.holder()
    await store.save(sample(5))
    async with clients.producer(world.servers, transactional_id=f"{GROUP}-ticks-2-snapshots"):
        pass
    await store.save(sample(6))
    assert [info.offset for info in await store.list("ticks", 2)] == [6, 5]


@pytest.mark.parametrize("is_committed", [True, False])
async def test_what_is_behind_a_strangers_open_transaction_is_waited_for(world, is_committed):
    """Otherwise the newest snapshot would be overlooked while another group writes one of its own."""
    store = await world.holder()
    await store.save(sample(5))
    async with clients.producer(world.servers, transactional_id=f"stranger-{world.run}") as stranger:
        await stranger.begin_transaction()
        await stranger.send_and_wait(world.topic, b"x", key=b"stranger", partition=2)
        await store.save(sample(6))
        reader = await world.store()
        finding = asyncio.create_task(reader.newest("ticks", 2, 100))
        done, _ = await asyncio.wait({finding}, timeout=1.0)
        assert not done
        await (stranger.commit_transaction() if is_committed else stranger.abort_transaction())
        assert_same(await finding, sample(6))


async def test_a_transaction_that_stays_open_is_not_waited_for_without_end(world):
    store = await world.holder()
    await store.save(sample(5))
    async with clients.producer(world.servers, transactional_id=f"stranger-{world.run}") as stranger:
        await stranger.begin_transaction()
        await stranger.send_and_wait(world.topic, b"x", key=b"stranger", partition=2)
        reader = await world.store(request_timeout_ms=1_000, transaction_timeout_ms=1_000)
        with pytest.raises(SnapshotReadError, match="somebody's transaction stays open"):
            await reader.newest("ticks", 2, 100)
        await stranger.abort_transaction()


# The topic


async def test_the_topic_is_created_compacted_with_the_inputs_partitions(world):
    await world.create(world.kafka().input_topic, 7)
    await world.store(max_request_bytes=3_000_000)
    settings = await world.settings(world.topic)
    assert settings["cleanup.policy"] == "compact"
    assert int(settings["segment.bytes"]) <= 64 << 20
    assert int(settings["segment.ms"]) <= 600_000
    assert float(settings["min.cleanable.dirty.ratio"]) < 0.5
    assert int(settings["max.message.bytes"]) >= 3_000_000
    async with clients.admin(world.servers) as admin:
        (described,) = await admin.describe_topics([world.topic])
    assert len(described["partitions"]) == 7


@pytest.mark.parametrize("policy", ["delete", "compact,delete"])
async def test_a_topic_that_is_not_only_compacted_is_refused(world, policy):
    await world.create(world.topic, 4, cleanup_policy=policy)
    with pytest.raises(SnapshotStoreError, match=rf"cleanup\.policy={policy}: it must be compact"):
        await world.store()


async def test_a_topic_with_too_few_partitions_is_refused(world):
    await world.create(world.kafka().input_topic, 4)
    await world.create(world.topic, 2, cleanup_policy="compact")
    with pytest.raises(SnapshotStoreError, match=r"has 2 partitions but the input .* has 4.*add partitions"):
        await world.store()


async def test_a_topic_that_takes_too_little_is_refused(world):
    await world.create(world.topic, 4, cleanup_policy="compact", max_message_bytes=50_000)
    with pytest.raises(SnapshotStoreError, match=r"max\.message\.bytes.*kafka\.max_request_bytes"):
        await world.store()
    store = await world.holder(**SMALL)
    await store.save(large(5))


async def test_a_missing_topic_is_named_where_none_may_be_created(world):
    with pytest.raises(SnapshotStoreError, match=f"missing topic: {world.topic}.*create_topics"):
        await world.store(create_topics=False)


async def test_a_topic_of_its_own(world):
    with pytest.raises(SnapshotStoreError, match="one of its own"):
        await world.store(input_topic=world.topic)


# The broker


async def test_a_broker_that_is_away(own_broker):
    async with TopicWorld(own_broker.bootstrap_servers) as world:
        store = await world.holder(request_timeout_ms=2_000, transaction_timeout_ms=2_000)
        await store.save(sample(5))
        own_broker.kill()
        with pytest.raises(SnapshotWriteError):
            await store.save(sample(6))
        with pytest.raises(SnapshotReadError):
            await store.newest("ticks", 2, 100)
        own_broker.start()

        async def saved():
            with contextlib.suppress(SnapshotStoreError):
                return await store.save(sample(7))

        await until(saved)
        assert_same(await store.newest("ticks", 2, 100), sample(7))
        own_broker.kill()
        began = time.monotonic()
        await store.close()
        assert time.monotonic() - began < 8.0


async def test_closing_while_a_save_hangs_takes_bounded_time(own_broker):
    async with TopicWorld(own_broker.bootstrap_servers) as world:
        store = await world.holder(request_timeout_ms=30_000, transaction_timeout_ms=30_000)
        own_broker.pause()
        save = asyncio.create_task(store.save(sample(5)))
        await asyncio.sleep(0)
        began = time.monotonic()
        await store.close()
        assert time.monotonic() - began < 12.0
        with pytest.raises((asyncio.CancelledError, SnapshotStoreError)):
            await save


@pytest.mark.slow
async def test_compaction_keeps_it_small(make_broker):
    broker = make_broker(settings={"log.cleaner.backoff.ms": 200})
    async with TopicWorld(broker.bootstrap_servers) as world:
        await world.create(
            world.topic, 4, cleanup_policy="compact", segment_bytes=1 << 20, segment_ms=500,
            min_cleanable_dirty_ratio=0.01, delete_retention_ms=0,
        )  # fmt: skip
        store = await world.holder(keep=2, max_request_bytes=100_000)
        written = 0
        for offset in range(1, 31):
            written += (await store.save(large(offset))).size_bytes
        assert written > 9e6

        async def is_small():
            # Only a new segment lets the one before be compacted, and only a new record begins one.
            await world.put([(b"tick", b"x", [])])
            size = sum(len(value or b"") for _, _, value, _ in await world.records())
            return size < 3 * 400_000

        async with asyncio.timeout(90.0):
            while not await is_small():
                await asyncio.sleep(0.5)
        for reader in (store, await world.store()):
            for offset in (29, 30):
                assert_same(await reader.newest("ticks", 2, offset), large(offset))
            assert await reader.newest("ticks", 2, 28) is None
        await store.save(large(31))
        assert_same(await (await world.store()).newest("ticks", 2, 100), large(31))
        assert not world.events


# Without a broker


@hypothesis.given(st.lists(st.binary(max_size=50), max_size=20), st.integers(1, 20))
def test_cutting_loses_nothing(pieces, chunk_bytes):
    chunks = list(cut(pieces, chunk_bytes))
    assert b"".join(chunks) == b"".join(pieces)
    assert all(len(chunk) == chunk_bytes for chunk in chunks[:-1])
    assert all(0 < len(chunk) <= chunk_bytes for chunk in chunks)


@hypothesis.given(st.binary(max_size=60), st.text(max_size=6), st.text("a/0", max_size=6))
def test_only_own_keys_are_taken(key, group, suffix):
    keys = Keys(group, "t", 0)
    other = Keys(f"{group}/{suffix}", "t", 0)
    assert keys.parsed(keys.manifest(3)) == (3, -1)
    assert keys.parsed(keys.chunk(3, 40)) == (3, 40)
    assert keys.parsed(keys.owner) == (-1, -1)
    assert all(keys.parsed(foreign) is None for foreign in (other.owner, other.manifest(1), other.chunk(1, 2)))
    if not key.startswith(keys.prefix):
        assert keys.parsed(key) is None


@pytest.mark.parametrize("seed", range(20))
def test_skipping_chunks_overlooks_nothing(seed):
    """A log of several writers, partly compacted: reading it with leaps gives what reading all of it gives."""
    rng = random.Random(seed)
    keys, log = Keys("g", "t", 0), []
    for number in range(rng.randint(1, 15)):
        if rng.random() < 0.3:
            log.append((keys.owner, b'{"id":"%d","instance":"","since_ns":0}' % number, []))
        slot, count, first, name = rng.randrange(3), rng.randint(1, 9), None, f"{number:032x}"
        for chunk in range(count):
            while rng.random() < 0.3:  # another group's, between
                log.append((b"h/t/0/0/0", b"x", chunk_header("f" * 32, 50)))
            first = len(log) if first is None else first
            log.append((keys.chunk(slot, chunk), b"x", chunk_header(name, count - chunk - 1)))
        if rng.random() < 0.3:
            log += [(keys.chunk(1, 9), None, []), (keys.manifest((slot + 1) % 3), None, [])]
        manifest = dict(
            version=1, id=name, offset=number, created_ns=0, num_chunks=count, chunk_bytes=1, size_bytes=count,
            first=first, sha256="0" * 64,
        )  # fmt: skip
        log.append((keys.manifest(slot), json.dumps(manifest).encode(), []))
    last = {key: offset for offset, (key, _, _) in enumerate(log)}
    cleaned_to = rng.randint(0, len(log))
    present = [o for o, (key, _, _) in enumerate(log) if o >= cleaned_to or last[key] == o]
    whole, leaping = PartitionIndex(keys), PartitionIndex(keys)
    for offset in present:
        whole.take(offset, *log[offset])
    position = num_read = 0
    for offset in present:
        if offset >= position:
            position = leaping.take(offset, *log[offset])
            num_read += 1
    assert isinstance(next(iter(whole.entries.values())).manifest, Manifest)
    assert leaping.claim == whole.claim
    assert {s: (e.log_offset, e.manifest) for s, e in leaping.entries.items()} == {
        s: (e.log_offset, e.manifest) for s, e in whole.entries.items()
    }
    assert num_read <= len(present)
