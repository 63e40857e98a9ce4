"""The operator's word: SIGUSR1."""

import asyncio
import os
import signal

from usp_daemon import daemon_app
from usp_daemon.config import Settings
from usp_daemon.service import StopRequest


async def test_sigusr1_asks_for_a_campaign_and_ends_nobody():
    stop, reloading, campaign = StopRequest(), asyncio.Event(), asyncio.Event()
    asked = []
    with daemon_app._signals(stop, Settings(), reloading, campaign):
        passing = asyncio.create_task(daemon_app._pass_on(campaign, lambda: asked.append(True)))
        for count in (1, 2):
            os.kill(os.getpid(), signal.SIGUSR1)
            async with asyncio.timeout(10.0):
                while len(asked) < count:
                    await asyncio.sleep(0)
        refusing = asyncio.create_task(daemon_app._pass_on(campaign, None))
        passing.cancel()
        await asyncio.gather(passing, return_exceptions=True)
        os.kill(os.getpid(), signal.SIGUSR1)  # the tuner is off: said, no more
        async with asyncio.timeout(10.0):
            await campaign.wait()
            while campaign.is_set():
                await asyncio.sleep(0)
        assert not refusing.done() and len(asked) == 2
        refusing.cancel()
    assert not stop.requested.is_set() and not reloading.is_set()
