"""The device programs: compiled ahead of time, one of each kind, and counted.

| program      | arguments                                     | what it does                                     |
|--------------|-----------------------------------------------|--------------------------------------------------|
| `initialize` | parameters                                    | a tile of pristine lanes                         |
| `advance`    | tile (donated), one tick per lane, parameters | the fast step; lanes without a tick keep all bits |
| `refresh`    | small tile (donated), parameters              | the heavy and rare step                          |
| `move`       | tile (donated), tile, lane numbers            | copies lanes from the second into the first      |

Only `advance` and `refresh` compute, each at one width, so that a symbol's numbers cannot depend on where they were
computed.
"""

import dataclasses
import hashlib
import json
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from usp_daemon.core import ProcessState

from ._device import DeviceChoice
from ._packing import Packing, plan_packing
from ._traced import TracedPrograms, sources_digest, traced

# Eigen's thread pool may split a product differently on a machine with more cores; the other one names the same hazard.
# Library calls are worth their overhead for matrix products only: small reductions and what surrounds them fuse better.
_COMPILER_OPTIONS: Mapping[str, dict[str, Any]] = {
    "cpu": {
        "xla_cpu_multi_thread_eigen": False,
        "xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_DOT",
    },
    "gpu": {"xla_gpu_deterministic_ops": True},
}

_COMPILE_THREADS = 2

REFRESH_DUE = "refresh_due"


@dataclass(frozen=True)
class StepProgram:
    """The mathematics that an engine runs, as functions of one symbol.

    ``initialize(config, dtype)`` gives a state, ``advance(state, observation, config)`` the next state and a result,
    ``refresh(state, config)`` the state after heavy work, ``columns(result)`` the arrays to publish by name; among them
    the flag ``refresh_due``, which says that ``refresh`` must run before this symbol's next tick. ``digest`` stands for
    the sources of all four; with None, what is traced is never kept. ``origin``, ``package.module:function``, is where
    another process gets the program from; with None, none can.
    """

    initialize: Callable[[Any, Any], Any]
    advance: Callable[[Any, ProcessState, Any], tuple[Any, Any]]
    refresh: Callable[[Any, Any], Any]
    columns: Callable[[Any], Mapping[str, Any]]
    digest: str | None = None
    origin: str | None = None


def core_program() -> StepProgram:
    """The predictor itself; every field of its prediction is a column."""
    from usp_daemon import core

    return StepProgram(
        initialize=lambda config, dtype: core.initialize_state(config, dtype=dtype),
        advance=core.advance,
        refresh=core.refresh,
        columns=prediction_columns,
        digest=sources_digest(),
        origin=f"{__name__}:core_program",
    )


def prediction_columns(result: Any) -> Mapping[str, Any]:
    """All fields of ``result.prediction`` by name."""
    prediction = result.prediction
    return {field.name: getattr(prediction, field.name) for field in dataclasses.fields(prediction)}


@dataclass(frozen=True)
class ProgramIdentity:
    """All that must agree for two runs to give the same bits."""

    program_hash: str
    jax_version: str
    device_kind: str
    instruction_set: str
    precision: str
    tile_width: int
    refresh_width: int

    def as_dict(self) -> dict[str, Any]:
        """Plain fields, for a snapshot's header."""
        return dataclasses.asdict(self)

    @property
    def digest(self) -> str:
        """SHA-256 over every field."""
        return hashlib.sha256(json.dumps(self.as_dict(), sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class TilePrograms:
    """The executables of one engine with the layouts of what they take and return."""

    initialize: Callable[..., Any]
    advance: Callable[..., Any]
    refresh: Callable[..., Any]
    gather: Callable[..., Any]  # move: tile -> tile
    gather_refresh: Callable[..., Any]  # move: tile -> refresh tile
    scatter_refresh: Callable[..., Any]  # move: refresh tile -> tile
    state_packing: Packing
    column_packing: Packing
    config_packing: Packing
    identity: ProgramIdentity
    num_compilations: int
    compile_seconds: float


def compile_programs(
    program: StepProgram,
    config: Any,
    choice: DeviceChoice,
    folder: Path | None = None,
    num_threads: int = _COMPILE_THREADS,
) -> TilePrograms:
    """Traces and compiles everything an engine will ever run, for ``config``'s structure on ``choice``'s device.

    ``folder`` keeps what was traced for the next start. Each of ``num_threads`` takes the interpreter's
    lock for a while when its program is in the cache; with one of them, other threads get their turn in between.
    """
    width, refresh_width, dtype = choice.tile_width, choice.refresh_width, choice.dtype
    sharding = jax.sharding.SingleDeviceSharding(choice.device)

    def on_device(shape: tuple[int, ...], kind: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, kind, sharding=sharding)

    config_packing = plan_packing(config, small_leaf_elements=None)
    config_spec = tuple(on_device(array.shape, array.dtype) for array in pack_parameters(config_packing, config))

    def parameters(vectors: Any) -> Any:
        return jax.tree.map(lambda leaf: leaf[0], config_packing.unpack(vectors))

    lane = jax.eval_shape(lambda vectors: program.initialize(parameters(vectors), dtype), config_spec)
    state_packing = plan_packing(lane)

    def initialize(vectors: Any) -> Any:
        state = program.initialize(parameters(vectors), dtype)
        return state_packing.pack(jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (width, *leaf.shape)), state))

    scalar = jax.ShapeDtypeStruct((), dtype)
    stamp = jax.ShapeDtypeStruct((), jnp.int64)

    def advance_lane(state: Any, value: Any, stamp_ns: Any, record_stamp_ns: Any, config: Any) -> tuple[Any, Any]:
        tick = ProcessState(value, value, stamp_ns, record_stamp_ns)
        state, result = program.advance(state, tick, config)
        return state, dict(program.columns(result))

    def columns_of_lane(state: Any, value: Any, stamp_ns: Any, vectors: Any) -> Any:
        return advance_lane(state, value, stamp_ns, stamp_ns, parameters(vectors))[1]

    kept = TracedPrograms(
        None if program.digest is None else folder,
        repr((program.digest, jax.tree.structure(config), choice.kind, str(dtype), width, refresh_width)),
    )
    columns = kept.shapes("columns", lambda: jax.eval_shape(columns_of_lane, lane, scalar, stamp, config_spec))
    column_packing = plan_packing(columns, small_leaf_elements=None)

    def advance(arrays: Any, values: Any, whole: Any, vectors: Any) -> tuple[Any, Any]:
        has_tick = whole[2] != 0
        state, result = jax.vmap(advance_lane, in_axes=(0, 0, 0, 0, None))(
            state_packing.unpack(arrays), values, whole[0], whole[1], parameters(vectors)
        )
        # Lanes without a tick went through the same arithmetic; what came out of it is dropped here.
        merged = tuple(
            jnp.where(has_tick.reshape((width,) + (1,) * (old.ndim - 1)), new, old)
            for new, old in zip(state_packing.pack(state), arrays, strict=True)
        )
        return merged, column_packing.pack(result)

    def refresh(arrays: Any, vectors: Any) -> Any:
        state = jax.vmap(program.refresh, in_axes=(0, None))(state_packing.unpack(arrays), parameters(vectors))
        return state_packing.pack(state)

    def move(target: Any, source: Any, lanes: Any) -> Any:
        count, capacity = lanes[0], (lanes.shape[0] - 1) // 2

        def copy_one(i: Any, arrays: Any) -> Any:
            return tuple(
                jax.lax.dynamic_update_slice_in_dim(
                    into, jax.lax.dynamic_slice_in_dim(outof, lanes[1 + i], 1), lanes[1 + capacity + i], 0
                )
                for into, outof in zip(arrays, source, strict=True)
            )

        return jax.lax.fori_loop(jnp.zeros_like(count), count, copy_one, target)

    tile = tuple(on_device(a.shape, a.dtype) for a in jax.eval_shape(initialize, config_spec))
    small_tile = tuple(on_device((refresh_width, *a.shape[1:]), a.dtype) for a in tile)
    options = _COMPILER_OPTIONS.get(choice.kind, {})
    started = time.perf_counter()

    platform = "cuda" if choice.kind == "gpu" else choice.kind

    def lowered(function: Callable[..., Any], *specs: Any, donate: bool = True) -> Any:
        return jax.jit(function, donate_argnums=(0,) if donate else (), out_shardings=sharding).lower(*specs)

    def lowered_once(name: str, function: Callable[..., Any], *specs: Any) -> Any:
        if program.digest is None:
            return lowered(function, *specs)
        return kept.program(name, lambda: traced(function, specs, (0,), platform), (0,)).lower(*specs)

    def lane_numbers(*widths: int) -> jax.ShapeDtypeStruct:
        return on_device((1 + 2 * min(widths),), jnp.int32)

    ticks = on_device((width,), dtype), on_device((3, width), jnp.int64)
    to_compile = (
        lowered(initialize, config_spec, donate=False),
        lowered_once("advance", advance, tile, *ticks, config_spec),
        lowered_once("refresh", refresh, small_tile, config_spec),
        lowered(move, tile, tile, lane_numbers(width)),
        lowered(move, small_tile, tile, lane_numbers(width, refresh_width)),
        lowered(move, tile, small_tile, lane_numbers(width, refresh_width)),
    )
    # Tracing holds the interpreter lock, compiling does not, so the two large programs are compiled side by side.
    with ThreadPoolExecutor(num_threads, thread_name_prefix="usp-compile") as pool:
        programs = tuple(pool.map(lambda one: one.compile(compiler_options=dict(options)), to_compile))
    texts = [one.as_text() for one in to_compile[:3]]
    identity = ProgramIdentity(
        program_hash=hashlib.sha256("\0".join([*texts, repr(sorted(options.items()))]).encode()).hexdigest(),
        jax_version=jax.__version__,
        device_kind=choice.name,
        instruction_set=choice.instruction_set,
        precision=choice.precision,
        tile_width=width,
        refresh_width=refresh_width,
    )
    return TilePrograms(
        *programs,
        state_packing=state_packing,
        column_packing=column_packing,
        config_packing=config_packing,
        identity=identity,
        num_compilations=len(programs),
        compile_seconds=time.perf_counter() - started,
    )


def pack_parameters(packing: Packing, config: Any) -> tuple[np.ndarray, ...]:
    """``config``'s leaves as one host vector per dtype (each with a leading axis of one)."""
    parts: list[list[np.ndarray]] = [[] for _ in range(packing.num_arrays)]
    for leaf, value in zip(packing.leaves, jax.tree.leaves(config), strict=True):
        parts[leaf.array].append(np.asarray(value, dtype=leaf.dtype).reshape(1, -1))
    return tuple(np.concatenate(part, axis=1) for part in parts)
