"""Liveness and readiness as facts, over a clock that the test moves."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest

from usp_daemon.telemetry import Health, PartitionState, beat_event_loop
from usp_daemon.wire import TopicPartition

Clock = Any  # the fixture of conftest.py
TICKS = TopicPartition("ticks", 0)
STALL_S = 120.0


@pytest.fixture
def health(clock: Clock) -> Health:
    return Health(stall_timeout_s=STALL_S, loop_timeout_s=5.0, worker_timeout_s=60.0, clock_fn=clock)


@pytest.fixture
def later(health: Health, clock: Clock) -> Callable[[float], None]:
    """Moves the clock; the event loop goes on turning."""

    def move(seconds: float) -> None:
        clock.now += seconds
        health.beat_loop()

    return move


def running(health: Health, *, is_waiting: bool = True) -> None:
    health.set_ready()
    health.record_state(TICKS, PartitionState.RUNNING)
    health.record_waiting(TICKS, is_waiting)


def test_a_service_that_starts_is_alive_and_not_ready(health: Health) -> None:
    assert health.livez() == (True, ())
    assert health.readyz() == (False, ("the service is starting",))


def test_a_spare_without_partitions_is_ready(health: Health) -> None:
    health.set_ready()
    assert health.readyz() == (True, ())


def test_a_service_that_stops_is_alive_and_not_ready(health: Health) -> None:
    running(health)
    health.set_not_ready("the service is stopping")
    assert health.livez().ok
    assert health.readyz() == (False, ("the service is stopping",))


def test_loop_that_hangs_is_not_alive(health: Health, clock: Clock) -> None:
    clock.now += 5.0
    assert health.livez().ok
    clock.now += 0.5
    assert health.livez() == (False, ("the event loop has not turned for 5.5 s",))
    assert not health.readyz().ok
    health.beat_loop()
    assert health.livez().ok


def test_worker_that_hangs_is_not_alive(health: Health, later: Callable[[float], None]) -> None:
    later(1000.0)  # no beat yet: the worker is being started
    assert health.livez().ok
    health.beat_worker()
    later(60.0)
    assert health.livez().ok
    later(1.0)
    assert health.livez() == (False, ("the worker has not answered for 61.0 s, 60 s were allowed",))


def test_worker_may_ask_for_time_to_compile(health: Health, later: Callable[[float], None]) -> None:
    health.beat_worker(allowance_s=600.0)
    later(599.0)
    assert health.livez().ok
    health.beat_worker()
    later(61.0)
    assert not health.livez().ok


def test_worker_that_was_ended_owes_no_beat(health: Health, later: Callable[[float], None]) -> None:
    health.beat_worker()
    health.worker_stopped()
    later(1000.0)
    assert health.livez().ok


def test_input_without_progress_is_a_stall(health: Health, later: Callable[[float], None]) -> None:
    running(health)
    later(STALL_S)
    assert health.livez().ok
    later(1.0)
    assert health.stalled() == {TICKS: 121.0}
    assert health.livez() == (False, ("partition ticks/0 has input and made no progress for 121.0 s",))


def test_progress_puts_the_stall_off(health: Health, later: Callable[[float], None]) -> None:
    running(health)
    for _ in range(10):
        later(STALL_S - 1.0)
        health.record_progress(TICKS)
        health.record_waiting(TICKS, True)
        assert health.livez().ok


def test_no_input_is_no_stall(health: Health, later: Callable[[float], None]) -> None:
    running(health, is_waiting=False)
    later(100 * STALL_S)
    assert health.livez().ok
    health.record_waiting(TICKS, True)  # the first input after a long silence has the whole time
    later(STALL_S)
    assert health.livez().ok
    later(1.0)
    assert not health.livez().ok


def test_waiting_counts_from_its_beginning(health: Health, later: Callable[[float], None]) -> None:
    running(health)
    later(STALL_S / 2)
    health.record_waiting(TICKS, True)
    later(STALL_S / 2 + 1.0)
    assert not health.livez().ok


def test_broker_that_is_away_takes_readiness_but_not_life(health: Health, later: Callable[[float], None]) -> None:
    running(health)
    later(STALL_S - 1.0)
    health.broker_away("connection refused")
    later(100 * STALL_S)
    assert health.livez() == (True, ())
    assert health.readyz() == (False, ("the broker is away: connection refused",))
    health.broker_back()
    later(STALL_S)
    assert health.livez().ok
    health.broker_back()  # said again: no new delay
    later(1.0)
    assert not health.livez().ok


@pytest.mark.parametrize("state", [PartitionState.RESTORING, PartitionState.REPLAYING])
def test_recovery_must_move_without_new_input(
    health: Health, later: Callable[[float], None], state: PartitionState
) -> None:
    health.record_state(TICKS, state)
    later(STALL_S)
    health.record_progress(TICKS)
    later(STALL_S)
    assert health.livez().ok
    later(1.0)
    assert not health.livez().ok


@pytest.mark.parametrize(
    "state", [PartitionState.ASSIGNED, PartitionState.REVOKING, PartitionState.LOST, PartitionState.FAILED]
)
def test_a_restart_would_not_help_a_partition_that_does_not_work(
    health: Health, later: Callable[[float], None], state: PartitionState
) -> None:
    running(health)
    health.record_state(TICKS, state)
    later(100 * STALL_S)
    assert health.livez().ok
    assert health.readyz() == (False, (f"partition ticks/0 is {state.value}",))


def test_every_state_but_running_takes_readiness(health: Health) -> None:
    health.set_ready()
    for state in PartitionState:
        health.record_state(TICKS, state)
        assert health.readyz().ok == (state is PartitionState.RUNNING)


def test_what_is_given_up_does_not_count(health: Health, later: Callable[[float], None]) -> None:
    running(health)
    later(STALL_S + 1.0)
    health.record_given_up(TICKS)
    health.record_given_up(TICKS)
    health.record_progress(TICKS)
    health.record_waiting(TICKS, True)
    assert health.readyz() == (True, ())
    assert health.facts()["partitions"] == {}


def test_repeating_a_state_is_no_progress(health: Health, later: Callable[[float], None]) -> None:
    running(health)
    later(STALL_S + 1.0)
    health.record_state(TICKS, PartitionState.RUNNING)
    assert not health.livez().ok


def test_every_reason_is_named(health: Health, clock: Clock) -> None:
    running(health)
    health.beat_worker()
    clock.now += STALL_S + 1.0
    assert len(health.livez().reasons) == 3


def test_facts_are_plain_data(health: Health, later: Callable[[float], None]) -> None:
    running(health)
    health.beat_worker()
    later(3.0)
    facts = json.loads(json.dumps(health.facts()))
    assert facts["partitions"] == {"ticks/0": {"state": "RUNNING", "progress_age_s": 3.0, "waiting_s": 3.0}}
    assert facts["worker_heartbeat_age_s"] == 3.0
    assert facts["loop_heartbeat_age_s"] == 0.0


async def test_heartbeat_reports_how_late_the_loop_is(health: Health, clock: Clock) -> None:
    class EnoughError(Exception):
        pass

    lags: list[float] = []

    def on_lag(lag_s: float) -> None:
        lags.append(lag_s)
        if len(lags) == 3:
            raise EnoughError

    times = iter([0.0, 0.0, 1.0, 1.25, 2.0, 1.0])  # asked and came, three times over
    clock.now += 6.0
    assert not health.livez().ok
    with pytest.raises(EnoughError):
        await beat_event_loop(health, on_lag, interval_s=0.0, clock_fn=lambda: next(times))
    assert lags == [0.0, 0.25, 0.0]
    assert health.livez().ok


async def test_heartbeat_ends_when_cancelled(health: Health) -> None:
    task = asyncio.create_task(beat_event_loop(health, lambda _: None))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
