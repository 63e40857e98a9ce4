"""Series of a few chosen symbols, each as on its last tick, and their alarms."""

import dataclasses
import threading
from collections.abc import Callable, Iterable, Mapping

import numpy as np
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from usp_daemon.wire import KERNEL_NAMES

from ._declare import Declarations

STATISTICS = {
    "level_up": "cusum_drift",
    "level_down": "cusum_drift_down",
    "scale_up": "scale_statistic_up",
    "scale_down": "scale_statistic_down",
}
LEVELS = {"80": ("lower_80", "upper_80"), "95": ("lower_95", "upper_95")}
_ALARMS = ("usp_symbol_alarms_total", "Alarms since the symbol was chosen.")

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


class SymbolSeries(Collector):
    """Gauges of single symbols, as they were on the last tick of each, and a counter of their alarms."""

    def __init__(self, declare: Declarations, registry: CollectorRegistry) -> None:
        self._lock = threading.Lock()
        self._rows: dict[str, _SymbolRow] = {}
        self._families: list[tuple[str, str, tuple[str, ...]]] = [
            ("usp_symbol_value", "The last value, in the symbol's own units.", ("symbol",)),
            *((name, meaning, ("symbol",)) for name, _, meaning in _OF_A_SYMBOL),
            ("usp_symbol_interval", "Ends of the forecast's intervals.", ("symbol", "level", "end")),
            ("usp_symbol_kernel_weight", "Weight of an expert.", ("symbol", "kernel")),
            ("usp_symbol_detector_statistic", "Statistics of the change detector.", ("symbol", "statistic")),
        ]
        for name, meaning, labels in self._families:
            declare.told(name, "gauge", meaning, labels)
        declare.told(_ALARMS[0], "counter", _ALARMS[1], ("symbol",))
        registry.register(self)

    def update(
        self,
        latest: Mapping[str, int],
        values: NDArray[np.float64],
        column_fn: Callable[[str], NDArray],
        alarms: Mapping[str, int],
    ) -> None:
        """``latest`` has the row of each chosen symbol in ``values`` and the columns, ``alarms`` how many more came."""
        positions = np.fromiter(latest.values(), np.intp, len(latest))

        def at(name: str) -> list:
            return np.asarray(column_fn(name))[positions].tolist()

        last_values = values[positions].tolist()
        single = [at(column) for _, column, _ in _OF_A_SYMBOL]
        ends = [at(name) for pair in LEVELS.values() for name in pair]
        statistics = [at(name) for name in STATISTICS.values()]
        weights = at("weights")
        with self._lock:
            for number, symbol in enumerate(latest):
                known = self._rows.get(symbol)
                self._rows[symbol] = _SymbolRow(
                    value=last_values[number],
                    single=[column[number] for column in single],
                    ends=[column[number] for column in ends],
                    statistics=[column[number] for column in statistics],
                    weights=weights[number],
                    num_alarms=(known.num_alarms if known else 0) + alarms.get(symbol, 0),
                )

    def keep_only(self, symbols: frozenset[str]) -> None:
        """Drop the series of all others."""
        with self._lock:
            for symbol in [one for one in self._rows if one not in symbols]:
                del self._rows[symbol]

    def describe(self) -> Iterable[GaugeMetricFamily | CounterMetricFamily]:
        """The metrics without values."""
        return self._empty().values()

    def collect(self) -> Iterable[GaugeMetricFamily | CounterMetricFamily]:
        """The metrics with the values of all chosen symbols that have come."""
        families = self._empty()
        with self._lock:
            known = sorted(self._rows.items())
        ends = [(level, end) for level in LEVELS for end in ("lower", "upper")]
        for symbol, row in known:
            families["usp_symbol_value"].add_metric((symbol,), row.value)
            families[_ALARMS[0]].add_metric((symbol,), row.num_alarms)
            for (name, _, _), value in zip(_OF_A_SYMBOL, row.single, strict=True):
                families[name].add_metric((symbol,), value)
            for (level, end), value in zip(ends, row.ends, strict=True):
                families["usp_symbol_interval"].add_metric((symbol, level, end), value)
            for kernel, value in zip(KERNEL_NAMES, row.weights, strict=True):
                families["usp_symbol_kernel_weight"].add_metric((symbol, kernel), value)
            for statistic, value in zip(STATISTICS, row.statistics, strict=True):
                families["usp_symbol_detector_statistic"].add_metric((symbol, statistic), value)
        return families.values()

    def _empty(self) -> dict[str, GaugeMetricFamily | CounterMetricFamily]:
        families: dict[str, GaugeMetricFamily | CounterMetricFamily] = {
            name: GaugeMetricFamily(name, meaning, labels=labels) for name, meaning, labels in self._families
        }
        families[_ALARMS[0]] = CounterMetricFamily(*_ALARMS, labels=("symbol",))
        return families


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _SymbolRow:
    """What is shown of one symbol."""

    value: float
    single: list[float]
    ends: list[float]
    statistics: list[float]
    weights: list[float]
    num_alarms: int
