"""The store in a directory: what it keeps, what it hands out, and what it does when the disk does not play along."""

import asyncio
import errno
import logging
import os
import random
import re
import shutil
import subprocess
import threading
from pathlib import Path

import hypothesis
import pytest
from hypothesis import strategies as st

from snapshot_samples import GROUP, assert_same, frame_by_hand, sample
from usp_daemon.persistence import (
    FORMAT_VERSION,
    AbstractSnapshotStore,
    DirectoryStore,
    InsufficientStorageError,
    PartitionLockedError,
    PartitionNotHeldError,
    SnapshotContentError,
    SnapshotEventKind,
    SnapshotReadError,
    SnapshotStoreError,
    SnapshotWriteError,
    encode_snapshot,
    read_snapshot,
)
from usp_daemon.persistence._names import directory_name

KIND = SnapshotEventKind
NO_LIMIT = 2**62


class Disk:
    """A file system that fails on demand."""

    def __init__(self):
        self.error = None
        self.bytes_left = 0
        self.largest_write = NO_LIMIT

    def write(self, fd, data):
        if self.error is not None:
            if self.bytes_left <= 0:
                raise OSError(self.error, os.strerror(self.error))
            data = data[: self.bytes_left]
            self.bytes_left -= len(data)
        return os.write(fd, data[: self.largest_write])


@pytest.fixture
def events():
    return []


@pytest.fixture
def disk():
    return Disk()


@pytest.fixture
async def store(tmp_path, events, disk):
    options = {"keep": 3, "observe_fn": events.append, "write_fn": disk.write}
    async with DirectoryStore(tmp_path / "io" / "snapshots", group=GROUP, **options) as opened:
        await opened.acquire("ticks", 2)
        yield opened


@pytest.fixture
def home(tmp_path):
    """The partition's directory."""
    return tmp_path / "io" / "snapshots" / "a%20group%2Fwith%20~%20everything%3A%20%C3%BC" / "ticks" / "2"


def name(offset):
    return f"{offset:020d}.usp"


def visible(directory):
    return sorted(path.name for path in directory.iterdir() if path.name != ".lock")


def flip(path, position=-100):
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


def kinds(events):
    return [event.kind for event in events]


# What goes in comes out


async def test_the_newest_not_above_an_offset(store, home):
    assert isinstance(store, AbstractSnapshotStore)
    assert await store.newest("ticks", 2, 100) is None
    assert await store.list("ticks", 2) == ()
    infos = [await store.save(sample(offset)) for offset in (5, 9, 20)]
    assert visible(home) == [name(5), name(9), name(20)]
    assert await store.list("ticks", 2) == tuple(reversed(infos))
    info = infos[-1]
    assert (info.name, info.topic, info.partition, info.offset) == (name(20), "ticks", 2, 20)
    assert info.created_ns == sample().created_ns
    assert Path(info.locator) == home / name(20)
    assert info.size_bytes == (home / name(20)).stat().st_size
    for not_above, expected in ((4, None), (5, 5), (8, 5), (9, 9), (19, 9), (20, 20), (NO_LIMIT, 20)):
        found = await store.newest("ticks", 2, not_above)
        assert (found and found.offset) == expected
        if found is not None:
            assert_same(found, sample(expected))


async def test_files_are_what_the_codec_gives(store, home):
    await store.save(sample(5))
    assert (home / name(5)).read_bytes() == encode_snapshot(sample(5))


async def test_a_compressed_snapshot(tmp_path):
    snapshot = sample(num_symbols=500, width=20)
    async with DirectoryStore(tmp_path, group=GROUP, compression="gzip") as store:
        await store.acquire("ticks", 2)
        info = await store.save(snapshot)
        assert info.size_bytes == os.path.getsize(info.locator) < len(encode_snapshot(snapshot))
        assert_same(await store.newest("ticks", 2, 100), snapshot)


async def test_short_writes_are_completed(store, disk):
    disk.largest_write = 37
    await store.save(sample(5))
    assert_same(await store.newest("ticks", 2, 5), sample(5))


async def test_saving_twice_at_one_offset_replaces(store, home):
    await store.save(sample(5))
    await store.save(sample(5, config_epoch=99))
    assert visible(home) == [name(5)]
    assert (await store.newest("ticks", 2, 5)).config_epoch == 99


async def test_another_store_finds_what_one_has_saved(store, tmp_path):
    await store.save(sample(5))
    await store.close()
    async with DirectoryStore(tmp_path / "io" / "snapshots", group=GROUP) as other:
        assert_same(await other.newest("ticks", 2, 5), sample(5))


async def test_topics_partitions_and_groups_do_not_mix(store, tmp_path):
    places = [("ticks", 2), ("ticks", 1), ("ticks.2", 2), ("tick", 22)]
    for number, (topic, partition) in enumerate(places):
        await store.acquire(topic, partition)
        await store.save(sample(10 + number, topic=topic, partition=partition))
    for number, (topic, partition) in enumerate(places):
        found = await store.newest(topic, partition, 100)
        assert (found.topic, found.partition, found.offset) == (topic, partition, 10 + number)
        assert len(await store.list(topic, partition)) == 1
    async with DirectoryStore(tmp_path / "io" / "snapshots", group="another") as other:
        await other.acquire("ticks", 2)
        assert await other.newest("ticks", 2, 100) is None
        with pytest.raises(SnapshotContentError, match="group"):
            await other.save(sample())


# Retention


async def test_the_last_few_are_kept(store, home, events):
    for offset in (1, 10, 9_999_999_999, 10_000_000_000, 2**63 - 1):
        await store.save(sample(offset))
    assert visible(home) == [name(9_999_999_999), name(10_000_000_000), name(2**63 - 1)]
    assert not events


async def test_one_is_always_kept(tmp_path):
    async with DirectoryStore(tmp_path, group=GROUP, keep=1) as store:
        await store.acquire("ticks", 2)
        for offset in (1, 2, 3):
            await store.save(sample(offset))
            assert [info.offset for info in await store.list("ticks", 2)] == [offset]
    with pytest.raises(ValueError, match="keep"):
        DirectoryStore(tmp_path, group=GROUP, keep=0)


async def test_offsets_that_were_set_back_supersede(store, home, events):
    """What lies beyond is from before the reset; it must neither be handed out later nor crowd out the new ones."""
    for offset in (100, 200, 300):
        await store.save(sample(offset))
    await store.save(sample(150))
    assert visible(home) == [name(100), name(150), f"{name(200)}.superseded", f"{name(300)}.superseded"]
    assert kinds(events) == [KIND.SUPERSEDED] * 2
    assert (await store.newest("ticks", 2, 1000)).offset == 150
    await store.save(sample(200))
    await store.save(sample(120))
    assert f"{name(200)}.2.superseded" in visible(home)


async def test_what_cannot_be_removed_is_reported(store, home, events, monkeypatch):
    def refuse(path):
        raise PermissionError(errno.EACCES, "no", str(path))

    for offset in (1, 2, 3):
        await store.save(sample(offset))
    with monkeypatch.context() as patched:
        patched.setattr(os, "unlink", refuse)
        await store.save(sample(4))
    assert [(event.kind, event.offset) for event in events] == [(KIND.NOT_TIDIED, 1)]
    await store.save(sample(5))
    assert visible(home) == [name(3), name(4), name(5)]


# Damage


async def test_bit_rot_falls_back_through_all_that_are_kept(store, home, events):
    """T-62 and T-66."""
    for offset in (1, 2, 3):
        await store.save(sample(offset))
    for offset, expected in ((3, 2), (2, 1), (1, None)):
        flip(home / name(offset))
        found = await store.newest("ticks", 2, 100)
        assert (found and found.offset) == expected
        assert (events[-1].kind, events[-1].offset) == (KIND.QUARANTINED, offset)
        assert events[-1].locator == str(home / f"{name(offset)}.damaged")
        assert "SHA-256" in events[-1].reason
    assert len(events) == 3  # a damaged one is met once
    assert visible(home) == [f"{name(offset)}.damaged" for offset in (1, 2, 3)]
    await store.save(sample(3))
    flip(home / name(3), 20)
    assert await store.newest("ticks", 2, 100) is None
    assert f"{name(3)}.2.damaged" in visible(home)


async def test_damage_beyond_the_offset_is_not_looked_at(store, home, events):
    for offset in (1, 2):
        await store.save(sample(offset))
    flip(home / name(2))
    assert (await store.newest("ticks", 2, 1)).offset == 1
    assert not events


async def test_a_newer_version_is_passed_over_and_left_alone(store, home, events):
    await store.save(sample(1))
    (home / name(2)).write_bytes(frame_by_hand(FORMAT_VERSION + 1, b"?", b"?"))
    assert (await store.newest("ticks", 2, 100)).offset == 1
    assert kinds(events) == [KIND.NEWER_VERSION]
    assert visible(home) == [name(1), name(2)]
    assert [info.created_ns for info in await store.list("ticks", 2)] == [None, sample().created_ns]


@pytest.mark.parametrize(
    "stranger", [sample(9), sample(2, partition=3), sample(2, topic="tocks"), sample(2, group="others")]
)
async def test_a_file_from_elsewhere_is_not_taken(stranger, store, home, events):
    await store.save(sample(1))
    (home / name(2)).write_bytes(encode_snapshot(stranger))
    assert (await store.newest("ticks", 2, 100)).offset == 1
    assert kinds(events) == [KIND.QUARANTINED]
    assert "belongs to" in events[0].reason


async def test_without_the_lock_nothing_is_renamed(store, home, events):
    await store.save(sample(1))
    await store.save(sample(2))
    flip(home / name(2))
    await store.release("ticks", 2)
    assert (await store.newest("ticks", 2, 100)).offset == 1
    assert kinds(events) == [KIND.DAMAGED]
    assert visible(home) == [name(1), name(2)]


@pytest.mark.parametrize(("code", "is_passed_over"), [(errno.EIO, True), (errno.EACCES, False), (errno.EMFILE, False)])
async def test_errors_while_reading(code, is_passed_over, store, home, events, monkeypatch):
    """A bad block concerns one file; what would concern every file must not look like damage."""
    await store.save(sample(1))
    await store.save(sample(2))
    real = os.readv

    def fail(fd, buffers):
        if os.readlink(f"/proc/self/fd/{fd}").endswith(name(2)):
            raise OSError(code, os.strerror(code))
        return real(fd, buffers)

    monkeypatch.setattr(os, "readv", fail)
    if is_passed_over:
        assert (await store.newest("ticks", 2, 100)).offset == 1
        assert kinds(events) == [KIND.UNREADABLE]
    else:
        with pytest.raises(SnapshotReadError, match=name(2)):
            await store.newest("ticks", 2, 100)
        assert not events
    assert visible(home) == [name(1), name(2)]


async def test_foreign_files_are_ignored(store, home):
    for foreign in ("readme.txt", "1.usp", f"{name(7)}.bak", f".{name(7)}.1.ab.tmp", f"{'٣' * 20}.usp"):
        (home / foreign).write_bytes(b"?")
    (home / f"{name(8)}.damaged").mkdir()
    await store.save(sample(5))
    assert [info.offset for info in await store.list("ticks", 2)] == [5]
    assert (await store.newest("ticks", 2, 100)).offset == 5


async def test_events_are_logged_unless_somebody_takes_them(tmp_path, caplog):
    async with DirectoryStore(tmp_path, group=GROUP) as store:
        await store.acquire("ticks", 2)
        path = Path((await store.save(sample(5))).locator)
        flip(path)
        with caplog.at_level(logging.WARNING):
            assert await store.newest("ticks", 2, 5) is None
    assert "snapshot_quarantined" in caplog.text
    assert f"{path}.damaged" in caplog.text


# The disk does not play along


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.999])
async def test_a_failing_disk_leaves_the_former_ones(code, share, store, home, disk):
    """T-67: an error in the middle removes the temporary file; once there is room again, saving goes on."""
    await store.save(sample(1))
    disk.error, disk.bytes_left = code, int(share * len(encode_snapshot(sample(2))))
    with pytest.raises(SnapshotWriteError, match=re.escape(os.strerror(code))):
        await store.save(sample(2))
    assert visible(home) == [name(1)]
    assert_same(await store.newest("ticks", 2, 100), sample(1))
    disk.error = None
    await store.save(sample(2))
    assert visible(home) == [name(1), name(2)]


async def test_a_replacement_that_fails_leaves_what_it_was_to_replace(store, disk):
    await store.save(sample(1))
    disk.error = errno.ENOSPC
    with pytest.raises(SnapshotWriteError):
        await store.save(sample(1, config_epoch=99))
    disk.error = None
    assert_same(await store.newest("ticks", 2, 1), sample(1))


async def test_twice_the_size_must_be_free(tmp_path):
    size = len(encode_snapshot(sample(1)))
    free = 2 * size
    async with DirectoryStore(tmp_path, group=GROUP, free_bytes_fn=lambda directory: free) as store:
        await store.acquire("ticks", 2)
        await store.save(sample(1))
        free -= 1
        with pytest.raises(InsufficientStorageError) as caught:
            await store.save(sample(2))
        assert (caught.value.needed_bytes, caught.value.free_bytes) == (2 * size, 2 * size - 1)
        assert [info.offset for info in await store.list("ticks", 2)] == [1]
        free = None  # a file system that does not say
        await store.save(sample(2))


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 1 MiB."""
    mount, umount = shutil.which("mount"), shutil.which("umount")
    path = tmp_path / "small"
    path.mkdir()
    if os.geteuid() != 0 or mount is None or umount is None:
        pytest.skip("mounting needs root")
    done = subprocess.run([mount, "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(path)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"cannot mount here: {done.stderr.strip()}")
    yield path
    subprocess.run([umount, "-l", str(path)], check=True)


async def test_a_disk_that_is_really_full(small_disk):
    """T-67 without any pretence: first the check, then, with the check made blind, ENOSPC in the middle."""
    size = {"num_symbols": 100, "width": 350}  # about 310 KiB
    async with DirectoryStore(small_disk, group=GROUP) as store:
        await store.acquire("ticks", 2)
        await store.save(sample(1, **size))
        await store.save(sample(2, **size))
        with pytest.raises(InsufficientStorageError):
            await store.save(sample(3, **size))
    async with DirectoryStore(small_disk, group=GROUP, free_bytes_fn=lambda directory: NO_LIMIT) as store:
        await store.acquire("ticks", 2)
        await store.save(sample(3, **size))
        with pytest.raises(SnapshotWriteError, match="No space left"):
            await store.save(sample(4, **size))
        assert [info.offset for info in await store.list("ticks", 2)] == [3, 2, 1]
        assert_same(await store.newest("ticks", 2, 100), sample(3, **size))
    assert not list(small_disk.rglob("*.tmp"))


async def test_a_read_only_disk_can_be_read(small_disk):
    async with DirectoryStore(small_disk, group=GROUP) as store:
        await store.acquire("ticks", 2)
        await store.save(sample(1))
        flip(Path((await store.save(sample(2))).locator))
    subprocess.run([shutil.which("mount"), "-o", "remount,ro", str(small_disk)], check=True)
    events = []
    async with DirectoryStore(small_disk, group=GROUP, observe_fn=events.append) as store:
        with pytest.raises(SnapshotStoreError, match="Read-only file system"):
            await store.acquire("ticks", 2)
        with pytest.raises(SnapshotStoreError, match="Read-only file system"):
            await store.acquire("ticks", 3)
        assert_same(await store.newest("ticks", 2, 100), sample(1))
        assert len(await store.list("ticks", 2)) == 2
    assert kinds(events) == [KIND.DAMAGED]


async def test_a_disk_that_turns_read_only(small_disk):
    events = []
    async with DirectoryStore(small_disk, group=GROUP, observe_fn=events.append) as store:
        await store.acquire("ticks", 2)
        await store.save(sample(1))
        flip(Path((await store.save(sample(2))).locator))
        os.close(store._locks["ticks", 2]._fd)  # a file open for writing would forbid it
        subprocess.run([shutil.which("mount"), "-o", "remount,ro", str(small_disk)], check=True)
        with pytest.raises(SnapshotWriteError, match="Read-only"):
            await store.save(sample(3))
        assert_same(await store.newest("ticks", 2, 100), sample(1))
        assert kinds(events) == [KIND.DAMAGED]
        assert "cannot be renamed" in events[0].reason
        store._locks.clear()


async def test_a_path_that_is_no_directory(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    store = DirectoryStore(tmp_path / "file" / "snapshots", group=GROUP)
    with pytest.raises(SnapshotStoreError, match=r"io\.snapshot_path"):
        await store.open()
    with pytest.raises(SnapshotStoreError, match="not open"):
        await store.acquire("ticks", 2)


async def test_everything_is_flushed_before_and_after_the_rename(tmp_path, monkeypatch):
    calls = []

    def watch(function_name, describe):
        real = getattr(os, function_name)

        def watched(*arguments, **options):
            calls.append((function_name, describe(*arguments)))
            return real(*arguments, **options)

        monkeypatch.setattr(os, function_name, watched)

    def target(fd):
        path = Path(os.readlink(f"/proc/self/fd/{fd}"))
        return "directory" if path.is_dir() else path.suffix

    for is_flushed in (True, False):
        async with DirectoryStore(tmp_path / str(is_flushed), group=GROUP, fsync=is_flushed) as store:
            await store.acquire("ticks", 2)
            with monkeypatch.context():
                watch("fsync", target)
                watch("replace", lambda source, destination: Path(destination).suffix)
                calls.clear()
                await store.save(sample())
            monkeypatch.undo()
        expected = [("replace", ".usp")]
        if is_flushed:
            expected = [("fsync", ".tmp"), *expected, ("fsync", "directory")]
        assert calls == expected


# Locks


async def test_a_partition_has_one_holder(store, tmp_path):
    async with DirectoryStore(tmp_path / "io" / "snapshots", group=GROUP, instance="second") as other:
        with pytest.raises(PartitionLockedError, match=f"process {os.getpid()}"):
            await other.acquire("ticks", 2)
        with pytest.raises(PartitionNotHeldError):
            await other.save(sample())
        await store.acquire("ticks", 2)  # harmless
        await store.release("ticks", 2)
        await store.release("ticks", 2)
        await other.acquire("ticks", 2)
        await other.save(sample())
        with pytest.raises(PartitionLockedError, match="second"):
            await store.acquire("ticks", 2)
    await store.acquire("ticks", 2)  # closing has released it


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b'{"pid": 1}', b"\xff" * 9000])
async def test_a_lock_that_does_not_say_who_holds_it(content, store, home, tmp_path):
    (home / ".lock").write_bytes(content)
    async with DirectoryStore(tmp_path / "io" / "snapshots", group=GROUP) as other:
        with pytest.raises(PartitionLockedError, match="another process") as caught:
            await other.acquire("ticks", 2)
        assert caught.value.holder is None
        await store.release("ticks", 2)
        await other.acquire("ticks", 2)


async def test_what_a_dead_holder_has_left_in_the_lock_is_overwritten(store, home, tmp_path):
    await store.release("ticks", 2)
    assert (home / ".lock").read_bytes() == b""
    (home / ".lock").write_bytes(b'{"pid": 1, "host": "' + b"x" * 3000 + b'", "instance": "dead", "since_ns": 1}')
    await store.acquire("ticks", 2)
    async with DirectoryStore(tmp_path / "io" / "snapshots", group=GROUP) as other:
        with pytest.raises(PartitionLockedError) as caught:
            await other.acquire("ticks", 2)
    assert caught.value.holder is not None
    assert caught.value.holder.pid == os.getpid()


async def test_closing_twice_and_using_a_closed_store(tmp_path):
    store = DirectoryStore(tmp_path, group=GROUP)
    await store.close()
    await store.open()
    await store.open()
    await store.close()
    await store.close()
    with pytest.raises(SnapshotStoreError, match="not open"):
        await store.save(sample())
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("snapshots") and thread.daemon]


# The event loop


async def test_the_event_loop_goes_on_while_a_snapshot_is_written(tmp_path):
    begun, loop = asyncio.Event(), asyncio.get_running_loop()
    may_go_on = threading.Event()

    def crash(point):
        if point == "snapshot.half_written":
            loop.call_soon_threadsafe(begun.set)
            assert may_go_on.wait(60), "the event loop stands still"

    async with DirectoryStore(tmp_path, group=GROUP, crash_fn=crash) as store:
        await store.acquire("ticks", 2)
        save = asyncio.create_task(store.save(sample()))
        await begun.wait()
        release = asyncio.create_task(store.release("ticks", 2))
        await asyncio.sleep(0)
        assert not save.done()
        assert not release.done()  # waits for what was begun
        may_go_on.set()
        await save
        await release


async def test_a_cancelled_caller_leaves_a_whole_snapshot(tmp_path):
    begun, loop = asyncio.Event(), asyncio.get_running_loop()
    may_go_on = threading.Event()

    def crash(point):
        if point == "snapshot.half_written":
            loop.call_soon_threadsafe(begun.set)
            assert may_go_on.wait(60)

    async with DirectoryStore(tmp_path, group=GROUP, crash_fn=crash) as store:
        await store.acquire("ticks", 2)
        save = asyncio.create_task(store.save(sample()))
        await begun.wait()
        save.cancel()
        with pytest.raises(asyncio.CancelledError):
            await save
        may_go_on.set()
        assert_same(await store.newest("ticks", 2, 100), sample())


# Names


@hypothesis.given(st.text(alphabet=st.characters(), max_size=20) | st.text(alphabet="./%~aÜ\0 ", max_size=300))
def test_no_name_leads_out_of_its_directory(text):
    found = directory_name(text)
    assert re.fullmatch(r"[A-Za-z0-9_%~-][A-Za-z0-9._%~-]*", found)
    assert len(found) <= 180


@hypothesis.given(st.lists(st.text(alphabet="./%~a", max_size=4) | st.text(alphabet="é.", min_size=60), unique=True))
def test_different_names_have_different_directories(names):
    assert len({directory_name(text) for text in names}) == len(names)


@pytest.mark.parametrize("hostile", ["..", "../../etc", "/etc", ".", "", "a/b", "a\0b", "~", "x" * 5000])
async def test_hostile_groups_and_topics_stay_inside(hostile, tmp_path):
    base = tmp_path / "base"
    topic = hostile or "ticks"
    async with DirectoryStore(base, group=hostile) as store:
        await store.acquire(topic, 0)
        await store.save(sample(group=hostile, topic=topic, partition=0))
        assert_same(await store.newest(topic, 0, 100), sample(group=hostile, topic=topic, partition=0))
    assert os.listdir(tmp_path) == ["base"]
    (found,) = base.rglob("*.usp")
    assert len(found.relative_to(base).parts) == 4


# All of it together


@pytest.mark.parametrize("seed", range(5))
async def test_against_a_model_in_memory(seed, tmp_path):
    """Saves, failures, damage and new stores in any order: what is handed out is what a dictionary says."""
    generator = random.Random(seed)
    disk, model = Disk(), {}
    keep = generator.randint(1, 4)
    options = {"group": GROUP, "keep": keep, "write_fn": disk.write, "observe_fn": lambda event: None}
    store = DirectoryStore(tmp_path, **options)
    await store.open()
    await store.acquire("ticks", 2)
    for step in range(60):
        action = generator.choice(("save", "save", "fail", "damage", "reopen"))
        offset = generator.randint(0, 30)
        if action == "save":
            await store.save(sample(offset, config_epoch=step))
            model = {o: epoch for o, epoch in model.items() if o < offset} | {offset: step}
            model = dict(sorted(model.items())[-keep:])
        elif action == "fail":
            disk.error, disk.bytes_left = errno.ENOSPC, generator.randint(0, 1000)
            with pytest.raises(SnapshotWriteError):
                await store.save(sample(offset, config_epoch=step))
            disk.error = None
        elif action == "damage" and model:
            offset = generator.choice(sorted(model))
            (path,) = tmp_path.rglob(name(offset))
            flip(path, generator.randrange(path.stat().st_size))
            found = await store.newest("ticks", 2, offset)
            assert found is None or found.offset < offset
            del model[offset]
        elif action == "reopen":
            await store.close()
            store = DirectoryStore(tmp_path, **options)
            await store.open()
            await store.acquire("ticks", 2)
        assert [info.offset for info in await store.list("ticks", 2)] == sorted(model, reverse=True)
        limit = generator.randint(-1, 31)
        found = await store.newest("ticks", 2, limit)
        expected = max((o for o in model if o <= limit), default=None)
        assert (found and (found.offset, found.config_epoch)) == (
            expected if expected is None else (expected, model[expected])
        )
    await store.close()
    for path in tmp_path.rglob("*.usp"):
        read_snapshot(path)
