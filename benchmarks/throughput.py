"""Speed of the core step: ticks a second in large batches, and the latency of one lone tick.

``python -m benchmarks.throughput`` steps 1,024 random walks, one tick of each per batch, through the engine of the
service: all kernels, the heavy refresh work included at the rate at which it falls due. Symbols are admitted in groups,
so that their refreshes spread over the batches as they do in service.
"""

import argparse
import time
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from usp_daemon.compute import Engine, StateKey, StepProgram, choose_device
from usp_daemon.core import PredictorConfig

from ._command import keep_compiled_programs
from ._table import Row, format_rows

NUM_SYMBOLS = 1024
FIGURES = {"float32": 40_000, "float64": 25_000}
SECOND_NS = 1_000_000_000


class Feed:
    """Random walks in step, one tick of every symbol per batch."""

    def __init__(self, num_symbols: int = NUM_SYMBOLS, seed: int = 0) -> None:
        self.keys = [StateKey("benchmark", 0, str(i)) for i in range(num_symbols)]
        self._random = np.random.default_rng(seed)
        self._values = np.full(num_symbols, 100.0)
        self._stamps = np.full(num_symbols, 1_700_000_000 * SECOND_NS, np.int64)

    def tick(self, first: int, last: int) -> tuple[list[StateKey], np.ndarray, np.ndarray, np.ndarray]:
        """The next tick of symbols ``first`` to ``last``, as the engine takes it."""
        self._values[first:last] += self._random.normal(size=last - first)
        self._stamps[first:last] += SECOND_NS
        stamps = self._stamps[first:last].copy()
        return self.keys[first:last], self._values[first:last].copy(), stamps, stamps


def warmed_up(engine: Engine, feed: Feed) -> None:
    """Admits the symbols in 50 groups, one after the other, and passes every one's warm-up."""
    total = len(feed.keys)
    for group in range(1, 51):
        engine.step(*feed.tick(0, total * group // 50))
    for _ in range(150):
        engine.step(*feed.tick(0, total))
    engine.wait()


def batches(engine: Engine, feed: Feed, count: int, num_symbols: int) -> tuple[np.ndarray, float]:
    """Seconds per batch, and processor seconds over all."""
    seconds = np.zeros(count)
    processor = time.process_time()
    for i in range(count):
        ticks = feed.tick(0, num_symbols)
        began = time.perf_counter()
        engine.step(*ticks)
        seconds[i] = time.perf_counter() - began
    began = time.perf_counter()
    engine.wait()  # the last batch's refresh may still be under way
    seconds[-1] += time.perf_counter() - began
    return seconds, time.process_time() - processor


def empty_program() -> StepProgram:
    """A step that does nothing: what remains is the engine's own cost."""
    return StepProgram(
        initialize=lambda config, dtype: {"value": jnp.zeros((), dtype)},
        advance=lambda state, tick, config: ({"value": tick.magnitude}, tick.magnitude),
        refresh=lambda state, config: state,
        columns=lambda result: {"forecast": result, "refresh_due": result != result},
    )


def measure(short: bool) -> list[Row]:
    """The rows of the common table."""
    rows = []
    for precision, figure in FIGURES.items():
        engine = Engine(PredictorConfig(), choose_device("cpu", precision))
        feed = Feed()
        warmed_up(engine, feed)
        # whole cycles of 50 ticks, each of which refreshes every symbol once
        seconds, processor = batches(engine, feed, 50 if short else 250, NUM_SYMBOLS)
        ticks = seconds.size * NUM_SYMBOLS
        cost_us = processor / ticks * 1e6
        rows.append(
            Row(
                name=f"core step, {NUM_SYMBOLS:,} symbols, {precision}",
                figure_to_reach=f">= {figure:,}",
                measured=ticks / seconds.sum(),
                unit="ticks/s",
                note=f"{cost_us:.0f} us of processor a tick; compiled in {engine.compile_seconds:.0f} s",
            )
        )
        lone, _ = batches(engine, feed, 200 if short else 1000, 1)
        rows.append(
            Row(
                name=f"one lone tick, {precision}, p50",
                figure_to_reach="< 5",
                measured=float(np.median(lone)) * 1e3,
                unit="ms",
                note=f"p99 {np.quantile(lone, 0.99) * 1e3:.1f} ms",
            )
        )
    engine = Engine(PredictorConfig(), choose_device("cpu", "float64"), program=empty_program())
    feed = Feed()
    warmed_up(engine, feed)
    seconds, _ = batches(engine, feed, 50 if short else 250, NUM_SYMBOLS)
    rows.append(
        Row(
            name="engine around an empty step, p50",
            figure_to_reach="< 5",
            measured=float(np.median(seconds)) / NUM_SYMBOLS * 1e6,
            unit="us/tick",
            note=f"batches of {NUM_SYMBOLS:,} ticks",
        )
    )
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.throughput", description="Speed of the core step.")
    parser.add_argument("--short", action="store_true", help="fewer batches")
    options = parser.parse_args(arguments)
    keep_compiled_programs()
    print(format_rows(measure(options.short)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
