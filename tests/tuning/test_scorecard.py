"""From sums to values and constraints, on worked examples."""

import math

import numpy as np
import pytest
from scipy import stats

from usp_daemon.tuning import Fold
from usp_daemon.tuning._scorecard import (
    NUM_BLOCKS,
    Observations,
    Scorecard,
    alarm_constraint,
    binomial_quantile,
    fold_values,
    poisson_quantile,
)

ALL = slice(None)


def card(losses: list[list[float]], count: int = 100, alarms: int = 0, kept: int = 0) -> Scorecard:
    """Sums by (symbol, fold), in the first block; alarms in the first fold of the first symbol."""
    made = Scorecard.empty(len(losses), len(losses[0]))
    made.loss[:] = 0.0
    made.loss[:, :, 0] = losses
    made.count[:, :, 0] = count
    made.alarms[0, 0], made.kept[0, 0] = alarms, kept
    return made


def test_values_are_geometric_over_symbols() -> None:
    base = card([[10.0, 20.0], [1000.0, 2000.0]])
    better = card([[5.0, 20.0], [1000.0, 1000.0]])
    values = fold_values(better, base, np.asarray([1.0, 100.0]), ALL)
    assert values == pytest.approx((math.sqrt(0.5), math.sqrt(0.5)), rel=1e-4)
    assert fold_values(base, base, np.asarray([1.0, 100.0]), ALL) == (1.0, 1.0)


def test_units_do_not_matter() -> None:
    base, other = card([[10.0], [30.0]]), card([[9.0], [33.0]])
    scaled_base, scaled_other = card([[10.0], [30e6]]), card([[9.0], [33e6]])
    one = fold_values(other, base, np.asarray([0.1, 0.3]), ALL)
    two = fold_values(scaled_other, scaled_base, np.asarray([0.1, 0.3e6]), ALL)
    assert one == pytest.approx(two, rel=1e-12)


def test_a_symbol_at_rest_does_not_count_and_perfection_is_no_division_by_zero() -> None:
    base, other = card([[0.0], [10.0]]), card([[0.0], [20.0]])
    assert fold_values(other, base, np.asarray([0.0, 1.0]), ALL) == pytest.approx((2.0,), rel=1e-4)
    assert fold_values(base, base, np.asarray([0.0, 0.0]), ALL) == (1.0,)
    (perfect,) = fold_values(card([[0.0]]), card([[10.0]]), np.asarray([1.0]), ALL)
    assert 0.0 < perfect < 1e-3
    (no_longer,) = fold_values(card([[10.0]]), card([[0.0]]), np.asarray([1.0]), ALL)
    assert math.isfinite(no_longer)


def test_both_sides_are_scored_on_the_ticks_that_the_base_let_in() -> None:
    base = Observations(
        loss=np.asarray([np.nan, 1.0, 1.0, 50.0, 1.0, 1.0, 1.0, 1.0]),
        alarm=np.zeros(8, bool),
        accepted=np.asarray([1, 1, 1, 0, 1, 1, 1, 1], bool),
    )
    seen = Observations(np.asarray([np.nan, 9.0, 9.0, 9.0, 2.0, 2.0, 2.0, 3.0]), np.zeros(8, bool), base.accepted)
    made = Scorecard.empty(1, 1)
    assert made.folds_done == 0
    made.enter(0, 0, Fold(slice(0, 2), slice(2, 8)), seen, base)
    assert made.folds_done == 1
    assert made.loss.sum() == 9.0 + 2.0 + 2.0 + 2.0 + 3.0
    assert made.count.sum() == 5
    assert made.loss.shape == (1, 1, NUM_BLOCKS)


def test_a_loss_that_is_not_finite_makes_the_value_infinite() -> None:
    quiet = np.zeros(8, bool)
    base = Observations(np.ones(8), quiet, ~quiet)
    for bad in (np.nan, np.inf):
        loss = np.ones(8)
        loss[5] = bad
        made, own = Scorecard.empty(1, 1), Scorecard.empty(1, 1)
        made.enter(0, 0, Fold(slice(0, 2), slice(2, 8)), Observations(loss, quiet, ~quiet), base)
        own.enter(0, 0, Fold(slice(0, 2), slice(2, 8)), base, base)
        assert fold_values(made, own, np.ones(1), ALL) == (math.inf,)


def test_an_alarm_is_kept_when_one_comes_near_it_and_in_time() -> None:
    def run(*rows: int) -> Observations:
        alarm = np.zeros(1000, bool)
        alarm[list(rows)] = True
        return Observations(np.ones(1000), alarm, np.ones(1000, bool))

    fold = Fold(slice(0, 200), slice(200, 600))
    for rows, alarms, kept in (((300, 590), 2, 2), ((340,), 1, 1), ((360,), 1, 0), ((190, 610), 0, 0), ((), 0, 0)):
        made = Scorecard.empty(1, 1)
        made.enter(0, 0, fold, run(*rows), run(300, 590))
        assert (made.alarms.sum(), made.kept.sum()) == (alarms, kept)


@pytest.mark.parametrize("mean", [0.01, 0.1, 1.0, 4.5, 60.0, 499.0, 900.0])
def test_the_poisson_quantile_is_scipy_s(mean: float) -> None:
    assert poisson_quantile(mean, 0.95) == pytest.approx(stats.poisson.ppf(0.95, mean), abs=1 if mean > 500 else 0)


@pytest.mark.parametrize("trials", [0, 1, 2, 5, 17, 200])
@pytest.mark.parametrize("probability", [0.5, 0.3])
def test_the_binomial_quantile_is_scipy_s(trials: int, probability: float) -> None:
    assert binomial_quantile(trials, probability, 0.95) == stats.binom.ppf(0.95, trials, probability)


def test_many_more_alarms_than_before_are_not_feasible_and_neither_is_silence() -> None:
    base = card([[1.0]], count=10_000, alarms=10, kept=10)
    limit = poisson_quantile(15.0, 0.95)

    def constraint(alarms: int, kept: int) -> float:
        return alarm_constraint(card([[1.0]], 10_000, alarms, kept), base, ALL, mean_ticks_between_false=50_000.0)

    assert constraint(10, 10) <= 0.0
    assert constraint(limit, 10) == 0.0
    assert constraint(limit + 1, 10) > 0.0
    assert constraint(5, 5) <= 0.0
    assert constraint(0, 0) > 0.0
    assert constraint(40, 10) > constraint(30, 10)


def test_the_asked_rate_is_allowed_where_the_base_is_silent() -> None:
    base, noisy = card([[1.0]], count=10_000), card([[1.0]], count=10_000, alarms=8)
    assert alarm_constraint(noisy, base, ALL, mean_ticks_between_false=1_000.0) <= 0.0
    assert alarm_constraint(noisy, base, ALL, mean_ticks_between_false=50_000.0) > 0.0
