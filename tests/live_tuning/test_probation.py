"""The shadow in the running service sees every tick of its symbols once, in order, and never holds the service up."""

import asyncio

import numpy as np
import pytest
from tuned_service import KEY, SCORES, Feed, Service, SpreadPredictor

from usp_daemon.live_tuning import SHADOW_TOPIC, Decision, Phase, Taps, Trigger
from usp_daemon.wire import TopicPartition

UNUSED = "orchestration.volatility_alpha"  # nothing that the fake says depends on it


class CountingPredictor(SpreadPredictor):
    """Its forecast depends on how many ticks of the symbol it has seen, so that one lost or doubled one shows."""

    async def step(self, keys, values, timestamps_ns, record_timestamps_ns, parameters=None):
        result = await super().step(keys, values, timestamps_ns, record_timestamps_ns, parameters)
        spread = 2.0 * parameters[KEY] * (1.0 + 0.01 * (result.columns["sequence"] % 11))
        result.columns["quantiles"] = result.columns["predicted_next"][:, None] + spread[:, None] * SCORES
        return result


async def neutral(request, progress_fn):
    """A change that makes no difference."""
    del request, progress_fn
    return Decision(apply={UNUSED: 0.11}, num_trials=1, best_value=0.9)


async def on_probation(tmp_path, predictor, **options):
    service = Service(tmp_path, neutral, drift_ratio=9.0, **options)
    await service.start(predictor)
    await service.run_until(lambda: service.tuning.recorder.num_ticks > 1_000)
    service.tuning.ask(Trigger.OPERATOR)
    await service.run_until(lambda: service.tuning.tuner.phase is Phase.PROBATION)
    return service


def report_of(service):
    probation = service.tuning._probation
    return None if probation is None else probation.report


async def test_equal_parameters_give_equal_scores_tick_by_tick_while_partitions_come_and_go(tmp_path):
    service = await on_probation(tmp_path, CountingPredictor(delay_s=0.001), num_partitions=3, num_symbols=60)
    await service.run_until(lambda: (r := report_of(service)) is not None and r.num_scored > 100)
    assert report_of(service).num_symbols == 6
    assert {key[0] for key in service.predictor.seen} == {"ticks", SHADOW_TOPIC}
    begun = report_of(service).num_scored
    for number in range(3):
        service.daemon._restart(TopicPartition("ticks", number), "a test")
        await service.run_until(lambda: len(service.daemon.partitions) == 3 and not service.daemon.unready)
    await service.run_until(
        lambda: (
            service.tuning.tuner.phase is Phase.IDLE
            or ((r := report_of(service)) is not None and r.num_symbols == 6 and r.num_scored > begun + 200)
        )
    )
    await service.run_until(lambda: service.tuning.tuner.phase is Phase.IDLE)
    kept = service.world.lines()[-1]
    assert kept["event"] == "MUTATION_KEPT"
    report = kept["evidence"]["probation"]
    assert report["test"]["mean_difference"] == 0.0 and report["new"] == report["old"]
    assert report["num_scored"] > 600 and report["num_shed"] == 0
    await service.run_until(lambda: {key[0] for key in service.predictor.seen} == {"ticks"})
    await service.stop()


class SlowShadow(SpreadPredictor):
    """Steps of the shadow do not come back until they are let go."""

    def __init__(self):
        super().__init__()
        self.gate = asyncio.Event()

    async def step(self, keys, values, timestamps_ns, record_timestamps_ns, parameters=None):
        if keys and keys[0][0] == SHADOW_TOPIC:
            await self.gate.wait()
        return await super().step(keys, values, timestamps_ns, record_timestamps_ns, parameters)


async def test_a_shadow_that_falls_behind_is_made_smaller_and_the_service_goes_on(tmp_path):
    service = await on_probation(tmp_path, SlowShadow(), num_symbols=60)
    await service.run_until(lambda: (r := report_of(service)) is not None and r.num_symbols == 6)
    before = service.tuning.recorder.num_ticks
    await service.run_until(lambda: report_of(service).num_shed >= 3)
    assert service.tuning.recorder.num_ticks > before + 10_000  # nobody waited for the shadow
    service.predictor.gate.set()
    await service.run_until(lambda: service.tuning.tuner.phase is Phase.IDLE)
    report = service.world.lines()[-1]["evidence"]["probation"]
    assert report["test"]["mean_difference"] == 0.0
    await service.stop()


async def test_a_restart_in_the_middle_goes_on(tmp_path):
    service = await on_probation(tmp_path, CountingPredictor(), text="")
    await service.run_until(lambda: (r := report_of(service)) is not None and r.num_scored > 20)
    await service.stop()
    assert not any(key[0] == SHADOW_TOPIC for key in service.predictor.seen)
    pairs = service.tuning.tuner._file.read().probation.test["num_pairs"]
    assert pairs > 20  # what was not written in between is written at the end
    await service.start(CountingPredictor())
    await service.run_until(lambda: service.count("MUTATION_KEPT") == 1)
    await service.stop()
    assert service.world.events()[-2:] == ["PROBATION_STARTED", "MUTATION_KEPT"]
    assert service.world.lines()[-1]["evidence"]["probation"]["test"]["mean_difference"] == 0.0


def test_taps_come_and_go():
    class Tap:
        def __init__(self):
            self.told = []

        def stepped(self, step):
            self.told.append(step)

        def removed(self, partition):
            self.told.append(partition)

    first, second = Tap(), Tap()
    taps = Taps([first])
    taps.stepped("a")
    taps.add(second)
    taps.removed("p")
    taps.discard(first)
    taps.stepped("b")
    assert first.told == ["a", "p"] and second.told == ["p", "b"]


async def test_the_recorder_sees_accepted_live_ticks_once(tmp_path):
    from usp_daemon.persistence import read_ticks

    service = Service(tmp_path, neutral, drift_ratio=9.0)
    await service.start()
    await service.run_until(lambda: service.tuning.recorder.num_ticks > 2_000)
    await service.run_until(lambda: True)
    number = service.feed.number
    while service.tuning.recorder.num_ticks < number:
        await asyncio.sleep(0.01)
    await service.stop()
    recorded = read_ticks(tmp_path / "ticks")
    assert sorted(recorded) == sorted(service.feed.values)
    assert sum(map(len, recorded.values())) == number
    # The same walk again, from its seed.
    again = Feed(type("Nobody", (), {"produce": lambda self, *arguments: None})())
    again.burst(number // 20)
    assert {name: ticks.values[-1] for name, ticks in recorded.items()} == pytest.approx(again.values, abs=0)
    assert np.all(np.diff(recorded["s0"].timestamps_ns) > 0)
