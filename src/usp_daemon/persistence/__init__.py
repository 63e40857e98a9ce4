"""Snapshots of partitions: one atomic, hash-verified file each, and the store that keeps the last few."""

from ._codec import (
    FORMAT_VERSION,
    ArrayEntry,
    Compression,
    Encoding,
    SnapshotHeader,
    StoredHeader,
    decode_snapshot,
    encode_snapshot,
    read_header,
    read_snapshot,
)
from ._directory import CRASH_POINTS, DirectoryStore
from ._epochs import AbstractEpochLog, DirectoryEpochLog, Epoch, EpochLogError, decode_epoch, encode_epoch
from ._errors import (
    DamagedSnapshotError,
    InsufficientStorageError,
    LockHolder,
    PartitionLockedError,
    PartitionNotHeldError,
    PersistenceError,
    SnapshotContentError,
    SnapshotReadError,
    SnapshotStoreError,
    SnapshotVersionError,
    SnapshotWriteError,
)
from ._inspect import FoundFile, look_at, problem_of, snapshot_files
from ._snapshot import Snapshot, SnapshotInfo
from ._store import AbstractSnapshotStore, SnapshotEvent, SnapshotEventKind, log_event

__all__ = [
    "CRASH_POINTS",
    "FORMAT_VERSION",
    "AbstractEpochLog",
    "AbstractSnapshotStore",
    "ArrayEntry",
    "Compression",
    "DamagedSnapshotError",
    "DirectoryEpochLog",
    "DirectoryStore",
    "Encoding",
    "Epoch",
    "EpochLogError",
    "FoundFile",
    "InsufficientStorageError",
    "LockHolder",
    "PartitionLockedError",
    "PartitionNotHeldError",
    "PersistenceError",
    "Snapshot",
    "SnapshotContentError",
    "SnapshotEvent",
    "SnapshotEventKind",
    "SnapshotHeader",
    "SnapshotInfo",
    "SnapshotReadError",
    "SnapshotStoreError",
    "SnapshotVersionError",
    "SnapshotWriteError",
    "StoredHeader",
    "decode_epoch",
    "decode_snapshot",
    "encode_epoch",
    "encode_snapshot",
    "log_event",
    "look_at",
    "problem_of",
    "read_header",
    "read_snapshot",
    "snapshot_files",
]
