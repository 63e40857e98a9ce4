"""Ways to run every series of a suite through the predictor.

``scan``   all series side by side as lanes, a compiled scan over the ticks: fast, equals the service to a tolerance
``live``   through the service's own engine, the very programs that a daemon runs
``naive``  the yardstick itself: last value with a Gaussian interval
"""

import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from usp_daemon import core

from ._suite import Run, Series, naive_run

CHUNK_TICKS = 250
LIVE_ROWS = 50  # rows of all series in one batch of the service's engine
REFRESH_WIDTH = 4  # lanes refreshed together; lanes fall out of step as soon as one of them refuses a tick

# Columns that leave the device, by their name in the prediction.
SCALAR_COLUMNS = (
    "predicted_next",
    "lower_95",
    "lower_80",
    "upper_80",
    "upper_95",
    "scale",
    "accepted",
    "regime_change_detected",
    "alarm_kind",
    "alarm_start_ticks_ago",
    "alarm_statistic",
    "adaptive_threshold",
    "season_length",
    "gate_reasons",
    "mode",
    "holder_exponent",
    "innovation",
)
VECTOR_COLUMNS = ("quantiles", "kernel_predictions", "weights")

Engine = Callable[[Sequence[Series], Any], list[Run]]


def stack(series: Sequence[Series]) -> tuple[np.ndarray, np.ndarray]:
    """Timestamps and values as (ticks, lanes), shorter series padded with missing values at their own cadence."""
    ticks = max(len(one.values) for one in series)
    ticks = -(-ticks // CHUNK_TICKS) * CHUNK_TICKS
    timestamps = np.zeros((ticks, len(series)), dtype=np.int64)
    values = np.full((ticks, len(series)), np.nan)
    for lane, one in enumerate(series):
        rows = len(one.values)
        cadence = int(np.median(np.diff(one.timestamps_ns))) if rows > 1 else 1_000_000_000
        timestamps[:rows, lane] = one.timestamps_ns
        timestamps[rows:, lane] = one.timestamps_ns[-1] + cadence * np.arange(1, ticks - rows + 1)
        values[:rows, lane] = one.values
    return timestamps, values


def to_run(columns: dict[str, np.ndarray], rows: int) -> Run:
    """The columns of one lane, said after each row, as forecasts of the next row and alarms."""

    def shifted(name: str) -> np.ndarray:
        column = columns[name][:rows]
        return np.concatenate([np.full_like(column[:1], np.nan), column[:-1]])

    accepted_rows = np.flatnonzero(columns["accepted"][:rows] > 0)
    alarms, locations = [], []
    for row in np.flatnonzero(columns["regime_change_detected"][:rows] > 0):
        # the change is dated in accepted ticks, the file counts rows
        position = int(np.searchsorted(accepted_rows, row))
        start = max(0, position - max(0, int(columns["alarm_start_ticks_ago"][row])))
        alarms.append(int(row))
        locations.append(int(accepted_rows[start]) if start < len(accepted_rows) else int(row))
    return Run(
        mean=shifted("predicted_next"),
        lower_95=shifted("lower_95"),
        lower_80=shifted("lower_80"),
        upper_80=shifted("upper_80"),
        upper_95=shifted("upper_95"),
        quantiles=shifted("quantiles"),
        alarms=alarms,
        locations=locations,
        extras={name: column[:rows] for name, column in columns.items() if name != "quantiles"},
    )


def _refresh_due(states: Any, due: jax.Array, config: Any) -> Any:
    """Refresh exactly the lanes that are due, a few at a time."""
    lanes = due.shape[0]
    width = min(REFRESH_WIDTH, lanes)

    def some_left(carry: tuple[Any, jax.Array]) -> jax.Array:
        return jnp.any(carry[1])

    def refresh_some(carry: tuple[Any, jax.Array]) -> tuple[Any, jax.Array]:
        states, due = carry
        (chosen,) = jnp.nonzero(due, size=width, fill_value=lanes)
        group = jax.tree.map(lambda leaf: jnp.take(leaf, chosen, axis=0, mode="clip"), states)
        group = jax.vmap(core.refresh, in_axes=(0, None))(group, config)
        states = jax.tree.map(lambda leaf, new: leaf.at[chosen].set(new, mode="drop"), states, group)
        return states, due.at[chosen].set(False, mode="drop")

    return jax.lax.while_loop(some_left, refresh_some, (states, due))[0]


@eqx.filter_jit
def _run_chunk(states: Any, timestamps: jax.Array, values: jax.Array, config: Any) -> tuple[Any, dict[str, jax.Array]]:
    def tick(states: Any, row: tuple[jax.Array, jax.Array]) -> tuple[Any, dict[str, jax.Array]]:
        timestamp, value = row
        observation = core.ProcessState(
            magnitude=value, reference=value, timestamp_ns=timestamp, record_timestamp_ns=timestamp
        )
        states, result = jax.vmap(core.advance, in_axes=(0, 0, None))(states, observation, config)
        states = _refresh_due(states, result.prediction.refresh_due, config)
        columns = {name: getattr(result.prediction, name) for name in (*SCALAR_COLUMNS, *VECTOR_COLUMNS)}
        return states, {name: column.astype(value.dtype) for name, column in columns.items()}

    return jax.lax.scan(tick, states, (timestamps, values))


def scan(series: Sequence[Series], config: Any, *, dtype: Any = jnp.float64, progress: bool = True) -> list[Run]:
    """Run ``series`` side by side under one compiled scan over ``CHUNK_TICKS`` ticks."""
    timestamps, values = stack(series)
    arrays = config.as_arrays(dtype)
    states = core.initialize_batched_states(len(series), config, dtype=dtype)
    pieces: list[dict[str, np.ndarray]] = []
    began = time.perf_counter()
    compiled_after = 0.0
    for first in range(0, len(values), CHUNK_TICKS):
        rows = slice(first, first + CHUNK_TICKS)
        states, columns = _run_chunk(states, jnp.asarray(timestamps[rows]), jnp.asarray(values[rows], dtype), arrays)
        pieces.append({name: np.asarray(column) for name, column in columns.items()})
        if first == 0:
            compiled_after = time.perf_counter() - began
        if progress:
            done = min(first + CHUNK_TICKS, len(values))
            print(f"\r{done}/{len(values)} ticks of {len(series)} series", end="", file=sys.stderr, flush=True)
    elapsed = time.perf_counter() - began - compiled_after
    if progress:
        later = (len(values) - CHUNK_TICKS) * len(series)
        rate = f", then {1e6 * elapsed / later:.1f} us a tick" if later else ""
        print(f"; first chunk with compilation {compiled_after:.1f} s{rate}", file=sys.stderr)
    joined = {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}
    return [
        to_run({name: column[:, lane] for name, column in joined.items()}, len(one.values))
        for lane, one in enumerate(series)
    ]


def live(series: Sequence[Series], config: Any, *, dtype: Any = jnp.float64, progress: bool = True) -> list[Run]:
    """Run ``series`` as symbols through the engine of the service, row by row, on the device it would choose."""
    from usp_daemon.compute import Engine, StateKey, choose_device

    engine = Engine(config, choose_device(precision=jnp.dtype(dtype).name), max_symbols=len(series))
    keys = [StateKey("benchmark", 0, one.name) for one in series]
    ticks = max(len(one.values) for one in series)
    names = (*SCALAR_COLUMNS, *VECTOR_COLUMNS)
    pieces: list[dict[str, list[np.ndarray]]] = [{name: [] for name in names} for _ in series]
    began = time.perf_counter()
    num_done = 0
    for first in range(0, ticks, LIVE_ROWS):
        # in the order in which the ticks of parallel symbols would arrive
        order = [
            (lane, row)
            for row in range(first, min(first + LIVE_ROWS, ticks))
            for lane, one in enumerate(series)
            if row < len(one.values)
        ]
        timestamps = np.asarray([series[lane].timestamps_ns[row] for lane, row in order], dtype=np.int64)
        values = np.asarray([series[lane].values[row] for lane, row in order])
        batch = engine.step([keys[lane] for lane, _ in order], values, timestamps, timestamps)
        lanes = np.asarray([lane for lane, _ in order])
        for lane, piece in enumerate(pieces):
            for name in names:
                piece[name].append(np.asarray(batch.columns[name][lanes == lane], dtype=np.float64))
        num_done += len(order)
        if progress:
            print(f"\r{min(first + LIVE_ROWS, ticks)}/{ticks} rows", end="", file=sys.stderr, flush=True)
    if progress:
        print(f"; {1e6 * (time.perf_counter() - began) / num_done:.1f} us a tick", file=sys.stderr)
    return [
        to_run({name: np.concatenate(parts) for name, parts in piece.items()}, len(one.values))
        for one, piece in zip(series, pieces, strict=True)
    ]


def naive(series: Sequence[Series], config: Any, **ignored: Any) -> list[Run]:
    """The yardstick as an engine: a check of the harness, and its own row of every table."""
    del config, ignored
    return [naive_run(one) for one in series]
