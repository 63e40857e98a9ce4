"""``usp-daemon feed``: ticks into the service's input topic, as any producer sends them."""

import asyncio
import collections
import contextlib
import dataclasses
import itertools
import pathlib
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from typing import NamedTuple

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.text import Text

from usp_daemon.config import load_settings
from usp_daemon.demo import DEMO_TIME_UNIT, SyntheticSeries, demo_files
from usp_daemon.transport import FileSource, InputError, InputFile, InputProblem, inspect_file, tick_format_of
from usp_daemon.transport.kafka import KafkaTransport, TickProducer
from usp_daemon.wire import RawBatch, TickDecoder, TickEncoder, TickFormat, TimeUnit, TransportError

from ._ends import signals, unless, until_stopped
from ._lines import shown_tick

Write = Callable[[bytes], object]

# Somebody sits in front of the command: it says that there is no broker sooner than a service would give up.
_START_TIMEOUT_S = 10.0
# Ticks that fall due within this time are sent together: waking for each alone would cost more than it tells.
_GRANULARITY_S = 0.005
_TICKS_BETWEEN_YIELDS = 256
_PROGRESS_INTERVAL_S = 0.2


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class FeedOptions:
    """What to send, and how fast.

    ``files`` empty and ``symbols`` None stands for the bundled series. ``rate`` is in ticks a second over all symbols,
    None for as fast as the broker takes them. ``count`` None is all there is. ``original_times`` keeps the times of the
    files, in place of the time of sending.
    """

    files: Sequence[pathlib.Path] = ()
    config: pathlib.Path | None = None
    rate: float | None = None
    symbols: int | None = None
    seed: int = 0
    count: int | None = None
    time_unit: str | None = None
    original_times: bool = False
    print_ticks: bool = False


class FeedSummary(NamedTuple):
    """What was sent. After a hurried end ``acknowledged`` is less; ``problems`` are files that broke off."""

    sent: int
    acknowledged: int
    symbols: int
    seconds: float
    skipped: int
    problems: Sequence[InputProblem]


class _Tick(NamedTuple):
    symbol: str
    time_ns: int
    value: float


async def feed(options: FeedOptions, write: Write, err: Console) -> FeedSummary:
    """Send ticks until there are no more, ``count`` is reached, or a signal comes; what was sent is then acknowledged.

    Raises ``ConfigError`` and ``InputError`` before anything is sent, and ``TransportError``. ``write`` gets a line for
    each tick with ``print_ticks``.
    """
    settings = load_settings(options.config)
    tick_format = tick_format_of(settings)
    source = None if options.symbols is not None else _file_source(options, tick_format)
    skipped: collections.Counter[str] = collections.Counter()
    if source is None:
        ticks = _synthetic_ticks(SyntheticSeries(options.symbols or 1, options.seed))
    else:
        file_format = dataclasses.replace(tick_format, time_unit=_time_unit(options, tick_format), key_is_symbol=False)
        ticks = _ticks_of_files(source, TickDecoder(file_format), skipped)
    transport = KafkaTransport(
        settings.kafka,
        min_retention_s=0.0,
        start_timeout_s=min(settings.service.start_timeout_s, _START_TIMEOUT_S),
    )
    producer = TickProducer(settings.kafka)
    feeder = _Feeder(options, producer, TickEncoder(tick_format), write)
    shown_on = err if err.is_terminal and not options.print_ticks else None
    with signals() as stop:
        try:
            if await unless(stop.first, _prepared(transport, producer)) is not None:
                async with _progress(feeder, producer, shown_on), contextlib.aclosing(ticks):
                    await until_stopped(feeder.run(ticks, stop.first), stop.first)
                    await unless(stop.second, _flushed(producer, settings.kafka.request_timeout_ms / 1e3))
        finally:
            await producer.close()
    return FeedSummary(
        sent=producer.num_sent,
        acknowledged=producer.num_acknowledged,
        symbols=len(feeder.symbols),
        seconds=feeder.seconds,
        skipped=skipped.total(),
        problems=() if source is None else tuple(source.problems),
    )


def print_feed_summary(summary: FeedSummary, console: Console) -> None:
    """Say what was sent, what was not, and why."""
    rate = summary.sent / summary.seconds if summary.seconds > 0.0 else 0.0
    console.print(
        f"{summary.sent:,} ticks of {summary.symbols:,} symbols in {summary.seconds:.1f} s: {rate:,.0f} ticks/s, "
        + ("all acknowledged" if summary.acknowledged == summary.sent else f"{summary.acknowledged:,} acknowledged"),
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
    if summary.skipped:
        console.print(f"{summary.skipped:,} lines are no ticks and were left out", highlight=False)
    for problem in summary.problems:
        console.print(Text(f"error: {problem.path}: {problem.message}", style="red"), soft_wrap=True)


class _Feeder:
    """Sends ticks at a pace. Ticks that a slow broker has held up are sent as soon as it takes them."""

    def __init__(self, options: FeedOptions, producer: TickProducer, encoder: TickEncoder, write: Write) -> None:
        self._options = options
        self._producer = producer
        self._encoder = encoder
        self._write = write
        self._begun: float | None = None
        self._begun_ns = 0
        self._last_ns = 0
        self._ended: float | None = None
        self.symbols: set[str] = set()

    @property
    def seconds(self) -> float:
        """Time since the first tick, or between the first and the last."""
        if self._begun is None:
            return 0.0
        return (time.monotonic() if self._ended is None else self._ended) - self._begun

    async def run(self, ticks: AsyncGenerator[_Tick, None], stopped: asyncio.Event) -> None:
        """Send ``ticks`` until they end, the count is reached or the event is set."""
        options = self._options
        self._begun, self._begun_ns = time.monotonic(), time.time_ns()
        try:
            number = 0
            async for tick in ticks:
                wait_s = 0.0 if options.rate is None else self._begun + number / options.rate - time.monotonic()
                if wait_s > _GRANULARITY_S:
                    await unless(stopped, asyncio.sleep(wait_s))
                elif number % _TICKS_BETWEEN_YIELDS == 0:
                    await asyncio.sleep(0)
                if stopped.is_set():
                    return
                time_ns = tick.time_ns if options.original_times else self._present(number)
                key, value = self._encoder.encode(tick.symbol, time_ns, tick.value)
                await self._producer.send(key, value, timestamp_ms=time_ns // 1_000_000)
                self.symbols.add(tick.symbol)
                number += 1
                if options.print_ticks:
                    self._write(f"{shown_tick(tick.symbol, time_ns, tick.value)}\n".encode())
                if number == options.count:
                    return
        finally:
            self._ended = time.monotonic()

    def _present(self, number: int) -> int:
        """The time at which a tick is due: as even as the pace, and later than the tick before it."""
        rate = self._options.rate
        due_ns = time.time_ns() if rate is None else self._begun_ns + int(number * 1e9 / rate)
        self._last_ns = max(due_ns, self._last_ns + 1)
        return self._last_ns


async def _prepared(transport: KafkaTransport, producer: TickProducer) -> bool:
    await transport.prepare()
    await producer.open()
    return True


async def _flushed(producer: TickProducer, timeout_s: float) -> None:
    try:
        async with asyncio.timeout(timeout_s):
            await producer.flush()
    except TimeoutError:
        raise TransportError(
            f"{producer.num_sent - producer.num_acknowledged:,} of {producer.num_sent:,} ticks were not acknowledged "
            f"within {timeout_s:g} s; they may or may not be in the topic"
        ) from None


def _time_unit(options: FeedOptions, tick_format: TickFormat) -> TimeUnit:
    if options.time_unit is not None:
        return TimeUnit(options.time_unit)
    return tick_format.time_unit if options.files else TimeUnit(DEMO_TIME_UNIT)


def _file_source(options: FeedOptions, tick_format: TickFormat) -> FileSource:
    files: list[InputFile] = []
    errors: list[str] = []
    for path in options.files or demo_files():
        try:
            files.append(inspect_file(path, tick_format))
        except InputError as error:
            errors.append(str(error))
    if errors:
        raise InputError("\n".join(errors))
    # Files that name no symbols hold one series each: they take turns, as series of a live feed would.
    apart = all(file.layout is not None and file.layout.symbol_column is None for file in files)
    return FileSource(
        files,
        max_record_bytes=tick_format.max_record_bytes,
        side_by_side=apart and len({file.default_symbol for file in files}) == len(files),
    )


async def _ticks_of_files(
    source: FileSource, decoder: TickDecoder, skipped: "collections.Counter[str]"
) -> AsyncGenerator[_Tick, None]:
    """The ticks of files in order; of files that are read side by side one tick each in turn."""
    # Each file's lines come many at a time, so those of one turn of all files are gathered first.
    turn: dict[str, list[_Tick]] = {}

    def taken() -> Iterator[_Tick]:
        for ticks in itertools.zip_longest(*turn.values()):
            yield from (tick for tick in ticks if tick is not None)
        turn.clear()

    async with source:
        async with contextlib.aclosing(source.batches()) as batches:  # type: ignore[type-var]
            async for raw in batches:
                if raw.source in turn:
                    for tick in taken():
                        yield tick
                turn[raw.source] = _decoded(raw, decoder, skipped)
        for tick in taken():
            yield tick


def _decoded(raw: RawBatch, decoder: TickDecoder, skipped: "collections.Counter[str]") -> list[_Tick]:
    batch = decoder.decode(raw)
    skipped.update(entry.reason.value for entry in batch.dead_letters)
    columns = zip(batch.symbols, batch.timestamps_ns.tolist(), batch.values.tolist(), strict=True)
    return [_Tick(*row) for row in columns]


async def _synthetic_ticks(series: SyntheticSeries) -> AsyncGenerator[_Tick, None]:
    while True:
        for symbol, value in zip(series.names, series.next_values().tolist(), strict=True):
            yield _Tick(symbol, 0, round(value, 6))


@contextlib.asynccontextmanager
async def _progress(feeder: _Feeder, producer: TickProducer, terminal: Console | None) -> AsyncIterator[None]:
    """A line with total and rate while the body runs, where there is a terminal for it."""
    if terminal is None:
        yield
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=terminal, transient=True) as progress:
        line = progress.add_task("sending")

        async def follow() -> None:
            while True:
                rate = producer.num_sent / max(feeder.seconds, 1e-9)
                text = f"{producer.num_sent:,} ticks of {len(feeder.symbols):,} symbols, {rate:,.0f}/s"
                progress.update(line, description=f"{text}, {producer.num_under_way:,} not acknowledged yet")
                await asyncio.sleep(_PROGRESS_INTERVAL_S)

        follower = asyncio.create_task(follow(), name="feed.progress")
        try:
            yield
        finally:
            follower.cancel()
            await asyncio.gather(follower, return_exceptions=True)
