"""Made-up series are what they are said to be, and the same each time."""

import numpy as np
import pytest

from usp_daemon.demo import KINDS, SyntheticSeries


def drawn(series, count):
    return np.array([series.next_values() for _ in range(count)])


def autocorrelation(x, lag):
    x = x - x.mean()
    return float((x[lag:] * x[:-lag]).sum() / (x * x).sum())


def test_the_seed_decides_everything():
    first, again, other = (drawn(SyntheticSeries(7, seed), 200) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.isclose(first, other).any()


def test_symbols_are_named_after_their_kind_in_turn():
    names = SyntheticSeries(7).names
    assert [name.partition("-")[0] for name in names] == [KINDS[i % 3] for i in range(7)]
    assert len(set(names)) == 7


def test_each_kind_is_what_it_says():
    values = drawn(SyntheticSeries(60, 5), 1_000)
    by_kind = [values[:, kind::3].T for kind in range(3)]
    one_lag = [np.median([autocorrelation(np.diff(x), 1) for x in group]) for group in by_kind]
    assert abs(one_lag[0]) < 0.05  # increments of a walk know nothing of each other
    spread = [np.median([np.std(x) / np.std(np.diff(x)) for x in group]) for group in by_kind]
    assert spread[0] > 2.0 * spread[1]  # what reverts stays nearer to its mean than what walks
    periods = [max((24, 48, 96), key=lambda lag, x=x: autocorrelation(x, lag)) for x in by_kind[2]]
    assert {24, 48, 96} == set(periods)
    seasonal = [max(autocorrelation(x, lag) for lag in (24, 48, 96)) for x in by_kind[2]]
    assert np.median(seasonal) > 0.7


def test_changes_come_at_the_rate_that_is_said():
    series = SyntheticSeries(1_000, 3)
    drawn(series, 1_000)
    expected = 2 * 1_000 * 1_000 / 2_000
    assert abs(series.num_changes - expected) < 5.0 * np.sqrt(expected)


def test_at_least_one_symbol():
    with pytest.raises(ValueError, match="at least 1"):
        SyntheticSeries(0)
