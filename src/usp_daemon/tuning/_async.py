"""Saving and loading beside other work.

A save must not hold up the thread or the event loop that asks for it, nor any other. Every trial is encoded once, when
it is told; a save takes the list of encoded trials, which is a matter of microseconds, and a thread of its own joins,
hashes and writes them. Of these, hashing and writing run without the interpreter's lock.
"""

import concurrent.futures
import os
import pathlib
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self

from optuna.study import Study

from usp_daemon.config import Settings

from ._campaign import Campaign
from ._checkpoint import write_checkpoint
from ._meta_config import MetaOptimizationConfig
from ._optimizer import BayesianMetaOptimizer, Evaluator, OptimizationResult


class AsyncMetaOptimizer:
    """A :class:`BayesianMetaOptimizer` whose saves and loads return at once (V-CRIT-3).

    Saves to one path are written in the order in which they were asked for; one that a later save has overtaken is
    done without being written. ``options`` are the optimizer's. To be used as a context manager, or shut down.
    """

    def __init__(
        self,
        walk_forward_evaluator: Evaluator,
        meta_config: MetaOptimizationConfig | None = None,
        base_config: Settings | None = None,
        max_workers: int = 2,
        **options: Any,
    ) -> None:
        self._begin(BayesianMetaOptimizer(walk_forward_evaluator, meta_config, base_config, **options), max_workers)

    def _begin(self, optimizer: BayesianMetaOptimizer, max_workers: int) -> None:
        self.optimizer = optimizer
        self._executor = ThreadPoolExecutor(max_workers=max_workers, thread_name_prefix="usp-study-save")
        self._lock = threading.Lock()
        self._pending: list[Future[None]] = []
        self._num_asked = 0
        self._written: dict[pathlib.Path, _LastWrite] = {}

    @property
    def study(self) -> Study | None:
        """Optuna's view of the campaign, or None before it was begun or loaded."""
        return self.optimizer.study

    def optimize(self, n_trials: int | None = None, *, total_trials: int | None = None) -> OptimizationResult:
        """As :meth:`BayesianMetaOptimizer.optimize`; it runs in the caller's thread."""
        return self.optimizer.optimize(n_trials, total_trials=total_trials)

    def stop(self) -> None:
        """End :meth:`optimize` after the batch in hand."""
        self.optimizer.stop()

    def generate_optimization_report(self, audit: Sequence[Mapping[str, Any]] = ()) -> str:
        """As :meth:`BayesianMetaOptimizer.generate_optimization_report`."""
        return self.optimizer.generate_optimization_report(audit)

    def save_study_async(self, path: str | os.PathLike[str]) -> "Future[None]":
        """Save the trials as they are now; the future is done when they are on the disk.

        Await it with ``asyncio.wrap_future``. Before the campaign was begun, opening its storage is part of the call.
        """
        store = self.optimizer.open()
        campaign, lines = store.campaign, store.lines()
        target = pathlib.Path(path).absolute()
        with self._lock:
            self._num_asked += 1
            last = self._written.setdefault(target, _LastWrite())
            future = self._executor.submit(self._save, target, last, self._num_asked, campaign, lines)
            self._pending = [pending for pending in self._pending if not _is_done_well(pending)] + [future]
        return future

    @staticmethod
    def _save(path: pathlib.Path, last: "_LastWrite", number: int, campaign: Campaign, lines: list[bytes]) -> None:
        with last.lock:
            if number > last.number:
                write_checkpoint(path, campaign, lines)
                last.number = number

    def wait_all_saves(self, timeout: float | None = None) -> None:
        """Wait until every save asked for is on the disk; at most ``timeout`` seconds in all.

        Raises ``TimeoutError`` when they are not by then, and what the first failed save raised.
        """
        with self._lock:
            pending = list(self._pending)
        deadline = None if timeout is None else time.monotonic() + timeout
        for future in pending:
            left = None if deadline is None else max(deadline - time.monotonic(), 0.0)
            try:
                future.result(timeout=left)
            except concurrent.futures.TimeoutError:
                raise TimeoutError(f"saves are still being written after {timeout} s") from None
            finally:
                if future.done():
                    with self._lock:
                        self._pending = [other for other in self._pending if other is not future]

    @classmethod
    def load_study_async(
        cls,
        path: str | os.PathLike[str],
        walk_forward_evaluator: Evaluator,
        meta_config: MetaOptimizationConfig | None = None,
        base_config: Settings | None = None,
        max_workers: int = 2,
        **options: Any,
    ) -> "Future[Self]":
        """As :meth:`BayesianMetaOptimizer.load_study`, in a thread that ends with it."""

        def load() -> Self:
            optimizer = BayesianMetaOptimizer.load_study(
                path, walk_forward_evaluator, meta_config, base_config, **options
            )
            loaded = cls.__new__(cls)
            loaded._begin(optimizer, max_workers)
            return loaded

        executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="usp-study-load")
        try:
            return executor.submit(load)
        finally:
            executor.shutdown(wait=False)  # what was submitted is still done

    def shutdown(self, wait: bool = True) -> None:
        """Take no more saves; with ``wait``, return when those asked for are done."""
        self._executor.shutdown(wait=wait)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.shutdown(wait=True)


class _LastWrite:
    """The newest save that one path has, by the order of asking."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.number = 0


def _is_done_well(future: "Future[None]") -> bool:
    return future.done() and future.exception() is None
