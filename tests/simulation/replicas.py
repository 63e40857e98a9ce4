"""Replicas of the daemon on one in-memory broker, which can be killed, frozen, cut off and stopped at any moment."""

import asyncio
import dataclasses
import random

import numpy as np
from virtual_time import InlineExecutor

from fake_predictor import FakePredictor
from usp_daemon.config import Kafka
from usp_daemon.persistence import (
    AbstractSnapshotStore,
    PartitionLockedError,
    SnapshotInfo,
    SnapshotWriteError,
    decode_snapshot,
    encode_snapshot,
)
from usp_daemon.service import Daemon, DaemonOptions, Observer, Program, RecoveryPolicy, StopRequest
from usp_daemon.service._results import encode_step
from usp_daemon.transport import AbstractFaults, MemoryBroker, MemoryTransport
from usp_daemon.wire import RawBatch, ResultEncoder, TickDecoder

EPOCH_S = 1_700_000_000.0
CONFIG_HASH = "c" * 64
MODULUS = 1_000_003


class Killed(BaseException):
    """The process died here."""


class ChainPredictor(FakePredictor):
    """Every answer depends on every tick of the symbol so far, so that one lost or doubled tick shows for ever."""

    async def step(self, keys, values, timestamps_ns, record_timestamps_ns, parameters=None):
        before = {key: self.seen.get(key, (0, 0.0)) for key in set(keys)}
        result = await super().step(keys, values, timestamps_ns, record_timestamps_ns)
        chain = {key: count_and_chain for key, count_and_chain in before.items()}
        for row, (key, value) in enumerate(zip(keys, values, strict=True)):
            if not result.admitted[row]:
                continue
            count, link = chain[key]
            number = int(value) if np.isfinite(value) else 17
            link = float((link * 31 + number + (int(timestamps_ns[row]) % 97)) % MODULUS)
            chain[key] = (count + 1, link)
            for name in ("predicted_next", "lower_80", "upper_80", "lower_95", "upper_95"):
                result.columns[name][row] = link
            result.columns["sequence"][row] = count + 1
            result.columns["alarm_kind"][row] = int(link) % 7 == 0
        for key, found in chain.items():
            if key in self.seen:
                self.seen[key] = found
        return result

    async def export_states(self, topic, partition):
        own = {key[2]: state for key, state in self.seen.items() if key[:2] == (topic, partition)}
        symbols = tuple(own)
        return _States(
            symbols,
            {
                "count": np.array([own[s][0] for s in symbols], np.int64),
                "chain": np.array([own[s][1] for s in symbols], np.float64),
            },
        )

    async def import_states(self, topic, partition, states):
        assert not any(key[:2] == (topic, partition) for key in self.seen), "import into a partition that holds states"
        for symbol, count, link in zip(states.symbols, states.arrays["count"], states.arrays["chain"], strict=True):
            self.seen[topic, partition, symbol] = (int(count), float(link))

    async def limit_partitions(self, num_partitions):
        assert num_partitions > 0

    async def release(self, topic, partition):
        gone = [key for key in self.seen if key[:2] == (topic, partition)]
        for key in gone:
            del self.seen[key]
        return len(gone)


@dataclasses.dataclass
class _States:
    symbols: tuple
    arrays: dict


class SharedDisk:
    """What survives a crash: encoded snapshots, and who holds which lock."""

    def __init__(self):
        self.files = {}
        self.locks = {}


class MemoryStore(AbstractSnapshotStore):
    """A store on a :class:`SharedDisk` for one replica, which reaches nothing any more once the replica is dead."""

    def __init__(self, disk, replica, rng, write_failure=0.0):
        self.disk, self.replica, self.rng, self.write_failure = disk, replica, rng, write_failure

    async def open(self):
        pass

    async def close(self):
        if self.replica.alive:
            for key in [key for key, holder in self.disk.locks.items() if holder is self.replica]:
                del self.disk.locks[key]

    async def acquire(self, topic, partition):
        await self._reach()
        holder = self.disk.locks.get((topic, partition))
        if holder is not None and holder is not self.replica and holder.alive:
            raise PartitionLockedError("held", None)
        self.disk.locks[topic, partition] = self.replica

    async def release(self, topic, partition):
        await self._reach()
        if self.disk.locks.get((topic, partition)) is self.replica:
            del self.disk.locks[topic, partition]

    async def save(self, snapshot):
        await self._reach()
        assert self.disk.locks.get((snapshot.topic, snapshot.partition)) is self.replica
        self.replica.crash_fn("snapshot.before_rename")
        if self.rng.random() < self.write_failure:
            raise SnapshotWriteError("no space left")
        content = encode_snapshot(snapshot)
        key = (snapshot.topic, snapshot.partition)
        files = self.disk.files.setdefault(key, {})
        if snapshot.offset in files:
            old = decode_snapshot(files[snapshot.offset])
            assert old.symbols == snapshot.symbols, "two snapshots at one offset differ"
            for name, array in old.arrays.items():
                assert array.tobytes() == np.asarray(snapshot.arrays[name]).tobytes(), "two states at one offset differ"
        files[snapshot.offset] = content
        for offset in sorted(files)[:-3]:
            del files[offset]
        self.replica.crash_fn("snapshot.after")
        return self._info(key, snapshot.offset, content)

    async def list(self, topic, partition):
        await self._reach()
        files = self.disk.files.get((topic, partition), {})
        return tuple(self._info((topic, partition), offset, files[offset]) for offset in sorted(files, reverse=True))

    async def newest(self, topic, partition, not_above):
        await self._reach()
        files = self.disk.files.get((topic, partition), {})
        offsets = [offset for offset in files if offset <= not_above]
        return decode_snapshot(files[max(offsets)]) if offsets else None

    def _info(self, key, offset, content):
        return SnapshotInfo(
            name=str(offset), topic=key[0], partition=key[1], offset=offset, size_bytes=len(content),
            created_ns=0, locator=str(offset),
        )  # fmt: skip

    async def _reach(self):
        await asyncio.sleep(self.rng.random() * 0.01)
        if not self.replica.alive:
            await asyncio.get_running_loop().create_future()  # the dead wait for ever


class Faults(AbstractFaults):
    """Delays always, errors with probability ``rate``; the dead reach nobody."""

    def __init__(self, replica, rng):
        self.replica, self.rng, self.rate = replica, rng, 0.0

    async def at(self, point, transport, partition):
        if not self.replica.alive:
            raise ConnectionError("dead")
        await asyncio.sleep(self.rng.random() * 0.004)
        self.replica.crash_fn(f"transport.{point}")
        if self.rng.random() < self.rate:
            raise ConnectionError(f"injected at {point}")


class Replica:
    """One process: started, killed, frozen, stopped in order; started again as often as one likes."""

    def __init__(self, name, broker, disk, seed, *, group="g", options=None, **kafka):
        self.name, self.broker, self.disk = name, broker, disk
        self.rng = random.Random(seed)
        self.kafka = Kafka(
            group=group, group_instance_id=name, session_timeout_ms=6_000, heartbeat_interval_ms=1_000,
            rebalance_timeout_ms=8_000, request_timeout_ms=2_000, transaction_timeout_ms=5_000, **kafka,
        )  # fmt: skip
        self.options = options or DaemonOptions(
            group=group, commit_interval_s=0.05, max_batch=16, max_queued_records=32, snapshot_interval_s=1.0,
            shutdown_timeout_s=10.0, handover_timeout_s=5.0, retry_backoff_s=0.1, stall_timeout_s=60.0,
        )  # fmt: skip
        self.alive = False
        self.crash_at = {}
        self.points_passed = set()
        self.outcomes = []
        self.deaths = []  # of other causes than being killed
        self.task = None
        self.transport = None
        self.fault_rate = 0.0
        self.write_failure = 0.0

    def crash_fn(self, point):
        self.points_passed.add(point)
        left = self.crash_at.get(point)
        if left is None or not self.alive:
            return
        if left > 1:
            self.crash_at[point] = left - 1
            return
        del self.crash_at[point]
        self.alive = False
        # The point may lie in a task that nobody watches; a process dies as a whole.
        asyncio.get_running_loop().call_soon(self.task.cancel)
        raise Killed(point)

    def start(self):
        assert self.task is None or self.task.done()
        self.alive = True
        self.stop_request = StopRequest()
        faults = Faults(self, self.rng)
        faults.rate = self.fault_rate
        self.faults = faults
        self.transport = MemoryTransport(self.broker, self.kafka, faults=faults)
        loop = asyncio.get_running_loop()
        self.daemon = Daemon(
            transport=self.transport,
            predictor=ChainPredictor(delay_s=0.003),
            store=MemoryStore(self.disk, self, self.rng, self.write_failure),
            decoder=TickDecoder(),
            encoder=ResultEncoder(config_hash=CONFIG_HASH),
            key_fn=lambda *key: key,
            program=Program(
                identity={"program_hash": "p"},
                settings={"orchestration.cusum_k": 0.5},
                config_hash=CONFIG_HASH,
                structural=frozenset(),
                parameters_fn=dict,
            ),
            policy=RecoveryPolicy(),
            options=self.options,
            observer=Observer(),
            wall_clock=lambda: EPOCH_S + loop.time(),
            crash_fn=self.crash_fn,
            executor=InlineExecutor(),
        )
        self.task = asyncio.create_task(self._run(self.daemon, self.stop_request), name=self.name)

    async def _run(self, daemon, stop):
        try:
            self.outcomes.append(await daemon.run(stop))
        except BaseExceptionGroup as group:
            unexpected = group.split((Killed, asyncio.CancelledError))[1]
            if unexpected is not None and self.alive:
                self.deaths.append(unexpected)
            self.outcomes.append("killed")
        finally:
            self.alive = False

    async def kill(self):
        """SIGKILL: nothing it does from here on reaches anybody."""
        self.alive = False
        if self.transport is not None:
            self.transport.thaw()
        self.task.cancel()
        await asyncio.wait({self.task})

    async def stop(self):
        """SIGTERM."""
        self.stop_request.stop()
        await asyncio.wait({self.task})


def tick(symbol, ts, value):
    return f'{{"symbol":"{symbol}","ts":{ts},"value":{value}}}'.encode()


def seeded_record(rng, partition, number):
    """A record of partition ``partition``: usually a tick, sometimes rubbish."""
    symbol = f"s{partition}.{rng.randrange(6)}"
    stamp_ms = int(EPOCH_S * 1000) + number * 10
    kind = rng.random()
    if kind < 0.03:
        return b"\xff\xfe", stamp_ms
    if kind < 0.05:
        return None, stamp_ms
    if kind < 0.08:
        return tick(symbol, stamp_ms * 1_000_000, "null"), stamp_ms
    return tick(symbol, stamp_ms * 1_000_000, rng.randrange(1000)), stamp_ms


async def expected_output(broker, topic, partition, *, step_size=7):
    """What one uninterrupted run answers to a partition: predictions, alarms, dead letters, as bytes."""
    predictor, decoder, encoder = ChainPredictor(), TickDecoder(), ResultEncoder(config_hash=CONFIG_HASH)
    records = broker.read_committed(topic, partition)
    predictions, alarms, dead = [], [], []
    for first in range(0, len(records), step_size):
        part = records[first : first + step_size]
        raw = RawBatch(
            topic=topic, partition=partition, source=topic, offsets=[r.offset for r in part],
            values=[r.value for r in part], keys=[r.key for r in part], headers=[r.headers for r in part],
            record_timestamps_ns=[r.timestamp_ms * 1_000_000 for r in part],
        )  # fmt: skip
        batch = decoder.decode(raw)
        keys = [(topic, partition, symbol) for symbol in batch.symbols]
        result = None
        if keys:
            result = await predictor.step(keys, batch.values, batch.timestamps_ns, batch.record_timestamps_ns)
        (answer,) = encode_step([batch], result, encoder)
        predictions += answer.output.predictions.values
        alarms += answer.output.alarms.values
        dead += answer.output.dead_letters.values
    return predictions, alarms, dead


def published(broker, kafka, partition):
    """What readers of committed records find."""
    return tuple(
        [record.value for record in broker.read_committed(topic, partition)]
        for topic in (kafka.predictions_topic, kafka.alarms_topic, kafka.dead_letters_topic)
    )


def new_broker(num_partitions, kafka=None):
    kafka = kafka or Kafka()
    broker = MemoryBroker(marker_delay_s=0.01)
    for topic in (kafka.input_topic, kafka.predictions_topic, kafka.alarms_topic, kafka.dead_letters_topic):
        broker.create_topic(topic, num_partitions)
    return broker
