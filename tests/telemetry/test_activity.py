"""The ranking of symbols against a count one tick at a time."""

import collections
import random

import numpy as np
import pytest

from usp_daemon.telemetry import Activity
from usp_daemon.wire import TopicPartition

PLACES = [TopicPartition("ticks", number) for number in range(3)]


@pytest.mark.parametrize("seed", range(5))
def test_the_ranking_is_that_of_one_tick_at_a_time(seed: int) -> None:
    rng = random.Random(seed)
    activity = Activity()
    expected: dict[tuple[TopicPartition, str], float] = collections.defaultdict(float)
    for turn in range(40):
        place = rng.choice(PLACES)
        symbols = [f"s{int(rng.paretovariate(0.7))}" for _ in range(rng.randrange(1, 300))]
        rows = activity.rows_of(place, symbols)
        assert [activity.names(place)[row] for row in rows] == symbols
        activity.count(place, rows)
        for symbol in symbols:
            expected[place, symbol] += 1.0
        if turn % 7 == 6:
            found = activity.review(10)
            assert [busy.count for busy in found] == sorted(expected.values(), reverse=True)[:10]
            assert all(expected[busy.partition, busy.symbol] == busy.count for busy in found)
            assert all(activity.names(busy.partition)[busy.row] == busy.symbol for busy in found)
            expected = collections.defaultdict(float, {key: count / 2 for key, count in expected.items()})
        if turn == 25:
            activity.drop(PLACES[0])
            assert not activity.names(PLACES[0])
            expected = collections.defaultdict(float, {k: n for k, n in expected.items() if k[0] != PLACES[0]})


def test_rows_stay_while_the_index_grows() -> None:
    activity = Activity()
    first = activity.rows_of(PLACES[0], ["a", "b", "a"])
    activity.count(PLACES[0], first)
    activity.rows_of(PLACES[0], [f"s{number}" for number in range(5_000)])
    assert np.array_equal(activity.rows_of(PLACES[0], ["a", "b", "a"]), first)
    assert activity.counts(PLACES[0])[:3].tolist() == [2.0, 1.0, 0.0]
