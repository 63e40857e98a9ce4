"""Probation against a shadow, with a predictor whose forecasts can be worked out by hand."""

import asyncio
import dataclasses
import itertools
import math
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from usp_daemon.config import SPECS, Settings, Tuning, parse_settings
from usp_daemon.core import QUANTILE_LEVELS
from usp_daemon.tuning import (
    SequentialPlan,
    SequentialTest,
    Shadow,
    Verdict,
    choose_shadow,
    probation_plan,
    sample_states,
)

Z = np.array([NormalDist().inv_cdf(level) for level in QUANTILE_LEVELS])
SYMBOLS = ("a", "b", "c")


@dataclasses.dataclass
class Result:
    admitted: np.ndarray
    columns: dict


@dataclasses.dataclass
class Predictor:
    """Forecasts the last accepted value with a Gaussian of the standard deviation ``spread``."""

    spread: float = 1.0
    refuses: object = staticmethod(lambda value: not math.isfinite(value))
    broken: bool = False
    alarm_every: int = 0
    full: tuple = ()
    last: dict = dataclasses.field(default_factory=dict)
    num_ticks: int = 0

    def step_now(self, keys, values, timestamps_ns, record_timestamps_ns):
        assert len(keys) == len(values) == len(timestamps_ns) == len(record_timestamps_ns)
        accepted, quantiles, alarms = [], [], []
        for key, value in zip(keys, values.tolist(), strict=True):
            self.num_ticks += 1
            accepted.append(not self.refuses(value))
            if accepted[-1]:
                self.last[key] = value
            quantiles.append(self.last.get(key, 0.0) + self.spread * Z)
            alarms.append(int(bool(self.alarm_every and self.num_ticks % self.alarm_every == 0)))
        columns = {
            "quantiles": np.array(quantiles).reshape(len(keys), Z.size) * (math.nan if self.broken else 1.0),
            "accepted": np.array(accepted, bool),
            "alarm_kind": np.array(alarms, np.int32),
        }
        return Result(np.array([key not in self.full for key in keys], bool), columns)

    async def step(self, *arguments):
        return self.step_now(*arguments)


def walk(num_ticks, seed=0, symbols=SYMBOLS):
    """Random walks of unit steps, one symbol after the other at each tick."""
    rng = np.random.default_rng(seed)
    values = np.cumsum(rng.standard_normal((num_ticks, len(symbols))), axis=0).ravel()
    times = 1_000 * np.repeat(np.arange(num_ticks), len(symbols))
    return list(symbols) * num_ticks, values, times, times


def shadow_of(old, plan=None, symbols=SYMBOLS, **options):
    test = SequentialTest(plan or SequentialPlan(num_symbols=len(symbols)))
    return Shadow({symbol: ("shadow", symbol) for symbol in symbols}, step_fn=old.step, test=test, **options)


async def run(shadow, new, ticks, cuts=()):
    """The whole probation; returns the report."""
    keys, values, times, record_times = ticks
    for first, last in itertools.pairwise([0, *cuts, len(keys)]):
        part = keys[first:last], values[first:last], times[first:last], record_times[first:last]
        shadow.observe(*part, new.step_now(*part))
        await shadow.advance()
    await shadow.advance(flush=True)
    return shadow.report()


async def test_the_same_parameters_differ_by_exactly_nothing():
    report = await run(shadow_of(Predictor()), Predictor(), walk(2_000), range(300, 6_000, 300))
    assert report.test.mean_difference == 0.0
    assert report.test.verdict is Verdict.NOT_WORSE
    assert report.new == report.old
    assert (report.num_symbols, report.num_shed) == (3, 0)


async def test_a_worse_spread_is_found_and_a_better_one_kept():
    worse = await run(shadow_of(Predictor(1.0)), Predictor(2.5), walk(2_000), range(300, 6_000, 300))
    assert worse.test.verdict is Verdict.WORSE
    assert worse.new.mean_score > 1.2 * worse.old.mean_score
    assert worse.old.mean_score == pytest.approx(1.0, abs=0.05)  # relative to its own usual score
    better = await run(shadow_of(Predictor(2.5)), Predictor(1.0), walk(2_000), range(300, 6_000, 300))
    assert better.test.verdict is Verdict.BETTER


async def test_differences_against_a_plain_computation():
    plan = SequentialPlan(num_symbols=1, block_ticks=20, min_ticks=1_000, max_ticks=1_000)
    settle = 7
    keys, values, times, record_times = walk(200, symbols=("a",))
    shadow = shadow_of(Predictor(1.0), plan, ("a",), settle_ticks=settle)
    report = await run(shadow, Predictor(1.4), (keys, values, times, record_times), range(17, 200, 17))

    def score(spread, before, value):
        losses = [
            (level - (value < before + spread * z)) * (value - before - spread * z)
            for level, z in zip(QUANTILE_LEVELS, Z.tolist(), strict=True)
        ]
        return 2.0 * sum(losses) / len(losses)

    scale, differences = 0.0, []
    for number, (before, value) in enumerate(itertools.pairwise(values.tolist()), start=1):
        old = score(1.0, before, value)
        if number > settle:
            differences.append((score(1.4, before, value) - old) / scale)
        scale += max(0.02, 1.0 / number) * (old - scale)
    blocks = np.array(differences[: 20 * (len(differences) // 20)]).reshape(-1, 20).mean(axis=1)
    assert report.num_scored == len(differences)
    expected = np.clip(blocks, -plan.clip, plan.clip).mean()
    assert report.test.mean_difference == pytest.approx(expected, rel=1e-12)
    assert expected > 0.0


@settings(max_examples=25)
@given(
    cuts=st.lists(st.integers(0, 600), max_size=12),
    batch_ticks=st.integers(1, 400),
    refused=st.sets(st.integers(0, 599), max_size=20),
)
def test_it_does_not_matter_how_the_ticks_are_cut(cuts, batch_ticks, refused):
    keys, values, times, record_times = walk(200)
    values[list(refused)] = math.nan
    plan = SequentialPlan(num_symbols=3, block_ticks=5)

    def report(cuts, batch_ticks):
        shadow = shadow_of(Predictor(1.0), plan, batch_ticks=batch_ticks)
        return asyncio.run(run(shadow, Predictor(1.2), (keys, values, times, record_times), cuts))

    assert report(sorted(cuts), batch_ticks) == report((), 1)


async def test_who_refuses_everything_is_not_spared():
    """The new side stands still and says so with the forecast that it stands on."""
    new = Predictor(refuses=lambda value: True)
    new.last = dict.fromkeys(SYMBOLS, 0.0)
    report = await run(shadow_of(Predictor()), new, walk(2_000), range(300, 6_000, 300))
    assert report.test.verdict is Verdict.WORSE
    assert report.new.num_accepted == 0
    assert report.old.num_rejected == 0
    assert report.new.num_rejected == report.old.num_accepted > 0


async def test_what_both_refuse_is_no_truth():
    keys, values, times, record_times = walk(400)
    spoilt = values.copy()
    spoilt[300:330] = math.nan
    spoilt[500] = math.inf

    def outlier(value):
        return not abs(value) < 1e6

    spoilt[700] = 1e9
    new, old = Predictor(1.1, refuses=outlier), Predictor(1.0, refuses=outlier)
    report = await run(shadow_of(old, settle_ticks=10), new, (keys, spoilt, times, record_times))
    assert report.new.num_rejected == report.old.num_rejected == 32
    assert report.num_scored == 1_200 - 32 - 3 * 11  # each symbol's first, and ten to settle
    assert abs(report.test.mean_difference) < 0.1


async def test_an_extreme_value_says_little_since_both_forecasts_miss_it():
    """The scores are a million from the usual, their difference within twice the distance of the two forecasts."""
    plan = SequentialPlan(num_symbols=1, block_ticks=1, clip=10.0, min_ticks=20, max_ticks=20)
    keys, values, times, record_times = walk(12, symbols=("a",))
    values[-1] = values[-2] + 1e6
    shadow = shadow_of(Predictor(1.0), plan, ("a",))
    report = await run(shadow, Predictor(1.1), (keys, values, times, record_times))
    assert report.num_scored == 1
    usual = 1e6 / report.old.mean_score
    distance = 0.1 * np.mean(np.abs(Z))  # between the quantiles
    assert 0.0 < abs(report.test.mean_difference) <= 2.0 * distance / usual
    assert report.old.mean_score > 1e6


async def test_forecasts_that_are_not_finite_are_the_worst_there_is():
    broken = await run(shadow_of(Predictor()), Predictor(broken=True), walk(1_000), range(300, 3_000, 300))
    assert broken.test.verdict is Verdict.WORSE
    assert broken.new.num_not_finite > 0
    assert broken.test.mean_difference == pytest.approx(SequentialPlan().clip)
    mended = await run(shadow_of(Predictor(broken=True)), Predictor(), walk(1_000), range(300, 3_000, 300))
    assert not mended.test.verdict.rolls_back
    both = await run(shadow_of(Predictor(broken=True)), Predictor(broken=True), walk(1_000), range(300, 3_000, 300))
    assert (both.num_scored, both.test.verdict) == (0, Verdict.GO_ON)


async def test_a_signal_that_does_not_move_shows_no_difference():
    keys, values, times, record_times = walk(2_000)
    report = await run(shadow_of(Predictor(0.0)), Predictor(0.0), (keys, np.ones_like(values), times, record_times))
    assert report.test.mean_difference == 0.0
    noisy = await run(shadow_of(Predictor(0.0)), Predictor(0.1), (keys, np.ones_like(values), times, record_times))
    assert noisy.test.verdict is Verdict.WORSE


async def test_alarms_are_counted_on_both_sides():
    plan = SequentialPlan(num_symbols=3, min_ticks=9_999, max_ticks=9_999)
    report = await run(shadow_of(Predictor(alarm_every=50), plan), Predictor(alarm_every=10), walk(1_000))
    assert (report.new.alarms_per_1000, report.old.alarms_per_1000) == (100.0, 20.0)


async def test_ticks_of_other_symbols_are_left_alone():
    old = Predictor()
    shadow = shadow_of(old, symbols=("b",))
    new = Predictor()
    ticks = walk(100)
    assert shadow.observe(*ticks, new.step_now(*ticks)) == 100
    await shadow.advance(flush=True)
    assert set(old.last) == {("shadow", "b")}
    assert old.num_ticks == 100


async def test_small_batches_wait_for_company():
    shadow = shadow_of(Predictor(), batch_ticks=90)
    new, ticks = Predictor(), walk(20)
    shadow.observe(*ticks, new.step_now(*ticks))
    await shadow.advance()
    assert shadow.num_pending == 60
    shadow.observe(*ticks, new.step_now(*ticks))
    await shadow.advance()
    assert shadow.num_pending == 0


async def test_falling_behind_costs_symbols_and_not_the_comparison():
    shadow = shadow_of(Predictor(1.0), max_pending=500)
    new = Predictor(2.5)
    keys, values, times, record_times = walk(2_000)
    for first in range(0, 6_000, 300):
        part = keys[first : first + 300], values[first : first + 300], times[:300], record_times[:300]
        shadow.observe(*part, new.step_now(*part))
        if first % 900 == 600:
            await shadow.advance(flush=True)
    report = shadow.report()
    assert (report.num_symbols, report.num_shed) == (1, 2)
    assert report.test.mean_difference > 0.1


async def test_symbols_without_room_are_given_up():
    report = await run(shadow_of(Predictor(full=(("shadow", "a"),))), Predictor(), walk(200))
    assert (report.num_symbols, report.num_shed) == (2, 1)
    assert report.num_scored == 2 * (200 - 11)


async def test_symbols_that_go_while_they_are_stepped_are_not_compared():
    started, may_end = asyncio.Event(), asyncio.Event()
    old = Predictor()

    async def step(*arguments):
        started.set()
        await may_end.wait()
        return old.step_now(*arguments)

    shadow = Shadow({symbol: symbol for symbol in SYMBOLS}, step_fn=step, test=SequentialTest(SequentialPlan()))
    new, ticks = Predictor(), walk(100)
    shadow.observe(*ticks, new.step_now(*ticks))
    advancing = asyncio.create_task(shadow.advance(flush=True))
    await started.wait()
    with pytest.raises(RuntimeError, match="already"):
        shadow.observe(*ticks, new.step_now(*ticks))
        await shadow.advance(flush=True)
    shadow.discard(["a", "b", "never there"])
    assert shadow.num_pending == 100
    may_end.set()
    await advancing
    assert shadow.report().num_scored == 100 - 11


async def test_partitions_may_pass_to_the_new_parameters_one_after_the_other():
    shadow = shadow_of(Predictor(), symbols=("a",))
    new, ticks = Predictor(), walk(50)
    shadow.observe(*ticks, new.step_now(*ticks))
    shadow.add({"b": ("shadow", "b")})
    shadow.observe(*ticks, new.step_now(*ticks))
    await shadow.advance(flush=True)
    assert shadow.report().num_scored == (100 - 11) + (50 - 11)


async def test_after_the_verdict_nothing_is_stepped():
    old = Predictor(1.0)
    shadow = shadow_of(old)
    new = Predictor(9.0)
    await run(shadow, new, walk(2_000), range(300, 6_000, 300))
    stepped, ticks = old.num_ticks, walk(100)
    assert stepped < 6_000
    assert shadow.observe(*ticks, new.step_now(*ticks)) == 0
    assert await shadow.advance(flush=True) is Verdict.WORSE
    assert old.num_ticks == stepped


async def test_a_failing_step_is_told():
    async def step(*arguments):
        raise RuntimeError("the device is gone")

    shadow = Shadow({"a": "a"}, step_fn=step, test=SequentialTest(SequentialPlan()))
    ticks = walk(10)
    shadow.observe(*ticks, Predictor().step_now(*ticks))
    with pytest.raises(RuntimeError, match="gone"):
        await shadow.advance(flush=True)


@given(st.sets(st.text(min_size=1, max_size=4), max_size=60), st.floats(0.001, 0.1), st.integers(1, 10))
def test_the_sample_is_small_stable_and_never_empty(symbols, share, most):
    chosen = choose_shadow(symbols, share=share, max_symbols=most)
    assert chosen == choose_shadow(sorted(symbols, reverse=True), share=share, max_symbols=most)
    assert set(chosen) <= symbols
    assert len(chosen) == (max(1, min(most, math.floor(share * len(symbols)))) if symbols else 0)


def test_states_of_the_sample():
    @dataclasses.dataclass(frozen=True)
    class States:
        symbols: tuple
        arrays: dict

    states = States(("a", "b", "c"), {"x": np.arange(3), "y": np.arange(6).reshape(3, 2)})
    found = sample_states(states, ["c", "a", "d"])
    assert found.symbols == ("a", "c")
    assert {path: array.tolist() for path, array in found.arrays.items()} == {"x": [0, 2], "y": [[0, 1], [4, 5]]}


def test_every_setting_makes_a_plan():
    plan = probation_plan(Settings().tuning, 7)
    assert (plan.margin, plan.min_ticks, plan.max_ticks, plan.num_symbols) == (0.05, 500, 5_000, 7)
    for end in ("low", "high"):
        for name in ("probation_margin", "probation_error_rate"):
            value = getattr(SPECS[f"tuning.{name}"].key, end)
            probation_plan(parse_settings({"tuning": {name: value}}).tuning, 1)
    probation_plan(Tuning(probation_min_ticks=1, probation_max_ticks=1), 1)
