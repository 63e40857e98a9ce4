"""The system calls that change what lies on a disk, and the one way in which a file is replaced as a whole.

write a temporary file beside it | fsync it | rename it over the old one | fsync the directory
---------------------------------|--------------------------------------|-----------------------
  a crash: the old one           |  old or new, whole                    |  the new one
"""

import contextlib
import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

TEMPORARY_SUFFIX = ".usp-tmp"


class Disk:
    """Each method is one system call. Tests put one in its place that fails, or cuts the power, at any of them."""

    def open_new(self, path: Path, mode: int) -> int:
        """Opens a file that is not yet there for writing."""
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)

    def open_to_append(self, path: Path) -> int:
        """Opens a file, there or not, for reading and for writing at its end."""
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)

    def write(self, fd: int, data: bytes | memoryview) -> int:
        """Writes some of the bytes and says how many."""
        return os.write(fd, data)

    def truncate(self, fd: int, size: int) -> None:
        """Cuts the file off."""
        os.ftruncate(fd, size)

    def fsync(self, fd: int) -> None:
        """Returns when the content is on the disk."""
        os.fsync(fd)

    def replace(self, source: Path, target: Path) -> None:
        """Puts ``source`` in place of ``target``."""
        os.replace(source, target)

    def unlink(self, path: Path) -> None:
        """Removes a name."""
        os.unlink(path)

    def fsync_directory(self, path: Path) -> None:
        """Returns when the names in the directory are on the disk."""
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def write_all(disk: Disk, fd: int, content: bytes) -> None:
    """Writes every byte, in as many calls as it takes."""
    rest = memoryview(content)
    while rest:
        rest = rest[disk.write(fd, rest) :]


def write_whole(
    disk: Disk,
    path: Path,
    content: bytes,
    *,
    temporary: Path | None = None,
    mode: int = 0o644,
    like: os.stat_result | None = None,
    check_fn: Callable[[], None] = lambda: None,
) -> None:
    """Puts ``content`` in place of the file ``path``, which must not be a link.

    With ``like`` the new file has the mode and the owner of the old one. ``check_fn`` is called at the last moment and
    may raise. Whatever is raised, ``OSError`` included, the old file stands, unless it is the directory that could not
    be flushed. Only one writer may use one ``temporary`` at a time: what lies there is removed.
    """
    temporary = temporary or path.with_name(f".{path.name}{TEMPORARY_SUFFIX}")
    with contextlib.suppress(FileNotFoundError):
        disk.unlink(temporary)
    fd = disk.open_new(temporary, 0o600 if like is not None else mode)
    try:
        try:
            write_all(disk, fd, content)
            if like is not None:
                if (like.st_uid, like.st_gid) != (os.geteuid(), os.getegid()):
                    os.fchown(fd, like.st_uid, like.st_gid)
                os.fchmod(fd, like.st_mode & 0o7777)
            disk.fsync(fd)
        finally:
            os.close(fd)
        check_fn()
        disk.replace(temporary, path)
    except Exception:
        with contextlib.suppress(OSError):
            disk.unlink(temporary)
        raise
    disk.fsync_directory(path.parent)


class DamagedStateError(Exception):
    """A file of the state directory that is not what was written there."""


def write_state(disk: Disk, path: Path, document: Any) -> None:
    """Puts a small JSON document in place. Raises ``OSError``."""
    if dataclasses.is_dataclass(document) and not isinstance(document, type):
        document = dataclasses.asdict(document)
    content = json.dumps(document, indent=2, allow_nan=False).encode("ascii") + b"\n"
    write_whole(disk, path, content)


def read_state(path: Path) -> Any:
    """The document, None where there is none. Raises :class:`DamagedStateError` and ``OSError``."""
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError) as error:
        raise DamagedStateError(f"{path}: expected JSON, got something else") from error


def make_directory(disk: Disk, path: Path) -> None:
    """Makes the directory and those above it, and makes their names last. Raises ``OSError``."""
    missing = [each for each in (path, *path.parents) if not each.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for each in reversed(missing):
        disk.fsync_directory(each.parent)
