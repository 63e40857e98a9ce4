"""Recorder and drift: which symbols are scored, what is dropped, and that the scores are those of the forecasts."""

import asyncio
import types

import numpy as np
import pytest

from usp_daemon.core import QUANTILE_LEVELS
from usp_daemon.live_tuning import Recorder
from usp_daemon.persistence import choose_symbols
from usp_daemon.service import LiveStep
from usp_daemon.tuning import crps


class Drift:
    """Keeps what it is given."""

    def __init__(self, fires=False):
        self.given, self.fires, self.drift = [], fires, 1.0

    def update(self, symbols, scores, errors):
        self.given += zip(symbols, scores, errors, strict=True)
        return self.fires

    def rebase(self):
        pass


def step(symbols, values, *, quantiles=None, accepted=None):
    n = len(symbols)
    columns = {
        "accepted": np.ones(n, bool) if accepted is None else np.asarray(accepted),
        "quantiles": np.zeros((n, len(QUANTILE_LEVELS))) if quantiles is None else quantiles,
    }
    times = np.arange(n, dtype=np.int64)
    result = types.SimpleNamespace(admitted=np.ones(n, bool), columns=columns)
    return LiveStep(symbols, symbols, np.asarray(values, float), times, times, result, None)


def recorder(drift, **options):
    return Recorder(ring=None, drift=drift, drifted_fn=lambda: drift.given.append("drifted"), **options)


def test_scores_are_those_of_the_forecasts_before():
    drift, rng = Drift(), np.random.default_rng(1)
    forecasts = np.sort(rng.normal(size=(6, len(QUANTILE_LEVELS))), axis=1)
    values = [1.0, -2.0, 1.5, np.nan, 0.5, -1.0]
    symbols = ["a", "b", "a", "a", "b", "a"]
    recorder(drift)._take([step(symbols, values, quantiles=forecasts, accepted=[1, 1, 1, 0, 1, 1])])
    (a1, b1, a2) = drift.given
    assert a1[0] == "a" and a1[1] == pytest.approx(crps(1.5, forecasts[0])) and a1[2] == pytest.approx(0.5)
    assert b1[0] == "b" and b1[1] == pytest.approx(crps(0.5, forecasts[1])) and b1[2] == pytest.approx(2.5)
    # A refused tick is passed over: the forecast before it counts.
    assert a2[0] == "a" and a2[1] == pytest.approx(crps(-1.0, forecasts[2])) and a2[2] == pytest.approx(2.5)


def test_the_same_few_symbols_are_scored_in_whatever_order_they_come():
    names = [f"s{i}" for i in range(200)]
    for seed in range(3):
        drift = Drift()
        one = recorder(drift, max_scored=8)
        for order in np.random.default_rng(seed).permuted(np.tile(np.arange(200), (4, 1)), axis=1):
            one._take([step([names[i] for i in order], np.zeros(200))])
        last = {symbol for symbol, _, _ in drift.given[-8:]}
        assert last == set(choose_symbols(names, 8, "drift"))


def test_names_without_end_are_forgotten(monkeypatch):
    monkeypatch.setattr("usp_daemon.live_tuning._recorder._KNOWN_SYMBOLS", 50)
    one = recorder(Drift(), max_scored=4)
    for first in range(0, 1000, 10):
        one._take([step([f"s{first + i}" for i in range(10)], np.zeros(10))])
    assert len(one._hashes) <= 52
    assert set(one._scored) == set(choose_symbols([f"s{i}" for i in range(1000)], 4, "drift"))


async def test_what_is_too_much_is_dropped_and_counted_and_a_defect_ends_nothing():
    drift = Drift(fires=True)
    one = recorder(drift, max_queued_ticks=5)
    one.stepped(step(["a"] * 3, np.zeros(3)))
    one.stepped(step(["a"] * 3, np.zeros(3)))
    assert one.num_ticks == 6 and one.num_dropped == 3
    running = asyncio.create_task(one.run())
    async with asyncio.timeout(10.0):
        while "drifted" not in drift.given:
            await asyncio.sleep(0)
        one.stepped(Broken())
        while one._queue:
            await asyncio.sleep(0)
        count = drift.given.count("drifted")
        one.stepped(step(["a"], [1.0]))
        while drift.given.count("drifted") == count:
            await asyncio.sleep(0)
    assert not running.done()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


class Broken:
    """A step that cannot be read."""

    def __len__(self):
        return 1
