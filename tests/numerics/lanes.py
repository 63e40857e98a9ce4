"""One compiled program behind many tests: a table of lanes, each with its own series and its own parameters.

Every run is cut into tiles of the same shape, so that tests which feed very different things share one compilation.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from usp_daemon import core
from usp_daemon.core import InternalState, PredictionResult, PredictorConfig, ProcessState
from usp_daemon.core._numerics import select_tree

SECOND = 1_000_000_000
START = 1_700_000_000 * SECOND
WIDTH, TICKS = 48, 50  # the shape of a tile; a refresh falls due every 50 ticks

_ONE_TICK = jax.tree.structure(ProcessState(jnp.asarray(0.0), jnp.asarray(0.0), jnp.asarray(0), jnp.asarray(0)))


def record(magnitude: Any, stamps: Any, records: Any) -> ProcessState:
    """Ticks with leading axes on every leaf, which the record's own constructor does not take."""
    return jax.tree.unflatten(_ONE_TICK, (magnitude, magnitude, stamps, records))


def stack(configs: Sequence[PredictorConfig], dtype: Any) -> PredictorConfig:
    """Parameters of several lanes as one record with a leading axis."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *[config.as_arrays(dtype) for config in configs])


def same_bits(old: Any, new: Any) -> jax.Array:
    """Whether two trees are equal to the last bit, NaN and signed zeros included."""

    def bits(leaf: jax.Array) -> jax.Array:
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            return leaf
        return jax.lax.bitcast_convert_type(leaf, jnp.int64 if leaf.dtype == jnp.float64 else jnp.int32)

    pairs = zip(jax.tree.leaves(old), jax.tree.leaves(new), strict=True)
    return jnp.all(jnp.stack([jnp.all(bits(one) == bits(two)) for one, two in pairs]))


def all_finite(tree: Any) -> jax.Array:
    """Whether every real number in a tree is finite."""
    real = [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in real]))


def step(states: InternalState, ticks: ProcessState, configs: PredictorConfig) -> tuple[InternalState, Any]:
    """One tick of every lane under the lane's own parameters; otherwise as ``orchestrate_step_batch``."""
    advanced, results = jax.vmap(core.advance)(states, ticks, configs)
    due = results.prediction.refresh_due

    def refreshed(batch: InternalState) -> InternalState:
        return jax.vmap(lambda flag, s, config: select_tree(flag, core.refresh(s, config), s))(due, batch, configs)

    return jax.lax.cond(jnp.any(due), refreshed, lambda batch: batch, advanced), results


@jax.jit
def _tile(states: InternalState, table: tuple[ProcessState, jax.Array], configs: PredictorConfig) -> Any:
    def one(states: InternalState, row: tuple[ProcessState, jax.Array]) -> Any:
        ticks, active = row
        after, results = step(states, ticks, configs)
        after = jax.vmap(select_tree)(active, after, states)
        kept = jax.vmap(same_bits)(states.model, after.model)
        finite = jax.vmap(all_finite)((after, results))
        return after, (results.prediction, kept, finite)

    return jax.lax.scan(one, states, table)


@dataclasses.dataclass(frozen=True)
class Run:
    """What a table of lanes gave: arrays by (tick, lane), and the states at the end."""

    prediction: PredictionResult  # NumPy leaves
    model_kept: np.ndarray  # whether the model part is bit-identical to what it was
    finite: np.ndarray  # whether everything that was emitted, and the state, is finite
    state: InternalState


@functools.cache
def _pristine_lane(config: PredictorConfig, dtype: Any) -> InternalState:
    return jax.tree.map(np.asarray, core.initialize_state(config, dtype))


def columns(prediction: PredictionResult, which: Any) -> PredictionResult:
    """The same arrays by (tick, lane) for some of the lanes."""
    return jax.tree.map(lambda leaf: leaf[:, which], prediction)


def run(
    values: np.ndarray,
    configs: PredictorConfig | Sequence[PredictorConfig] = PredictorConfig(),  # noqa: B008 (immutable)
    *,
    dtype: Any = jnp.float64,
    state: InternalState | None = None,
    first: int = 0,
    stamps: np.ndarray | None = None,
    records: np.ndarray | None = None,
) -> Run:
    """Feeds a table of values, one row a tick and one column a lane.

    One set of parameters serves all lanes unless there is one for each. Ticks are a second apart from ``first`` on
    unless ``stamps`` (and ``records``, the times of their records) say otherwise, in ns. ``state`` is that of an
    earlier run of as many lanes.
    """
    num_ticks, num_lanes = values.shape
    listed = [configs] * num_lanes if isinstance(configs, PredictorConfig) else list(configs)
    assert len(listed) == num_lanes
    if stamps is None:
        stamps = np.broadcast_to(START + SECOND * (first + np.arange(num_ticks))[:, None], values.shape)
    records = stamps if records is None else records
    if state is None:
        lanes = [_pristine_lane(config, dtype) for config in listed]
        state = jax.tree.map(lambda *leaves: np.stack(leaves), *lanes)
    padded = -(-num_lanes // WIDTH) * WIDTH
    states, outs = [], []
    for left in range(0, padded, WIDTH):
        columns = np.minimum(np.arange(left, left + WIDTH), num_lanes - 1)
        lanes_state = jax.tree.map(lambda leaf, c=columns: jnp.asarray(np.asarray(leaf)[c]), state)
        lanes_configs = stack([listed[c] for c in columns], dtype)
        tiles = []
        for top in range(0, num_ticks, TICKS):
            rows = np.arange(top, top + TICKS)
            active = np.broadcast_to((rows < num_ticks)[:, None], (TICKS, WIDTH))
            rows = np.minimum(rows, num_ticks - 1)
            with np.errstate(over="ignore"):
                cells = jnp.asarray(values[rows][:, columns].astype(np.dtype(dtype)))
            ticks = record(
                cells,
                jnp.asarray(stamps[rows][:, columns], jnp.int64),
                jnp.asarray(records[rows][:, columns], jnp.int64),
            )
            lanes_state, out = _tile(lanes_state, (ticks, jnp.asarray(active)), lanes_configs)
            tiles.append(jax.tree.map(np.asarray, out))
        outs.append(jax.tree.map(lambda *leaves: np.concatenate(leaves)[:num_ticks], *tiles))
        states.append(jax.tree.map(np.asarray, lanes_state))
    prediction, kept, finite = jax.tree.map(lambda *leaves: np.concatenate(leaves, axis=1)[:, :num_lanes], *outs)
    last = jax.tree.map(lambda *leaves: np.concatenate(leaves)[:num_lanes], *states)
    return Run(prediction, kept, finite, last)


def num_programs() -> int:
    """How many programs the tiles have needed so far: one for each precision and set of structural parameters."""
    return _tile._cache_size()
