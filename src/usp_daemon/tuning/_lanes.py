"""Many candidates on many symbols side by side: one compiled scan over a tile of lanes, each with its own parameters.

It is the predictor's own ``advance`` and ``refresh`` under ``vmap``. A scan differs from the service's one-tick program
in the last bits, so what comes out agrees with the service to a tolerance; among themselves lanes agree to the last
bit wherever they stand, because all tiles of a structure are run by one program of one width.
"""

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from usp_daemon import core
from usp_daemon.core import PredictorConfig, ProcessState

# A tile must fill the widest vector unit evenly, else lanes at its end round differently (as in compute).
WIDTH_MULTIPLE = 16
# Ticks in one call. Long enough that calls cost nothing, short enough that a deadline is seen within a second.
CHUNK_TICKS = 250
# Lanes that are refreshed together. Lanes of one symbol fall due on the same tick, others at any time.
REFRESH_WIDTH = 4

_ONE_TICK = jax.tree.structure(ProcessState(jnp.asarray(0.0), jnp.asarray(0.0), jnp.asarray(0), jnp.asarray(0)))


@dataclass(frozen=True)
class Ticks:
    """A rectangle of ticks, rows by lanes; a row whose value is not a number is a missing one."""

    timestamps_ns: np.ndarray  # int64
    values: np.ndarray  # float64
    record_timestamps_ns: np.ndarray  # int64


@dataclass(frozen=True)
class Observed:
    """What one chunk said, rows by lanes."""

    crps: np.ndarray  # of the forecast made before the row, in the symbol's units; NaN where there is none
    absolute_error: np.ndarray  # of the same forecast's point
    alarm: np.ndarray  # whether an alarm was raised on the row
    accepted: np.ndarray  # whether the gate let the row in


class AbstractProgram(Protocol):
    """Runs a tile of lanes, a chunk of rows at a time."""

    def stacked(self, configs: Sequence[PredictorConfig]) -> Any:
        """Parameters of all lanes as one record with a leading axis."""
        ...

    def start(self, configs: Any) -> Any:
        """Pristine lanes: a tree of arrays with a leading axis."""
        ...

    def run(self, carry: Any, ticks: Ticks, configs: Any) -> tuple[Any, Observed]:
        """One chunk of rows of all lanes; waits for the result. ``carry`` is used up."""
        ...


class AbstractPrograms(Protocol):
    """A program for each structure."""

    def get(self, config: PredictorConfig) -> AbstractProgram:
        """The program of ``config``'s structure."""
        ...

    def __len__(self) -> int:
        """Programs made so far."""
        ...

    @property
    def compile_seconds(self) -> float:
        """Time that making them took."""
        ...


def _refresh_due(states: Any, due: jax.Array, configs: Any) -> Any:
    """Refresh exactly the lanes that are due, a few at a time, each under its own parameters."""
    lanes = due.shape[0]
    width = min(REFRESH_WIDTH, lanes)

    def some_left(carry: tuple[Any, jax.Array]) -> jax.Array:
        return jnp.any(carry[1])

    def refresh_some(carry: tuple[Any, jax.Array]) -> tuple[Any, jax.Array]:
        states, due = carry
        (chosen,) = jnp.nonzero(due, size=width, fill_value=lanes)

        def taken(tree: Any) -> Any:
            return jax.tree.map(lambda leaf: jnp.take(leaf, chosen, axis=0, mode="clip"), tree)

        group = jax.vmap(core.refresh)(taken(states), taken(configs))
        states = jax.tree.map(lambda leaf, new: leaf.at[chosen].set(new, mode="drop"), states, group)
        return states, due.at[chosen].set(False, mode="drop")

    return jax.lax.while_loop(some_left, refresh_some, (states, due))[0]


def _crps(values: jax.Array, quantiles: jax.Array) -> jax.Array:
    """Twice the mean pinball loss over the grid of quantiles (lanes, levels)."""
    levels = jnp.asarray(core.QUANTILE_LEVELS, values.dtype)[None, :]
    error = values[:, None] - quantiles
    return 2.0 * jnp.mean(jnp.maximum(levels * error, (levels - 1.0) * error), axis=1)


def _chunk(carry: Any, rows: tuple[jax.Array, jax.Array, jax.Array], configs: Any) -> Any:
    """The scan itself. ``carry`` is the states and what was said after the row before: quantiles and the point."""

    def tick(carry: Any, row: Any) -> Any:
        states, quantiles, point = carry
        timestamp, value, recorded = row
        losses = _crps(value, quantiles), jnp.abs(value - point)
        observation = jax.tree.unflatten(_ONE_TICK, (value, value, timestamp, recorded))
        states, result = jax.vmap(core.advance)(states, observation, configs)
        prediction = result.prediction
        states = _refresh_due(states, prediction.refresh_due, configs)
        # before the first tick was accepted there is nothing that could be scored
        begun = prediction.sequence > 0
        quantiles = jnp.where(begun[:, None], prediction.quantiles, jnp.nan)
        point = jnp.where(begun, prediction.predicted_next, jnp.nan)
        return (states, quantiles, point), (*losses, prediction.regime_change_detected, prediction.accepted)

    return jax.lax.scan(tick, carry, rows)


class LaneProgram:
    """The compiled scan for one structure, one width and one precision."""

    def __init__(self, config: PredictorConfig, *, width: int, dtype: Any, chunk_ticks: int = CHUNK_TICKS) -> None:
        if width <= 0 or width % WIDTH_MULTIPLE:
            raise ValueError(f"width must be a positive multiple of {WIDTH_MULTIPLE}, got {width}")
        began = time.perf_counter()
        self.width = width
        self.chunk_ticks = chunk_ticks
        self.dtype = np.dtype(dtype)
        # a pristine lane depends on the parameters, so it is made lane by lane
        initial = jax.jit(jax.vmap(lambda config: core.initialize_state(config, dtype=self.dtype)))
        configs = self.stacked([config] * width)
        self._initialize = initial.lower(configs).compile()
        carry = self.start(configs)
        shape = (chunk_ticks, width)
        rows = tuple(jax.ShapeDtypeStruct(shape, kind) for kind in (jnp.int64, self.dtype, jnp.int64))
        lowered = jax.jit(_chunk, donate_argnums=0).lower(carry, rows, configs)
        self.trace_seconds = time.perf_counter() - began
        self._run = lowered.compile()
        self.compile_seconds = time.perf_counter() - began - self.trace_seconds

    def stacked(self, configs: Sequence[PredictorConfig]) -> Any:
        """Parameters of all lanes as one record with a leading axis."""
        arrays = [jax.tree.map(np.asarray, config.as_arrays(self.dtype)) for config in configs]
        return jax.tree.map(lambda *leaves: jnp.asarray(np.stack(leaves)), *arrays)

    def start(self, configs: Any) -> Any:
        """Pristine lanes that have said nothing yet: states, quantiles, point."""
        states = self._initialize(configs)
        nothing = jnp.full((self.width, len(core.QUANTILE_LEVELS)), jnp.nan, self.dtype)
        return states, nothing, nothing[:, 0]

    def run(self, carry: Any, ticks: Ticks, configs: Any) -> tuple[Any, Observed]:
        """One chunk of rows of all lanes; waits for the result. ``carry`` is used up."""
        rows = (
            jnp.asarray(ticks.timestamps_ns),
            jnp.asarray(ticks.values, self.dtype),
            jnp.asarray(ticks.record_timestamps_ns),
        )
        carry, said = self._run(carry, rows, configs)
        return carry, Observed(*(np.asarray(one) for one in said))


class LanePrograms:
    """Programs by structure, each compiled once however many threads ask for it."""

    def __init__(self, *, width: int, dtype: Any, chunk_ticks: int = CHUNK_TICKS) -> None:
        self._width, self._dtype, self._chunk_ticks = width, dtype, chunk_ticks
        self._programs: dict[Any, LaneProgram] = {}
        self._lock = threading.Lock()

    def get(self, config: PredictorConfig) -> LaneProgram:
        """The program of ``config``'s structure."""
        key = structure_key(config)
        with self._lock:
            if key not in self._programs:
                self._programs[key] = LaneProgram(
                    config, width=self._width, dtype=self._dtype, chunk_ticks=self._chunk_ticks
                )
            return self._programs[key]

    def __len__(self) -> int:
        return len(self._programs)

    @property
    def compile_seconds(self) -> float:
        """Time that tracing and compiling took so far."""
        return sum(one.trace_seconds + one.compile_seconds for one in self._programs.values())


def structure_key(config: PredictorConfig) -> tuple[Any, ...]:
    """What two sets of parameters must share to be lanes of one program."""
    return tuple(getattr(config, name) for name in core.STRUCTURAL_FIELDS)
