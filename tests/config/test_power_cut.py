"""The power is cut, or the disk fails, at every single system call of every kind of change.

Afterwards every file is the old one or the new one, whole; the log verifies; and the same change made again arrives.
"""

import errno
import os
import pathlib
import tempfile

import pytest

from mutation_worlds import Quick, World
from usp_daemon.config import ConfigMutationError, MutationOutcome, MutationRejectedError
from usp_daemon.config._disk import Disk

K, ALPHA = "orchestration.cusum_k", "orchestration.volatility_alpha"
TEXT = "# by hand\n[orchestration]\ncusum_k = 0.5 # the allowance\n[security]\nmin_ticks_between_mutations = 0\n[io]\n"


@pytest.fixture
def tmp_path(tmp_path):
    """In memory where there is a file system in memory: nothing here is flushed for real, and there are many files."""
    if not os.path.isdir("/dev/shm"):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        yield pathlib.Path(directory)


class PowerCut(BaseException):
    """Nothing of the process survives this, so nothing may catch it."""


class FragileDisk(Disk):
    """Counts calls, and at the ``at``-th cuts the power: half a write is done, of anything else nothing.

    What was not flushed by then is lost afterwards in one of three ways, by :meth:`lose`.
    """

    def __init__(self, at=None):
        self.at, self.count, self.calls = at, 0, []
        self._durable = {}  # inode -> content that was flushed, of files with anything that was not
        self._undo = {}  # directory -> how to take back names that were not flushed, oldest first

    def _call(self, name, path, before_cut_fn=lambda: None):
        self.calls.append((name, str(path)))
        self.count += 1
        if self.at is not None and self.count >= self.at:
            before_cut_fn()
            raise PowerCut

    def open_new(self, path, mode):
        self._call("open_new", path)
        fd = super().open_new(path, mode)
        self._durable[os.fstat(fd).st_ino] = b""
        self._undo.setdefault(path.parent, []).append(lambda: path.unlink(missing_ok=True))
        return fd

    def open_to_append(self, path):
        self._call("open_to_append", path)
        is_new = not path.exists()
        fd = super().open_to_append(path)
        if is_new:
            self._undo.setdefault(path.parent, []).append(lambda: path.unlink(missing_ok=True))
        return fd

    def _remember(self, fd):
        self._durable.setdefault(os.fstat(fd).st_ino, os.pread(fd, 1 << 20, 0) if self._readable(fd) else b"")

    @staticmethod
    def _readable(fd):
        try:
            os.pread(fd, 1, 0)
        except OSError:
            return False
        return True

    def write(self, fd, data):
        self._remember(fd)
        self._call("write", fd, lambda: super(FragileDisk, self).write(fd, data[: len(data) // 2]))
        return super().write(fd, data[: max(1, 2 * len(data) // 3)])  # and never all at once

    def truncate(self, fd, size):
        self._remember(fd)
        self._call("truncate", fd)
        super().truncate(fd, size)

    def fsync(self, fd):
        self._call("fsync", fd)
        self._durable.pop(os.fstat(fd).st_ino, None)

    def replace(self, source, target):
        self._call("replace", target)
        former = target.read_bytes() if target.exists() else None
        super().replace(source, target)

        def take_back():
            os.replace(target, source)
            if former is not None:
                target.write_bytes(former)

        self._undo.setdefault(target.parent, []).append(take_back)

    def unlink(self, path):
        self._call("unlink", path)
        former = path.read_bytes() if path.exists() else None
        super().unlink(path)
        if former is not None:
            self._undo.setdefault(path.parent, []).append(lambda: path.write_bytes(former))

    def fsync_directory(self, path):
        self._call("fsync_directory", path)
        self._undo.pop(path, None)

    def lose(self, what, root):
        """``nothing``: all had reached the disk. ``data``: names had, data that was not flushed had not. ``all``."""
        if what == "nothing":
            return
        for path in list(root.rglob("*")):
            if path.is_file() and path.stat().st_ino in self._durable:
                path.write_bytes(self._durable[path.stat().st_ino])
        if what == "all":
            for actions in self._undo.values():
                for action in reversed(actions):
                    action()


def apply(mutator):
    return mutator.apply({K: 0.6, ALPHA: 0.12}, trigger="test", evidence={"n": 1})


def nothing_before(world):
    pass


def change_before(world):
    world.mutator().apply({K: 0.55}, trigger="test")


def overlay_before(world):
    world.file.chmod(0o444)
    refuse = Quick()
    refuse.open_new = lambda path, mode: (
        Quick.open_new(refuse, path, mode) if path.parent != world.file.parent else _read_only(path)
    )
    world.mutator(disk=refuse).apply({K: 0.55}, trigger="test")


def _read_only(path):
    raise OSError(errno.EROFS, "Read-only file system", str(path))


def both_before(world):
    """A file and an overlay that a way back has to change together."""
    change_before(world)
    overlay_before(world)


CASES = {
    "first change": (nothing_before, apply, 0.6),
    "second change": (change_before, apply, 0.6),
    "change in the overlay": (overlay_before, apply, 0.6),
    "way back": (change_before, lambda mutator: mutator.rollback(reason="worse"), 0.5),
    "way back in the overlay": (overlay_before, lambda mutator: mutator.rollback(), 0.5),
    "way back of file and overlay": (
        lambda world: (world.mutator().mark_epoch(1), change_before(world), overlay_further(world)),
        lambda mutator: mutator.rollback("1"),
        0.5,
    ),
}


# These change nothing but the log and what lies beside it.
LOG_CASES = {
    "proposal": (change_before, lambda mutator: mutator.propose({K: 1.9}, trigger="test"), 0.55),
    "keeping": (change_before, lambda mutator: mutator.keep(reason="better"), 0.55),
    "epoch": (change_before, lambda mutator: mutator.mark_epoch(3) or mutator.keep(), 0.55),
    "refusal": (change_before, lambda mutator: refused(mutator), 0.55),
}


def refused(mutator):
    with pytest.raises(MutationRejectedError) as caught:
        mutator.apply({K: 2.0}, trigger="test")
    caught.outcome = None
    return caught


def overlay_further(world):
    refuse = Quick()
    refuse.open_new = lambda path, mode: (
        Quick.open_new(refuse, path, mode) if path.parent != world.file.parent else _read_only(path)
    )
    world.mutator(disk=refuse).apply({ALPHA: 0.12}, trigger="test")


def contents(world):
    overlay = world.state / "overlay.json"
    return world.file.read_bytes(), overlay.read_bytes() if overlay.exists() else None


@pytest.mark.slow
@pytest.mark.parametrize("lost", ["nothing", "data", "all"])
@pytest.mark.parametrize("case", [*CASES, *LOG_CASES])
def test_power_cut_at_every_call(tmp_path, case, lost):
    prepare, change, wanted = {**CASES, **LOG_CASES}[case]
    at, is_cut = 0, True
    while is_cut:
        at += 1
        world = World(tmp_path / str(at), TEXT)
        prepare(world)
        old, old_settings = contents(world), world.settings()
        disk = FragileDisk(at)
        try:
            change(world.mutator(disk=disk))
            is_cut = False
        except PowerCut:
            disk.lose(lost, world.root)
        present = contents(world)
        hashes = {old_settings.content_hash()}
        # each file is old or new, whole: it loads, and what it says is the one or the other
        value = world.settings()[K]
        assert value in (old_settings[K], wanted), at
        if present == old:
            assert world.settings() == old_settings
        # whoever comes next finds out what has happened, and the log says so
        world.mutator().settle()
        assert world.is_whole() is True, at
        assert world.changes_and_undoes() == [], at
        value = world.settings()[K]
        stands = contents(world) != old
        done = ("MUTATION_APPLIED", "MUTATION_ROLLED_BACK")
        last = [line for line in world.lines() if line["event"] in done]
        hashes = {line["config_hash_after"] for line in last[-1:]} or hashes
        if stands:
            assert world.settings().content_hash() in hashes, at
            assert value == wanted
        # and the same again arrives
        if stands and "way back" in case:
            with pytest.raises(ConfigMutationError) if "file and overlay" not in case else _nothing():
                change(world.mutator())
        else:
            again = change(world.mutator())
            assert (again.outcome is MutationOutcome.UNCHANGED) == stands
        assert world.settings()[K] == wanted
        assert world.is_whole() is True
        assert any(line["event"] in done for line in world.lines())
    assert at > 15, "there are that many calls in a change"


class _nothing:
    def __enter__(self):
        return self

    def __exit__(self, *error):
        return False


class FailingDisk(FragileDisk):
    """A disk that says it is full, at one call or from one call on."""

    def __init__(self, at, *, for_good):
        super().__init__()
        self.failing_at, self.for_good = at, for_good

    def _call(self, name, path, before_cut_fn=lambda: None):
        super()._call(name, path)
        if name in ("unlink", "truncate"):  # these need no room
            return
        if self.count == self.failing_at or (self.for_good and self.count > self.failing_at):
            before_cut_fn()
            raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.slow
@pytest.mark.parametrize("for_good", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_a_full_disk_at_every_call(tmp_path, case, for_good):
    prepare, change, wanted = CASES[case]
    counting = World(tmp_path / "counting", TEXT)
    prepare(counting)
    disk = FragileDisk()
    change(counting.mutator(disk=disk))
    for at in range(1, disk.count + 1):
        world = World(tmp_path / str(at), TEXT)
        prepare(world)
        old, old_settings = contents(world), world.settings()
        is_made = False
        try:
            change(world.mutator(disk=FailingDisk(at, for_good=for_good)))
            is_made = True
        except ConfigMutationError as error:
            assert "No space left" in str(error), at
            # either it was taken back, or it says that it could not be
            assert contents(world) == old or "next change completes it" in str(error) or for_good, at
        assert world.settings()[K] in (old_settings[K], wanted)
        world.mutator().settle()
        assert world.is_whole() is True, at
        stands = world.settings() != old_settings
        assert stands or not is_made
        if not stands:
            change(world.mutator())
        assert world.settings()[K] == wanted
        assert world.is_whole() is True


def test_the_file_is_flushed_before_it_takes_its_place_and_the_directory_after(tmp_path):
    world = World(tmp_path, TEXT)
    disk = FragileDisk()
    apply(world.mutator(disk=disk))
    names = [name for name, _ in disk.calls]
    (place,) = [i for i, call in enumerate(disk.calls) if call == ("replace", str(world.file))]
    opened = max(i for i in range(place) if names[i] == "open_new" and disk.calls[i][1].endswith(".usp-tmp"))
    between = names[opened:place]
    assert between[-1] == "fsync" and set(between[1:-1]) == {"write"}
    assert disk.calls[place + 1] == ("fsync_directory", str(world.file.parent))


def test_an_edit_by_a_person_after_the_cut_is_not_lost(tmp_path):
    """Cut after the file was in place and before the log knew; then a person edits; then the next comes."""
    world = World(tmp_path, TEXT)
    disk = FragileDisk()
    apply(world.mutator(disk=disk))
    (place,) = [i for i, call in enumerate(disk.calls, 1) if call == ("replace", str(world.file))]
    for at, expected in ((place, "MUTATION_FAILED"), (place + 1, "MUTATION_APPLIED")):
        world = World(tmp_path / str(at), TEXT)
        with pytest.raises(PowerCut):
            apply(world.mutator(disk=FragileDisk(at)))
        edited = world.file.read_bytes() + b"# a person\n"
        world.file.write_bytes(edited)
        world.mutator().settle()
        assert world.file.read_bytes() == edited
        assert world.events() == [expected]
        assert world.changes_and_undoes() == []
