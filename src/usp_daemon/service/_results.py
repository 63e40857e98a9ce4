"""From what the predictor says to records: the last step before publishing, for replay and service alike."""

import bisect
import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from usp_daemon.telemetry import get_logger
from usp_daemon.wire import (
    DeadLetterEntry,
    DeadLetterReason,
    EncodedRecords,
    OutputBatch,
    RawBatch,
    ResultEncoder,
    TickBatch,
    dead_letter_entry,
    encode_dead_letters,
    rows_with_finite_output,
)

_log = get_logger(__name__)

_NOTHING = EncodedRecords((), (), ())


class StepResult(Protocol):
    """What the predictor says about a batch: which rows it admitted, and one column per quantity, in input order."""

    @property
    def admitted(self) -> NDArray[np.bool_]:
        """False where the symbol is beyond ``max_symbols``."""
        ...

    @property
    def columns(self) -> Mapping[str, NDArray[Any]]:
        """One array per quantity, the first axis as long as the batch."""
        ...


@dataclasses.dataclass(frozen=True, slots=True)
class AnswerRows:
    """The numbers behind the predictions of one answer, in the order of their records; views that copy nothing."""

    symbols: Sequence[str]
    timestamps_ns: NDArray[np.int64]
    values: NDArray[np.float64]
    _columns: Mapping[str, NDArray[Any]]
    _first: int

    def __len__(self) -> int:
        """How many predictions."""
        return len(self.symbols)

    def column(self, name: str) -> NDArray[Any]:
        """One quantity of :class:`usp_daemon.core.PredictionResult`, a row for each prediction. KeyError if unknown."""
        return self._columns[name][self._first : self._first + len(self.symbols)]


_NO_ROWS = AnswerRows((), np.zeros(0, np.int64), np.zeros(0), {}, 0)


@dataclasses.dataclass(frozen=True, slots=True)
class Answer:
    """Everything there is to say about one batch of ticks, encoded, with what counters and pages want to know."""

    batch: TickBatch
    output: OutputBatch
    reasons: Counter[str]
    alarm_kinds: Sequence[int]
    refused_reasons: NDArray[np.int64]
    rows: AnswerRows


def encode_step(batches: Sequence[TickBatch], result: StepResult | None, encoder: ResultEncoder) -> list[Answer]:
    """One answer for each of ``batches``, which were stepped together with ``result`` (None if they held no tick).

    Rows are encoded together and then divided, because encoding is cheaper in large batches.
    """
    if result is None:
        return [_answer(batch, _NOTHING, _NOTHING, [], (), np.zeros(0, np.int64), 0, _NO_ROWS) for batch in batches]
    symbols = [symbol for batch in batches for symbol in batch.symbols]
    values = np.concatenate([batch.values for batch in batches])
    timestamps = np.concatenate([batch.timestamps_ns for batch in batches])
    record_timestamps = [stamp for batch in batches for stamp in _tick_record_times(batch)]
    origins = [
        (batch.raw.source, batch.raw.partition, batch.raw.offsets[position])
        for batch in batches
        for position in batch.positions
    ]
    columns = result.columns
    admitted = np.asarray(result.admitted, dtype=bool)
    good = admitted & rows_with_finite_output(columns)
    num_good = np.concatenate([[0], np.cumsum(good)])
    whole = bool(good.all())
    if not whole:
        rows = np.flatnonzero(good)
        kept = rows.tolist()
        symbols_kept, origins = [symbols[row] for row in kept], [origins[row] for row in kept]
        values, timestamps = values[rows], timestamps[rows]
        record_timestamps = [record_timestamps[row] for row in kept]
        columns = {name: column[rows] for name, column in columns.items()}
    else:
        symbols_kept = symbols
    keys = [symbol.encode() for symbol in symbols_kept]
    records = encoder.predictions(symbols_kept, timestamps, values, columns)
    alarm_rows, alarm_records = encoder.alarms(symbols_kept, timestamps, values, columns)
    kinds = np.asarray(columns["alarm_kind"])
    gate_reasons = np.asarray(columns["gate_reasons"], dtype=np.int64)
    # A refused tick is answered too: with the standing forecast.
    refused = ~np.asarray(columns["accepted"], dtype=bool)
    refused_reasons = np.where(refused, gate_reasons, 0)

    answers = []
    first = 0
    for batch in batches:
        last = first + len(batch)
        low, high = int(num_good[first]), int(num_good[last])
        predictions = EncodedRecords(keys[low:high], records[low:high], origins[low:high], record_timestamps[low:high])
        a, b = bisect.bisect_left(alarm_rows, low), bisect.bisect_left(alarm_rows, high)
        these = alarm_rows[a:b]
        alarms = EncodedRecords(
            [keys[row] for row in these],
            alarm_records[a:b],
            [origins[row] for row in these],
            [record_timestamps[row] for row in these],
        )
        dead: list[DeadLetterEntry] = []
        if not whole:
            for row in (first + np.flatnonzero(~good[first:last])).tolist():
                dead.append(_refused_row(batch, row - first, bool(admitted[row])))
        alarm_kinds = [int(kinds[row]) for row in these]
        num_rejected = int(np.count_nonzero(refused[low:high]))
        rows_of_batch = AnswerRows(symbols_kept[low:high], timestamps[low:high], values[low:high], columns, low)
        answers.append(
            _answer(
                batch, predictions, alarms, dead, alarm_kinds, refused_reasons[low:high], num_rejected, rows_of_batch
            )
        )
        first = last
    return answers


def merge(outputs: Sequence[OutputBatch]) -> OutputBatch:
    """The outputs one after the other as one; each partition's position is the last one named."""
    if len(outputs) == 1:
        return outputs[0]
    positions: dict[tuple[str, int], int] = {}
    for output in outputs:
        positions.update(output.positions)
    return OutputBatch(
        predictions=_joined(output.predictions for output in outputs),
        alarms=_joined(output.alarms for output in outputs),
        dead_letters=_joined(output.dead_letters for output in outputs),
        positions=positions,
        num_rejected=sum(output.num_rejected for output in outputs),
    )


def _joined(parts: Iterable[EncodedRecords]) -> EncodedRecords:
    keys: list[bytes | None] = []
    values: list[bytes] = []
    origins: list[tuple[str, int, int]] = []
    timestamps: list[int] = []
    headers: list[Sequence[tuple[str, bytes]]] = []
    for part in parts:
        keys.extend(part.keys)
        values.extend(part.values)
        origins.extend(part.origins)
        timestamps.extend(part.timestamps_ns)
        headers.extend(part.headers)
    return EncodedRecords(keys, values, origins, timestamps, headers)


def _refused_row(batch: TickBatch, row: int, admitted: bool) -> DeadLetterEntry:
    symbol, position = batch.symbols[row], batch.positions[row]
    if not admitted:
        text = f"no room for a further symbol {symbol!r}"
        return dead_letter_entry(batch.raw, position, DeadLetterReason.SYMBOL_CAPACITY, text)
    _log.error("non_finite_output", symbol=symbol, source=batch.raw.source)
    text = "the predictor's answer was not finite"
    return dead_letter_entry(batch.raw, position, DeadLetterReason.NON_FINITE_OUTPUT, text)


def _answer(
    batch: TickBatch,
    predictions: EncodedRecords,
    alarms: EncodedRecords,
    refused: list[DeadLetterEntry],
    alarm_kinds: Sequence[int],
    refused_reasons: NDArray[np.int64],
    num_rejected: int,
    rows: AnswerRows,
) -> Answer:
    # By offset, so that their order does not depend on how the stream was cut into batches.
    entries = [*batch.dead_letters, *refused]
    if refused:
        entries.sort(key=lambda entry: entry.offset)
    dead = encode_dead_letters(entries)
    if entries and batch.raw.record_timestamps_ns is not None:
        dead = dataclasses.replace(dead, timestamps_ns=_record_times(batch.raw, entries))
    positions = {}
    if batch.next_offset is not None:
        positions[batch.raw.topic, batch.raw.partition] = batch.next_offset
    output = OutputBatch(predictions, alarms, dead, positions, num_rejected)
    return Answer(batch, output, Counter(entry.reason.value for entry in entries), alarm_kinds, refused_reasons, rows)


def _tick_record_times(batch: TickBatch) -> Sequence[int]:
    """Times of the records that held the ticks, ``NO_TIMESTAMP`` where one had none.

    A tick's own time must not stand in: it may be anything, and the broker may refuse it.
    """
    times = batch.raw.record_timestamps_ns
    if times is None:
        return batch.record_timestamps_ns.tolist()
    return [times[position] for position in batch.positions]


def _record_times(raw: RawBatch, entries: Sequence[DeadLetterEntry]) -> list[int]:
    times = raw.record_timestamps_ns
    assert times is not None
    return [times[bisect.bisect_left(raw.offsets, entry.offset)] for entry in entries]
