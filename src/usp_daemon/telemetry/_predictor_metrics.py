"""What the predictor says, as metrics: distributions over all symbols, and single series for a few chosen symbols.

All work is on arrays, once a batch of results. What needs the symbol's previous forecast, that is its error and whether
its intervals held, keeps the last row of every symbol of a partition; it goes when the partition does. After a restart
the first tick of each symbol is not scored.
"""

import dataclasses
import threading
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from usp_daemon.wire import (
    FLAG_COLUMNS,
    FLAG_LABELS,
    GATE_REASON_LABELS,
    KERNEL_NAMES,
    MODE_LABELS,
    RESULT_CODE_LABELS,
    SOLVER_SCHEMES,
    TopicPartition,
)

from ._declare import OTHER, CountersByLabel, Declarations
from ._histogram import HistogramSeries

TIERS = tuple(str(number) for number in range(8))
STATISTICS = {
    "level_up": "cusum_drift",
    "level_down": "cusum_drift_down",
    "scale_up": "scale_statistic_up",
    "scale_down": "scale_statistic_down",
}
LEVELS = {"80": ("lower_80", "upper_80"), "95": ("lower_95", "upper_95")}
# Reasons from "stale" on let the tick pass and mark the symbol.
PASSING_REASONS = GATE_REASON_LABELS[GATE_REASON_LABELS.index("stale") :]
# Warming up, the last of the codes, is none.
_INCIDENTS = RESULT_CODE_LABELS[:-1]
_NO_INCIDENT = 1 << len(_INCIDENTS)
MOST_SYMBOLS = 1_000
# One tick of a broken series must not outweigh a day of all others.
ERROR_CAP = 20.0
_KEPT = ("predicted_next", "scale", "lower_80", "upper_80", "lower_95", "upper_95")
# Soon at first, when little is known, then ever more rarely.
_RANK_AFTER_TICKS, _RANK_AFTER_TICKS_AT_MOST = 500, 50_000

# metric, column, meaning, upper bounds
_DISTRIBUTIONS: tuple[tuple[str, str, str, tuple[float, ...]], ...] = (
    (
        "usp_sinkhorn_epsilon",
        "sinkhorn_epsilon",
        "Regularisation epsilon_t of the transport that moves the weights.",
        (0.001, 0.003, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0),
    ),
    (
        "usp_sinkhorn_iterations",
        "sinkhorn_iterations",
        "Sinkhorn iterations of one fusion.",
        (5, 10, 20, 30, 50, 75, 100, 150, 200),
    ),
    (
        "usp_sinkhorn_error",
        "sinkhorn_max_err",
        "Largest violation of a marginal of the transport plan.",
        (1e-12, 1e-9, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.1),
    ),
    (
        "usp_alarm_threshold",
        "adaptive_threshold",
        "Adaptive threshold h_t of the level statistics.",
        (5, 10, 15, 20, 25, 30, 40, 60, 100),
    ),
    (
        "usp_kurtosis",
        "kurtosis",
        "Kurtosis of the innovations; 3 is Gaussian.",
        (2, 3, 4, 5, 7, 10, 15, 20, 50, 100),
    ),
    (
        "usp_holder_exponent",
        "holder_exponent",
        "Hoelder exponent of the path; low is rough. Estimates may be negative: use the buckets, not the sum.",
        (0.0, 0.1, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 1.0),
    ),
    (
        "usp_free_energy",
        "free_energy",
        "Free energy of the weights after the fusion's step; may be negative, so that there is no sum.",
        (-10.0, -5.0, -2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0, 5.0, 10.0),
    ),
    (
        "usp_dgm_entropy_nats",
        "dgm_entropy",
        "Entropy of the Deep Galerkin network's output.",
        (0.1, 0.25, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0),
    ),
    (
        "usp_dgm_entropy_ratio",
        "dgm_entropy_fraction",
        "The same as a share of its maximum; near 0 the network has collapsed to one answer.",
        (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0),
    ),
    (
        "usp_entropy_ratio",
        "entropy_ratio",
        "Entropy now over that of the last regime; decides on the network's architecture.",
        (0.1, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0),
    ),
    (
        "usp_stiffness",
        "stiffness",
        "Stiffness of the symbol's equation; decides on the solver's scheme.",
        (0.1, 1, 10, 50, 100, 200, 500, 1000, 2000, 5000),
    ),
    (
        "usp_entropy_window_ticks",
        "entropy_window",
        "Adaptive window of the fusion (JKO), in ticks.",
        (5, 10, 20, 50, 100, 200, 500),
    ),
    (
        "usp_learning_rate",
        "learning_rate",
        "Adaptive rate of the fusion (JKO).",
        (1e-4, 1e-3, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0),
    ),
    (
        "usp_season_length_ticks",
        "season_length",
        "Season that was found; 0 where there is none.",
        (0, 4, 8, 16, 32, 64, 128, 256, 512),
    ),
)
_STATISTIC_BOUNDS = (0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 15.0, 20.0, 30.0, 50.0)
_WEIGHT_BOUNDS = (0.01, 0.05, 0.1, 0.2, 0.25, 0.3, 0.4, 0.5, 0.7, 0.9)

# metric, column, meaning: one gauge for each chosen symbol
_OF_A_SYMBOL: tuple[tuple[str, str, str], ...] = (
    ("usp_symbol_prediction", "predicted_next", "Forecast of the next value, in the symbol's own units."),
    ("usp_symbol_scale", "scale", "Robust standard deviation of the forecast's error, in the symbol's own units."),
    ("usp_symbol_sinkhorn_epsilon", "sinkhorn_epsilon", "Regularisation epsilon_t."),
    ("usp_symbol_alarm_threshold", "adaptive_threshold", "Adaptive threshold h_t."),
    ("usp_symbol_grace_ticks", "grace_counter", "Ticks of grace left after an alarm."),
    ("usp_symbol_kurtosis", "kurtosis", "Kurtosis of the innovations."),
    ("usp_symbol_holder_exponent", "holder_exponent", "Hoelder exponent of the path."),
    ("usp_symbol_free_energy", "free_energy", "Free energy of the weights."),
    ("usp_symbol_dgm_entropy_nats", "dgm_entropy", "Entropy of the Deep Galerkin network's output."),
    ("usp_symbol_stiffness", "stiffness", "Stiffness of the symbol's equation."),
    ("usp_symbol_season_length_ticks", "season_length", "Season that was found; 0 where there is none."),
    ("usp_symbol_mode", "mode", "Mode: 0 standard, 1 robust, 2 emergency."),
    ("usp_symbol_sequence", "sequence", "Ticks accepted so far."),
)


class PredictionRows(Protocol):
    """Published predictions: their symbols, the values they answer, and any column of the predictor's result."""

    @property
    def symbols(self) -> Sequence[str]:
        """One for each row."""
        ...

    @property
    def values(self) -> NDArray[np.float64]:
        """The ticks' values."""
        ...

    def column(self, name: str) -> NDArray[Any]:
        """One quantity, a row for each prediction."""
        ...


class _Memory:
    """The last row of every symbol of one partition, in arrays that grow, and how often each came lately."""

    def __init__(self) -> None:
        self.index: dict[str, int] = {}
        self.kept = np.full((len(_KEPT) + 1, 256), np.nan)
        self.counts = np.zeros(256)

    def rows_of(self, symbols: Sequence[str]) -> NDArray[np.int64]:
        """The index of each symbol; new ones are added."""
        index = self.index
        found = np.fromiter((index.setdefault(symbol, len(index)) for symbol in symbols), np.int64, len(symbols))
        if len(index) > len(self.counts):
            more = max(len(index), 2 * len(self.counts)) - len(self.counts)
            self.kept = np.pad(self.kept, ((0, 0), (0, more)), constant_values=np.nan)
            self.counts = np.pad(self.counts, (0, more))
        return found


class PredictorMetrics:
    """The metrics of the predictor. ``symbols`` and the ``top_symbols`` that had most ticks lately get own series.

    Raises ``ValueError`` for more than ``MOST_SYMBOLS`` of them.
    """

    def __init__(
        self,
        declare: Declarations,
        registry: CollectorRegistry,
        *,
        symbols: Iterable[str] = (),
        top_symbols: int = 0,
    ) -> None:
        self._named = frozenset(symbols)
        self._top = top_symbols
        if len(self._named) + top_symbols > MOST_SYMBOLS:
            raise ValueError(f"at most {MOST_SYMBOLS} symbols can have own series")
        self._memories: dict[TopicPartition, _Memory] = {}
        self._chosen: frozenset[str] = self._named
        self._rank_after = _RANK_AFTER_TICKS
        self._ticks_to_rank = _RANK_AFTER_TICKS

        declare.section("Forecasts of all symbols")
        self._scored = declare.counter(
            "usp_forecasts_scored_total", "Forecasts whose value came; those made while warming up are left out."
        )
        self._covered = declare.counters(
            "usp_forecasts_covered_total",
            "Those whose value lay in the interval, by the interval's level in percent.",
            "level",
            LEVELS,
        )
        self._error = declare.counter(
            "usp_forecast_scaled_error_total",
            f"Sum of their absolute errors, each over its forecast's scale and at most {ERROR_CAP:g}.",
        )
        self._naive_error = declare.counter(
            "usp_no_change_scaled_error_total",
            "The same of the forecast that nothing changes; the ratio of both says what forecasting gains.",
        )
        self._modes = declare.counters(
            "usp_predictions_by_mode_total", "Predictions by operating mode.", "mode", (*MODE_LABELS, OTHER)
        )
        self._flags = declare.counters(
            "usp_predictions_flagged_total",
            "Predictions that carry a flag; one with two counts twice.",
            "flag",
            FLAG_LABELS,
        )
        self._in_grace = declare.counter(
            "usp_predictions_in_grace_total", "Predictions made in the grace period after an alarm."
        )
        self._marked = declare.counters(
            "usp_ticks_marked_total",
            "Ticks that the gate let pass with a reservation.",
            "reason",
            (*PASSING_REASONS, OTHER),
        )
        self._incidents = declare.counters(
            "usp_numerical_incidents_total",
            "Numerical incidents that a step dealt with, by kind.",
            "kind",
            (*_INCIDENTS, OTHER),
        )

        declare.section("State of the predictor, over all symbols")
        self._distributions = {
            column: declare.histogram(name, meaning, bounds).series()
            for name, column, meaning, bounds in _DISTRIBUTIONS
        }
        statistic = declare.histogram(
            "usp_detector_statistic",
            "Statistics of the change detector; an alarm rings where one passes its threshold.",
            _STATISTIC_BOUNDS,
            "statistic",
            STATISTICS,
        )
        self._statistics = {column: statistic.series(label) for label, column in STATISTICS.items()}
        weight = declare.histogram("usp_kernel_weight", "Weight of an expert.", _WEIGHT_BOUNDS, "kernel", KERNEL_NAMES)
        self._weights: list[HistogramSeries] = [weight.series(kernel) for kernel in KERNEL_NAMES]
        self._tiers = declare.counters(
            "usp_predictions_by_dgm_tier_total",
            "Predictions by architecture of the Deep Galerkin network, 0 the smallest.",
            "tier",
            (*TIERS, OTHER),
        )
        self._schemes = declare.counters(
            "usp_predictions_by_solver_scheme_total",
            "Predictions by scheme of the solver.",
            "scheme",
            (*SOLVER_SCHEMES, OTHER),
        )

        declare.section("Chosen symbols")
        self._board = _SymbolSeries(declare, registry)

    def record(self, partition: TopicPartition, rows: PredictionRows) -> None:
        """These predictions are published; rows of one symbol in their order."""
        symbols = rows.symbols
        if not len(symbols):
            return
        memory = self._memories.get(partition)
        if memory is None:
            memory = self._memories[partition] = _Memory()
        index = memory.rows_of(symbols)
        self._score(memory, index, rows)
        for column, series in (*self._distributions.items(), *self._statistics.items()):
            series.observe_array(rows.column(column))
        weights = rows.column("weights")
        for number, series in enumerate(self._weights):
            series.observe_array(weights[:, number])
        _count_values(self._modes, rows.column("mode"), MODE_LABELS)
        _count_values(self._tiers, rows.column("dgm_tier"), TIERS)
        _count_values(self._schemes, rows.column("solver_scheme"), SOLVER_SCHEMES)
        for flag, column in FLAG_COLUMNS:
            if count := int(np.count_nonzero(rows.column(column))):
                self._flags.add(flag, count)
        self._in_grace.inc(int(np.count_nonzero(rows.column("grace_counter"))))
        first = len(GATE_REASON_LABELS) - len(PASSING_REASONS)
        count_bits(self._marked, np.asarray(rows.column("gate_reasons"), np.int64) >> first, PASSING_REASONS)
        count_bits(self._incidents, np.asarray(rows.column("result_code"), np.int64) & ~_NO_INCIDENT, _INCIDENTS)
        self._follow(memory, index, rows)

    def record_given_up(self, partition: TopicPartition) -> None:
        """The partition is not this replica's any more."""
        if memory := self._memories.pop(partition, None):
            self._board.keep_only(self._chosen - memory.index.keys())

    def _score(self, memory: _Memory, index: NDArray[np.int64], rows: PredictionRows) -> None:
        """Compare each accepted tick with the forecast after the accepted tick before it, of the same symbol."""
        accepted = np.flatnonzero(rows.column("accepted"))
        if not accepted.size:
            return
        # Sorted by symbol, and within one by time, the row before is that of the tick before.
        order = accepted[np.argsort(index[accepted], kind="stable")]
        symbol = index[order]
        now = np.empty((len(_KEPT) + 1, len(order)))
        for number, name in enumerate(_KEPT):
            now[number] = np.asarray(rows.column(name))[order]
        now[-1] = rows.values[order]
        # Nothing is asked of a forecast that was made while warming up.
        now[:-1, np.asarray(rows.column("warming_up"), bool)[order]] = np.nan
        is_first = np.concatenate([[True], symbol[1:] != symbol[:-1]])
        before = np.empty_like(now)
        before[:, 1:] = now[:, :-1]
        before[:, is_first] = memory.kept[:, symbol[is_first]]
        is_last = np.concatenate([is_first[1:], [True]])
        memory.kept[:, symbol[is_last]] = now[:, is_last]

        with np.errstate(invalid="ignore"):
            good = np.isfinite(now[-1]) & np.isfinite(before).all(axis=0) & (before[1] > 0.0)
        value, before = now[-1, good], before[:, good]
        self._scored.inc(value.size)
        for number, level in enumerate(LEVELS):
            low, high = before[2 + 2 * number], before[3 + 2 * number]
            self._covered.add(level, int(np.count_nonzero((low <= value) & (value <= high))))
        for counter, forecast in ((self._error, before[0]), (self._naive_error, before[-1])):
            counter.inc(float(np.minimum(np.abs(value - forecast) / before[1], ERROR_CAP).sum()))

    def _follow(self, memory: _Memory, index: NDArray[np.int64], rows: PredictionRows) -> None:
        """Bring the series of chosen symbols up to date, and choose again now and then."""
        if self._top:
            memory.counts += np.bincount(index, minlength=len(memory.counts))
            self._ticks_to_rank -= len(index)
            if self._ticks_to_rank <= 0:
                self._rank_after = min(2 * self._rank_after, _RANK_AFTER_TICKS_AT_MOST)
                self._ticks_to_rank = self._rank_after
                self._rank()
        if not self._chosen:
            return
        if latest := {symbol: row for row, symbol in enumerate(rows.symbols) if symbol in self._chosen}:
            self._board.update(latest, rows)

    def _rank(self) -> None:
        """Name the symbols with most ticks; what lies further back counts half each time."""
        ranking: list[tuple[float, str]] = []
        for memory in self._memories.values():
            names = list(memory.index)
            counts = memory.counts[: len(names)]
            for position in np.argsort(-counts, kind="stable")[: self._top].tolist():
                ranking.append((-float(counts[position]), names[position]))
            memory.counts *= 0.5
        self._chosen = self._named | {name for _, name in sorted(ranking)[: self._top]}
        self._board.keep_only(self._chosen)


class _SymbolSeries(Collector):
    """Gauges of single symbols, as they were on the last tick of each."""

    def __init__(self, declare: Declarations, registry: CollectorRegistry) -> None:
        self._lock = threading.Lock()
        self._rows: dict[str, _SymbolRow] = {}
        self._families: list[tuple[str, str, tuple[str, ...]]] = [
            ("usp_symbol_value", "The last value, in the symbol's own units.", ("symbol",)),
            *((name, meaning, ("symbol",)) for name, _, meaning in _OF_A_SYMBOL),
            ("usp_symbol_interval", "Ends of the forecast's intervals.", ("symbol", "level", "end")),
            ("usp_symbol_kernel_weight", "Weight of an expert.", ("symbol", "kernel")),
            ("usp_symbol_detector_statistic", "Statistics of the change detector.", ("symbol", "statistic")),
            ("usp_symbol_alarms", "Alarms since the symbol was chosen.", ("symbol",)),
        ]
        for name, meaning, labels in self._families:
            declare.told(name, "gauge", meaning, labels)
        registry.register(self)

    def update(self, latest: Mapping[str, int], rows: PredictionRows) -> None:
        """``latest`` has the row of each chosen symbol; alarms are counted on it and, of one batch, once."""
        positions = np.fromiter(latest.values(), np.int64, len(latest))
        values = np.asarray(rows.values)[positions].tolist()
        single = [np.asarray(rows.column(column))[positions].tolist() for _, column, _ in _OF_A_SYMBOL]
        ends = [np.asarray(rows.column(name))[positions].tolist() for pair in LEVELS.values() for name in pair]
        statistics = [np.asarray(rows.column(name))[positions].tolist() for name in STATISTICS.values()]
        weights = np.asarray(rows.column("weights"))[positions].tolist()
        alarmed = {rows.symbols[row] for row in np.flatnonzero(rows.column("alarm_kind")).tolist()}
        with self._lock:
            for number, symbol in enumerate(latest):
                known = self._rows.get(symbol)
                self._rows[symbol] = _SymbolRow(
                    value=values[number],
                    single=[column[number] for column in single],
                    ends=[column[number] for column in ends],
                    statistics=[column[number] for column in statistics],
                    weights=weights[number],
                    num_alarms=(known.num_alarms if known else 0) + (symbol in alarmed),
                )

    def keep_only(self, symbols: frozenset[str]) -> None:
        """Drop the series of all others."""
        with self._lock:
            for symbol in [one for one in self._rows if one not in symbols]:
                del self._rows[symbol]

    def describe(self) -> Iterable[GaugeMetricFamily]:
        """The metrics without values."""
        return [GaugeMetricFamily(name, meaning, labels=labels) for name, meaning, labels in self._families]

    def collect(self) -> Iterable[GaugeMetricFamily]:
        """The metrics with the values of all chosen symbols that have come."""
        families = {name: GaugeMetricFamily(name, meaning, labels=labels) for name, meaning, labels in self._families}
        with self._lock:
            known = sorted(self._rows.items())
        ends = [(level, end) for level in LEVELS for end in ("lower", "upper")]
        for symbol, row in known:
            families["usp_symbol_value"].add_metric((symbol,), row.value)
            families["usp_symbol_alarms"].add_metric((symbol,), row.num_alarms)
            for (name, _, _), value in zip(_OF_A_SYMBOL, row.single, strict=True):
                families[name].add_metric((symbol,), value)
            for (level, end), value in zip(ends, row.ends, strict=True):
                families["usp_symbol_interval"].add_metric((symbol, level, end), value)
            for kernel, value in zip(KERNEL_NAMES, row.weights, strict=True):
                families["usp_symbol_kernel_weight"].add_metric((symbol, kernel), value)
            for statistic, value in zip(STATISTICS, row.statistics, strict=True):
                families["usp_symbol_detector_statistic"].add_metric((symbol, statistic), value)
        return families.values()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _SymbolRow:
    """What is shown of one symbol."""

    value: float
    single: list[float]
    ends: list[float]
    statistics: list[float]
    weights: list[float]
    num_alarms: int


def count_bits(counters: CountersByLabel, bits: NDArray[np.int64], labels: Sequence[str]) -> None:
    """Count the rows that have each bit; those with a bit beyond ``labels`` count once, as other."""
    bits = bits[bits != 0]
    if not bits.size:
        return
    for index, label in enumerate(labels):
        if count := int(np.count_nonzero(bits & (1 << index))):
            counters.add(label, count)
    if count := int(np.count_nonzero(bits >> len(labels))):
        counters.add(OTHER, count)


def _count_values(counters: CountersByLabel, values: NDArray[Any], labels: Sequence[str]) -> None:
    """Count the rows of each value; the value is the position of its label."""
    counts = np.bincount(np.maximum(np.asarray(values, np.int64).ravel(), 0), minlength=len(labels))
    for label, count in zip(labels, counts[: len(labels)].tolist(), strict=True):
        if count:
            counters.add(label, count)
    if beyond := int(counts[len(labels) :].sum()):
        counters.add(OTHER, beyond)
