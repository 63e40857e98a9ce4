"""The journal file of campaigns: Optuna's operations, a line of JSON each, every one on the disk before it counts.

Optuna's own file backend guards the file by a link that a killed process leaves behind, for which the next one waits
half a minute, and it appends after a line that a killed process has left unfinished, after which nobody can read the
file. This one takes a lock that ends with its process, and removes an unfinished line before it appends: the operation
in it was never confirmed to anybody.
"""

import contextlib
import fcntl
import json
import os
import pathlib
from collections.abc import Iterable, Iterator
from typing import Any

from optuna.storages.journal import BaseJournalBackend

from ._errors import CampaignInUseError, StorageError

_TAIL_BYTES = 1 << 16


class JournalFile(BaseJournalBackend):
    """Operations in a file; processes may read it at any time, and append to it in turn.

    With ``must_exist`` nothing is written before something is appended, and a missing file is a ``StorageError``.
    """

    def __init__(self, path: str | os.PathLike[str], *, must_exist: bool = False) -> None:
        self._path = pathlib.Path(path)
        # (number of the operation, offset of its line) of the first one that was not read yet
        self._next = (0, 0)
        if must_exist:
            if not self._path.is_file():
                raise StorageError(f"{self._path}: no such file")
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("ab"):
                pass
            _sync_directory(self._path.parent)
        except OSError as error:
            raise StorageError(f"{self._path}: {error.strerror or error}") from error

    def read_logs(self, log_number_from: int) -> Iterable[dict[str, Any]]:
        """Every complete operation from number ``log_number_from`` on."""
        number, offset = self._next if log_number_from >= self._next[0] else (0, 0)
        operations = []
        with self._path.open("rb") as file:
            file.seek(offset)
            for line in file:
                if not line.endswith(b"\n"):
                    break  # still being written, or left by a process that was killed
                if number >= log_number_from:
                    operations.append(self._parsed(line, number))
                number, offset = number + 1, offset + len(line)
        self._next = (number, offset)
        return operations

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Write the operations, in one piece, and wait until the disk has them."""
        content = b"".join(json.dumps(log, separators=(",", ":")).encode() + b"\n" for log in logs)
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            end = _end_of_last_line(descriptor)
            os.ftruncate(descriptor, end)
            written = 0
            while written < len(content):
                written += os.pwrite(descriptor, content[written:], end + written)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)  # the lock goes with it

    def _parsed(self, line: bytes, number: int) -> dict[str, Any]:
        try:
            operation = json.loads(line)
        except ValueError as error:
            raise StorageError(f"{self._path}: line {number + 1} is damaged: {error}") from error
        if not isinstance(operation, dict) or "op_code" not in operation:
            raise StorageError(f"{self._path}: line {number + 1} is no operation of a journal")
        return operation


@contextlib.contextmanager
def exclusive(path: str | os.PathLike[str]) -> Iterator[None]:
    """Hold the campaigns in the journal ``path`` alone. Raises :class:`CampaignInUseError` at once where another does.

    The lock ends with the process, however it ends. The file that carries it stays.
    """
    lock_path = pathlib.Path(f"{os.fspath(path)}.lock")
    descriptor = os.open(lock_path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.pread(descriptor, 64, 0).decode("ascii", "replace").strip() or "unknown"
            raise CampaignInUseError(f"{path}: another process (pid {owner}) is running this campaign") from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)


def _end_of_last_line(descriptor: int) -> int:
    """Where the last complete line ends."""
    end = os.fstat(descriptor).st_size
    while end > 0:
        begin = max(end - _TAIL_BYTES, 0)
        newline = os.pread(descriptor, end - begin, begin).rfind(b"\n")
        if newline >= 0:
            return begin + newline + 1
        end = begin
    return 0


def _sync_directory(path: pathlib.Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
