"""What cannot be recovered stops its partition, and only that one, until the operator's policy says otherwise."""

import asyncio
import json

import pytest
from replicas import EPOCH_S, Replica, SharedDisk, expected_output, new_broker, published, tick
from virtual_time import run_virtually

from usp_daemon.service import Outcome, RecoveryPolicy
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

    def start(self, **policy):
        self.replica.policy = RecoveryPolicy(**policy)
        self.replica.start()

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
        expected = await expected_output(self.broker, "ticks", partition.partition, epochs=self.disk.epochs)
        return published(self.broker, self.replica.kafka, partition.partition) == expected


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


def test_states_that_the_program_cannot_take_stop_their_partition_and_say_why():
    async def story():
        world = World()
        await world.interrupted_with_replay()
        del world.disk.files[SECOND]  # so that the second one does not stop as well
        world.replica.layout = "2"
        world.start(on_state_missing="reset-state")
        world.produce(5)
        reason = await world.failure()
        assert "the states have layout 1, this program 2" in reason
        assert "recovery.on_state_incompatible" in reason
        assert world.sequence(FIRST) == list(range(1, 21))

    run_virtually(story())


def test_symbols_learn_anew_where_the_policy_says_so():
    async def story():
        world = World()
        await world.interrupted_with_replay()
        world.replica.layout = "2"
        world.start(on_state_incompatible="reset-state")
        world.produce(5)
        await world.answered()
        assert world.sequence(FIRST) == world.sequence(SECOND) == [*range(1, 21), *range(1, 6)]

    run_virtually(story())


@pytest.mark.parametrize("change", [{"orchestration.cusum_k": 0.9}, {"kernels.log_sig_depth": 5}])
def test_an_edit_between_a_crash_and_the_next_start_begins_with_the_first_record_not_answered(change):
    async def story():
        world = World()
        await world.interrupted_with_replay()
        world.replica.settings = world.replica.settings | change
        world.start()
        world.produce(5)
        await world.answered()
        note = (await world.broker.committed_with_note("g", FIRST)).note
        assert json.loads(note) == {"epochs": [[1, 0], [2, 20]]}
        assert await world.is_that_of_one_quiet_run(FIRST)
        assert await world.is_that_of_one_quiet_run(SECOND)
        assert await world.stopped() is Outcome.DRAINED

    run_virtually(story())


def test_a_file_that_was_superseded_does_not_bring_the_former_settings_back():
    async def story():
        world = World()
        world.start()
        world.produce(5)
        await world.answered()
        await world.replica.propose(**{"orchestration.cusum_k": 0.9})
        await world.stopped()
        world.replica.settings = world.replica.settings | {"orchestration.cusum_k": 0.5}
        world.start()
        world.produce(5)
        await world.answered()
        assert world.replica.epochs.current.number == 2
        assert await world.is_that_of_one_quiet_run(FIRST)

    run_virtually(story())


def test_a_log_of_epochs_that_was_lost_stops_what_was_answered_under_them():
    async def story():
        world = World()
        world.start()
        world.produce(5)
        await world.answered()
        await world.replica.propose(**{"orchestration.cusum_k": 0.9})
        async with asyncio.timeout(30.0):
            while world.replica.epochs.current.number == 1:
                await asyncio.sleep(0.1)
        world.produce(5)
        await world.answered()
        await world.stopped()
        world.disk.epochs.clear()
        world.start()
        async with asyncio.timeout(30.0):
            while [owner.state for owner in world.replica.daemon.partitions.values()] != [PartitionState.FAILED] * 2:
                await asyncio.sleep(0.1)
        assert all("bring the log back" in owner.reason for owner in world.replica.daemon.partitions.values())

    run_virtually(story())


def test_a_replay_on_another_program_is_refused_where_exactness_is_required():
    async def story():
        world = World()
        await world.interrupted_with_replay()
        del world.disk.files[SECOND]
        world.replica.program_hash = "another"
        world.start(require_exact=True, on_state_missing="reset-state")
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
        world.replica.program_hash = "another"
        world.start(require_exact=after_an_orderly_stop)
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
