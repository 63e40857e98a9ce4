"""Stopping an aiokafka client within a time: its own ``stop()`` waits for ever when the broker is away (its #1101)."""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from ._watch import ClientWatch

_log = logging.getLogger(__name__)

FORCED_S = 2.0  # what ending by force may take


async def stop_within(
    timeout_s: float, stop_fn: Callable[[], Awaitable[None]], watch: ClientWatch, owners: tuple[object, ...]
) -> None:
    """Await ``stop_fn()`` for ``timeout_s``; then cancel every task of ``owners`` and close the connections.

    ``owners`` are the objects inside the client whose methods run as tasks.
    """
    stopping = asyncio.ensure_future(stop_fn())
    try:
        if timeout_s > 0:
            await asyncio.wait([stopping], timeout=timeout_s)
        else:
            await asyncio.sleep(0)  # lets it mark itself as closed
    finally:
        if not stopping.done():
            _log.debug("a Kafka client does not stop by itself; ending it")
            await asyncio.shield(asyncio.ensure_future(_end(stopping, watch, owners)))
        elif stopping.cancelled() or stopping.exception() is not None:
            # aiokafka's stop() gives up at the first task of its own that ends badly, and leaves the others running.
            await _end(stopping, watch, owners)


async def _end(stopping: "asyncio.Future[None]", watch: ClientWatch, owners: tuple[object, ...]) -> None:
    loop = asyncio.get_running_loop()
    deadline = loop.time() + FORCED_S
    await watch.shut()
    # Several rounds: a task that is cancelled may await others first, and one that ends may have started another.
    while loop.time() < deadline:
        tasks: set[asyncio.Future[None]] = set(_tasks_of(owners))
        if not stopping.done():
            tasks.add(stopping)
        if not tasks:
            break
        for task in tasks:
            task.cancel()
        done, _ = await asyncio.wait(tasks, timeout=0.2)
        for task in done:
            if not task.cancelled():
                task.exception()  # asked for, so that nobody reports it as overlooked
    await watch.shut()  # what was being opened meanwhile
    if not stopping.cancelled() and stopping.done():
        stopping.exception()


def _tasks_of(owners: tuple[object, ...]) -> list[asyncio.Task[None]]:
    """Aiokafka keeps no list of its tasks; they are methods, and so is what they were started as."""
    found = []
    for task in asyncio.all_tasks():
        frame = getattr(task.get_coro(), "cr_frame", None)
        if frame is not None and any(frame.f_locals.get("self") is owner for owner in owners):
            found.append(task)
    return found
