"""Records in, ticks out: everything that a producer can send ends as a tick or as a dead letter, never as an exception.

JSON is decoded twice over: a typed decoder takes the well-formed record in under a microsecond; what it refuses is read
again by the standard library, which accepts the literals ``NaN`` and ``Infinity`` and lets us say what is wrong.
"""

import csv
import dataclasses
import json
from typing import Any

import msgspec
import numpy as np

from ._batches import CsvLayout, DeadLetterEntry, RawBatch, TickBatch, dead_letter_entry
from ._records import DeadLetterReason
from ._time import (
    MAX_TIMESTAMP_NS,
    TimestampError,
    TimeUnit,
    nanoseconds_from_number,
    nanoseconds_from_text,
    shortened,
)

# Symbols found valid are remembered, so that a busy feed is not checked again and again; the memory is bounded.
_KNOWN_SYMBOLS_LIMIT = 200_000


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TickFormat:
    """How ticks are written.

    ``symbol_field``, ``time_field``, ``value_field``: names of the members of a JSON object. ``time_unit``: see
    :class:`TimeUnit`. ``key_is_symbol``: the record's key names the symbol, not the object. ``max_record_bytes``:
    a larger record is refused. ``max_symbol_length``: in characters.
    """

    symbol_field: str = "symbol"
    time_field: str = "ts"
    value_field: str = "value"
    time_unit: TimeUnit = TimeUnit.NANOSECONDS
    key_is_symbol: bool = False
    max_record_bytes: int = 1_048_576
    max_symbol_length: int = 128

    def __post_init__(self) -> None:
        names = (self.symbol_field, self.time_field, self.value_field)
        if len(set(names)) != 3 or not all(names):
            raise ValueError(f"the symbol, time and value fields need three different names, got {names}")
        if self.max_record_bytes < 1 or self.max_symbol_length < 1:
            raise ValueError("max_record_bytes and max_symbol_length must be at least 1")


class _Refusal(Exception):
    """A record that is no tick."""

    def __init__(self, reason: DeadLetterReason, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


class TickDecoder:
    """Turns a :class:`RawBatch` into a :class:`TickBatch`; it keeps nothing from one record to the next but a cache."""

    def __init__(self, tick_format: TickFormat | None = None) -> None:
        self.format = tick_format if tick_format is not None else TickFormat()
        timed = self.format.time_unit is not TimeUnit.ISO8601
        fields: list[Any] = [
            ("ts", int | float if timed else str, msgspec.field(name=self.format.time_field)),
            ("value", float | None, msgspec.field(name=self.format.value_field)),
            ("symbol", str | None, msgspec.field(name=self.format.symbol_field, default=None)),
        ]
        self._typed = msgspec.json.Decoder(msgspec.defstruct("Tick", fields, gc=False))
        self._known_symbols: set[str] = set()

    def decode(self, raw: RawBatch) -> TickBatch:
        """The ticks of ``raw`` as columns, in order, and a dead-letter entry for every other record."""
        decode_one = self._decode_json if raw.layout is None else self._decode_csv
        positions: list[int] = []
        symbols: list[str] = []
        values: list[float] = []
        times: list[int] = []
        dead: list[DeadLetterEntry] = []
        limit = self.format.max_record_bytes
        known = self._known_symbols
        for position, record in enumerate(raw.values):
            try:
                if raw.faults and position in raw.faults:
                    raise _Refusal(raw.faults[position].reason, raw.faults[position].message)
                if not record:
                    raise _Refusal(DeadLetterReason.EMPTY_RECORD, "expected a record, got no bytes")
                if len(record) > limit:
                    text = f"expected at most {limit} bytes, got {len(record)}"
                    raise _Refusal(DeadLetterReason.RECORD_TOO_LARGE, text)
                symbol, time_ns, value = decode_one(raw, position, record)
                if symbol not in known:
                    self._check_symbol(symbol)
                if not 0 <= time_ns <= MAX_TIMESTAMP_NS:
                    raise _time_out_of_range(time_ns)
            except _Refusal as refusal:
                dead.append(dead_letter_entry(raw, position, refusal.reason, refusal.message))
                continue
            positions.append(position)
            symbols.append(symbol)
            values.append(value)
            times.append(time_ns)
        timestamps = np.array(times, dtype=np.int64)
        if raw.record_timestamps_ns is None:
            record_timestamps = timestamps
        else:
            # A record without a time of its own counts as sent at the tick's time: no skew can be seen.
            own = np.array([raw.record_timestamps_ns[position] for position in positions], dtype=np.int64)
            record_timestamps = np.where(own >= 0, own, timestamps)
        return TickBatch(
            raw=raw,
            positions=positions,
            symbols=symbols,
            values=np.array(values, dtype=np.float64),
            timestamps_ns=timestamps,
            record_timestamps_ns=record_timestamps,
            dead_letters=dead,
        )

    def _decode_json(self, raw: RawBatch, position: int, record: bytes) -> tuple[str, int, float]:
        unit = self.format.time_unit
        try:
            tick: Any = self._typed.decode(record)
            symbol, time, value = tick.symbol, tick.ts, tick.value
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            symbol, time, value = self._diagnose_json(record)
        if self.format.key_is_symbol and raw.keys is not None:
            symbol = _symbol_of_key(raw.keys[position])
        elif symbol is None:
            symbol = raw.default_symbol
            if symbol is None:
                raise _Refusal(DeadLetterReason.MISSING_FIELD, f"expected a member {self.format.symbol_field!r}")
        if type(time) is int:
            time_ns = time * 10**unit.digits if unit.digits else time
        else:
            time_ns = _time_of(time, unit, nanoseconds_from_text if isinstance(time, str) else nanoseconds_from_number)
        return symbol, time_ns, float("nan") if value is None else value

    def _diagnose_json(self, record: bytes) -> tuple[str | None, Any, float | None]:
        """Read again what the typed decoder refused; returns the tick's members or says precisely why there is none."""
        try:
            text = record.decode("utf-8")
        except UnicodeDecodeError as error:
            raise _Refusal(DeadLetterReason.NOT_UTF8, f"byte {error.start} is not UTF-8: {error.reason}") from None
        try:
            content = json.loads(text)
        except RecursionError:
            raise _Refusal(DeadLetterReason.NOT_JSON, "nested too deeply") from None
        except ValueError as error:
            raise _Refusal(DeadLetterReason.NOT_JSON, f"expected JSON, got {shortened(text)!r}: {error}") from None
        if not isinstance(content, dict):
            found = type(content).__name__
            raise _Refusal(DeadLetterReason.NOT_AN_OBJECT, f"expected a JSON object, got {found}")
        names = self.format
        for name in (names.time_field, names.value_field):
            if name not in content:
                raise _Refusal(DeadLetterReason.MISSING_FIELD, f"expected a member {name!r}")
        symbol, time, value = content.get(names.symbol_field), content[names.time_field], content[names.value_field]
        if symbol is not None and not isinstance(symbol, str):
            raise _Refusal(DeadLetterReason.SYMBOL_INVALID, f"expected a text, got {_described(symbol)}")
        wanted = str if names.time_unit is TimeUnit.ISO8601 else int | float
        if isinstance(time, bool) or not isinstance(time, wanted):
            kind = "an ISO 8601 text" if wanted is str else f"a number in {names.time_unit.value}"
            raise _Refusal(DeadLetterReason.TIMESTAMP_INVALID, f"expected {kind}, got {_described(time)}")
        if isinstance(value, bool) or not isinstance(value, int | float | None):
            raise _Refusal(DeadLetterReason.VALUE_NOT_A_NUMBER, f"expected a number or null, got {_described(value)}")
        try:
            return symbol, time, None if value is None else float(value)
        except OverflowError:
            return symbol, time, float("inf") if value is not None and value > 0 else float("-inf")

    def _decode_csv(self, raw: RawBatch, position: int, record: bytes) -> tuple[str, int, float]:
        del position
        layout = raw.layout
        assert layout is not None
        cells = _cells_of(record, layout)
        if len(cells) != layout.num_columns:
            raise _Refusal(
                DeadLetterReason.WRONG_NUMBER_OF_COLUMNS,
                f"expected {layout.num_columns} columns as in the header, got {len(cells)}",
            )
        column = layout.symbol_column
        symbol = (raw.default_symbol or "") if column is None else cells[column].strip()
        time_ns = _time_of(cells[layout.time_column], self.format.time_unit, nanoseconds_from_text)
        return symbol, time_ns, _value_of_cell(cells[layout.value_column])

    def _check_symbol(self, symbol: str) -> None:
        limit = self.format.max_symbol_length
        if not symbol:
            raise _Refusal(DeadLetterReason.SYMBOL_INVALID, "expected a name, got an empty text")
        if len(symbol) > limit:
            text = f"expected at most {limit} characters, got {len(symbol)}"
            raise _Refusal(DeadLetterReason.SYMBOL_INVALID, text)
        if not symbol.isprintable() or symbol != symbol.strip():
            text = f"expected printable characters without surrounding space, got {symbol!r}"
            raise _Refusal(DeadLetterReason.SYMBOL_INVALID, text)
        if len(self._known_symbols) < _KNOWN_SYMBOLS_LIMIT:
            self._known_symbols.add(symbol)


def _cells_of(record: bytes, layout: CsvLayout) -> list[str]:
    try:
        text = record.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _Refusal(DeadLetterReason.NOT_UTF8, f"byte {error.start} is not UTF-8: {error.reason}") from None
    if '"' not in text:
        return text.split(layout.delimiter)
    try:
        return next(csv.reader([text], delimiter=layout.delimiter, strict=True), [])
    except csv.Error as error:
        raise _Refusal(DeadLetterReason.WRONG_NUMBER_OF_COLUMNS, f"quotation marks do not match: {error}") from None


def _value_of_cell(cell: str) -> float:
    """A CSV cell as a number; an empty one is NaN. Python's own float() is too generous: it takes 1_000 and ٣."""
    try:
        if cell.isascii() and "_" not in cell:
            return float(cell)
    except ValueError:
        if not cell.strip():
            return float("nan")
    raise _Refusal(DeadLetterReason.VALUE_NOT_A_NUMBER, f"expected a number or nothing, got {shortened(cell)!r}")


def _time_of(time: Any, unit: TimeUnit, convert_fn: Any) -> int:
    try:
        return convert_fn(time, unit)
    except TimestampError as error:
        raise _Refusal(DeadLetterReason.TIMESTAMP_INVALID, f"{error} (time unit {unit.value})") from None
    except OverflowError:
        raise _Refusal(DeadLetterReason.TIMESTAMP_OUT_OF_RANGE, f"{shortened(repr(time))} is too far away") from None


def _time_out_of_range(time_ns: int) -> _Refusal:
    if time_ns < 0:
        text = f"expected a time after 1970, got {_written(time_ns)} ns"
        return _Refusal(DeadLetterReason.TIMESTAMP_NEGATIVE, text)
    text = f"expected at most 2^63 - 1 ns (the year 2262), got {_written(time_ns)} ns; is the time unit right?"
    return _Refusal(DeadLetterReason.TIMESTAMP_OUT_OF_RANGE, text)


def _symbol_of_key(key: bytes | None) -> str:
    if key is None:
        raise _Refusal(DeadLetterReason.MISSING_FIELD, "expected the record's key to name the symbol, got no key")
    try:
        return key.decode("utf-8")
    except UnicodeDecodeError:
        raise _Refusal(DeadLetterReason.SYMBOL_INVALID, f"expected a key in UTF-8, got {key[:40]!r}") from None


def _written(number: int) -> str:
    # Python refuses to write out integers of thousands of digits, which a hostile record may hold.
    return str(number) if number.bit_length() <= 128 else f"a number of {number.bit_length()} bits"


def _described(item: Any) -> str:
    if isinstance(item, dict):
        return "an object"
    if isinstance(item, list):
        return "a list"
    return f"{shortened(item)!r}" if isinstance(item, str) else json.dumps(item)
