"""One step, however it is called: alone or in a batch, under jit, vmap and scan; one program for all parameters."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from usp_daemon import core
from usp_daemon.core import TRACED_FIELDS, PredictorConfig

from . import lanes, series

pytestmark = pytest.mark.slow

CONFIG = PredictorConfig(fusion_method="jko_proximal")
NUM_TICKS = 110  # two refreshes


@pytest.fixture(scope="module")
def table() -> np.ndarray:
    """Series of every family with some garbage in half of them."""
    values = series.table(NUM_TICKS)
    values[60:63, ::2] = [[np.nan], [1e300], [np.inf]]
    return values


@pytest.fixture(scope="module")
def batch(table) -> lanes.Run:
    """The table as lanes of a tile: vmap inside scan inside jit."""
    return lanes.run(table, CONFIG)


def assert_close(one, two, values: np.ndarray) -> None:
    """Equal to 1e-12 of their size; whole numbers and flags are equal."""
    for field in dataclasses.fields(core.PredictionResult):
        left, right = np.asarray(getattr(one, field.name)), np.asarray(getattr(two, field.name))
        if left.dtype.kind == "f":
            size = np.maximum(np.abs(left), np.nanmax(np.abs(np.where(np.abs(values) < 1e100, values, 0.0))))
            assert (np.abs(left - right) <= 1e-12 * np.maximum(size, 1.0)).all(), field.name
        else:
            np.testing.assert_array_equal(left, right, err_msg=field.name)


def test_a_symbol_alone_is_a_lane_of_a_batch(table, batch) -> None:
    """``orchestrate_step`` under scan, with no lane beside it and no vmap, against the tile."""
    config = CONFIG.as_arrays()

    @jax.jit
    def alone(values, stamps):
        def one(state, tick):
            state, result = core.orchestrate_step(state, core.ProcessState(tick[0], tick[0], tick[1], tick[1]), config)
            return state, result.prediction

        return jax.lax.scan(one, core.initialize_state(CONFIG, jnp.float64), (values, stamps))[1]

    stamps = jnp.asarray(lanes.START + lanes.SECOND * np.arange(NUM_TICKS), jnp.int64)
    for lane in range(table.shape[1]):
        prediction = alone(jnp.asarray(table[:, lane]), stamps)
        assert_close(prediction, jax.tree.map(lambda leaf, k=lane: leaf[:, k], batch.prediction), table[:, lane])


def test_a_prefix_of_a_run_has_the_same_bits(table, batch) -> None:
    """A trap that comes later does not alter what was said before it."""
    trapped = table.copy()
    trapped[75:] = trapped[75:] * 1e3 + 7.0
    other = lanes.run(trapped, CONFIG).prediction
    short = lanes.run(table[:75], CONFIG).prediction
    for field in dataclasses.fields(core.PredictionResult):
        whole = getattr(batch.prediction, field.name)[:75]
        assert whole.tobytes() == getattr(other, field.name)[:75].tobytes(), field.name
        assert whole.tobytes() == getattr(short, field.name).tobytes(), field.name


def test_a_future_of_nothing_but_nan(table, batch) -> None:
    """Forecasts stay finite for as long as it lasts, and what was said before stands."""
    poisoned = table.copy()
    poisoned[75:] = np.nan
    run = lanes.run(poisoned, CONFIG)
    assert run.finite.all()
    assert not run.prediction.accepted[75:].any()
    assert run.prediction.predicted_next[:75].tobytes() == batch.prediction.predicted_next[:75].tobytes()
    assert (run.prediction.predicted_next[75:] == run.prediction.predicted_next[75:76]).all()


def test_one_program_for_every_traced_parameter_and_every_tier(table, batch) -> None:
    """Nothing compiles while each traced parameter takes another value in another lane and tiers of networks switch."""
    del batch
    compiled = lanes.num_programs()
    moved = []
    for name in TRACED_FIELDS:
        value = getattr(CONFIG, name)
        moved.append(dataclasses.replace(CONFIG, **{name: value + 1 if isinstance(value, int) else value * 1.01}))
    lanes.run(np.repeat(table[:50, :1], len(moved), axis=1), moved)
    # Few bins and a high bar: the narrower law counts as collapsed, and a larger network is asked for.
    narrowed = np.stack([series.narrowing(np.random.default_rng([0, seed]), 300) for seed in range(16)], axis=1)
    eager = dataclasses.replace(CONFIG, dgm_entropy_num_bins=20, entropy_threshold=0.95)
    tiers = lanes.run(narrowed, eager).prediction.dgm_tier
    assert len(np.unique(tiers)) > 1
    assert lanes.num_programs() == compiled
