"""Sources, sinks and brokers: files, memory, Kafka. Each implements the interface in :mod:`usp_daemon.wire`."""

from ._files import FileSource, InputProblem
from ._inspect import InputError, InputFile, inspect_file
from ._json_lines import ALARMS_FILE, DEAD_LETTERS_FILE, OUTPUT_FILES, PREDICTIONS_FILE, JsonLinesSink
from ._memory import MemorySink, MemorySource
from ._memory_broker import MemoryBroker, MemoryRecord
from ._memory_transport import FAULT_POINTS, AbstractFaults, MemoryTransport
from ._tick_format import tick_format_of

__all__ = [
    "ALARMS_FILE",
    "DEAD_LETTERS_FILE",
    "FAULT_POINTS",
    "OUTPUT_FILES",
    "PREDICTIONS_FILE",
    "AbstractFaults",
    "FileSource",
    "InputError",
    "InputFile",
    "InputProblem",
    "JsonLinesSink",
    "MemoryBroker",
    "MemoryRecord",
    "MemorySink",
    "MemorySource",
    "MemoryTransport",
    "inspect_file",
    "tick_format_of",
]
