"""Epochs for tests; as a program, one that appends them, and may kill itself at a crash point."""

import asyncio
import json
import os
import signal
import sys

from usp_daemon.persistence import DirectoryEpochLog, Epoch


def epoch(number, name="", **changes):
    fields = dict(
        number=number,
        settings={"core.a": 0.1 * number, "core.b": number, "core.c": True, "core.d": "é\N{SNOWMAN}"},
        config_hash=f"hash-{number}-{name}",
        base_hash="base",
        created_ns=1_700_000_000_000_000_000 + number,
        proposed_by=name,
        reason="test",
    )
    return Epoch(**(fields | changes))


async def main(directory, group, name, count, crash_point="", crash_number=0):
    current = 0

    def crash(point):
        if point == crash_point and current == crash_number:
            os.kill(os.getpid(), signal.SIGKILL)

    log = DirectoryEpochLog(directory, group=group, crash_fn=crash)
    await log.open()
    print("ready", flush=True)
    sys.stdin.readline()
    won = 0
    while won < count:
        epochs = await log.read()
        current = epochs[-1].number + 1 if epochs else 1
        if await log.append(epoch(current, name)):
            won += 1
            print(current, flush=True)
    await log.close()


if __name__ == "__main__":
    asyncio.run(main(**json.loads(sys.argv[1])))
