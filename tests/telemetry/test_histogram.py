"""The histogram that takes arrays counts as prometheus_client's does value by value."""

import math
import threading

import hypothesis
import hypothesis.extra.numpy
import hypothesis.strategies as st
import numpy as np
import pytest
from prometheus_client import CollectorRegistry, Histogram, generate_latest

from usp_daemon.telemetry import ArrayHistogram

BOUNDS = (0.0, 0.001, 0.1, 1.0, 5.0)
# Binary fractions add up to the same sum in any order; the bounds themselves are where a bucket may be missed by one.
VALUES = st.lists(st.sampled_from(BOUNDS) | st.integers(-64, 640).map(lambda number: number / 64), max_size=50)


def exposed(registry: CollectorRegistry) -> list[tuple[str, dict[str, str], float]]:
    return [
        (sample.name, dict(sample.labels), sample.value)
        for family in registry.collect()
        for sample in family.samples
        if not sample.name.endswith("_created")
    ]


@hypothesis.given(st.lists(VALUES, max_size=4))
def test_arrays_count_as_single_values_do(batches: list[list[float]]) -> None:
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    series = ArrayHistogram("h", "Meaning.", BOUNDS, ours).series()
    reference = Histogram("h", "Meaning.", buckets=BOUNDS, registry=theirs)
    for batch in batches:
        series.observe_array(np.asarray(batch, dtype=np.float64))
        for value in batch:
            reference.observe(value)
    for (name, labels, value), expected in zip(exposed(ours), exposed(theirs), strict=True):
        assert (name, labels) == expected[:2]
        assert value == pytest.approx(expected[2], abs=1e-12)


@hypothesis.given(VALUES)
def test_one_value_counts_as_an_array_of_one(values: list[float]) -> None:
    registry = CollectorRegistry()
    histogram = ArrayHistogram("h", "Meaning.", BOUNDS, registry, label="way", label_values=("one", "array"))
    for value in values:
        histogram.series("one").observe(value)
        histogram.series("array").observe_array([value])
    assert histogram.series("one").read() == histogram.series("array").read()


def test_text_has_type_help_and_ascending_buckets() -> None:
    registry = CollectorRegistry()
    ArrayHistogram("h_seconds", "Meaning.", (0.5, 2.0), registry).series().observe_array([0.25, 0.5, 1.0, 3.0])
    assert generate_latest(registry).decode().splitlines() == [
        "# HELP h_seconds Meaning.",
        "# TYPE h_seconds histogram",
        'h_seconds_bucket{le="0.5"} 2.0',
        'h_seconds_bucket{le="2.0"} 3.0',
        'h_seconds_bucket{le="+Inf"} 4.0',
        "h_seconds_count 4.0",
        "h_seconds_sum 4.75",
    ]


def test_what_is_not_finite_is_left_out() -> None:
    series = ArrayHistogram("h", "Meaning.", (1.0,), CollectorRegistry()).series()
    series.observe_array([0.5, math.nan, math.inf, -math.inf])
    series.observe(math.nan)
    assert series.read() == ([1, 1], 0.5)


def test_nothing_is_lost_between_threads() -> None:
    series = ArrayHistogram("h", "Meaning.", (1.0,), CollectorRegistry()).series()
    threads = [
        threading.Thread(target=lambda: [series.observe_array([0.5, 2.0]) for _ in range(500)]) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert series.read() == ([2000, 4000], 5000.0)


@pytest.mark.parametrize("bounds", [(), (1.0, 1.0), (2.0, 1.0), (1.0, math.inf), (math.nan,)])
def test_bounds_that_do_not_ascend_are_refused(bounds: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="bounds of h must be finite and ascending"):
        ArrayHistogram("h", "Meaning.", bounds, CollectorRegistry())


def test_a_name_is_registered_once() -> None:
    registry = CollectorRegistry()
    ArrayHistogram("h", "Meaning.", (1.0,), registry)
    with pytest.raises(ValueError, match="Duplicated timeseries"):
        ArrayHistogram("h", "Meaning.", (1.0,), registry)
