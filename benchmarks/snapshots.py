"""Snapshots: what it costs to write one, to read it back, and how much memory that takes beside the state itself.

``python -m benchmarks.snapshots`` saves and loads states of random float64 numbers (what compresses worst), 28 KiB a
symbol in 100 arrays, in a directory store with fsync below ``--path``. Every time is the median of the repetitions; the
processor's time is given too, since other work on the machine does not count there. ``--gzip`` adds compression.
``--servers HOST:PORT`` measures the topic store on that broker instead; ``find`` is then the time to take a partition
over and read its manifests, with as many snapshots in the log as were saved before.
"""

import argparse
import asyncio
import contextlib
import resource
import secrets
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import numpy as np

from usp_daemon.config import Kafka
from usp_daemon.persistence import AbstractSnapshotStore, Compression, DirectoryStore, Snapshot
from usp_daemon.transport.kafka import TopicSnapshotStore

from ._table import Row, format_rows

NUM_ARRAYS = 100
NUMBERS_PER_SYMBOL = 3584  # 28 KiB


def snapshot_of(num_symbols: int) -> Snapshot:
    """Random numbers as states: an eighth of them in one wide array, the rest spread evenly."""
    rng = np.random.default_rng(0)
    wide = NUMBERS_PER_SYMBOL // 8
    widths = [wide, *[len(part) for part in np.array_split(np.arange(NUMBERS_PER_SYMBOL - wide), NUM_ARRAYS - 1)]]
    return Snapshot(
        topic="ticks",
        partition=0,
        offset=1,
        group="benchmark",
        symbols=tuple(f"symbol-{number}" for number in range(num_symbols)),
        arrays={f"state.leaf_{i}": rng.normal(size=(num_symbols, width)) for i, width in enumerate(widths)},
        identity={"program_hash": "0" * 64},
        settings={},
        config_hash="0" * 64,
        config_epoch=0,
        num_input_partitions=1,
        created_ns=time.time_ns(),
    )


async def measured(run: Callable[[], Awaitable[Any]], repetitions: int) -> tuple[float, float]:
    """Median seconds by the clock and of the processor."""
    clock, processor = [], []
    for _ in range(repetitions):
        begun, begun_processor = time.perf_counter(), time.process_time()
        await run()
        clock.append(time.perf_counter() - begun)
        processor.append(time.process_time() - begun_processor)
    return statistics.median(clock), statistics.median(processor)


def store_of(
    place: str, servers: str | None, topic: str, group: str, compression: Compression
) -> AbstractSnapshotStore:
    """A store in the directory ``place``, or in ``topic`` on the broker."""
    if servers is None:
        return DirectoryStore(place, group=group, compression=compression, keep=1)
    kafka = Kafka(
        bootstrap_servers=servers, group=group, replication_factor=1, num_partitions=1, input_topic=f"{topic}-in"
    )
    return TopicSnapshotStore(kafka, topic, compression=compression, keep=1)


async def rows_of(
    snapshot: Snapshot, place: str, servers: str | None, compression: Compression, repetitions: int
) -> list[Row]:
    """Saving and loading one snapshot."""
    size = sum(array.nbytes for array in snapshot.arrays.values()) / 1e6
    topic = f"benchmark-{secrets.token_hex(4)}"
    rows = []
    async with contextlib.AsyncExitStack() as stack:
        store = await stack.enter_async_context(store_of(place, servers, topic, snapshot.group, compression))
        await store.acquire(snapshot.topic, snapshot.partition)

        async def save() -> None:
            await store.save(snapshot)

        async def load() -> None:
            found = await store.newest(snapshot.topic, snapshot.partition, snapshot.offset)
            assert found is not None

        async def find() -> None:
            async with store_of(place, servers, topic, snapshot.group, compression) as other:
                await other.acquire(snapshot.topic, snapshot.partition)
                assert len(await other.list(snapshot.topic, snapshot.partition)) == 1

        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for what, run in (("save", save), ("load", load)):
            clock, processor = await measured(run, repetitions)
            name = f"{what} {len(snapshot.symbols):,} symbols, {size:,.0f} MB, {compression}"
            note = f"{clock:.3f} s; {size / processor:,.0f} MB a second of processor"
            rows.append(Row(name=name, figure_to_reach="-", measured=size / clock, unit="MB/s", note=note))
            more = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1e3
            rows.append(Row(name="memory beside the state", figure_to_reach="-", measured=more, unit="MB"))
        if servers is not None:
            clock, processor = await measured(find, repetitions)
            note = f"{processor:.3f} s of processor"
            rows.append(Row(name=f"find, {size:,.0f} MB", figure_to_reach="-", measured=clock, unit="s", note=note))
    return rows


async def measure(
    path: str | None, num_symbols: Sequence[int], with_gzip: bool, repetitions: int, servers: str | None
) -> list[Row]:
    """All rows."""
    rows = []
    for number in num_symbols:
        snapshot = snapshot_of(number)
        for compression in ("none", "gzip") if with_gzip else ("none",):
            with tempfile.TemporaryDirectory(dir=path) as directory:
                rows += await rows_of(snapshot, directory, servers, compression, repetitions)
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.snapshots", description=__doc__)
    parser.add_argument("--path", help="a directory on the disk to measure (the system's temporary one)")
    parser.add_argument("--servers", metavar="HOST:PORT", help="a Kafka broker, for the topic store")
    parser.add_argument("--symbols", type=int, nargs="+", default=[250, 10_000], metavar="N")
    parser.add_argument("--gzip", action="store_true")
    parser.add_argument("--repetitions", type=int, default=5, metavar="N")
    parsed = parser.parse_args(arguments)
    rows = asyncio.run(measure(parsed.path, parsed.symbols, parsed.gzip, parsed.repetitions, parsed.servers))
    print(format_rows(rows))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
