"""Recorded ticks, symbol by symbol: what candidates are tried on."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

_DEFAULT_CADENCE_NS = 1_000_000_000


class RecordedTick(NamedTuple):
    """One tick as a file or a recorder gives it; ``value`` is NaN where it is missing."""

    symbol: str
    timestamp_ns: int
    value: float
    record_timestamp_ns: int | None = None  # None: the tick's own time


class HistoryError(ValueError):
    """The recorded ticks cannot be used; the message says which and why."""


@dataclass(frozen=True)
class SymbolHistory:
    """The ticks of one symbol in the order in which they came."""

    symbol: str
    timestamps_ns: np.ndarray  # int64, the tick's own time; neither sorted nor unique, the gate judges that
    values: np.ndarray  # float64, NaN where missing
    record_timestamps_ns: np.ndarray  # int64, the time of the record that carried the tick

    def __len__(self) -> int:
        return len(self.values)

    @property
    def cadence_ns(self) -> int:
        """Typical time between two ticks, at least 1; a second where there is only one tick."""
        steps = np.diff(self.timestamps_ns)
        steps = steps[steps > 0]
        return max(1, int(np.median(steps))) if len(steps) else _DEFAULT_CADENCE_NS


@dataclass(frozen=True)
class History:
    """Recorded ticks of some symbols, sorted by name: equal ticks give an equal history, whatever their order."""

    symbols: tuple[SymbolHistory, ...]

    @classmethod
    def from_arrays(
        cls,
        arrays: Mapping[str, tuple[ArrayLike, ArrayLike] | tuple[ArrayLike, ArrayLike, ArrayLike]],
        *,
        max_ticks: int | None = None,
    ) -> "History":
        """From ``{symbol: (timestamps_ns, values)}`` or ``(timestamps_ns, values, record_timestamps_ns)``.

        Of each symbol the last ``max_ticks`` are kept (None: all). A symbol without any tick is left out. Raises
        ``HistoryError`` where lengths differ, an array is not one-dimensional or nothing is left.
        """
        if max_ticks is not None and max_ticks < 1:
            raise HistoryError(f"max_ticks must be at least 1, got {max_ticks}")
        kept = [_symbol_history(name, *arrays[name]) for name in sorted(arrays)]
        kept = [_tail(one, max_ticks) for one in kept if len(one)]
        if not kept:
            raise HistoryError("there are no recorded ticks")
        return cls(tuple(kept))

    @classmethod
    def from_ticks(
        cls, ticks: Iterable[RecordedTick | tuple[str, int, float, int | None]], *, max_ticks: int | None = None
    ) -> "History":
        """From decoded ticks in the order in which they came, as files, topics and the recorder give them.

        Decoding belongs to the transport, which this package does not know: the command joins the two.
        """
        columns: dict[str, tuple[list[int], list[float], list[int]]] = {}
        for symbol, timestamp_ns, value, recorded in ticks:
            stamps, values, records = columns.setdefault(symbol, ([], [], []))
            stamps.append(timestamp_ns)
            values.append(value)
            records.append(timestamp_ns if recorded is None else recorded)
        return cls.from_arrays(columns, max_ticks=max_ticks)

    def __len__(self) -> int:
        return len(self.symbols)

    @property
    def num_ticks(self) -> int:
        """Ticks of all symbols together."""
        return sum(len(one) for one in self.symbols)

    @property
    def names(self) -> tuple[str, ...]:
        """The symbols' names, sorted."""
        return tuple(one.symbol for one in self.symbols)

    def only(self, names: Iterable[str]) -> "History":
        """The same ticks of some of the symbols. Raises ``HistoryError`` for an unknown name."""
        asked = set(names)
        unknown = asked - set(self.names)
        if unknown or not asked:
            raise HistoryError(f"no recorded ticks of {', '.join(sorted(unknown)) or 'no symbol'}")
        return History(tuple(one for one in self.symbols if one.symbol in asked))

    def head(self, share: float) -> "History":
        """The first ``share`` (0 to 1) of each symbol's ticks, at least one."""
        if not 0.0 < share <= 1.0:
            raise HistoryError(f"share must lie in (0, 1], got {share}")
        return History(tuple(_slice(one, slice(0, max(1, int(share * len(one))))) for one in self.symbols))


def padded(histories: Sequence[SymbolHistory], num_rows: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Timestamps, values and record timestamps as (rows, lanes): shorter ones end in missing values at their cadence.

    ``num_rows`` is at least the longest length.
    """
    shape = (num_rows, len(histories))
    timestamps, records = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    values = np.full(shape, np.nan)
    for lane, one in enumerate(histories):
        rows = len(one)
        later = one.cadence_ns * np.arange(1, num_rows - rows + 1, dtype=np.int64)
        timestamps[:rows, lane] = one.timestamps_ns
        timestamps[rows:, lane] = one.timestamps_ns[-1] + later
        records[:rows, lane] = one.record_timestamps_ns
        records[rows:, lane] = one.record_timestamps_ns[-1] + later
        values[:rows, lane] = one.values
    return timestamps, values, records


def _symbol_history(
    symbol: str, timestamps_ns: ArrayLike, values: ArrayLike, record_timestamps_ns: ArrayLike | None = None
) -> SymbolHistory:
    stamps = np.asarray(timestamps_ns, dtype=np.int64)
    observed = np.asarray(values, dtype=np.float64)
    recorded = stamps if record_timestamps_ns is None else np.asarray(record_timestamps_ns, dtype=np.int64)
    shapes = {stamps.shape, observed.shape, recorded.shape}
    if len(shapes) != 1 or stamps.ndim != 1:
        raise HistoryError(
            f"{symbol}: timestamps, values and record timestamps must be one-dimensional and equally long, "
            f"got shapes {stamps.shape}, {observed.shape}, {recorded.shape}"
        )
    return SymbolHistory(symbol, stamps, observed, recorded)


def _tail(one: SymbolHistory, max_ticks: int | None) -> SymbolHistory:
    return one if max_ticks is None else _slice(one, slice(max(0, len(one) - max_ticks), None))


def _slice(one: SymbolHistory, rows: slice) -> SymbolHistory:
    return SymbolHistory(one.symbol, one.timestamps_ns[rows], one.values[rows], one.record_timestamps_ns[rows])
