"""One change of the configuration at a time: ``flock`` on a file that says who holds it.

The kernel gives the lock back when its holder dies, so what is left in the file of a dead holder is of no consequence.
Where a file system grants the lock to two (network file systems without a lock service do), what the file says counts:
a holder on this host that still lives holds it, a holder elsewhere for a minute at most, which is many times what a
change takes.
"""

import contextlib
import dataclasses
import fcntl
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

from ._mutation_errors import MutationFailedError, MutationLockedError
from ._process import ProcessIdentity, this_process

LOCK_FILE = "mutation.lock"
FOREIGN_LEASE_S = 60.0
_PAUSE_S = 0.02
_MAX_BYTES = 4096


@dataclasses.dataclass(frozen=True, slots=True)
class LockOwner:
    """Who holds the lock, since when by the holder's clock."""

    process: ProcessIdentity
    who: str
    since_ns: int

    def __str__(self) -> str:
        return f"{self.who} ({self.process})"


@contextlib.contextmanager
def mutation_lock(path: Path, who: str, *, timeout_s: float) -> Iterator[LockOwner | None]:
    """Holds the lock; gives whom a dead holder's name was found of, None after an orderly end.

    Waits ``timeout_s`` at most. Raises :class:`MutationLockedError` with the holder, and :class:`MutationFailedError`
    where the file cannot be locked at all.
    """
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        text = f"{path}: the lock cannot be opened: {error.strerror}; io.state_path must be writable"
        raise MutationFailedError(text) from error
    try:
        found = _take(fd, path, time.monotonic() + timeout_s)
        owner = LockOwner(this_process(), who, time.time_ns())
        _write(fd, json.dumps(dataclasses.asdict(owner)).encode())
        try:
            yield found
        finally:
            _write(fd, b"")
    finally:
        os.close(fd)


def _take(fd: int, path: Path, until: float) -> LockOwner | None:
    while True:
        granted = True
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            granted = False
        except OSError as error:
            text = f"{path}: the file system has no locks ({error.strerror}); io.state_path must lie on one that has"
            raise MutationFailedError(text) from error
        owner = _read(fd)
        if granted and not _holds_in_spite(owner):
            return owner
        if granted:
            fcntl.flock(fd, fcntl.LOCK_UN)
        if time.monotonic() >= until:
            holder = str(owner) if owner is not None else "a process that has not said its name"
            text = f"the configuration is being changed by {holder}; try again, or end it ({path})"
            raise MutationLockedError(text, holder)
        time.sleep(_PAUSE_S)


def _holds_in_spite(owner: LockOwner | None) -> bool:
    """Whether somebody else holds a lock that was granted to us."""
    if owner is None or owner.process == this_process():
        return False
    if owner.process.is_here:
        return owner.process.is_alive
    # by two clocks, either of which may be wrong: far in the future is as stale as far in the past
    return abs(time.time_ns() - owner.since_ns) < FOREIGN_LEASE_S * 1e9


def _write(fd: int, content: bytes) -> None:
    with contextlib.suppress(OSError):  # a full disk must not keep a change from being undone
        os.ftruncate(fd, 0)
        os.pwrite(fd, content, 0)


def _read(fd: int) -> LockOwner | None:
    """What the file says; None after an orderly end, and between a holder's taking the lock and its writing."""
    try:
        document = json.loads(os.pread(fd, _MAX_BYTES, 0))
        process = ProcessIdentity.of(document["process"])
        return LockOwner(process, str(document["who"]), int(document["since_ns"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
