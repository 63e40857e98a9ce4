"""Recorder and drift: what is done with every live tick, beside the event loop.

    tap --LiveStep--> bounded queue --one worker thread--> ring on disk, score of a few symbols, drift

A full queue drops whole steps and counts them; the service never waits for this.
"""

import asyncio
import collections
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from usp_daemon.persistence import TickRing, symbol_hash
from usp_daemon.service import LiveStep
from usp_daemon.telemetry import get_logger
from usp_daemon.tuning import ScoreDrift, crps
from usp_daemon.wire import TopicPartition

_log = get_logger(__name__)

_MAX_QUEUED_TICKS = 100_000
_SCORED_SYMBOLS = 64
_KNOWN_SYMBOLS = 200_000
_PURPOSE = "drift"


class Recorder:
    """A tap: gives accepted ticks to ``ring``, and the scores of a few symbols to ``drift``.

    ``drifted_fn`` is called on the event loop when the score has drifted. The symbols that are scored are the first
    ``max_scored`` by a hash of the name among those seen so far.
    """

    def __init__(
        self,
        *,
        ring: TickRing | None,
        drift: ScoreDrift,
        drifted_fn: Callable[[], None],
        max_scored: int = _SCORED_SYMBOLS,
        max_queued_ticks: int = _MAX_QUEUED_TICKS,
    ) -> None:
        self._ring = ring
        self._drift = drift
        self._drifted_fn = drifted_fn
        self._max_scored = max_scored
        self._max_queued = max_queued_ticks
        self._queue: collections.deque[LiveStep] = collections.deque()
        self._num_queued = 0
        self._work = asyncio.Event()
        self.num_ticks = 0
        self.num_dropped = 0
        # the thread's own
        self._hashes: dict[str, int] = {}
        self._scored: dict[str, int] = {}
        self._before: dict[str, tuple[NDArray[np.float64], float]] = {}

    def stepped(self, step: LiveStep) -> None:
        """See ``Tap``."""
        self.num_ticks += len(step)
        if self._num_queued + len(step) > self._max_queued:
            self.num_dropped += len(step)
            return
        self._queue.append(step)
        self._num_queued += len(step)
        self._work.set()

    def removed(self, partition: TopicPartition) -> None:
        """See ``Tap``: what follows is a new stretch of ticks, which neither the ring nor the drift minds."""

    async def run(self) -> None:
        """Work until cancelled."""
        loop = asyncio.get_running_loop()
        if self._ring is not None:
            self._ring.open()
        try:
            while True:
                await self._work.wait()
                self._work.clear()
                steps, self._queue, self._num_queued = list(self._queue), collections.deque(), 0
                try:
                    if await loop.run_in_executor(None, self._take, steps):
                        self._drifted_fn()
                except Exception as error:  # a defect here must not end the service
                    _log.error("recorder_failed", error=repr(error), exc_info=error)
        finally:
            if self._ring is not None:
                await asyncio.shield(loop.run_in_executor(None, self._ring.close, 2.0))

    def rebase(self) -> None:
        """The present score is the one to compare with, as after new parameters."""
        self._drift.rebase()

    @property
    def drift(self) -> float:
        """Recent skill over long-run skill, NaN before there is any."""
        return self._drift.drift

    # In a thread

    def _take(self, steps: Sequence[LiveStep]) -> bool:
        has_drifted = False
        for step in steps:
            accepted = np.asarray(step.result.columns["accepted"], bool) & np.asarray(step.result.admitted, bool)
            if self._ring is not None:
                times = step.timestamps_ns, step.values, step.record_timestamps_ns
                self._ring.append(step.symbols, *times, accepted)
            has_drifted |= self._score(step, accepted)
        return has_drifted

    def _score(self, step: LiveStep, accepted: NDArray[np.bool_]) -> bool:
        """Whether the score has drifted, by the ticks of the symbols that are scored."""
        quantiles = step.result.columns["quantiles"]
        symbols, forecasts, values, befores = [], [], [], []
        for symbol in set(step.symbols) - self._hashes.keys():
            self._consider(symbol)
        for row in [row for row, symbol in enumerate(step.symbols) if symbol in self._scored]:
            if not accepted[row]:
                continue
            symbol = step.symbols[row]
            value = float(step.values[row])
            before = self._before.get(symbol)
            self._before[symbol] = (np.array(quantiles[row], np.float64), value)
            if before is not None:
                symbols.append(symbol)
                forecasts.append(before[0])
                values.append(value)
                befores.append(before[1])
        if not symbols:
            return False
        scores = crps(np.asarray(values), np.asarray(forecasts))
        errors = np.abs(np.asarray(values) - np.asarray(befores))
        return self._drift.update(symbols, scores.tolist(), errors.tolist())

    def _consider(self, symbol: str) -> None:
        """Score a symbol that is new, if its hash is among the lowest."""
        if len(self._hashes) > _KNOWN_SYMBOLS:  # somebody makes names up
            self._hashes = dict(self._scored)
        own = self._hashes[symbol] = symbol_hash(symbol, _PURPOSE)
        if len(self._scored) >= self._max_scored:
            last = max(self._scored, key=lambda name: self._scored[name])
            if own >= self._scored[last]:
                return
            del self._scored[last]
            self._before.pop(last, None)
        self._scored[symbol] = own
