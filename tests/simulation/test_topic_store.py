"""Replicas without a disk: snapshots in a topic are all that a partition is handed over with."""

import asyncio
import contextlib

import pytest
from replicas import FIRST_SETTINGS, ChainPredictor, expected_output, hash_of, make_epoch, new_broker, tick

from group_worlds import KafkaWorld, until
from usp_daemon.service import Daemon, DaemonOptions, EpochBook, Observer, Outcome, RecoveryPolicy, StopRequest
from usp_daemon.transport.kafka import TopicEpochLog, TopicSnapshotStore
from usp_daemon.wire import TickDecoder

pytestmark = [pytest.mark.kafka, pytest.mark.slow]

PARTITIONS = (0, 1)


class Replica:
    """A daemon on the real broker, with nothing of its own but what it is given."""

    def __init__(self, world, name):
        self.world = world
        self.stop_request = StopRequest()
        kafka = world.kafka(client_id=name)
        self.transport = world.make(kafka, "exactly_once")
        self.store = TopicSnapshotStore(kafka, f"{kafka.group}.snapshots", keep=2, instance=name)
        self.epochs = EpochBook(
            TopicEpochLog(kafka, f"{kafka.group}.snapshots", instance=name), make_epoch, instance=name
        )
        self.daemon = Daemon(
            transport=self.transport,
            predictor=ChainPredictor(),
            store=self.store,
            decoder=TickDecoder(),
            epochs=self.epochs,
            key_fn=lambda *key: key,
            policy=RecoveryPolicy(),
            options=DaemonOptions(
                group=kafka.group,
                commit_interval_s=0.05,
                commit_max_records=50,
                max_batch=20,
                max_queued_records=200,
                snapshot_interval_s=1.0,
                shutdown_timeout_s=40.0,
                handover_timeout_s=15.0,
                stall_timeout_s=60.0,
                retry_backoff_s=0.05,
            ),
            observer=Observer(),
        )
        self.task = None

    async def start(self):
        await self.transport.prepare()
        await self.epochs.open(FIRST_SETTINGS, hash_of(FIRST_SETTINGS), hash_of(FIRST_SETTINGS))
        self.task = asyncio.create_task(self.daemon.run(self.stop_request))

    async def stop(self):
        self.stop_request.stop()
        outcome = await self.task
        await self.epochs.close()
        await self.transport.close()
        return outcome

    async def kill(self):
        """As far as a task can be: nothing is drained, and no snapshot is taken."""
        self.task.cancel()
        with contextlib.suppress(asyncio.CancelledError, BaseExceptionGroup):
            await self.task
        await self.epochs.close()
        await self.transport.close()


@pytest.fixture
async def world(kafka_bootstrap_servers):
    async with KafkaWorld(kafka_bootstrap_servers) as world:
        world.kafka_options |= dict(num_partitions=len(PARTITIONS))
        yield world


class Feed:
    """The same ticks to the broker and to one in memory, whose answer by one quiet run is what is expected."""

    def __init__(self, world):
        self.world = world
        self.memory = new_broker(len(PARTITIONS))
        self.number = 0

    async def produce(self, count):
        for partition in PARTITIONS:
            values = []
            for number in range(self.number, self.number + count):
                symbol = f"s{partition}.{number % 5}"
                values.append(tick(symbol, (1_700_000_000_000 + number) * 1_000_000, number % 997))
            for i, value in enumerate(values):
                self.memory.produce("ticks", partition, b"k", value, 1_000 + i)
            await self.world.produce(partition, values)
        self.number += count

    async def answered(self):
        async def are_all():
            found = [len(await self.world.predictions(partition)) for partition in PARTITIONS]
            return found == [self.number] * len(PARTITIONS)

        await until(are_all)

    async def check(self):
        for partition in PARTITIONS:
            expected, _, _ = await expected_output(self.memory, "ticks", partition)
            assert await self.world.predictions(partition) == expected


async def test_a_partition_is_handed_over_and_back_without_a_disk(world):
    feed, first = Feed(world), Replica(world, "first")
    await first.start()
    await feed.produce(120)
    await feed.answered()
    assert await first.stop() is Outcome.DRAINED
    for partition in PARTITIONS:  # only the snapshot knows now what these were
        await world.delete_before(partition, 120)

    second = Replica(world, "second")
    await second.start()
    await feed.produce(90)
    await feed.answered()
    await second.kill()

    third = Replica(world, "third")
    await third.start()
    await feed.produce(60)
    await feed.answered()
    # One more member of the group: both of them work on.
    fourth = Replica(world, "fourth")
    await fourth.start()
    await until(lambda: len(fourth.daemon.partitions) == 1 and not fourth.daemon.unready)
    await feed.produce(60)
    await feed.answered()
    await feed.check()
    assert await third.stop() is Outcome.DRAINED
    await until(lambda: len(fourth.daemon.partitions) == 2 and not fourth.daemon.unready)
    await feed.produce(30)
    await feed.answered()
    assert await fourth.stop() is Outcome.DRAINED
    await feed.check()
