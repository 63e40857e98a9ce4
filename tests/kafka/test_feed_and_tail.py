"""``feed`` and ``tail`` on a real broker: what arrives, what is shown, and how both end."""

import asyncio
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import orjson
import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.structs import ConsumerRecord

from kafka_broker import Broker
from kafka_broker.clients import create_topic, producer
from usp_daemon.demo import DEMO_SERIES, SyntheticSeries

pytestmark = pytest.mark.kafka

PARTITIONS = 3
PATIENCE_S = 90.0


def murmur2(data: bytes) -> int:
    """Kafka's hash of keys, written from its definition."""
    mask, m = 0xFFFFFFFF, 0x5BD1E995
    h = (0x9747B28C ^ len(data)) & mask
    whole = len(data) // 4 * 4
    for i in range(0, whole, 4):
        k = int.from_bytes(data[i : i + 4], "little") * m & mask
        k = (k ^ k >> 24) * m & mask
        h = (h * m & mask) ^ k
    if tail := data[whole:]:
        h = (h ^ int.from_bytes(tail, "little")) * m & mask
    h = (h ^ h >> 13) * m & mask
    return h ^ h >> 15


@pytest.mark.parametrize(("key", "signed"), [("21", -973932308), ("foobar", -790332482),
                                             ("a-little-bit-long-string", -985981536)])  # fmt: skip
def test_the_hash_is_that_of_the_java_client(key: str, signed: int) -> None:
    assert murmur2(key.encode()) == signed & 0xFFFFFFFF


class Command:
    """``usp-daemon`` in processes of its own, with topics of its own."""

    def __init__(self, servers: str, folder: Path, topic_name: Callable[..., str]) -> None:
        self.servers = servers
        self.folder = folder
        names = ("input", "predictions", "alarms", "dead_letters")
        self.topics = {name: topic_name(name) for name in names}
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith("USP_")}
        self.environment |= {f"USP_KAFKA__{name.upper()}_TOPIC": topic for name, topic in self.topics.items()}
        self.environment |= {
            "USP_KAFKA__BOOTSTRAP_SERVERS": servers,
            "USP_KAFKA__NUM_PARTITIONS": str(PARTITIONS),
            "USP_KAFKA__REQUEST_TIMEOUT_MS": "30000",
        }

    def arguments(self, *arguments: object) -> dict[str, Any]:
        return {
            "args": [sys.executable, "-m", "usp_daemon.cli", *map(str, arguments)],
            "cwd": self.folder,
            "env": self.environment,
            "text": True,
        }

    def run(self, *arguments: object, code: int = 0) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(**self.arguments(*arguments), capture_output=True, timeout=PATIENCE_S)
        assert done.returncode == code, done.stderr
        return done

    def start(self, *arguments: object) -> subprocess.Popen[str]:
        return subprocess.Popen(**self.arguments(*arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    async def read(self, name: str = "input", at_least: int = 0) -> list[ConsumerRecord]:
        """Every record of a topic, and as many as ``at_least`` if need be by waiting for them."""
        partitions = [TopicPartition(self.topics[name], number) for number in range(PARTITIONS)]
        client = AIOKafkaConsumer(bootstrap_servers=self.servers, enable_auto_commit=False)
        try:
            await client.start()
            client.assign(partitions)
            await client.seek_to_beginning(*partitions)
            found: list[ConsumerRecord] = []
            async with asyncio.timeout(PATIENCE_S):
                while True:
                    ends = await client.end_offsets(partitions)
                    while any([await client.position(partition) < ends[partition] for partition in partitions]):
                        for records in (await client.getmany(timeout_ms=200)).values():
                            found += records
                    if len(found) >= at_least:
                        return found
        finally:
            await client.stop()


@pytest.fixture
def command(kafka_bootstrap_servers: str, tmp_path: Path, topic_name: Callable[..., str]) -> Command:
    return Command(kafka_bootstrap_servers, tmp_path, topic_name)


async def publish(command: Command, name: str, records: Sequence[tuple[bytes, object]], *, commit: bool = True) -> None:
    async with producer(command.servers, transactional_id=f"{command.topics[name]}.writer") as client:
        await client.begin_transaction()
        for key, value in records:
            await client.send(command.topics[name], orjson.dumps(value), key=key, partition=0)
        await (client.commit_transaction() if commit else client.abort_transaction())


async def test_the_bundled_series_arrive_as_ticks_of_now(command: Command) -> None:
    before = time.time_ns()
    done = command.run("feed", "--rate", "max", "--count", 600, "--print")
    after = time.time_ns()
    records = await command.read()
    assert len(records) == 600
    assert "600 ticks of 6 symbols" in done.stderr
    assert "all acknowledged" in done.stderr
    assert len(done.stdout.splitlines()) == 600
    ticks = [(record, json.loads(record.value)) for record in records]
    for record, tick in ticks:
        assert record.key.decode() == tick["symbol"]
        assert record.partition == (murmur2(record.key) & 0x7FFFFFFF) % PARTITIONS
        assert before <= tick["ts"] <= after
        assert record.timestamp == tick["ts"] // 1_000_000
    for series in DEMO_SERIES:
        times = [tick["ts"] for _, tick in ticks if tick["symbol"] == series.symbol]
        assert len(times) == 100  # the series take turns
        assert times == sorted(set(times))
    taxi = [tick["value"] for _, tick in ticks if tick["symbol"] == "nyc_taxi_30m"]
    assert taxi[:2] == [10844.0, 8127.0]


async def test_files_keep_their_order_and_if_asked_their_times(command: Command) -> None:
    path = command.folder / "a.csv"
    path.write_text("ts,value,symbol\n1700000000,1,a\nx,2,b\n1700000001,3,b\n1700000002,,a\n")
    done = command.run("feed", path, "--time-unit", "s", "--original-times", "--rate", "1000")
    assert "1 lines are no ticks" in done.stderr
    ticks = {
        (tick["symbol"], tick["ts"]): tick["value"] for tick in (json.loads(r.value) for r in await command.read())
    }
    assert ticks == {
        ("a", 1_700_000_000 * 10**9): 1.0, ("b", 1_700_000_001 * 10**9): 3.0, ("a", 1_700_000_002 * 10**9): None,
    }  # fmt: skip


async def test_made_up_series_are_those_of_their_seed_at_an_even_pace(command: Command) -> None:
    began = time.monotonic()
    command.run("feed", "--symbols", 5, "--seed", 3, "--count", 200, "--rate", 200)
    assert time.monotonic() - began > 0.99
    ticks = sorted((json.loads(record.value) for record in await command.read()), key=lambda tick: tick["ts"])
    series = SyntheticSeries(5, 3)
    expected = [pair for _ in range(40) for pair in zip(series.names, series.next_values().round(6), strict=True)]
    assert [(tick["symbol"], tick["value"]) for tick in ticks] == expected
    gaps = {later["ts"] - earlier["ts"] for earlier, later in itertools.pairwise(ticks)}
    assert gaps <= {4_999_999, 5_000_000, 5_000_001}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_feed_that_is_interrupted_has_sent_what_it_says(command: Command, number: int) -> None:
    process = command.start("feed", "--symbols", 50, "--rate", "2000")
    await wait_for_topic(command, "input")
    await command.read(at_least=500)
    process.send_signal(number)
    _, errors = await asyncio.to_thread(process.communicate, timeout=PATIENCE_S)
    assert process.returncode == 0, errors
    records = await command.read()
    assert f"{len(records):,} ticks of 50 symbols" in errors
    assert "all acknowledged" in errors


async def wait_for_topic(command: Command, name: str) -> None:
    client = AIOKafkaConsumer(bootstrap_servers=command.servers)
    await client.start()
    try:
        async with asyncio.timeout(PATIENCE_S):
            while command.topics[name] not in await client.topics():
                await asyncio.sleep(0.1)
    finally:
        await client.stop()


async def test_a_feed_whose_broker_dies_says_what_is_missing(
    own_broker: Broker, tmp_path: Path, topic_name: Callable[..., str]
) -> None:
    command = Command(own_broker.bootstrap_servers, tmp_path, topic_name)
    process = command.start("feed", "--symbols", 50, "--rate", "2000", "--print")
    assert process.stdout is not None
    for _ in range(500):
        await asyncio.to_thread(process.stdout.readline)
    await asyncio.to_thread(own_broker.kill)
    for _ in range(2_000):  # sent, and certainly not acknowledged
        await asyncio.to_thread(process.stdout.readline)
    process.send_signal(signal.SIGINT)
    await asyncio.sleep(1.5)
    process.send_signal(signal.SIGINT)
    _, errors = await asyncio.to_thread(process.communicate, timeout=PATIENCE_S)
    assert process.returncode == 69, errors
    assert " acknowledged" in errors
    assert "all acknowledged" not in errors


async def test_tail_shows_what_is_committed(command: Command) -> None:
    for name in ("predictions", "alarms", "dead_letters"):
        await create_topic(command.servers, command.topics[name], PARTITIONS)
    dead = {
        "schema_version": 1, "reason": "not_json", "message": "expected JSON", "source": "ticks", "partition": 0,
        "offset": 1, "encoding": "utf-8", "original": "{", "original_size_bytes": 1, "truncated": False,
    }  # fmt: skip
    await publish(command, "dead_letters", [(b"a", dead)], commit=False)
    await publish(command, "dead_letters", [(b"a", dead | {"offset": 2}), (b"b", dead | {"offset": 3})])
    await publish(command, "predictions", [(b"a", {"any": 1})])
    done = command.run("tail", "--from", "earliest", "--count", 3)
    lines = done.stdout.splitlines()
    assert len(lines) == 3
    assert sum("dead letter not_json: expected JSON (ticks/0/2: {)" in text for text in lines) == 1
    assert sum("no record that this version can read" in text for text in lines) == 1
    assert not any("(ticks/0/1:" in text for text in lines)  # its transaction was aborted
    done = command.run("tail", "--from", "earliest", "--topic", "dead-letters", "--symbol", "b", "--json", "--count", 1)
    assert json.loads(done.stdout) == dead | {"offset": 3}


async def test_tail_from_the_end_until_it_is_interrupted(command: Command) -> None:
    for name in ("predictions", "alarms", "dead_letters"):
        await create_topic(command.servers, command.topics[name], PARTITIONS)
    await publish(command, "alarms", [(b"old", {"number": -1})])
    process = command.start("tail", "--topic", "alarms", "--json")
    lines: list[str] = []

    async def read_one() -> None:
        assert process.stdout is not None
        lines.append(await asyncio.to_thread(process.stdout.readline))

    reading = asyncio.create_task(read_one())
    number = 0
    async with asyncio.timeout(PATIENCE_S):
        while not reading.done():  # nobody says when the tail has found the end, so it is offered one after the other
            await publish(command, "alarms", [(b"new", {"number": number})])
            number += 1
            await asyncio.wait({reading}, timeout=0.2)
    assert json.loads(lines[0])["number"] >= 0
    process.send_signal(signal.SIGINT)
    _, errors = await asyncio.to_thread(process.communicate, timeout=PATIENCE_S)
    assert process.returncode == 0
    assert errors == ""


async def test_tail_ends_when_nobody_reads_it(command: Command) -> None:
    for name in ("predictions", "alarms", "dead_letters"):
        await create_topic(command.servers, command.topics[name], PARTITIONS)
    await publish(command, "alarms", [(b"a", {"number": number}) for number in range(5)])
    process = command.start("tail", "--topic", "alarms", "--from", "earliest")
    assert process.stdout is not None
    assert process.stderr is not None
    await asyncio.to_thread(process.stdout.readline)
    process.stdout.close()
    async with asyncio.timeout(PATIENCE_S):
        while process.poll() is None:
            await publish(command, "alarms", [(b"a", {"number": 6})])
    assert process.returncode == 0
    assert process.stderr.read() == ""
    process.stderr.close()


def test_missing_topics_are_named(command: Command) -> None:
    done = command.run("tail", "--no-wait", code=69)
    for name in ("predictions", "alarms", "dead_letters"):
        assert command.topics[name] in done.stderr
    assert "usp-daemon run" in done.stderr


async def test_tail_waits_for_topics_that_are_not_there_and_misses_nothing_in_them(command: Command) -> None:
    await create_topic(command.servers, command.topics["alarms"], PARTITIONS)
    await publish(command, "alarms", [(b"old", {"number": -1})])  # before it began: not asked for
    process = command.start("tail", "--json", "--count", 2)
    assert process.stderr is not None
    said = await asyncio.to_thread(process.stderr.readline)
    assert said.startswith("waiting for topics") and "--no-wait" in said
    assert command.topics["predictions"] in said and command.topics["alarms"] not in said
    for name in ("predictions", "dead_letters"):  # one after the other, and something in each at once
        await create_topic(command.servers, command.topics[name], PARTITIONS)
        await publish(command, name, [(b"new", {"number": 1})])
    output, errors = await asyncio.to_thread(process.communicate, timeout=PATIENCE_S)
    assert (process.returncode, errors) == (0, "")  # said once
    assert [json.loads(line) for line in output.splitlines()] == [{"number": 1}, {"number": 1}]


async def test_a_tail_that_waits_ends_at_a_signal(command: Command) -> None:
    process = command.start("tail")
    assert process.stderr is not None
    await asyncio.to_thread(process.stderr.readline)
    process.send_signal(signal.SIGTERM)
    output, errors = await asyncio.to_thread(process.communicate, timeout=PATIENCE_S)
    assert (process.returncode, output, errors) == (0, "", "")
