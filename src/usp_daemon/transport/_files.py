"""Files as a source: CSV and JSON Lines, plain or gzip, line by line, in bounded memory whatever the lines are like."""

import asyncio
import codecs
import collections
import dataclasses
import pathlib
import zlib
from collections.abc import AsyncIterator, Sequence

from usp_daemon.wire import AbstractSource, DeadLetterReason, Fault, RawBatch

from ._inspect import InputFile

# What is kept of a line that is too long, and how much of it is read at a time while it is skipped.
_KEPT_BYTES = 1024
_SKIP_BYTES = 1 << 16
_BATCH_BYTES = 4 << 20
_MAX_OPEN_FILES = 64


@dataclasses.dataclass(frozen=True, slots=True)
class InputProblem:
    """A file that could not be read to its end: what was read up to ``line`` counts, the rest is missing."""

    path: pathlib.Path
    line: int
    message: str


class FileSource(AbstractSource):
    """Hands out the lines of ``files``, one file after the other; blank lines are no records.

    All files feed one stream called ``topic``, so that a series may continue from one file to the next. With
    ``side_by_side`` the files take turns instead: right when each holds series of its own, and much faster then, since
    symbols are stepped together and the ticks of one symbol are not. A line of more than ``max_record_bytes`` is handed
    out as a fault with its beginning. A file that breaks off is noted in ``problems``.
    """

    def __init__(
        self,
        files: Sequence[InputFile],
        *,
        topic: str = "replay",
        batch_records: int = 4096,
        max_record_bytes: int = 1_048_576,
        side_by_side: bool = False,
    ) -> None:
        self.problems: list[InputProblem] = []
        self.bytes_total = sum(file.size_bytes for file in files)
        self._files = list(files)
        self._topic = topic
        self._batch_records = batch_records
        self._max_record_bytes = max_record_bytes
        self._num_open = min(len(self._files), _MAX_OPEN_FILES) if side_by_side else 1
        self._stopped = False
        self._bytes_done = 0
        self._open_readers: list[_LineReader] = []

    @property
    def bytes_read(self) -> int:
        """Bytes of the files (compressed as they are) read so far."""
        return self._bytes_done + sum(reader.bytes_read for reader in tuple(self._open_readers))

    async def open(self) -> None:
        """Nothing: each file is opened when its turn comes."""

    async def close(self) -> None:
        """End the intake."""
        self._stopped = True

    def stop(self) -> None:
        """End the intake after the batch in hand."""
        self._stopped = True

    async def batches(self) -> AsyncIterator[RawBatch]:
        """The lines of the files, see the class."""
        waiting = collections.deque(self._files)
        readers = self._open_readers
        num_records = max(self._batch_records // max(self._num_open, 1), min(self._batch_records, 64))
        try:
            while not self._stopped and (waiting or readers):
                while waiting and len(readers) < self._num_open:
                    await self._open_next(waiting.popleft())
                for reader in tuple(readers):
                    if self._stopped:
                        return
                    offsets, values, faults = await asyncio.to_thread(reader.read, num_records)
                    if values:
                        file = reader.file
                        yield RawBatch(
                            topic=self._topic,
                            partition=0,
                            source=str(file.path),
                            offsets=offsets,
                            values=values,
                            layout=file.layout,
                            default_symbol=file.default_symbol,
                            faults=faults,
                        )
                    if reader.ended:
                        readers.remove(reader)
                        self._finish(reader)
        finally:
            for reader in readers:
                reader.close()
            readers.clear()

    async def _open_next(self, file: InputFile) -> None:
        try:
            self._open_readers.append(await asyncio.to_thread(_LineReader, file, self._max_record_bytes))
        except OSError as error:
            self.problems.append(InputProblem(file.path, 0, f"cannot be opened: {error}"))

    def _finish(self, reader: "_LineReader") -> None:
        if reader.problem is not None:
            self.problems.append(InputProblem(reader.file.path, reader.line, reader.problem))
        reader.close()
        self._bytes_done += reader.file.size_bytes


class _LineReader:
    """Reads one file; everything here runs in a thread."""

    def __init__(self, file: InputFile, max_record_bytes: int) -> None:
        self.file = file
        self._stream, self._compressed = file.open()
        self._max_record_bytes = max_record_bytes
        self.line = 0
        self.ended = False
        self.problem: str | None = None
        try:
            for _ in range(file.num_header_lines):
                self._stream.readline()
                self.line += 1
        except (OSError, EOFError, zlib.error) as error:
            self._break_off(error)

    @property
    def bytes_read(self) -> int:
        """Position in the file as it lies on the disk."""
        try:
            return self._compressed.tell()
        except ValueError:  # closed in the meantime
            return 0

    def read(self, num_records: int) -> tuple[list[int], list[bytes], dict[int, Fault]]:
        """Up to ``num_records`` lines, fewer when they are long: their numbers, their bytes, and faults by position."""
        offsets: list[int] = []
        values: list[bytes] = []
        faults: dict[int, Fault] = {}
        limit = self._max_record_bytes
        num_bytes = 0
        try:
            while len(values) < num_records and num_bytes < _BATCH_BYTES:
                line = self._stream.readline(limit + 2)
                if not line:
                    self.ended = True
                    break
                self.line += 1
                if self.line == 1:
                    line = line.removeprefix(codecs.BOM_UTF8)
                record = line.rstrip(b"\r\n")
                if len(record) > limit:
                    size = len(record) + (0 if line.endswith(b"\n") else self._skip_line())
                    text = f"expected at most {limit} bytes in a line, got {size}"
                    faults[len(values)] = Fault(DeadLetterReason.RECORD_TOO_LARGE, text, size)
                    record = record[:_KEPT_BYTES]
                elif not record.strip():
                    continue
                offsets.append(self.line)
                values.append(record)
                num_bytes += len(record)
        except (OSError, EOFError, zlib.error) as error:
            self._break_off(error)
        return offsets, values, faults

    def _skip_line(self) -> int:
        """Read to the end of the line without keeping it; returns how many bytes that was, without the line's end."""
        size = 0
        while chunk := self._stream.readline(_SKIP_BYTES):
            size += len(chunk)
            if chunk.endswith(b"\n"):
                return size - (2 if chunk.endswith(b"\r\n") else 1)
        return size

    def _break_off(self, error: BaseException) -> None:
        self.ended = True
        self.problem = f"breaks off after line {self.line}: {error or type(error).__name__}"

    def close(self) -> None:
        self._stream.close()
        self._compressed.close()
