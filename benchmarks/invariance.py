"""Independence of the batch: ``python -m benchmarks.invariance``.

The same ticks go through the engine in one batch, then cut at random with other symbols in between and other decisions
on where to compute, then symbol by symbol. Counted are the ticks of which any number differs in any bit.
"""

import argparse
import itertools
from collections.abc import Sequence

import numpy as np

from usp_daemon.compute import Engine, StateKey, choose_device
from usp_daemon.core import PredictorConfig

from ._command import keep_compiled_programs
from ._table import Row, format_rows


def ticks(num_symbols: int, num_ticks: int) -> tuple[list[StateKey], np.ndarray, np.ndarray]:
    """Random walks of very different scales, interleaved at random, one in a hundred ticks not finite."""
    rng = np.random.default_rng(1)
    order = rng.permutation(np.repeat(np.arange(num_symbols), num_ticks))
    values, stamps = np.zeros(order.size), np.zeros(order.size, np.int64)
    for symbol in range(num_symbols):
        rows = order == symbol
        walk = 10.0 ** (symbol % 9 - 4) * np.cumsum(rng.normal(size=num_ticks))
        walk[rng.random(num_ticks) < 0.01] = np.nan
        values[rows] = walk
        stamps[rows] = 1_700_000_000_000_000_000 + 1_000_000_000 * np.arange(num_ticks)
    return [StateKey("benchmark", int(s) % 4, str(s)) for s in order], values, stamps


def as_rows(columns: dict[str, np.ndarray]) -> np.ndarray:
    """All bits of each tick's result, as one row of bytes."""
    return np.concatenate(
        [np.ascontiguousarray(c).reshape(len(c), -1).view(np.uint8).reshape(len(c), -1) for c in columns.values()],
        axis=1,
    )


def differing(precision: str, num_symbols: int, num_ticks: int) -> tuple[int, int]:
    """Ticks that differ in any bit, and ticks compared."""
    choice, config = choose_device("cpu", precision), PredictorConfig()
    keys, values, stamps = ticks(num_symbols, num_ticks)
    engine = Engine(config, choice)
    whole = as_rows(dict(engine.step(keys, values, stamps, stamps).columns))
    num_different = num_compared = 0

    other = Engine(config, choice, programs=engine.programs, direct_fraction=0.15)
    rng = np.random.default_rng(2)
    edges = np.unique(np.r_[0, rng.integers(0, len(keys), 3 * num_ticks), len(keys)])
    for first, last in itertools.pairwise(edges):
        company = [StateKey("company", 0, str(i)) for i in rng.integers(0, 100, rng.integers(0, 90))]
        extra, zeros = rng.normal(size=len(company)), np.zeros(len(company), np.int64)
        result = other.step(
            company + keys[first:last],
            np.r_[extra, values[first:last]],
            np.r_[zeros, stamps[first:last]],
            np.r_[zeros, stamps[first:last]],
        )
        rows = as_rows(dict(result.columns))[len(company) :]
        num_different += int(np.any(rows != whole[first:last], axis=1).sum())
        num_compared += rows.shape[0]

    alone = Engine(config, choice, programs=engine.programs)
    for key in sorted(set(keys))[:8]:
        rows = np.array([i for i, k in enumerate(keys) if k == key])
        result = alone.step([keys[i] for i in rows], values[rows], stamps[rows], stamps[rows])
        num_different += int(np.any(as_rows(dict(result.columns)) != whole[rows], axis=1).sum())
        num_compared += rows.size
    return num_different, num_compared


def measure(short: bool) -> list[Row]:
    """The rows of the common table."""
    rows = []
    for precision in ("float64", "float32"):
        num_different, num_compared = differing(precision, 100, 60 if short else 400)
        rows.append(
            Row(
                name=f"ticks that differ by batch, lane or company, {precision}",
                figure_to_reach="0",
                measured=float(num_different),
                unit="ticks",
                note=f"of {num_compared:,}, every bit of every column",
            )
        )
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the table; the exit status is 1 if any tick differs."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.invariance", description="Independence of the batch.")
    parser.add_argument("--short", action="store_true", help="fewer ticks")
    options = parser.parse_args(arguments)
    keep_compiled_programs()
    rows = measure(options.short)
    print(format_rows(rows))
    return int(any(row.measured != 0.0 for row in rows))


if __name__ == "__main__":
    raise SystemExit(main())
