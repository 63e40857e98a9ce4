"""All symbols' states on one device, and the step that moves them one batch further.

States live in pages of one tile each; a page belongs to one (topic, partition). A page with many ticks to take is
stepped in place, the rest is gathered (see ``_schedule``). Every tile runs the same executable, and lanes never mix,
so a symbol's numbers depend on its own ticks alone: not on lane, page, company, padding or the way a stream is cut into
batches. Recovery by replay rests on that.
"""

import dataclasses
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from ._device import DeviceChoice
from ._errors import (
    CapacityError,
    EngineFailedError,
    PartitionInUseError,
    StateFormatError,
    StructuralChangeError,
    WrongThreadError,
)
from ._program import (
    REFRESH_DUE,
    ProgramIdentity,
    StepProgram,
    TilePrograms,
    compile_programs,
    core_program,
    pack_parameters,
)
from ._schedule import TileJob, plan_batch

_MAX_GATHERED_TILES = 8  # at once; bounds the memory of a batch that touches very many pages thinly
_PARAMETERS_KEPT = 8  # sets on the device, so that those in use together are uploaded once


class StateKey(NamedTuple):
    """Whose state: a symbol within one partition, because that is what moves when partitions are handed over."""

    topic: str
    partition: int
    symbol: str


@dataclass(frozen=True)
class BatchResult:
    """What one batch gave, in the order of its ticks.

    ``admitted`` (ticks,) is false for ticks of new symbols beyond ``max_symbols``; their rows are zero. ``columns``
    maps a result's name to an array (ticks, ...).
    """

    admitted: np.ndarray
    columns: Mapping[str, np.ndarray]


@dataclass(frozen=True)
class PartitionStates:
    """States of one partition without pickle: ``arrays`` maps a leaf's path to (symbols, ...), row i for symbol i."""

    symbols: tuple[str, ...]
    arrays: Mapping[str, np.ndarray]


@dataclass
class Capacity:
    """How many symbols may hold state, and how many do: one for all engines that share a device."""

    max_symbols: int
    taken: int = 0

    def __post_init__(self) -> None:
        if self.max_symbols < 1:
            raise ValueError(f"max_symbols must be at least 1, got {self.max_symbols}")


@dataclass
class _Tile:
    """Device arrays that are handed from program to program; the previous ones are consumed on the way."""

    arrays: tuple[jax.Array, ...]


@dataclass(eq=False)
class _Parameters:
    """One set of traced parameters on the device."""

    vectors: tuple[jax.Array, ...]
    pristine: _Tile | None = None  # the initial state that they prescribe, once it was needed
    token: object = dataclasses.field(default_factory=object)


@dataclass
class _Page(_Tile):
    number: int
    partition: tuple[str, int]
    token: object  # of the parameters that its unused lanes were initialised with
    symbols: list[str] = dataclasses.field(default_factory=list)


class Engine:
    """Synchronous predictor of many symbols; confined to the thread that built it."""

    def __init__(
        self,
        config: Any,
        choice: DeviceChoice,
        *,
        max_symbols: int = 100_000,
        program: StepProgram | None = None,
        programs: TilePrograms | None = None,
        direct_fraction: float = 0.75,
        folder: Path | None = None,
        capacity: Capacity | None = None,
    ) -> None:
        """Compiles all programs.

        ``config`` is a ``PredictorConfig``; ``choice`` the pinned device; ``max_symbols`` (at least 1) caps how many
        symbols hold state at a time; ``programs`` come from another engine with the same ``choice``, ``program`` and
        structural parameters, and are compiled if not given; ``direct_fraction`` in (0, 1] is the share of a page that
        must have a tick for the page to be stepped without gathering (speed only); ``folder`` keeps traced programs;
        ``capacity`` of another engine makes the two share one ``max_symbols``.
        """
        self._owner = threading.get_ident()
        self._failure: BaseException | None = None
        self._choice = choice
        self._capacity = capacity or Capacity(max_symbols)
        self._partition_limit = self._capacity.max_symbols
        self._direct_fraction = direct_fraction
        self._config = config.as_arrays(choice.dtype)
        self._programs: TilePrograms = programs or compile_programs(
            program or core_program(), self._config, choice, folder
        )
        due = [leaf for leaf in self._programs.column_packing.leaves if leaf.path == REFRESH_DUE]
        if not due:
            raise ValueError(f"the program's columns lack {REFRESH_DUE!r}")
        self._due_leaf = due[0]
        self._recent: list[tuple[Any, _Parameters]] = []  # configs as they were given, the latest last
        self._uploaded: dict[bytes, _Parameters] = {}
        self._parameters = self._upload_parameters(self._config)
        self._slots: dict[StateKey, int] = {}
        self._pages: dict[int, _Page] = {}
        self._pages_of: dict[tuple[str, int], list[_Page]] = {}
        self._held: dict[tuple[str, int], int] = {}  # symbols of each partition
        self._free_numbers: list[int] = []
        self._next_number = 0
        self._spare_tiles: list[_Tile] = []
        width = choice.refresh_width
        # Two, so that one can be filled while the other is being computed.
        self._refresh_tiles = [_Tile(tuple(self._put(a[:width]) for a in self._host_tile())) for _ in range(2)]
        self._next_refresh_tile = 0

    # What it is

    @property
    def num_symbols(self) -> int:
        """Symbols that hold state."""
        return len(self._slots)

    @property
    def capacity(self) -> Capacity:
        """What is left for new symbols, to be shared with further engines on the device."""
        return self._capacity

    def holds(self, topic: str, partition: int) -> bool:
        """Whether the partition has states here."""
        return (topic, partition) in self._pages_of

    @property
    def num_pages(self) -> int:
        """Pages in use."""
        return len(self._pages)

    @property
    def num_compilations(self) -> int:
        """Programs compiled so far; constant after construction."""
        return self._programs.num_compilations

    @property
    def programs(self) -> TilePrograms:
        """The executables, to be shared with further engines."""
        return self._programs

    @property
    def compile_seconds(self) -> float:
        """How long tracing and compiling took."""
        return self._programs.compile_seconds

    @property
    def bytes_per_symbol(self) -> int:
        """State of one symbol on the device."""
        return self._programs.state_packing.num_bytes()

    @property
    def device(self) -> DeviceChoice:
        """Where it computes, and how."""
        return self._choice

    def program_identity(self) -> ProgramIdentity:
        """What must be equal for another engine to produce the same bits."""
        return self._programs.identity

    # What it does

    def set_parameters(self, config: Any) -> None:
        """Swaps the traced parameters before the next batch; compiles nothing.

        Raises :class:`StructuralChangeError`, and changes nothing, if a field differs that fixes shapes.
        """
        self._check_thread()
        self._parameters = self._parameters_of(config)

    def pristine_state(self, config: Any = None) -> dict[str, np.ndarray]:
        """The leaves of a symbol that has seen nothing by path, as the traced parameters of ``config`` prescribe."""
        self._check_thread()
        parameters = self._parameters if config is None else self._parameters_of(config)
        with self._guard():
            host = [np.asarray(array)[:1] for array in self._pristine_tile(parameters).arrays]
        packing = self._programs.state_packing
        return {leaf.path: np.asarray(packing.read(leaf, host)[0]) for leaf in packing.leaves}

    def step(
        self,
        keys: Sequence[StateKey],
        values: Any,
        timestamps_ns: Any,
        record_timestamps_ns: Any,
        parameters: Any = None,
    ) -> BatchResult:
        """Takes a batch of ticks, several of one symbol in order, and returns a result for each.

        ``values`` (ticks,) are in the symbols' own units and may be non-finite (the gate refuses them);
        ``timestamps_ns`` and ``record_timestamps_ns`` (ticks,) are int64 Unix nanoseconds. ``parameters``, a
        ``PredictorConfig``, stand for this batch only, as when input is replayed that was once answered under others.
        Raises ``ValueError`` if the lengths differ and :class:`EngineFailedError` if the device failed now or earlier.
        """
        self._check_thread()
        if parameters is not None:
            usual = self._parameters
            self._parameters = self._parameters_of(parameters)
            try:
                return self.step(keys, values, timestamps_ns, record_timestamps_ns)
            finally:
                self._parameters = usual
        num_ticks = len(keys)
        with np.errstate(over="ignore"):  # beyond float32 is infinite, which the gate refuses
            values = np.asarray(values, np.float64).astype(self._choice.dtype)
        stamps = np.asarray(timestamps_ns, np.int64), np.asarray(record_timestamps_ns, np.int64)
        for name, array in zip(("values", "timestamps_ns", "record_timestamps_ns"), (values, *stamps), strict=True):
            if array.shape != (num_ticks,):
                raise ValueError(f"{name} must have shape ({num_ticks},), one per key, got {array.shape}")
        packing = self._programs.column_packing
        outputs = [np.zeros((0, 0))] * packing.num_arrays
        for leaf in packing.leaves:
            outputs[leaf.array] = np.zeros((num_ticks, leaf.stop), leaf.dtype)
        with self._guard():
            slots = self._lookup(keys)
            if num_ticks:
                self._run(slots, (values, *stamps), outputs)
        columns = {leaf.path: packing.read(leaf, outputs) for leaf in packing.leaves}
        return BatchResult(admitted=slots >= 0, columns=columns)

    def limit_partitions(self, num_partitions: int) -> None:
        """Gives each of ``num_partitions`` an equal share of ``max_symbols`` (at least 1).

        Whether a symbol is admitted then depends on its own partition only, not on what else is held here.
        """
        self._check_thread()
        self._partition_limit = max(1, -(-self._capacity.max_symbols // max(1, num_partitions)))

    def release(self, topic: str, partition: int) -> int:
        """Drops the partition's symbols and pages, and returns how many symbols that were."""
        self._check_thread()
        pages = self._pages_of.pop((topic, partition), [])
        for page in pages:
            for symbol in page.symbols:
                del self._slots[StateKey(topic, partition, symbol)]
            del self._pages[page.number]
            self._free_numbers.append(page.number)
        num_symbols = self._held.pop((topic, partition), 0)
        self._capacity.taken -= num_symbols
        return num_symbols

    def export_states(self, topic: str, partition: int) -> PartitionStates:
        """The partition's states on the host, in order of admission; waits for the device."""
        self._check_thread()
        packing = self._programs.state_packing
        pages = self._pages_of.get((topic, partition), [])
        with self._guard():
            hosts = [[np.asarray(array) for array in page.arrays] for page in pages]
        arrays = {}
        for leaf in packing.leaves:
            rows = [packing.read(leaf, host)[: len(page.symbols)] for page, host in zip(pages, hosts, strict=True)]
            arrays[leaf.path] = np.concatenate(rows) if rows else np.zeros((0, *leaf.shape), leaf.dtype)
        return PartitionStates(tuple(symbol for page in pages for symbol in page.symbols), arrays)

    def import_states(self, topic: str, partition: int, states: PartitionStates) -> None:
        """Takes over states that :meth:`export_states` of an engine with the same state layout gave.

        Raises, and changes nothing: :class:`PartitionInUseError`, :class:`CapacityError`, :class:`StateFormatError`.
        """
        self._check_thread()
        self._check_importable(topic, partition, states)
        packing, width, num_symbols = self._programs.state_packing, self._choice.tile_width, len(states.symbols)
        with self._guard():
            for first in range(0, num_symbols, width):
                symbols = states.symbols[first : first + width]
                page = self._new_page((topic, partition))
                host = [np.array(array) for array in page.arrays]
                for leaf in packing.leaves:
                    packing_view = host[leaf.array] if leaf.is_whole else host[leaf.array][:, leaf.start : leaf.stop]
                    rows = np.asarray(states.arrays[leaf.path])[first : first + len(symbols)]
                    packing_view[: len(symbols)] = rows.reshape((len(symbols), *packing_view.shape[1:]))
                page.arrays = tuple(self._put(array) for array in host)
                page.symbols.extend(symbols)
                self._count((topic, partition), len(symbols))
                for lane, symbol in enumerate(symbols):
                    self._slots[StateKey(topic, partition, symbol)] = page.number * width + lane

    def wait(self) -> None:
        """Blocks until the device has done everything asked of it."""
        self._check_thread()
        with self._guard():
            jax.block_until_ready([page.arrays for page in self._pages.values()])

    # Running a batch

    def _run(self, slots: np.ndarray, ticks: tuple[np.ndarray, ...], outputs: list[np.ndarray]) -> None:
        width = self._choice.tile_width
        plan = plan_batch(slots, width, self._direct_fraction)
        jobs = [(job, self._pages[job.page], job.slots % width) for job in plan.in_place]
        self._run_rounds(jobs, plan.order, ticks, outputs)
        for first in range(0, len(plan.gathered), _MAX_GATHERED_TILES):
            wave = plan.gathered[first : first + _MAX_GATHERED_TILES]
            jobs = [(job, self._borrow_tile(), np.arange(len(job.slots))) for job in wave]
            for job, tile, lanes in jobs:
                for page, of_page in self._by_page(job.slots):
                    self._move(self._programs.gather, tile, page, job.slots[of_page] % width, lanes[of_page])
            self._run_rounds(jobs, plan.order, ticks, outputs)
            for job, tile, lanes in jobs:
                for page, of_page in self._by_page(job.slots):
                    self._move(self._programs.gather, page, tile, lanes[of_page], job.slots[of_page] % width)
                self._spare_tiles.append(tile)

    def _run_rounds(
        self,
        jobs: list[tuple[TileJob, Any, np.ndarray]],
        order: np.ndarray,
        ticks: tuple[np.ndarray, ...],
        outputs: list[np.ndarray],
    ) -> None:
        """Steps every job through its rounds; all tiles of a round are under way before the first is waited for."""
        values, *stamps = ticks
        due = self._due_leaf
        for round_number in range(max((job.num_rounds for job, _, _ in jobs), default=0)):
            jobs = [entry for entry in jobs if entry[0].num_rounds > round_number]
            in_flight = []
            for job, tile, lanes in jobs:
                active = job.num_active(round_number)
                rows, into = order[job.starts[:active] + round_number], lanes[:active]
                # Fresh buffers each time: the device may read them after this call has returned.
                tile_values = np.zeros(self._choice.tile_width, self._choice.dtype)
                tile_stamps = np.zeros((3, self._choice.tile_width), np.int64)
                tile_values[into] = values[rows]
                tile_stamps[0, into], tile_stamps[1, into], tile_stamps[2, into] = stamps[0][rows], stamps[1][rows], 1
                tile.arrays, result = self._programs.advance(
                    tile.arrays, tile_values, tile_stamps, self._parameters.vectors
                )
                in_flight.append((tile, rows, into, result))
            refresh_due = []
            for tile, rows, into, result in in_flight:
                for output, array in zip(outputs, result, strict=True):
                    output[rows] = np.asarray(array)[into]
                flags = outputs[due.array][rows, due.start]
                if flags.any():
                    refresh_due.append((tile, into[flags.astype(bool)]))
            self._refresh(refresh_due)

    def _refresh(self, due: list[tuple[_Tile, np.ndarray]]) -> None:
        """Runs the heavy step on the lanes of each tile, pooled into refresh tiles."""
        capacity = self._choice.refresh_width
        pool: list[tuple[_Tile, np.ndarray]] = []
        room = capacity
        for tile, lanes in due:
            while lanes.size:
                pool.append((tile, lanes[:room]))
                lanes, room = lanes[room:], room - min(room, lanes.size)
                if room == 0:
                    self._refresh_pool(pool)
                    pool, room = [], capacity
        if pool:
            self._refresh_pool(pool)

    def _refresh_pool(self, pool: list[tuple[_Tile, np.ndarray]]) -> None:
        small = self._refresh_tiles[self._next_refresh_tile]
        self._next_refresh_tile = (self._next_refresh_tile + 1) % len(self._refresh_tiles)
        places, first = [], 0
        for tile, lanes in pool:
            place = np.arange(first, first + lanes.size)
            self._move(self._programs.gather_refresh, small, tile, lanes, place)
            places.append(place)
            first += lanes.size
        small.arrays = self._programs.refresh(small.arrays, self._parameters.vectors)
        for (tile, lanes), place in zip(pool, places, strict=True):
            self._move(self._programs.scatter_refresh, tile, small, place, lanes)

    def _move(
        self, program: Callable[..., Any], target: _Tile, source: _Tile, outof: np.ndarray, into: np.ndarray
    ) -> None:
        """Copies lanes ``outof`` of ``source`` to lanes ``into`` of ``target``, whose old arrays are consumed."""
        gather = program is self._programs.gather
        capacity = self._choice.tile_width if gather else min(self._choice.tile_width, self._choice.refresh_width)
        numbers = np.zeros(1 + 2 * capacity, np.int32)
        numbers[0] = outof.size
        numbers[1 : 1 + outof.size] = outof
        numbers[1 + capacity : 1 + capacity + into.size] = into
        target.arrays = program(target.arrays, source.arrays, numbers)

    def _by_page(self, slots: np.ndarray) -> Iterator[tuple[_Page, np.ndarray]]:
        """Which positions of ``slots`` lie in which page."""
        pages = slots // self._choice.tile_width
        for number in np.unique(pages):
            yield self._pages[int(number)], np.flatnonzero(pages == number)

    # Pages and symbols

    def _lookup(self, keys: Sequence[StateKey]) -> np.ndarray:
        """The slot of each key, admitting new ones; -1 where there is no room."""
        slots = np.fromiter(map(self._slots.get, keys, repeat(-1)), np.int64, len(keys))
        unknown = np.flatnonzero(slots < 0)
        if unknown.size:
            admitted: dict[_Page, list[int]] = {}
            for i in unknown.tolist():
                slots[i] = self._admit(keys[i], admitted)
            self._initialize_lanes(admitted)
        return slots

    def _admit(self, key: StateKey, stale_lanes: dict[Any, list[int]]) -> int:
        known = self._slots.get(key)  # an earlier tick of this batch may have admitted it
        if known is not None:
            return known
        width = self._choice.tile_width
        partition = (key.topic, key.partition)
        if self._capacity.taken >= self._capacity.max_symbols or self._held.get(partition, 0) >= self._partition_limit:
            return -1
        pages = self._pages_of.get(partition)
        page = pages[-1] if pages and len(pages[-1].symbols) < width else self._new_page(partition)
        lane = len(page.symbols)
        page.symbols.append(key.symbol)
        self._count(partition, 1)
        if page.token is not self._parameters.token:
            stale_lanes.setdefault(page.number, []).append(lane)
        slot = self._slots[StateKey(*key)] = page.number * width + lane
        return slot

    def _initialize_lanes(self, stale_lanes: Mapping[Any, list[int]]) -> None:
        """Gives lanes of older pages the initial state that the present parameters prescribe."""
        for number, lanes in stale_lanes.items():
            into = np.asarray(lanes)
            self._move(self._programs.gather, self._pages[number], self._pristine_tile(self._parameters), into, into)

    def _pristine_tile(self, parameters: _Parameters) -> _Tile:
        if parameters.pristine is None:
            parameters.pristine = _Tile(self._programs.initialize(parameters.vectors))
        return parameters.pristine

    def _count(self, partition: tuple[str, int], num_symbols: int) -> None:
        self._held[partition] = self._held.get(partition, 0) + num_symbols
        self._capacity.taken += num_symbols

    def _new_page(self, partition: tuple[str, int]) -> _Page:
        if self._free_numbers:
            number = self._free_numbers.pop()
        else:
            number, self._next_number = self._next_number, self._next_number + 1
        page = _Page(self._programs.initialize(self._parameters.vectors), number, partition, self._parameters.token)
        self._pages[number] = page
        self._pages_of.setdefault(partition, []).append(page)
        return page

    def _borrow_tile(self) -> _Tile:
        return (
            self._spare_tiles.pop() if self._spare_tiles else _Tile(self._programs.initialize(self._parameters.vectors))
        )

    # Plumbing

    def _host_tile(self) -> list[np.ndarray]:
        return [np.asarray(array) for array in self._programs.initialize(self._parameters.vectors)]

    def _put(self, array: np.ndarray) -> jax.Array:
        """A device array that owns its memory, since the programs will consume it."""
        return jax.device_put(array, self._choice.device, may_alias=False)

    def _parameters_of(self, config: Any) -> _Parameters:
        """``config`` on the device; raises :class:`StructuralChangeError` if it is of another structure."""
        for known, parameters in reversed(self._recent):
            if known is config:
                return parameters
        arrays = config.as_arrays(self._choice.dtype)
        if jax.tree.structure(arrays) != jax.tree.structure(self._config):
            names = _static_differences(self._config, arrays)
            raise StructuralChangeError(
                f"these parameters fix shapes and cannot be swapped: {', '.join(names)}; build a new engine for them"
            )
        old, new = jax.tree.leaves(self._config), jax.tree.leaves(arrays)
        if any(np.shape(a) != np.shape(b) or a.dtype != b.dtype for a, b in zip(old, new, strict=True)):
            raise StructuralChangeError("a traced parameter changed its shape or dtype; build a new engine for it")
        parameters = self._upload_parameters(arrays)
        self._recent = [*self._recent[1 - _PARAMETERS_KEPT :], (config, parameters)]
        return parameters

    def _upload_parameters(self, arrays: Any) -> _Parameters:
        vectors = pack_parameters(self._programs.config_packing, arrays)
        values = b"".join(vector.tobytes() for vector in vectors)
        parameters = self._uploaded.pop(values, None) or _Parameters(tuple(self._put(vector) for vector in vectors))
        self._uploaded[values] = parameters  # the latest last
        if len(self._uploaded) > _PARAMETERS_KEPT:
            del self._uploaded[next(iter(self._uploaded))]
        return parameters

    def _check_importable(self, topic: str, partition: int, states: PartitionStates) -> None:
        if self._pages_of.get((topic, partition)):
            raise PartitionInUseError(f"{topic}[{partition}] already holds states; release it before importing")
        num_symbols = len(states.symbols)
        if len(set(states.symbols)) != num_symbols:
            raise StateFormatError(f"the states of {topic}[{partition}] name a symbol twice")
        if self._capacity.taken + num_symbols > self._capacity.max_symbols:
            raise CapacityError(
                f"{num_symbols} symbols of {topic}[{partition}] do not fit: {self._capacity.taken} of max_symbols = "
                f"{self._capacity.max_symbols} are taken"
            )
        expected = {leaf.path: ((num_symbols, *leaf.shape), leaf.dtype) for leaf in self._programs.state_packing.leaves}
        got = {path: (np.shape(array), np.asarray(array).dtype) for path, array in states.arrays.items()}
        for path in sorted(expected.keys() | got.keys()):
            if expected.get(path) != got.get(path):
                raise StateFormatError(
                    f"state array {path!r}: expected {_describe(expected.get(path))}, got {_describe(got.get(path))}"
                )

    def _check_thread(self) -> None:
        if threading.get_ident() != self._owner:
            raise WrongThreadError("an engine may only be called from the thread that built it")
        if self._failure is not None:
            raise EngineFailedError("the device failed earlier; restore the states from a snapshot") from self._failure

    @contextmanager
    def _guard(self) -> Iterator[None]:
        """Programs consume their inputs, so whatever interrupts a batch leaves states that must not be used again."""
        try:
            yield
        except BaseException as error:
            self._failure = error
            if isinstance(error, Exception):
                raise EngineFailedError(f"the device failed half-way through a batch: {error}") from error
            raise


def _describe(spec: tuple[tuple[int, ...], np.dtype] | None) -> str:
    return "nothing" if spec is None else f"{spec[1]}{list(spec[0])}"


def _static_differences(old: Any, new: Any) -> list[str]:
    names = [
        field.name
        for field in dataclasses.fields(old)
        if field.metadata.get("static", False) and getattr(old, field.name) != getattr(new, field.name, None)
    ]
    return names or ["(the kind of record)"]
