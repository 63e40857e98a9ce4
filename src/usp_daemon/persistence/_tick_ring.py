"""The daemon's own accepted input on disk, bounded, so that the tuner finds recent history.

What is worth keeping is history per symbol: of more symbols than there is room for, always the same ones are recorded,
chosen by a hash, each with its last ``ticks_per_symbol`` ticks without a hole, however fast or slow it ticks.

    event loop                       writer thread
    append() --> bounded queue -->   newest segment          |  when there are twice as many rows as are wanted:
      full: drop and count           [s1] [s2] ... [s9]      |  what is still wanted of s1 goes to the newest, s1 away

A crash between these two leaves some rows twice and loses none; a torn frame ends its segment, and the next start
begins another. Nothing that the disk does reaches the caller: the ring says that it has stopped, and tries again later.
"""

import contextlib
import dataclasses
import enum
import errno
import fcntl
import itertools
import logging
import math
import os
import pathlib
import queue
import threading
import time
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from ._directory import free_bytes
from ._errors import TickRingError
from ._names import LOCK_FILE
from ._symbol_sample import SymbolSample
from ._tick_segments import (
    FRAME_BYTES,
    ROW_BYTES,
    Columns,
    RecordedTicks,
    decode_segment,
    encode_symbols,
    encode_ticks,
    head,
    join,
    read_ticks,
    segment_name,
    segment_numbers,
)

_PURPOSE = "recorder"
_UNKNOWN, _NOT_KEPT = -2, -1
_KNOWN_SYMBOLS_LIMIT = 200_000
_MIN_SEGMENT_ROWS = 1024
_SEGMENTS = 16


class TickRingEventKind(enum.Enum):
    """What happened to the recording that an operator, or a metric, should know of."""

    # The disk is full, refuses, or another process records there; what comes meanwhile is not recorded.
    STOPPED = "tick_recording_stopped"
    RESUMED = "tick_recording_resumed"
    # The writer is behind; said once for each time that it falls behind.
    DROPPED = "ticks_not_recorded"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TickRingEvent:
    """One such happening; ``num_dropped`` ticks were not recorded so far, for whatever reason."""

    kind: TickRingEventKind
    directory: str
    reason: str
    num_dropped: int


def log_ring_event(event: TickRingEvent) -> None:
    """What a ring does with events unless told otherwise: one line of the standard logging each."""
    level = logging.INFO if event.kind is TickRingEventKind.RESUMED else logging.WARNING
    fields = {"directory": event.directory, "num_dropped": event.num_dropped}
    text = "%s: %s (%s)"
    logging.getLogger(__name__).log(level, text, event.kind.value, event.directory, event.reason, extra=fields)


@dataclasses.dataclass(slots=True)
class _Segment:
    number: int
    rows: int


class _LastTimes:
    """The times of one symbol's last ``count`` ticks."""

    def __init__(self, count: int) -> None:
        self._times = np.full(count, np.iinfo(np.int64).min)
        self._next = 0
        self.newest = int(np.iinfo(np.int64).min)

    @property
    def oldest(self) -> int:
        """The first time that is still wanted; below every time while there are fewer than ``count``."""
        return int(self._times[self._next])

    def extend(self, times: NDArray[np.int64]) -> None:
        """Take ascending ``times`` later than all before."""
        times = times[-len(self._times) :]
        if len(times):
            self._times[(self._next + np.arange(len(times))) % len(self._times)] = times
            self._next = (self._next + len(times)) % len(self._times)
            self.newest = int(times[-1])


class TickRing:
    """Records ticks below ``directory``, which belongs to one process; :func:`read_ticks` reads them from any.

    Of ``max_symbols`` symbols (fewer, if ``max_bytes`` does not hold so many) the last ``ticks_per_symbol`` are kept.
    The files take at most about 56 bytes for each of these, and one segment. ``max_queued_ticks`` may wait for the
    writer. ``min_free_bytes`` are left free on the disk, for those who need it more. A symbol that has been silent for
    ``forget_after_s``, by the records' times, makes room for another. ``observe_fn`` gets every event, in the ring's
    own thread; it must neither raise nor wait.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        ticks_per_symbol: int = 5_000,
        max_symbols: int = 64,
        max_bytes: int | None = None,
        segment_bytes: int | None = None,
        max_queued_ticks: int = 200_000,
        flush_interval_s: float = 1.0,
        retry_interval_s: float = 30.0,
        min_free_bytes: int = 256 << 20,
        forget_after_s: float = 3 * 86_400.0,
        observe_fn: Callable[[TickRingEvent], None] = log_ring_event,
        write_fn: Callable[[int, memoryview], int] = os.write,
        free_bytes_fn: Callable[[pathlib.Path], int | None] = free_bytes,
        clock_fn: Callable[[], float] = time.monotonic,
    ) -> None:
        if ticks_per_symbol < 1 or max_symbols < 1:
            raise ValueError(f"expected at least one symbol and one tick, got {max_symbols} and {ticks_per_symbol}")
        self._num_symbols = max_symbols
        if max_bytes is not None:
            room = max_bytes // (2 * ROW_BYTES * ticks_per_symbol)
            if room < 1:
                raise ValueError(f"max_bytes: {ticks_per_symbol} ticks need {2 * ROW_BYTES * ticks_per_symbol:,} bytes")
            self._num_symbols = min(max_symbols, room)
        self._ticks_per_symbol = ticks_per_symbol
        self._capacity = 2 * self._num_symbols * ticks_per_symbol
        rows = segment_bytes // ROW_BYTES if segment_bytes else max(_MIN_SEGMENT_ROWS, self._capacity // _SEGMENTS)
        # Of one segment alone nothing could ever be given up.
        self._segment_rows = max(1, min(rows, self._capacity // 4))
        self._directory = pathlib.Path(directory)
        self._max_queued_ticks = max_queued_ticks
        self._flush_interval_s = flush_interval_s
        self._retry_interval_s = retry_interval_s
        self._min_free_bytes = min_free_bytes
        self._forget_after_ns = int(forget_after_s * 1e9)
        self._observe = observe_fn
        self._write_fn = write_fn
        self._free_bytes = free_bytes_fn
        self._clock = clock_fn

        # Shared by the two threads under the lock, which is never held over anything slow.
        self._lock = threading.Lock()
        self._sample = SymbolSample(self._num_symbols, _PURPOSE)
        self._known: dict[str, int] = {}
        self._numbers: dict[str, int] = {}
        self._names: list[str] = []
        self._kept: frozenset[int] = frozenset()
        self._num_turned_away = 0
        self._queued_ticks = 0
        self._num_dropped = 0
        self._num_recorded = 0
        self._queue: queue.SimpleQueue[Columns | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

        # The writer's own.
        self._lock_fd: int | None = None
        self._fd: int | None = None
        self._good_bytes = 0
        self._segments: list[_Segment] = []
        self._declared: set[int] = set()
        self._times: dict[int, _LastTimes] = {}
        self._newest_record_ns = 0
        self._looked_for_silent_ns = 0
        self._suspended_until = -math.inf
        self._is_suspended = False
        self._reported_dropped = 0

    @property
    def num_symbols(self) -> int:
        """How many symbols are recorded at most."""
        return self._num_symbols

    @property
    def num_recorded(self) -> int:
        """Ticks written by this ring."""
        return self._num_recorded

    @property
    def num_dropped(self) -> int:
        """Ticks of recorded symbols that were not written: the writer was behind, or the disk refused."""
        return self._num_dropped

    @property
    def symbols(self) -> tuple[str, ...]:
        """Those recorded at present."""
        with self._lock:
            return self._sample.symbols

    def open(self) -> None:
        """Start the writer, which finds out by itself whether the directory can be used. Does not wait."""
        if self._thread is not None:
            raise RuntimeError("a ring can be opened once; build another one")
        self._thread = threading.Thread(target=self._main, name="usp-recorder", daemon=True)
        self._thread.start()

    def close(self, timeout_s: float | None = 5.0) -> bool:
        """Write what waits and end; returns whether that was done in time. Waits, so call it beside the event loop."""
        if self._thread is None:
            return True
        self._queue.put(None)
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def append(
        self,
        symbols: Sequence[str],
        timestamps_ns: NDArray[np.int64],
        values: NDArray[np.float64],
        record_timestamps_ns: NDArray[np.int64],
        accepted: NDArray[np.bool_] | None = None,
    ) -> None:
        """Record the ticks of one batch, all columns of the same length; where ``accepted`` is false, not. Never waits.

        A tick not later than the last recorded of its symbol is a repetition, and not recorded again.
        """
        with self._lock:
            count = len(symbols)
            numbers = np.fromiter(map(self._known.get, symbols, itertools.repeat(_UNKNOWN)), np.int64, count)
            for row in np.flatnonzero(numbers == _UNKNOWN).tolist():
                numbers[row] = self._number_of(symbols[row])
            wanted = numbers >= 0 if accepted is None else (numbers >= 0) & accepted
            rows = np.flatnonzero(wanted)
            if not rows.size:
                return
            if self._queued_ticks + rows.size > self._max_queued_ticks:
                self._num_dropped += rows.size
                return
            self._queued_ticks += rows.size
        # Copies, since the caller's arrays may change.
        self._queue.put(
            Columns(numbers[rows].astype(np.int32), timestamps_ns[rows], record_timestamps_ns[rows], values[rows])
        )

    def read(self, *, min_ticks: int = 1) -> dict[str, RecordedTicks]:
        """:func:`read_ticks` of this ring's directory; what still waits for the writer is not seen."""
        return read_ticks(self._directory, min_ticks=min_ticks)

    # Which symbols; under the lock

    def _number_of(self, symbol: str) -> int:
        """The number under which the symbol is recorded, or that it is not."""
        number = self._known.get(symbol)
        if number is not None:
            return number
        if len(self._known) >= _KNOWN_SYMBOLS_LIMIT:  # somebody makes names up
            self._known = {name: self._numbers[name] for name in self._sample.symbols}
        kept, removed = self._sample.offer(symbol)
        if removed is not None:
            self._known[removed] = _NOT_KEPT
        if not kept or removed is not None:
            self._num_turned_away += 1
        self._known[symbol] = self._number_for(symbol) if kept else _NOT_KEPT
        if kept:
            self._kept = frozenset(self._numbers[name] for name in self._sample.symbols)
        return self._known[symbol]

    def _number_for(self, symbol: str) -> int:
        number = self._numbers.get(symbol)
        if number is None:
            number = self._numbers[symbol] = len(self._names)
            self._names.append(symbol)
        return number

    # Everything below runs in the ring's thread.

    def _main(self) -> None:
        is_closing = False
        self._attempt(None)
        while not is_closing:
            parts, is_closing = self._collect()
            if parts:
                self._attempt(join(parts))
            self._report_dropped()
        self._end_segment()
        self._unlock()

    def _collect(self) -> tuple[list[Columns], bool]:
        """What came within one flush interval from the first on, and whether the ring is closed."""
        parts: list[Columns] = []
        rows = 0
        deadline = math.inf
        while rows < self._segment_rows:
            try:
                wait = None if deadline == math.inf else max(0.0, deadline - time.monotonic())
                part = self._queue.get(timeout=wait)
            except queue.Empty:
                break
            if part is None:
                return parts, True
            if not parts:
                deadline = time.monotonic() + self._flush_interval_s
            parts.append(part)
            rows += len(part)
            with self._lock:
                self._queued_ticks -= len(part)
        return parts, False

    def _attempt(self, columns: Columns | None) -> None:
        """Open if need be, and write; whatever goes wrong stops the recording for a while."""
        count = 0 if columns is None else len(columns)
        if self._clock() < self._suspended_until:
            self._drop(count)
            return
        try:
            if self._lock_fd is None:
                self._start()
            if columns is not None:
                self._record(columns)
        except Exception as error:  # whatever it is: recording is a convenience, and nobody else would hear of it
            # Everything is found out anew then: the directory may be another one.
            self._end_segment()
            self._unlock()
            self._drop(count)
            self._suspended_until = self._clock() + self._retry_interval_s
            if not self._is_suspended:
                self._report(TickRingEventKind.STOPPED, _reason(error))
            self._is_suspended = True
            return
        if self._is_suspended:
            self._is_suspended = False
            self._report(TickRingEventKind.RESUMED, "the disk takes what is written again")

    def _start(self) -> None:
        self._directory.mkdir(parents=True, exist_ok=True)
        fd = os.open(self._directory / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise TickRingError("another process records here; give each a directory of its own") from None
            self._remember()
        except BaseException:
            os.close(fd)
            raise
        self._lock_fd = fd

    def _remember(self) -> None:
        """Which symbols were recorded before, and up to when."""
        found = read_ticks(self._directory)
        self._times = {}
        self._segments = [
            _Segment(number, (self._directory / segment_name(number)).stat().st_size // ROW_BYTES)
            for number in segment_numbers(self._directory)
        ]
        newest = max((int(ticks.record_timestamps_ns[-1]) for ticks in found.values()), default=0)
        self._newest_record_ns = self._looked_for_silent_ns = newest
        with self._lock:
            for symbol, ticks in found.items():
                if newest - int(ticks.record_timestamps_ns[-1]) <= self._forget_after_ns:
                    self._number_of(symbol)
            numbers = {symbol: self._number_for(symbol) for symbol in found}
        for symbol, ticks in found.items():
            self._times_of(numbers[symbol]).extend(ticks.timestamps_ns)

    def _times_of(self, number: int) -> _LastTimes:
        times = self._times.get(number)
        if times is None:
            times = self._times[number] = _LastTimes(self._ticks_per_symbol)
        return times

    def _record(self, columns: Columns) -> None:
        with self._lock:
            kept = self._kept
        for number in self._times.keys() - kept:
            del self._times[number]
        columns = columns.rows(np.isin(columns.numbers, sorted(kept)))
        columns = columns.rows(self._is_new(columns))
        if not len(columns):
            return
        self._put(columns)
        for number in np.unique(columns.numbers).tolist():
            self._times_of(number).extend(columns.timestamps_ns[columns.numbers == number])
        with self._lock:
            self._num_recorded += len(columns)
        self._newest_record_ns = max(self._newest_record_ns, int(columns.record_timestamps_ns.max()))
        self._look_for_silent()
        # One round over all segments removes everything that is not wanted.
        for _ in range(len(self._segments)):
            if sum(segment.rows for segment in self._segments) <= self._capacity:
                break
            self._give_up_oldest()

    def _is_new(self, columns: Columns) -> NDArray[np.bool_]:
        """Whether each row is later than all before it of its symbol."""
        new = np.zeros(len(columns), bool)
        for number in np.unique(columns.numbers).tolist():
            rows = np.flatnonzero(columns.numbers == number)
            times = columns.timestamps_ns[rows]
            before = np.maximum.accumulate(np.concatenate([[self._times_of(number).newest], times[:-1]]))
            new[rows] = times > before
        return new

    def _put(self, columns: Columns) -> None:
        """Append rows to the newest segment, or to a new one."""
        free = self._free_bytes(self._directory)
        needed = self._min_free_bytes + len(columns) * ROW_BYTES
        if free is not None and free < needed:
            raise OSError(errno.ENOSPC, f"{free:,} bytes are free, and {needed:,} are needed to leave enough to others")
        data = b""
        if self._fd is not None and self._segments[-1].rows >= self._segment_rows:
            self._end_segment()
        if self._fd is None:
            number = self._segments[-1].number + 1 if self._segments else 0
            path = self._directory / segment_name(number)
            self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
            self._segments.append(_Segment(number, 0))
            self._good_bytes = 0
            data = head()
        undeclared = set(np.unique(columns.numbers).tolist()) - self._declared
        if undeclared:
            with self._lock:
                names = {number: self._names[number] for number in sorted(undeclared)}
            data += encode_symbols(names)
        try:
            self._write_all(self._fd, data + encode_ticks(columns))
        except BaseException:
            self._take_back(self._fd)
            raise
        self._good_bytes += len(data) + ROW_BYTES * len(columns) + FRAME_BYTES
        self._declared |= undeclared
        self._segments[-1].rows += len(columns)

    def _write_all(self, fd: int, data: bytes) -> None:
        view = memoryview(data)
        while view:
            written = self._write_fn(fd, view)
            if written <= 0:
                raise OSError(errno.EIO, "nothing was written")
            view = view[written:]

    def _take_back(self, fd: int) -> None:
        """Remove half a frame, so that attempts on a full disk leave nothing behind."""
        with contextlib.suppress(OSError):
            os.ftruncate(fd, self._good_bytes)
        if not self._segments[-1].rows:
            with contextlib.suppress(OSError):
                os.unlink(self._directory / segment_name(self._segments.pop().number))

    def _give_up_oldest(self) -> None:
        """Copy what is still wanted of the oldest segment to the newest, then remove it."""
        if len(self._segments) == 1:
            return
        oldest = self._segments[0]
        path = self._directory / segment_name(oldest.number)
        wanted = []
        with self._lock:
            kept, numbers = self._kept, dict(self._numbers)
        with contextlib.suppress(TickRingError):  # of another version: nobody here can use it
            for names, columns in decode_segment(path.read_bytes()):
                wanted.extend(self._wanted(names, columns, numbers, kept))
        if wanted:
            self._put(join(wanted))
        os.unlink(path)
        self._segments.remove(oldest)

    def _wanted(
        self, names: dict[int, str], columns: Columns, numbers: dict[str, int], kept: frozenset[int]
    ) -> list[Columns]:
        """The rows among the last of their symbol, under this ring's numbers."""
        found = []
        for theirs in np.unique(columns.numbers).tolist():
            ours = numbers.get(names.get(theirs, ""))
            if ours in kept and ours is not None:
                mine = columns.rows(
                    (columns.numbers == theirs) & (columns.timestamps_ns >= self._times_of(ours).oldest)
                )
                found.append(dataclasses.replace(mine, numbers=np.full(len(mine), ours, np.int32)))
        return [part for part in found if len(part)]

    def _look_for_silent(self) -> None:
        """Symbols that tick no more make room, where others were turned away."""
        if self._newest_record_ns - self._looked_for_silent_ns < self._forget_after_ns // 8:
            return
        self._looked_for_silent_ns = self._newest_record_ns
        limit = self._newest_record_ns - self._forget_after_ns
        with self._lock:
            if not self._num_turned_away:
                return
            silent = [symbol for symbol in self._sample.symbols if self._times_of(self._numbers[symbol]).newest < limit]
            for symbol in silent:
                self._sample.remove(symbol)
            if silent:
                # Whoever was turned away may try again.
                self._known = {name: self._numbers[name] for name in self._sample.symbols}
                self._kept = frozenset(self._known.values())
                self._num_turned_away = 0

    def _end_segment(self) -> None:
        if self._fd is not None:
            with contextlib.suppress(OSError):
                os.close(self._fd)
            self._fd = None
            self._declared = set()

    def _unlock(self) -> None:
        if self._lock_fd is not None:
            os.close(self._lock_fd)
            self._lock_fd = None

    def _drop(self, count: int) -> None:
        if count:
            with self._lock:
                self._num_dropped += count
            self._reported_dropped += count  # that the recording stopped has been said already

    def _report_dropped(self) -> None:
        dropped = self._num_dropped
        if dropped > self._reported_dropped:
            more = dropped - self._reported_dropped
            self._reported_dropped = dropped
            self._report(TickRingEventKind.DROPPED, f"the writer is behind; {more:,} ticks were left out")

    def _report(self, kind: TickRingEventKind, reason: str) -> None:
        self._observe(
            TickRingEvent(kind=kind, directory=str(self._directory), reason=reason, num_dropped=self._num_dropped)
        )


def _reason(error: Exception) -> str:
    if isinstance(error, OSError):
        return error.strerror or str(error)
    return str(error) if isinstance(error, TickRingError) else repr(error)
