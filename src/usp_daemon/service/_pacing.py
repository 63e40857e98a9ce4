"""Replay at the pace at which the ticks once came, a multiple of it, or so many ticks a second."""

import abc
import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable

import numpy as np

from usp_daemon.wire import TickBatch

# Ticks that fall due within this time are released together: waking for each alone would cost more than it tells.
_GRANULARITY_S = 0.005


class AbstractPacer(abc.ABC):
    """Holds ticks back until they are due."""

    def __init__(self, clock_fn: Callable[[], float], wait_fn: Callable[[float], Awaitable[None]] | None) -> None:
        self._clock_fn = clock_fn
        self._wait_fn = wait_fn if wait_fn is not None else self._wait
        self._stopped = asyncio.Event()

    @abc.abstractmethod
    def release(self, batch: TickBatch) -> AsyncIterator[TickBatch]:
        """The batch in parts, each when it is due; its dead letters go with the first. After :meth:`stop`, no more."""

    def stop(self) -> None:
        """Let go: nothing that is still held back will be released."""
        self._stopped.set()

    async def _wait(self, seconds: float) -> None:
        try:
            await asyncio.wait_for(self._stopped.wait(), seconds)
        except TimeoutError:
            return


class RatePacer(AbstractPacer):
    """Lets ``num_at_once`` ticks pass, then whole batches at ``ticks_per_s``, whatever the times of the ticks."""

    def __init__(
        self,
        ticks_per_s: float,
        *,
        num_at_once: int = 0,
        clock_fn: Callable[[], float] = time.monotonic,
        wait_fn: Callable[[float], Awaitable[None]] | None = None,
    ) -> None:
        if not ticks_per_s > 0.0:
            raise ValueError(f"the rate must be positive, got {ticks_per_s}")
        super().__init__(clock_fn, wait_fn)
        self._period_s = 1.0 / ticks_per_s
        self._num_left_at_once = num_at_once
        self._due_s: float | None = None

    async def release(self, batch: TickBatch) -> AsyncIterator[TickBatch]:
        """See :class:`AbstractPacer`."""
        if self._num_left_at_once > 0:
            self._num_left_at_once -= len(batch)
        else:
            now = self._clock_fn()
            due = now if self._due_s is None else self._due_s
            if due > now + _GRANULARITY_S:
                await self._wait_fn(due - now)
            # A process that was held up does not make up for it in a burst.
            self._due_s = max(due, now - 1.0) + self._period_s * len(batch)
        if not self._stopped.is_set():
            yield batch


class Pacer(AbstractPacer):
    """Holds each tick until ``speed`` times the time elapsed since its source's first tick has come.

    Ticks out of order are due with the latest one before them. Every source (file) starts its own count.
    """

    def __init__(
        self,
        speed: float,
        *,
        clock_fn: Callable[[], float] = time.monotonic,
        wait_fn: Callable[[float], Awaitable[None]] | None = None,
    ) -> None:
        if not speed > 0.0:
            raise ValueError(f"the speed must be positive, got {speed}")
        super().__init__(clock_fn, wait_fn)
        self._ns_per_s = speed * 1e9
        self._source: str | None = None
        self._latest_ns = self._first_ns = 0
        self._start_s = 0.0

    async def release(self, batch: TickBatch) -> AsyncIterator[TickBatch]:
        """See :class:`AbstractPacer`."""
        if self._stopped.is_set():
            return
        if not len(batch):
            yield batch
            return
        if batch.raw.source != self._source:
            self._source = batch.raw.source
            self._first_ns = self._latest_ns = int(batch.timestamps_ns[0])
            self._start_s = self._clock_fn()
        latest = np.maximum(np.maximum.accumulate(batch.timestamps_ns), self._latest_ns)
        self._latest_ns = int(latest[-1])
        due_s = self._start_s + (latest - self._first_ns).astype(np.float64) / self._ns_per_s
        done = 0
        while done < len(batch):
            now = self._clock_fn()
            ready = int(np.searchsorted(due_s, now + _GRANULARITY_S, side="right"))
            if ready > done:
                yield batch.part(done, ready, with_dead_letters=done == 0)
                done = ready
                continue
            await self._wait_fn(float(due_s[done]) - now)
            if self._stopped.is_set():
                return
