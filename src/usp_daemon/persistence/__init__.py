"""Snapshots of partitions: one atomic, hash-verified file each, and the store that keeps the last few. Beside them the
recorder of the daemon's own input.
"""

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
    TickRingError,
)
from ._inspect import FoundFile, look_at, problem_of, snapshot_files
from ._snapshot import Snapshot, SnapshotInfo
from ._store import AbstractSnapshotStore, SnapshotEvent, SnapshotEventKind, log_event
from ._symbol_sample import choose_symbols, symbol_hash
from ._tick_ring import TickRing, TickRingEvent, TickRingEventKind, log_ring_event
from ._tick_segments import RecordedTicks, read_ticks

__all__ = [
    "CRASH_POINTS",
    "FORMAT_VERSION",
    "AbstractSnapshotStore",
    "ArrayEntry",
    "Compression",
    "DamagedSnapshotError",
    "DirectoryStore",
    "Encoding",
    "FoundFile",
    "InsufficientStorageError",
    "LockHolder",
    "PartitionLockedError",
    "PartitionNotHeldError",
    "PersistenceError",
    "RecordedTicks",
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
    "TickRing",
    "TickRingError",
    "TickRingEvent",
    "TickRingEventKind",
    "choose_symbols",
    "decode_snapshot",
    "encode_snapshot",
    "log_event",
    "log_ring_event",
    "look_at",
    "problem_of",
    "read_header",
    "read_snapshot",
    "read_ticks",
    "snapshot_files",
    "symbol_hash",
]
