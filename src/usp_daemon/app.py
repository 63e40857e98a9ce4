"""The composition root: builds a replay from settings and options, runs it, and says how it went."""

import asyncio
import contextlib
import ctypes
import dataclasses
import enum
import pathlib
import signal
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from usp_daemon.compute import PartitionMigration, StateKey, Worker, predictor_config
from usp_daemon.config import Settings, load_settings
from usp_daemon.demo import DEMO_SERIES, DEMO_TIME_UNIT, demo_files
from usp_daemon.service import AbstractPacer, Answer, Pacer, Pipeline, PipelineStats, Predictor, TimeUnitGuard
from usp_daemon.service.report import SymbolScore, score_predictions, write_report
from usp_daemon.transport import (
    ALARMS_FILE,
    OUTPUT_FILES,
    PREDICTIONS_FILE,
    FileSource,
    InputError,
    InputFile,
    InputProblem,
    JsonLinesSink,
    inspect_file,
    tick_format_of,
)
from usp_daemon.wire import ResultEncoder, TickDecoder, TickFormat, TimeUnit, plausible_unit

_T = TypeVar("_T")

REPORT_FILE = "report.html"
# How long the device's thread may take to end: a compilation that nobody waits for any more cannot be interrupted.
_CLOSE_TIMEOUT_S = 5.0
_PROGRESS_INTERVAL_S = 0.2


class ExitCode(enum.IntEnum):
    """What the process tells its caller."""

    OK = 0
    FAILURE = 1
    USAGE = 2
    INPUT = 3
    BROKER = 69
    UNFINISHED = 75
    INTERRUPTED = 130

    @property
    def meaning(self) -> str:
        """One line for the help and the documentation."""
        return {
            ExitCode.OK: "all input was read and answered (dead letters included); a service drained and stopped",
            ExitCode.FAILURE: "something broke while running: the device, the disk, a defect",
            ExitCode.USAGE: "wrong usage or configuration, or the device asked for is not there",
            ExitCode.INPUT: "an input file is unusable, or broke off; what could be read was answered",
            ExitCode.BROKER: "the broker cannot be reached at start, or refuses: no rights, topics that do not fit",
            ExitCode.UNFINISHED: "the service ended before all was done (out of time, or stalled); start it again, "
            "recovery makes up for it",
            ExitCode.INTERRUPTED: "interrupted (SIGINT or SIGTERM); what was done until then is in the output",
        }[self]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ReplayOptions:
    """What to replay and where to; None stands for what the settings say.

    ``speed`` is None for as fast as possible, else a multiple of the speed at which the ticks once came.
    """

    files: Sequence[pathlib.Path]
    out: pathlib.Path
    config: pathlib.Path | None = None
    speed: float | None = None
    file_format: str = "auto"
    time_unit: str | None = None
    symbol_field: str | None = None
    time_field: str | None = None
    value_field: str | None = None
    symbol: str | None = None
    device: str | None = None
    precision: str | None = None
    max_symbols: int | None = None
    quantiles: bool = False
    report: bool = False


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Watching:
    """Whoever looks on while a replay runs: told of all that is published, and how fast it may go for that. Files are
    read a line each in turn then.
    """

    answered_fn: Callable[[Sequence[Answer]], None]
    pacer: AbstractPacer


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ReplaySummary:
    """How a replay went. ``start_s`` is the time to compile and start, ``run_s`` that of the ticks."""

    exit_code: ExitCode
    stats: PipelineStats
    start_s: float
    run_s: float = 0.0
    device: str = ""
    problems: Sequence[InputProblem] = ()

    @property
    def ticks_per_s(self) -> float:
        """Records answered per second, start-up aside."""
        return self.stats.records / self.run_s if self.run_s > 0.0 else 0.0


PredictorFactory = Callable[[Settings, ReplayOptions], AbstractAsyncContextManager[tuple[Predictor, str]]]


@contextlib.asynccontextmanager
async def started_worker(settings: Settings, options: ReplayOptions) -> AsyncIterator[tuple[Predictor, str]]:
    """The worker that owns the device, compiled and ready, and its device in words."""
    worker = build_worker(settings, device=options.device, precision=options.precision, max_symbols=options.max_symbols)
    try:
        report = await worker.start()
        give_back_freed_memory()
        yield worker, str(report.device)
    finally:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(worker.close(), _CLOSE_TIMEOUT_S)


def build_worker(
    settings: Settings,
    *,
    device: str | None = None,
    precision: str | None = None,
    max_symbols: int | None = None,
    on_migration: Callable[[PartitionMigration], None] | None = None,
) -> Worker:
    """The worker that the settings describe, not started; what is given stands before them."""
    compute = settings.compute
    return Worker(
        predictor_config(settings),
        device=device or compute.device,
        precision=precision or compute.precision,
        tile_width=None if compute.tile_width == "auto" else int(compute.tile_width),
        refresh_width=None if compute.refresh_width == "auto" else int(compute.refresh_width),
        max_symbols=max_symbols or compute.max_symbols,
        cache_directory=pathlib.Path(compute.compilation_cache) if compute.compilation_cache else None,
        on_migration=on_migration,
    )


def give_back_freed_memory() -> None:
    """Ask the C library to return what compilation has freed: about 1 GB that would otherwise stay with the process."""
    with contextlib.suppress(OSError, AttributeError):  # another C library than glibc
        ctypes.CDLL("libc.so.6").malloc_trim(0)


async def replay(
    options: ReplayOptions,
    out: Console,
    err: Console,
    *,
    predictor_factory: PredictorFactory = started_worker,
    watching: Watching | None = None,
) -> ReplaySummary:
    """Replay files through the pipeline and print how it went: the summary on ``out``, everything else on ``err``.

    Raises ``ConfigError`` and ``InputError`` before anything is started; afterwards ``TransportError`` and the errors
    of :mod:`usp_daemon.compute`, in an exception group. The first SIGINT or SIGTERM ends the intake and lets what was
    taken in be answered; the second abandons that as well.
    """
    settings = load_settings(options.config)
    tick_format = _tick_format(settings, options)
    files = _inspected(options, tick_format)
    for file in files:
        _warn_about_unit(file, tick_format.time_unit, err)
    # Files that name no symbols hold one series each, so nothing has to be in order between them.
    apart = (
        options.speed is None and options.symbol is None and len({file.default_symbol for file in files}) == len(files)
    )
    source = FileSource(
        files,
        batch_records=4096 if watching is None else 1,
        max_record_bytes=tick_format.max_record_bytes,
        side_by_side=apart and all(file.layout is not None and file.layout.symbol_column is None for file in files),
    )
    begun = time.perf_counter()
    with _Interruption(err) as interruption:
        async with contextlib.AsyncExitStack() as stack:
            if err.is_terminal:
                err.print("preparing the predictor (its programs are compiled once and kept for later runs) ...")
            predictor_started = stack.enter_async_context(predictor_factory(settings, options))
            entered = await interruption.unless_interrupted(predictor_started)
            start_s = time.perf_counter() - begun
            if entered is None:
                err.print("interrupted before the first tick; nothing was written")
                return ReplaySummary(exit_code=ExitCode.INTERRUPTED, stats=PipelineStats(), start_s=start_s)
            predictor, device = entered
            begun = time.perf_counter()
            sink = JsonLinesSink(options.out)
            pipeline = Pipeline(
                source=source,
                sink=sink,
                predictor=predictor,
                decoder=TickDecoder(tick_format),
                encoder=ResultEncoder(config_hash=settings.predictor_hash(), include_quantiles=options.quantiles),
                key_fn=StateKey,
                queue_batches=max(4, min(len(files), 64)),
                refine_fn=TimeUnitGuard(),
                pacer=_pacer(options, watching),
                answered_fn=None if watching is None else watching.answered_fn,
            )
            with interruption.calling(pipeline.stop):
                async with source, sink, _progress(source, pipeline.stats, err):
                    await interruption.unless_interrupted_twice(pipeline.run())
            run_s = time.perf_counter() - begun
    problems = tuple(source.problems)
    for problem in problems:
        err.print(Text(f"error: {problem.path}: {problem.message}", style="red"))
    code = ExitCode.INTERRUPTED if interruption.happened else ExitCode.INPUT if problems else ExitCode.OK
    summary = ReplaySummary(
        exit_code=code, stats=pipeline.stats, start_s=start_s, run_s=run_s, device=device, problems=problems
    )
    _print_summary(summary, options.out, out)
    if options.report:
        _report(summary, options.out, "Replay report", {}, out)
    return summary


async def demo(
    out_directory: pathlib.Path,
    out: Console,
    err: Console,
    *,
    predictor_factory: PredictorFactory = started_worker,
    watching: Watching | None = None,
) -> ReplaySummary:
    """Replay the bundled series, print a table of scores and write the report; see :func:`replay`."""
    options = ReplayOptions(files=demo_files(), out=out_directory, time_unit=DEMO_TIME_UNIT)
    summary = await replay(options, out, err, predictor_factory=predictor_factory, watching=watching)
    if summary.stats.predictions:
        notes = {series.symbol: series.description for series in DEMO_SERIES}
        scores = _report(summary, out_directory, "usp-daemon: demonstration on real series", notes, out)
        out.print(_score_table(scores, summary))
    return summary


def _pacer(options: ReplayOptions, watching: Watching | None) -> AbstractPacer | None:
    if watching is not None:
        return watching.pacer
    return None if options.speed is None else Pacer(options.speed)


class _Interruption:
    """Turns SIGINT and SIGTERM into a flag while it is entered; the handlers of before are back afterwards."""

    def __init__(self, err: Console) -> None:
        self._err = err
        self._first = asyncio.Event()
        self._second = asyncio.Event()
        self._stop_fn: Callable[[], None] | None = None

    @property
    def happened(self) -> bool:
        """Whether a signal came."""
        return self._first.is_set()

    def __enter__(self) -> "_Interruption":
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._on_signal)
        return self

    def __exit__(self, *exception: object) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)

    def _on_signal(self) -> None:
        if self._first.is_set():
            self._second.set()
            return
        self._first.set()
        self._err.print("interrupted: finishing what has been read (once more to abandon it)")
        if self._stop_fn is not None:
            self._stop_fn()

    @contextlib.contextmanager
    def calling(self, stop_fn: Callable[[], None]) -> Iterator[None]:
        """Have the first signal call ``stop_fn``, at once if it has already come."""
        self._stop_fn = stop_fn
        if self.happened:
            stop_fn()
        try:
            yield
        finally:
            self._stop_fn = None

    async def unless_interrupted(self, coroutine: Coroutine[Any, Any, _T]) -> _T | None:
        """What ``coroutine`` returns, or None, with the coroutine cancelled, when a signal comes first."""
        return await _first_of(coroutine, self._first, name="app.start")

    async def unless_interrupted_twice(self, coroutine: Coroutine[Any, Any, _T]) -> _T | None:
        """The same, for the second signal."""
        return await _first_of(coroutine, self._second, name="app.run")


async def _first_of(coroutine: Coroutine[Any, Any, _T], event: asyncio.Event, *, name: str) -> _T | None:
    task = asyncio.create_task(coroutine, name=name)
    signalled = asyncio.create_task(event.wait(), name=f"{name}.signal")
    try:
        await asyncio.wait({task, signalled}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        return None
    finally:
        task.cancel()
        signalled.cancel()


def _tick_format(settings: Settings, options: ReplayOptions) -> TickFormat:
    usual = tick_format_of(settings)
    return dataclasses.replace(
        usual,
        symbol_field=options.symbol_field or usual.symbol_field,
        time_field=options.time_field or usual.time_field,
        value_field=options.value_field or usual.value_field,
        time_unit=TimeUnit(options.time_unit) if options.time_unit else usual.time_unit,
        key_is_symbol=False,  # files have no keys
    )


def _inspected(options: ReplayOptions, tick_format: TickFormat) -> list[InputFile]:
    """A first look at every file, so that one message names all that are wrong."""
    files, errors = [], []
    for path in options.files:
        try:
            files.append(inspect_file(path, tick_format, file_format=options.file_format, symbol=options.symbol))
        except InputError as error:
            errors.append(str(error))
    if errors:
        raise InputError("\n".join(errors))
    return files


def _warn_about_unit(file: InputFile, unit: TimeUnit, err: Console) -> None:
    """Say so when the first time in a file is a date in another unit than the one in force."""
    if file.first_time is None:
        return
    try:
        number = float(file.first_time)
    except ValueError:
        if unit is not TimeUnit.ISO8601:
            text = f"{file.path}: times such as {file.first_time!r} are no numbers; is it --time-unit iso8601?"
            err.print(Text(f"warning: {text}", style="yellow"))
        return
    likely = plausible_unit(number)
    if likely is not None and likely is not unit:
        text = f"{file.path}: times such as {file.first_time} look like {likely.value}, not {unit.value} (--time-unit)"
        err.print(Text(f"warning: {text}", style="yellow"))


@contextlib.asynccontextmanager
async def _progress(source: FileSource, stats: PipelineStats, err: Console) -> AsyncIterator[None]:
    """A progress bar by bytes read while the body runs; nothing when ``err`` is no terminal."""
    if not err.is_terminal:
        yield
        return
    columns = (
        TextColumn("{task.percentage:>3.0f}%"),
        BarColumn(),
        TextColumn("{task.fields[ticks]} ticks, {task.fields[rate]}/s"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=err, transient=True) as progress:
        bar = progress.add_task("replay", total=max(source.bytes_total, 1), ticks="0", rate="0")
        begun = time.perf_counter()

        async def follow() -> None:
            while True:
                done = stats.predictions + stats.dead_letters
                rate = done / max(time.perf_counter() - begun, 1e-9)
                progress.update(bar, completed=source.bytes_read, ticks=f"{done:,}", rate=f"{rate:,.0f}")
                await asyncio.sleep(_PROGRESS_INTERVAL_S)

        follower = asyncio.create_task(follow(), name="app.progress")
        try:
            yield
        finally:
            follower.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await follower


def _print_summary(summary: ReplaySummary, directory: pathlib.Path, out: Console) -> None:
    stats = summary.stats
    out.print(
        f"{stats.records:,} records of {len(stats.symbols):,} symbols in {summary.run_s:.1f} s: "
        f"{summary.ticks_per_s:,.0f} ticks/s on {summary.device} (ready after {summary.start_s:.1f} s)",
        highlight=False,
        markup=False,
    )
    for count, name in zip((stats.predictions, stats.alarms, stats.dead_letters), OUTPUT_FILES, strict=True):
        out.print(f"  {count:>12,}  {directory / name}", highlight=False, markup=False, soft_wrap=True)
    if stats.rejected:
        out.print(f"  {stats.rejected:,} ticks were refused by the gate and answered with the standing forecast")
    for reason, count in sorted(stats.dead_letters_by_reason.items()):
        out.print(f"  {count:,} dead letters: {reason}", highlight=False)


def _report(
    summary: ReplaySummary, directory: pathlib.Path, title: str, notes: dict[str, str], out: Console
) -> list[SymbolScore]:
    predictions, alarms = directory / PREDICTIONS_FILE, directory / ALARMS_FILE
    scores = score_predictions(predictions, alarms)
    stats = summary.stats
    facts = [
        ("ticks", f"{stats.predictions:,}"),
        ("symbols", f"{len(stats.symbols):,}"),
        ("alarms", f"{stats.alarms:,}"),
        ("dead letters", f"{stats.dead_letters:,}"),
        ("ticks a second", f"{summary.ticks_per_s:,.0f}"),
        ("", summary.device),
    ]
    path = directory / REPORT_FILE
    write_report(path, predictions=predictions, alarms=alarms, title=title, facts=facts, notes=notes, scores=scores)
    out.print(f"  report: {path}", highlight=False, markup=False, soft_wrap=True)
    return scores


def _score_table(scores: Sequence[SymbolScore], summary: ReplaySummary) -> Table:
    caption = (
        f"MAE after a burn-in of max(200, n/10) ticks; last value = the forecast that nothing changes. "
        f"{summary.ticks_per_s:,.0f} ticks/s over all symbols together."
    )
    table = Table(caption=caption)
    table.add_column("symbol", no_wrap=True)
    for heading in ("ticks", "MAE", "MAE / last value", "within 80 %", "within 95 %", "alarms", "ticks/s"):
        table.add_column(heading, justify="right", no_wrap=True)
    for score in scores:
        # Symbols are stepped together, so a symbol's own rate is its share of the whole run.
        rate = score.num_ticks / summary.run_s if summary.run_s > 0.0 else 0.0
        table.add_row(
            Text(score.symbol),
            f"{score.num_ticks:,}",
            _shown(score.mae, ".5g"),
            _shown(score.relative_mae, ".3f"),
            _shown(score.coverage_80, ".1%"),
            _shown(score.coverage_95, ".1%"),
            str(score.num_alarms),
            f"{rate:,.0f}",
        )
    return table


def _shown(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
