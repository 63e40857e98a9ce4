"""What cannot be recovered stops its partition, and only that one, until the operator's policy says otherwise."""

import asyncio
import dataclasses
import json

import pytest
from replicas import CONFIG_HASH, EPOCH_S, Replica, SharedDisk, expected_output, new_broker, published, tick
from virtual_time import run_virtually

from usp_daemon.service import Outcome, Program, RecoveryPolicy
from usp_daemon.telemetry import PartitionState
from usp_daemon.wire import TopicPartition

FIRST, SECOND = TopicPartition("ticks", 0), TopicPartition("ticks", 1)


class World:
    """One replica and two partitions, each with a symbol of its own."""

    def __init__(self):
        self.broker, self.disk = new_broker(2), SharedDisk()
        self.replica = Replica("r", self.broker, self.disk, 1)
        self.num_produced = 0

    def produce(self, count):
        for _ in range(count):
            self.num_produced += 1
            stamp_ms = int(EPOCH_S * 1000) + self.num_produced * 10
            for partition in range(2):
                value = tick(f"s{partition}", stamp_ms * 1_000_000, self.num_produced % 7)
                self.broker.produce("ticks", partition, b"k", value, stamp_ms)

    def start(self, *, program=None, **policy):
        self.replica.start()
        recovery = self.replica.daemon._recovery
        recovery._policy = RecoveryPolicy(**policy)
        recovery._program = program or recovery._program

    async def answered(self, *partitions):
        ends = {partition: self.broker.bounds(partition).end for partition in partitions or (FIRST, SECOND)}
        async with asyncio.timeout(60.0):
            while {p: await self.broker.committed("g", p) for p in ends} != ends:
                await asyncio.sleep(0.1)

    async def failure(self):
        """The reason for which the first partition has failed, while the second runs."""
        async with asyncio.timeout(60.0):
            while True:
                owned = self.replica.daemon.partitions
                states = {partition: owner.state for partition, owner in owned.items()}
                if states == {FIRST: PartitionState.FAILED, SECOND: PartitionState.RUNNING}:
                    return owned[FIRST].reason
                await asyncio.sleep(0.1)

    async def running(self):
        async with asyncio.timeout(60.0):
            while [owner.state for owner in self.replica.daemon.partitions.values()] != [PartitionState.RUNNING] * 2:
                await asyncio.sleep(0.1)

    async def interrupted_with_replay(self):
        """Ten ticks below a snapshot, ten more that are answered and in no snapshot, and then kill -9."""
        self.start()
        self.produce(10)
        await self.answered()
        assert await self.stopped() is Outcome.DRAINED
        self.start()
        self.replica.daemon._store.write_failure = 1.0
        self.produce(10)
        await self.answered()
        await self.replica.kill()

    async def stopped(self):
        await self.replica.stop()
        return self.replica.outcomes[-1]

    def sequence(self, partition):
        """How many ticks the model of each prediction had seen."""
        predictions, _, _ = published(self.broker, self.replica.kafka, partition.partition)
        return [json.loads(prediction)["seq"] for prediction in predictions]

    async def is_that_of_one_quiet_run(self, partition):
        expected = await expected_output(self.broker, "ticks", partition.partition)
        return published(self.broker, self.replica.kafka, partition.partition) == expected


def program(**changes):
    usual = Program(
        identity={"program_hash": "p"},
        settings={"orchestration.cusum_k": 0.5},
        config_hash=CONFIG_HASH,
        structural=frozenset(),
        parameters_fn=dict,
    )
    return dataclasses.replace(usual, **changes)


async def missing_state(policy):
    world = World()
    await world.interrupted_with_replay()
    world.disk.files[FIRST].clear()
    world.start(**policy)
    world.produce(5)
    return world


def test_missing_state_stops_its_partition_only():
    async def story():
        world = await missing_state({})
        reason = await world.failure()
        assert "no usable snapshot" in reason
        assert "recovery.on_state_missing" in reason
        await world.answered(SECOND)
        assert world.sequence(FIRST) == list(range(1, 21))  # not one result more
        assert await world.is_that_of_one_quiet_run(SECOND)
        assert any("no usable snapshot" in text for text in world.replica.daemon.unready)

    run_virtually(story())


def test_missing_state_starts_anew_where_the_policy_says_so():
    async def story():
        world = await missing_state({"on_state_missing": "reset-state"})
        await world.answered()
        assert world.sequence(FIRST) == [*range(1, 21), *range(1, 6)]
        assert await world.is_that_of_one_quiet_run(SECOND)
        assert await world.stopped() is Outcome.DRAINED

    run_virtually(story())


@pytest.mark.parametrize(
    ("policy", "after"),
    [("fail", None), ("skip", [*range(16, 21)]), ("reset-state", [*range(1, 6)])],
)
def test_deleted_input(policy, after):
    """Ticks 11 to 20 are answered and in no snapshot, and retention has deleted 11 to 15."""

    async def story():
        world = World()
        await world.interrupted_with_replay()
        world.broker.delete_before("ticks", 0, 15)
        world.start(on_input_missing=policy)
        world.produce(5)
        if after is None:
            reason = await world.failure()
            assert "retention has deleted them" in reason
            assert "recovery.on_input_missing" in reason
            await world.answered(SECOND)
        else:
            await world.answered()
        found = world.sequence(FIRST)
        assert found[:20] == list(range(1, 21))
        # Skipping: ten ticks of the snapshot, 16 to 20 again in silence, then the new ones. Anew: only the new ones.
        assert found[20:] == (after or [])
        assert await world.is_that_of_one_quiet_run(SECOND)

    run_virtually(story())


STRUCTURE = {"structural": frozenset({"kernels.log_sig_depth"}), "settings": {"kernels.log_sig_depth": 5}}


def test_a_structural_change_stops_and_names_what_differs():
    async def story():
        world = World()
        await world.interrupted_with_replay()
        del world.disk.files[SECOND]  # so that the second one does not stop as well
        world.start(program=program(**STRUCTURE), on_state_missing="reset-state")
        world.produce(5)
        reason = await world.failure()
        assert "kernels.log_sig_depth (None then, 5 now)" in reason
        assert "recovery.on_state_incompatible" in reason
        assert world.sequence(FIRST) == list(range(1, 21))

    run_virtually(story())


def test_after_a_structural_change_symbols_learn_anew_where_the_policy_says_so():
    async def story():
        world = World()
        await world.interrupted_with_replay()
        world.start(program=program(**STRUCTURE), on_state_incompatible="reset-state")
        world.produce(5)
        await world.answered()
        assert world.sequence(FIRST) == world.sequence(SECOND) == [*range(1, 21), *range(1, 6)]

    run_virtually(story())


def test_a_replay_on_another_program_is_refused_where_exactness_is_required():
    async def story():
        world = World()
        await world.interrupted_with_replay()
        del world.disk.files[SECOND]
        world.start(
            program=program(identity={"program_hash": "another"}), require_exact=True, on_state_missing="reset-state"
        )
        reason = await world.failure()
        assert "program_hash differ" in reason
        assert "recovery.require_exact" in reason

    run_virtually(story())


@pytest.mark.parametrize("after_an_orderly_stop", [False, True])
def test_another_program_goes_on_without_a_replay_or_without_that_requirement(after_an_orderly_stop):
    async def story():
        world = World()
        await world.interrupted_with_replay()
        if after_an_orderly_stop:
            world.start()
            await world.answered()
            await world.running()
            assert await world.stopped() is Outcome.DRAINED
        world.start(program=program(identity={"program_hash": "another"}), require_exact=after_an_orderly_stop)
        world.produce(5)
        await world.answered()
        assert await world.is_that_of_one_quiet_run(FIRST)
        assert await world.is_that_of_one_quiet_run(SECOND)

    run_virtually(story())


def test_a_group_that_has_lost_its_offsets_does_not_begin_anew_beside_its_snapshots():
    async def story():
        world = World()
        await world.interrupted_with_replay()
        del world.broker._group("g").committed[FIRST]
        world.start()
        reason = await world.failure()
        assert "has no committed offset, but there is a snapshot at offset 10" in reason
        assert world.sequence(FIRST) == list(range(1, 21))

    run_virtually(story())


def test_a_partition_that_is_never_idle_runs_once_its_replay_is_done():
    async def story():
        world = World()
        await world.interrupted_with_replay()
        world.start()
        await world.running()
        daemon, owner = world.replica.daemon, world.replica.daemon.partitions[FIRST]
        owner.num_in_stages += 1  # live records under way, as always under a steady load
        assert owner.stepped_in_engine >= owner.silent_below
        assert daemon._has_caught_up(owner)
        owner.silent_below = owner.stepped_in_engine + 1
        assert not daemon._has_caught_up(owner)
        await world.replica.kill()

    run_virtually(story())
