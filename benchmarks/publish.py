"""What publishing costs: ``python -m benchmarks.publish --servers HOST:PORT``.

Predictions of one size go through the writer of one partition, batch by batch, to a broker that is running; beside the
rate stands the processor time of this process for each record, which a busy machine distorts less.
"""

import argparse
import asyncio
import statistics
import time
import uuid
from collections.abc import Collection, Sequence

from usp_daemon.config import Kafka
from usp_daemon.transport.kafka import KafkaTransport
from usp_daemon.wire import AssignmentListener, EncodedRecords, OutputBatch, TopicPartition

from ._table import Row, format_rows

NOTHING = EncodedRecords((), (), ())
WARM_UP = 3  # batches


class Joined(AssignmentListener):
    """Knows when the group has let this member in."""

    def __init__(self) -> None:
        self.joined = asyncio.Event()

    async def on_assigned(self, partitions: Collection[TopicPartition]) -> None:
        self.joined.set()

    async def on_revoked(self, partitions: Collection[TopicPartition]) -> None:
        pass


def batch(partition: TopicPartition, first: int, records: int, size_bytes: int) -> OutputBatch:
    """``records`` predictions of ``size_bytes`` for the input records from ``first`` on."""
    offsets = range(first, first + records)
    value = bytes(size_bytes)
    predictions = EncodedRecords(
        keys=[b"symbol-%03d" % (offset % 200) for offset in offsets],
        values=[value] * records,
        origins=[(partition.topic, partition.partition, offset) for offset in offsets],
        timestamps_ns=[1_700_000_000_000_000_000 + offset * 1_000_000 for offset in offsets],
    )
    return OutputBatch(predictions, NOTHING, NOTHING, {partition: first + records})


async def run(servers: str, guarantee: str, records: int, batches: int, size_bytes: int) -> Row:
    """Publish ``batches`` of ``records`` each."""
    name = f"publish-{uuid.uuid4().hex[:8]}"
    kafka = Kafka(
        bootstrap_servers=servers,
        group=name,
        group_instance_id="",
        input_topic=f"{name}-in",
        predictions_topic=f"{name}-out",
        alarms_topic=f"{name}-alarms",
        dead_letters_topic=f"{name}-dead",
        num_partitions=1,
    )
    partition = TopicPartition(kafka.input_topic, 0)
    transport = KafkaTransport(kafka, guarantee=guarantee)
    await transport.prepare()
    listener = Joined()
    consumer = transport.consumer(listener)
    await consumer.open()
    await listener.joined.wait()  # at least once, offsets are committed as a member of the group
    writer = transport.writer(partition)
    await writer.open()
    try:
        made = [batch(partition, number * records, records, size_bytes) for number in range(batches + WARM_UP)]
        for one in made[:WARM_UP]:
            await writer.publish(one)
        times = []
        wall, cpu = time.perf_counter(), time.process_time()
        for one in made[WARM_UP:]:
            began = time.perf_counter()
            await writer.publish(one)
            times.append(time.perf_counter() - began)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    finally:
        await transport.close()
    total = records * batches
    ordered = sorted(times)
    return Row(
        name=f"publish, {guarantee}, {records} x {size_bytes} B",
        figure_to_reach="-",
        measured=total / wall,
        unit="records/s",
        note=f"{cpu / total * 1e6:.2f} us of processor time a record; a batch p50 {statistics.median(times) * 1e3:.1f} "
        f"ms, p99 {ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))] * 1e3:.1f} ms",
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints one row for each guarantee and size of batch."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.publish", description="Throughput of publishing.")
    parser.add_argument("--servers", default="127.0.0.1:9092", help="a Kafka broker that is running")
    parser.add_argument("--bytes", type=int, default=1_000, help="size of one prediction")
    parser.add_argument("--batches", type=int, default=60, help="batches to publish of each size")
    options = parser.parse_args(arguments)

    async def measure() -> list[Row]:
        return [
            await run(options.servers, guarantee, records, options.batches, options.bytes)
            for guarantee in ("exactly_once", "at_least_once")
            for records in (1, 100, 2_000)
        ]

    print(format_rows(asyncio.run(measure())))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
