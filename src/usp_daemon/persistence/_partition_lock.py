"""The lock of a partition's directory: ``flock`` on a file that says who holds it.

The kernel gives the lock back when its holder dies, so a stale one cannot exist; what the file still says about a dead
holder is overwritten by the next. The file itself is never removed: whoever had it open would lock a file that nobody
else can see.
"""

import contextlib
import dataclasses
import fcntl
import json
import os
import pathlib
import socket
import time

from ._errors import LockHolder, PartitionLockedError
from ._names import LOCK_FILE

_MAX_BYTES = 4096


class PartitionLock:
    """Held from construction to :meth:`release`.

    A child that is forked (not spawned) meanwhile shares the lock and keeps it alive after its parent's death.
    """

    def __init__(self, directory: pathlib.Path, what: str, instance: str) -> None:
        """Take the lock. Raises :class:`PartitionLockedError` with the holder, and ``OSError``."""
        path = directory / LOCK_FILE
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = _read_holder(self._fd)
                raise PartitionLockedError(
                    f"the snapshots of {what} are held by {holder or 'another process'} ({path}); one partition has "
                    "one owner, so end that one, or give each replica a directory of its own",
                    holder,
                ) from None
            holder = LockHolder(pid=os.getpid(), host=socket.gethostname(), instance=instance, since_ns=time.time_ns())
            os.ftruncate(self._fd, 0)
            os.pwrite(self._fd, json.dumps(dataclasses.asdict(holder)).encode(), 0)
        except BaseException:
            os.close(self._fd)
            raise

    def release(self) -> None:
        """Give the lock back, with the name wiped out."""
        with contextlib.suppress(OSError):  # a full or read-only disk must not keep the lock
            os.ftruncate(self._fd, 0)
        os.close(self._fd)


def _read_holder(fd: int) -> LockHolder | None:
    """What the file says; None between a holder's taking the lock and its writing who it is."""
    try:
        return LockHolder(**json.loads(os.pread(fd, _MAX_BYTES, 0)))
    except (OSError, ValueError, TypeError):
        return None
