"""The whole step: causality, refusal, reproducibility, and what holds of every result whatever comes in."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from usp_daemon import core
from usp_daemon.core import GateReason, OperatingMode, PredictionResult, PredictorConfig, ProcessState, ResultCode

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


# -- scoring -----------------------------------------------------------------------------------------------------------


def test_what_is_scored_is_the_forecast_stored_on_the_previous_tick(warm) -> None:
    _, said = warm
    values = _streams(260)
    usual = said.accepted & (said.gate_reasons == 0)
    usual = usual[2:] & usual[1:-1]
    expected = (values[2:] - said.predicted_next[1:-1]) / said.scale[1:-1]
    assert usual.mean() > 0.95
    np.testing.assert_allclose(said.forecast_error[2:][usual], expected[usual], rtol=1e-9, atol=1e-9)
    # "The last value" is no perfect forecast of what came next.
    assert np.abs(said.forecast_error[100:]).mean() > 0.3


# -- weights -----------------------------------------------------------------------------------------------------------

SIGNATURE_ONLY = np.array([0.0, 0.0, 0.0, 1.0])


def _with(**fields) -> PredictorConfig:
    return dataclasses.replace(PredictorConfig(), **fields).as_arrays()


def _fused(said) -> np.ndarray:
    """The forecast that the emitted weights and the experts' emitted forecasts make."""
    return np.sum(said.weights * said.kernel_predictions, axis=-1)


def test_the_forecast_is_made_with_the_weights_emitted_with_it(run, warm) -> None:
    state, before = warm
    values = _streams(500)[260:].copy()
    values[100:103] = np.nan
    values[180:] = values[180] + 60.0 * (values[180:] - values[180]) + 40.0 * np.asarray(state.gate.scale)
    _, said = run(values, state, first=260)
    for part in (before, said):
        size = np.abs(part.predicted_next) + part.scale
        np.testing.assert_allclose(_fused(part) / size, part.predicted_next / size, atol=1e-12)
        np.testing.assert_allclose(part.weights.sum(axis=-1), 1.0, atol=1e-12)
        assert (part.weights >= 0.0).all()
    everything = (before, said)

    def share(flag) -> float:
        return float(np.mean(np.concatenate([flag(part) for part in everything])))

    # Every row of the table of weights came up.
    assert share(lambda part: part.mode == OperatingMode.EMERGENCY) > 0.0
    assert share(lambda part: part.regime_change_detected & (part.weights == 0.25).all(axis=-1)) > 0.0
    assert share(lambda part: part.grace_counter > 0) > 0.0
    assert share(lambda part: part.degraded_inference_mode) > 0.0
    assert share(lambda part: ~part.accepted) > 0.0


def test_held_weights_stay_and_cost_no_iteration(run, warm) -> None:
    state, before = warm
    values = _streams(300)[260:].copy()
    values[10] = np.nan
    values[20:] += 50.0 * np.asarray(state.gate.scale)
    _, said = run(values, state, first=260)
    graces = said.grace_counter > 0
    held = said.degraded_inference_mode | graces | (said.mode == OperatingMode.EMERGENCY)
    assert (said.sinkhorn_iterations[held] == 0).all()
    assert (said.free_energy[held] == 0.0).all()
    assert not said.sinkhorn_converged[held].any()
    assert ((said.result_code[held] & int(ResultCode.SINKHORN_NOT_CONVERGED)) == 0).all()
    free = said.accepted & ~held & (said.sequence > 1)
    assert (said.sinkhorn_iterations[free] > 0).mean() > 0.9
    assert held[10].all()
    np.testing.assert_array_equal(said.weights[10], said.weights[9])
    np.testing.assert_allclose(said.weights[11], said.weights[9], rtol=1e-14)
    # In grace, once the emergency of the jump is over, they are what the alarm made of them.
    assert (before.sequence[-1] == 260).all()
    calm = graces & (said.mode == OperatingMode.STANDARD)
    alarmed = np.maximum.accumulate(said.regime_change_detected, axis=0)
    assert (said.weights[calm & alarmed] == 0.25).all()


@pytest.mark.parametrize(("name", "ends"), [("sinkhorn_alpha", (1e-6, 1.0)), ("sinkhorn_epsilon_min", (1e-4, 0.1))])
def test_the_regularisation_decides_the_forecast(run, warm, name: str, ends: tuple[float, float]) -> None:
    """By default the transport plan decides the move: what shapes the plan moves a forecast."""
    state, _ = warm
    values = _streams(340)[260:]
    said = [run(values, state, _with(**{name: end}), first=260)[1] for end in ends]
    moved = np.abs(said[0].predicted_next - said[1].predicted_next) / said[0].scale
    assert moved.max() > 1e-3


# -- emergency ---------------------------------------------------------------------------------------------------------


def test_roughness_below_threshold_and_baseline_hands_all_to_the_signature_expert(run, warm) -> None:
    """T-53: weights (0, 0, 0, 1), Huber's loss, and held until H clears the threshold and the hysteresis."""
    state, _ = warm
    state = eqx.tree_at(
        lambda s: (s.model.breaker.baseline, s.model.breaker.precision),
        state,
        (jnp.full(WIDTH, 0.95, jnp.float64), jnp.full(WIDTH, 1e6, jnp.float64)),
    )
    values = _streams(420)[260:]
    # Walks have H = 0.5: certainly below 0.75 and below the baseline that was put in place.
    forced = _with(holder_threshold=0.75, holder_hysteresis=0.2)
    state, said = run(values[:60], state, forced, first=260)
    walks = np.flatnonzero(
        (np.arange(WIDTH) % 4 == 0) & (said.sequence[-1] == 320) & ~said.regime_change_detected.any(axis=0)
    )
    assert walks.size >= 2
    # The refresh after tick 300 sees it; every forecast after it is the emergency's.
    for lane in walks:
        assert (said.mode[:40, lane] != OperatingMode.EMERGENCY).all()
        assert (said.mode[40:, lane] == OperatingMode.EMERGENCY).all()
        assert said.emergency_mode[40:, lane].all()
        np.testing.assert_array_equal(said.weights[40:, lane], np.tile(SIGNATURE_ONLY, (20, 1)))
    np.testing.assert_allclose(said.predicted_next[40:, walks], said.kernel_predictions[40:, walks, 3], rtol=1e-12)

    # Huber's loss: with a small delta and a window of one tick the score is that of the last forecasts alone.
    huber = _with(
        holder_threshold=0.75,
        holder_hysteresis=0.2,
        huber_delta=0.3,
        jko_window_min=1,
        jko_window_max=1,
        anchor_threshold=0.0,
    )
    before = state.model
    state, _ = run(values[60:61], state, huber, first=320)
    miss = (values[60] - np.asarray(before.last_value)) / np.asarray(before.forecast_scale)
    error = miss[:, None] - np.asarray(before.kernel_increments)
    expected = np.where(np.abs(error) <= 0.3, error**2 / 0.6, np.abs(error) - 0.15)
    np.testing.assert_allclose(np.asarray(state.model.score.loss)[walks], expected[walks], rtol=1e-9)

    # Above the threshold but not by the hysteresis: held. Above both: over with the next refresh.
    state, held = run(values[61:110], state, _with(holder_threshold=0.4, holder_hysteresis=0.3), first=321)
    quiet = walks[~held.regime_change_detected[:, walks].any(axis=0) & (held.alarm_kind[:, walks] == 0).all(axis=0)]
    assert quiet.size >= 1
    assert (held.holder_exponent[30:, quiet] > 0.4).all()
    assert (held.mode[:, quiet] == OperatingMode.EMERGENCY).all()
    _, over = run(values[110:], state, _with(holder_threshold=0.3, holder_hysteresis=0.05), first=370)
    ended = over.mode[-1, quiet] != OperatingMode.EMERGENCY
    assert ended.all()
    assert (over.weights[-1, quiet] != SIGNATURE_ONLY).any(axis=-1).all()


def _levels_with_noise(num: int, sizes: np.ndarray, seed: int) -> np.ndarray:
    noise = np.random.default_rng(seed).standard_normal((num, WIDTH))
    noise[:, WIDTH // 2 :] = np.cumsum(0.3 * noise[:, WIDTH // 2 :], axis=0)
    values = 50.0 + 50.0 / sizes * noise
    return values


def test_a_jump_from_50_to_100_is_an_emergency_of_the_tick_that_lets_it_in(run) -> None:
    """T-54: 100 samples near 50, then 100. The gate takes the third for real; on that tick the circuit is broken."""
    values = _levels_with_noise(170, np.full(WIDTH, 100.0), seed=5)
    values[100:] += 50.0
    _, said = run(values)
    assert not said.accepted[100:102].any(), "two far ticks could still be spikes"
    assert said.accepted[102].all()
    assert (said.gate_reasons[102] & int(GateReason.REBASED)).all()
    # It is a change of regime too, which would end any other emergency.
    assert said.regime_change_detected[102].all()
    assert (said.mode[:102] != OperatingMode.EMERGENCY).all()
    assert (said.mode[102] == OperatingMode.EMERGENCY).all()
    np.testing.assert_array_equal(said.weights[102], np.tile(SIGNATURE_ONLY, (WIDTH, 1)))
    np.testing.assert_allclose(said.predicted_next[102], said.kernel_predictions[102, :, 3], rtol=1e-12)
    # Held for refresh_interval ticks, ended by an estimate.
    assert (said.mode[102:150] == OperatingMode.EMERGENCY).all()
    for lane in range(WIDTH):
        assert said.holder_exponent[149:, lane].std() > 0.0


def test_a_jump_that_the_gate_lets_in_at_once_is_an_emergency_at_once(run) -> None:
    values = _levels_with_noise(330, np.full(WIDTH, 500.0), seed=6)
    sizes = np.where(np.arange(WIDTH) % 2 == 0, 12.0, 4.0)
    step = np.abs(np.diff(values[:200], axis=0)).mean(axis=0) * 1.25
    values[200:] += sizes * step
    _, said = run(values)
    assert said.accepted[200].all()
    assert (said.mode[:200] != OperatingMode.EMERGENCY).all()
    far = sizes == 12.0
    assert (said.mode[200, far] == OperatingMode.EMERGENCY).all()
    assert (said.weights[200, far] == SIGNATURE_ONLY).all()
    assert (said.mode[200, ~far] != OperatingMode.EMERGENCY).all()
    assert (said.mode[-1] != OperatingMode.EMERGENCY).all()


def test_rough_heavy_tailed_and_discrete_series_are_no_emergency(run) -> None:
    generator = np.random.default_rng(11)
    num = 1000
    values = np.empty((num, WIDTH))
    for lane in range(WIDTH):
        z = generator.standard_normal(num)
        moves = generator.choice([-2, -1, 1, 2], num) * (generator.random(num) < 0.3)
        values[:, lane] = (
            np.cumsum(generator.standard_t(3, num)),  # heavy tails
            np.convolve(z, 0.5 ** np.arange(40))[:num],  # mean reversion
            z,  # no memory at all: as rough as it gets
            0.01 * np.cumsum(moves),  # mostly equal values
        )[lane % 4]
    _, said = run(100.0 + values)
    emergency = said.mode == OperatingMode.EMERGENCY
    share = [emergency[:, kind::4].mean() for kind in range(4)]
    # Real jumps among the heavy tails last a refresh or two each.
    assert share[0] < 0.15
    assert max(share[1:]) < 0.03
    assert not emergency.all(axis=0).any()
