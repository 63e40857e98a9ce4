"""Snapshots whose content follows from their offset, and a writer of their format made from its documentation alone."""

import hashlib
import struct
import zlib

import msgspec
import numpy as np

from usp_daemon.persistence import Snapshot

GROUP = "a group/with ~ everything: ü"
CREATED_NS = 1_700_000_000_000_000_000
FIELDS = (
    "topic", "partition", "offset", "group", "symbols", "identity", "settings", "config_hash", "config_epoch",
    "num_input_partitions", "created_ns", "counters",
)  # fmt: skip


def sample(offset=7, *, num_symbols=3, width=4, topic="ticks", partition=2, group=GROUP, **changes):
    """A snapshot that differs from the one at any other offset in every array."""
    grid = np.arange(num_symbols * width, dtype=np.int64).reshape(num_symbols, width)
    shift = offset % 1_000_003
    arrays = {
        "model.weights": (grid + shift) / 7.0,
        "model.scale": (grid[:, 0] + 0.5 + shift).astype(np.float32),
        "gate.open": (grid + shift) % 3 == 0,
        "gate.mode": (grid[:, :2] + shift).astype(np.int32),
        "stamp_ns": CREATED_NS + shift + grid[:, 0],
        "nothing": np.zeros((num_symbols, 0), np.float64),
    }
    values = {
        "topic": topic,
        "partition": partition,
        "offset": offset,
        "group": group,
        "symbols": tuple(f"Ω-{number}/é" for number in range(num_symbols)),
        "arrays": arrays,
        "identity": {"program_hash": "ab" * 32, "jax_version": "0.10.2", "tile_width": 64},
        "settings": {"orchestration.cusum_k": 0.5, "kernels.log_sig_depth": 3, "core.cusum_h": "auto", "x.on": True},
        "config_hash": "cd" * 32,
        "config_epoch": 4,
        "num_input_partitions": 12,
        "created_ns": CREATED_NS,
        "counters": {"alarms": shift * 2},
    }
    return Snapshot(**(values | changes))


def assert_same(left, right):
    """Equal to the last bit."""
    for name in FIELDS:
        assert getattr(left, name) == getattr(right, name), name
    assert list(left.arrays) == list(right.arrays)
    for path, array in left.arrays.items():
        other = right.arrays[path]
        assert (array.dtype.newbyteorder("="), array.shape) == (other.dtype.newbyteorder("="), other.shape), path
        assert array.astype(array.dtype.newbyteorder("<")).tobytes() == other.tobytes(), path


def header_by_hand(snapshot, compression="none"):
    """The header's members and the uncompressed body, as docs/snapshots.md describes them."""
    table, body = [], b""
    for path, array in snapshot.arrays.items():
        body += b"\0" * (-len(body) % 64)
        raw = array.astype(array.dtype.newbyteorder("<")).tobytes()
        entry = {"path": path, "dtype": array.dtype.newbyteorder("<").str, "shape": array.shape}
        table.append(entry | {"offset": len(body), "length": len(raw)})
        body += raw
    end = table[-1]["offset"] + table[-1]["length"] if table else 0
    header = {"compression": compression, "body_length": end, "arrays": table}
    header |= {name: getattr(snapshot, name) for name in FIELDS}
    return header, body


def frame_by_hand(version, header, body):
    """A file around a header (bytes, or what MessagePack can write) and a stored body."""
    packed = header if isinstance(header, bytes) else msgspec.msgpack.encode(header)
    data = b"\x89USPSNAP" + struct.pack("<II", version, len(packed)) + packed
    data += struct.pack("<I", zlib.crc32(data))
    data += b"\0" * (-len(data) % 64) + body
    return data + hashlib.sha256(data).digest()
