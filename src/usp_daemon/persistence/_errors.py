"""What can go wrong with snapshots, one name per condition."""

import dataclasses


class PersistenceError(Exception):
    """Base of every error that this package raises on purpose; the text says what was expected and what to do."""


class SnapshotContentError(PersistenceError):
    """A snapshot cannot be written as it is: a caller's mistake, found before anything is touched on the disk."""


class DamagedSnapshotError(PersistenceError):
    """The bytes are not a whole snapshot: flipped, cut off, of another kind, or of another place."""


class SnapshotVersionError(PersistenceError):
    """A whole snapshot in a format newer than this program knows."""

    def __init__(self, message: str, format_version: int) -> None:
        super().__init__(message)
        self.format_version = format_version


class SnapshotStoreError(PersistenceError):
    """The store cannot do its work: not there, not writable, not open, or the disk failed."""


class SnapshotReadError(SnapshotStoreError):
    """The operating system refused to read a snapshot, for a reason that says nothing about its bytes."""


class SnapshotWriteError(SnapshotStoreError):
    """A snapshot could not be written or made durable; older ones are as they were."""


class InsufficientStorageError(SnapshotStoreError):
    """Too little free space to begin a snapshot; nothing was written."""

    def __init__(self, message: str, needed_bytes: int, free_bytes: int) -> None:
        super().__init__(message)
        self.needed_bytes = needed_bytes
        self.free_bytes = free_bytes


class PartitionNotHeldError(SnapshotStoreError):
    """Something was to be saved for a partition whose lock this store does not hold."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LockHolder:
    """Who holds a partition: process, machine, name of the replica, and since when (wall clock, Unix nanoseconds)."""

    pid: int
    host: str
    instance: str
    since_ns: int

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} ({self.instance})"


class PartitionLockedError(SnapshotStoreError):
    """Another store holds the partition; ``holder`` says who, or is None when that cannot be read."""

    def __init__(self, message: str, holder: LockHolder | None) -> None:
        super().__init__(message)
        self.holder = holder


class TickRingError(PersistenceError):
    """Recorded ticks cannot be read: the directory refuses, or holds something else."""
