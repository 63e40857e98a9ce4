"""A structural change while ticks come in: how far the event loop and the steps are held up while it is prepared.

``python -m benchmarks.reload`` starts a worker, steps a batch of ``--symbols`` ticks every ``--period`` milliseconds
and has a task wake up every 5 ms on the event loop, first with nothing else going on, then while ``log_sig_depth`` 4
is prepared: another process compiles with the lowest priority, then this one loads. Then the states are migrated.
With an empty cache, as the first time on a machine; ``--cache`` names a folder to keep.
"""

import argparse
import asyncio
import contextlib
import dataclasses
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import numpy as np

from usp_daemon.compute import PartitionMigration, Worker
from usp_daemon.core import PredictorConfig

from ._table import Row, format_rows
from .throughput import Feed

TICK_S = 0.005
OLD = PredictorConfig()
NEW = dataclasses.replace(OLD, log_sig_depth=4)


class Watch:
    """Notes when the event loop woke up and how late, and when steps were asked for and how long they took."""

    def __init__(self, worker: Worker, feed: Feed, period_s: float) -> None:
        self._worker, self._feed, self._period_s = worker, feed, period_s
        self.wakes: list[tuple[float, float]] = []
        self.steps: list[tuple[float, float]] = []

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Watches while the context is open."""
        tasks = [asyncio.create_task(self._wake()), asyncio.create_task(self._step())]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _wake(self) -> None:
        while True:
            began = time.perf_counter()
            await asyncio.sleep(TICK_S)
            now = time.perf_counter()
            self.wakes.append((now, now - began - TICK_S))

    async def _step(self) -> None:
        while True:
            began = time.perf_counter()
            await self._worker.step(*self._feed.tick(0, len(self._feed.keys)), parameters=OLD)
            now = time.perf_counter()
            self.steps.append((now, now - began))
            await asyncio.sleep(max(0.0, self._period_s - (now - began)))


def rows_between(watch: Watch, name: str, first: float, last: float) -> list[Row]:
    """What was seen from ``first`` to ``last`` on the performance counter."""
    rows = []
    for what, samples, figure in (("event loop late", watch.wakes, "< 100"), ("step", watch.steps, "-")):
        seen = np.array([seconds for at, seconds in samples if first <= at <= last]) * 1e3
        if seen.size:
            p50, p99 = np.quantile(seen, [0.5, 0.99])
            note = f"p50 {p50:.1f}, p99 {p99:.1f}; {seen.size} in {last - first:.1f} s"
            rows.append(
                Row(name=f"{name}: {what}, worst", figure_to_reach=figure, measured=seen.max(), unit="ms", note=note)
            )
    return rows


async def measure(num_symbols: int, period_s: float, idle_s: float, cache: Path) -> list[Row]:
    """All rows."""
    migrations: list[PartitionMigration] = []
    worker = Worker(OLD, device="cpu", cache_directory=cache, on_migration=migrations.append)
    print("compiling ...", file=sys.stderr)
    await worker.start()
    feed = Feed(num_symbols)
    for _ in range(120):
        await worker.step(*feed.tick(0, num_symbols), parameters=OLD)
    watch = Watch(worker, feed, period_s)
    rows = []
    async with watch.running():
        began = time.perf_counter()
        await asyncio.sleep(idle_s)
        rows += rows_between(watch, "nothing else", began, time.perf_counter())
        print("preparing ...", file=sys.stderr)
        began = time.perf_counter()
        report = await worker.prepare(NEW)
        ended = time.perf_counter()
        await asyncio.sleep(0.5)
        loading = ended - report.load_seconds
        rows += rows_between(watch, "another process compiles", began, loading)
        rows += rows_between(watch, "this one loads", loading, ended)
    if report.note:
        rows.append(Row(name="note", figure_to_reach="", measured=report.note))
    before = time.perf_counter()
    await worker.step(*feed.tick(0, num_symbols), parameters=NEW)
    first = time.perf_counter() - before
    rows += [
        Row(name="prepared in all", figure_to_reach="-", measured=ended - began, unit="s"),
        Row(name="compiled elsewhere", figure_to_reach="-", measured=report.compile_seconds, unit="s"),
        Row(name="loaded here", figure_to_reach="-", measured=report.load_seconds, unit="s"),
        Row(
            name=f"states of {migrations[0].num_symbols:,} symbols migrated",
            figure_to_reach="< 200",
            measured=migrations[0].seconds * 1e3,
            unit="ms",
            note=f"first step in the new structure {first * 1e3:.0f} ms",
        ),
    ]
    await worker.close()
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reload", description=__doc__)
    parser.add_argument("--symbols", type=int, default=1000, metavar="N")
    parser.add_argument("--period", type=float, default=250.0, metavar="MS", help="time between two batches")
    parser.add_argument("--idle", type=float, default=10.0, metavar="S", help="length of the first phase")
    parser.add_argument("--cache", type=Path, metavar="FOLDER", help="where compiled programs are kept")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        cache = options.cache or Path(folder)
        print(format_rows(asyncio.run(measure(options.symbols, options.period / 1e3, options.idle, cache))))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
