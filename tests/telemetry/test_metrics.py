"""What the service reports is what a scraper reads."""

import collections
from typing import Any

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from prediction_rows import random_rows
from usp_daemon.core import GateReason
from usp_daemon.telemetry import (
    PartitionState,
    RebalanceKind,
    ResetReason,
    ServiceMetrics,
    Stage,
    TransactionOutcome,
)
from usp_daemon.wire import NO_TIMESTAMP, TopicPartition

Clock = Scrape = Any  # fixtures of conftest.py
TICKS_0, TICKS_1 = TopicPartition("ticks", 0), TopicPartition("ticks", 1)


@pytest.fixture
def metrics(registry: CollectorRegistry, clock: Clock) -> ServiceMetrics:
    metrics = ServiceMetrics(registry, now_ns_fn=clock.ns, symbols=["a"])
    metrics.record_assigned(TICKS_0)
    return metrics


def value(scrape: Scrape, name: str, partition: TopicPartition | None = None, **labels: str) -> float | None:
    if partition is not None:
        labels |= {"topic": partition.topic, "partition": str(partition.partition)}
    return scrape().get((name, frozenset(labels.items())))


def test_consumed_records_are_counted_by_partition(metrics: ServiceMetrics, scrape: Scrape) -> None:
    metrics.record_assigned(TICKS_1)
    metrics.record_poll(0.02, {TICKS_0: 3, TICKS_1: 4})
    metrics.record_poll(0.02, {TICKS_1: 5})
    assert value(scrape, "usp_records_consumed_total", TICKS_0) == 3
    assert value(scrape, "usp_records_consumed_total", TICKS_1) == 9
    assert value(scrape, "usp_stage_duration_seconds_count", stage="poll") == 2


def test_commit_counts_results_and_latency(metrics: ServiceMetrics, scrape: Scrape, clock: Clock) -> None:
    ages_s = np.array([0.004, 0.04, 0.4, 4.0])
    metrics.record_commit(
        TICKS_0,
        num_predictions=3,
        record_timestamps_ns=clock.ns() - np.round(ages_s * 1e9).astype(np.int64),
        dead_letters={"not_json": 1, "never heard of": 2},
    )
    assert value(scrape, "usp_predictions_published_total", TICKS_0) == 3
    assert value(scrape, "usp_dead_letters_published_total", reason="not_json") == 1
    assert value(scrape, "usp_dead_letters_published_total", reason="other") == 2
    assert value(scrape, "usp_end_to_end_latency_seconds_count") == 4
    assert value(scrape, "usp_end_to_end_latency_seconds_sum") == pytest.approx(ages_s.sum())
    assert value(scrape, "usp_end_to_end_latency_seconds_bucket", le="0.05") == 2
    assert value(scrape, "usp_last_progress_timestamp_seconds", TICKS_0) == pytest.approx(clock.now)


def test_latency_of_clocks_that_run_ahead_is_zero_and_missing_times_are_left_out(
    metrics: ServiceMetrics, scrape: Scrape, clock: Clock
) -> None:
    metrics.record_commit(TICKS_0, num_predictions=2, record_timestamps_ns=[clock.ns() + 10**9, NO_TIMESTAMP])
    assert value(scrape, "usp_end_to_end_latency_seconds_count") == 1
    assert value(scrape, "usp_end_to_end_latency_seconds_sum") == 0.0


def test_alarms_count_by_their_first_kind(metrics: ServiceMetrics, scrape: Scrape) -> None:
    kinds = [0b1, 0b11, 0b10, 0, 0b100100, 1 << 9]
    metrics.record_commit(TICKS_0, num_predictions=6, record_timestamps_ns=[], alarm_kinds=np.array(kinds))
    found = {kind: value(scrape, "usp_alarms_published_total", kind=kind) for kind in ("level_up", "level_down")}
    assert found == {"level_up": 2, "level_down": 1}
    assert value(scrape, "usp_alarms_published_total", kind="scale_up") == 1
    assert value(scrape, "usp_alarms_published_total", kind="jump") == 0
    assert value(scrape, "usp_alarms_published_total", kind="other") == 1


def test_refused_ticks_count_by_each_reason_that_refuses(metrics: ServiceMetrics, scrape: Scrape) -> None:
    reasons = [
        GateReason.OUTLIER,
        GateReason.OUTLIER | GateReason.STALE,
        GateReason.NOT_FINITE | GateReason.FUTURE,
        GateReason.SPARSE | GateReason.REBASED,
        GateReason.NONE,
    ]
    metrics.record_commit(
        TICKS_0,
        num_predictions=5,
        record_timestamps_ns=[],
        refused_reasons=np.array([int(reason) for reason in reasons], dtype=np.int32),
    )
    counted = {
        dict(labels)["reason"]: number
        for (name, labels), number in scrape().items()
        if name == "usp_ticks_refused_total" and number
    }
    assert counted == {"outlier": 2, "not_finite": 1, "future": 1}


def test_reasons_that_refuse_are_the_predictors() -> None:
    from usp_daemon.core._types import REJECTING_REASONS
    from usp_daemon.telemetry._metrics import REFUSING_REASONS

    assert set(REFUSING_REASONS) == {reason.name.lower() for reason in GateReason if reason & REJECTING_REASONS}


def test_lag_grows_by_itself_until_all_is_answered(metrics: ServiceMetrics, scrape: Scrape, clock: Clock) -> None:
    metrics.record_lag(TICKS_0, 7, clock.ns() - 2 * 10**9)
    assert value(scrape, "usp_consumer_lag_records", TICKS_0) == 7
    assert value(scrape, "usp_consumer_lag_seconds", TICKS_0) == pytest.approx(2.0)
    clock.now += 30.0
    assert value(scrape, "usp_consumer_lag_seconds", TICKS_0) == pytest.approx(32.0)
    metrics.record_lag(TICKS_0, 0, None)
    assert value(scrape, "usp_consumer_lag_seconds", TICKS_0) == 0.0


@pytest.mark.parametrize("unknown", [None, NO_TIMESTAMP])
def test_lag_of_unread_records_counts_from_when_they_were_heard_of(
    metrics: ServiceMetrics, scrape: Scrape, clock: Clock, unknown: int | None
) -> None:
    metrics.record_lag(TICKS_0, 1, clock.ns() - 10**12)
    metrics.record_lag(TICKS_0, 3, unknown)
    clock.now += 4.0
    metrics.record_lag(TICKS_0, 5, unknown)
    assert value(scrape, "usp_consumer_lag_seconds", TICKS_0) == pytest.approx(4.0)
    metrics.record_lag(TICKS_0, 0, unknown)
    clock.now += 4.0
    metrics.record_lag(TICKS_0, 5, unknown)
    assert value(scrape, "usp_consumer_lag_seconds", TICKS_0) == 0.0


def test_exactly_one_state_holds(metrics: ServiceMetrics, scrape: Scrape) -> None:
    for state in PartitionState:
        metrics.record_state(TICKS_0, state)
        holding = [
            dict(labels)["state"]
            for (name, labels), number in scrape().items()
            if name == "usp_partition_state" and number == 1.0
        ]
        assert holding == [state.value]


def test_series_of_a_partition_go_with_it(metrics: ServiceMetrics, scrape: Scrape) -> None:
    metrics.record_assigned(TICKS_1)
    report_everything(metrics, TICKS_0)
    report_everything(metrics, TICKS_1)
    before = scrape()
    metrics.record_given_up(TICKS_0)
    metrics.record_given_up(TICKS_0)
    # The chosen symbol is in both: its series are those of its last tick, and come again with the next one.
    gone = {key for key in before.keys() - scrape().keys() if not key[0].startswith("usp_symbol_")}
    assert gone == {key for key in before if ("partition", "0") in key[1]}
    assert any(("partition", "1") in labels for _, labels in scrape())


def test_late_reports_bring_no_series_back_and_totals_still_count(metrics: ServiceMetrics, scrape: Scrape) -> None:
    metrics.record_given_up(TICKS_0)
    report_everything(metrics, TICKS_0)
    assert not any(dict(labels).get("partition") for _, labels in scrape())
    assert value(scrape, "usp_snapshots_written_total") == 1
    assert value(scrape, "usp_end_to_end_latency_seconds_count") == 1


def test_a_partition_that_comes_back_begins_at_zero(metrics: ServiceMetrics, scrape: Scrape) -> None:
    metrics.record_poll(0.0, {TICKS_0: 3})
    metrics.record_given_up(TICKS_0)
    metrics.record_assigned(TICKS_0)
    assert value(scrape, "usp_records_consumed_total", TICKS_0) == 0
    assert value(scrape, "usp_partition_state", TICKS_0, state="ASSIGNED") == 1


def test_assigning_twice_keeps_what_was_counted(metrics: ServiceMetrics, scrape: Scrape) -> None:
    metrics.record_poll(0.0, {TICKS_0: 3})
    metrics.record_assigned(TICKS_0)
    assert value(scrape, "usp_records_consumed_total", TICKS_0) == 3


def test_known_labels_are_there_from_the_start(metrics: ServiceMetrics, scrape: Scrape) -> None:
    present = collections.defaultdict(set)
    for name, labels in scrape():
        for label, text in labels:
            present[name, label].add(text)
    for spec in metrics.specs:
        if spec.kind == "counter":
            for label, values in spec.label_values.items():
                assert present[spec.name, label] == {str(text) for text in values}, spec.name


def test_every_declared_metric_is_reported(metrics: ServiceMetrics, scrape: Scrape, clock: Clock) -> None:
    untouched = {key: number for key, number in scrape().items() if key[0].startswith("usp_")}
    clock.now += 1.0
    report_everything(metrics, TICKS_0)
    clock.now += 1.0
    moved = {name for (name, labels), number in scrape().items() if untouched.get((name, labels)) != number}
    for spec in metrics.specs:
        assert (f"{spec.name}_bucket" if spec.kind == "histogram" else spec.name) in moved, spec.name


def test_settings_and_build_are_facts(metrics: ServiceMetrics, scrape: Scrape) -> None:
    metrics.record_epoch(1, "aa")
    metrics.record_epoch(2, "bb")
    infos = {labels: number for (name, labels), number in scrape().items() if name == "usp_config_info"}
    assert infos == {frozenset({("predictor_hash", "bb")}): 1.0}
    assert scrape()["usp_config_epoch", frozenset()] == 2.0


def test_a_refused_change_shows_until_one_is_applied(metrics: ServiceMetrics, scrape: Scrape) -> None:
    def last() -> float:
        return scrape()["usp_config_last_reload_success", frozenset()]

    assert last() == 1.0
    metrics.record_reload("refused", 0.01)
    assert last() == 0.0
    assert scrape()["usp_config_reloads_total", frozenset({("outcome", "refused")})] == 1.0
    metrics.record_reload("unchanged", 0.01)
    assert last() == 1.0


def test_device_that_tells_nothing_has_no_series(metrics: ServiceMetrics, scrape: Scrape) -> None:
    metrics.record_device_memory(None, None)
    assert not any(name == "usp_device_memory_bytes" for name, _ in scrape())


def test_process_metrics_are_in_the_same_registry(metrics: ServiceMetrics, scrape: Scrape) -> None:
    names = {name for name, _ in scrape()}
    assert {"process_resident_memory_bytes", "process_open_fds", "python_info"} <= names
    assert "python_gc_collections_total" in names


def test_two_services_in_one_process_do_not_meet() -> None:
    first, second = CollectorRegistry(), CollectorRegistry()
    ServiceMetrics(first).record_fenced()
    ServiceMetrics(second)
    assert first.get_sample_value("usp_fenced_total") == 1
    assert second.get_sample_value("usp_fenced_total") == 0


def report_everything(metrics: ServiceMetrics, partition: TopicPartition) -> None:
    metrics.record_state(partition, PartitionState.RUNNING)
    metrics.record_poll(0.01, {partition: 1})
    for stage in Stage:
        metrics.record_stage(stage, 0.01)
    metrics.record_step(0.01, 1)
    metrics.record_queue(partition, 1, is_paused=True)
    metrics.record_lag(partition, 1, None)
    metrics.record_commit(
        partition,
        num_predictions=1,
        record_timestamps_ns=[0],
        alarm_kinds=[1],
        refused_reasons=[1],
        dead_letters={"not_json": 1},
        rows=[random_rows(["a"] * 50, grace_counter=[2] * 50)],
    )
    metrics.show_readiness(lambda: True)
    metrics.record_transaction(TransactionOutcome.COMMITTED)
    metrics.record_producer_reset(ResetReason.OUTCOME_UNKNOWN)
    metrics.record_rebalance(RebalanceKind.LOST)
    metrics.record_fenced()
    metrics.record_symbols(partition, 5)
    metrics.record_symbol_conflicts()
    metrics.record_snapshot(partition, 0.1, 4096)
    metrics.record_snapshot_failed()
    metrics.record_restored(partition, 3.0)
    metrics.record_replayed(partition, 10, 90)
    metrics.record_compilations(2, 30.0)
    metrics.record_device_memory(10, 100)
    metrics.record_event_loop_lag(0.001)
    metrics.record_epoch(3, "bb")
    metrics.record_migration(5)
    metrics.record_reload("refused", 0.01)
    metrics.record_build(version="1", jax="2", device="cpu", precision="float64")
    metrics.record_tuner_state("campaign")
    metrics.record_tuner_trials(8, 0.93)
    metrics.record_tuner_campaign("found")
    metrics.record_tuner_mutation("applied")
    metrics.record_probation(0.97)
    metrics.record_drift(1.1, 5)


def test_the_tuner_is_in_one_state_and_counts_by_outcome() -> None:
    registry = CollectorRegistry()
    metrics = ServiceMetrics(registry)
    assert registry.get_sample_value("usp_tuner_state", {"state": "off"}) == 1.0
    metrics.record_tuner_state("probation")
    states = {s.labels["state"]: s.value for family in registry.collect() for s in family.samples
              if s.name == "usp_tuner_state"}  # fmt: skip
    assert states.pop("probation") == 1.0 and set(states.values()) == {0.0} and len(states) == 5
    metrics.record_tuner_trials(8, None)
    metrics.record_tuner_trials(8, 0.93)
    metrics.record_tuner_campaign("found")
    metrics.record_tuner_mutation("rolled_back")
    metrics.record_probation(1.07)
    metrics.record_drift(1.3, 5)
    found = {
        name: registry.get_sample_value(name, labels)
        for name, labels in (
            ("usp_tuner_trials_total", {}),
            ("usp_tuner_best_ratio", {}),
            ("usp_tuner_campaigns_total", {"outcome": "found"}),
            ("usp_tuner_mutations_total", {"outcome": "rolled_back"}),
            ("usp_tuner_probation_ratio", {}),
            ("usp_tuner_drift_ratio", {}),
            ("usp_tuner_dropped_ticks_total", {}),
        )
    }
    assert list(found.values()) == [16.0, 0.93, 1.0, 1.0, 1.07, 1.3, 5.0]
