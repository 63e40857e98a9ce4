"""Kafka to Kafka: what the service answers a second and how late, beside a bare pass-through with the same guarantee.

The pass-through consumes, decodes, writes a record of the prediction's size and publishes it, in the same transactions;
it predicts nothing. The ratio between the two is the cost of prediction. The broker runs on the same cores.
"""

import argparse
import asyncio
import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import orjson
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from ._table import Row, format_rows

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "chaos")]

from service_process import ServiceProcess  # noqa: E402

from kafka_broker import Broker, fetch  # noqa: E402
from kafka_broker.clients import create_topic  # noqa: E402

PARTITIONS = 4
GUARANTEES = ("exactly_once", "at_least_once")
ASKED = {"float32": 20_000.0, "float64": 10_000.0}
"""Ticks a second to reach, by precision."""


class Tick(msgspec.Struct):
    """What the pass-through decodes."""

    symbol: str
    ts: int
    value: float


def tick_record(symbol: int, number: int) -> bytes:
    """About 140 bytes, as a feed sends them: more members than the service reads."""
    return orjson.dumps(
        {
            "symbol": f"SYM-{symbol:05d}",
            "ts": time.time_ns(),
            "value": 100.0 + ((number * 7919 + symbol * 31) % 1000) * 1e-3,
            "bid": 99.98,
            "ask": 100.02,
            "size": number % 500,
            "venue": "XBNC",
            "id": number,
        }
    )


async def produce(servers: str, topic: str, num_records: int, num_symbols: int, rate: float | None) -> None:
    """Ticks of all symbols in turn, in batches, as fast as the broker takes them or at ``rate`` a second."""
    producer = AIOKafkaProducer(bootstrap_servers=servers, acks=1, max_batch_size=262_144)
    await producer.start()
    try:
        began, sent, waiting = time.perf_counter(), 0, []
        step = 2_000 if rate is None else max(PARTITIONS, int(rate / 100))
        while sent < num_records:
            batches = [producer.create_batch() for _ in range(PARTITIONS)]
            now_ms = int(time.time() * 1e3)
            for number in range(sent, min(sent + step, num_records)):
                symbol = number % num_symbols
                value = tick_record(symbol, number)
                batches[symbol % PARTITIONS].append(key=b"SYM-%05d" % symbol, value=value, timestamp=now_ms)
            for partition, batch in enumerate(batches):
                if batch.record_count():
                    batch.close()
                    waiting.append(await producer.send_batch(batch, topic, partition=partition))
            sent = min(sent + step, num_records)
            if rate is not None:
                await asyncio.sleep(max(0.0, began + sent / rate - time.perf_counter()))
            elif len(waiting) > 64:
                await asyncio.gather(*waiting)
                waiting.clear()
        await asyncio.gather(*waiting)
    finally:
        await producer.stop()


async def pass_through(servers: str, prefix: str, guarantee: str, record_bytes: int) -> None:
    """The peer, for ever: the same topics, the same transactions, no prediction."""
    exactly = guarantee == "exactly_once"
    group, topic, out = f"{prefix}.peer", f"{prefix}.ticks", f"{prefix}.peer.predictions"
    consumer = AIOKafkaConsumer(
        bootstrap_servers=servers, enable_auto_commit=False, isolation_level="read_committed", fetch_max_wait_ms=20
    )
    await consumer.start()
    partitions = [TopicPartition(topic, number) for number in range(PARTITIONS)]
    consumer.assign(partitions)
    await consumer.seek_to_beginning(*partitions)
    producers = []
    for number in range(PARTITIONS):
        identity = {"transactional_id": f"{group}-{number}"} if exactly else {"enable_idempotence": True}
        producer = AIOKafkaProducer(bootstrap_servers=servers, max_batch_size=1_000_000, **identity)  # type: ignore[arg-type]
        await producer.start()
        producers.append(producer)
    decode = msgspec.json.Decoder(Tick).decode
    padding = "x" * max(record_bytes - 120, 0)
    pending: dict[int, list[Any]] = {number: [] for number in range(PARTITIONS)}
    interval_s = 0.1 if exactly else 0.0
    due = time.perf_counter() + interval_s

    def fill(producer: AIOKafkaProducer, records: Sequence[Any]) -> list[Any]:
        batches, batch = [], producer.create_batch()
        for record in records:
            tick = decode(record.value)
            value = orjson.dumps({"symbol": tick.symbol, "ts": tick.ts, "prediction": tick.value, "padding": padding})
            fields: dict[str, Any] = {"timestamp": record.timestamp, "key": record.key, "value": value}
            fields["headers"] = [("source", b"%d" % record.offset)]
            if batch.append(**fields) is None:
                batches.append(batch)
                batch = producer.create_batch()
                batch.append(**fields)
        batches.append(batch)
        return batches

    async def publish(number: int, records: list[Any]) -> None:
        producer = producers[number]
        offsets = {partitions[number]: records[-1].offset + 1}
        if exactly:
            await producer.begin_transaction()
            await producer.send_offsets_to_transaction(offsets, group)
        batches = await asyncio.to_thread(fill, producer, records)
        sent = []
        for batch in batches:
            batch.close()
            sent.append(await producer.send_batch(batch, out, partition=number))
        await asyncio.gather(*sent)
        if exactly:
            await producer.commit_transaction()

    while True:
        for partition, records in (await consumer.getmany(timeout_ms=20)).items():
            pending[partition.partition] += records
        if time.perf_counter() >= due and any(pending.values()):
            work = {number: records for number, records in pending.items() if records}
            pending = {number: [] for number in range(PARTITIONS)}
            await asyncio.gather(*(publish(number, records) for number, records in work.items()))
            due = time.perf_counter() + interval_s


async def arrivals(servers: str, topic: str, num_records: int, timeout_s: float = 300.0) -> list[tuple[float, float]]:
    """(arrival, latency) in seconds of ``num_records`` new committed records; latency since the record's own time."""
    consumer = AIOKafkaConsumer(
        bootstrap_servers=servers, isolation_level="read_committed", enable_auto_commit=False, fetch_max_wait_ms=5
    )
    await consumer.start()
    try:
        partitions = [TopicPartition(topic, number) for number in range(PARTITIONS)]
        consumer.assign(partitions)
        await consumer.seek_to_end(*partitions)
        for partition in partitions:
            await consumer.position(partition)
        seen: list[tuple[float, float]] = []
        deadline = time.time() + timeout_s
        while len(seen) < num_records and time.time() < deadline:
            for records in (await consumer.getmany(timeout_ms=200)).values():
                now = time.time()
                seen += [(now, now - record.timestamp / 1e3) for record in records]
        return seen
    finally:
        await consumer.stop()


def rate_of(seen: Sequence[tuple[float, float]]) -> float:
    """Records a second between the first and the last tenth: without the start and the end of the run."""
    times = sorted(at for at, _ in seen)
    low, high = len(times) // 10, len(times) - len(times) // 10 - 1
    return (high - low) / max(times[high] - times[low], 1e-9)


def percentile(seen: Sequence[tuple[float, float]], share: float) -> float:
    """A latency in milliseconds, over the second half of the run."""
    latencies = sorted(latency for _, latency in seen[len(seen) // 2 :])
    return 1e3 * latencies[min(int(share * len(latencies)), len(latencies) - 1)]


async def measure(servers: str, topic: str, input_topic: str, options: argparse.Namespace, rate: float | None,
                  num_records: int) -> list[tuple[float, float]]:  # fmt: skip
    """Produce, and watch the answers come."""
    watching = asyncio.create_task(arrivals(servers, topic, num_records))
    await asyncio.sleep(1.0)
    await produce(servers, input_topic, num_records, options.symbols, rate)
    return await watching


async def measure_service(
    servers: str, folder: Path, guarantee: str, precision: str, options: argparse.Namespace
) -> list[Row]:
    """Throughput, then latency at half of the rate asked for, of the service."""
    prefix = f"bench.{guarantee}.{precision}.{int(time.time())}"
    await create_topic(servers, f"{prefix}.ticks", PARTITIONS)
    service = ServiceProcess(
        folder / prefix, servers, group=f"usp.{precision}", prefix=prefix, USP_DELIVERY__GUARANTEE=guarantee,
        USP_COMPUTE__PRECISION=precision, USP_IO__SNAPSHOT_INTERVAL_S=10.0, USP_KAFKA__SESSION_TIMEOUT_MS=45000,
    ).start()  # fmt: skip
    try:
        await service.wait_ready(holding=PARTITIONS)
        topic, ticks = service.environment["USP_KAFKA__PREDICTIONS_TOPIC"], f"{prefix}.ticks"
        await measure(servers, topic, ticks, options, None, 20_000)  # warm, and every symbol admitted
        rates = []
        for _ in range(options.repetitions):
            rates.append(rate_of(await measure(servers, topic, ticks, options, None, options.records)))
        throughput = statistics.median(rates)
        name = f"{guarantee}, {precision}"
        exactly = guarantee == "exactly_once"
        asked = ASKED[precision]
        rows = [
            Row(name=f"{name}: throughput", figure_to_reach=f">= {asked:,.0f}", measured=throughput, unit="ticks/s",
                note=f"{min(rates):,.0f} to {max(rates):,.0f} in {len(rates)} runs")
        ]  # fmt: skip
        for rate in options.rates or [asked / 2.0]:
            seen = await measure(servers, topic, ticks, options, rate, int(rate * options.seconds))
            rows += [
                Row(name=f"{name}: latency p50 at {rate:,.0f} ticks/s", figure_to_reach="" if exactly else "< 15",
                    measured=percentile(seen, 0.5), unit="ms"),
                Row(name=f"{name}: latency p99 at {rate:,.0f} ticks/s", figure_to_reach="< 250" if exactly else "",
                    measured=percentile(seen, 0.99), unit="ms"),
            ]  # fmt: skip
        for line in (service.http("/metrics") or (0, b""))[1].decode().splitlines():
            if options.stages and line.startswith("usp_stage_duration_seconds_sum"):
                print(line, file=sys.stderr)
        return rows
    finally:
        if service.alive:
            await service.stop()


async def measure_peer(servers: str, guarantee: str, options: argparse.Namespace) -> list[Row]:
    """Throughput of the pass-through."""
    prefix = f"bench.peer.{guarantee}.{int(time.time())}"
    for name in ("ticks", "peer.predictions"):
        await create_topic(servers, f"{prefix}.{name}", PARTITIONS)
    command = [sys.executable, "-m", "benchmarks.kafka", "--peer", servers, prefix, guarantee]
    with _running(command):
        await asyncio.sleep(3.0)
        topic = f"{prefix}.peer.predictions"
        await measure(servers, topic, f"{prefix}.ticks", options, None, 20_000)
        rates = [
            rate_of(await measure(servers, topic, f"{prefix}.ticks", options, None, options.records))
            for _ in range(options.repetitions)
        ]
    return [
        Row(name=f"{guarantee}, pass-through: throughput", figure_to_reach="", measured=statistics.median(rates),
            unit="ticks/s")
    ]  # fmt: skip


@contextlib.contextmanager
def _running(command: Sequence[str]) -> Iterator[None]:
    process = subprocess.Popen(command, cwd=ROOT)
    try:
        yield
    finally:
        process.kill()
        process.wait()


async def run(options: argparse.Namespace) -> list[Row]:
    """All rows, on a broker of its own unless one is named."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="usp-kafka-")))
        os.environ.setdefault("USP_CACHE_DIR", str(ROOT / ".cache" / "usp-daemon"))
        servers = options.bootstrap_servers
        if servers is None:
            fetch()
            broker = Broker(folder / "broker", long_lived=True)
            broker.start()
            stack.callback(broker.kill)
            servers = broker.bootstrap_servers
        rows: list[Row] = []
        for guarantee in options.guarantees.split(","):
            peer = await measure_peer(servers, guarantee, options)
            rows += peer
            for precision in options.precisions.split(","):
                own = await measure_service(servers, folder, guarantee, precision, options)
                share = float(own[0].measured) / float(peer[0].measured)
                rows += own
                rows.append(
                    Row(name=f"{guarantee}, {precision}: share of the pass-through", figure_to_reach="", measured=share)
                )
        return rows


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kafka", description=__doc__)
    parser.add_argument("--bootstrap-servers", help="a broker that runs already (default: one of its own)")
    parser.add_argument("--records", type=int, default=100_000, help="ticks of one throughput run (100000)")
    parser.add_argument("--symbols", type=int, default=1_000, help="(1000)")
    parser.add_argument("--seconds", type=float, default=15.0, help="length of a latency run (15)")
    parser.add_argument(
        "--rates", type=float, nargs="*", help="ticks a second of the latency runs (half of the rate asked)"
    )
    parser.add_argument("--repetitions", type=int, default=3, help="throughput runs (3)")
    parser.add_argument("--guarantees", default=",".join(GUARANTEES))
    parser.add_argument("--precisions", default="float64,float32")
    parser.add_argument("--stages", action="store_true", help="also print where the service spent its time")
    parser.add_argument("--peer", nargs=3, metavar=("SERVERS", "PREFIX", "GUARANTEE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peer:
        asyncio.run(pass_through(*options.peer, record_bytes=1_150))
        return
    print(format_rows(asyncio.run(run(options))))


if __name__ == "__main__":
    main()
