"""The predictor itself on the engine: the same bits however a stream is cut, and no compilation while it runs."""

import dataclasses
import itertools

import numpy as np
import pytest

from usp_daemon.compute import Engine, PartitionStates, StateKey, choose_device
from usp_daemon.core import DGM_TIERS, TRACED_FIELDS, PredictorConfig

from .fake_program import same_bits

pytestmark = pytest.mark.slow

NUM_SYMBOLS, NUM_TICKS = 40, 110  # beyond two refreshes where no tick is refused; padding in every page


@pytest.fixture(scope="module", params=["float64", "float32"])
def programs(request):
    choice = choose_device("cpu", request.param)
    return choice, Engine(PredictorConfig(), choice).programs


def new_engine(programs, **options):
    choice, compiled = programs
    return Engine(PredictorConfig(), choice, programs=compiled, **options)


def streams():
    """Symbols of very different kinds, interleaved at random; some ticks are garbage."""
    rng = np.random.default_rng(11)
    order = rng.permutation(np.repeat(np.arange(NUM_SYMBOLS), NUM_TICKS))
    values = np.zeros(order.size)
    stamps = np.zeros(order.size, np.int64)
    for symbol in range(NUM_SYMBOLS):
        noise = rng.normal(size=NUM_TICKS)
        series = (
            100.0 + np.cumsum(noise),
            np.sin(np.arange(NUM_TICKS) / 3.0) + 0.1 * noise,
            np.round(np.cumsum(noise) / 4.0),
            1e9 * (1.0 + (np.arange(NUM_TICKS) > 60)) + noise,
        )[symbol % 4]
        if symbol % 5 == 0:
            series[rng.integers(0, NUM_TICKS, 6)] = [np.nan, np.inf, -np.inf, 1e300, -1e300, 0.0]
        rows = order == symbol
        values[rows] = series
        stamps[rows] = 1_700_000_000_000_000_000 + 1_000_000_000 * np.arange(NUM_TICKS)
    return order, values, stamps


def run(engine, order, values, stamps, cuts=(), partitions=1):
    keys = [StateKey("ticks", int(symbol) % partitions, f"symbol {symbol}") for symbol in order]
    edges = [0, *cuts, len(keys)]
    parts = [
        engine.step(keys[a:b], values[a:b], stamps[a:b], stamps[a:b]).columns for a, b in itertools.pairwise(edges)
    ]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def test_bits_do_not_depend_on_lane_company_batch_or_padding(programs):
    order, values, stamps = streams()
    whole = run(new_engine(programs), order, values, stamps)
    cuts = np.sort(np.random.default_rng(5).choice(np.arange(1, order.size), 60, replace=False)).tolist()
    cut = run(new_engine(programs, direct_fraction=0.2), order, values, stamps, cuts, partitions=3)
    for name, column in whole.items():
        assert same_bits(column, cut[name]), name
    assert whole["refresh_due"].sum() >= NUM_SYMBOLS  # fewer than two each, since refused ticks do not count
    # alone: all lanes beside it are padding
    for symbol in (0, 3):
        rows = order == symbol
        alone = run(new_engine(programs), order[rows], values[rows], stamps[rows])
        for name, column in alone.items():
            assert same_bits(whole[name][rows], column), name
    # a refused tick leaves a finite forecast
    for name in ("predicted_next", "lower_95", "upper_95", "weights"):
        assert np.isfinite(whole[name]).all(), name


def test_states_resume_bit_for_bit(programs):
    order, values, stamps = streams()
    half = order.size // 2
    engine = new_engine(programs)
    run(engine, order[:half], values[:half], stamps[:half])
    resumed = new_engine(programs)
    resumed.import_states("ticks", 0, engine.export_states("ticks", 0))
    left = run(engine, order[half:], values[half:], stamps[half:])
    right = run(resumed, order[half:], values[half:], stamps[half:])
    for name, column in left.items():
        assert same_bits(column, right[name]), name


def test_a_thousand_ticks_after_export_and_import_are_the_same_bits(programs):
    """Several symbols, and the states pass through bytes, as they do in a file."""
    rng = np.random.default_rng(12)
    count, before, after = 5, 60, 1000
    order = np.tile(np.arange(count), before + after)
    values = 100.0 + np.cumsum(rng.standard_normal((before + after, count)), axis=0).ravel() / 10.0
    stamps = 1_700_000_000_000_000_000 + 1_000_000_000 * np.repeat(np.arange(before + after), count)
    cut = before * count
    engine, resumed = new_engine(programs), new_engine(programs)
    run(engine, order[:cut], values[:cut], stamps[:cut])
    exported = engine.export_states("ticks", 0)
    arrays = {
        path: np.frombuffer(array.tobytes(), array.dtype).reshape(array.shape)
        for path, array in exported.arrays.items()
    }
    resumed.import_states("ticks", 0, PartitionStates(exported.symbols, arrays))
    left = run(engine, order[cut:], values[cut:], stamps[cut:])
    right = run(resumed, order[cut:], values[cut:], stamps[cut:])
    assert left["accepted"].mean() > 0.99
    for name, column in left.items():
        assert same_bits(column, right[name]), name


def test_nothing_compiles_while_every_traced_parameter_changes(programs, compile_events):
    order, values, stamps = streams()
    engine = new_engine(programs)
    run(engine, order[:500], values[:500], stamps[:500])
    compile_events.clear()
    default = PredictorConfig()
    for name in TRACED_FIELDS:
        value = getattr(default, name)
        changed = value + 1 if isinstance(value, int) else value * 1.01
        engine.set_parameters(dataclasses.replace(default, **{name: changed}))
    run(engine, order[500:1500], values[500:1500], stamps[500:1500])
    assert len(DGM_TIERS) > 1  # tiers are switched by the state, inside the one program
    assert compile_events == []
    assert engine.num_compilations == 6
