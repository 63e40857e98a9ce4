"""Metrics of the predictor against a count one row at a time, however the stream is cut into batches."""

import collections
import math
from typing import Any

import numpy as np
import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as openmetrics
from prometheus_client.parser import text_string_to_metric_families

from prediction_rows import random_rows
from usp_daemon.telemetry import ServiceMetrics
from usp_daemon.wire import FLAG_COLUMNS, GATE_REASON_LABELS, MODE_LABELS, RESULT_CODE_LABELS, TopicPartition

Scrape = Any  # a fixture of conftest.py
PLACES = [TopicPartition("ticks", number) for number in range(2)]
NUM_TICKS = 3_000


def made(registry: CollectorRegistry, **options: Any) -> ServiceMetrics:
    metrics = ServiceMetrics(registry, **options)
    for place in PLACES:
        metrics.record_assigned(place)
    return metrics


def told(metrics: ServiceMetrics, rows: Any, place: TopicPartition = PLACES[0]) -> None:
    metrics.record_commit(place, num_predictions=len(rows), record_timestamps_ns=(), rows=[rows])


def scored_one_by_one(rows: Any) -> tuple[int, dict[str, int], float, float]:
    before: dict[str, tuple[float, int]] = {}
    count, covered, error, naive = 0, {"80": 0, "95": 0}, 0.0, 0.0
    columns = rows.columns
    for row, (symbol, value) in enumerate(zip(rows.symbols, rows.values.tolist(), strict=True)):
        if not columns["accepted"][row]:
            continue
        if symbol in before and not columns["warming_up"][before[symbol][1]]:
            last, at = before[symbol]
            count += 1
            for level in covered:
                covered[level] += columns[f"lower_{level}"][at] <= value <= columns[f"upper_{level}"][at]
            error += min(abs(value - columns["predicted_next"][at]) / columns["scale"][at], 20.0)
            naive += min(abs(value - last) / columns["scale"][at], 20.0)
        before[symbol] = (value, row)
    return count, covered, error, naive


@pytest.mark.parametrize("size", [1, 7, 500, NUM_TICKS])
def test_scores_are_those_of_one_row_at_a_time(registry: CollectorRegistry, scrape: Scrape, size: int) -> None:
    rng = np.random.default_rng(size)
    # More symbols than a memory begins with, so that it grows.
    rows = random_rows([f"s{number}" for number in rng.integers(0, 600, NUM_TICKS)], seed=size)
    metrics = made(registry)
    for first in range(0, NUM_TICKS, size):
        told(metrics, rows.part(first, first + size))
    count, covered, error, naive = scored_one_by_one(rows)
    found = scrape()
    assert count > NUM_TICKS / 4
    assert found["usp_forecasts_scored_total", frozenset()] == count
    for level, number in covered.items():
        assert 0 < number < count
        assert found["usp_forecasts_covered_total", frozenset({("level", level)})] == number
    assert found["usp_forecast_scaled_error_total", frozenset()] == pytest.approx(error)
    assert found["usp_no_change_scaled_error_total", frozenset()] == pytest.approx(naive)


def test_the_partitions_of_a_symbol_are_apart_and_one_that_returns_begins_anew(
    registry: CollectorRegistry, scrape: Scrape
) -> None:
    metrics = made(registry)
    rows = random_rows(["a"] * 2, accepted=[True] * 2, warming_up=[False] * 2)
    told(metrics, rows.part(0, 1), PLACES[0])
    told(metrics, rows.part(1, 2), PLACES[1])
    metrics.record_given_up(PLACES[0])
    told(metrics, rows.part(1, 2), PLACES[0])  # late: not held any more
    metrics.record_assigned(PLACES[0])
    told(metrics, rows.part(1, 2), PLACES[0])
    assert scrape()["usp_forecasts_scored_total", frozenset()] == 0
    told(metrics, rows.part(0, 1), PLACES[0])
    assert scrape()["usp_forecasts_scored_total", frozenset()] == 1


def test_counts_by_value_and_by_bit(registry: CollectorRegistry, scrape: Scrape) -> None:
    rows = random_rows([f"s{number % 50}" for number in range(NUM_TICKS)], seed=3)
    told(made(registry), rows)
    found, columns = scrape(), rows.columns

    def count(name: str, **labels: str) -> float:
        return found[name, frozenset(labels.items())]

    for number, mode in enumerate(MODE_LABELS):
        assert count("usp_predictions_by_mode_total", mode=mode) == np.sum(columns["mode"] == number) > 0
    for flag, column in FLAG_COLUMNS:
        assert count("usp_predictions_flagged_total", flag=flag) == np.sum(columns[column]) > 0
    for bit, reason in enumerate(GATE_REASON_LABELS):
        if reason in ("stale", "sparse", "rebased"):
            expected = sum(int(bits) >> bit & 1 for bits in columns["gate_reasons"])
            assert count("usp_ticks_marked_total", reason=reason) == expected > 0
    for bit, kind in enumerate(RESULT_CODE_LABELS[:-1]):
        expected = sum(int(bits) >> bit & 1 for bits in columns["result_code"])
        assert count("usp_numerical_incidents_total", kind=kind) == expected > 0
    assert count("usp_numerical_incidents_total", kind="other") == 0
    assert count("usp_predictions_in_grace_total") == np.sum(columns["grace_counter"] > 0)
    for number in range(3):
        assert count("usp_predictions_by_dgm_tier_total", tier=str(number)) == np.sum(columns["dgm_tier"] == number)
    assert count("usp_predictions_by_solver_scheme_total", scheme="implicit") == np.sum(columns["solver_scheme"] == 2)


def test_distributions_hold_every_accepted_row(registry: CollectorRegistry, scrape: Scrape) -> None:
    rows = random_rows([f"s{number % 50}" for number in range(NUM_TICKS)], seed=4)
    told(made(registry), rows)
    found, columns = scrape(), rows.columns
    accepted = columns["accepted"]
    solved = accepted & (columns["sinkhorn_iterations"] > 0)
    assert 0 < np.sum(solved) < np.sum(accepted) < NUM_TICKS
    for name, column, counted in (
        ("usp_kurtosis", "kurtosis", accepted),
        ("usp_alarm_threshold", "adaptive_threshold", accepted),
        ("usp_sinkhorn_epsilon", "sinkhorn_epsilon", solved),
        ("usp_sinkhorn_error", "sinkhorn_max_err", solved),
        ("usp_sinkhorn_iterations", "sinkhorn_iterations", solved),
    ):
        assert found[f"{name}_count", frozenset()] == np.sum(counted)
        assert found[f"{name}_sum", frozenset()] == pytest.approx(float(columns[column][counted].sum()))
    at_most_3 = found["usp_kurtosis_bucket", frozenset({("le", "3.0")})]
    assert at_most_3 == sum(value <= 3.0 for value in columns["kurtosis"][accepted])
    for number, kernel in enumerate(("rkhs", "deep_galerkin", "levy_sde", "signature")):
        mean = found["usp_kernel_weight_sum", frozenset({("kernel", kernel)})] / np.sum(accepted)
        assert mean == pytest.approx(float(columns["weights"][accepted, number].mean()))
    upwards = found["usp_detector_statistic_sum", frozenset({("statistic", "level_up")})]
    assert upwards == pytest.approx(float(columns["cusum_drift"][accepted].sum()))


def test_errors_over_their_scale_are_distributed(registry: CollectorRegistry, scrape: Scrape) -> None:
    rows = random_rows([f"s{number % 50}" for number in range(NUM_TICKS)], seed=5)
    told(made(registry), rows)
    count, _, error, _ = scored_one_by_one(rows)
    found, none = scrape(), frozenset[tuple[str, str]]()
    assert found["usp_forecast_error_ratio_count", none] == count
    assert found["usp_forecast_error_ratio_sum", none] == pytest.approx(error)
    last: dict[str, int] = {}
    small = 0
    for row, symbol in enumerate(rows.symbols):
        if rows.columns["accepted"][row]:
            if symbol in last and not rows.columns["warming_up"][last[symbol]]:
                before = last[symbol]
                off = abs(rows.values[row] - rows.columns["predicted_next"][before])
                small += off / rows.columns["scale"][before] <= 1.0
            last[symbol] = row
    assert found["usp_forecast_error_ratio_bucket", frozenset({("le", "1.0")})] == small > 0


@pytest.mark.parametrize("size", [11, NUM_TICKS])
def test_symbols_by_what_they_are_in_and_how_they_came_into_degraded_mode(
    registry: CollectorRegistry, scrape: Scrape, size: int
) -> None:
    rows = random_rows([f"s{number % 700}" for number in range(NUM_TICKS)], seed=6)
    rows.columns["mode"][-5:] = 40  # of a later version
    metrics = made(registry)
    for first in range(0, NUM_TICKS, size):
        told(metrics, rows.part(first, first + size))
    found = scrape()
    last = {symbol: row for row, symbol in enumerate(rows.symbols)}
    for name, label, column, values in (
        ("usp_mode_symbols", "mode", "mode", MODE_LABELS),
        ("usp_dgm_tier_symbols", "tier", "dgm_tier", tuple(map(str, range(8)))),
    ):
        for number, value in enumerate(values):
            expected = sum(rows.columns[column][row] == number for row in last.values())
            assert found[name, frozenset({(label, value)})] == expected
    assert found["usp_mode_symbols", frozenset({("mode", "other")})] == 5
    in_grace = sum(rows.columns["grace_counter"][row] > 0 for row in last.values())
    assert found["usp_grace_symbols", frozenset()] == in_grace > 0

    was: dict[str, bool] = {}
    begun: collections.Counter[str] = collections.Counter()
    for row, symbol in enumerate(rows.symbols):
        degraded = bool(rows.columns["degraded_inference_mode"][row])
        if degraded and not was.get(symbol):
            bits = int(rows.columns["gate_reasons"][row])
            begun.update(reason for bit, reason in enumerate(GATE_REASON_LABELS) if bits >> bit & 1)
        was[symbol] = degraded
    for reason in ("not_finite", "future", "too_old", "outlier", "frozen", "stale"):
        assert found["usp_degraded_begun_total", frozenset({("reason", reason)})] == begun[reason] > 0
    assert found["usp_degraded_begun_total", frozenset({("reason", "other")})] == 0
    metrics.record_given_up(PLACES[0])
    assert scrape()["usp_grace_symbols", frozenset()] == 0


def test_the_reasons_are_those_that_the_gate_counts_against_a_symbol() -> None:
    from usp_daemon.core._gate import _DEGRADING_REASONS
    from usp_daemon.telemetry._predictor_metrics import DEGRADING_REASONS

    assert sum(1 << GATE_REASON_LABELS.index(reason) for reason in DEGRADING_REASONS) == int(_DEGRADING_REASONS)


# What was seen on the demonstration's series, smallest and largest.
SEEN = {
    "usp_alarm_threshold": (13.0, 59.0),
    "usp_sinkhorn_epsilon": (0.12, 0.34),
    "usp_detector_statistic": (0.0, 106.0),
    "usp_sinkhorn_error": (0.0, 1e-9),
    "usp_free_energy": (-0.72, 0.67),
    "usp_learning_rate": (0.007, 1.0),
    "usp_entropy_window_ticks": (12.0, 500.0),
    "usp_forecast_error_ratio": (0.0, 5.0),
}


@pytest.mark.parametrize("name", SEEN)
def test_buckets_resolve_the_range_that_is_seen(registry: CollectorRegistry, scrape: Scrape, name: str) -> None:
    made(registry)
    bounds = {float(dict(labels)["le"]) for metric, labels in scrape() if metric == f"{name}_bucket"}
    low, high = SEEN[name]
    finite = sorted(bound for bound in bounds if math.isfinite(bound))
    assert 8 <= len(finite) <= 15
    assert finite[-1] >= high  # nothing seen is beyond the last bound
    assert sum(low <= bound <= high for bound in finite) >= 5


def test_only_named_and_busiest_symbols_have_series(registry: CollectorRegistry, scrape: Scrape) -> None:
    metrics = made(registry, symbols=["rare"], top_symbols=3)
    rng = np.random.default_rng(0)
    names = ["rare"] + [f"s{number}" for number in range(10_000)]
    for _ in range(30):
        crowd = [names[number] for number in rng.integers(0, len(names), 5_000)]
        told(metrics, random_rows(["busy", "busier", "busiest"] * 200 + crowd + ["rare"]))
    chosen = {dict(labels)["symbol"] for name, labels in scrape() if name == "usp_symbol_value"}
    assert chosen == {"rare", "busy", "busier", "busiest"}
    assert len(generate_latest(registry)) < 100_000


def test_a_first_choice_that_was_wrong_is_soon_put_right(registry: CollectorRegistry, scrape: Scrape) -> None:
    metrics = made(registry, top_symbols=1)
    told(metrics, random_rows(["first"]))
    for _ in range(20):
        told(metrics, random_rows(["busy"] * 100))
    assert {dict(labels)["symbol"] for name, labels in scrape() if name == "usp_symbol_value"} == {"busy"}


def test_series_of_a_symbol_are_its_last_row_and_go_with_its_partition(
    registry: CollectorRegistry, scrape: Scrape
) -> None:
    metrics = made(registry, symbols=["a", "b"])
    rows = random_rows(["a", "b", "a", "c"], alarm_kind=[1, 0, 0, 2])
    told(metrics, rows)
    found = scrape()
    label = {("symbol", "a")}
    assert found["usp_symbol_value", frozenset(label)] == pytest.approx(rows.values[2])
    assert found["usp_symbol_prediction", frozenset(label)] == pytest.approx(rows.columns["predicted_next"][2])
    assert found["usp_symbol_interval", frozenset(label | {("level", "95"), ("end", "lower")})] == pytest.approx(
        rows.columns["lower_95"][2]
    )
    assert found["usp_symbol_kernel_weight", frozenset(label | {("kernel", "signature")})] == pytest.approx(
        rows.columns["weights"][2, 3]
    )
    assert found["usp_symbol_alarms_total", frozenset(label)] == 1
    assert ("usp_symbol_value", frozenset({("symbol", "c")})) not in found
    metrics.record_given_up(PLACES[0])
    assert not [name for name, _ in scrape() if name == "usp_symbol_value"]


def test_every_alarm_of_a_chosen_symbol_counts(registry: CollectorRegistry, scrape: Scrape) -> None:
    metrics = made(registry, symbols=["a", "b"])
    told(metrics, random_rows(["a", "a", "b", "a", "c"], alarm_kind=[1, 4, 0, 1, 1]))
    told(metrics, random_rows(["a", "b"], alarm_kind=[2, 1]))
    found = scrape()
    assert found["usp_symbol_alarms_total", frozenset({("symbol", "a")})] == 4
    assert found["usp_symbol_alarms_total", frozenset({("symbol", "b")})] == 1
    assert b"# TYPE usp_symbol_alarms_total counter" in generate_latest(registry)


@pytest.mark.parametrize("name", ['"} 1\nusp_evil_total 7 #', "\\", "\n", "é" * 200, "a\x00b", '{"}'])
def test_hostile_names_stay_names(registry: CollectorRegistry, name: str) -> None:
    metrics = made(registry, symbols=[name], top_symbols=5)
    told(metrics, random_rows([name]))
    families = {family.name: family for family in text_string_to_metric_families(generate_latest(registry).decode())}
    assert [sample.labels["symbol"] for sample in families["usp_symbol_value"].samples] == [name]
    assert "usp_evil" not in families


def test_an_alarm_leads_to_its_tick(registry: CollectorRegistry) -> None:
    metrics = made(registry)
    source = {"symbol": "BTC", "partition": "3", "offset": "77"}
    too_long = {"symbol": "x" * 200, "partition": "3", "offset": "78"}
    metrics.record_commit(
        PLACES[0],
        num_predictions=3,
        record_timestamps_ns=(),
        alarm_kinds=[1, 4, 4],
        alarm_sources=[source, source, too_long],
    )
    lines = openmetrics(registry).decode().splitlines()
    (level,) = [line for line in lines if line.startswith('usp_alarms_published_total{kind="level_up"}')]
    assert level.partition(" # ")[2].startswith('{offset="77",partition="3",symbol="BTC"} 1')
    (scale,) = [line for line in lines if line.startswith('usp_alarms_published_total{kind="scale_up"}')]
    assert scale.split()[1] == "2.0"


def test_a_value_that_is_not_finite_spoils_nothing(registry: CollectorRegistry, scrape: Scrape) -> None:
    rows = random_rows(["a"] * 4, accepted=[True] * 4, warming_up=[False] * 4, kurtosis=[1.0, math.inf, math.nan, 2.0])
    rows.values[1] = math.nan
    told(made(registry), rows)
    found = scrape()
    assert found["usp_kurtosis_sum", frozenset()] == 3.0
    assert math.isfinite(found["usp_no_change_scaled_error_total", frozenset()])


def test_too_many_symbols_are_refused(registry: CollectorRegistry) -> None:
    with pytest.raises(ValueError, match="1000"):
        ServiceMetrics(registry, symbols=map(str, range(1_001)))
