"""Replicas of the daemon on one in-memory broker, which can be killed, frozen, cut off and stopped at any moment."""

import asyncio
import dataclasses
import json
import random

import numpy as np
from virtual_time import InlineExecutor

from fake_predictor import FakePredictor
from usp_daemon.compute import StateFormatError
from usp_daemon.config import Kafka
from usp_daemon.persistence import (
    AbstractSnapshotStore,
    Epoch,
    MemoryEpochLog,
    PartitionLockedError,
    SnapshotInfo,
    SnapshotWriteError,
    decode_snapshot,
    encode_snapshot,
)
from usp_daemon.service import (
    Daemon,
    DaemonOptions,
    EpochBook,
    Observer,
    ProgramEpoch,
    RecoveryPolicy,
    StopRequest,
    Switches,
)
from usp_daemon.service._results import encode_step
from usp_daemon.transport import AbstractFaults, MemoryBroker, MemoryTransport
from usp_daemon.wire import RawBatch, ResultEncoder, TickDecoder, TopicPartition

EPOCH_S = 1_700_000_000.0
FIRST_SETTINGS = {"orchestration.cusum_k": 0.5, "kernels.log_sig_depth": 3}
MODULUS = 1_000_003


class Killed(BaseException):
    """The process died here."""


def hash_of(settings):
    """What stands in the records that are answered under ``settings``."""
    return json.dumps(settings, sort_keys=True)


class ChainPredictor(FakePredictor):
    """Every answer depends on every tick of the symbol so far, so that one lost or doubled tick shows for ever.

    It depends also on the parameters that each tick was stepped under, and on where the structure changed.
    """

    def __init__(self, *, layout="1", **behaviour):
        super().__init__(**behaviour)
        self.layout = layout
        self.structure = {}

    def migrate(self, partition, parameters):
        depth = parameters["kernels.log_sig_depth"]
        if self.structure.setdefault(partition, depth) != depth:
            self.structure[partition] = depth
            for key, (count, link) in self.seen.items():
                if key[:2] == partition:
                    self.seen[key] = (count, float((link * 7 + depth) % MODULUS))

    async def step(self, keys, values, timestamps_ns, record_timestamps_ns, parameters=None):
        parameters = FIRST_SETTINGS if parameters is None else parameters
        for partition in {key[:2] for key in keys}:
            self.migrate(partition, parameters)
        salt = int(1e4 * parameters["orchestration.cusum_k"])
        before = {key: self.seen.get(key, (0, 0.0)) for key in set(keys)}
        result = await super().step(keys, values, timestamps_ns, record_timestamps_ns)
        chain = {key: count_and_chain for key, count_and_chain in before.items()}
        for row, (key, value) in enumerate(zip(keys, values, strict=True)):
            if not result.admitted[row]:
                continue
            count, link = chain[key]
            number = int(value) if np.isfinite(value) else 17
            link = float((link * 31 + number + salt + (int(timestamps_ns[row]) % 97)) % MODULUS)
            chain[key] = (count + 1, link)
            for name in ("predicted_next", "lower_80", "upper_80", "lower_95", "upper_95"):
                result.columns[name][row] = link
            result.columns["sequence"][row] = count + 1
            result.columns["alarm_kind"][row] = int(link) % 7 == 0
        for key, found in chain.items():
            if key in self.seen:
                self.seen[key] = found
        return result

    async def export_states(self, topic, partition, parameters=None):
        if parameters is not None:
            self.migrate((topic, partition), parameters)
        own = {key[2]: state for key, state in self.seen.items() if key[:2] == (topic, partition)}
        symbols = tuple(own)
        return _States(
            symbols,
            {
                "count": np.array([own[s][0] for s in symbols], np.int64),
                "chain": np.array([own[s][1] for s in symbols], np.float64),
            },
        )

    async def import_states(self, topic, partition, states, parameters=None):
        assert not any(key[:2] == (topic, partition) for key in self.seen), "import into a partition that holds states"
        if states.symbols and self.layout != "1":
            raise StateFormatError(f"the states have layout 1, this program {self.layout}")
        for symbol, count, link in zip(states.symbols, states.arrays["count"], states.arrays["chain"], strict=True):
            self.seen[topic, partition, symbol] = (int(count), float(link))
        self.structure[topic, partition] = (parameters or FIRST_SETTINGS)["kernels.log_sig_depth"]

    async def limit_partitions(self, num_partitions):
        assert num_partitions > 0

    async def release(self, topic, partition):
        gone = [key for key in self.seen if key[:2] == (topic, partition)]
        for key in gone:
            del self.seen[key]
        self.structure.pop((topic, partition), None)
        return len(gone)


@dataclasses.dataclass
class _States:
    symbols: tuple
    arrays: dict


class SharedDisk:
    """What survives a crash: encoded snapshots, who holds which lock, and the log of epochs."""

    def __init__(self):
        self.files = {}
        self.locks = {}
        self.epochs = {}


class SharedEpochLog(MemoryEpochLog):
    """The log of epochs on a :class:`SharedDisk`, for one replica, which reaches it only while it lives."""

    def __init__(self, disk, replica, rng):
        super().__init__(disk.epochs)
        self.replica, self.rng = replica, rng

    async def read(self):
        await self._reach()
        return await super().read()

    async def append(self, epoch):
        await self._reach()
        appended = await super().append(epoch)
        if appended:
            self.replica.crash_fn("epoch.appended")
        return appended

    async def _reach(self):
        await asyncio.sleep(self.rng.random() * 0.05)
        if not self.replica.alive:
            await asyncio.get_running_loop().create_future()  # the dead wait for ever


def first_epoch():
    """What a replica without an edit proposes."""
    return Epoch(
        number=1, settings=FIRST_SETTINGS, config_hash=hash_of(FIRST_SETTINGS), base_hash=hash_of(FIRST_SETTINGS),
        created_ns=0, proposed_by="", reason="start",
    )  # fmt: skip


async def make_epoch(epoch, delay_s=0.0, program_hash="p"):
    """What the simulated predictor needs of an epoch."""
    await asyncio.sleep(delay_s)
    return ProgramEpoch(
        number=epoch.number,
        settings=epoch.settings,
        config_hash=epoch.config_hash,
        parameters=dict(epoch.settings),
        identity={"program_hash": program_hash},
        encoder=ResultEncoder(config_hash=epoch.config_hash),
    )


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
        self.settings = FIRST_SETTINGS
        self.program_hash = "p"
        self.policy = RecoveryPolicy()
        self.layout = "1"

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
        self.epochs = EpochBook(
            SharedEpochLog(self.disk, self, self.rng),
            lambda epoch: make_epoch(epoch, self.rng.random() * 0.5, self.program_hash),
            instance=self.name,
        )
        self.daemon = Daemon(
            transport=self.transport,
            predictor=ChainPredictor(delay_s=0.003, layout=self.layout),
            store=MemoryStore(self.disk, self, self.rng, self.write_failure),
            decoder=TickDecoder(),
            epochs=self.epochs,
            key_fn=lambda *key: key,
            policy=self.policy,
            options=self.options,
            observer=Observer(),
            wall_clock=lambda: EPOCH_S + loop.time(),
            crash_fn=self.crash_fn,
            executor=InlineExecutor(),
        )
        self.task = asyncio.create_task(self._run(self.daemon, self.stop_request), name=self.name)

    async def _run(self, daemon, stop):
        try:
            await self.epochs.open(self.settings, hash_of(self.settings), hash_of(self.settings))
            self.outcomes.append(await daemon.run(stop))
        except (Killed, asyncio.CancelledError):
            self.outcomes.append("killed")
        except BaseExceptionGroup as group:
            unexpected = group.split((Killed, asyncio.CancelledError))[1]
            if unexpected is not None and self.alive:
                self.deaths.append(unexpected)
            self.outcomes.append("killed")
        finally:
            self.alive = False
            await self.epochs.close()

    async def propose(self, **changes):
        """An edit of this replica's configuration."""
        self.settings = self.settings | changes
        await self.epochs.propose(self.settings, hash_of(self.settings), hash_of(self.settings), reason="edit")

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


async def expected_output(broker, topic, partition, *, epochs=None, step_size=7):
    """What one uninterrupted run answers to a partition: predictions, alarms, dead letters, as bytes.

    ``epochs`` is the log of epochs by number; each begins where the group says that it began. Without it there is one.
    """
    predictor, decoder, switches = ChainPredictor(), TickDecoder(), Switches([(1, 0)])
    if epochs is None:
        epochs = {1: first_epoch()}
    else:
        standing = await broker.committed_with_note("g", TopicPartition(topic, partition))
        switches = Switches.from_note(standing.note)
    made = {number: await make_epoch(epoch) for number, epoch in epochs.items()}
    records = broker.read_committed(topic, partition)
    predictions, alarms, dead = [], [], []
    first = 0
    while first < len(records):
        part = records[first : first + step_size]
        begins = switches.next_after(part[0].offset)
        part = [r for r in part if begins is None or r.offset < begins]
        first += len(part)
        epoch = made[switches.at(part[0].offset)]
        raw = RawBatch(
            topic=topic, partition=partition, source=topic, offsets=[r.offset for r in part],
            values=[r.value for r in part], keys=[r.key for r in part], headers=[r.headers for r in part],
            record_timestamps_ns=[r.timestamp_ms * 1_000_000 for r in part],
        )  # fmt: skip
        batch = decoder.decode(raw)
        keys = [(topic, partition, symbol) for symbol in batch.symbols]
        result = None
        if keys:
            times = batch.timestamps_ns, batch.record_timestamps_ns
            result = await predictor.step(keys, batch.values, *times, epoch.parameters)
        (answer,) = encode_step([batch], result, epoch.encoder)
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
