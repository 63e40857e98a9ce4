"""The predictor itself on probation: the shadow lives in the same engine, in a partition of its own."""

import dataclasses
import functools

import numpy as np
import pytest

from usp_daemon.compute import Engine, StateKey, choose_device
from usp_daemon.core import PredictorConfig
from usp_daemon.tuning import SequentialPlan, SequentialTest, Shadow, Verdict, choose_shadow, sample_states

pytestmark = pytest.mark.slow

NUM_SYMBOLS, BEFORE, AFTER, BATCH = 8, 200, 800, 400
NAMES = tuple(f"symbol {number}" for number in range(NUM_SYMBOLS))


@pytest.fixture(scope="module")
def programs():
    choice = choose_device("cpu", "float64")
    return choice, Engine(PredictorConfig(), choice).programs


@functools.cache
def series():
    """Seasons and mean reversion, where there is something to learn, with a few values that the gate refuses."""
    rng = np.random.default_rng(4)
    count = BEFORE + AFTER
    noise = rng.standard_normal((count, NUM_SYMBOLS))
    reverting = np.zeros_like(noise)
    for tick in range(1, count):
        reverting[tick] = 0.8 * reverting[tick - 1] + noise[tick]
    season = 4.0 * np.sin(2.0 * np.pi * np.arange(count) / 24.0)[:, None] + 0.5 * noise
    values = 100.0 + np.where(np.arange(NUM_SYMBOLS) % 2 == 0, reverting, season)
    values[rng.integers(BEFORE, count, 40), rng.integers(0, NUM_SYMBOLS, 40)] = np.nan
    times = 1_700_000_000_000_000_000 + 1_000_000_000 * np.repeat(np.arange(count), NUM_SYMBOLS)
    return values.ravel(), times


async def probation(programs, old_config, new_config):
    """Warm up under the old parameters, switch to the new ones, and compare to the end; the report and the test."""
    choice, compiled = programs
    engine = Engine(old_config, choice, programs=compiled)
    values, times = series()
    keys = [StateKey("ticks", 0, name) for name in NAMES] * (BEFORE + AFTER)
    cut = BEFORE * NUM_SYMBOLS
    engine.step(keys[:cut], values[:cut], times[:cut], times[:cut])

    sample = choose_shadow(NAMES, share=0.5, max_symbols=4)
    engine.import_states("\x00shadow", 0, sample_states(engine.export_states("ticks", 0), sample))
    engine.set_parameters(new_config)

    async def step(keys, values, timestamps_ns, record_timestamps_ns):
        return engine.step(keys, values, timestamps_ns, record_timestamps_ns, parameters=old_config)

    shadow = Shadow(
        {StateKey("ticks", 0, name): StateKey("\x00shadow", 0, name) for name in sample},
        step_fn=step,
        test=SequentialTest(SequentialPlan(num_symbols=len(sample), margin=0.1, min_ticks=320)),
    )
    for first in range(cut, len(keys), BATCH):
        part = slice(first, first + BATCH)
        live = engine.step(keys[part], values[part], times[part], times[part])
        shadow.observe(keys[part], values[part], times[part], times[part], live)
        if (await shadow.advance()).is_final:
            break
    await shadow.advance(flush=True)
    return shadow.report()


async def test_the_same_parameters_differ_by_exactly_nothing(programs):
    report = await probation(programs, PredictorConfig(), PredictorConfig())
    assert report.test.mean_difference == 0.0
    assert report.test.verdict is Verdict.NOT_WORSE
    assert report.new == report.old
    assert report.new.num_rejected > 0


FORGETFUL = {f"kernel_{kernel}_memory_ticks": 10.0 for kernel in "abcd"} | {"anchor_threshold": 0.0}


@pytest.mark.parametrize("change", [{"calibration_rate": 0.9}, FORGETFUL], ids=["calibration", "memory"])
async def test_bad_parameters_are_found(programs, change):
    config = PredictorConfig()
    report = await probation(programs, config, dataclasses.replace(config, **change))
    assert report.test.verdict is Verdict.WORSE
    assert report.new.mean_score > report.old.mean_score


async def test_going_back_from_bad_parameters_is_kept(programs):
    config = PredictorConfig()
    report = await probation(programs, dataclasses.replace(config, calibration_rate=0.9), config)
    assert not report.test.verdict.rolls_back
    assert report.new.mean_score < report.old.mean_score
