"""Results as JSON Lines files, three to a directory."""

import asyncio
import contextlib
import os
import pathlib
from typing import IO

from usp_daemon.wire import AbstractSink, OutputBatch, TransportError

PREDICTIONS_FILE = "predictions.jsonl"
ALARMS_FILE = "alarms.jsonl"
DEAD_LETTERS_FILE = "dead_letters.jsonl"
OUTPUT_FILES = (PREDICTIONS_FILE, ALARMS_FILE, DEAD_LETTERS_FILE)
PARTIAL_SUFFIX = ".partial"


class JsonLinesSink(AbstractSink):
    """Writes to ``<name>.partial`` in ``directory`` and gives each file its name when it is closed.

    So a file with its proper name is always whole, the results of an earlier run stay until this one has ended, and
    what a killed run has done lies in the partial files.
    """

    def __init__(self, directory: pathlib.Path) -> None:
        self._directory = directory
        self._files: list[IO[bytes]] = []

    async def open(self) -> None:
        """Create the directory and the partial files."""
        try:
            await asyncio.to_thread(self._open)
        except OSError as error:
            self._abandon()
            raise TransportError(f"cannot write to {self._directory}: {error}") from error

    async def publish(self, batch: OutputBatch) -> None:
        """Write one batch, in order."""
        if not self._files:
            raise TransportError(f"the sink for {self._directory} is not open")
        try:
            await asyncio.to_thread(self._write, batch)
        except OSError as error:
            raise TransportError(f"cannot write to {self._directory}: {error}") from error

    async def close(self) -> None:
        """Finish the files and give them their names."""
        if not self._files:
            return
        try:
            await asyncio.to_thread(self._close)
        except OSError as error:
            self._abandon()
            raise TransportError(f"cannot finish the files in {self._directory}: {error}") from error

    def _partial(self, name: str) -> pathlib.Path:
        return self._directory / (name + PARTIAL_SUFFIX)

    def _open(self) -> None:
        self._directory.mkdir(parents=True, exist_ok=True)
        for name in OUTPUT_FILES:
            self._files.append(self._partial(name).open("wb"))

    def _write(self, batch: OutputBatch) -> None:
        for file, records in zip(self._files, (batch.predictions, batch.alarms, batch.dead_letters), strict=True):
            if len(records):
                file.write(b"\n".join(records.values) + b"\n")

    def _close(self) -> None:
        for file, name in zip(self._files, OUTPUT_FILES, strict=True):
            file.flush()
            os.fsync(file.fileno())
            file.close()
            os.replace(self._partial(name), self._directory / name)
        self._files.clear()

    def _abandon(self) -> None:
        for file in self._files:
            with contextlib.suppress(OSError):
                file.close()
        self._files.clear()
