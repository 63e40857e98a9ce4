"""What is remembered of the watched symbols: rings of the last ticks, and everything else of the last one alone."""

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

DEPTH = 60

# Columns of core's PredictionResult of which the last ticks are kept, and those of which only the last one is.
RING_COLUMNS = {
    "predicted_next": np.float64,
    "lower_80": np.float64,
    "upper_80": np.float64,
    "lower_95": np.float64,
    "upper_95": np.float64,
    "sequence": np.int64,
    "alarm_kind": np.int64,
}
LAST_FLOATS = (
    "scale", "adaptive_threshold", "sinkhorn_epsilon", "cusum_drift", "cusum_drift_down", "kurtosis",
    "holder_exponent", "forecast_error",
)  # fmt: skip
LAST_COUNTS = ("grace_counter", "mode", "gate_reasons", "season_length")
LAST_FLAGS = (
    "accepted", "degraded_inference_mode", "emergency_mode", "regime_change_detected", "mode_collapse_warning",
    "warming_up", "reference_ready",
)  # fmt: skip
ALARM_COLUMNS = ("alarm_statistic", "alarm_threshold", "alarm_start_ticks_ago")
LAST_COLUMNS = (*LAST_FLOATS, *LAST_COUNTS, *LAST_FLAGS, "weights")
_TIMES, _VALUES = "ts", "value"


@dataclasses.dataclass(frozen=True, slots=True)
class SymbolMemory:
    """Arrays over slots. ``rings`` are of shape (slots, DEPTH); ``seen`` counts the ticks written to a slot, so that
    the next one goes to ``seen % DEPTH``.
    """

    rings: Mapping[str, NDArray]
    last: Mapping[str, NDArray]
    seen: NDArray[np.int64]

    @classmethod
    def empty(cls, num_slots: int) -> "SymbolMemory":
        """Nothing seen of any slot."""
        rings = {name: np.zeros((num_slots, DEPTH), kind) for name, kind in RING_COLUMNS.items()}
        rings |= {_TIMES: np.zeros((num_slots, DEPTH), np.int64), _VALUES: np.zeros((num_slots, DEPTH))}
        last: dict[str, NDArray] = {name: np.zeros(num_slots) for name in LAST_FLOATS}
        last |= {name: np.zeros(num_slots, np.int64) for name in LAST_COUNTS}
        last |= {name: np.zeros(num_slots, np.bool_) for name in LAST_FLAGS}
        last["weights"] = np.zeros((num_slots, 4))
        return cls(rings, last, np.zeros(num_slots, np.int64))

    def forget(self, slot: int) -> None:
        """The slot is another symbol's from here on."""
        self.seen[slot] = 0

    def write(
        self,
        slots: NDArray[np.intp],
        columns: Mapping[str, NDArray],
        last_fn: Callable[[NDArray[np.intp]], Mapping[str, NDArray]],
    ) -> None:
        """Remember ticks in order; ``slots`` says whose each is, -1 for nobody's. ``columns`` are those of
        :data:`RING_COLUMNS` with "ts" and "value"; ``last_fn`` gives those of :data:`LAST_COLUMNS` at the rows that it
        is asked for, few of many.
        """
        watched = np.flatnonzero(slots >= 0)
        owners = slots[watched]
        order = np.argsort(owners, kind="stable")
        owners, rows = owners[order], watched[order]
        first = np.flatnonzero(np.diff(owners, prepend=-1))
        written, counts = owners[first], np.diff(first, append=len(owners))
        rank = np.arange(len(owners)) - np.repeat(first, counts)
        if (counts > DEPTH).any():  # of two ticks for one place the later one counts
            kept = np.repeat(counts, counts) - rank <= DEPTH
            owners, rows, rank = owners[kept], rows[kept], rank[kept]
        places = (self.seen[owners] + rank) % DEPTH
        for name, ring in self.rings.items():
            ring[owners, places] = columns[name][rows]
        final = watched[order][first + counts - 1]
        for name, column in last_fn(final).items():
            self.last[name][written] = column
        self.seen[written] += counts

    def history(self, slot: int) -> NDArray[np.intp]:
        """The places of the slot's ticks that are still there, oldest first."""
        seen = int(self.seen[slot])
        return np.arange(max(seen - DEPTH, 0), seen) % DEPTH

    def copy(self) -> "SymbolMemory":
        """As it is now."""
        return SymbolMemory(
            {name: ring.copy() for name, ring in self.rings.items()},
            {name: array.copy() for name, array in self.last.items()},
            self.seen.copy(),
        )
