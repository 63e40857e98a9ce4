"""The daemon as a process of its own on a real broker: started, killed, paused, stopped, and its output compared."""

import asyncio
import contextlib
import hashlib
import json
import os
import pathlib
import random
import re
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
from aiokafka.admin import NewTopic
from aiokafka.errors import KafkaError, for_code

from kafka_broker.clients import admin
from usp_daemon.persistence import decode_snapshot, snapshot_files

FULL = os.environ.get("USP_CHAOS") == "full"
READY_TIMEOUT_S = 240.0
NUM_PARTITIONS = 4
# Compiled programs, shared by every replica of every test; see tests/conftest.py.
CACHE = pathlib.Path(__file__).resolve().parents[2] / ".cache" / "usp-daemon"
EPOCH_MS = 1_700_000_000_000
RUBBISH = (b"\xff\xfe\x00", b"{", b"[]", b'{"symbol": "x"}', None, b'{"symbol":1,"ts":2,"value":3}')


class ChaosTimeoutError(Exception):
    """Something that has to come in the end did not come; the text has the end of the log."""


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
            "USP_TUNING__MODE": "off",  # what is compared must not change by itself
        } | {name: str(value) for name, value in overrides.items()}
        self.process = None
        self.starts = 0

    @property
    def log(self):
        return self.directory / f"{self.name}.log"

    def start(self, *, crash_at="", stop_at=""):
        """``crash_at`` and ``stop_at``: ``point`` or ``point:n``, where it gets SIGKILL or SIGSTOP by itself."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("USP_")}
        environment |= {"USP_CACHE_DIR": os.environ.get("USP_CACHE_DIR", str(CACHE))} | self.environment
        if crash_at:
            environment["USP_CRASH_AT"] = crash_at
        if stop_at:
            environment["USP_STOP_AT"] = stop_at
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

    async def wait_ready(self, timeout_s=READY_TIMEOUT_S, *, holding=None):
        """Until /readyz says so and, if asked, ``holding`` partitions run; returns False if it ends before that."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if not self.alive:
                return False
            answer = await asyncio.to_thread(self.http, "/readyz")
            if answer is not None and answer[0] == 200 and (holding is None or len(await self.running()) == holding):
                return True
            await asyncio.sleep(0.1)
        raise ChaosTimeoutError(f"{self.name} not ready: {self.http('/readyz')}\n{self.tail()}")

    async def running(self):
        """Numbers of the partitions that are RUNNING here, by its metrics; none while it does not answer."""
        answer = await asyncio.to_thread(self.http, "/metrics")
        lines = answer[1].decode().splitlines() if answer else []
        wanted = [
            re.search(r'partition="(\d+)"', line)
            for line in lines
            if line.startswith("usp_partition_state{") and 'state="RUNNING"' in line and line.endswith(" 1.0")
        ]
        return {int(found[1]) for found in wanted}

    async def metric(self, name):
        """The sum of a metric's series; 0 when there is none."""
        answer = await asyncio.to_thread(self.http, "/metrics")
        lines = answer[1].decode().splitlines() if answer else []
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if re.match(rf"{name}[{{ ]", line))

    async def ended(self, timeout_s=60.0):
        """Its exit code, once it has ended by itself."""
        try:
            return await asyncio.to_thread(self.process.wait, timeout_s)
        except subprocess.TimeoutExpired:
            raise ChaosTimeoutError(f"{self.name} does not end\n{self.tail()}") from None

    @property
    def suspended(self):
        """Whether SIGSTOP holds it."""
        return self.alive and self._stat()[0] == "T"

    @property
    def resident_bytes(self):
        """Memory in use, by /proc."""
        pages = int(pathlib.Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    @property
    def num_files(self):
        """Open file descriptors, by /proc."""
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    @property
    def num_threads(self):
        """Threads, by /proc."""
        return int(self._stat()[17])

    def _stat(self):
        return pathlib.Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()

    def kill(self):
        self._signal(signal.SIGKILL)
        self.process.wait(30)

    def pause(self):
        self._signal(signal.SIGSTOP)

    def resume(self):
        self._signal(signal.SIGCONT)

    async def stop(self, timeout_s=60.0):
        """SIGTERM; returns the exit code."""
        self._signal(signal.SIGTERM)
        return await self.ended(timeout_s)

    def discard(self):
        """Nothing of it is left behind."""
        if self.alive:
            self.resume()
            self.kill()

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


def seeded_ticks(seed, num_records, *, num_partitions=NUM_PARTITIONS, num_symbols=8):
    """Records as (partition, key, value, time in ms): mostly ticks of random walks, some rubbish of every kind."""
    rng = random.Random(seed)
    level = dict.fromkeys(range(num_symbols), 100.0)
    for number in range(num_records):
        symbol = rng.randrange(num_symbols)
        partition, stamp_ms = symbol % num_partitions, EPOCH_MS + number * 5
        level[symbol] += rng.gauss(0.0, 1.0) + (80.0 if rng.random() < 0.003 else 0.0)
        key = f"s{symbol}".encode()
        kind = rng.random()
        if kind < 0.01:
            value = rng.choice(RUBBISH)
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


async def read_committed(servers, topic, num_partitions=NUM_PARTITIONS):
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


async def create_topics(servers, prefix, groups, num_partitions=NUM_PARTITIONS, **settings):
    """The input and every group's outputs. They keep records of any age, as those of ``seeded_ticks`` are old."""
    names = [f"{prefix}.ticks"]
    names += [f"{prefix}.{group}.{kind}" for group in groups for kind in ("predictions", "alarms", "dead")]
    kept = {"retention.ms": "-1"} | {name.replace("_", "."): str(value) for name, value in settings.items()}
    async with admin(servers) as client:
        response = await client.create_topics([NewTopic(name, num_partitions, 1, topic_configs=kept) for name in names])
    for name, code, *rest in response.topic_errors:
        if code:
            raise for_code(code)(f"{name}: {rest}")


async def committed_offsets(servers, group, topic, num_partitions=NUM_PARTITIONS):
    """The group's committed offsets; None where there is none."""
    consumer = AIOKafkaConsumer(bootstrap_servers=servers, group_id=group, enable_auto_commit=False)
    await consumer.start()
    try:
        return [await consumer.committed(TopicPartition(topic, number)) for number in range(num_partitions)]
    finally:
        await consumer.stop()


async def end_offsets(servers, topic, num_partitions=NUM_PARTITIONS):
    """Where the topic ends."""
    consumer = AIOKafkaConsumer(bootstrap_servers=servers, enable_auto_commit=False)
    await consumer.start()
    try:
        partitions = [TopicPartition(topic, number) for number in range(num_partitions)]
        ends = await consumer.end_offsets(partitions)
        return [ends[partition] for partition in partitions]
    finally:
        await consumer.stop()


async def wait_answered(servers, process, num_partitions=NUM_PARTITIONS, timeout_s=300.0):
    """Until the committed offsets of the replica's group are at the end of the input."""
    topic, group = process.environment["USP_KAFKA__INPUT_TOPIC"], process.environment["USP_KAFKA__GROUP"]
    ends = await end_offsets(servers, topic, num_partitions)
    deadline, at = time.monotonic() + timeout_s, None
    while at != ends:
        if time.monotonic() > deadline:
            raise ChaosTimeoutError(f"answered up to {at} of {ends}\n{process.tail()}")
        with contextlib.suppress(KafkaError):
            at = await committed_offsets(servers, group, topic, num_partitions)
        await asyncio.sleep(0.2)


async def outputs(servers, process, num_partitions=NUM_PARTITIONS):
    """What readers of committed records find in the three output topics."""
    return {
        name: await read_committed(servers, process.environment[f"USP_KAFKA__{name}_TOPIC"], num_partitions)
        for name in ("PREDICTIONS", "ALARMS", "DEAD_LETTERS")
    }


async def assert_as_undisturbed(servers, disturbed, quiet, *, with_times=True, states=None):
    """``quiet``, a replica of a group of its own, answers the whole input at once and undisturbed; the answers of
    ``disturbed``'s group must be the same, record by record, and so must the last snapshots, which are ``states`` if
    given and else read from ``disturbed``'s folder. Both groups have ended afterwards. Without ``with_times`` the
    answers' own times are not compared: those of a record whose time is none, or one that the topic does not take, are
    the wall clock's. Returns the number of records answered.
    """
    quiet.start()
    await wait_answered(servers, quiet)
    assert await quiet.stop() == 0, quiet.tail()
    expected, found = await outputs(servers, quiet), await outputs(servers, disturbed)
    num_records = sum(await end_offsets(servers, quiet.environment["USP_KAFKA__INPUT_TOPIC"]))
    num_answers = sum(len(records) for kind in ("PREDICTIONS", "DEAD_LETTERS") for records in expected[kind].values())
    assert num_answers == num_records
    assert sum(map(len, expected["ALARMS"].values())) > 0
    for kind in expected:
        for partition in expected[kind]:
            one, other = expected[kind][partition], found[kind][partition]
            if not with_times:
                one, other = ([(key, value, headers) for key, value, _, headers in records] for records in (one, other))
            difference = first_difference(one, other)
            assert difference is None, f"{kind} of partition {partition}: {difference}"
    found_states, expected_states = states or final_states(disturbed), final_states(quiet)
    assert {p: at for p, (at, _) in found_states.items()} == {p: at for p, (at, _) in expected_states.items()}
    for partition, (_, rows) in expected_states.items():
        different = [symbol for symbol, bits in rows.items() if found_states[partition][1].get(symbol) != bits]
        assert not different, f"states of partition {partition} differ: {different}"
    return num_records


def first_difference(expected, found):
    """Where two lists of records part, in words; None when they are equal."""
    for number, (one, other) in enumerate(zip(expected, found, strict=False)):
        if one != other:
            return f"record {number} of {len(expected)}: expected {one}, found {other}"
    if len(expected) != len(found):
        return f"expected {len(expected)} records, found {len(found)}"
    return None


def final_states(process):
    """The newest snapshot of each partition: its offset, and the bits of every symbol's state."""
    newest = {}
    for found in snapshot_files(pathlib.Path(process.environment["USP_IO__SNAPSHOT_PATH"])):
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
