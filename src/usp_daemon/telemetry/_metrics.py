"""The metrics of the pipeline, declared together, and the hooks through which the service reports what happened.

A hook is called once for a batch, never for a record. Hooks may be called from any thread, except that a partition is
assigned and given up from one thread only. What is told of a partition that is not held leaves the series of partitions
alone, so that a late report does not bring back a series that was removed; totals without that label still count it.
"""

import dataclasses
import enum
import functools
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
)

from usp_daemon.wire import ALARM_KIND_LABELS, GATE_REASON_LABELS, NO_TIMESTAMP, DeadLetterReason, TopicPartition

from ._declare import OTHER, Declarations, MetricSpec
from ._predictor_metrics import PredictionRows, PredictorMetrics, count_bits
from ._states import PartitionState

# Reasons from "stale" on let the tick pass.
REFUSING_REASONS = GATE_REASON_LABELS[: GATE_REASON_LABELS.index("stale")]
_PASSING_BITS = (1 << len(GATE_REASON_LABELS)) - (1 << len(REFUSING_REASONS))
_NS = 1e-9
_EXEMPLAR_CHARACTERS = 128

# Bounds in seconds. Latency is fine around a commit interval; above a minute only "late" matters.
_LATENCY_BOUNDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)
_STAGE_BOUNDS = (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
_LOOP_LAG_BOUNDS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
_SLOW_BOUNDS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)
_BATCH_BOUNDS = (1, 4, 16, 64, 256, 1024, 4096, 16384, 65536)


class Stage(enum.StrEnum):
    """Where time goes."""

    POLL = "poll"
    DECODE = "decode"
    STEP = "step"
    ENCODE = "encode"
    PUBLISH = "publish"


class TransactionOutcome(enum.StrEnum):
    """How a transaction ended."""

    COMMITTED = "committed"
    ABORTED = "aborted"
    FENCED = "fenced"
    UNKNOWN = "unknown"


class ResetReason(enum.StrEnum):
    """Why a partition's producer was opened anew."""

    OUTCOME_UNKNOWN = "outcome_unknown"
    TRANSPORT_ERROR = "transport_error"
    STALL = "stall"


class RebalanceKind(enum.StrEnum):
    """What a rebalance brought."""

    ASSIGNED = "assigned"
    REVOKED = "revoked"
    LOST = "lost"


TUNER_STATES = ("off", "idle", "campaign", "decided", "applied", "probation")
CAMPAIGN_OUTCOMES = ("found", "proposed", "nothing", "outdated", "failed")
TUNER_MUTATION_OUTCOMES = ("applied", "proposed", "rejected", "failed", "kept", "rolled_back", "no_verdict")


@dataclasses.dataclass(slots=True, kw_only=True)
class _Partition:
    """The series of one partition, looked up once, and what its gauges are worked out from when they are read."""

    records: Counter
    predictions: Counter
    replayed: Counter
    remaining: Gauge
    lag_records: Gauge
    queued: Gauge
    paused: Gauge
    progress: Gauge
    symbols: Gauge
    state: PartitionState = PartitionState.ASSIGNED
    waiting_since_ns: int | None = None
    waiting_is_inferred: bool = False


def new_registry() -> CollectorRegistry:
    """A registry of its own, so that what one service counts does not meet what another part of the process counts."""
    return CollectorRegistry()


class ServiceMetrics:
    """Every metric of the service in ``registry``, those of the process included.

    ``now_ns_fn`` is the wall clock, in nanoseconds since 1970: records carry times of that clock. ``symbols`` and the
    ``top_symbols`` busiest ones have series of their own.
    """

    def __init__(
        self,
        registry: CollectorRegistry,
        *,
        now_ns_fn: Callable[[], int] = time.time_ns,
        symbols: Iterable[str] = (),
        top_symbols: int = 0,
    ) -> None:
        # A second series per counter, its time of creation, that nothing reads. The switch is the library's, global.
        disable_created_metrics()
        self._now_ns_fn = now_ns_fn
        self._held: dict[TopicPartition, _Partition] = {}
        self._lock = threading.Lock()
        declare = Declarations(registry)

        declare.section("Records and results")
        self._records = declare.partition_counter("usp_records_consumed_total", "Records read from the input.")
        self._predictions = declare.partition_counter(
            "usp_predictions_published_total", "Predictions whose commit is confirmed."
        )
        self._alarms = declare.counters(
            "usp_alarms_published_total",
            "Alarms whose commit is confirmed, by the kind that the alarm names first.",
            "kind",
            (*ALARM_KIND_LABELS, OTHER),
        )
        self._dead_letters = declare.counters(
            "usp_dead_letters_published_total",
            "Records that got no forecast and whose dead letter is confirmed.",
            "reason",
            (*DeadLetterReason, OTHER),
        )
        self._refused = declare.counters(
            "usp_ticks_refused_total",
            "Ticks that the gate refused and answered with the standing forecast; one with two reasons counts twice.",
            "reason",
            (*REFUSING_REASONS, OTHER),
        )
        self._latency = declare.histogram(
            "usp_end_to_end_latency_seconds",
            "Time from a record's own timestamp until the commit of its result is confirmed.",
            _LATENCY_BOUNDS,
        ).series()
        self._progress = declare.partition_gauge(
            "usp_last_progress_timestamp_seconds",
            "Time of the last confirmed commit or replayed batch; before the first, that of the assignment.",
        )

        self._predictor = PredictorMetrics(declare, registry, symbols=symbols, top_symbols=top_symbols)

        declare.section("Lag and flow")
        self._lag_records = declare.partition_gauge(
            "usp_consumer_lag_records", "Records of the input that are not answered yet."
        )
        self._lag_seconds = declare.partition_gauge(
            "usp_consumer_lag_seconds",
            "Age of the oldest unanswered record by its own timestamp; 0 when all are answered. Of records that are "
            "not read yet the age counts from when they were first heard of.",
        )
        stages = declare.histogram(
            "usp_stage_duration_seconds",
            "Time that a stage takes for one batch; poll includes waiting for records.",
            _STAGE_BOUNDS,
            "stage",
            Stage,
        )
        self._stages = {stage: stages.series(stage) for stage in Stage}
        self._batch_size = declare.histogram(
            "usp_batch_size_records", "Records that are stepped together.", _BATCH_BOUNDS
        ).series()
        self._queued = declare.partition_gauge("usp_queued_records", "Records that are read and not yet answered.")
        self._paused = declare.partition_gauge(
            "usp_partition_paused", "1 while the partition is not read because too many of its records wait."
        )
        self._loop_lag = declare.histogram(
            "usp_event_loop_lag_seconds", "Delay of the event loop beyond the time asked for.", _LOOP_LAG_BOUNDS
        ).series()

        declare.section("Partitions and delivery")
        self._state = declare.partition_gauge(
            "usp_partition_state", "1 for the state that the partition is in, else 0.", "state", PartitionState
        )
        self._rebalances = declare.counters(
            "usp_rebalances_total", "Changes of the assignment that reached this replica.", "kind", RebalanceKind
        )
        self._transactions = declare.counters(
            "usp_transactions_total", "Transactions by how they ended.", "outcome", TransactionOutcome
        )
        self._resets = declare.counters(
            "usp_producer_resets_total", "Producers that were opened anew.", "reason", (*ResetReason, OTHER)
        )
        self._fenced = declare.counter("usp_fenced_total", "Partitions given up because another replica owns them.")
        self._symbols = declare.partition_gauge("usp_symbols", "Symbols whose state is held.")
        self._conflicts = declare.counter(
            "usp_symbol_partition_conflicts_total",
            "Symbols found in a second partition: their producers do not agree on the partition of a key.",
        )

        declare.section("Snapshots and recovery")
        self._snapshots = declare.counter("usp_snapshots_written_total", "Snapshots written and durable.")
        self._snapshots_failed = declare.counter("usp_snapshots_failed_total", "Snapshots that could not be written.")
        self._snapshot_duration = declare.histogram(
            "usp_snapshot_duration_seconds", "Time to write one snapshot.", _SLOW_BOUNDS
        ).series()
        self._snapshot_bytes = declare.partition_gauge("usp_snapshot_bytes", "Size of the last snapshot.")
        self._snapshot_time = declare.partition_gauge(
            "usp_snapshot_last_timestamp_seconds", "Time of the last snapshot that this replica wrote."
        )
        self._replayed = declare.partition_counter(
            "usp_replayed_records_total", "Records stepped again in silence to bring a snapshot up to date."
        )
        self._remaining = declare.partition_gauge(
            "usp_restore_remaining_records", "Records still to be replayed before the partition runs."
        )
        self._restore_duration = declare.histogram(
            "usp_restore_duration_seconds", "Time from a partition's assignment until it runs.", _SLOW_BOUNDS
        ).series()

        declare.section("Program and process")
        self._compilations = declare.counter("usp_compilations_total", "Programs compiled for the device.")
        self._compile_seconds = declare.counter("usp_compile_seconds_total", "Time spent on compiling them.")
        self._ready = declare.gauge("usp_ready", "1 while /readyz says that the service does its work, else 0.")
        self._device_memory = declare.gauge(
            "usp_device_memory_bytes",
            "Memory of the device, where the device tells.",
            "kind",
            ("in_use", "limit"),
        )
        self._config = declare.info(
            "usp_config_info", "Hash of the settings that records are answered under.", ("predictor_hash",)
        )
        self._migrated = declare.counter(
            "usp_states_migrated_total", "States of symbols that were taken to another structure."
        )
        self._config_epoch = declare.gauge(
            "usp_config_epoch", "Number of the configuration epoch that new records are answered under."
        )
        self._reloads = declare.counters(
            "usp_config_reloads_total",
            "Changes of the configuration by outcome; a refused one changes nothing.",
            "outcome",
            ("applied", "unchanged", "refused", "failed"),
        )
        self._last_reload = declare.gauge(
            "usp_config_last_reload_success",
            "1 if the configuration as it is now is in force, 0 if it was refused or could not be applied.",
        )
        self._last_reload.set(1.0)
        self._reload_seconds = declare.gauge(
            "usp_config_last_reload_duration_seconds",
            "How long the last change took from being seen to being in force.",
        )
        self._build = declare.info(
            "usp_build_info",
            "What runs: version, version of JAX, device and precision.",
            ("version", "jax", "device", "precision"),
        )

        declare.section("Tuner")
        self._tuner_state = declare.gauge(
            "usp_tuner_state", "1 for what the tuner of this replica is at, else 0.", "state", TUNER_STATES
        )
        self._trials = declare.counter("usp_tuner_trials_total", "Trials of campaigns that were evaluated.")
        self._campaigns = declare.counters(
            "usp_tuner_campaigns_total", "Campaigns by what came of them.", "outcome", CAMPAIGN_OUTCOMES
        )
        self._best = declare.gauge(
            "usp_tuner_best_ratio",
            "Best score of the last campaign so far over that of the settings in force; below 1 is better.",
        )
        self._mutations = declare.counters(
            "usp_tuner_mutations_total",
            "What became of the changes that the tuner wanted; each that was applied ends as another outcome later.",
            "outcome",
            TUNER_MUTATION_OUTCOMES,
        )
        self._probation = declare.gauge(
            "usp_tuner_probation_ratio",
            "Mean score on probation over that of the former parameters on the same ticks; below 1 is better.",
        )
        self._drift = declare.gauge(
            "usp_tuner_drift_ratio",
            "Recent score over the long-run one, both relative to the forecast of no change; above 1 is worse.",
        )
        self._not_recorded = declare.counter(
            "usp_tuner_dropped_ticks_total", "Live ticks that recorder and drift did not see because they were behind."
        )
        self.record_tuner_state("off")
        self._best.set(1.0)
        self._probation.set(1.0)
        self._drift.set(1.0)
        self.specs: Sequence[MetricSpec] = declare.specs
        self._per_partition = declare.per_partition

        # What the library knows of the process: process_*, python_gc_*, python_info.
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        GCCollector(registry=registry)

    # --- partitions

    def record_assigned(self, partition: TopicPartition) -> None:
        """This replica holds the partition from now on: its series exist. Harmless when repeated."""
        if partition in self._held:
            return
        labels = (partition.topic, str(partition.partition))
        held = _Partition(
            records=self._records.labels(*labels),
            predictions=self._predictions.labels(*labels),
            replayed=self._replayed.labels(*labels),
            remaining=self._remaining.labels(*labels),
            lag_records=self._lag_records.labels(*labels),
            queued=self._queued.labels(*labels),
            paused=self._paused.labels(*labels),
            progress=self._progress.labels(*labels),
            symbols=self._symbols.labels(*labels),
        )
        self._lag_seconds.labels(*labels).set_function(functools.partial(self._age_s, held))
        for state in PartitionState:
            self._state.labels(*labels, state).set_function(functools.partial(_is_in, held, state))
        held.progress.set(self._now_ns_fn() * _NS)
        self._held[partition] = held

    def record_given_up(self, partition: TopicPartition) -> None:
        """The partition is not this replica's any more: its series go. Harmless when repeated."""
        labels = {"topic": partition.topic, "partition": str(partition.partition)}
        with self._lock:
            if self._held.pop(partition, None) is not None:
                for metric in self._per_partition:
                    metric.remove_by_labels(labels)
        self._predictor.record_given_up(partition)

    def record_state(self, partition: TopicPartition, state: PartitionState) -> None:
        """The partition is in ``state`` now."""
        if held := self._held.get(partition):
            held.state = state

    def record_rebalance(self, kind: RebalanceKind) -> None:
        """The group's assignment changed for this replica."""
        self._rebalances.add(kind)

    def record_fenced(self) -> None:
        """Another replica has taken a partition over."""
        self._fenced.inc()

    def record_symbols(self, partition: TopicPartition, num_symbols: int) -> None:
        """The partition's state holds so many symbols."""
        if held := self._held.get(partition):
            held.symbols.set(num_symbols)

    def record_symbol_conflicts(self, num_symbols: int = 1) -> None:
        """So many symbols were found in a second partition."""
        self._conflicts.inc(num_symbols)

    # --- the pipeline

    def record_poll(self, duration_s: float, num_records: Mapping[TopicPartition, int]) -> None:
        """A poll ended; it brought so many records of each partition."""
        self._stages[Stage.POLL].observe(duration_s)
        for partition, count in num_records.items():
            if held := self._held.get(partition):
                held.records.inc(count)

    def record_stage(self, stage: Stage, duration_s: float) -> None:
        """A stage was done with a batch."""
        self._stages[stage].observe(duration_s)

    def record_step(self, duration_s: float, num_records: int) -> None:
        """The predictor was done with a batch."""
        self._stages[Stage.STEP].observe(duration_s)
        self._batch_size.observe(num_records)

    def record_queue(self, partition: TopicPartition, num_records: int, *, is_paused: bool) -> None:
        """So many records wait, and the partition is read or not."""
        if held := self._held.get(partition):
            held.queued.set(num_records)
            held.paused.set(is_paused)

    def record_lag(self, partition: TopicPartition, num_records: int, oldest_timestamp_ns: int | None) -> None:
        """So many records are unanswered, and the oldest of those that were read has this timestamp.

        None or ``NO_TIMESTAMP`` is for when it is not known; the age then counts from the first such report.
        """
        if not (held := self._held.get(partition)):
            return
        held.lag_records.set(num_records)
        if num_records <= 0:
            held.waiting_since_ns, held.waiting_is_inferred = None, False
        elif oldest_timestamp_ns is not None and oldest_timestamp_ns != NO_TIMESTAMP:
            held.waiting_since_ns, held.waiting_is_inferred = oldest_timestamp_ns, False
        elif not held.waiting_is_inferred:
            held.waiting_since_ns, held.waiting_is_inferred = self._now_ns_fn(), True

    def record_commit(
        self,
        partition: TopicPartition,
        *,
        num_predictions: int,
        record_timestamps_ns: ArrayLike,
        alarm_kinds: ArrayLike = (),
        refused_reasons: ArrayLike = (),
        dead_letters: Mapping[str, int] | None = None,
        alarm_sources: Sequence[Mapping[str, str]] = (),
        rows: Sequence[PredictionRows] = (),
    ) -> None:
        """The results of a batch are durable, and so is the offset.

        ``record_timestamps_ns`` has one time for each record answered, dead letters included. ``alarm_kinds`` and
        ``refused_reasons`` are the predictor's bits of the ticks with an alarm and of the ticks refused; zeros are
        passed over, so whole columns will do as well where accepted ticks are masked out. ``dead_letters`` counts by
        reason. ``alarm_sources`` tells, for each of ``alarm_kinds``, the tick it came from; the last of a kind is its
        counter's exemplar. ``rows`` are the predictions themselves.
        """
        now_ns = self._now_ns_fn()
        if held := self._held.get(partition):
            held.predictions.inc(num_predictions)
            held.progress.set(now_ns * _NS)
        timestamps = np.asarray(record_timestamps_ns, dtype=np.int64)
        known = timestamps[timestamps != NO_TIMESTAMP]
        # A producer's clock may run ahead of ours; below zero Prometheus would take the sum for a restart.
        self._latency.observe_array(np.maximum(now_ns - known, 0) * _NS)
        self._count_alarms(np.asarray(alarm_kinds, np.int64).tolist(), alarm_sources)
        if partition in self._held:
            for each in rows:
                self._predictor.record(partition, each)
        count_bits(self._refused, np.asarray(refused_reasons, np.int64) & ~_PASSING_BITS, REFUSING_REASONS)
        for reason, count in (dead_letters or {}).items():
            self._dead_letters.add(reason, count)

    def _count_alarms(self, kinds: Sequence[int], sources: Sequence[Mapping[str, str]]) -> None:
        for number, kind in enumerate(kinds):
            if not kind:
                continue
            first = (kind & -kind).bit_length() - 1  # the lowest bit is the kind that the alarm names first
            label = ALARM_KIND_LABELS[first] if first < len(ALARM_KIND_LABELS) else OTHER
            source = dict(sources[number]) if number < len(sources) else {}
            # OpenMetrics allows so many characters and no more.
            fits = source and sum(len(name) + len(text) for name, text in source.items()) <= _EXEMPLAR_CHARACTERS
            self._alarms.add(label, 1, source if fits else None)

    def record_transaction(self, outcome: TransactionOutcome) -> None:
        """A transaction ended."""
        self._transactions.add(outcome)

    def record_producer_reset(self, reason: ResetReason) -> None:
        """A partition's producer is opened anew."""
        self._resets.add(reason)

    # --- snapshots and recovery

    def record_snapshot(self, partition: TopicPartition, duration_s: float, num_bytes: int) -> None:
        """A snapshot is durable."""
        self._snapshots.inc()
        self._snapshot_duration.observe(duration_s)
        labels = (partition.topic, str(partition.partition))
        with self._lock:  # these series come with the first snapshot, and must not come after the partition has gone
            if partition in self._held:
                self._snapshot_bytes.labels(*labels).set(num_bytes)
                self._snapshot_time.labels(*labels).set(self._now_ns_fn() * _NS)

    def record_snapshot_failed(self) -> None:
        """A snapshot could not be written."""
        self._snapshots_failed.inc()

    def record_replayed(self, partition: TopicPartition, num_records: int, num_remaining: int) -> None:
        """So many records were stepped again in silence, and so many are still to come."""
        if held := self._held.get(partition):
            held.replayed.inc(num_records)
            held.remaining.set(num_remaining)
            held.progress.set(self._now_ns_fn() * _NS)

    def record_restored(self, partition: TopicPartition, duration_s: float) -> None:
        """The partition runs, so long after its assignment."""
        self._restore_duration.observe(duration_s)
        if held := self._held.get(partition):
            held.remaining.set(0)

    # --- program and process

    def record_compilations(self, num_programs: int, duration_s: float) -> None:
        """So many programs were compiled, in so much time together."""
        self._compilations.inc(num_programs)
        self._compile_seconds.inc(duration_s)

    def record_device_memory(self, in_use_bytes: int | None, limit_bytes: int | None = None) -> None:
        """The device's memory; what the device does not tell is None and gets no series."""
        for kind, value in (("in_use", in_use_bytes), ("limit", limit_bytes)):
            if value is not None:
                self._device_memory.labels(kind).set(value)

    def show_readiness(self, is_ready_fn: Callable[[], bool]) -> None:
        """Ask this at every scrape whether the service does its work; before it is told, it does not."""
        self._ready.set_function(lambda: float(is_ready_fn()))

    def record_event_loop_lag(self, lag_s: float) -> None:
        """The event loop came so much later than it was asked to."""
        self._loop_lag.observe(lag_s)

    def record_epoch(self, number: int, predictor_hash: str) -> None:
        """New records are answered under this epoch."""
        self._config_epoch.set(number)
        self._config.info({"predictor_hash": predictor_hash})

    def record_migration(self, num_symbols: int) -> None:
        """States of so many symbols were taken to another structure."""
        self._migrated.inc(num_symbols)

    def record_reload(self, outcome: str, seconds: float) -> None:
        """A change of the configuration was dealt with."""
        self._reloads.add(outcome)
        self._last_reload.set(float(outcome in ("applied", "unchanged")))
        self._reload_seconds.set(seconds)

    # --- tuner

    def record_tuner_state(self, state: str) -> None:
        """The tuner is at this now."""
        for each in TUNER_STATES:
            self._tuner_state.labels(each).set(each == state)

    def record_tuner_trials(self, num_trials: int, best: float | None) -> None:
        """So many trials were evaluated; the best of the campaign scores ``best``, relative to what is in force."""
        self._trials.inc(num_trials)
        if best is not None:
            self._best.set(best)

    def record_tuner_campaign(self, outcome: str) -> None:
        """A campaign ended."""
        self._campaigns.add(outcome)

    def record_tuner_mutation(self, outcome: str) -> None:
        """Something became of a change that the tuner wanted."""
        self._mutations.add(outcome)

    def record_probation(self, ratio: float) -> None:
        """How the parameters on probation do, relative to the former ones."""
        self._probation.set(ratio)

    def record_drift(self, ratio: float, num_dropped: int) -> None:
        """How the score does, relative to the long run, and how many more ticks were not seen."""
        self._drift.set(ratio)
        self._not_recorded.inc(num_dropped)

    def record_build(self, *, version: str, jax: str, device: str, precision: str) -> None:
        """This is what runs."""
        self._build.info({"version": version, "jax": jax, "device": device, "precision": precision})

    def _age_s(self, held: _Partition) -> float:
        since = held.waiting_since_ns
        return 0.0 if since is None else max(self._now_ns_fn() - since, 0) * _NS


def _is_in(held: _Partition, state: PartitionState) -> float:
    return float(held.state is state)
