"""The test of probation: its error rates by simulation, and that it does not matter how it is fed."""

import dataclasses
import itertools
import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import signal, stats

from usp_daemon.tuning import SequentialPlan, SequentialTest, Verdict

RUNS = 600
CHUNK = 160


def gaussian(rng, size):
    return 0.3 * rng.standard_normal(size)


def heavy(rng, size):
    """Student's t with 2.2 degrees of freedom: the variance is barely there."""
    return 0.15 * rng.standard_t(2.2, size)


def autocorrelated(rng, size):
    """An autoregression of order one: each difference remembers 0.8 of the one before; standard deviation 0.3."""
    noise = 0.3 * math.sqrt(1.0 - 0.8**2) * rng.standard_normal(size)
    return signal.lfilter([1.0], [1.0, -0.8], noise)


def bursts(rng, size):
    """Differences that are nothing most of the time, as after small changes, and clustered otherwise."""
    awake = signal.lfilter([1.0], [1.0, -0.9], rng.standard_normal(size)) > 1.5
    return np.where(awake, 0.8 * rng.standard_normal(size), 0.0)


LAWS = (gaussian, heavy, autocorrelated, bursts)


def run(plan, draw, mean, seed):
    """One probation: the test at its end."""
    rng = np.random.default_rng(seed)
    differences = mean + draw(rng, plan.max_ticks)
    test = SequentialTest(plan)
    for first in range(0, plan.max_ticks, CHUNK):
        part = differences[first : first + CHUNK].tolist()
        if test.update(["a"] * len(part), part).is_final:
            break
    return test


def verdicts(draw, mean, runs=RUNS):
    plan = SequentialPlan()
    ended = [run(plan, draw, mean, seed) for seed in range(runs)]
    ticks = np.array([test.summary().ticks for test in ended])
    kinds = [test.verdict for test in ended]
    assert all(kind.is_final for kind in kinds)
    text = ", ".join(f"{kind.value} {kinds.count(kind)}" for kind in Verdict if kind in kinds)
    print(f"{draw.__name__:>15}  mean {mean:+.2f}: ticks {ticks.mean():5.0f} (median {np.median(ticks):5.0f})  {text}")
    return kinds


def most(rate):
    """What so many events of probability ``rate`` exceed once in a thousand times."""
    return stats.binom.ppf(0.999, RUNS, rate)


@pytest.mark.parametrize("draw", LAWS)
def test_what_is_no_worse_is_rarely_rolled_back(draw):
    kinds = verdicts(draw, 0.0)
    assert sum(kind.rolls_back for kind in kinds) <= most(SequentialPlan().false_rollback_rate)


@pytest.mark.parametrize("draw", LAWS)
def test_what_is_worse_by_the_margin_is_rarely_kept(draw):
    kinds = verdicts(draw, SequentialPlan().margin)
    assert sum(not kind.rolls_back for kind in kinds) <= most(SequentialPlan().false_keep_rate)


@pytest.mark.parametrize("draw", LAWS)
def test_what_is_much_worse_is_found_and_what_is_better_is_kept(draw):
    assert sum(kind is Verdict.WORSE for kind in verdicts(draw, 0.2, 50)) >= 48
    better = verdicts(draw, -0.2, 50)
    assert not any(kind.rolls_back for kind in better)
    assert sum(kind is Verdict.BETTER for kind in better) >= 15


def test_error_rate_holds_at_the_boundary_whenever_one_stops():
    """No end but WORSE, and a mean that is exactly at the tolerance: still at most the rate, over 40,000 ticks."""
    plan = SequentialPlan(false_keep_rate=1e-12, max_ticks=40_000, min_ticks=40_000, false_rollback_rate=0.2)
    worse = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        # every block mean is -clip or clip, with equal probability: the law that is easiest to be fooled by
        signs = np.repeat(rng.choice([-1.0, 1.0], plan.max_ticks // plan.block_ticks), plan.block_ticks)
        test = SequentialTest(plan)
        worse += test.update(["a"] * signs.size, signs.tolist()) is Verdict.WORSE
    assert 0 < worse <= stats.binom.ppf(0.999, 60, 0.2)


def test_capital_against_its_definition():
    """The evidence is the largest mean product of the bets, worked out in the plain way."""
    plan = SequentialPlan(block_ticks=4, num_symbols=2, min_ticks=10_000, max_ticks=10_000, false_rollback_rate=1e-9)
    rng = np.random.default_rng(3)
    values = rng.normal(0.05, 0.4, 80)
    test = SequentialTest(plan)
    test.update(["a", "b"] * 40, values.tolist())
    pairs = values.reshape(10, 4, 2)
    blocks = np.clip(pairs.mean(axis=1).mean(axis=1), -plan.clip, plan.clip)
    shares = np.array([0.95, 0.7, 0.5, 0.35, 0.25, 0.15, 0.1, 0.05])
    for name, gains in {
        "worse": blocks / plan.clip,
        "not_worse": (plan.margin - blocks) / (plan.clip - plan.margin),
        "better": -blocks / plan.clip,
    }.items():
        capital = np.cumprod(1.0 + shares[:, None] * gains, axis=1).mean(axis=0)
        evidence = getattr(test.summary(), f"evidence_{name}")
        assert evidence == pytest.approx(max(1.0, capital.max()), rel=1e-12), name
    assert test.summary().mean_difference == pytest.approx(blocks.mean(), rel=1e-12)


def test_every_symbol_counts_the_same_in_a_block():
    plan = SequentialPlan(block_ticks=5, num_symbols=2)
    test = SequentialTest(plan)
    test.update(["busy"] * 9 + ["quiet"], [0.1] * 9 + [-0.1])
    assert test.summary().mean_difference == pytest.approx(0.0, abs=1e-15)


def test_infinite_differences_are_bounded_and_nan_is_refused():
    plan = SequentialPlan(block_ticks=2)
    test = SequentialTest(plan)
    with pytest.raises(ValueError, match="NaN"):
        test.update(["a", "a"], [0.1, math.nan])
    assert test.summary().num_pairs == 0
    test.update(["a", "a"], [math.inf, math.inf])
    assert test.summary().mean_difference == plan.clip


def test_a_disaster_is_rolled_back_long_before_the_least_time():
    test = SequentialTest(SequentialPlan())
    verdict = Verdict.GO_ON
    while not verdict.is_final:
        verdict = test.update(["a"], [math.inf])
    assert verdict is Verdict.WORSE
    assert test.summary().ticks <= 256


def test_nothing_is_kept_before_the_least_time():
    plan = SequentialPlan(min_ticks=970, max_ticks=5_000)
    test = SequentialTest(plan)
    while not test.verdict.is_final:
        test.update(["a"], [-0.4])
    assert test.verdict is Verdict.BETTER
    assert test.summary().ticks == 992  # the end of that block


@pytest.mark.parametrize(("mean", "verdict"), [(0.024, Verdict.NOT_WORSE_AT_LIMIT), (0.026, Verdict.WORSE_AT_LIMIT)])
def test_at_the_limit_the_mean_decides(mean, verdict):
    plan = SequentialPlan(min_ticks=64, max_ticks=64)
    test = SequentialTest(plan)
    assert test.update(["a"] * 64, [mean] * 64) is verdict
    assert verdict.rolls_back == (mean > plan.margin / 2)


def test_after_the_end_nothing_changes():
    test = SequentialTest(SequentialPlan())
    test.update(["a"] * 400, [0.5] * 400)
    before = test.to_dict()
    assert test.update(["a"] * 400, [-0.5] * 400) is Verdict.WORSE
    assert test.to_dict() == before


@given(
    differences=st.lists(st.floats(-2.0, 2.0), min_size=1, max_size=300),
    cuts=st.lists(st.integers(0, 300), max_size=8),
    restart=st.integers(0, 8),
)
def test_blocks_or_all_at_once_and_over_a_restart_it_is_the_same(differences, cuts, restart):
    plan = SequentialPlan(block_ticks=3, num_symbols=2, min_ticks=30, max_ticks=120)
    symbols = [("a", "b", "c")[position % 3] for position in range(len(differences))]
    whole = SequentialTest(plan)
    whole.update(symbols, differences)
    parts = SequentialTest(plan)
    edges = sorted({0, len(differences), *[min(cut, len(differences)) for cut in cuts]})
    for number, (first, last) in enumerate(itertools.pairwise(edges)):
        if number == restart:
            parts = SequentialTest.from_dict(json.loads(json.dumps(parts.to_dict())))
        parts.update(symbols[first:last], differences[first:last])
    assert parts.to_dict() == whole.to_dict()


@pytest.mark.parametrize(
    "change",
    [{"format": 2}, {"capitals": {}}, {"verdict": "perhaps"}, {"plan": {"margin": -1.0}}, {"plan": {"unknown": 1}}],
)
def test_a_state_that_is_none_is_refused(change):
    data = {**SequentialTest(SequentialPlan()).to_dict(), **change}
    with pytest.raises(ValueError):
        SequentialTest.from_dict(data)


@pytest.mark.parametrize(
    "change",
    [
        {"block_ticks": 6_000},
        {"margin": 0.0},
        {"margin": 0.6},
        {"tolerance": 0.05},
        {"false_keep_rate": 0.0},
        {"min_ticks": 9_000},
    ],
)
def test_a_plan_without_sense_is_refused(change):
    with pytest.raises(ValueError, match="expected"):
        dataclasses.replace(SequentialPlan(), **change)
