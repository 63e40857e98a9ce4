"""One change at a time, whoever makes it; a dead holder holds nothing; nobody waits for ever."""

import dataclasses
import fcntl
import json
import os
import subprocess
import sys
import time

import pytest

from mutation_worlds import World
from usp_daemon.config import MutationLockedError, ProcessIdentity, this_process
from usp_daemon.config._lock import LockOwner, mutation_lock

K = "orchestration.cusum_k"
HOLD = """
import sys
from pathlib import Path
from usp_daemon.config._lock import mutation_lock
with mutation_lock(Path(sys.argv[1]), "the other one", timeout_s=5):
    print("held", flush=True)
    sys.stdin.readline()
"""
COUNT = """
import sys
sys.path.insert(0, sys.argv[2])
from usp_daemon.config import ConfigMutator, ConfigSource
source = ConfigSource(sys.argv[1], {})
for number in range(int(sys.argv[3])):
    value = source.load().settings.orchestration.cusum_k
    ConfigMutator(source, lock_timeout_s=60).apply({"orchestration.cusum_k": 0.6 if value == 0.5 else 0.5}, trigger="x")
"""


@pytest.fixture
def path(tmp_path):
    return tmp_path / "mutation.lock"


def hold(path):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    return process


def end(process):
    process.kill()
    process.wait()
    process.stdin.close()
    process.stdout.close()


def test_who_waits_too_long_is_told_the_holders_name(path):
    holder = hold(path)
    began = time.monotonic()
    with pytest.raises(MutationLockedError, match="the other one") as caught, mutation_lock(path, "me", timeout_s=0.3):
        pass
    assert time.monotonic() - began < 30.0
    assert f"process {holder.pid}" in caught.value.holder
    end(holder)


def test_a_holder_that_was_killed_holds_nothing_and_is_named(path):
    holder = hold(path)
    end(holder)
    assert json.loads(path.read_bytes())["process"]["pid"] == holder.pid
    with mutation_lock(path, "me", timeout_s=5) as found:
        assert found.process.pid == holder.pid
    assert path.read_bytes() == b""


def write(path, process, since_ns=None):
    owner = LockOwner(process, "somebody", time.time_ns() if since_ns is None else since_ns)
    path.write_text(json.dumps(dataclasses.asdict(owner)))


def is_free(path):
    try:
        with mutation_lock(path, "me", timeout_s=0.05):
            return True
    except MutationLockedError:
        return False


def parent():
    """A process that lives and is not this one."""
    from usp_daemon.config._process import start_of

    return dataclasses.replace(this_process(), pid=os.getppid(), start=start_of(os.getppid()))


def test_a_name_counts_where_the_lock_was_granted_to_two(path):
    """As on a network file system without a lock service: the kernel says free, the file says held."""
    write(path, parent())
    assert not is_free(path)


def test_a_number_that_was_given_to_another_process_holds_nothing(path):
    write(path, dataclasses.replace(parent(), start=parent().start - 1))
    assert is_free(path)


def test_a_holder_of_before_the_restart_holds_nothing(path):
    write(path, dataclasses.replace(parent(), boot="another"))
    assert is_free(path)


@pytest.mark.parametrize(("age_s", "free"), [(0, False), (50, False), (70, True), (-50, False), (-1e6, True)])
def test_a_holder_elsewhere_holds_for_a_minute(path, age_s, free):
    write(path, ProcessIdentity("another-host", 1, 1, "b"), time.time_ns() - int(age_s * 1e9))
    assert is_free(path) is free


@pytest.mark.parametrize("content", [b"", b"\xff", b"{}", b"[]", b'{"process": 3}'])
def test_what_cannot_be_read_holds_nothing(path, content):
    path.write_bytes(content)
    assert is_free(path)


def test_two_at_once_make_every_change_one_after_the_other(tmp_path, repository_root):
    limits = "[security]\nallowed_mutation_rate_per_hour = 1000\nmin_ticks_between_mutations = 0\n"
    world = World(tmp_path, "# kept\n[orchestration]\ncusum_k = 0.5\n" + limits)
    arguments = [sys.executable, "-c", COUNT, str(world.file), str(repository_root / "tests"), "6"]
    both = [subprocess.Popen(arguments) for _ in range(2)]
    assert [process.wait(timeout=300) for process in both] == [0, 0]
    applied = [line for line in world.lines() if line["event"] == "MUTATION_APPLIED"]
    assert set(world.events()) == {"MUTATION_APPLIED"}
    assert 6 <= len(applied) <= 12  # where both saw the same value, one found it made already
    assert [line["delta"][K][0] for line in applied] == [0.5, 0.6] * (len(applied) // 2) + [0.5] * (len(applied) % 2)
    assert world.is_whole() is True
    assert world.file.read_text().startswith("# kept\n")
    assert world.changes_and_undoes() == []


def test_a_file_system_without_locks_is_named(path, monkeypatch):
    from usp_daemon.config import MutationFailedError

    def none(fd, operation):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", none)
    with pytest.raises(MutationFailedError, match=r"io\.state_path"), mutation_lock(path, "me", timeout_s=0.1):
        pass
