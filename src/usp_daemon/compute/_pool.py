"""Engines of several structures over one set of partitions.

Every structure (the parameters that fix shapes) has an engine of its own. A partition's states are held by one of them;
a batch under parameters of another structure moves the partitions it touches there first. Since a migration is a pure
function of the states, input that is replayed with the same parameters at the same offsets gives the same states.
"""

import dataclasses
import operator
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ._device import DeviceChoice
from ._engine import BatchResult, Engine, PartitionStates, StateKey
from ._errors import PartitionInUseError
from ._migrate import MigrationReport, migrate_states
from ._program import ProgramIdentity, StepProgram, TilePrograms

MAX_ENGINES = 4
_PARTITION_OF = operator.itemgetter(0, 1)  # of a state key


@dataclass(frozen=True)
class PartitionMigration:
    """A partition whose states were taken to another structure, what became of them, and how long that took."""

    topic: str
    partition: int
    num_symbols: int
    report: MigrationReport
    seconds: float


@dataclass(frozen=True)
class _Structure:
    """What fixes shapes, the engine for it, and some parameters that have it."""

    key: tuple[Any, ...]
    engine: Engine
    config: Any


class EnginePool:
    """Synchronous predictor of many symbols under parameters of any structure; confined to the thread that built it.

    Has the methods of :class:`Engine`. At most ``max_engines`` are kept; those that hold partitions stay beyond that.
    """

    def __init__(
        self,
        config: Any,
        choice: DeviceChoice,
        *,
        max_symbols: int = 100_000,
        program: StepProgram | None = None,
        folder: Path | None = None,
        engine_factory: Callable[..., Engine] = Engine,
        max_engines: int = MAX_ENGINES,
        on_migration: Callable[[PartitionMigration], None] | None = None,
    ) -> None:
        """Compiles the structure of ``config``, which stays; arguments are as in :class:`Engine`.

        ``on_migration`` is called in this thread after a partition's states were taken to another structure.
        """
        if max_engines < 1:
            raise ValueError(f"max_engines must be at least 1, got {max_engines}")
        self._choice = choice
        self._build = engine_factory
        self._options: dict[str, Any] = {"max_symbols": max_symbols, "program": program, "folder": folder}
        self._max_engines = max_engines
        self._on_migration = on_migration
        self._num_partitions: int | None = None
        self._own = _Structure(structure_of(config), engine_factory(config, choice, **self._options), config)
        self._own_config = config  # what steps without parameters are computed with
        self._structures: dict[tuple[Any, ...], _Structure] = {self._own.key: self._own}  # least recently used first
        self._latest: tuple[Any, _Structure] = (config, self._own)

    # What it is

    @property
    def engine(self) -> Engine:
        """The engine of the structure that the pool was built with."""
        return self._own.engine

    @property
    def num_engines(self) -> int:
        """Structures that are compiled."""
        return len(self._structures)

    @property
    def num_symbols(self) -> int:
        """Symbols that hold state, over all structures."""
        return sum(each.engine.num_symbols for each in self._structures.values())

    def identity_of(self, config: Any) -> ProgramIdentity:
        """What must be equal for another engine to produce the same bits under ``config``; compiles if need be."""
        return self._of(config).engine.program_identity()

    def is_ready(self, config: Any) -> bool:
        """Whether a step under ``config`` would compile nothing."""
        return structure_of(config) in self._structures

    # What it does

    def adopt(self, config: Any, programs: TilePrograms) -> None:
        """Takes ``programs``, which were compiled elsewhere for ``config``'s structure and this device."""
        if not self.is_ready(config):
            self._add(config, programs)

    def set_parameters(self, config: Any) -> None:
        """:meth:`Engine.set_parameters` of the pool's own structure: what steps without parameters are computed with.

        Raises :class:`StructuralChangeError` for another structure, whose parameters belong to the step.
        """
        self._own.engine.set_parameters(config)
        self._own_config = config

    def step(
        self,
        keys: Sequence[StateKey],
        values: Any,
        timestamps_ns: Any,
        record_timestamps_ns: Any,
        parameters: Any = None,
    ) -> BatchResult:
        """:meth:`Engine.step` under ``parameters`` of any structure.

        The partitions among ``keys`` that are held in another structure are migrated first. A structure that was not
        prepared is compiled here, which may take a minute.
        """
        structure = self._own if parameters is None else self._of(parameters)
        if len(self._structures) > 1:
            config = self._own_config if parameters is None else parameters
            for topic, partition in sorted(set(map(_PARTITION_OF, keys))):
                self._bring(topic, partition, structure, config)
        return structure.engine.step(keys, values, timestamps_ns, record_timestamps_ns, parameters)

    def limit_partitions(self, num_partitions: int) -> None:
        """:meth:`Engine.limit_partitions`, over all structures."""
        self._num_partitions = num_partitions
        for each in self._structures.values():
            each.engine.limit_partitions(num_partitions)

    def release(self, topic: str, partition: int) -> int:
        """:meth:`Engine.release`, wherever the partition is held."""
        return sum(each.engine.release(topic, partition) for each in self._structures.values())

    def export_states(self, topic: str, partition: int, parameters: Any = None) -> PartitionStates:
        """:meth:`Engine.export_states`, wherever the partition is held.

        With ``parameters`` it is first taken to their structure, as the next step under them would.
        """
        if parameters is None:
            holder = self._holder(topic, partition)
            return (holder or self._own).engine.export_states(topic, partition)
        structure = self._of(parameters)
        self._bring(topic, partition, structure, parameters)
        return structure.engine.export_states(topic, partition)

    def import_states(self, topic: str, partition: int, states: PartitionStates, parameters: Any = None) -> None:
        """:meth:`Engine.import_states` into the structure of ``parameters``, by default the pool's own."""
        structure = self._own if parameters is None else self._of(parameters)
        holder = self._holder(topic, partition)
        if holder is not None and holder is not structure:
            raise PartitionInUseError(f"{topic}[{partition}] already holds states; release it before importing")
        structure.engine.import_states(topic, partition, states)

    def wait(self) -> None:
        """Blocks until the device has done everything asked of it."""
        for each in self._structures.values():
            each.engine.wait()

    # Structures

    def _of(self, config: Any) -> _Structure:
        """The structure of ``config``, compiled if need be, as the latest one in use."""
        if self._latest[0] is config:
            return self._latest[1]
        key = structure_of(config)
        structure = self._structures.pop(key, None)
        if structure is None:
            structure = self._add(config, None)
        else:
            self._structures[key] = structure
        self._latest = (config, structure)
        return structure

    def _add(self, config: Any, programs: TilePrograms | None) -> _Structure:
        engine = self._build(config, self._choice, **self._options, programs=programs, capacity=self.engine.capacity)
        if self._num_partitions is not None:
            engine.limit_partitions(self._num_partitions)
        structure = _Structure(structure_of(config), engine, config)
        self._structures[structure.key] = structure
        self._drop_idle(structure)
        return structure

    def _drop_idle(self, needed: _Structure) -> None:
        for idle in tuple(self._structures.values()):
            if len(self._structures) <= self._max_engines:
                break
            if idle is not self._own and idle is not needed and not idle.engine.num_symbols:
                del self._structures[idle.key]
                if self._latest[1] is idle:
                    self._latest = (self._own.config, self._own)

    def _holder(self, topic: str, partition: int) -> _Structure | None:
        return next((each for each in self._structures.values() if each.engine.holds(topic, partition)), None)

    def _bring(self, topic: str, partition: int, structure: _Structure, config: Any) -> None:
        """Migrates the partition's states to ``structure`` under ``config`` if they are elsewhere."""
        holder = self._holder(topic, partition)
        if holder is None or holder is structure:
            return
        started = time.perf_counter()
        states = holder.engine.export_states(topic, partition)
        pristine = structure.engine.pristine_state(config)
        migrated, report = migrate_states(states, holder.config, config, pristine)
        holder.engine.release(topic, partition)
        try:
            structure.engine.import_states(topic, partition, migrated)
        except BaseException:
            holder.engine.import_states(topic, partition, states)  # as if nothing had been asked
            raise
        if self._on_migration is not None:
            seconds = time.perf_counter() - started
            self._on_migration(PartitionMigration(topic, partition, len(states.symbols), report, seconds))


def structure_of(config: Any) -> tuple[Any, ...]:
    """The fields of ``config`` that fix shapes or pick a program, with their values."""
    return tuple(
        (field.name, getattr(config, field.name))
        for field in dataclasses.fields(config)
        if field.metadata.get("static", False)
    )
