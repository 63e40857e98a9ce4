"""Saving a study beside other work: how long a thread and an event loop that tick every millisecond are held up.

``python -m benchmarks.checkpoint`` fills a deep campaign (23 parameters, 500 trials) in memory and saves it over and
over with ``save_study_async``, while a thread and an event loop sleep a millisecond at a time and note how late they
wake. The same without saves stands beside it: what remains is what saving costs. Then the time that the call itself
takes, and that of a plain ``save_study`` and of ``load_study``. The processor time of a save bounds what it can hold
the interpreter for on a machine with a core to spare; on a busy one, lateness is mostly that of the machine.
"""

import argparse
import asyncio
import pathlib
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import optuna

from usp_daemon.config import Settings
from usp_daemon.tuning import AsyncMetaOptimizer, BayesianMetaOptimizer, Evaluation, MetaOptimizationConfig

from ._table import Row, format_rows

TICK_S = 0.001


class Constant:
    """An evaluator that costs nothing."""

    def evaluate_batch(self, candidates: Sequence[Mapping[str, Any]], *, prune_fn: Any = None) -> list[Evaluation]:
        del prune_fn
        return [Evaluation(1.0 + 0.1 * candidate["cusum_k"], -1.0, (1.0,) * 5) for candidate in candidates]


def filled(num_trials: int) -> AsyncMetaOptimizer:
    """A deep campaign; drawn at random, which is faster and makes no difference to its size."""
    config = MetaOptimizationConfig(n_startup_trials=num_trials, n_trials=num_trials, patience_trials=0)
    optimizer = AsyncMetaOptimizer(
        Constant(), config, Settings(), tier="deep", storage=optuna.storages.InMemoryStorage()
    )
    optimizer.optimize(num_trials)
    return optimizer


def lateness_of_thread(work: Callable[[], None], seconds: float) -> list[float]:
    """How late, in seconds, each tick of a thread comes while ``work`` is called again and again."""
    late: list[float] = []
    over = threading.Event()

    def tick() -> None:
        while not over.is_set():
            due = time.perf_counter() + TICK_S
            time.sleep(TICK_S)
            late.append(time.perf_counter() - due)

    thread = threading.Thread(target=tick)
    thread.start()
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        work()
    over.set()
    thread.join()
    return late


async def lateness_of_loop(save: Callable[[], Any] | None, seconds: float) -> list[float]:
    """The same of an event loop that asks for the saves itself, one after the other."""
    late: list[float] = []
    until = time.perf_counter() + seconds
    future: Any = None
    while time.perf_counter() < until:
        due = time.perf_counter() + TICK_S
        if save is not None and (future is None or future.done()):
            future = save()
        await asyncio.sleep(max(due - time.perf_counter(), 0.0))
        late.append(time.perf_counter() - due)
    return late


def percentile(values: Sequence[float], share: float) -> float:
    """In milliseconds."""
    return sorted(values)[min(int(share * len(values)), len(values) - 1)] * 1e3


def measure(num_trials: int, seconds: float, directory: pathlib.Path) -> list[Row]:
    """All rows."""
    path = directory / "study.json"
    with filled(num_trials) as optimizer:
        optimizer.save_study_async(path).result()
        size = path.stat().st_size
        quiet = lateness_of_thread(lambda: time.sleep(0.01), seconds)
        busy = lateness_of_thread(lambda: optimizer.save_study_async(path).result(), seconds)
        loop_quiet = asyncio.run(lateness_of_loop(None, seconds))
        loop_busy = asyncio.run(lateness_of_loop(lambda: optimizer.save_study_async(path), seconds))
        calls, saves, processor = [], [], []
        for _ in range(50):
            begun = time.perf_counter()
            future = optimizer.save_study_async(path)
            calls.append(time.perf_counter() - begun)
            future.result()
            begun = time.perf_counter()
            begun_processor = time.thread_time()
            optimizer.optimizer.save_study(path)
            processor.append(time.thread_time() - begun_processor)
            saves.append(time.perf_counter() - begun)
        begun = time.perf_counter()
        BayesianMetaOptimizer.load_study(
            path,
            Constant(),
            optimizer.optimizer.meta_config,
            Settings(),
            storage=optuna.storages.InMemoryStorage(),
        )
        loaded = time.perf_counter() - begun
    note = f"{num_trials} trials, {size / 1e6:.2f} MB"
    rows = [
        ("thread: lateness p99, saving", "<= 5", percentile(busy, 0.99)),
        ("thread: lateness p99, idle", "", percentile(quiet, 0.99)),
        ("thread: greatest lateness, saving", "", percentile(busy, 1.0)),
        ("loop: lateness p99, saving", "<= 5", percentile(loop_busy, 0.99)),
        ("loop: lateness p99, idle", "", percentile(loop_quiet, 0.99)),
        ("loop: greatest lateness, saving", "", percentile(loop_busy, 1.0)),
        ("save_study_async: the call, median", "< 1", statistics.median(calls) * 1e3),
        ("save_study_async: the call, greatest", "", max(calls) * 1e3),
        ("save_study, median", "", statistics.median(saves) * 1e3),
        ("save_study, processor time, median", "", statistics.median(processor) * 1e3),
        ("load_study", "", loaded * 1e3),
    ]
    return [Row(name=name, figure_to_reach=reach, measured=value, unit="ms", note=note) for name, reach, value in rows]


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.checkpoint", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--trials", type=int, default=500)
    parser.add_argument("--seconds", type=float, default=5.0, help="per measurement of lateness (5)")
    parser.add_argument("--path", type=pathlib.Path, help="a directory on the disk to be measured")
    parsed = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(dir=parsed.path) as directory:
        print(format_rows(measure(parsed.trials, parsed.seconds, pathlib.Path(directory))))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
