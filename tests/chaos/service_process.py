"""The daemon as a process of its own on a real broker: started, killed, paused, stopped, and its output compared."""

import asyncio
import contextlib
import hashlib
import json
import os
import pathlib
import random
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import numpy as np
import orjson
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from usp_daemon.persistence import decode_snapshot, snapshot_files

READY_TIMEOUT_S = 240.0
EPOCH_MS = 1_700_000_000_000
RUBBISH = (b"\xff\xfe\x00", b"{", b"[]", b'{"symbol": "x"}', None, b'{"symbol":1,"ts":2,"value":3}')


class ServiceProcess:
    """One replica of the group ``group``: ``usp-daemon run`` with settings of its own below ``directory``."""

    def __init__(self, directory, servers, *, group, prefix, instance="r0", **overrides):
        self.directory = pathlib.Path(directory)
        self.directory.mkdir(parents=True, exist_ok=True)
        self.name = instance
        self.port = _free_port()
        self.environment = {
            "USP_KAFKA__BOOTSTRAP_SERVERS": servers,
            "USP_KAFKA__GROUP": group,
            "USP_KAFKA__GROUP_INSTANCE_ID": instance,
            "USP_KAFKA__INPUT_TOPIC": f"{prefix}.ticks",
            "USP_KAFKA__PREDICTIONS_TOPIC": f"{prefix}.{group}.predictions",
            "USP_KAFKA__ALARMS_TOPIC": f"{prefix}.{group}.alarms",
            "USP_KAFKA__DEAD_LETTERS_TOPIC": f"{prefix}.{group}.dead",
            "USP_KAFKA__SESSION_TIMEOUT_MS": "6000",
            "USP_KAFKA__HEARTBEAT_INTERVAL_MS": "1000",
            "USP_KAFKA__REBALANCE_TIMEOUT_MS": "20000",
            "USP_KAFKA__TRANSACTION_TIMEOUT_MS": "10000",
            "USP_KAFKA__REQUEST_TIMEOUT_MS": "10000",
            "USP_IO__SNAPSHOT_PATH": str(self.directory / "snapshots"),
            "USP_IO__SNAPSHOT_INTERVAL_S": "2.0",
            "USP_HTTP__PORT": str(self.port),
            "USP_LOG__FORMAT": "json",
        } | {name: str(value) for name, value in overrides.items()}
        self.process = None
        self.starts = 0

    @property
    def log(self):
        return self.directory / f"{self.name}.log"

    def start(self, crash_at=""):
        environment = {name: value for name, value in os.environ.items() if not name.startswith("USP_")}
        environment |= {name: os.environ[name] for name in ("USP_CACHE_DIR",) if name in os.environ}
        environment |= self.environment
        if crash_at:
            environment["USP_CRASH_AT"] = crash_at
        self.starts += 1
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "usp_daemon.cli", "run"],
                cwd=self.directory, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        return self

    @property
    def alive(self):
        return self.process is not None and self.process.poll() is None

    def http(self, path):
        """Status and body; None while nobody listens."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=5) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()
        except OSError:
            return None

    def wait_ready(self, timeout_s=READY_TIMEOUT_S, *, holding=None):
        """Until /readyz says so, and, if asked, until the replica holds as many partitions."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if not self.alive:
                return False
            answer = self.http("/readyz")
            if answer is not None and answer[0] == 200 and (holding is None or self.num_running() >= holding):
                return True
            time.sleep(0.1)
        raise TimeoutError(f"{self.name} not ready: {self.http('/readyz')}\n{self.tail()}")

    def num_running(self):
        answer = self.http("/metrics")
        lines = answer[1].decode().splitlines() if answer else []
        wanted = [line for line in lines if line.startswith("usp_partition_state{") and 'state="RUNNING"' in line]
        return sum(float(line.rsplit(" ", 1)[1]) for line in wanted)

    def kill(self):
        self._signal(signal.SIGKILL)
        self.process.wait(30)

    def pause(self):
        self._signal(signal.SIGSTOP)

    def resume(self):
        self._signal(signal.SIGCONT)

    def stop(self, timeout_s=60):
        """SIGTERM; returns the exit code."""
        self._signal(signal.SIGTERM)
        return self.process.wait(timeout_s)

    def _signal(self, number):
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(number)

    def tail(self, lines=40):
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def events(self, name):
        found = []
        for line in self.log.read_text(errors="replace").splitlines():
            with contextlib.suppress(ValueError):
                event = json.loads(line)
                if event.get("event") == name:
                    found.append(event)
        return found


def _free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def seeded_ticks(seed, num_records, *, num_partitions=4, num_symbols=200):
    """Records as (partition, key, value, time in ms): mostly ticks of random walks, some rubbish of every kind."""
    rng = random.Random(seed)
    level = dict.fromkeys(range(num_symbols), 100.0)
    for number in range(num_records):
        symbol = rng.randrange(num_symbols)
        partition, stamp_ms = symbol % num_partitions, EPOCH_MS + number * 5
        level[symbol] += rng.gauss(0.0, 1.0) + (25.0 if rng.random() < 0.001 else 0.0)
        key = f"s{symbol}".encode()
        kind = rng.random()
        if kind < 0.01:
            value = rng.choice(
                [b"\xff\xfe\x00", b"{", b"[]", b'{"symbol": "x"}', None, b'{"symbol":1,"ts":2,"value":3}']
            )
        elif kind < 0.02:
            value = orjson.dumps({"symbol": f"s{symbol}", "ts": stamp_ms * 1_000_000, "value": None})
        elif kind < 0.025:  # out of order
            value = orjson.dumps(
                {"symbol": f"s{symbol}", "ts": (stamp_ms - 10_000) * 1_000_000, "value": level[symbol]}
            )
        else:
            value = orjson.dumps({"symbol": f"s{symbol}", "ts": stamp_ms * 1_000_000, "value": level[symbol]})
        yield partition, key, value, stamp_ms


async def produce(servers, topic, records, *, per_second=None):
    """Send all records, at a pace if one is given."""
    producer = AIOKafkaProducer(bootstrap_servers=servers, acks="all", linger_ms=5)
    await producer.start()
    try:
        began, waiting = time.monotonic(), []
        for number, (partition, key, value, stamp_ms) in enumerate(records):
            waiting.append(await producer.send(topic, value, key=key, partition=partition, timestamp_ms=stamp_ms))
            if per_second and number % 50 == 0:
                await asyncio.sleep(max(0.0, began + number / per_second - time.monotonic()))
        await asyncio.gather(*waiting)
    finally:
        await producer.stop()


async def read_committed(servers, topic, num_partitions=4):
    """Everything that a reader of committed records finds, by partition: key, value, time and headers."""
    consumer = AIOKafkaConsumer(bootstrap_servers=servers, isolation_level="read_committed", enable_auto_commit=False)
    await consumer.start()
    try:
        partitions = [TopicPartition(topic, number) for number in range(num_partitions)]
        consumer.assign(partitions)
        await consumer.seek_to_beginning(*partitions)
        ends = await consumer.end_offsets(partitions)
        found = {number: [] for number in range(num_partitions)}
        while any([await consumer.position(p) < ends[p] for p in partitions]):
            for partition, records in (await consumer.getmany(timeout_ms=300)).items():
                found[partition.partition] += [(r.key, r.value, r.timestamp, tuple(r.headers)) for r in records]
        return found
    finally:
        await consumer.stop()


async def committed_offsets(servers, group, topic, num_partitions=4):
    consumer = AIOKafkaConsumer(bootstrap_servers=servers, group_id=group, enable_auto_commit=False)
    await consumer.start()
    try:
        return [await consumer.committed(TopicPartition(topic, number)) for number in range(num_partitions)]
    finally:
        await consumer.stop()


async def end_offsets(servers, topic, num_partitions=4):
    consumer = AIOKafkaConsumer(bootstrap_servers=servers, enable_auto_commit=False)
    await consumer.start()
    try:
        partitions = [TopicPartition(topic, number) for number in range(num_partitions)]
        ends = await consumer.end_offsets(partitions)
        return [ends[partition] for partition in partitions]
    finally:
        await consumer.stop()


async def wait_answered(servers, process, num_partitions=4, timeout_s=300.0):
    """Until the group's committed offsets are at the end of the input."""
    topic, group = process.environment["USP_KAFKA__INPUT_TOPIC"], process.environment["USP_KAFKA__GROUP"]
    ends = await end_offsets(servers, topic, num_partitions)
    deadline = time.monotonic() + timeout_s
    while (at := await committed_offsets(servers, group, topic, num_partitions)) != ends:
        if time.monotonic() > deadline:
            raise TimeoutError(f"answered up to {at} of {ends}\n{process.tail()}")
        await asyncio.sleep(0.3)


async def outputs(servers, process, num_partitions=4):
    """The three output topics."""
    return {
        name: await read_committed(servers, process.environment[f"USP_KAFKA__{name}_TOPIC"], num_partitions)
        for name in ("PREDICTIONS", "ALARMS", "DEAD_LETTERS")
    }


def comparable(found):
    """Headers name the input, which both groups share; nothing else has to be left out."""
    return {
        name: {number: [hashlib.sha256(repr(record).encode()).hexdigest() for record in records]
               for number, records in partitions.items()}
        for name, partitions in found.items()
    }  # fmt: skip


def final_states(directory):
    """The newest snapshot of each partition below ``directory``: offset, and the bits of every symbol's state."""
    newest = {}
    for found in snapshot_files(pathlib.Path(directory) / "snapshots"):
        path = getattr(found, "path", found)
        snapshot = decode_snapshot(pathlib.Path(path).read_bytes())
        known = newest.get(snapshot.partition)
        if known is None or snapshot.offset > known.offset:
            newest[snapshot.partition] = snapshot
    return {partition: bits_of(snapshot) for partition, snapshot in newest.items()}


def bits_of(snapshot):
    """Offset of a snapshot, and a hash of every symbol's state."""
    rows = {
        symbol: hashlib.sha256(
            b"".join(np.ascontiguousarray(snapshot.arrays[name][i]).tobytes() for name in sorted(snapshot.arrays))
        ).hexdigest()
        for i, symbol in enumerate(snapshot.symbols)
    }
    return snapshot.offset, rows
