"""How a command ends: a signal sets a flag, and what waits is let go."""

import asyncio
import contextlib
import signal
from collections.abc import Awaitable, Iterator
from typing import TypeVar

_T = TypeVar("_T")

# What may still be under way when the first signal comes.
_GRACE_S = 1.0


class Stop:
    """Set by the first and by the second signal."""

    def __init__(self) -> None:
        self.first = asyncio.Event()
        self.second = asyncio.Event()

    def on_signal(self) -> None:
        """One signal more."""
        (self.second if self.first.is_set() else self.first).set()


@contextlib.contextmanager
def signals() -> Iterator[Stop]:
    """SIGINT and SIGTERM set a flag while the body runs."""
    stop = Stop()
    loop = asyncio.get_running_loop()
    numbers = (signal.SIGINT, signal.SIGTERM)
    for number in numbers:
        loop.add_signal_handler(number, stop.on_signal)
    try:
        yield stop
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)


async def unless(event: asyncio.Event, awaitable: Awaitable[_T]) -> _T | None:
    """What ``awaitable`` returns, or None, with it cancelled, when the event comes first."""
    task = asyncio.ensure_future(awaitable)
    happened = asyncio.create_task(event.wait(), name="feed.signal")
    try:
        await asyncio.wait({task, happened}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        return None
    finally:
        happened.cancel()
        if not task.done():
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def until_stopped(awaitable: Awaitable[None], event: asyncio.Event) -> None:
    """Await what ends by itself soon after the event; a send that the broker holds up does not, and is cut short."""
    task = asyncio.ensure_future(awaitable)
    happened = asyncio.create_task(event.wait(), name="feed.signal")
    try:
        await asyncio.wait({task, happened}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            await asyncio.wait({task}, timeout=_GRACE_S)
        if task.done():
            task.result()
    finally:
        happened.cancel()
        if not task.done():
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
