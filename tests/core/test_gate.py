"""The ingestion gate: what it refuses, what it lets through, and what it does after."""

import csv
import dataclasses
import gzip

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from usp_daemon.core import GateReason, PredictorConfig, ProcessState
from usp_daemon.core import _degraded as degraded
from usp_daemon.core import _gate as gate

CONFIG = PredictorConfig().as_arrays()
SECOND = 1_000_000_000
START = 1_700_000_000 * SECOND


@jax.jit
def _scan(values, stamps, records, config):
    """The gate in front of persistence: the last accepted value is the forecast."""

    def step(carry, tick):
        state, last, started = carry
        value, stamp, record = tick
        observation = ProcessState(value, value, stamp, record)
        last = jnp.where(started | ~jnp.isfinite(value), last, value)
        state, decision = gate.inspect(state, observation, last, last, config)
        mode, counter = degraded.update_degraded_mode(
            state.degraded_mode, state.degraded_mode_recovery_counter, decision.degrading, config
        )
        state = dataclasses.replace(state, degraded_mode=mode, degraded_mode_recovery_counter=counter)
        last = jnp.where(decision.accepted, value, last)
        return (state, last, started | decision.accepted), (decision, mode, state.missed_periods)

    first = (gate.init(values.dtype), jnp.asarray(0.0, values.dtype), jnp.asarray(False))
    _, seen = jax.lax.scan(step, first, (values, stamps, records))
    return seen


class Seen:
    """Verdicts as numpy arrays."""

    def __init__(self, values, stamps=None, records=None, config=CONFIG) -> None:
        values = np.asarray(values, float)
        stamps = START + SECOND * np.arange(values.size) if stamps is None else np.asarray(stamps)
        records = stamps if records is None else np.asarray(records)
        decision, mode, missed = _scan(
            jnp.asarray(values), jnp.asarray(stamps, jnp.int64), jnp.asarray(records, jnp.int64), config
        )
        self.accepted = np.asarray(decision.accepted)
        self.reasons = np.asarray(decision.reasons)
        self.rebased = np.asarray(decision.rebased)
        self.missed_before = np.asarray(decision.missed_before)
        self.degraded = np.asarray(mode)
        self.missed = np.asarray(missed)

    def has(self, reason: GateReason) -> np.ndarray:
        return (self.reasons & int(reason)) != 0


def _with(**values):
    return dataclasses.replace(PredictorConfig(), **values).as_arrays()


def _ordinary(num: int, seed: int = 0) -> np.ndarray:
    return (
        50.0
        + np.cumsum(np.random.default_rng(seed).standard_normal(num)) * 0.1
        + np.random.default_rng(seed + 1).standard_normal(num)
    )


def test_ordinary_ticks_all_pass() -> None:
    for seed in range(5):
        seen = Seen(_ordinary(1000, seed))
        assert seen.accepted.all()
        assert (seen.reasons == 0).all()
        assert not seen.degraded.any()


@pytest.mark.parametrize("size", [100.0, -100.0, 1e9])
def test_a_single_far_spike_is_refused_and_the_next_tick_passes(size: float) -> None:
    values = _ordinary(500)
    values[300] += size
    seen = Seen(values)
    assert np.flatnonzero(~seen.accepted).tolist() == [300]
    assert seen.reasons[300] == GateReason.OUTLIER
    assert seen.missed[300] == 1
    assert seen.missed_before[301] == 1
    assert not seen.rebased.any()


def test_constant_garbage_is_refused_up_to_the_limit() -> None:
    values = _ordinary(500)
    values[300:] = 1e4
    seen = Seen(values)
    limit = int(CONFIG.outlier_max_consecutive)
    assert not seen.accepted[300 : 300 + limit].any()
    assert seen.rebased[300 + limit]


def test_the_limit_of_consecutive_outliers_is_what_the_operator_says() -> None:
    values = _ordinary(500)
    # Wild scatter: no two alike, so that no cluster forms.
    values[300:360] = 1e4 * 3.0 ** np.arange(60) * (-1.0) ** np.arange(60)
    for limit in (5, 12):
        seen = Seen(values, config=_with(outlier_max_consecutive=limit))
        assert np.flatnonzero(seen.rebased)[0] == 300 + limit
        assert seen.has(GateReason.OUTLIER)[300 : 300 + limit].all()


def test_a_true_shift_is_rebased_on_the_third_consistent_tick() -> None:
    values = _ordinary(500)
    values[300:] += 200.0
    seen = Seen(values)
    assert np.flatnonzero(~seen.accepted).tolist() == [300, 301]
    assert np.flatnonzero(seen.rebased).tolist() == [302]
    assert seen.has(GateReason.REBASED)[302]
    assert seen.accepted[302:].all()


@pytest.mark.parametrize("degrees", [2.5, 3.0, 4.0])
def test_a_heavy_tailed_symbol_is_not_gated(degrees: float) -> None:
    refused = [
        (~Seen(np.cumsum(np.random.default_rng(seed).standard_t(degrees, 4000))).accepted).sum() for seed in range(3)
    ]
    assert np.mean(refused) <= 8.0, refused  # of 4000


def test_values_that_are_not_finite_are_refused_and_leave_no_trace() -> None:
    for bad in (np.nan, np.inf, -np.inf, 1e300):
        values = _ordinary(200)
        values[100] = bad
        seen = Seen(values)
        assert np.flatnonzero(~seen.accepted).tolist() == [100]
        assert seen.has(GateReason.NOT_FINITE)[100]


def test_garbage_from_the_first_tick_on() -> None:
    values = _ordinary(100)
    values[:5] = [np.nan, np.inf, np.nan, -np.inf, np.nan]
    seen = Seen(values)
    assert seen.accepted[5:].all()
    assert not seen.accepted[:5].any()


def test_a_continuous_signal_that_repeats_itself_freezes_after_five_equal_values() -> None:
    values = _ordinary(600)
    values[400:450] = values[400]
    seen = Seen(values)
    frozen = seen.has(GateReason.FROZEN)
    # The fifth equal value is the first refused one.
    assert np.flatnonzero(frozen)[0] == 404
    assert frozen[404:450].all()
    assert not seen.accepted[404:450].any()
    assert seen.degraded[404:450].all()
    # It moves again, at once far enough or for the second time.
    assert seen.accepted[451:].all()
    assert np.flatnonzero(~seen.degraded[450:])[0] <= 3


def test_freezing_waits_for_the_number_of_equal_values_that_is_set() -> None:
    values = _ordinary(600)
    values[400:450] = values[400]
    for steps in (5, 12):
        frozen = Seen(values, config=_with(frozen_signal_min_steps=steps)).has(GateReason.FROZEN)
        assert np.flatnonzero(frozen)[0] == 400 + steps - 1


def test_a_signal_on_ticks_that_repeats_itself_by_nature_does_not_freeze() -> None:
    generator = np.random.default_rng(3)
    # A price that moves by whole cents in fewer than half of its ticks: runs of ten equal values are ordinary.
    steps = generator.choice([-2, -1, 1, 2], 6000) * (generator.random(6000) < 0.45)
    values = 100.0 + 0.01 * np.cumsum(steps)
    frozen = Seen(values).has(GateReason.FROZEN)
    assert frozen[1000:].mean() < 0.01
    # The same symbol dead for 400 ticks is still found.
    values[3000:3400] = values[3000]
    assert Seen(values).has(GateReason.FROZEN)[3000:3400].any()


def test_staleness_enters_beyond_the_bound_and_leaves_below_four_fifths_of_it() -> None:
    ttl = 5 * SECOND
    config = _with(staleness_ttl_ns=ttl, staleness_cadence_factor=0.0)
    gaps = np.full(60, SECOND, np.int64)
    gaps[30] = ttl  # at the bound: not yet
    gaps[40] = ttl + SECOND  # beyond
    gaps[41] = int(0.9 * ttl)  # inside the bound, but not below 0.8 of it
    gaps[42] = int(0.79 * ttl)
    seen = Seen(_ordinary(60), START + np.cumsum(gaps), config=config)
    assert np.flatnonzero(seen.has(GateReason.STALE)).tolist() == [40, 41]
    assert seen.accepted.all(), "a late value is still a value"
    assert not seen.degraded[:40].any()
    assert seen.degraded[40:42].all()
    # Out after frozen_signal_recovery_steps = 2 clean ticks.
    assert seen.degraded[42]
    assert not seen.degraded[43:].any()


def test_a_slow_symbol_is_not_stale_by_the_absolute_bound() -> None:
    stamps = START + 60 * SECOND * np.arange(200, dtype=np.int64)
    seen = Seen(_ordinary(200), stamps)
    assert not seen.has(GateReason.STALE).any()
    stamps[150:] += 600 * SECOND
    assert np.flatnonzero(Seen(_ordinary(200), stamps).has(GateReason.STALE)).tolist() == [150]


def test_missed_periods_count_on_a_regular_cadence() -> None:
    stamps = START + SECOND * np.arange(200, dtype=np.int64)
    stamps[150:] += 7 * SECOND
    seen = Seen(_ordinary(200), stamps)
    assert seen.missed_before[150] == 7
    assert seen.accepted[150]
    assert np.delete(seen.missed_before, 150).max() == 0


def test_an_irregular_cadence_counts_no_missed_periods() -> None:
    gaps = np.random.default_rng(4).exponential(1.0, 400) * SECOND
    seen = Seen(_ordinary(400), START + np.cumsum(np.maximum(gaps, 1000.0)).astype(np.int64))
    assert seen.missed_before[100:].max() == 0


def test_refused_ticks_count_as_missed() -> None:
    values = _ordinary(300)
    values[200:203] = np.nan
    seen = Seen(values)
    assert seen.missed[200:204].tolist() == [1, 2, 3, 0]
    assert seen.missed_before[203] == 3


@pytest.mark.parametrize(
    ("skew_ns", "reason"),
    [
        (SECOND, None),
        (SECOND + 1, GateReason.FUTURE),
        (-86_400 * SECOND, None),
        (-86_400 * SECOND - 1, GateReason.TOO_OLD),
    ],
)
def test_clock_skew_has_a_bound_on_either_side(skew_ns: int, reason: GateReason | None) -> None:
    stamps = START + SECOND * np.arange(60, dtype=np.int64)
    records = stamps.copy()
    records[40] = stamps[40] - skew_ns
    seen = Seen(_ordinary(60), stamps, records)
    if reason is None:
        assert seen.accepted.all()
    else:
        assert np.flatnonzero(~seen.accepted).tolist() == [40]
        assert seen.reasons[40] == reason


def test_duplicates_and_stragglers_are_refused_without_harm_to_health() -> None:
    stamps = START + SECOND * np.arange(60, dtype=np.int64)
    stamps[40], stamps[45] = stamps[39], stamps[30]
    seen = Seen(_ordinary(60), stamps)
    assert np.flatnonzero(~seen.accepted).tolist() == [40, 45]
    assert seen.reasons[40] == GateReason.DUPLICATE
    assert seen.reasons[45] == GateReason.OUT_OF_ORDER
    assert not seen.degraded.any()


def test_a_sparse_stretch_is_flagged_and_accepted() -> None:
    stamps = START + SECOND * np.arange(60, dtype=np.int64)
    stamps[40:] += 2 * SECOND  # a gap of three cadences
    seen = Seen(_ordinary(60), stamps)
    assert np.flatnonzero(seen.has(GateReason.SPARSE)).tolist() == [40]
    assert seen.accepted.all()


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_degraded_mode_leaves_after_clean_ticks_in_a_row(steps: int) -> None:
    values = _ordinary(200)
    values[100] = np.nan
    values[100 + steps + 20] = np.inf
    seen = Seen(values, config=_with(frozen_signal_recovery_steps=steps))
    expected = np.zeros(200, bool)
    expected[100 : 100 + steps] = True
    expected[120 + steps : 120 + 2 * steps] = True
    np.testing.assert_array_equal(seen.degraded, expected)


def test_an_impaired_tick_starts_the_recovery_again() -> None:
    values = _ordinary(200)
    values[[100, 102]] = np.nan
    seen = Seen(values, config=_with(frozen_signal_recovery_steps=3))
    assert np.flatnonzero(seen.degraded).tolist() == [100, 101, 102, 103, 104]


def _lazy(moving: float, num: int, seed: int) -> np.ndarray:
    """A price in cents that moves on a share ``moving`` of its ticks."""
    generator = np.random.default_rng(seed)
    return 100.0 + 0.01 * np.cumsum(generator.choice([-2, -1, 1, 2], num) * (generator.random(num) < moving))


@pytest.mark.parametrize("moving", [0.15, 0.2, 0.45])
def test_a_dead_symbol_is_found_however_often_it_repeats_itself(moving: float) -> None:
    for seed in range(3):
        values = _lazy(moving, 3000, seed)
        values[2000:2600] = values[2000]
        frozen = Seen(values).has(GateReason.FROZEN)
        assert frozen[500:2000].sum() == 0
        # A run this long has a chance below one in a million even at the upper bound of the learnt rate.
        assert frozen[2400:2600].all()
        # Alive again, though what the dead stretch taught about repetitions stays for a while.
        assert not frozen[2650:].any()


def test_a_long_run_does_not_excuse_itself() -> None:
    values = _lazy(0.2, 6000, 4)
    values[1000:6000] = values[1000]
    frozen = Seen(values).has(GateReason.FROZEN)
    first = np.flatnonzero(frozen[1000:])[0]
    assert 20 < first < 250
    assert frozen[1000 + first :].all(), "it stays dead"


@pytest.mark.parametrize("name", ["btcusdt_80ms", "eurusd_1h", "btcusd_1h", "nyc_taxi_30m", "ambient_temp_1h"])
def test_real_series_do_not_freeze(repository_root, name: str) -> None:
    with gzip.open(repository_root / f"src/usp_daemon/demo/data/{name}.csv.gz", "rt") as file:
        rows = list(csv.DictReader(file))
    values = [float(row["value"]) if row["value"] else np.nan for row in rows]
    stamps = np.asarray([round(float(row["t"]) * 1e3) * 1_000_000 for row in rows], np.int64)
    frozen = Seen(values, stamps).has(GateReason.FROZEN)
    # Ticks of 80 ms repeat their value three times out of four; the gate needs a few runs to learn it.
    assert frozen.sum() <= 5
    assert not frozen[200:].any()


def test_one_absurd_time_does_not_lock_the_symbol_out() -> None:
    values = np.cumsum(np.random.default_rng(3).standard_normal(120))
    stamps = START + SECOND * np.arange(120)
    stamps[60] = 2**63 - 1
    seen = Seen(values, stamps)
    # The two ticks after it are taken for stragglers, the third shows where the clock is.
    assert seen.accepted[:61].all()
    assert seen.accepted[61:].tolist() == [False, False] + [True] * 57
    assert seen.has(GateReason.OUT_OF_ORDER)[61:63].all()


def test_a_first_tick_with_an_absurd_time_does_not_lock_the_symbol_out() -> None:
    stamps = START + SECOND * np.arange(40)
    stamps[0] = 2**62
    seen = Seen(np.cumsum(np.random.default_rng(4).standard_normal(40)), stamps)
    assert seen.accepted.tolist() == [True, False, False] + [True] * 37


def test_after_a_true_silence_the_past_stays_the_past() -> None:
    """A feed that returns after a month and then sends old ticks once more: those are still refused."""
    stamps = START + SECOND * np.arange(100)
    stamps[50:] += 30 * 86_400 * SECOND
    again = START + SECOND * np.arange(20, 40)
    stamps = np.concatenate([stamps[:60], again, stamps[60:]])
    seen = Seen(np.cumsum(np.random.default_rng(5).standard_normal(stamps.size)), stamps)
    assert not seen.accepted[60:80].any()
    assert seen.accepted[:60].all()
    assert seen.accepted[80:].all()
