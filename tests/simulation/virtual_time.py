"""An event loop whose time jumps to the next timer instead of passing, and an executor that runs things at once."""

import asyncio
import concurrent.futures
from collections.abc import Coroutine
from typing import Any


class Deadlock(Exception):
    """Everybody waits and no timer is set: in real time this would hang for ever."""


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """Runs the same history every time, as fast as the processor can."""

    def __init__(self):
        super().__init__()
        self._now = 0.0
        select = self._selector.select

        def at_once(timeout=None):
            events = select(0)
            if not events:
                if timeout is None:
                    raise Deadlock
                self._now += max(timeout, 0.0)
            return events

        self._selector.select = at_once

    def time(self) -> float:
        return self._now


class InlineExecutor(concurrent.futures.Executor):
    """No threads: what is submitted is done before ``submit`` returns."""

    def submit(self, fn, /, *args, **kwargs):
        future = concurrent.futures.Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


def run_virtually(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """``asyncio.run`` on virtual time."""
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(coroutine)
