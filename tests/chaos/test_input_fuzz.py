"""Whatever bytes come in, each record gets exactly one answer, and the daemon lives on in bounded memory."""

import asyncio
import collections
import random

import orjson
import pytest
from aiokafka import AIOKafkaProducer
from service_process import (
    EPOCH_MS,
    FULL,
    NUM_PARTITIONS,
    assert_as_undisturbed,
    create_topics,
    end_offsets,
    outputs,
    wait_answered,
)

NUM_RECORDS = 60_000 if FULL else 3_000
NUM_HUGE = 40 if FULL else 4
HUGE_BYTES = 5_000_000
LARGEST_MS = 2**63 - 1
# What a record of the largest size may cost while it is fetched, decoded and written into a dead letter.
MEMORY_BYTES = 400_000_000

pytestmark = [pytest.mark.kafka, pytest.mark.slow]


def tick(symbol, ts, value):
    return orjson.dumps({"symbol": symbol, "ts": ts, "value": value})


def deep(rng):
    depth = rng.choice([10, 1_000, 100_000])
    kind = rng.randrange(3)
    if kind == 0:
        return b"[" * depth
    if kind == 1:
        return b'{"a":' * depth + b"1" + b"}" * depth
    return b'{"symbol":"d","ts":1700000000000000000,"value":' + b"[" * depth + b"]" * depth + b"}"


def wrong_types(rng):
    anything = (None, True, [], {}, "", "text", -1, 0, 1.5, 1e308, "\u2028", [1, [2]], {"value": 1}, "9" * 400)
    fields = {"symbol": rng.choice(anything), "ts": rng.choice(anything), "value": rng.choice(anything)}
    for name in rng.sample(list(fields), rng.randrange(3)):
        del fields[name]
    return orjson.dumps(fields)


def odd_text(rng):
    return rng.choice([
        b'{"symbol":"\\ud800","ts":1700000000000000000,"value":1.0}',
        b'{"symbol":"\\udfff\\ud800","ts":1700000000000000000,"value":1.0}',
        b'{"symbol":"a\\u0000b","ts":1700000000000000000,"value":1.0}',
        b'{"symbol":"' + b"x" * 70_000 + b'","ts":1700000000000000000,"value":1.0}',
        '{"symbol":"\u202e\U0001f4a9","ts":1700000000000000000,"value":1.0}'.encode(),
        b'{"symbol":"\xed\xa0\x80","ts":1700000000000000000,"value":1.0}',
        b'\xef\xbb\xbf{"symbol":"bom","ts":1700000000000000000,"value":1.0}',
        b'{"symbol":"t","symbol":"u","ts":1700000000000000000,"value":1.0}',
        b'{"symbol":"n","ts":1700000000000000000,"value":NaN}',
        b'{"symbol":"n","ts":1700000000000000000,"value":1e999}',
        b'{"symbol":"n","ts":1700000000000000000,"value":' + b"9" * 5_000 + b"}",
        b'{"symbol":"n","ts":-1,"value":1.0}',
        b'{"symbol":"n","ts":1e400,"value":1.0}',
        b'{"symbol":"n","ts":9223372036854775807,"value":1.0}',
        b'{"symbol":"n","ts":9223372036854775808,"value":1.0}',
        b'{"symbol":"n","ts":' + b"1" * 5_000 + b',"value":1.0}',
        b"\r\n", b" ", b"null", b"\x00" * 100, b"1", b'"text"',
    ])  # fmt: skip


def corrupted(rng):
    text = bytearray(tick(f"c{rng.randrange(8)}", EPOCH_MS * 1_000_000, rng.random()))
    for _ in range(rng.randrange(1, 5)):
        text[rng.randrange(len(text))] = rng.randrange(256)
    return bytes(text[: rng.randrange(len(text) + 1)])


MAKERS = (
    deep,
    wrong_types,
    odd_text,
    corrupted,
    lambda rng: rng.randbytes(rng.randrange(300)),
    lambda rng: rng.choice([None, b""]),
)
HEADERS = (
    [],
    [("", b"")],
    [("none", None)],
    [("usp-source", b"a/0/0"), ("usp-reason", b"mine")],
    [("twice", b"1"), ("twice", b"2")],
    [("\U0001f4a9", b"\xff\x00")],
    [("long", b"h" * 60_000)],
    [(f"h{number}", b"x") for number in range(300)],
)


def fuzz(seed, num_records):
    """Records as (partition, key, value, time in ms, headers): half of them good ticks, all else between."""
    rng = random.Random(seed)
    huge = set(rng.sample(range(num_records), NUM_HUGE))
    level = 100.0
    for number in range(num_records):
        stamp_ms, partition = EPOCH_MS + number * 20, rng.randrange(NUM_PARTITIONS)
        key, headers = rng.choice([None, b"", b"k", b"\xff\xfe", rng.randbytes(20)]), rng.choice(HEADERS)
        if number in huge:
            value = b'{"symbol":"huge","ts":1700000000000000000,"value":1,"more":"' + b"y" * HUGE_BYTES + b'"}'
        elif rng.random() < 0.5:
            level += rng.gauss(0.0, 1.0) + (80.0 if rng.random() < 0.01 else 0.0)
            # One partition has one symbol, so that each is long enough for alarms.
            value = tick(f"good{partition}", stamp_ms * 1_000_000, level)
            key, headers = b"good", headers if rng.random() < 0.1 else []
        else:
            value = rng.choice(MAKERS)(rng)
            if rng.random() < 0.2:
                stamp_ms = rng.choice([0, 1, 1_000, 4_102_444_800_000, 253_402_300_800_000, LARGEST_MS // 10**6,
                                       LARGEST_MS // 10**6 + 1, LARGEST_MS])  # fmt: skip
        # The client sends no record that has neither.
        yield partition, (b"" if key is None and value is None else key), value, stamp_ms, headers


def source_of(headers):
    """The offset of the record that is answered. The daemon's own header is the first; a record may bring another."""
    name, value = headers[0]
    assert name == "usp-source"
    return int(value.decode().rpartition("/")[2])


async def test_every_record_gets_exactly_one_answer(kafka_bootstrap_servers, topic_name, make_replica):
    servers, prefix = kafka_bootstrap_servers, topic_name("fuzz")
    topic = f"{prefix}.ticks"
    await create_topics(
        servers, prefix, ("quiet", "fuzzed"), max_message_bytes=8_000_000,
        message_timestamp_after_max_ms=LARGEST_MS, message_timestamp_before_max_ms=LARGEST_MS,
    )  # fmt: skip
    replica = make_replica(servers, group="fuzzed", prefix=prefix).start()
    await replica.wait_ready(holding=NUM_PARTITIONS)
    at_start = peak = replica.resident_bytes
    producer = AIOKafkaProducer(bootstrap_servers=servers, acks="all", max_request_size=8_000_000)
    await producer.start()
    sent = collections.Counter()
    try:
        waiting = []
        for partition, key, value, stamp_ms, headers in fuzz(53, NUM_RECORDS):
            waiting.append(await producer.send(topic, value, key, partition, stamp_ms, headers))
            sent[partition] += 1
            if len(waiting) == 100:
                await asyncio.gather(*waiting)
                waiting.clear()
                peak = max(peak, replica.resident_bytes)
        await asyncio.gather(*waiting)
    finally:
        await producer.stop()
    assert [sent[partition] for partition in range(NUM_PARTITIONS)] == await end_offsets(servers, topic)

    answering = asyncio.create_task(wait_answered(servers, replica))
    while not answering.done():
        peak = max(peak, replica.resident_bytes)
        await asyncio.sleep(0.05)
    await answering
    await replica.wait_ready(30.0, holding=NUM_PARTITIONS)
    assert peak - at_start < MEMORY_BYTES, f"{at_start / 1e6:.0f} MB at the start, {peak / 1e6:.0f} MB at most"
    found = await outputs(servers, replica)
    for partition in range(NUM_PARTITIONS):
        answers = collections.Counter(
            source_of(headers)
            for kind in ("PREDICTIONS", "DEAD_LETTERS")
            for _, _, _, headers in found[kind][partition]
        )
        assert answers == collections.Counter(range(sent[partition]))
    assert await replica.stop() == 0, replica.tail()
    good = sum(len(records) for records in found["PREDICTIONS"].values())
    dead = sum(len(records) for records in found["DEAD_LETTERS"].values())
    assert good >= 0.4 * NUM_RECORDS
    assert dead >= 0.3 * NUM_RECORDS
    answered = await assert_as_undisturbed(
        servers, replica, make_replica(servers, group="quiet", prefix=prefix), with_times=False
    )
    assert answered == NUM_RECORDS
    print(
        f"{answered} records, {good} predictions, {dead} dead letters, {at_start / 1e6:.0f} MB at the start, "
        f"{peak / 1e6:.0f} MB at most"
    )
