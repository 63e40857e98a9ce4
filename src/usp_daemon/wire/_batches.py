"""What travels between the stages: raw records, decoded ticks, encoded records; all as columns, an item a record."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ._records import DeadLetterReason

NO_TIMESTAMP = -1


@dataclasses.dataclass(frozen=True, slots=True)
class CsvLayout:
    """Where the fields of a tick stand in a line of separated values; ``symbol_column`` is None when there is none."""

    time_column: int
    value_column: int
    symbol_column: int | None
    num_columns: int
    delimiter: str = ","


class Fault(NamedTuple):
    """What a source found wrong with one record before anybody decoded it."""

    reason: DeadLetterReason
    message: str
    size_bytes: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RawBatch:
    """Consecutive records of one partition as they came.

    ``topic`` and ``partition`` belong to the identity of the symbols' states, ``source`` is what a dead letter names
    (the topic itself, or the file). ``offsets`` are offsets, or line numbers. ``record_timestamps_ns`` is None where
    the transport keeps no time of its own: the tick's own time then stands for it. ``layout`` is None for JSON.
    ``faults`` maps positions in this batch to what the source has already found.
    """

    topic: str
    partition: int
    source: str
    offsets: Sequence[int]
    values: Sequence[bytes | None]
    keys: Sequence[bytes | None] | None = None
    headers: Sequence[Sequence[tuple[str, bytes]]] | None = None
    record_timestamps_ns: Sequence[int] | None = None
    layout: CsvLayout | None = None
    default_symbol: str | None = None
    faults: Mapping[int, Fault] = dataclasses.field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.values)


@dataclasses.dataclass(frozen=True, slots=True)
class DeadLetterEntry:
    """One record that gets no forecast, before encoding."""

    reason: DeadLetterReason
    message: str
    source: str
    partition: int
    offset: int
    original: bytes
    original_size_bytes: int
    key: bytes | None = None
    headers: Sequence[tuple[str, bytes]] = ()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TickBatch:
    """The decodable records of a :class:`RawBatch` as columns, beside the entries for the others.

    ``values`` is float64 and may hold NaN or infinities (the gate refuses those and still answers); the time columns
    are int64 nanoseconds, non-negative. ``positions`` are the ticks' places in ``raw``.
    """

    raw: RawBatch
    positions: Sequence[int]
    symbols: Sequence[str]
    values: NDArray[np.float64]
    timestamps_ns: NDArray[np.int64]
    record_timestamps_ns: NDArray[np.int64]
    dead_letters: Sequence[DeadLetterEntry]
    is_last_part: bool = True

    def __len__(self) -> int:
        return len(self.symbols)

    @property
    def next_offset(self) -> int | None:
        """The offset after everything that is answered with this batch; None when that is unknown (an empty part)."""
        if self.is_last_part:
            return self.raw.offsets[-1] + 1
        return self.raw.offsets[self.positions[-1]] + 1 if self.positions else None

    def part(self, start: int, stop: int, *, with_dead_letters: bool) -> "TickBatch":
        """The ticks from ``start`` up to ``stop``; the dead letters go with one part only, which the caller names."""
        return TickBatch(
            raw=self.raw,
            positions=self.positions[start:stop],
            symbols=self.symbols[start:stop],
            values=self.values[start:stop],
            timestamps_ns=self.timestamps_ns[start:stop],
            record_timestamps_ns=self.record_timestamps_ns[start:stop],
            dead_letters=self.dead_letters if with_dead_letters else (),
            is_last_part=self.is_last_part and stop >= len(self),
        )


def dead_letter_entry(raw: RawBatch, position: int, reason: DeadLetterReason, message: str) -> DeadLetterEntry:
    """The entry for the record at ``position`` of ``raw``, with whatever of its bytes the source has kept."""
    original = raw.values[position] or b""
    fault = raw.faults.get(position)
    return DeadLetterEntry(
        reason=reason,
        message=message,
        source=raw.source,
        partition=raw.partition,
        offset=raw.offsets[position],
        original=original,
        original_size_bytes=fault.size_bytes if fault is not None else len(original),
        key=None if raw.keys is None else raw.keys[position],
        headers=() if raw.headers is None else raw.headers[position],
    )


@dataclasses.dataclass(frozen=True, slots=True)
class EncodedRecords:
    """Encoded records of one output, with their keys and where the record that caused each came from.

    ``timestamps_ns`` are the times of those records; empty where the output keeps none. ``headers`` go with each record
    where the transport has headers; empty where there are none for any.
    """

    keys: Sequence[bytes | None]
    values: Sequence[bytes]
    origins: Sequence[tuple[str, int, int]]  # source, partition, offset
    timestamps_ns: Sequence[int] = ()
    headers: Sequence[Sequence[tuple[str, bytes]]] = ()

    def __len__(self) -> int:
        return len(self.values)


# Brokers keep 4,096 bytes beside an offset unless told otherwise (offset.metadata.max.bytes).
MAX_NOTE_BYTES = 4_000


@dataclasses.dataclass(frozen=True, slots=True)
class OutputBatch:
    """Everything that one pass through the pipeline says: it is published, and in a transaction committed, together.

    ``positions`` maps (topic, partition) to the offset after the last record answered here; ``note`` is kept beside
    that offset, in place of the one before: at most ``MAX_NOTE_BYTES`` of UTF-8.
    """

    predictions: EncodedRecords
    alarms: EncodedRecords
    dead_letters: EncodedRecords
    positions: Mapping[tuple[str, int], int]
    num_rejected: int = 0
    note: str = ""

    def __len__(self) -> int:
        return len(self.predictions) + len(self.dead_letters)
