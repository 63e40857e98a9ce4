"""Recorded ticks: order, tails, padding, and what is refused."""

import numpy as np
import pytest

from usp_daemon.tuning import History, HistoryError, RecordedTick
from usp_daemon.tuning._history import padded

SECOND = 1_000_000_000


def test_ticks_of_several_symbols_are_told_apart_and_sorted_by_name() -> None:
    ticks = [
        RecordedTick("b", 1 * SECOND, 10.0, 2 * SECOND),
        RecordedTick("a", 5 * SECOND, 1.0),
        RecordedTick("b", 3 * SECOND, float("nan"), 4 * SECOND),
        RecordedTick("a", 6 * SECOND, 2.0),
    ]
    history = History.from_ticks(iter(ticks))
    assert history.names == ("a", "b")
    first, second = history.symbols
    assert first.values.tolist() == [1.0, 2.0]
    assert first.record_timestamps_ns.tolist() == first.timestamps_ns.tolist() == [5 * SECOND, 6 * SECOND]
    assert np.array_equal(second.values, [10.0, np.nan], equal_nan=True)
    assert second.record_timestamps_ns.tolist() == [2 * SECOND, 4 * SECOND]


def test_the_tail_of_each_symbol_is_kept() -> None:
    arrays = {name: (SECOND * np.arange(n), np.arange(n) * 1.0) for name, n in (("long", 100), ("short", 3))}
    history = History.from_arrays(arrays, max_ticks=10)
    assert [one.values.tolist() for one in history.symbols] == [list(range(90, 100)), [0, 1, 2]]
    assert history.num_ticks == 13
    assert [len(one) for one in history.head(0.5).symbols] == [5, 1]
    assert history.only(["short"]).names == ("short",)


def test_padding_goes_on_at_the_symbol_s_own_cadence_without_values() -> None:
    history = History.from_arrays({"a": ([0, 60, 120], [1.0, 2.0, 3.0], [5, 65, 125]), "b": ([7], [4.0])})
    stamps, values, records = padded(history.symbols, 5)
    assert stamps[:, 0].tolist() == [0, 60, 120, 180, 240]
    assert records[:, 0].tolist() == [5, 65, 125, 185, 245]
    assert np.array_equal(values[:, 0], [1.0, 2.0, 3.0, np.nan, np.nan], equal_nan=True)
    assert stamps[:, 1].tolist() == [7 + SECOND * k for k in range(5)]
    assert np.isnan(values[1:, 1]).all()


def test_what_cannot_be_used_is_refused() -> None:
    with pytest.raises(HistoryError, match="no recorded ticks"):
        History.from_ticks([])
    with pytest.raises(HistoryError, match=r"a: .* equally long"):
        History.from_arrays({"a": ([1, 2], [1.0])})
    with pytest.raises(HistoryError, match="one-dimensional"):
        History.from_arrays({"a": (np.zeros((2, 2), np.int64), np.zeros((2, 2)))})
    with pytest.raises(HistoryError, match="max_ticks"):
        History.from_arrays({"a": ([1], [1.0])}, max_ticks=0)
    with pytest.raises(HistoryError, match="other"):
        History.from_arrays({"a": ([1], [1.0])}).only(["other"])
