"""A process that dies while it saves leaves whole snapshots, whatever the moment (T-65), and no lock."""

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from snapshot_samples import GROUP, assert_same, sample
from usp_daemon.persistence import (
    CRASH_POINTS,
    DirectoryStore,
    PartitionLockedError,
    SnapshotEventKind,
)

PROGRAM = Path(__file__).resolve().parent / "save_in_a_loop.py"
SIZE = {"num_symbols": 50, "width": 500}


def child(directory, **arguments):
    text = json.dumps({"directory": str(directory), "first": 1, "count": 1} | arguments)
    return subprocess.Popen([sys.executable, str(PROGRAM), text], stdout=subprocess.PIPE, text=True)


def saved_until_killed(process):
    """The last offset that was durable before the process killed itself."""
    output, _ = process.communicate(timeout=120)
    assert process.returncode == -signal.SIGKILL
    return max((int(line) for line in output.split()), default=0)


def files(directory):
    return sorted(path.name for path in directory.rglob("*") if path.is_file())


async def recovered(directory, num_temporary):
    """The newest snapshot, found by a store that comes after the death; nothing is damaged, nothing is left lying."""
    assert sum(name.endswith(".tmp") for name in files(directory)) == num_temporary
    events = []
    async with DirectoryStore(directory, group=GROUP, keep=5, observe_fn=events.append) as store:
        await store.acquire("ticks", 2)
        assert [event.kind for event in events] == [SnapshotEventKind.ORPHAN_REMOVED] * num_temporary
        newest = await store.newest("ticks", 2, 10**9)
        assert len(events) == num_temporary
        await store.save(sample((newest.offset if newest else 0) + 1, **SIZE))  # and the store goes on
    assert not any(name.endswith((".tmp", ".damaged")) for name in files(directory))
    return newest


@pytest.mark.parametrize("crash_point", CRASH_POINTS)
async def test_killed_at_every_crash_point(crash_point, tmp_path):
    last = saved_until_killed(child(tmp_path, count=3, crash_point=crash_point))
    assert last == 2
    is_renamed = crash_point in ("snapshot.before_directory_fsync", "snapshot.after")
    newest = await recovered(tmp_path, num_temporary=0 if is_renamed else 1)
    assert newest is not None
    assert_same(newest, sample(3 if is_renamed else 2, **SIZE))


@pytest.mark.parametrize("share", [0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 0.9999])
async def test_killed_after_a_share_of_the_bytes(share, tmp_path):
    assert saved_until_killed(child(tmp_path, count=2, share=share)) == 1
    newest = await recovered(tmp_path, num_temporary=1)
    assert newest is not None
    assert_same(newest, sample(1, **SIZE))


async def test_killed_while_the_first_is_written(tmp_path):
    assert saved_until_killed(child(tmp_path, share=0.5)) == 0
    assert await recovered(tmp_path, num_temporary=1) is None


async def test_killed_at_any_moment_again_and_again(tmp_path):
    """Each child goes on where the last was killed, at whatever it was doing when so many had been saved."""
    generator = random.Random(5)
    offset = 0
    for _ in range(6):
        process = child(tmp_path, first=offset + 1, count=100_000)
        assert process.stdout is not None
        for _ in range(generator.randint(1, 25)):
            offset = int(process.stdout.readline())
        process.kill()
        rest, _ = process.communicate(timeout=120)
        complete = rest.split() if rest.endswith("\n") else rest.split()[:-1]
        offset = max([offset, *map(int, complete)])
        async with DirectoryStore(tmp_path, group=GROUP, observe_fn=lambda event: None) as store:
            await store.acquire("ticks", 2)
            newest = await store.newest("ticks", 2, 10**9)
            assert newest is not None
            # what was reported durable is there; the one after it may be
            assert newest.offset in (offset, offset + 1)
            assert_same(newest, sample(newest.offset, **SIZE))
            kept = [info.offset for info in await store.list("ticks", 2)]
            assert kept == sorted(kept, reverse=True)
            assert len(kept) >= min(5, newest.offset)
            offset = newest.offset


async def test_the_lock_of_a_dead_process_is_free(tmp_path):
    process = child(tmp_path, hold=True)
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "held\n"
        async with DirectoryStore(tmp_path, group=GROUP) as store:
            with pytest.raises(PartitionLockedError, match=rf"held by process {process.pid} on .* \(child\)") as caught:
                await store.acquire("ticks", 2)
            assert caught.value.holder is not None
            assert (caught.value.holder.pid, caught.value.holder.instance) == (process.pid, "child")
            assert caught.value.holder.host == os.uname().nodename
            await store.acquire("ticks", 3)  # another partition is another lock
            process.kill()
            process.wait(timeout=60)
            await store.acquire("ticks", 2)
            await store.save(sample())
    finally:
        process.kill()
        process.communicate(timeout=60)
