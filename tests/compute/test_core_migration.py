"""The predictor itself after a change of structure: it runs on, and soon forecasts as if it had always had it."""

import dataclasses

import numpy as np
import pytest

from usp_daemon.compute import Engine, EnginePool, StateKey, choose_device, structure_of
from usp_daemon.core import PredictorConfig

from .fake_program import same_bits

pytestmark = [pytest.mark.slow, pytest.mark.long]

OLD = PredictorConfig()
SMALLER = dataclasses.replace(
    OLD,
    fusion_method="jko",
    kernel_a_embedding_dim=3,
    kernel_a_lags=9,
    kernel_a_features=16,
    dgm_width_size=32,
    dgm_depth=2,
    log_sig_depth=2,
    signature_window=8,
    refresh_interval=20,
)
LARGER = dataclasses.replace(
    OLD,
    kernel_a_embedding_dim=8,
    kernel_a_lags=24,
    kernel_a_features=48,
    dgm_width_size=128,
    log_sig_depth=4,
    signature_window=24,
    refresh_interval=100,
)
NUM_SYMBOLS, BEFORE, AFTER, SETTLED = 24, 400, 900, 500


def series():
    """Predictable in several ways: mean reversion, momentum, a season; (ticks, symbols)."""
    rng = np.random.default_rng(8)
    count = BEFORE + AFTER
    values = np.zeros((count, NUM_SYMBOLS))
    for symbol in range(NUM_SYMBOLS):
        noise = rng.normal(size=count)
        for t in range(2, count):
            past = values[t - 1, symbol], values[t - 2, symbol]
            coefficients = ((0.5, 0.0), (1.6, -0.7), (0.2, 0.5))[symbol % 3]
            values[t, symbol] = coefficients[0] * past[0] + coefficients[1] * past[1] + noise[t]
        if symbol % 4 == 0:
            values[:, symbol] += 3.0 * np.sin(np.arange(count) * 2.0 * np.pi / 12.0)
    return values + 50.0


def run(pool, values, first, last, parameters):
    """The columns of one tick of every symbol at a time, each (ticks, symbols, ...)."""
    keys = [StateKey("ticks", symbol % 2, f"symbol {symbol}") for symbol in range(NUM_SYMBOLS)]
    results = []
    for t in range(first, last):
        stamps = np.full(NUM_SYMBOLS, 1_700_000_000_000_000_000 + t * 1_000_000_000, np.int64)
        results.append(pool.step(keys, values[t], stamps, stamps, parameters).columns)
    return {name: np.stack([result[name] for result in results]) for name in results[0]}


@pytest.fixture(scope="module")
def programs():
    """What every structure runs, compiled once."""
    choice = choose_device("cpu", "float64")
    return {structure_of(config): Engine(config, choice).programs for config in (OLD, SMALLER, LARGER)}


def new_pool(programs):
    def build(config, choice, **options):
        return Engine(config, choice, **{**options, "programs": programs[structure_of(config)]})

    return EnginePool(OLD, choose_device("cpu", "float64"), engine_factory=build)


def errors(columns, values, first):
    """Absolute errors of forecasts made at ``first`` and after: (ticks, symbols)."""
    forecasts = columns["predicted_next"][:-1]
    return np.abs(values[first + 1 : first + 1 + len(forecasts)] - forecasts)


@pytest.mark.parametrize("name", ["smaller", "larger"])
def test_it_goes_on_and_catches_up(programs, name):
    new = {"smaller": SMALLER, "larger": LARGER}[name]
    values = series()
    pool, always = new_pool(programs), new_pool(programs)
    before = run(pool, values, 0, BEFORE, OLD)
    run(always, values, 0, BEFORE, new)
    after = run(pool, values, BEFORE, BEFORE + AFTER, new)
    expected = run(always, values, BEFORE, BEFORE + AFTER, new)
    for column in ("predicted_next", "lower_95", "upper_95", "weights", "kernel_predictions"):
        assert np.isfinite(after[column]).all(), column
    assert np.allclose(after["weights"].sum(-1), 1.0, atol=1e-6)
    assert (after["result_code"] & 15 == 0).all()  # no kernel failed
    assert (after["sequence"][0] == before["sequence"][-1] + 1).all()
    ours, theirs = errors(after, values, BEFORE), errors(expected, values, BEFORE)
    naive = np.abs(np.diff(values[BEFORE:], axis=0))
    assert theirs[SETTLED:].mean() < 0.9 * naive[SETTLED:].mean()  # there is something to forecast
    assert ours[SETTLED:].mean() < 1.01 * theirs[SETTLED:].mean()
    assert ours[:100].mean() < 1.1 * theirs[:100].mean()


def test_a_replay_with_the_same_changes_gives_the_same_bits(programs):
    values = series()
    plan = ((0, 90, OLD), (90, 130, LARGER), (130, 170, SMALLER), (170, 200, OLD))
    first, second = new_pool(programs), new_pool(programs)
    for begin, end, config in plan:
        left = run(first, values, begin, end, config)
        right = run(second, values, begin, end, dataclasses.replace(config))
        for name, column in left.items():
            assert same_bits(column, right[name]), name
    for partition in (0, 1):
        left, right = (pool.export_states("ticks", partition) for pool in (first, second))
        for path, array in left.arrays.items():
            assert same_bits(array, right.arrays[path]), path
