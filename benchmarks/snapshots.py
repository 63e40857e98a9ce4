"""Snapshots: what it costs to write one, to read it back, and how much memory that takes beside the state itself.

``python -m benchmarks.snapshots`` saves and loads states of random float64 numbers (what compresses worst), 28 KiB a
symbol in 100 arrays, in a directory store with fsync below ``--path``. Every time is the median of the repetitions; the
processor's time is given too, since other work on the machine does not count there. ``--gzip`` adds compression.
"""

import argparse
import asyncio
import resource
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import numpy as np

from usp_daemon.persistence import Compression, DirectoryStore, Snapshot

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


async def rows_of(snapshot: Snapshot, path: str, compression: Compression, repetitions: int) -> list[Row]:
    """Saving and loading one snapshot."""
    size = sum(array.nbytes for array in snapshot.arrays.values()) / 1e6
    rows = []
    async with DirectoryStore(path, group=snapshot.group, compression=compression, keep=1) as store:
        await store.acquire(snapshot.topic, snapshot.partition)

        async def save() -> None:
            await store.save(snapshot)

        async def load() -> None:
            await store.newest(snapshot.topic, snapshot.partition, snapshot.offset)

        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for what, run in (("save", save), ("load", load)):
            clock, processor = await measured(run, repetitions)
            name = f"{what} {len(snapshot.symbols):,} symbols, {size:,.0f} MB, {compression}"
            note = f"{clock:.3f} s; {size / processor:,.0f} MB a second of processor"
            rows.append(Row(name=name, figure_to_reach="-", measured=size / clock, unit="MB/s", note=note))
            if what == "save":
                more = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1e3
                rows.append(Row(name="memory beside the state", figure_to_reach="-", measured=more, unit="MB"))
    return rows


async def measure(path: str | None, num_symbols: Sequence[int], with_gzip: bool, repetitions: int) -> list[Row]:
    """All rows."""
    rows = []
    for number in num_symbols:
        snapshot = snapshot_of(number)
        for compression in ("none", "gzip") if with_gzip else ("none",):
            with tempfile.TemporaryDirectory(dir=path) as directory:
                rows += await rows_of(snapshot, directory, compression, repetitions)
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.snapshots", description=__doc__)
    parser.add_argument("--path", help="a directory on the disk to measure (the system's temporary one)")
    parser.add_argument("--symbols", type=int, nargs="+", default=[250, 10_000], metavar="N")
    parser.add_argument("--gzip", action="store_true")
    parser.add_argument("--repetitions", type=int, default=5, metavar="N")
    parsed = parser.parse_args(arguments)
    rows = asyncio.run(measure(parsed.path, parsed.symbols, parsed.gzip, parsed.repetitions))
    print(format_rows(rows))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
