"""What the service's metrics cost: CPU time of all hooks of a batch, as a share of one core, and of a scrape.

``python -m benchmarks.telemetry`` reports 20 s of records to the hooks as fast as it goes, every one of a batch once,
and sets their CPU time against those 20 s. Nothing else runs. Then it reports predictions of 10,000 symbols and sets
the time against that of the step itself; size and time of a scrape are those of the whole registry. The last row is
prometheus_client's own histogram, told of every record by itself: the reason why the latency's takes arrays.
"""

import argparse
import dataclasses
import time

import numpy as np
from prometheus_client import CollectorRegistry, Histogram, generate_latest

from usp_daemon.core import PredictionResult
from usp_daemon.service import AnswerRows
from usp_daemon.telemetry import PartitionState, ServiceMetrics, Stage, TransactionOutcome
from usp_daemon.wire import TopicPartition

from ._table import Row, format_rows

SECONDS = 20
NUM_SYMBOLS = 10_000
STEP_US = 39.0  # processor time of one step, float32, from benchmarks.throughput: the dearer comparison
LATENCY_BOUNDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)


def cost_of(num_partitions: int, batch: int, rate: int) -> tuple[float, float, float]:
    """Share of one core, seconds a batch and seconds a scrape."""
    registry = CollectorRegistry()
    metrics = ServiceMetrics(registry)
    partitions = [TopicPartition("ticks", index) for index in range(num_partitions)]
    for partition in partitions:
        metrics.record_assigned(partition)
        metrics.record_state(partition, PartitionState.RUNNING)
    rng = np.random.default_rng(0)
    timestamps = time.time_ns() - rng.integers(0, 10**9, batch)
    alarms = (rng.random(batch) < 0.01).astype(np.int32)
    refused = (rng.random(batch) < 0.01).astype(np.int32) * 32
    num_batches = rate * SECONDS // batch
    begun = time.process_time()
    for index in range(num_batches):
        partition = partitions[index % num_partitions]
        metrics.record_poll(0.001, {partition: batch})
        metrics.record_queue(partition, batch, is_paused=False)
        for stage in (Stage.DECODE, Stage.ENCODE, Stage.PUBLISH):
            metrics.record_stage(stage, 0.001)
        metrics.record_step(0.01, batch)
        metrics.record_transaction(TransactionOutcome.COMMITTED)
        metrics.record_commit(
            partition,
            num_predictions=batch,
            record_timestamps_ns=timestamps,
            alarm_kinds=alarms,
            refused_reasons=refused,
            dead_letters={"not_json": 1},
        )
        metrics.record_lag(partition, 0, None)
        metrics.record_symbols(partition, 100)
    used = time.process_time() - begun
    begun = time.process_time()
    generate_latest(registry)
    return used / SECONDS, used / num_batches, time.process_time() - begun


def cost_of_predictions(batch: int, top_symbols: int, num_batches: int = 100) -> tuple[float, int, float]:
    """Microseconds a tick, bytes of a scrape, seconds for it; 10,000 symbols in 4 partitions."""
    registry = CollectorRegistry()
    metrics = ServiceMetrics(registry, top_symbols=top_symbols)
    partitions = [TopicPartition("ticks", index) for index in range(4)]
    for partition in partitions:
        metrics.record_assigned(partition)
        metrics.record_state(partition, PartitionState.RUNNING)
    rng = np.random.default_rng(0)
    names = [[f"symbol-{partition}-{number}" for number in range(NUM_SYMBOLS // 4)] for partition in range(4)]
    prepared = [made_up_rows([names[p][n] for n in rng.integers(0, NUM_SYMBOLS // 4, batch)]) for p in range(4)]

    def report(number: int) -> None:
        metrics.record_commit(
            partitions[number % 4], num_predictions=batch, record_timestamps_ns=(), rows=[prepared[number % 4]]
        )

    for number in range(4 * (1 + 60_000 // batch)):  # past the first ranking
        report(number)
    begun = time.process_time()
    for number in range(num_batches):
        report(number)
    used = time.process_time() - begun
    begun = time.perf_counter()
    size = len(generate_latest(registry))
    return 1e6 * used / (num_batches * batch), size, time.perf_counter() - begun


def made_up_rows(symbols: list[str]) -> AnswerRows:
    """A row for each of ``symbols``."""
    rng = np.random.default_rng(1)
    columns: dict[str, np.ndarray] = {}
    for field in dataclasses.fields(PredictionResult):
        shape = (len(symbols), 4) if field.name == "weights" else len(symbols)
        kind = str(field.type)
        is_flag, is_count = "Bool" in kind, "Int" in kind
        numbers = rng.gamma(2.0, 1.0, shape)
        columns[field.name] = numbers < 0.5 if is_flag else numbers.astype(np.int32) if is_count else numbers
    columns["alarm_kind"] = (rng.random(len(symbols)) < 0.002).astype(np.int32)
    columns["accepted"] = np.ones(len(symbols), bool)
    return AnswerRows(symbols, np.zeros(len(symbols), np.int64), rng.normal(size=len(symbols)), columns, 0)


def cost_value_by_value(rate: int) -> float:
    """Share of one core that prometheus_client's histogram takes at ``rate`` values a second."""
    histogram = Histogram("h", "Meaning.", buckets=LATENCY_BOUNDS, registry=CollectorRegistry())
    values = np.random.default_rng(0).random(rate * SECONDS).tolist()
    begun = time.process_time()
    for value in values:
        histogram.observe(value)
    return (time.process_time() - begun) / SECONDS


def main() -> None:
    """Prints the table."""
    arguments = argparse.ArgumentParser(prog="python -m benchmarks.telemetry", description="cost of the metrics")
    arguments.add_argument("--rate", type=int, default=20_000, help="records a second (default: 20000)")
    rate = arguments.parse_args().rate
    rows = []
    for num_partitions, batch in ((4, 4000), (4, 500), (16, 64), (200, 500)):
        share, per_batch, scrape = cost_of(num_partitions, batch, rate)
        note = f"{per_batch * 1e6:.0f} us a batch, {scrape * 1e3:.1f} ms a scrape"
        name = f"{num_partitions} partitions, batches of {batch}"
        rows.append(Row(name=name, figure_to_reach="< 3", measured=share * 100, unit="%", note=note))
    for batch, top_symbols in ((250, 10), (1000, 10), (4000, 10), (1000, 100)):
        per_tick, size, scrape = cost_of_predictions(batch, top_symbols)
        rows.append(
            Row(
                name=f"predictions of {NUM_SYMBOLS:,} symbols, batches of {batch}, {top_symbols} with series",
                figure_to_reach="< 3",
                measured=100.0 * per_tick / STEP_US,
                unit="% of a step",
                note=f"{per_tick:.2f} us a tick; a scrape has {size / 1000:.0f} kB and takes {scrape * 1e3:.0f} ms",
            )
        )
    alone = cost_value_by_value(rate) * 100
    rows.append(Row(name="one histogram, value by value", figure_to_reach="", measured=alone, unit="%"))
    print(f"share of one core at {rate:,} records/s\n\n{format_rows(rows)}")


if __name__ == "__main__":
    main()
