"""The evaluator with the predictor itself, against a plain loop over its step, and what the searched parameters do."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optuna
import pytest

from numerics import series
from usp_daemon import core
from usp_daemon.config import MetaOptimization, Settings
from usp_daemon.tuning import (
    FoldPlan,
    History,
    WalkForwardEvaluator,
    candidate_config,
    parameters_of,
    search_space,
)
from usp_daemon.tuning._space import repaired, structural_names

pytestmark = pytest.mark.slow

SECOND = 1_000_000_000
START = 1_700_000_000 * SECOND
PLAN = FoldPlan(train_ratio=0.3, n_folds=3, n_validation=0, embargo=10, min_test=20)
NUM_TICKS = 500


def history(columns: dict[str, np.ndarray]) -> History:
    return History.from_arrays({name: (START + SECOND * np.arange(len(v)), v) for name, v in columns.items()})


@functools.cache
def judge() -> WalkForwardEvaluator:
    """One evaluator for most tests, so that its program is made once."""
    columns = {
        "noise": np.random.default_rng(3).standard_normal(NUM_TICKS),
        "regimes": series.regime_switch(np.random.default_rng(0), NUM_TICKS),
    }
    return WalkForwardEvaluator(history(columns), Settings(), folds=PLAN, keep_programs=False)


@jax.jit
def _step(state: core.InternalState, value: jax.Array, stamp: jax.Array, config: core.PredictorConfig):  # type: ignore[no-untyped-def]
    state, result = core.orchestrate_step(state, core.ProcessState(value, value, stamp, stamp), config)
    return state, result.prediction.quantiles, result.prediction.accepted


def plain_losses(values: np.ndarray, config: core.PredictorConfig) -> tuple[np.ndarray, np.ndarray]:
    """CRPS of each tick's forecast and whether the tick was let in, one tick after the other."""
    arrays = config.as_arrays(jnp.float64)
    state = core.initialize_state(config, dtype=jnp.float64)
    levels = np.asarray(core.QUANTILE_LEVELS)
    losses, accepted, said = [], [], np.full(len(levels), np.nan)
    for row, value in enumerate(values):
        losses.append(2.0 * np.mean([max(p * (value - q), (p - 1.0) * (value - q)) for p, q in zip(levels, said)]))  # noqa: B905
        state, quantiles, let_in = _step(state, jnp.asarray(value), jnp.asarray(START + SECOND * row), arrays)
        said = np.asarray(quantiles)
        accepted.append(bool(let_in))
    return np.asarray(losses), np.asarray(accepted)


@pytest.mark.long
def test_values_are_those_of_a_plain_loop_over_the_step() -> None:
    candidates = [{"kernel_ridge_lambda": 1e-3}, {"volatility_alpha": 0.3, "learning_rate": 0.01}]
    found = judge().evaluate_batch(candidates)
    runs = {
        (which, one.symbol): plain_losses(one.values, candidate_config(Settings(), candidate))
        for which, candidate in enumerate([{}, *candidates])
        for one in judge()._symbols
    }
    for which, evaluation in enumerate(found, start=1):
        ratios = []
        for name in judge().symbols:
            (mine, _), (base, accepted) = runs[which, name], runs[0, name]
            rows = [np.arange(f.test.start, f.test.stop) for f in PLAN.split(NUM_TICKS)]
            rows = [r[accepted[r]] for r in rows]
            ratios.append([mine[r].mean() / base[r].mean() for r in rows])
        expected = np.exp(np.mean(np.log(ratios), axis=0))
        assert evaluation.fold_values == pytest.approx(expected, rel=1e-6)
        assert abs(evaluation.value - 1.0) > 1e-4  # the effect is far larger than the tolerance


def test_the_base_is_worth_exactly_one_and_a_twin_of_it_too() -> None:
    """A change that has no effect gives the base's very bits, in another lane."""
    twin = {"max_past_drift_ns": 2 * 86_400_000_000_000}  # every record comes when its tick does
    found = judge().evaluate_batch([{}, twin, {"volatility_alpha": 0.3}])
    assert [one.value for one in found[:2]] == [1.0, 1.0]
    assert found[2].value != 1.0


def test_company_changes_no_bit() -> None:
    space = search_space(MetaOptimization(), "wide")
    traced = {name: drawn for name, drawn in space.items() if name not in structural_names(space)}
    drawer = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    drawn = [repaired(drawer.ask(traced).params, traced) for _ in range(11)]
    candidates = [{**one, "cusum_k": 0.5, "cusum_h": 20.0} for one in drawn]
    together = judge().evaluate_batch(candidates)
    alone = judge().evaluate_batch(candidates[7:8])[0]
    assert alone.fold_values == together[7].fold_values
    kept = judge().evaluate_batch(candidates, prune_fn=lambda index, done, mean: index not in (2, 7))
    assert [one.pruned for one in kept] == [index not in (2, 7) for index in range(11)]
    assert kept[7].fold_values == together[7].fold_values
    assert judge().num_programs == 1


def test_later_ticks_change_nothing_of_an_earlier_fold() -> None:
    values = np.random.default_rng(3).standard_normal(NUM_TICKS)
    fold = PLAN.split(NUM_TICKS)[0]
    values[fold.test.stop :] = 50.0 + np.cumsum(values[fold.test.stop :])
    other = WalkForwardEvaluator(
        history({"noise": values}), Settings(), folds=PLAN, keep_programs=False, programs=judge().programs
    )
    candidate = {"kernel_ridge_lambda": 1e-3}
    judge().evaluate_batch([candidate])
    other.evaluate_batch([candidate])
    noise = judge().symbols.index("noise")
    for mine, its in (
        (judge().scorecard(candidate), other.scorecard(candidate)),
        (judge().base_scorecard, other.base_scorecard),
    ):
        assert mine is not None and its is not None
        assert mine.loss[noise, 0].tolist() == its.loss[0, 0].tolist()
        assert mine.loss[noise, 1].tolist() != its.loss[0, 1].tolist()


def test_a_ridge_that_suits_the_series_wins() -> None:
    """Nothing can be learnt from noise, so the stronger the ridge the better; the outcome is known beforehand."""
    only = WalkForwardEvaluator(
        history({"noise": np.random.default_rng(3).standard_normal(NUM_TICKS)}),
        Settings(),
        folds=PLAN,
        keep_programs=False,
        programs=judge().programs,
    )
    weak, strong = only.evaluate_batch([{"kernel_ridge_lambda": 1e-8}, {"kernel_ridge_lambda": 1e-3}])
    assert strong.value < weak.value
    assert strong.value < 1.0


# Series on which something happens that the parameter decides; see tests/numerics/test_tunables.py.
JUMPY = (("jumps", 5), ("jumps", 6), ("jumps", 21), ("overshoot", 0), ("overshoot", 2), ("overshoot", 6))
ROUGH = tuple(("roughness_change", seed) for seed in (0, 1, 2))
MANY_TICKS = 800


@functools.cache
def wide() -> WalkForwardEvaluator:
    table = series.table(MANY_TICKS)
    columns = {name: table[:, column] for column, name in enumerate(series.FAMILIES)}
    for family, seed in (*JUMPY, *ROUGH):
        columns[f"{family} {seed}"] = series.FAMILIES[family](np.random.default_rng([seed]), MANY_TICKS)
    return WalkForwardEvaluator(history(columns), Settings(), folds=PLAN, keep_programs=False)


TRACED = [one for one in parameters_of("wide") if not one.is_structural]


@functools.cache
def traced_values() -> dict[str, tuple[float, ...]]:
    """Values at both ends of every traced parameter's range, all in one batch."""
    candidates = []
    for one in TRACED:
        for end in ("min", "max"):
            candidates.append({one.name: getattr(MetaOptimization(), f"{one.name}_{end}")})
            if one.name == "cusum_h" and end == "min":  # below the asked rate's own threshold nothing is run
                candidates[-1] = {"cusum_h": 13.5}
    found = wide().evaluate_batch(candidates)
    values = [one.fold_values for one in found]
    return {one.name: (*values[2 * k], *values[2 * k + 1]) for k, one in enumerate(TRACED)}


@pytest.mark.long
@pytest.mark.parametrize("one", TRACED, ids=lambda one: one.name)
def test_every_traced_parameter_moves_the_objective(one) -> None:  # type: ignore[no-untyped-def]
    values = traced_values()[one.name]
    assert len(values) == 2 * PLAN.n_folds
    assert max(abs(value - 1.0) for value in values) > 1e-9, f"{one.name} does nothing: {values}"


@pytest.mark.long
@pytest.mark.parametrize(
    "candidate", [{"log_sig_depth": 2}, {"dgm_width_size": 32}, {"dgm_depth": 2}], ids=lambda one: next(iter(one))
)
def test_every_structural_parameter_moves_the_objective(candidate: dict[str, int]) -> None:
    (found,) = wide().evaluate_batch([candidate])
    assert max(abs(value - 1.0) for value in found.fold_values) > 1e-9
    assert dataclasses.asdict(found)["constraint"] < 1.0
