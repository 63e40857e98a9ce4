"""A histogram that takes whole arrays; prometheus_client's takes one value a call, that is one call a record."""

import bisect
import math
import threading
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from prometheus_client import CollectorRegistry
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString


class HistogramSeries:
    """Counts by bucket of one set of label values; may be used from several threads."""

    __slots__ = ("_bounds", "_counts", "_lock", "_sorted_bounds", "_sum")

    def __init__(self, bounds: NDArray[np.float64]) -> None:
        self._bounds = bounds
        self._sorted_bounds = bounds.tolist()
        self._counts = np.zeros(len(bounds) + 1, dtype=np.int64)
        self._sum = 0.0
        self._lock = threading.Lock()

    def observe(self, value: float) -> None:
        """Count one value; one that is not finite is left out, for it would spoil the sum for ever."""
        if math.isfinite(value):
            bucket = bisect.bisect_left(self._sorted_bounds, value)
            with self._lock:
                self._counts[bucket] += 1
                self._sum += value

    def observe_array(self, values: ArrayLike) -> None:
        """Count every value of an array of any shape, as if each went through :meth:`observe`."""
        array = np.asarray(values, dtype=np.float64).ravel()
        finite = np.isfinite(array)
        if not finite.all():
            array = array[finite]
        if not array.size:
            return
        # A bucket holds what is at most its bound, hence the left side.
        counts = np.bincount(np.searchsorted(self._bounds, array, side="left"), minlength=len(self._counts))
        total = float(array.sum())
        with self._lock:
            self._counts += counts
            self._sum += total

    def observe_sorted(self, values: NDArray[np.float64], total: float) -> None:
        """The same for finite values that ascend and add up to ``total``: several times as fast."""
        # So many are at most each bound; a bucket's own are those beyond the bucket before.
        below = np.searchsorted(values, self._bounds, side="right")
        counts = np.diff(below, prepend=0, append=len(values))
        with self._lock:
            self._counts += counts
            self._sum += total

    def read(self) -> tuple[list[int], float]:
        """Cumulative counts, the last one that of all values, and the sum, both of one moment."""
        with self._lock:
            return np.cumsum(self._counts).tolist(), self._sum


class ArrayHistogram(Collector):
    """One metric of type histogram with at most one label, whose values are all known beforehand.

    ``bounds`` are the buckets' upper bounds, finite and ascending; the one for everything above is added.
    """

    def __init__(
        self,
        name: str,
        meaning: str,
        bounds: Sequence[float],
        registry: CollectorRegistry,
        *,
        label: str | None = None,
        label_values: Iterable[str] = (),
    ) -> None:
        array = np.asarray(bounds, dtype=np.float64)
        if not (array.size and np.isfinite(array).all() and (np.diff(array) > 0.0).all()):
            raise ValueError(f"bounds of {name} must be finite and ascending, got {list(bounds)}")
        self._name = name
        self._meaning = meaning
        self._labels = () if label is None else (label,)
        self._bound_texts = [*map(floatToGoString, array.tolist()), "+Inf"]
        keys: list[tuple[str, ...]] = [()] if label is None else [(value,) for value in label_values]
        self._series = {key: HistogramSeries(array) for key in keys}
        registry.register(self)

    def series(self, *label_values: str) -> HistogramSeries:
        """The counts of these label values. Raises ``KeyError`` when they were not named beforehand."""
        return self._series[label_values]

    def describe(self) -> Iterable[HistogramMetricFamily]:
        """The metric without its values."""
        return [HistogramMetricFamily(self._name, self._meaning, labels=self._labels)]

    def collect(self) -> Iterable[HistogramMetricFamily]:
        """The metric with its values."""
        family = HistogramMetricFamily(self._name, self._meaning, labels=self._labels)
        for key, series in self._series.items():
            counts, total = series.read()
            family.add_metric(key, list(zip(self._bound_texts, counts, strict=True)), total)
        return [family]


def observe_rows(series: Sequence[HistogramSeries], rows: NDArray[np.float64]) -> None:
    """Row k of ``rows`` goes to ``series[k]``, as by :meth:`HistogramSeries.observe_array`; sorts each row in place."""
    with np.errstate(invalid="ignore"):
        totals = rows.sum(axis=1)
    rows.sort(axis=1)
    for each, values, total in zip(series, rows, totals.tolist(), strict=True):
        if math.isfinite(total):
            each.observe_sorted(values, total)
        else:
            each.observe_array(values)
