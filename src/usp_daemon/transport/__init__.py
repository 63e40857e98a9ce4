"""Sources and sinks: files and memory. Each implements the interface in :mod:`usp_daemon.wire`."""

from ._files import FileSource, InputProblem
from ._inspect import InputError, InputFile, inspect_file
from ._json_lines import ALARMS_FILE, DEAD_LETTERS_FILE, OUTPUT_FILES, PREDICTIONS_FILE, JsonLinesSink
from ._memory import MemorySink, MemorySource

__all__ = [
    "ALARMS_FILE",
    "DEAD_LETTERS_FILE",
    "OUTPUT_FILES",
    "PREDICTIONS_FILE",
    "FileSource",
    "InputError",
    "InputFile",
    "InputProblem",
    "JsonLinesSink",
    "MemorySink",
    "MemorySource",
    "inspect_file",
]
