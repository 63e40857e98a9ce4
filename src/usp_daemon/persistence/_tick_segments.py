r"""Recorded ticks as bytes: segment files of frames, no pickle, each frame checked by itself.

| position | bytes | content                                                                           |
|----------|-------|-----------------------------------------------------------------------------------|
| 0        | 8     | magic, ``89 55 53 50 54 49 43 4B`` ("\x89USPTICK")                                 |
| 8        | 4     | format version, unsigned                                                          |
| 12       |       | frames, one behind the other, up to the end                                       |

| in a frame | bytes | content                                                                         |
|------------|-------|---------------------------------------------------------------------------------|
| 0          | 4     | kind: ``SYMS`` or ``TICK``                                                      |
| 4          | 4     | n, the payload's length, unsigned                                               |
| 8          | 4     | CRC-32 of kind, length and payload                                              |
| 12         | n     | ``SYMS``: a JSON object from number to symbol, for the frames that follow       |
|            |       | ``TICK``: time, record's time (int64 ns), value (float64), number (int32), each |
|            |       | a column of n / 28 rows                                                         |

Numbers are little-endian. A frame that is cut off or does not fit its checksum ends what can be read of its segment.
"""

import dataclasses
import json
import os
import pathlib
import re
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from ._errors import TickRingError

SUFFIX = ".ticks"
ROW_BYTES = 28
FORMAT_VERSION = 1

_MAGIC = b"\x89USPTICK"
_HEAD = struct.Struct("<8sI")
_FRAME = struct.Struct("<4sII")
FRAME_BYTES = _FRAME.size
_SYMBOLS, _TICKS = b"SYMS", b"TICK"
_NAME = re.compile(r"([0-9]{20})\.ticks", re.ASCII)
_READ_ATTEMPTS = 20


@dataclasses.dataclass(frozen=True, slots=True)
class Columns:
    """Ticks as columns: a symbol's number in ``names``, the tick's and its record's time, the value."""

    numbers: NDArray[np.int32]
    timestamps_ns: NDArray[np.int64]
    record_timestamps_ns: NDArray[np.int64]
    values: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.numbers)

    def rows(self, rows: NDArray[np.int64] | NDArray[np.bool_]) -> "Columns":
        """A copy of the given rows."""
        return Columns(self.numbers[rows], self.timestamps_ns[rows], self.record_timestamps_ns[rows], self.values[rows])


def join(parts: Sequence[Columns]) -> Columns:
    """The rows of all parts, at least one, in order."""
    return Columns(
        np.concatenate([part.numbers for part in parts]),
        np.concatenate([part.timestamps_ns for part in parts]),
        np.concatenate([part.record_timestamps_ns for part in parts]),
        np.concatenate([part.values for part in parts]),
    )


@dataclasses.dataclass(frozen=True, slots=True)
class RecordedTicks:
    """One symbol's ticks, ascending and unique in their times: ``timestamps_ns`` and ``record_timestamps_ns`` in Unix
    nanoseconds, ``values`` in the symbol's own units.
    """

    timestamps_ns: NDArray[np.int64]
    values: NDArray[np.float64]
    record_timestamps_ns: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.values)


def head() -> bytes:
    """The first bytes of a segment."""
    return _HEAD.pack(_MAGIC, FORMAT_VERSION)


def encode_symbols(names: Mapping[int, str]) -> bytes:
    """A frame that says which symbols the numbers in later frames mean."""
    return _frame(_SYMBOLS, json.dumps({str(number): name for number, name in names.items()}).encode("ascii"))


def encode_ticks(columns: Columns) -> bytes:
    """A frame of ticks."""
    parts = (
        columns.timestamps_ns.astype("<i8", copy=False),
        columns.record_timestamps_ns.astype("<i8", copy=False),
        columns.values.astype("<f8", copy=False),
        columns.numbers.astype("<i4", copy=False),
    )
    return _frame(_TICKS, b"".join(part.tobytes() for part in parts))


def _frame(kind: bytes, payload: bytes) -> bytes:
    return _FRAME.pack(kind, len(payload), _checksum(kind, payload)) + payload


def _checksum(kind: bytes, payload: bytes | memoryview) -> int:
    return zlib.crc32(payload, zlib.crc32(kind + struct.pack("<I", len(payload))))


def decode_segment(data: bytes) -> Iterator[tuple[dict[int, str], Columns]]:
    """The frames of ticks of one segment, each with the symbols declared so far, up to the first that is not whole.

    Raises :class:`TickRingError` for another kind of file or a newer format.
    """
    if len(data) < _HEAD.size:
        return  # its writer died in the first instant
    magic, version = _HEAD.unpack_from(data)
    if magic != _MAGIC:
        raise TickRingError("not a segment of recorded ticks")
    if version != FORMAT_VERSION:
        raise TickRingError(f"format: expected {FORMAT_VERSION}, which this program knows, got {version}")
    names: dict[int, str] = {}
    position = _HEAD.size
    view = memoryview(data)
    while position + _FRAME.size <= len(data):
        kind, length, checksum = _FRAME.unpack_from(data, position)
        payload = view[position + _FRAME.size : position + _FRAME.size + length]
        if len(payload) < length or _checksum(kind, payload) != checksum:
            return
        position += _FRAME.size + length
        if kind == _SYMBOLS:
            names.update({int(number): str(name) for number, name in json.loads(bytes(payload)).items()})
        elif kind == _TICKS:
            yield names, _columns(payload)


def _columns(payload: memoryview) -> Columns:
    rows = len(payload) // ROW_BYTES
    times, record_times, values = (
        np.frombuffer(payload, dtype, rows, offset=8 * rows * place)
        for place, dtype in enumerate(("<i8", "<i8", "<f8"))
    )
    return Columns(np.frombuffer(payload, "<i4", rows, offset=24 * rows), times, record_times, values)


def segment_name(number: int) -> str:
    """The file of the segment; sorting by name sorts by number."""
    return f"{number:020d}{SUFFIX}"


def segment_numbers(directory: pathlib.Path) -> list[int]:
    """The segments in ``directory``, oldest first; none if it does not exist. Raises ``OSError`` otherwise."""
    try:
        names = os.listdir(directory)
    except FileNotFoundError:
        return []
    return sorted(int(match[1]) for match in map(_NAME.fullmatch, names) if match)


def read_ticks(directory: str | os.PathLike[str], *, min_ticks: int = 1) -> dict[str, RecordedTicks]:
    """Every recorded symbol with at least ``min_ticks`` ticks, in order of the names.

    May run while the ring is written, also in another process: what is being written is not seen yet. Ticks that were
    recorded twice, around a restart, come once. Raises :class:`TickRingError` when the directory cannot be read.
    """
    path = pathlib.Path(directory)
    for _ in range(_READ_ATTEMPTS):
        try:
            found = [(path / segment_name(number)).read_bytes() for number in segment_numbers(path)]
        except FileNotFoundError:
            # Taken away after it was listed; what was still wanted of it stands in a newer one.
            continue
        except OSError as error:
            raise TickRingError(f"{path}: the recorded ticks cannot be read: {error.strerror or error}") from error
        return _by_symbol(found, min_ticks)
    raise TickRingError(f"{path}: the recorded ticks change faster than they can be read")


def _by_symbol(segments: Sequence[bytes], min_ticks: int) -> dict[str, RecordedTicks]:
    parts: dict[str, list[Columns]] = {}
    for data in segments:
        for names, columns in _readable(data):
            for number in np.unique(columns.numbers).tolist():
                if number in names:
                    parts.setdefault(names[number], []).append(columns.rows(columns.numbers == number))
    merged = ((symbol, unique_in_time(join(parts[symbol]))) for symbol in sorted(parts))
    return {
        symbol: RecordedTicks(ticks.timestamps_ns, ticks.values, ticks.record_timestamps_ns)
        for symbol, ticks in merged
        if len(ticks) >= min_ticks
    }


def _readable(data: bytes) -> Iterator[tuple[dict[int, str], Columns]]:
    try:
        yield from decode_segment(data)
    except TickRingError:
        return  # left behind by another version, or foreign: no reason to lose the rest


def unique_in_time(columns: Columns) -> Columns:
    """The rows of one symbol by time, the first of those that have the same."""
    _, first = np.unique(columns.timestamps_ns, return_index=True)
    return columns.rows(first)
