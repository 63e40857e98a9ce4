r"""A snapshot as bytes: one self-contained file, no pickle, every bit of it checked.

| position  | bytes | content                                                                                      |
|-----------|-------|----------------------------------------------------------------------------------------------|
| 0         | 8     | magic, ``89 55 53 50 53 4E 41 50`` ("\x89USPSNAP")                                            |
| 8         | 4     | format version, unsigned                                                                     |
| 12        | 4     | h, the header's length, unsigned                                                             |
| 16        | h     | header: a MessagePack map, see :class:`SnapshotHeader`                                       |
| 16 + h    | 4     | CRC-32 of everything before it, so that a header can be trusted without reading the body     |
| 20 + h    | 0..63 | zeros up to a multiple of 64                                                                 |
| body      | b     | arrays in C order, each at the place that the header's table gives; or all of that as gzip   |
| size - 32 | 32    | SHA-256 of everything before it                                                              |

Numbers are little-endian. The frame, that is all but the meaning of header and body, is the same in every version: a
file of a newer version is told from a damaged one by its hash. Nothing is copied on the way out, except an array that
is not contiguous or not little-endian, one at a time.
"""

import dataclasses
import hashlib
import itertools
import math
import os
import stat
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, BinaryIO, Literal, NamedTuple

import msgspec
import numpy as np

from usp_daemon.config import SPECS

from ._errors import DamagedSnapshotError, SnapshotContentError, SnapshotVersionError
from ._migrations import MIGRATIONS, Arrays, migrate
from ._snapshot import Snapshot

Compression = Literal["none", "gzip"]

FORMAT_VERSION = len(MIGRATIONS)
MAGIC = b"\x89USPSNAP"

_PREFIX = struct.Struct("<8sII")
_CRC = struct.Struct("<I")
_HASH_BYTES = 32
_ALIGNMENT = 64
_CHUNK_BYTES = 1 << 20
_DTYPES = frozenset({"|b1", "|i1", "|u1", *(f"<{kind}{size}" for kind in "iuf" for size in (2, 4, 8)), "<c8", "<c16"})
# States are floating-point numbers, whose mantissas hardly compress: higher levels cost time and gain nothing.
_GZIP_LEVEL = 1
_GZIP_WINDOW = 31  # zlib's code for a gzip wrapper
# Deflate cannot expand by more than this, so a larger promise is a lie that need not be allocated for; nor can it
# shrink what it is given by less than this allows.
_MAX_EXPANSION = 1032
_MAX_GZIP_OVERHEAD = 1024
# A hundred thousand symbols with the longest names that the wire allows take a fifth of this.
_MAX_HEADER_BYTES = 64 << 20


class ArrayEntry(msgspec.Struct, frozen=True):
    """Where an array lies: ``offset`` and ``length`` in bytes of the uncompressed body, ``offset`` a multiple of 64."""

    path: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    length: int


class _BodyTable(msgspec.Struct, frozen=True):
    """The part of the header that is the same in every version."""

    compression: Compression
    # Bytes of the body before compression.
    body_length: int
    arrays: tuple[ArrayEntry, ...]


class SnapshotHeader(_BodyTable, frozen=True, kw_only=True):
    """The header of the present version. Members that a later program of the same version adds are ignored.

    The members are those of :class:`Snapshot`, arrays aside, and the table of arrays.
    """

    topic: str
    partition: int
    offset: int
    group: str
    symbols: tuple[str, ...]
    identity: dict[str, str | int]
    settings: dict[str, float | int | bool | str]
    config_hash: str
    config_epoch: int
    num_input_partitions: int
    created_ns: int
    counters: dict[str, int]


class StoredHeader(NamedTuple):
    """A header, and the format version and the size in bytes of the file that it came from."""

    format_version: int
    size_bytes: int
    header: SnapshotHeader


_METADATA = tuple(field.name for field in dataclasses.fields(Snapshot) if field.name != "arrays")


class Encoding:
    """A snapshot ready to be written. Making one checks everything; raises :class:`SnapshotContentError`."""

    def __init__(self, snapshot: Snapshot, compression: Compression = "none") -> None:
        self._compression = compression
        self._arrays = list(snapshot.arrays.values())
        self._entries, self._body_length = _table(snapshot)
        secrets = [path for path in snapshot.settings if path in SPECS and SPECS[path].key.secret]
        if secrets:
            raise SnapshotContentError(f"settings: secrets are never stored, got {', '.join(secrets)}")
        try:
            header = msgspec.msgpack.encode(
                SnapshotHeader(
                    compression=compression,
                    body_length=self._body_length,
                    arrays=self._entries,
                    **{name: _plain(getattr(snapshot, name)) for name in _METADATA},
                )
            )
            # Types are checked on the way in only; a header that could not be read back must not be written.
            msgspec.msgpack.decode(header, type=SnapshotHeader)
        except (TypeError, ValueError, OverflowError, msgspec.MsgspecError) as error:
            raise SnapshotContentError(f"the header cannot be written: {error}") from error
        if len(header) > _MAX_HEADER_BYTES:
            raise SnapshotContentError(f"the header has {len(header)} bytes; at most {_MAX_HEADER_BYTES} are possible")
        prelude = _PREFIX.pack(MAGIC, FORMAT_VERSION, len(header)) + header
        prelude += _CRC.pack(zlib.crc32(prelude))
        self._prelude = prelude.ljust(_aligned(len(prelude)), b"\0")

    @property
    def size_bytes(self) -> int:
        """Size of the file: exact without compression, and about what it can reach at most with it."""
        return len(self._prelude) + self._body_length + _HASH_BYTES

    def chunks(self) -> Iterator[bytes | memoryview]:
        """The file from front to back, in pieces of at most 1 MiB (the first one aside), hashed as they pass."""
        digest = hashlib.sha256()
        body = self._body() if self._compression == "none" else _compressed(self._body())
        for piece in itertools.chain((self._prelude,), body):
            digest.update(piece)
            yield piece
        yield digest.digest()

    def _body(self) -> Iterator[bytes | memoryview]:
        position = 0
        for entry, array in zip(self._entries, self._arrays, strict=True):
            if entry.offset > position:
                yield bytes(entry.offset - position)
            position = entry.offset + entry.length
            if entry.length:
                plain = np.ascontiguousarray(array, dtype=np.dtype(entry.dtype))
                view = plain.reshape(-1).view(np.uint8).data
                for start in range(0, entry.length, _CHUNK_BYTES):
                    yield view[start : start + _CHUNK_BYTES]


def encode_snapshot(snapshot: Snapshot, compression: Compression = "none") -> bytes:
    """All bytes at once, for stores that do not write files. Raises :class:`SnapshotContentError`."""
    return b"".join(Encoding(snapshot, compression).chunks())


def decode_snapshot(data: bytes | bytearray | memoryview) -> Snapshot:
    """The snapshot in ``data``; its arrays are read-only views, into ``data`` itself unless that is compressed.

    Raises :class:`DamagedSnapshotError`, and :class:`SnapshotVersionError` for a whole file in a newer format.
    """
    view = memoryview(data).toreadonly().cast("B")
    frame = _parse_frame(view, len(view))
    if hashlib.sha256(view[:-_HASH_BYTES]).digest() != view[-_HASH_BYTES:]:
        raise _hash_mismatch()
    _refuse_newer(frame.version)
    return _assemble(frame, view[frame.body_start : -_HASH_BYTES])


def read_snapshot(path: str | os.PathLike[str]) -> Snapshot:
    """The snapshot in a file, read once into memory that its arrays, read-only, share.

    Raises as :func:`decode_snapshot`, and ``OSError``. Nothing is allocated before the header is known to be whole and
    to agree with the file's size.
    """
    with _opened(path) as file:
        frame, prelude, size = _read_prelude(file)
        digest = hashlib.sha256(prelude)
        body_bytes = size - _HASH_BYTES - frame.body_start
        # What cannot be read need not be kept, only hashed.
        keeps = frame.version <= FORMAT_VERSION
        body = np.empty(body_bytes if keeps else min(body_bytes, _CHUNK_BYTES), np.uint8).data
        for start in range(0, body_bytes, _CHUNK_BYTES):
            length = min(_CHUNK_BYTES, body_bytes - start)
            piece = body[start : start + length] if keeps else body[:length]
            if _read_into(file, piece) != length:
                raise DamagedSnapshotError("the file became shorter while it was read")
            digest.update(piece)
        if file.read(_HASH_BYTES) != digest.digest():
            raise _hash_mismatch()
    _refuse_newer(frame.version)
    return _assemble(frame, body.toreadonly())


def read_header(path: str | os.PathLike[str]) -> StoredHeader:
    """The header of a file, checked by its own checksum; the body is not read, so it may still be damaged.

    Raises :class:`DamagedSnapshotError`, :class:`SnapshotVersionError` and ``OSError``.
    """
    with _opened(path) as file:
        frame, _, size = _read_prelude(file)
    _refuse_newer(frame.version)
    header, _ = _migrated(frame, {})
    return StoredHeader(frame.version, size, header)


# Frame


class _Frame(NamedTuple):
    version: int
    header: memoryview
    # None in a version that is not known: nothing is then said about the body but its hash.
    table: _BodyTable | None
    body_start: int


def _opened(path: str | os.PathLike[str]) -> BinaryIO:
    # Not blocking: a named pipe in place of a file would be waited for without end.
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise DamagedSnapshotError("not a regular file")
    return open(fd, "rb", buffering=0)


def _read_prelude(file: BinaryIO) -> tuple[_Frame, bytes, int]:
    """The frame, everything before the body, and the file's size; the file then stands at the body."""
    size = os.fstat(file.fileno()).st_size
    prefix = _read_exactly(file, min(_PREFIX.size, size))
    prelude = prefix + _read_exactly(file, _prelude_length(prefix, size) - len(prefix))
    return _parse_frame(memoryview(prelude), size), prelude, size


def _prelude_length(prefix: bytes | memoryview, size: int) -> int:
    """Bytes before the body of a file of ``size`` bytes."""
    if size < _PREFIX.size + _CRC.size + _HASH_BYTES:
        raise DamagedSnapshotError(f"too short for a snapshot: {size} bytes")
    magic, _, header_length = _PREFIX.unpack_from(prefix)
    if magic != MAGIC:
        raise DamagedSnapshotError(f"not a snapshot: expected it to begin with {MAGIC!r}, got {bytes(magic)!r}")
    length = _aligned(_PREFIX.size + header_length + _CRC.size)
    if header_length > _MAX_HEADER_BYTES:
        raise DamagedSnapshotError(f"a header of {header_length} bytes; at most {_MAX_HEADER_BYTES} are possible")
    if length + _HASH_BYTES > size:
        raise DamagedSnapshotError(f"cut off: a header of {header_length} bytes does not fit into {size} bytes")
    return length


def _parse_frame(view: memoryview, size: int) -> _Frame:
    """The frame of a file of ``size`` bytes that begins with ``view``, which must reach up to the body."""
    body_start = _prelude_length(view[: _PREFIX.size], size)
    _, version, header_length = _PREFIX.unpack_from(view)
    header_end = _PREFIX.size + header_length
    if zlib.crc32(view[:header_end]) != _CRC.unpack_from(view, header_end)[0]:
        raise DamagedSnapshotError("the header does not match its checksum")
    header = view[_PREFIX.size : header_end]
    if version > FORMAT_VERSION:
        return _Frame(version, header, None, body_start)
    try:
        table = msgspec.msgpack.decode(header, type=_BodyTable)
    except (msgspec.MsgspecError, RecursionError, ValueError) as error:
        raise DamagedSnapshotError(f"the header's table of arrays cannot be read: {error}") from error
    _check_table(table, size - _HASH_BYTES - body_start)
    return _Frame(version, header, table, body_start)


def _check_table(table: _BodyTable, stored_bytes: int) -> None:
    """Refuse a table whose parts do not add up to each other, or not to ``stored_bytes`` of body."""
    position = end = 0
    for entry in table.arrays:
        if entry.dtype not in _DTYPES:
            raise DamagedSnapshotError(f"array {entry.path!r}: expected booleans or numbers, got dtype {entry.dtype!r}")
        if not 1 <= len(entry.shape) <= 32 or any(extent < 0 for extent in entry.shape):
            raise DamagedSnapshotError(f"array {entry.path!r}: impossible shape {entry.shape}")
        length = math.prod(entry.shape) * np.dtype(entry.dtype).itemsize
        if (entry.offset, entry.length) != (position, length):
            raise DamagedSnapshotError(
                f"array {entry.path!r}: expected {length} bytes at {position}, got {entry.length} at {entry.offset}"
            )
        end = position + length
        position = _aligned(end)
    if table.body_length != end:
        raise DamagedSnapshotError(f"the arrays need {end} bytes, but the body is to have {table.body_length}")
    if len({entry.path for entry in table.arrays}) != len(table.arrays):
        raise DamagedSnapshotError("two arrays have one path")
    if table.compression == "none" and stored_bytes != end:
        raise DamagedSnapshotError(f"cut off or too long: the body should have {end} bytes, it has {stored_bytes}")
    if table.compression == "gzip" and not (
        end <= stored_bytes * _MAX_EXPANSION and stored_bytes <= end + end // 100 + _MAX_GZIP_OVERHEAD
    ):
        raise DamagedSnapshotError(f"a body of {end} bytes cannot be {stored_bytes} bytes in gzip")


def _refuse_newer(version: int) -> None:
    if version > FORMAT_VERSION:
        raise SnapshotVersionError(
            f"format version {version} is newer than {FORMAT_VERSION}, the newest that this program reads; "
            "use the program that wrote it, or a newer one",
            version,
        )


def _hash_mismatch() -> DamagedSnapshotError:
    return DamagedSnapshotError("the content does not match its SHA-256")


# Body


def _assemble(frame: _Frame, body: memoryview) -> Snapshot:
    """The snapshot, from a frame of a known version and the stored body."""
    assert frame.table is not None
    table = frame.table
    if table.compression == "gzip":
        body = _decompressed(body, table.body_length)
    arrays: Arrays = {}
    for entry in table.arrays:
        raw = np.frombuffer(body[entry.offset : entry.offset + entry.length], np.uint8)
        if entry.dtype == "|b1" and raw.size and raw.max() > 1:
            raise DamagedSnapshotError(f"array {entry.path!r}: a boolean is neither 0 nor 1")
        try:
            arrays[entry.path] = raw.view(entry.dtype).reshape(entry.shape)
        except (ValueError, OverflowError) as error:  # an extent that NumPy cannot have, in an array without elements
            raise DamagedSnapshotError(f"array {entry.path!r}: impossible shape {entry.shape}") from error
    header, arrays = _migrated(frame, arrays)
    try:
        return Snapshot(arrays=arrays, **{name: getattr(header, name) for name in _METADATA})
    except SnapshotContentError as error:
        raise DamagedSnapshotError(str(error)) from error


def _migrated(frame: _Frame, arrays: Arrays) -> tuple[SnapshotHeader, Arrays]:
    try:
        if frame.version == FORMAT_VERSION:
            return msgspec.msgpack.decode(frame.header, type=SnapshotHeader), arrays
        plain = msgspec.msgpack.decode(frame.header, type=dict)
        plain, arrays = migrate(frame.version, plain, arrays)
        return msgspec.convert(plain, SnapshotHeader), arrays
    except (msgspec.MsgspecError, RecursionError, KeyError, ValueError, TypeError) as error:
        raise DamagedSnapshotError(f"the header cannot be read: {error}") from error


def _compressed(pieces: Iterable[bytes | memoryview]) -> Iterator[bytes]:
    compressor = zlib.compressobj(_GZIP_LEVEL, zlib.DEFLATED, _GZIP_WINDOW)
    for piece in pieces:
        if packed := compressor.compress(piece):
            yield packed
    yield compressor.flush()


def _decompressed(stored: memoryview, length: int) -> memoryview:
    """Exactly ``length`` bytes, never more in memory than that and a piece."""
    whole = np.empty(length, np.uint8).data
    decompressor = zlib.decompressobj(_GZIP_WINDOW)
    taken = position = 0
    pending: bytes | memoryview = b""
    try:
        while not decompressor.eof:
            pending = pending or stored[taken : taken + _CHUNK_BYTES]
            taken += 0 if decompressor.unconsumed_tail else len(pending)
            has_input = len(pending) > 0
            # One byte more than is expected, so that too much is noticed.
            piece = decompressor.decompress(pending, min(_CHUNK_BYTES, length - position) + 1)
            pending = decompressor.unconsumed_tail
            if position + len(piece) > length or not (piece or has_input):
                break
            whole[position : position + len(piece)] = piece
            position += len(piece)
    except zlib.error as error:
        raise DamagedSnapshotError(f"the body is no gzip: {error}") from error
    if position != length or not decompressor.eof or decompressor.unused_data or taken != len(stored):
        raise DamagedSnapshotError(f"the body does not decompress to {length} bytes")
    return whole.toreadonly()


def _aligned(length: int) -> int:
    return -(-length // _ALIGNMENT) * _ALIGNMENT


def _table(snapshot: Snapshot) -> tuple[tuple[ArrayEntry, ...], int]:
    """The table of a snapshot's arrays, and the length of the body."""
    entries = []
    position = end = 0
    for path, array in snapshot.arrays.items():
        dtype = array.dtype.newbyteorder("<").str
        if dtype not in _DTYPES:
            raise SnapshotContentError(f"array {path!r}: expected booleans or numbers, got dtype {array.dtype}")
        entries.append(ArrayEntry(path, dtype, array.shape, position, array.nbytes))
        end = position + array.nbytes
        position = _aligned(end)
    return tuple(entries), end


def _plain(value: Any) -> Any:
    return dict(value) if isinstance(value, Mapping) else value


def _read_exactly(file: BinaryIO, length: int) -> bytes:
    data = bytearray(length)
    if _read_into(file, memoryview(data)) != length:
        raise DamagedSnapshotError("the file became shorter while it was read")
    return bytes(data)


def _read_into(file: BinaryIO, target: memoryview) -> int:
    """Fill ``target`` from an unbuffered file; returns how many bytes there were."""
    position = 0
    while position < len(target):
        count = os.readv(file.fileno(), [target[position:]])
        if count == 0:
            break
        position += count
    return position
