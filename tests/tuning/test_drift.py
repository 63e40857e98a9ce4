"""The trigger for a campaign: it fires when forecasts get worse, and not when the feed gets wilder."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from usp_daemon.tuning import ScoreDrift

SYMBOLS = ("a", "b", "c", "d")
UNITS = np.array([1e-6, 1.0, 50.0, 1e9])


def feed(rng, num_ticks, skill, volatility=1.0):
    """Scores and errors of four symbols in very different units, heavy-tailed; ``skill`` is their ratio of means."""
    count = num_ticks // 4
    units = np.tile(UNITS, count)
    errors = units * volatility * np.abs(rng.standard_t(4, 4 * count))
    scores = skill * units * volatility * np.abs(rng.standard_t(4, 4 * count))
    return list(SYMBOLS) * count, scores.tolist(), errors.tolist()


@pytest.mark.parametrize("seed", range(5))
def test_quiet_while_skill_stays_whatever_the_volatility(seed):
    rng = np.random.default_rng(seed)
    drift = ScoreDrift()
    for volatility in (1.0, 1.0, 3.0, 3.0, 0.2, 1.0):
        assert not drift.update(*feed(rng, 20_000, 0.7, volatility))
    assert drift.drift == pytest.approx(1.0, abs=0.12)


@pytest.mark.parametrize("seed", range(5))
def test_fires_once_when_skill_falls_by_more_than_asked(seed):
    rng = np.random.default_rng(seed)
    drift = ScoreDrift()
    assert not drift.update(*feed(rng, 40_000, 0.7))
    fired = [drift.update(*feed(rng, 500, 0.7 * 1.5)) for _ in range(12)]
    assert sum(fired) == 1
    assert fired.index(True) < 6


def test_fires_again_only_after_it_has_come_down():
    rng = np.random.default_rng(1)
    drift = ScoreDrift()
    drift.update(*feed(rng, 40_000, 0.7))
    fired = []
    for skill in (1.1, 0.7, 1.1):
        fired.append(sum(drift.update(*feed(rng, 500, skill)) for _ in range(10)))
    assert fired == [1, 0, 1]


def test_new_parameters_are_compared_with_themselves():
    rng = np.random.default_rng(2)
    drift = ScoreDrift(min_ticks=2_000)
    drift.update(*feed(rng, 40_000, 0.5))
    drift.update(*feed(rng, 5_000, 0.9))
    assert drift.drift > 1.3
    drift.rebase()
    assert (drift.drift, drift.num_ticks) == (1.0, 0)
    assert not drift.update(*feed(rng, 20_000, 0.9))


def test_the_definition():
    """One symbol, worked out with plain sums."""
    drift = ScoreDrift(fast_ticks=10, slow_ticks=40, min_ticks=1)
    rng = np.random.default_rng(3)
    errors, scores = rng.uniform(0.5, 1.5, 60), rng.uniform(0.2, 1.0, 60)
    drift.update(["a"] * 60, scores, errors)
    scale, rows = 0.0, []
    for number, (score, error) in enumerate(zip(scores, errors, strict=True), start=1):
        if number > 1:
            rows.append((score / scale, error / scale))
        scale += max(0.02, 1.0 / number) * (error - scale)
    relative = np.array(rows)[::-1]

    def skill(ticks):
        weights = (1.0 - 1.0 / ticks) ** np.arange(len(relative))
        return (weights @ relative[:, 0]) / (weights @ relative[:, 1])

    assert drift.drift == pytest.approx(skill(10) / skill(40), rel=1e-12)
    assert drift.num_ticks == 59


def test_what_is_no_number_or_never_moved_is_left_out():
    drift = ScoreDrift()
    assert math.isnan(drift.drift)
    drift.update(["a"] * 4, [math.nan, 1.0, -1.0, math.inf], [1.0, math.inf, 1.0, 1.0])
    drift.update(["still"] * 50, [0.0] * 50, [0.0] * 50)
    assert drift.num_ticks == 0
    assert math.isnan(drift.drift)


@given(
    cut=st.integers(0, 400),
    rows=st.lists(st.tuples(st.sampled_from("ab"), st.floats(0.0, 1e6), st.floats(0.0, 1e6)), min_size=1, max_size=400),
)
def test_cut_anywhere_and_over_a_restart_it_is_the_same(cut, rows):
    options = {"fast_ticks": 5, "slow_ticks": 50, "min_ticks": 10}
    symbols, scores, errors = ([row[place] for row in rows] for place in range(3))
    whole = ScoreDrift(**options)
    fired = whole.update(symbols, scores, errors)
    first = ScoreDrift(**options)
    fired_first = first.update(symbols[:cut], scores[:cut], errors[:cut])
    second = ScoreDrift(**options)
    second.restore(json.loads(json.dumps(first.to_dict())))
    fired_second = second.update(symbols[cut:], scores[cut:], errors[cut:])
    assert second.to_dict() == whole.to_dict()
    assert fired == (fired_first or fired_second)


@pytest.mark.parametrize("change", [{"format": 7}, {"fast": 3}, {"fast": [1.0]}, {"scales": []}])
def test_a_state_that_is_none_is_refused(change):
    drift = ScoreDrift()
    with pytest.raises(ValueError):
        drift.restore({**drift.to_dict(), **change})


@pytest.mark.parametrize("change", [{"ratio": 1.0}, {"fast_ticks": 0}, {"slow_ticks": 1_000}, {"min_ticks": 0}])
def test_settings_without_sense_are_refused(change):
    with pytest.raises(ValueError, match="expected"):
        ScoreDrift(**change)
