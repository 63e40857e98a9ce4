"""The predictor on its device: many symbols in pages, one compiled step, one thread that owns it."""

import os

from ._cache import default_cache_directory, enable_compilation_cache
from ._device import DeviceBackend, DeviceChoice, JaxBackend, choose_device, forbid_fused_arithmetic
from ._engine import BatchResult, Engine, PartitionStates, StateKey
from ._errors import (
    CapacityError,
    ComputeError,
    DeviceUnavailableError,
    EngineFailedError,
    PartitionInUseError,
    StateFormatError,
    StructuralChangeError,
    WorkerStoppedError,
    WrongThreadError,
)
from ._migrate import MigrationReport, migrate_states
from ._pool import EnginePool, PartitionMigration, structure_of
from ._program import ProgramIdentity, StepProgram, TilePrograms, compile_programs, core_program
from ._settings import predictor_config
from ._worker import PrepareReport, StartReport, Worker

forbid_fused_arithmetic(os.environ)

__all__ = [
    "BatchResult",
    "CapacityError",
    "ComputeError",
    "DeviceBackend",
    "DeviceChoice",
    "DeviceUnavailableError",
    "Engine",
    "EngineFailedError",
    "EnginePool",
    "JaxBackend",
    "MigrationReport",
    "PartitionInUseError",
    "PartitionMigration",
    "PartitionStates",
    "PrepareReport",
    "ProgramIdentity",
    "StartReport",
    "StateFormatError",
    "StateKey",
    "StepProgram",
    "StructuralChangeError",
    "TilePrograms",
    "Worker",
    "WorkerStoppedError",
    "WrongThreadError",
    "choose_device",
    "compile_programs",
    "core_program",
    "default_cache_directory",
    "enable_compilation_cache",
    "migrate_states",
    "predictor_config",
    "structure_of",
]
