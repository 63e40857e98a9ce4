"""A process that saves one snapshot after the other and is killed at a place that its arguments name.

Prints every offset as soon as its snapshot is durable. Arguments, as JSON: the store's directory, the first offset, how
many snapshots to save, then a crash point or a share of the file's bytes, at which the last one kills the process.
"""

import asyncio
import json
import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from snapshot_samples import GROUP, sample
from usp_daemon.persistence import DirectoryStore, encode_snapshot

SIZE = {"num_symbols": 50, "width": 500}


def die():
    os.kill(os.getpid(), signal.SIGKILL)


async def main(directory, first, count, crash_point=None, share=None, hold=False):
    current = first
    last = first + count - 1
    written = 0

    def crash(point):
        if point == crash_point and current == last:
            die()

    def write(fd, data):
        nonlocal written
        if share is None or current != last:
            return os.write(fd, data)
        left = int(share * len(encode_snapshot(sample(last, **SIZE)))) - written
        if left <= 0:
            die()
        count = os.write(fd, data[:left])
        written += count
        return count

    async with DirectoryStore(
        directory, group=GROUP, keep=5, instance="child", crash_fn=crash, write_fn=write
    ) as store:
        await store.acquire("ticks", 2)
        if hold:
            print("held", flush=True)
            await asyncio.Event().wait()
        while current <= last:
            await store.save(sample(current, **SIZE))
            print(current, flush=True)
            current += 1


asyncio.run(main(**json.loads(sys.argv[1])))
