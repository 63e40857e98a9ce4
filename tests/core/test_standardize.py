"""The ring of past values: what stands in periods without a tick, and what the season says of those to come."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from usp_daemon.core import _standardize as standardize

FLOAT64 = np.dtype("float64")


@jax.jit
def _push(history, value, missed, shift, season):
    return standardize.push(history, value, missed, shift, season)


def _held(history) -> np.ndarray:
    return np.asarray(standardize.ordered(history))[-int(history.length) :]


def _filled(values: np.ndarray, season: int, history=None):
    """NaN stands for a period without a tick."""
    history = standardize.init_history(FLOAT64) if history is None else history
    missed = 0
    for value in values:
        if np.isnan(value):
            missed += 1
            continue
        history = _push(history, value, jnp.int32(missed), 0.0, jnp.int32(season))
        missed = 0
    return history


@pytest.mark.parametrize("gap", [1, 2, 7])
def test_without_a_season_a_gap_is_a_straight_line(gap: int) -> None:
    values = np.concatenate([[1.0, 4.0, 2.0], np.full(gap, np.nan), [5.0, 3.0]])
    expected = np.interp(np.arange(values.size), np.flatnonzero(np.isfinite(values)), values[np.isfinite(values)])
    np.testing.assert_allclose(_held(_filled(values, season=0)), expected, rtol=1e-12)


@pytest.mark.parametrize("gap", [1, 5, 11, 12, 30])
def test_with_a_season_a_gap_takes_its_course(gap: int) -> None:
    """A season on a straight line, for gaps shorter and longer than the season: nothing is lost."""
    t = np.arange(160)
    truth = 3.0 * np.sin(2.0 * np.pi * t / 12) + np.cos(4.0 * np.pi * t / 12) + 0.1 * t
    values = truth.copy()
    values[100 : 100 + gap] = np.nan
    np.testing.assert_allclose(_held(_filled(values, season=12)), truth, atol=1e-9)


def test_too_little_history_for_the_season_gives_a_straight_line() -> None:
    values = np.array([0.0, 1.0, 0.0, np.nan, np.nan, np.nan, 4.0])
    np.testing.assert_allclose(_held(_filled(values, season=12)), [0.0, 1.0, 0.0, 1.0, 2.0, 3.0, 4.0])


def test_a_gap_beyond_the_ring_leaves_the_end_of_the_line() -> None:
    history = _push(_filled(np.array([2.0, 3.0]), 0), 5.0, jnp.int32(5000), 0.0, jnp.int32(0))
    held = _held(history)
    assert held.size == standardize.HISTORY_CAPACITY
    assert held[-1] == 5.0
    assert (np.diff(held) >= 0.0).all()
    assert np.isfinite(held).all()


def test_a_shift_moves_what_stood_before_the_gap_too() -> None:
    history = _push(_filled(np.array([1.0, 2.0]), 0), 14.0, jnp.int32(1), 10.0, jnp.int32(0))
    np.testing.assert_allclose(_held(history), [11.0, 12.0, 13.0, 14.0])


@pytest.mark.parametrize("periods", [1, 3, 11, 12, 25])
def test_the_season_says_what_follows(periods: int) -> None:
    t = np.arange(200)
    truth = 3.0 * np.sin(2.0 * np.pi * t / 12)
    history = _filled(truth[:100], season=12)
    found = standardize.seasonal_change(history, jnp.int32(periods), jnp.int32(12))
    assert float(found) == pytest.approx(truth[100 + periods] - truth[100], abs=1e-9)


def test_nothing_is_said_without_a_season_or_enough_history() -> None:
    history = _filled(np.sin(np.arange(20.0)), season=0)
    for periods, season in ((3, 0), (0, 6), (19, 10), (3, 30)):
        assert float(standardize.seasonal_change(history, jnp.int32(periods), jnp.int32(season))) == 0.0
