"""Snapshots as files: ``<path>/<group>/<topic>/<partition>/<offset, 20 digits>.usp``.

A snapshot appears under its name in one step, whole or not at all:

    write a temporary file | fsync | rename | fsync of the directory | set aside what lies beyond | remove the oldest
    ---------------------------------------|-------------------------------------------------------------------------
      a crash here leaves the former ones  |  a crash here leaves the new one (after a power failure: one of the two)
      and a file that nobody reads         |  and perhaps more old ones than asked for, until the next is saved
"""

import asyncio
import contextlib
import errno
import os
import pathlib
import secrets
import socket
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

from ._codec import Compression, Encoding, read_header, read_snapshot
from ._durable import make_directory, sync_directory
from ._errors import (
    DamagedSnapshotError,
    InsufficientStorageError,
    PartitionNotHeldError,
    PersistenceError,
    SnapshotContentError,
    SnapshotReadError,
    SnapshotStoreError,
    SnapshotVersionError,
    SnapshotWriteError,
)
from ._names import (
    DAMAGED_SUFFIX,
    SUPERSEDED_SUFFIX,
    TEMPORARY_SUFFIX,
    directory_name,
    offset_of,
    snapshot_name,
)
from ._partition_lock import PartitionLock
from ._snapshot import Snapshot, SnapshotInfo
from ._store import AbstractSnapshotStore, SnapshotEvent, SnapshotEventKind, log_event

_P = ParamSpec("_P")
_T = TypeVar("_T")

# In the order in which a save passes them.
CRASH_POINTS = (
    "snapshot.temp_opened",
    "snapshot.half_written",
    "snapshot.before_fsync",
    "snapshot.before_rename",
    "snapshot.before_directory_fsync",
    "snapshot.after",
)


def free_bytes(directory: pathlib.Path) -> int | None:
    """Bytes that this process may still write in ``directory``; None where the file system does not say."""
    status = os.statvfs(directory)
    return status.f_bavail * status.f_frsize if status.f_blocks else None


def _no_crash(point: str) -> None:
    del point


class DirectoryStore(AbstractSnapshotStore):
    """Keeps the last ``keep`` snapshots of each partition of ``group`` in files below ``path``.

    ``fsync`` makes a snapshot survive the machine's death, not only the process's. ``instance`` is the name that a
    second holder is told. ``observe_fn`` gets every event, in the store's own thread; it must neither raise nor wait.
    The rest is for tests: ``crash_fn`` is called at every name in ``CRASH_POINTS``, ``write_fn`` writes like
    ``os.write``, ``free_bytes_fn`` says how much space there is.

    One thread does all the work, in the order in which it was asked for, so that the disk sees one snapshot at a time.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        group: str,
        keep: int = 5,
        fsync: bool = True,
        compression: Compression = "none",
        instance: str | None = None,
        observe_fn: Callable[[SnapshotEvent], None] = log_event,
        crash_fn: Callable[[str], None] = _no_crash,
        write_fn: Callable[[int, bytes | memoryview], int] = os.write,
        free_bytes_fn: Callable[[pathlib.Path], int | None] = free_bytes,
    ) -> None:
        if keep < 1:
            raise ValueError(f"keep: expected at least 1, got {keep}")
        self._base = pathlib.Path(path)
        self._group = group
        self._keep = keep
        self._fsync = fsync
        self._compression: Compression = compression
        self._instance = instance if instance is not None else socket.gethostname()
        self._observe = observe_fn
        self._crash = crash_fn
        self._write = write_fn
        self._free_bytes = free_bytes_fn
        self._locks: dict[tuple[str, int], PartitionLock] = {}
        self._executor: ThreadPoolExecutor | None = None

    async def open(self) -> None:
        """Make the directory, or find it. Raises :class:`SnapshotStoreError` when neither is possible."""
        if self._executor is None:
            self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="snapshots")
        try:
            await self._do(self._make_directory, self._base)
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Finish what was begun and release every partition."""
        if self._executor is None:
            return
        try:
            await self._do(self._release_all)
        finally:
            executor, self._executor = self._executor, None
            executor.shutdown(wait=False)

    async def acquire(self, topic: str, partition: int) -> None:
        """Lock the partition's directory, and remove what a process that died while saving has left there."""
        await self._do(self._acquire, topic, partition)

    async def release(self, topic: str, partition: int) -> None:
        """Unlock the partition's directory."""
        await self._do(self._release, topic, partition)

    async def save(self, snapshot: Snapshot) -> SnapshotInfo:
        """Write one file and put it in place, then remove the oldest beyond ``keep``.

        Twice the snapshot's size must be free beforehand, compression or not.
        """
        return await self._do(self._save, snapshot)

    async def list(self, topic: str, partition: int) -> tuple[SnapshotInfo, ...]:
        """The files of a partition, highest offset first."""
        return await self._do(self._list, topic, partition)

    async def newest(self, topic: str, partition: int, not_above: int) -> Snapshot | None:
        """The newest whole one. Damaged ones are renamed to ``*.damaged``, if this store holds the partition."""
        return await self._do(self._newest, topic, partition, not_above)

    async def _do(self, function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        if self._executor is None:
            raise SnapshotStoreError("the snapshot store is not open")
        return await asyncio.get_running_loop().run_in_executor(self._executor, lambda: function(*args, **kwargs))

    # Everything below runs in the store's thread.

    def _directory(self, topic: str, partition: int) -> pathlib.Path:
        return self._base / directory_name(self._group) / directory_name(topic) / str(int(partition))

    def _acquire(self, topic: str, partition: int) -> None:
        if (topic, partition) in self._locks:
            return
        directory = self._directory(topic, partition)
        self._make_directory(directory)
        try:
            lock = PartitionLock(directory, f"{topic}/{partition}", self._instance)
        except OSError as error:
            raise SnapshotStoreError(
                f"{directory}: snapshots cannot be written here: {error.strerror}; io.snapshot_path must be writable"
            ) from error
        self._locks[topic, partition] = lock
        # The lock proves that whoever wrote these lives no more.
        for name in self._names(directory):
            if name.endswith(TEMPORARY_SUFFIX):
                with self._tidying(topic, partition, directory / name):
                    os.unlink(directory / name)
                    reason = "left by a process that ended while it was saving"
                    self._report(SnapshotEventKind.ORPHAN_REMOVED, topic, partition, directory / name, reason)

    def _release(self, topic: str, partition: int) -> None:
        lock = self._locks.pop((topic, partition), None)
        if lock is not None:
            lock.release()

    def _release_all(self) -> None:
        for topic, partition in tuple(self._locks):
            self._release(topic, partition)

    def _save(self, snapshot: Snapshot) -> SnapshotInfo:
        topic, partition = snapshot.topic, snapshot.partition
        if (topic, partition) not in self._locks:
            raise PartitionNotHeldError(f"{topic}/{partition} must be acquired before its snapshots are saved")
        if snapshot.group != self._group:
            raise SnapshotContentError(
                f"group: expected {self._group!r}, which this store serves, got {snapshot.group!r}"
            )
        encoding = Encoding(snapshot, self._compression)
        directory = self._directory(topic, partition)
        path = directory / snapshot_name(snapshot.offset)
        try:
            self._check_space(directory, 2 * encoding.size_bytes)
            size = self._write_file(encoding, directory, path)
        except OSError as error:
            raise SnapshotWriteError(
                f"{path}: the snapshot could not be written: {error.strerror or error}; the former ones are untouched"
            ) from error
        self._tidy(topic, partition, directory, snapshot.offset)
        self._crash("snapshot.after")
        return SnapshotInfo(
            name=path.name,
            topic=topic,
            partition=partition,
            offset=snapshot.offset,
            size_bytes=size,
            created_ns=snapshot.created_ns,
            locator=str(path),
        )

    def _check_space(self, directory: pathlib.Path, needed: int) -> None:
        free = self._free_bytes(directory)
        if free is not None and free < needed:
            raise InsufficientStorageError(
                f"{directory}: a snapshot needs {needed:,} free bytes, twice its size; there are {free:,}", needed, free
            )

    def _write_file(self, encoding: Encoding, directory: pathlib.Path, path: pathlib.Path) -> int:
        """Write and rename; returns the file's size. Whatever goes wrong, no temporary file stays."""
        temporary = directory / f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}{TEMPORARY_SUFFIX}"
        try:
            fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
            try:
                self._crash("snapshot.temp_opened")
                size = self._write_chunks(fd, encoding)
                self._crash("snapshot.before_fsync")
                if self._fsync:
                    os.fsync(fd)
            finally:
                os.close(fd)
            self._crash("snapshot.before_rename")
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
        self._crash("snapshot.before_directory_fsync")
        self._sync_directory(directory)
        return size

    def _write_chunks(self, fd: int, encoding: Encoding) -> int:
        half = encoding.size_bytes // 2
        size = 0
        is_half_written = False
        for chunk, is_last in _with_last(encoding.chunks()):
            # Compressed, a snapshot may never come near the size that was foreseen.
            if not is_half_written and (size >= half or is_last):
                is_half_written = True
                self._crash("snapshot.half_written")
            view = memoryview(chunk)
            while view:
                written = self._write(fd, view)
                if written <= 0:
                    raise OSError(errno.EIO, "nothing was written")
                view = view[written:]
                size += written
        return size

    def _tidy(self, topic: str, partition: int, directory: pathlib.Path, saved: int) -> None:
        """Keep the one at ``saved`` and the ``keep`` - 1 before it.

        Snapshots are taken at committed offsets, which only grow while a topic and its group go on; one beyond the
        newest is from before somebody set them back, and must not be taken for this history's later on.
        """
        offsets = self._offsets(directory)
        for offset in (offset for offset in offsets if offset > saved):
            reason = f"beyond offset {saved}, which was saved after it: the offsets were set back"
            self._set_aside(SnapshotEventKind.SUPERSEDED, topic, partition, directory, offset, reason)
        for offset in [offset for offset in offsets if offset <= saved][self._keep :]:
            path = directory / snapshot_name(offset)
            with self._tidying(topic, partition, path):
                os.unlink(path)

    def _list(self, topic: str, partition: int) -> tuple[SnapshotInfo, ...]:
        directory = self._directory(topic, partition)
        found = []
        for offset in self._offsets(directory):
            path = directory / snapshot_name(offset)
            try:
                size = path.stat().st_size
                created_ns = read_header(path).header.created_ns
            except FileNotFoundError:  # removed by its owner in the meantime
                continue
            except OSError as error:
                raise SnapshotReadError(f"{path}: {error.strerror or error}") from error
            except PersistenceError:
                created_ns = None
            found.append(
                SnapshotInfo(
                    name=path.name,
                    topic=topic,
                    partition=partition,
                    offset=offset,
                    size_bytes=size,
                    created_ns=created_ns,
                    locator=str(path),
                )
            )
        return tuple(found)

    def _newest(self, topic: str, partition: int, not_above: int) -> Snapshot | None:
        directory = self._directory(topic, partition)
        for offset in self._offsets(directory):
            if offset > not_above:
                continue
            path = directory / snapshot_name(offset)
            try:
                snapshot = read_snapshot(path)
                self._check_place(snapshot, topic, partition, offset)
                return snapshot
            except DamagedSnapshotError as error:
                kind = SnapshotEventKind.QUARANTINED
                if (topic, partition) in self._locks:
                    self._set_aside(kind, topic, partition, directory, offset, str(error))
                else:  # its owner may be about to do the same
                    self._report(SnapshotEventKind.DAMAGED, topic, partition, path, str(error), offset)
            except SnapshotVersionError as error:
                self._report(SnapshotEventKind.NEWER_VERSION, topic, partition, path, str(error), offset)
            except FileNotFoundError:  # removed by its owner in the meantime
                continue
            except OSError as error:
                # A bad block is this file's own trouble; no rights, or no more descriptors, would be every file's.
                if error.errno != errno.EIO:
                    raise SnapshotReadError(f"{path}: {error.strerror or error}") from error
                self._report(SnapshotEventKind.UNREADABLE, topic, partition, path, str(error), offset)
        return None

    def _check_place(self, snapshot: Snapshot, topic: str, partition: int, offset: int) -> None:
        """A file that was copied here from elsewhere is whole, and wrong."""
        found = (snapshot.group, snapshot.topic, snapshot.partition, snapshot.offset)
        if found != (self._group, topic, partition, offset):
            raise DamagedSnapshotError(f"it belongs to group {found[0]!r}, {found[1]}/{found[2]} at offset {found[3]}")

    def _set_aside(
        self, kind: SnapshotEventKind, topic: str, partition: int, directory: pathlib.Path, offset: int, reason: str
    ) -> None:
        """Rename a snapshot so that nobody takes it for one; an earlier one set aside at the same offset stays."""
        is_damaged = kind is SnapshotEventKind.QUARANTINED
        path = directory / snapshot_name(offset)
        suffix = DAMAGED_SUFFIX if is_damaged else SUPERSEDED_SUFFIX
        target, number = directory / f"{path.name}{suffix}", 1
        while os.path.lexists(target):
            number += 1
            target = directory / f"{path.name}.{number}{suffix}"
        try:
            os.rename(path, target)
        except OSError as error:
            left = SnapshotEventKind.DAMAGED if is_damaged else SnapshotEventKind.NOT_TIDIED
            text = f"{reason}; it cannot be renamed: {error.strerror or error}"
            self._report(left, topic, partition, path, text, offset)
        else:
            self._report(kind, topic, partition, target, reason, offset)

    def _offsets(self, directory: pathlib.Path) -> Sequence[int]:
        """Offsets of the snapshots in ``directory``, highest first."""
        found = (offset_of(name) for name in self._names(directory))
        return sorted((offset for offset in found if offset is not None), reverse=True)

    def _names(self, directory: pathlib.Path) -> Sequence[str]:
        try:
            return os.listdir(directory)
        except FileNotFoundError:
            return []
        except OSError as error:
            raise SnapshotReadError(f"{directory}: {error.strerror or error}") from error

    def _make_directory(self, directory: pathlib.Path) -> None:
        """Make ``directory`` and its parents, durably."""
        try:
            make_directory(directory, fsync=self._fsync)
        except OSError as error:
            raise SnapshotStoreError(
                f"{error.filename}: the directory cannot be made: {error.strerror}; check io.snapshot_path"
            ) from error

    def _sync_directory(self, directory: pathlib.Path) -> None:
        if self._fsync:
            sync_directory(directory)

    @contextlib.contextmanager
    def _tidying(self, topic: str, partition: int, path: pathlib.Path) -> Iterator[None]:
        """Report what cannot be removed: untidiness is no reason to fail."""
        try:
            yield
        except OSError as error:
            self._report(SnapshotEventKind.NOT_TIDIED, topic, partition, path, str(error), offset_of(path.name))

    def _report(
        self,
        kind: SnapshotEventKind,
        topic: str,
        partition: int,
        path: pathlib.Path,
        reason: str,
        offset: int | None = None,
    ) -> None:
        self._observe(
            SnapshotEvent(kind=kind, topic=topic, partition=partition, locator=str(path), reason=reason, offset=offset)
        )


def _with_last(chunks: Iterator[bytes | memoryview]) -> Iterator[tuple[bytes | memoryview, bool]]:
    """Each chunk, and whether it is the last."""
    previous = next(chunks)
    for chunk in chunks:
        yield previous, False
        previous = chunk
    yield previous, True
