"""The whole step: causality, refusal, reproducibility, and what holds of every result whatever comes in."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from usp_daemon import core
from usp_daemon.core import GateReason, PredictionResult, PredictorConfig, ProcessState

WIDTH = 16
SECOND = 1_000_000_000
START = 1_700_000_000 * SECOND
CONFIG = PredictorConfig().as_arrays()
_ONE_TICK = jax.tree.structure(ProcessState(jnp.asarray(0.0), jnp.asarray(0.0), jnp.asarray(0), jnp.asarray(0)))
DTYPES = {"float64": jnp.float64, "float32": jnp.float32}


def _record(magnitude, stamps, records) -> ProcessState:
    """A batch of ticks: the record of one with a leading axis on every leaf, which its constructor does not take."""
    return jax.tree.unflatten(_ONE_TICK, (magnitude, magnitude, stamps, records))


def _ticks(values, stamps, records=None, dtype=jnp.float64) -> ProcessState:
    values = jnp.asarray(np.asarray(values), dtype)
    stamps = jnp.asarray(np.broadcast_to(stamps, values.shape), jnp.int64)
    records = stamps if records is None else jnp.asarray(np.broadcast_to(records, values.shape), jnp.int64)
    return _record(values, stamps, records)


def _bits(tree) -> list[bytes]:
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


def _lane(tree, lane):
    return jax.tree.map(lambda leaf: np.asarray(leaf)[lane], tree)


def _streams(num: int, width: int = WIDTH, seed: int = 0) -> np.ndarray:
    """A symbol per column: levels, walks, tails, seasons, scales from 1e-3 to 1e4."""
    generator = np.random.default_rng(seed)
    noise = generator.standard_normal((num, width))
    out = np.empty((num, width))
    for lane in range(width):
        z = noise[:, lane]
        kind = lane % 4
        if kind == 0:
            out[:, lane] = np.cumsum(z)
        elif kind == 1:
            out[:, lane] = np.convolve(z, 0.9 ** np.arange(60))[:num]
        elif kind == 2:
            out[:, lane] = 10.0 * np.sin(2.0 * np.pi * np.arange(num) / 24.0) + z
        else:
            out[:, lane] = np.cumsum(generator.standard_t(3, num))
    return 100.0 + out * 10.0 ** (np.arange(width) % 8 - 3)


@pytest.fixture(scope="module")
def step():
    """The one program nearly all of these tests share: a batch of sixteen symbols, one tick."""
    return jax.jit(core.orchestrate_step_batch)


@pytest.fixture(scope="module")
def pristine():
    return core.initialize_batched_states(WIDTH, PredictorConfig(), jnp.float64)


@pytest.fixture(scope="module")
def run(step, pristine):
    """Feeds a table of values, one row a tick; returns the last state and the predictions stacked by tick."""

    def go(values, state=None, config=CONFIG, first=0):
        state = pristine if state is None else state
        seen = []
        for t, row in enumerate(values):
            state, result = step(state, _ticks(row, START + SECOND * (first + t)), config)
            seen.append(result.prediction)
        return state, jax.tree.map(lambda *leaves: np.stack([np.asarray(leaf) for leaf in leaves]), *seen)

    return go


@pytest.fixture(scope="module")
def warm(run):
    """The state after 260 ordinary ticks (past the first fit of the reference), and what was said on the way."""
    return run(_streams(260))


# -- refusal -----------------------------------------------------------------------------------------------------------

NOW = START + 260 * SECOND


def test_a_refused_tick_leaves_the_model_as_it_was_bit_for_bit(step, warm) -> None:
    state, _ = warm
    last = np.asarray(state.model.last_value)
    far = last + 1e4 * np.asarray(state.gate.scale)
    ordinary = last + 0.1 * np.asarray(state.gate.scale)
    cases = {
        GateReason.NOT_FINITE: [_ticks(np.full(WIDTH, bad), NOW) for bad in (np.nan, np.inf, -np.inf, 1e300)],
        GateReason.FUTURE: [_ticks(ordinary, NOW, NOW - 2 * SECOND)],
        GateReason.TOO_OLD: [_ticks(ordinary, NOW, NOW + 86_401 * SECOND)],
        GateReason.DUPLICATE: [_ticks(ordinary, NOW - SECOND)],
        GateReason.OUT_OF_ORDER: [_ticks(ordinary, NOW - 3 * SECOND // 2)],
        GateReason.OUTLIER: [_ticks(far, NOW)],
    }
    for reason, ticks in cases.items():
        for tick in ticks:
            after, result = step(state, tick, CONFIG)
            prediction = result.prediction
            assert not np.asarray(prediction.accepted).any(), reason
            assert (np.asarray(prediction.gate_reasons) & int(reason)).all(), reason
            assert _bits(after.model) == _bits(state.model), reason
            for name in ("predicted_next", "quantiles", "weights", "kernel_predictions"):
                assert np.isfinite(np.asarray(getattr(prediction, name))).all(), (reason, name)


def test_a_frozen_tick_leaves_the_model_as_it_was_bit_for_bit(step, warm) -> None:
    state, _ = warm
    value = np.asarray(state.model.last_value) + 0.1 * np.asarray(state.gate.scale)
    refused = 0
    for t in range(10):
        before = state
        state, result = step(state, _ticks(value, NOW + t * SECOND), CONFIG)
        frozen = (np.asarray(result.prediction.gate_reasons) & int(GateReason.FROZEN)) != 0
        np.testing.assert_array_equal(~np.asarray(result.prediction.accepted), frozen)
        for lane in np.flatnonzero(frozen):
            assert _bits(_lane(state.model, lane)) == _bits(_lane(before.model, lane))
        refused += frozen.sum()
    assert refused == 6 * WIDTH  # from the fifth equal value on


def test_a_refused_tick_is_followed_by_an_ordinary_one(step, warm) -> None:
    state, _ = warm
    state, _ = step(state, _ticks(np.full(WIDTH, np.nan), NOW), CONFIG)
    state, result = step(state, _ticks(np.asarray(state.model.last_value) * 1.0001, NOW + SECOND), CONFIG)
    assert np.asarray(result.prediction.accepted).all()
    assert np.asarray(result.prediction.missed_periods).max() == 0


# -- causality and reproducibility -------------------------------------------------------------------------------------


def test_the_future_does_not_change_the_past(run, warm) -> None:
    _, full = warm
    values = _streams(260)
    values[120:] = values[120:] * 3.0 - 50.0
    _, other = run(values[:140])
    for field in dataclasses.fields(PredictionResult):
        mine, theirs = getattr(full, field.name), getattr(other, field.name)
        assert mine[:120].tobytes() == theirs[:120].tobytes(), field.name
    assert not np.array_equal(full.predicted_next[120:140], other.predicted_next[120:140])


def test_a_state_that_went_through_numpy_continues_the_same(run, warm) -> None:
    state, _ = warm
    leaves, treedef = jax.tree.flatten(state)
    stored = [np.frombuffer(np.asarray(leaf).tobytes(), leaf.dtype).reshape(leaf.shape) for leaf in leaves]
    restored = jax.tree.unflatten(treedef, [jnp.asarray(leaf) for leaf in stored])
    values = _streams(1260)[260:]
    mine, said = run(values, state, first=260)
    theirs, heard = run(values, restored, first=260)
    assert _bits(mine) == _bits(theirs)
    assert _bits(said) == _bits(heard)
    assert np.isfinite(said.predicted_next).all()
