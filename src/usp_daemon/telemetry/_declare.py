"""Declaring metrics: each declaration makes the metric in the registry and a line of ``docs/metrics.md``."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Info

from ._histogram import ArrayHistogram

PARTITION_LABELS = ("topic", "partition")
# Takes what has no name yet, so that the values of a label stay few and known.
OTHER = "other"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class MetricSpec:
    """One metric as it is exposed. ``label_values`` holds the values of those labels that have a fixed set."""

    name: str
    kind: str
    meaning: str
    section: str
    labels: tuple[str, ...] = ()
    label_values: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)


class CountersByLabel:
    """Counters that differ in one label with known values, all of them there from the start, at zero."""

    def __init__(self, metric: Counter, values: Iterable[str]) -> None:
        self._counters = {value: metric.labels(value) for value in values}

    def add(self, value: str, amount: int = 1, exemplar: dict[str, str] | None = None) -> None:
        """Count ``amount``; a value without a name counts as ``other`` where there is that."""
        counter = self._counters.get(value)
        (self._counters[OTHER] if counter is None else counter).inc(amount, exemplar)


class Declarations:
    """Makes metrics in ``registry`` and remembers what they mean."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self._section = ""
        self._specs: list[MetricSpec] = []
        self._per_partition: list[Counter | Gauge] = []

    @property
    def specs(self) -> Sequence[MetricSpec]:
        """What was declared so far, in order."""
        return tuple(self._specs)

    @property
    def per_partition(self) -> Sequence[Counter | Gauge]:
        """The metrics that have series of single partitions."""
        return tuple(self._per_partition)

    def section(self, title: str) -> None:
        """What follows belongs under this heading."""
        self._section = title

    def counter(self, name: str, meaning: str) -> Counter:
        """A total without labels."""
        self._remember(name, "counter", meaning)
        return Counter(name, meaning, registry=self._registry)

    def counters(self, name: str, meaning: str, label: str, values: Iterable[str]) -> CountersByLabel:
        """A total for each value of ``label``."""
        known = tuple(values)
        self._remember(name, "counter", meaning, (label,), {label: known})
        return CountersByLabel(Counter(name, meaning, (label,), registry=self._registry), known)

    def gauge(self, name: str, meaning: str, label: str | None = None, values: Iterable[str] = ()) -> Gauge:
        """A number that goes up and down; with ``label``, one for each value that is ever set."""
        labels = () if label is None else (label,)
        self._remember(name, "gauge", meaning, labels, {} if label is None else {label: tuple(values)})
        return Gauge(name, meaning, labels, registry=self._registry)

    def partition_counter(self, name: str, meaning: str) -> Counter:
        """A total for each partition."""
        self._remember(name, "counter", meaning, PARTITION_LABELS)
        metric = Counter(name, meaning, PARTITION_LABELS, registry=self._registry)
        self._per_partition.append(metric)
        return metric

    def partition_gauge(self, name: str, meaning: str, label: str | None = None, values: Iterable[str] = ()) -> Gauge:
        """A number for each partition, and for each value of ``label`` if there is one."""
        labels = PARTITION_LABELS if label is None else (*PARTITION_LABELS, label)
        self._remember(name, "gauge", meaning, labels, {} if label is None else {label: tuple(values)})
        metric = Gauge(name, meaning, labels, registry=self._registry)
        self._per_partition.append(metric)
        return metric

    def histogram(
        self, name: str, meaning: str, bounds: Sequence[float], label: str | None = None, values: Iterable[str] = ()
    ) -> ArrayHistogram:
        """A distribution; with ``label``, one for each value."""
        known = tuple(values)
        labels = () if label is None else (label,)
        self._remember(name, "histogram", meaning, labels, {} if label is None else {label: known})
        return ArrayHistogram(name, meaning, bounds, self._registry, label=label, label_values=known)

    def info(self, name: str, meaning: str, labels: Sequence[str]) -> Info:
        """Facts as labels of one series whose value is 1. ``name`` ends in ``_info``."""
        self._remember(name, "gauge", meaning, tuple(labels))
        return Info(name.removesuffix("_info"), meaning, registry=self._registry)

    def told(
        self,
        name: str,
        kind: str,
        meaning: str,
        labels: Sequence[str],
        label_values: Mapping[str, tuple[str, ...]] | None = None,
    ) -> None:
        """A metric that a collector of its own exposes."""
        self._remember(name, kind, meaning, tuple(labels), label_values)

    def _remember(
        self,
        name: str,
        kind: str,
        meaning: str,
        labels: tuple[str, ...] = (),
        label_values: Mapping[str, tuple[str, ...]] | None = None,
    ) -> None:
        self._specs.append(
            MetricSpec(
                name=name,
                kind=kind,
                meaning=meaning,
                section=self._section,
                labels=labels,
                label_values=dict(label_values or {}),
            )
        )
