"""The recorder of ticks: what it costs beside the pipeline, and the writer's own share of a core.

``python -m benchmarks.recorder`` appends ``--seconds`` seconds of a feed of ``--rate`` ticks a second, several times
faster than they would come, with a pause after each in which the writer can turn. Times are the processor's, of the
whole process and of the calling thread alone, which is what an event loop is held up by. With as many symbols as are
recorded, every tick is written; with more, the others are turned away.
"""

import argparse
import tempfile
import time
from collections.abc import Sequence

import numpy as np

from usp_daemon.persistence import TickRing, read_ticks

from ._table import Row, format_rows

HISTORY = 5_000
PAUSE_S = 0.1


def measure(
    num_symbols: int, recorded: int, rate: int, batch: int, seconds: int, path: str | None
) -> tuple[float, float, float, int]:
    """Microseconds a tick in the caller and in the writer, seconds to read all back, ticks that were dropped."""
    names = [f"symbol-{number}" for number in range(num_symbols)]
    values = np.random.default_rng(0).standard_normal(batch)
    batches = []
    for first in range(0, rate * seconds, batch):
        rows = np.arange(first, first + batch)
        times = 1_700_000_000_000_000_000 + rows * (1_000_000_000 // rate)
        batches.append(([names[row % num_symbols] for row in rows.tolist()], times))
    with tempfile.TemporaryDirectory(dir=path) as directory:
        ring = TickRing(directory, ticks_per_symbol=HISTORY, max_symbols=recorded, flush_interval_s=0.0)
        ring.open()
        spent = 0.0
        begun = time.process_time()
        for number, (symbols, times) in enumerate(batches):
            before = time.thread_time()
            ring.append(symbols, times, values, times)
            spent += time.thread_time() - before
            if number % max(1, rate // batch) == 0:
                time.sleep(PAUSE_S)
        ring.close(None)
        whole = time.process_time() - begun
        begun = time.perf_counter()
        found = read_ticks(directory)
        took = time.perf_counter() - begun
        assert len(found) >= recorded
    ticks = len(batches) * batch
    return spent / ticks * 1e6, (whole - spent) / ticks * 1e6, took, ring.num_dropped


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.recorder", description="cost of recording ticks")
    parser.add_argument("--rate", type=int, default=20_000, help="ticks a second (default: 20000)")
    parser.add_argument("--seconds", type=int, default=60, help="seconds of the feed (default: 60)")
    parser.add_argument("--path", help="where to write (default: the system's temporary directory)")
    options = parser.parse_args(arguments)
    rows = []
    for num_symbols, recorded, batch in ((64, 64, 1000), (1000, 64, 1000), (1000, 1000, 1000), (1000, 64, 100)):
        caller, writer, took, dropped = measure(
            num_symbols, recorded, options.rate, batch, options.seconds, options.path
        )
        name = f"{num_symbols} symbols, {recorded} recorded, batches of {batch}"
        note = f"{(caller + writer) * options.rate / 1e4:.2f} % of a core at {options.rate:,} ticks/s"
        rows.append(Row(name=name, figure_to_reach="< 2", measured=caller + writer, unit="us/tick", note=note))
        rows.append(Row(name="  of it in the caller", figure_to_reach="", measured=caller, unit="us/tick"))
        note = f"{dropped:,} ticks dropped while recording"
        rows.append(Row(name="  read all", figure_to_reach="", measured=took, unit="s", note=note))
    print(format_rows(rows))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
