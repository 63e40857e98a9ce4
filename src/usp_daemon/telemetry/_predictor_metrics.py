"""What the predictor says, as metrics: distributions over all symbols, and single series for a few chosen symbols.

All work is on arrays, once for some thousand rows, or when somebody asks. What needs the symbol's previous forecast,
that is its error and whether its intervals held, keeps the last row of every symbol of a partition; it goes when the
partition does. After a restart the first tick of each symbol is not scored.
"""

import collections
import threading
from collections.abc import Callable, Iterable, Sequence
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

from ._activity import Activity, grown
from ._declare import OTHER, CountersByLabel, Declarations
from ._histogram import HistogramSeries, observe_rows
from ._symbol_series import LEVELS, STATISTICS, SymbolSeries

TIERS = tuple(str(number) for number in range(8))
# Reasons from "stale" on let the tick pass and mark the symbol.
PASSING_REASONS = GATE_REASON_LABELS[GATE_REASON_LABELS.index("stale") :]
# Warming up, the last of the codes, is none.
_INCIDENTS = RESULT_CODE_LABELS[:-1]
_NO_INCIDENT = 1 << len(_INCIDENTS)
MOST_SYMBOLS = 1_000
# One tick of a broken series must not outweigh a day of all others.
ERROR_CAP = 20.0
_KEPT = ("predicted_next", "scale", "lower_80", "upper_80", "lower_95", "upper_95")
# Last states of a symbol that are counted, by value; larger ones count as the largest.
_STATES = ("grace_counter", "mode", "dgm_tier")
_MOST_STATES = 15
_HERE = "of those that had a tick here"
# A straggler or a duplicate says nothing about the health of the signal: see the gate.
DEGRADING_REASONS = ("not_finite", "future", "too_old", "outlier", "frozen", "stale")
_DEGRADING_BITS = tuple(map(GATE_REASON_LABELS.index, DEGRADING_REASONS))
# Rows that are put aside hold on to their batches, so that there must not be many.
_PENDING_ROWS = 2_048
_PENDING_ANSWERS = 64
# Soon at first, when little is known, then ever more rarely.
_RANK_AFTER_TICKS, _RANK_AFTER_TICKS_AT_MOST = 500, 50_000

# metric, column, meaning, upper bounds; the bounds resolve what is seen on real series
_OF_TRANSPORT: tuple[tuple[str, str, str, tuple[float, ...]], ...] = (
    (
        "usp_sinkhorn_epsilon",
        "sinkhorn_epsilon",
        "Regularisation epsilon_t of the transport that moves the weights.",
        (0.05, 0.1, 0.125, 0.15, 0.175, 0.2, 0.225, 0.25, 0.275, 0.3, 0.325, 0.35, 0.4, 0.5, 1.0),
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
        (1e-16, 1e-15, 1e-14, 1e-13, 1e-12, 1e-11, 1e-10, 1e-9, 1e-8, 1e-7, 1e-6, 1e-4, 1e-2),
    ),
)
_DISTRIBUTIONS: tuple[tuple[str, str, str, tuple[float, ...]], ...] = (
    (
        "usp_alarm_threshold",
        "adaptive_threshold",
        "Adaptive threshold h_t of the level statistics.",
        (10, 12.5, 15, 17.5, 20, 22.5, 25, 30, 35, 40, 50, 60, 80),
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
        (-1.0, -0.75, -0.5, -0.35, -0.2, -0.1, 0.0, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0, 2.0),
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
        (10, 12, 15, 20, 30, 50, 75, 100, 150, 200, 300, 400, 500),
    ),
    (
        "usp_learning_rate",
        "learning_rate",
        "Adaptive rate of the fusion (JKO).",
        (0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0),
    ),
    (
        "usp_season_length_ticks",
        "season_length",
        "Season that was found; 0 where there is none.",
        (0, 4, 8, 16, 32, 64, 128, 256, 512),
    ),
)
_STATISTIC_BOUNDS = (0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 60.0, 80.0, 120.0, 200.0)
_WEIGHT_BOUNDS = (0.01, 0.05, 0.1, 0.2, 0.25, 0.3, 0.4, 0.5, 0.7, 0.9)


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
    """What is kept of the last rows of one partition's symbols, by the row that ``Activity`` gives a symbol."""

    def __init__(self) -> None:
        self.kept = np.full((len(_KEPT) + 1, 256), np.nan)
        self.states = np.full((len(_STATES), 256), -1, np.int16)
        self.was_degraded = np.zeros(256, bool)

    def hold(self, num_symbols: int) -> None:
        """Have room for so many."""
        self.kept = grown(self.kept, num_symbols, np.nan)
        self.states = grown(self.states, num_symbols, -1)
        self.was_degraded = grown(self.was_degraded, num_symbols, False)


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
        self._lock = threading.Lock()
        self._pending: list[tuple[TopicPartition, PredictionRows]] = []
        self._num_pending = 0
        self._memories: dict[TopicPartition, _Memory] = {}
        self._activity = Activity()
        self._chosen: frozenset[str] = self._named
        self._rank_after = _RANK_AFTER_TICKS
        self._ticks_to_rank = _RANK_AFTER_TICKS
        # The first to be asked at a scrape, so that what the others tell is up to date.
        registry.register(_Before(self.take_in))

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
        self._degraded = declare.counters(
            "usp_degraded_begun_total",
            "Symbols that fell into degraded mode, by what the gate found; with two reasons one counts twice.",
            "reason",
            (*DEGRADING_REASONS, OTHER),
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

        self._error_ratio = declare.histogram(
            "usp_forecast_error_ratio",
            f"Absolute error of a scored forecast over its scale, at most {ERROR_CAP:g}; 1 is as expected.",
            (0.1, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 10.0, 15.0),
        ).series()

        declare.section("State of the predictor, over all symbols")
        distributions = [
            declare.histogram(name, meaning, bounds).series() for name, _, meaning, bounds in _DISTRIBUTIONS
        ]
        statistic = declare.histogram(
            "usp_detector_statistic",
            "Statistics of the change detector; an alarm rings where one passes its threshold.",
            _STATISTIC_BOUNDS,
            "statistic",
            STATISTICS,
        )
        distributions += [statistic.series(label) for label in STATISTICS]
        weight = declare.histogram("usp_kernel_weight", "Weight of an expert.", _WEIGHT_BOUNDS, "kernel", KERNEL_NAMES)
        self._distributions: list[HistogramSeries] = [*distributions, *map(weight.series, KERNEL_NAMES)]
        self._of_transport = [
            declare.histogram(name, meaning, bounds).series() for name, _, meaning, bounds in _OF_TRANSPORT
        ]
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

        registry.register(_SymbolStates(declare, self._count_states))

        declare.section("Chosen symbols")
        self._board = SymbolSeries(declare, registry)

    def record(self, partition: TopicPartition, rows: PredictionRows) -> None:
        """These predictions are published; rows of one symbol in their order.

        They are put aside, and counted together with others once there are enough, or somebody asks: a numpy call
        costs the same for ten rows as for a thousand.
        """
        size = len(rows.symbols)
        if not size:
            return
        with self._lock:
            self._pending.append((partition, rows))
            self._num_pending += size
            if self._num_pending >= _PENDING_ROWS or len(self._pending) >= _PENDING_ANSWERS:
                self._take_in()

    def take_in(self) -> None:
        """Count what was put aside."""
        with self._lock:
            self._take_in()

    def record_given_up(self, partition: TopicPartition) -> None:
        """The partition is not this replica's any more."""
        with self._lock:
            self._take_in()
            if self._memories.pop(partition, None) is not None:
                gone = frozenset(self._activity.names(partition))
                self._activity.drop(partition)
                self._board.keep_only(self._chosen - gone)

    def _take_in(self) -> None:
        pending, self._pending, self._num_pending = self._pending, [], 0
        if not pending:
            return
        together = _Together(pending)
        self._distribute(together)
        self._count(together)
        found = []
        for partition, part, symbols in together.parts:
            rows = self._activity.rows_of(partition, symbols)
            names = self._activity.names(partition)
            memory = self._memories.setdefault(partition, _Memory())
            memory.hold(len(names))
            order = np.argsort(rows, kind="stable")
            by_symbol = _BySymbol(part.start + order, rows[order])
            self._score(memory, by_symbol, together)
            self._follow(memory, by_symbol, together)
            if self._top:
                self._activity.count(partition, rows)
            found.append((names, by_symbol))
        if self._top:
            self._rank(len(together.values))
        if self._chosen:
            self._show(found, together)

    def _show(self, found: Sequence[tuple[Sequence[str], "_BySymbol"]], together: "_Together") -> None:
        """Bring the series of chosen symbols up to date; ``found`` has each partition's names and rows."""
        latest: dict[str, int] = {}
        alarms: collections.Counter[str] = collections.Counter()
        alarmed = np.asarray(together.column("alarm_kind")) != 0
        for names, by_symbol in found:
            last = by_symbol.is_last
            rows: list[int] = by_symbol.rows[last].tolist()
            for row, position in zip(rows, by_symbol.order[last].tolist(), strict=True):
                if names[row] in self._chosen:
                    latest[names[row]] = position
            rows = by_symbol.rows[alarmed[by_symbol.order]].tolist()
            alarms.update(names[row] for row in rows)
        if latest:
            self._board.update(latest, together.values, together.column, alarms)

    def _count(self, together: "_Together") -> None:
        _count_values(self._modes, together.column("mode"), MODE_LABELS)
        _count_values(self._tiers, together.column("dgm_tier"), TIERS)
        _count_values(self._schemes, together.column("solver_scheme"), SOLVER_SCHEMES)
        for flag, column in FLAG_COLUMNS:
            if count := int(np.count_nonzero(together.column(column))):
                self._flags.add(flag, count)
        self._in_grace.inc(int(np.count_nonzero(together.column("grace_counter"))))
        passing = together.bits("gate_reasons") >> len(GATE_REASON_LABELS) - len(PASSING_REASONS)
        count_bits(self._marked, passing, PASSING_REASONS)
        count_bits(self._incidents, together.bits("result_code") & ~_NO_INCIDENT, _INCIDENTS)

    def _distribute(self, together: "_Together") -> None:
        """Refused ticks are left out, for they have no step; and the transport is of those that it was solved for."""
        accepted = np.asarray(together.column("accepted"), bool)
        of_all = np.empty((len(self._distributions), int(np.count_nonzero(accepted))))
        columns = [column for _, column, _, _ in _DISTRIBUTIONS] + list(STATISTICS.values())
        for number, column in enumerate(columns):
            of_all[number] = together.column(column)[accepted]
        of_all[len(columns) :] = together.column("weights")[accepted].T
        if of_all.size:
            observe_rows(self._distributions, of_all)
        solved = accepted & (np.asarray(together.column("sinkhorn_iterations")) > 0)
        transport = np.empty((len(_OF_TRANSPORT), int(np.count_nonzero(solved))))
        for number, (_, column, _, _) in enumerate(_OF_TRANSPORT):
            transport[number] = together.column(column)[solved]
        if transport.size:
            observe_rows(self._of_transport, transport)

    def _score(self, memory: _Memory, by_symbol: "_BySymbol", together: "_Together") -> None:
        """Compare each accepted tick with the forecast after the accepted tick before it, of the same symbol."""
        accepted = np.asarray(together.column("accepted"), bool)[by_symbol.order]
        if not accepted.any():
            return
        kept = _BySymbol(by_symbol.order[accepted], by_symbol.rows[accepted])
        order, symbol = kept.order, kept.rows
        now = np.empty((len(_KEPT) + 1, len(order)))
        for number, name in enumerate(_KEPT):
            now[number] = together.column(name)[order]
        now[-1] = together.values[order]
        # Nothing is asked of a forecast that was made while warming up.
        now[:-1, np.asarray(together.column("warming_up"), bool)[order]] = np.nan
        # Sorted by symbol, and within one by time, the row before is that of the tick before.
        before = np.empty_like(now)
        before[:, 1:] = now[:, :-1]
        before[:, kept.is_first] = memory.kept[:, symbol[kept.is_first]]
        memory.kept[:, symbol[kept.is_last]] = now[:, kept.is_last]

        with np.errstate(invalid="ignore"):
            good = np.isfinite(now[-1]) & np.isfinite(before).all(axis=0) & (before[1] > 0.0)
        value, before = now[-1, good], before[:, good]
        self._scored.inc(value.size)
        for number, level in enumerate(LEVELS):
            low, high = before[2 + 2 * number], before[3 + 2 * number]
            self._covered.add(level, int(np.count_nonzero((low <= value) & (value <= high))))
        errors = np.minimum(np.abs(value - np.stack([before[0], before[-1]])) / before[1], ERROR_CAP)
        self._error.inc(float(errors[0].sum()))
        self._naive_error.inc(float(errors[1].sum()))
        if value.size:
            observe_rows([self._error_ratio], errors[:1])

    def _follow(self, memory: _Memory, by_symbol: "_BySymbol", together: "_Together") -> None:
        """Keep the last state of every symbol, and count those that have just been degraded."""
        order, rows = by_symbol.order, by_symbol.rows
        degraded = np.asarray(together.column("degraded_inference_mode"), bool)[order]
        before = np.empty_like(degraded)
        before[1:] = degraded[:-1]
        before[by_symbol.is_first] = memory.was_degraded[rows[by_symbol.is_first]]
        begun = together.bits("gate_reasons")[order[degraded & ~before]]
        count_bits(self._degraded, _packed(begun, _DEGRADING_BITS), DEGRADING_REASONS)
        last = by_symbol.is_last
        memory.was_degraded[rows[last]] = degraded[last]
        for number, column in enumerate(_STATES):
            memory.states[number, rows[last]] = np.minimum(together.column(column)[order[last]], _MOST_STATES)

    def _rank(self, num_ticks: int) -> None:
        """Choose the symbols with most ticks anew now and then."""
        self._ticks_to_rank -= num_ticks
        if self._ticks_to_rank > 0:
            return
        self._rank_after = min(2 * self._rank_after, _RANK_AFTER_TICKS_AT_MOST)
        self._ticks_to_rank = self._rank_after
        self._chosen = self._named | {busy.symbol for busy in self._activity.review(self._top)}
        self._board.keep_only(self._chosen)

    def _count_states(self) -> Sequence[NDArray[np.int64]]:
        """For each of ``_STATES`` how many symbols have each value at the moment."""
        with self._lock:
            counts = np.zeros((len(_STATES), _MOST_STATES + 1), np.int64)
            for memory in self._memories.values():
                for number, states in enumerate(memory.states):
                    counts[number] += np.bincount(states[states >= 0], minlength=_MOST_STATES + 1)
        return list(counts)


class _Together:
    """Answers as one, those of a partition next to each other; a column is put together when it is asked for."""

    def __init__(self, pending: Sequence[tuple[TopicPartition, PredictionRows]]) -> None:
        by_partition: dict[TopicPartition, list[PredictionRows]] = {}
        for partition, rows in pending:
            by_partition.setdefault(partition, []).append(rows)
        self._rows = [rows for each in by_partition.values() for rows in each]
        self.values = np.concatenate([np.asarray(rows.values, np.float64) for rows in self._rows])
        self.parts: list[tuple[TopicPartition, slice, Sequence[str]]] = []
        self._columns: dict[str, NDArray[Any]] = {}
        first = 0
        for partition, each in by_partition.items():
            symbols = each[0].symbols if len(each) == 1 else [symbol for rows in each for symbol in rows.symbols]
            self.parts.append((partition, slice(first, first + len(symbols)), symbols))
            first += len(symbols)

    def column(self, name: str) -> NDArray[Any]:
        """One quantity of all of them."""
        found = self._columns.get(name)
        if found is None:
            parts = [rows.column(name) for rows in self._rows]
            found = self._columns[name] = np.asarray(parts[0]) if len(parts) == 1 else np.concatenate(parts)
        return found

    def bits(self, name: str) -> NDArray[np.int64]:
        """A quantity that is a set of bits."""
        return np.asarray(self.column(name), np.int64)


class _BySymbol:
    """Positions of one partition's rows, ``order``, sorted by symbol and within one by time, and whose they are."""

    __slots__ = ("is_first", "is_last", "order", "rows")

    def __init__(self, order: NDArray[np.intp], rows: NDArray[np.intp]) -> None:
        self.order, self.rows = order, rows
        self.is_first = np.concatenate([[True], rows[1:] != rows[:-1]])
        self.is_last = np.concatenate([self.is_first[1:], [True]])


class _Before(Collector):
    """Has something done before the metrics are read that were registered after it."""

    def __init__(self, do_fn: Callable[[], None]) -> None:
        self._do_fn = do_fn

    def describe(self) -> Iterable[GaugeMetricFamily]:
        """No metric."""
        return []

    def collect(self) -> Iterable[GaugeMetricFamily]:
        """No metric."""
        self._do_fn()
        return []


class _SymbolStates(Collector):
    """How many symbols are in which state; counted when it is asked for."""

    def __init__(self, declare: Declarations, count_fn: Callable[[], Sequence[NDArray[np.int64]]]) -> None:
        self._count_fn = count_fn
        self._families = (
            ("usp_grace_symbols", f"Symbols in the grace period after an alarm, {_HERE}.", None, ()),
            ("usp_mode_symbols", f"Symbols by operating mode, {_HERE}.", "mode", MODE_LABELS),
            (
                "usp_dgm_tier_symbols",
                f"Symbols by architecture of the Deep Galerkin network, 0 the smallest, {_HERE}.",
                "tier",
                TIERS,
            ),
        )
        for name, meaning, label, values in self._families:
            known = {} if label is None else {label: (*values, OTHER)}
            declare.told(name, "gauge", meaning, tuple(known), known)

    def describe(self) -> Iterable[GaugeMetricFamily]:
        """The metrics without values."""
        return [
            GaugeMetricFamily(name, meaning, labels=() if label is None else (label,))
            for name, meaning, label, _ in self._families
        ]

    def collect(self) -> Iterable[GaugeMetricFamily]:
        """The metrics, with zero for what no symbol is in."""
        families = list(self.describe())
        for (_, _, label, values), family, counts in zip(self._families, families, self._count_fn(), strict=True):
            if label is None:
                family.add_metric((), int(counts[1:].sum()))
                continue
            for value, count in zip(values, counts[: len(values)].tolist(), strict=True):
                family.add_metric((value,), count)
            family.add_metric((OTHER,), int(counts[len(values) :].sum()))
        return families


def _packed(bits: NDArray[np.int64], wanted: Sequence[int]) -> NDArray[np.int64]:
    """The wanted bits of each, next to each other."""
    packed = np.zeros_like(bits)
    for place, bit in enumerate(wanted):
        packed |= (bits >> bit & 1) << place
    return packed


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
