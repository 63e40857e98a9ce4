"""How good the published forecasts were, from the records themselves.

A tick is a target when it has a value and its time was in order; a forecast is scored against the next target of its
symbol, beside the naive forecast "no change". The first ``max(200, n // 10)`` targets of each symbol are burn-in and
not scored.
"""

import collections
import dataclasses
import pathlib
from collections.abc import Iterator

import msgspec

from usp_daemon.wire import Intervals, KernelValues

# A tick refused for one of these reasons carries no new observation of the series, so nothing can be scored against it.
NO_TARGET = frozenset({"not_finite", "future", "too_old", "duplicate", "out_of_order"})


class PredictionLine(msgspec.Struct, gc=False):
    """The part of a prediction record that scoring and drawing need."""

    symbol: str
    ts: int
    seq: int
    value: float | None
    prediction: float
    intervals: Intervals
    weights: KernelValues
    epsilon: float
    h_t: float
    grace_counter: int
    gate_reasons: list[str]

    @property
    def is_target(self) -> bool:
        """Whether a forecast can be scored against this tick."""
        return self.value is not None and not NO_TARGET.intersection(self.gate_reasons)


class AlarmLine(msgspec.Struct, gc=False):
    """The part of an alarm record that drawing needs."""

    symbol: str
    ts: int
    kind: str


@dataclasses.dataclass(frozen=True, slots=True)
class SymbolScore:
    """Scores of one symbol; the figures are None when all of its ticks fell into the burn-in.

    ``mae`` and ``naive_mae`` are in the symbol's units, coverages are fractions.
    """

    symbol: str
    num_ticks: int
    num_scored: int
    mae: float | None
    naive_mae: float | None
    coverage_80: float | None
    coverage_95: float | None
    num_alarms: int

    @property
    def relative_mae(self) -> float | None:
        """MAE over that of the naive forecast; below 1 is better than "no change"; None where that is 0 or unknown."""
        return self.mae / self.naive_mae if self.mae is not None and self.naive_mae else None


def read_predictions(path: pathlib.Path) -> Iterator[PredictionLine]:
    """The records of a predictions file, one at a time. Raises ``OSError`` and ``msgspec.DecodeError``."""
    decode = msgspec.json.Decoder(PredictionLine).decode
    with path.open("rb") as stream:
        for line in stream:
            yield decode(line)


def read_alarms(path: pathlib.Path) -> Iterator[AlarmLine]:
    """The records of an alarms file, one at a time. Raises ``OSError`` and ``msgspec.DecodeError``."""
    decode = msgspec.json.Decoder(AlarmLine).decode
    with path.open("rb") as stream:
        for line in stream:
            yield decode(line)


@dataclasses.dataclass(slots=True)
class _Tally:
    """Running sums of one symbol."""

    num_ticks: int = 0
    num_targets: int = 0
    burn_in: int = 0
    num_seen: int = 0
    num_scored: int = 0
    error: float = 0.0
    naive_error: float = 0.0
    num_within_80: int = 0
    num_within_95: int = 0
    last_value: float | None = None
    forecast: PredictionLine | None = None

    def score(self, line: PredictionLine) -> None:
        if line.is_target:
            value = line.value
            assert value is not None
            if self.forecast is not None and self.last_value is not None and self.num_seen >= self.burn_in:
                intervals = self.forecast.intervals
                self.num_scored += 1
                self.error += abs(value - self.forecast.prediction)
                self.naive_error += abs(value - self.last_value)
                self.num_within_80 += intervals.p80[0] <= value <= intervals.p80[1]
                self.num_within_95 += intervals.p95[0] <= value <= intervals.p95[1]
            self.num_seen += 1
            self.last_value = value
        self.forecast = line


def score_predictions(predictions: pathlib.Path, alarms: pathlib.Path) -> list[SymbolScore]:
    """Scores of every symbol, by name. Two passes over the files; memory grows with the symbols only."""
    tallies: dict[str, _Tally] = collections.defaultdict(_Tally)
    for line in read_predictions(predictions):
        tally = tallies[line.symbol]
        tally.num_ticks += 1
        tally.num_targets += line.is_target
    for tally in tallies.values():
        tally.burn_in = max(200, tally.num_targets // 10)
    for line in read_predictions(predictions):
        tallies[line.symbol].score(line)
    num_alarms = collections.Counter(alarm.symbol for alarm in read_alarms(alarms))
    return [_score_of(symbol, tallies[symbol], num_alarms[symbol]) for symbol in sorted(tallies)]


def _score_of(symbol: str, tally: _Tally, num_alarms: int) -> SymbolScore:
    count = tally.num_scored

    def mean(total: float) -> float | None:
        return total / count if count else None

    return SymbolScore(
        symbol=symbol,
        num_ticks=tally.num_ticks,
        num_scored=count,
        mae=mean(tally.error),
        naive_mae=mean(tally.naive_error),
        coverage_80=mean(tally.num_within_80),
        coverage_95=mean(tally.num_within_95),
        num_alarms=num_alarms,
    )
