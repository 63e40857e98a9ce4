"""Hours at four fifths of what the service can do, then twice what it can do: does anything grow that should not?

``python tests/chaos/soak.py --seconds 3600`` measures the rate, loads the service with 80 % of it, samples memory, open
files and threads from /proc and from /metrics, overloads it, and prints a table. It ends with 1 when something grew.
"""

import argparse
import asyncio
import contextlib
import dataclasses
import math
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "chaos")]

import orjson  # noqa: E402
from aiokafka import AIOKafkaProducer  # noqa: E402
from service_process import NUM_PARTITIONS, ServiceProcess, create_topics  # noqa: E402

from kafka_broker import Broker, fetch  # noqa: E402

GROUP = "soaked"
NUM_SYMBOLS = 400
LOAD = 0.8
OVERLOAD = 2.0
RECOVERY_LOAD = 0.5
FEED_INTERVAL_S = 0.02
MOST_SAMPLES = 400
LOOK_S = 2.0
# An hour of results would fill the disk; what is far behind the last snapshot nobody reads again.
TOPIC_SETTINGS = {"retention_bytes": 64 << 20, "segment_bytes": 16 << 20}
BROKER_SETTINGS = {"log.retention.check.interval.ms": 5_000, "log.segment.delete.delay.ms": 1_000}

# What may differ between the second and the last quarter of a run without being growth.
SLACK_SHARE, SLACK_BYTES = 0.03, 16_000_000
# In a minute the allocator has not settled, programs are still being compiled, and others on the machine decide the
# pace: memory and pace are judged where the run takes at least this long, files, threads and answers always.
LONG_S = 600.0
SLACK_FILES = SLACK_THREADS = 2
# Queues, fetched batches and results under way at their limits.
OVERLOAD_BYTES = 300_000_000


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """The process at one moment: seconds since the start, bytes, numbers; the second three by its own metrics."""

    at_s: float
    resident_bytes: float
    files: float
    threads: float
    told_resident_bytes: float
    told_files: float
    answered: float
    lag: float


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Overload:
    """What twice the rate did: bytes at most, records of lag at its end, seconds until they were worked off."""

    resident_bytes: float
    lag: float
    recovered_s: float
    rebalances: float


class Feed:
    """Ticks of all symbols in turn at ``rate`` records a second, which may be changed at any time."""

    def __init__(self, servers, topic):
        self._servers = servers
        self._topic = topic
        self.rate = 0.0
        self.num_sent = 0

    async def run(self):
        """Until cancelled; every record that counts as sent is acknowledged then."""
        producer = AIOKafkaProducer(bootstrap_servers=self._servers, acks="all", max_batch_size=1 << 18)
        await producer.start()
        waiting = set()
        try:
            due, before = 0.0, time.perf_counter()
            while True:
                await asyncio.sleep(FEED_INTERVAL_S)
                now = time.perf_counter()
                due, before = due + self.rate * (now - before), now
                waiting |= await self._send(producer, int(due))
                due -= int(due)
                waiting = {one for one in waiting if not one.done() or one.result() is None}
        finally:
            await asyncio.gather(*waiting)
            await producer.stop()

    async def burst(self, count):
        """So many at once."""
        producer = AIOKafkaProducer(bootstrap_servers=self._servers, acks="all", max_batch_size=1 << 18)
        await producer.start()
        try:
            for first in range(0, count, 2_000):
                await asyncio.gather(*await self._send(producer, min(2_000, count - first)))
        finally:
            await producer.stop()

    async def _send(self, producer, count):
        if not count:
            return set()
        batches = [producer.create_batch() for _ in range(NUM_PARTITIONS)]
        now_ns = time.time_ns()
        for number in range(self.num_sent, self.num_sent + count):
            symbol = number % NUM_SYMBOLS
            value = 100.0 + ((number * 7919 + symbol * 31) % 1000) * 1e-3
            record = orjson.dumps({"symbol": f"s{symbol}", "ts": now_ns, "value": value})
            batches[symbol % NUM_PARTITIONS].append(key=b"s%d" % symbol, value=record, timestamp=now_ns // 1_000_000)
        self.num_sent += count
        sent = set()
        for partition, batch in enumerate(batches):
            if batch.record_count():
                batch.close()
                sent.add(await producer.send_batch(batch, self._topic, partition=partition))
        return sent


async def answered(replica):
    """Records answered so far, by the replica's metrics."""
    return await replica.metric("usp_predictions_published_total") + await replica.metric(
        "usp_dead_letters_published_total"
    )


async def wait_for(replica, count, timeout_s=600.0):
    """Until so many records are answered; returns the seconds that took."""
    began = time.perf_counter()
    async with asyncio.timeout(timeout_s):
        while await answered(replica) < count:
            await asyncio.sleep(0.05)
    return time.perf_counter() - began


async def measure_rate(feed, replica, num_records):
    """Records a second when there is always more to do. The first burst admits every symbol."""
    await feed.burst(num_records // 4)
    await wait_for(replica, feed.num_sent)
    already, began = feed.num_sent, time.perf_counter()
    await feed.burst(num_records)
    await wait_for(replica, feed.num_sent)
    return (feed.num_sent - already) / (time.perf_counter() - began)


async def sample(replica, feed, began):
    """One look."""
    done = await answered(replica)
    return Sample(
        at_s=time.perf_counter() - began,
        resident_bytes=replica.resident_bytes,
        files=replica.num_files,
        threads=replica.num_threads,
        told_resident_bytes=await replica.metric("process_resident_memory_bytes"),
        told_files=await replica.metric("process_open_fds"),
        answered=done,
        lag=feed.num_sent - done,
    )


async def soak(feed, replica, rate, seconds):
    """Samples of a run at ``LOAD`` of ``rate``; the feed goes on afterwards.

    Where the machine gives less than when the rate was measured, as one does that others use too, that load would be
    an overload: as long as more than two seconds' worth is left undone it is lowered, a tenth at a time.
    """
    feed.rate = LOAD * rate
    began, samples = time.perf_counter(), []
    lowered_at, lag_then = 0.0, 0.0
    interval_s = max(0.5, seconds / MOST_SAMPLES)
    while time.perf_counter() - began < seconds:
        samples.append(latest := await sample(replica, feed, began))
        if latest.at_s > lowered_at + LOOK_S:
            if latest.lag > max(2.0 * feed.rate, lag_then):
                feed.rate *= 0.9
                print(f"after {latest.at_s:.0f} s a lag of {latest.lag:,.0f} records: {feed.rate:,.0f} records/s")
            lowered_at, lag_then = latest.at_s, latest.lag
        await asyncio.sleep(interval_s)
    return samples


async def overload(feed, replica, rate, seconds):
    """Twice the rate, then half of it until the lag is gone: less than what comes in half a second."""
    already = await replica.metric("usp_rebalances_total")
    feed.rate = OVERLOAD * rate
    began, most = time.perf_counter(), 0.0
    while time.perf_counter() - began < seconds:
        most = max(most, replica.resident_bytes)
        await asyncio.sleep(0.25)
    lag = feed.num_sent - await answered(replica)
    feed.rate, began = RECOVERY_LOAD * rate, time.perf_counter()
    async with asyncio.timeout(60.0 + 10.0 * seconds):
        while feed.num_sent - await answered(replica) > 0.5 * rate:
            most = max(most, replica.resident_bytes)
            await asyncio.sleep(0.1)
    return Overload(
        resident_bytes=most,
        lag=lag,
        recovered_s=time.perf_counter() - began,
        rebalances=await replica.metric("usp_rebalances_total") - already,
    )


def quarters(samples):
    """Four runs of samples, one after the other."""
    size = len(samples) // 4
    return [samples[number * size : (number + 1) * size] for number in range(4)]


def growth(samples, slack_bytes=SLACK_BYTES):
    """What grew from the second quarter to the last, a sentence each; the first one is for warming up."""
    if len(samples) < 8:
        raise ValueError(f"at least 8 samples are needed to tell, there are {len(samples)}")
    _, early, _, late = quarters(samples)
    slack = {
        "resident_bytes": slack_bytes, "told_resident_bytes": slack_bytes, "files": SLACK_FILES,
        "told_files": SLACK_FILES, "threads": SLACK_THREADS,
    }  # fmt: skip
    found = []
    for name, allowed in slack.items():
        before, after = (statistics.median(getattr(one, name) for one in part) for part in (early, late))
        share = SLACK_SHARE if name.endswith("bytes") else 0.0
        if after > before * (1.0 + share) + allowed:
            found.append(f"{name} grew from {before:,.0f} to {after:,.0f}")
    return found


def table(samples):
    """A line for each quarter."""
    lines = ["quarter   until s   RSS MB   (told)   files   (told)   threads   answered/s   lag records"]
    for number, part in enumerate(quarters(samples), 1):
        seconds = part[-1].at_s - part[0].at_s
        rate = (part[-1].answered - part[0].answered) / seconds if seconds else 0.0

        def mid(name, part=part):
            return statistics.median(getattr(one, name) for one in part)

        lines.append(
            f"{number:7d} {part[-1].at_s:9.0f} {mid('resident_bytes') / 1e6:8.1f} "
            f"{mid('told_resident_bytes') / 1e6:8.1f} {mid('files'):7.0f} {mid('told_files'):8.0f} "
            f"{mid('threads'):9.0f} {rate:12,.0f} {mid('lag'):13,.0f}"
        )
    return "\n".join(lines)


def faults_of(one, baseline_bytes, rate, seconds):
    """What an overload shows of memory and pace that should not be, a sentence each."""
    found = []
    if one.resident_bytes > baseline_bytes + OVERLOAD_BYTES:
        found.append(f"memory went from {baseline_bytes / 1e6:.0f} to {one.resident_bytes / 1e6:.0f} MB")
    if one.lag < 0.1 * rate * seconds:
        found.append(f"it was no overload: a lag of {one.lag:,.0f} records at its end")
    # At half the rate the lag falls by half a second a second at most; longer means slower than real time.
    behind_s = one.lag / rate
    if one.recovered_s > 4.0 * behind_s + 5.0:
        found.append(f"{behind_s:.1f} s of work were made up for in {one.recovered_s:.1f} s only")
    return found


async def run(servers, replica, *, seconds, overload_seconds, num_records):
    """The whole of it on a replica that is not started; returns the faults, and prints the figures."""
    prefix = replica.environment["USP_KAFKA__INPUT_TOPIC"].removesuffix(".ticks")
    await create_topics(servers, prefix, (GROUP,), **TOPIC_SETTINGS)
    replica.start()
    await replica.wait_ready(holding=NUM_PARTITIONS)
    feed = Feed(servers, f"{prefix}.ticks")
    rate = await measure_rate(feed, replica, num_records)
    print(f"measured {rate:,.0f} records/s; {seconds:.0f} s at {LOAD:.0%} of it", flush=True)
    feeding = asyncio.create_task(feed.run(), name="feed")
    try:
        samples = await soak(feed, replica, rate, seconds)
        print(table(samples), flush=True)
        judged = seconds >= LONG_S
        faults = growth(samples, SLACK_BYTES if judged else math.inf)
        if overload_seconds:
            baseline = statistics.median(one.resident_bytes for one in quarters(samples)[3])
            burdened = await overload(feed, replica, rate, overload_seconds)
            print(
                f"{overload_seconds:.0f} s at {OVERLOAD:.0%}: a lag of {burdened.lag:,.0f} records, worked off in "
                f"{burdened.recovered_s:.1f} s at {RECOVERY_LOAD:.0%}; at most {burdened.resident_bytes / 1e6:.1f} MB, "
                f"{baseline / 1e6:.1f} before",
                flush=True,
            )
            if burdened.rebalances:
                faults.append(f"{burdened.rebalances:.0f} rebalances: the replica was taken for dead")
            if judged:
                faults += faults_of(burdened, baseline, rate, overload_seconds)
    finally:
        feeding.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await feeding
    await wait_for(replica, feed.num_sent)
    if (done := await answered(replica)) != feed.num_sent:
        faults.append(f"{done:,.0f} answers to {feed.num_sent:,} records")
    if (code := await replica.stop()) != 0:
        faults.append(f"it ended with {code}")
    print(f"{feed.num_sent:,} records answered", flush=True)
    return faults


def main():
    """Parse, run on a broker of its own, print, and say by the exit code whether something grew."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3_600.0, help="at 80 %% of the rate (3600)")
    parser.add_argument("--overload-seconds", type=float, default=60.0, help="at twice the rate; 0 for none (60)")
    parser.add_argument("--records", type=int, default=100_000, help="with which the rate is measured (100000)")
    options = parser.parse_args()
    os.environ.setdefault("USP_CACHE_DIR", str(ROOT / ".cache" / "usp-daemon"))
    fetch()
    with tempfile.TemporaryDirectory(prefix="usp-soak-") as folder:
        broker = Broker(Path(folder) / "broker", long_lived=True, settings=BROKER_SETTINGS)
        broker.start()
        # The default session: on a loaded machine a shorter one would measure the machine.
        replica = ServiceProcess(
            Path(folder) / GROUP, broker.bootstrap_servers, group=GROUP, prefix="soak",
            USP_KAFKA__SESSION_TIMEOUT_MS=45_000, USP_IO__SNAPSHOT_INTERVAL_S=10.0,
        )  # fmt: skip
        try:
            faults = asyncio.run(
                run(broker.bootstrap_servers, replica, seconds=options.seconds,
                    overload_seconds=options.overload_seconds, num_records=options.records)
            )  # fmt: skip
        finally:
            replica.discard()
            broker.kill()
    for fault in faults:
        print(f"FAULT: {fault}")
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
