"""Settings change under load, and the daemon is killed meanwhile: every answer is that of the epoch it was given under.

What is compared with is no second daemon: the input is stepped again here, in one thread, under the settings whose hash
each answer carries.
"""

import asyncio
import json
import random
import time

import numpy as np
import pytest
from service_process import (
    FULL,
    NUM_PARTITIONS,
    create_topics,
    outputs,
    produce,
    read_committed,
    seeded_ticks,
    wait_answered,
)

from usp_daemon.compute import EnginePool, StateKey, choose_device, enable_compilation_cache, predictor_config
from usp_daemon.config import load_settings
from usp_daemon.service._results import encode_step
from usp_daemon.transport import tick_format_of
from usp_daemon.wire import RawBatch, ResultEncoder, TickDecoder

pytestmark = [pytest.mark.kafka, pytest.mark.slow]

NUM_EDITS = 12 if FULL else 4
PER_SECOND = 400
RELOAD_TIMEOUT_S = 300.0  # structures are compiled


class Edited:
    """A replica whose settings are a file, and what was ever written into it, by hash."""

    def __init__(self, replica):
        self.replica = replica
        self.path = replica.directory / "config" / "config.toml"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.versions = {}

    def write(self, *, depth=3, **orchestration):
        lines = [f"[kernels]\nlog_sig_depth = {depth}\n[orchestration]"]
        lines += [f"{name} = {value}" for name, value in orchestration.items()]
        temporary = self.path.with_suffix(".new")
        temporary.write_text("\n".join(lines) + "\n")
        temporary.replace(self.path)
        settings = load_settings(self.path, environ={})
        self.versions[settings.predictor_hash()] = settings
        return settings.predictor_hash()

    async def in_force(self, config_hash):
        """Until records are answered under these settings; returns how long it took to put them in force."""
        began, took_s = time.monotonic(), None
        while time.monotonic() - began < RELOAD_TIMEOUT_S:
            answer = await asyncio.to_thread(self.replica.http, "/metrics")
            if answer is not None and f'predictor_hash="{config_hash}"' in answer[1].decode():
                answered = await self.replica.metric("usp_predictions_published_total")
                if took_s is None:
                    took_s, before = time.monotonic() - began, answered
                if answered >= before + 100:
                    return took_s
            await asyncio.sleep(0.02)
        raise AssertionError(f"not in force: {config_hash}\n{self.replica.tail()}")


async def test_edits_under_load_and_kills_among_them(kafka_bootstrap_servers, topic_name, make_replica):
    servers, prefix, rng = kafka_bootstrap_servers, topic_name("reload"), random.Random(3)
    topic = f"{prefix}.ticks"
    await create_topics(servers, prefix, ("edited",))
    replica = make_replica(servers, group="edited", prefix=prefix, USP_IO__SNAPSHOT_INTERVAL_S=1.0)
    edited = Edited(replica)
    edited.write(cusum_k=0.5)
    replica.start()
    await replica.wait_ready(holding=NUM_PARTITIONS)
    records = list(seeded_ticks(5, 200_000))
    ended = asyncio.Event()
    feeding = asyncio.create_task(feed(servers, topic, records, ended))
    times = []
    for number in range(NUM_EDITS):
        await asyncio.sleep(rng.uniform(0.5, 1.5))
        depth = 2 if FULL and number % 6 >= 4 else 3
        config_hash = edited.write(
            depth=depth, cusum_k=round(rng.uniform(0.2, 0.9), 4), volatility_alpha=0.05 + 0.01 * number
        )
        if number % 2:
            times.append(await edited.in_force(config_hash))
        else:  # killed while it takes effect, or just after
            await asyncio.sleep(rng.uniform(0.0, 0.5))
            replica.kill()
            replica.start()
            await replica.wait_ready(holding=NUM_PARTITIONS)
            await edited.in_force(config_hash)
    edited.path.write_text("[orchestration]\ncusum_k = 17\n")  # out of range: refused, nothing changes
    await asyncio.sleep(2.0)
    assert b"usp_config_last_reload_success 0.0" in replica.http("/metrics")[1]
    ended.set()
    num_records = await feeding
    await wait_answered(servers, replica)
    assert await replica.stop() == 0, replica.tail()
    num_epochs = await assert_answered_under_their_epochs(servers, replica, edited.versions)
    assert num_epochs >= NUM_EDITS
    events = replica.events("epoch_adopted")
    assert events and not replica.events("library_log_error")
    print(f"{NUM_EDITS} edits, {NUM_EDITS // 2} kills, {num_records} records, 0 differences; in force after {times} s")


async def feed(servers, topic, records, ended):
    """At an even pace until told to stop; returns how many were sent."""
    sent = 0
    while not ended.is_set() and sent < len(records):
        await produce(servers, topic, records[sent : sent + PER_SECOND], per_second=PER_SECOND)
        sent += PER_SECOND
    return sent


async def assert_answered_under_their_epochs(servers, replica, versions):
    """Steps the input again, partition by partition; returns the number of epochs that answered something."""
    topic = replica.environment["USP_KAFKA__INPUT_TOPIC"]
    found = await outputs(servers, replica)
    found_input = await read_with_offsets(servers, topic)
    settings = next(iter(versions.values()))
    choice = choose_device(precision="float64")
    folder = enable_compilation_cache(choice, None)
    engine = EnginePool(predictor_config(settings), choice, folder=folder)
    parameters = {config_hash: predictor_config(version) for config_hash, version in versions.items()}
    decoder = TickDecoder(tick_format_of(settings))
    used = set()
    for partition, records in found_input.items():
        under = epochs_by_offset(found["PREDICTIONS"][partition])
        expected = {"PREDICTIONS": [], "ALARMS": [], "DEAD_LETTERS": []}
        for config_hash, part in in_runs(records, under):
            used.add(config_hash)
            raw = RawBatch(
                topic=topic, partition=partition, source=topic, offsets=[r[0] for r in part],
                values=[r[2] for r in part], keys=[r[1] for r in part], headers=[() for _ in part],
                record_timestamps_ns=[r[3] * 1_000_000 for r in part],
            )  # fmt: skip
            batch = decoder.decode(raw)
            result = None
            if len(batch):
                keys = [StateKey(topic, partition, symbol) for symbol in batch.symbols]
                times = batch.timestamps_ns, batch.record_timestamps_ns
                result = engine.step(keys, batch.values, *times, parameters=parameters[config_hash])
            (answer,) = encode_step([batch], result, ResultEncoder(config_hash=config_hash))
            expected["PREDICTIONS"] += answer.output.predictions.values
            expected["ALARMS"] += answer.output.alarms.values
            expected["DEAD_LETTERS"] += answer.output.dead_letters.values
        for name, values in expected.items():
            answered = [value for _, value, _, _ in found[name][partition]]
            differences = [i for i, pair in enumerate(zip(answered, values, strict=False)) if pair[0] != pair[1]]
            assert len(answered) == len(values), f"{name}/{partition}: {len(answered)} answers for {len(values)}"
            assert not differences, f"{name}/{partition} differs first at {differences[0]}: {answered[differences[0]]}"
    return len(used)


def epochs_by_offset(predictions):
    """(offset of the input, hash of the settings) of every prediction of a partition, in order."""
    return [(source_offset(headers), json.loads(value)["config_hash"]) for _, value, _, headers in predictions]


def source_offset(headers):
    return int(dict(headers)["usp-source"].rpartition(b"/")[2])


def in_runs(records, under):
    """Runs of records that were answered under the same settings; a dead letter goes with the prediction before it."""
    offsets = np.array([offset for offset, _ in under])
    runs, first = [], 0
    hashes = []
    for record in records:
        at = int(np.searchsorted(offsets, record[0], side="right")) - 1
        hashes.append(under[max(at, 0)][1])
    for i in range(1, len(records) + 1):
        if i == len(records) or hashes[i] != hashes[first] or i - first == 512:
            runs.append((hashes[first], records[first:i]))
            first = i
    return runs


async def read_with_offsets(servers, topic):
    found = await read_committed(servers, topic)
    # Input is written without transactions, so offsets have no gaps.
    return {
        partition: [(offset, key, value, time_ms) for offset, (key, value, time_ms, _) in enumerate(records)]
        for partition, records in found.items()
    }
