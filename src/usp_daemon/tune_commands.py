"""``usp-daemon tune`` and ``report``: a campaign over recorded ticks, and what came of one."""

import asyncio
import contextlib
import dataclasses
import json
import math
import pathlib
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar
from rich.text import Text

from usp_daemon.config import Settings, load_settings
from usp_daemon.transport import FileSource, InputError, InputFile, inspect_file, tick_format_of
from usp_daemon.tuning import (
    BatchEvaluator,
    BayesianMetaOptimizer,
    FoldPlan,
    History,
    HistoryError,
    MetaOptimizationConfig,
    OptimizationResult,
    Progress,
    StopReason,
    StorageError,
    StoredCampaign,
    Summary,
    WalkForwardEvaluator,
    campaign_names,
    load_meta_optimization_config,
    proposal_of,
    put_away,
    read_file,
    read_stored,
    replaced,
    summarise,
    text_of,
    write_html_report,
)
from usp_daemon.wire import TickDecoder, TimeUnit

# By symbol: times in unix nanoseconds and values, in the order of the files.
Arrays = Mapping[str, tuple[NDArray[np.int64], NDArray[np.float64]]]
EvaluatorFactory = Callable[[Arrays, Settings, MetaOptimizationConfig], BatchEvaluator]
# Where nobody watches, a line is printed for every better trial, and one each so many.
_TRIALS_PER_LINE = 10


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TuneOptions:
    """What to tune on and how; None stands for what the settings say.

    ``trials`` is the total of the campaign, ``out`` the directory it is kept in. ``resume`` insists that there is one
    to continue, ``fresh`` puts it away.
    """

    files: Sequence[pathlib.Path]
    config: pathlib.Path | None = None
    out: pathlib.Path | None = None
    name: str | None = None
    trials: int | None = None
    tier: str | None = None
    resume: bool = False
    fresh: bool = False
    time_limit_s: float | None = None
    seed: int | None = None
    worker: str | None = None
    propose: bool = False
    file_format: str = "auto"
    time_unit: str | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ReportOptions:
    """What to report on: a journal, a saved study, the name of a campaign, or (None) the only one there is."""

    campaign: str | None = None
    config: pathlib.Path | None = None
    html: pathlib.Path | None = None
    as_json: bool = False
    propose: bool = False
    audit: pathlib.Path | None = None


def walk_forward_evaluator(arrays: Arrays, settings: Settings, meta_config: MetaOptimizationConfig) -> BatchEvaluator:
    """The evaluator over the recorded ticks: causal, fold by fold, all candidates of a structure at once.

    Raises ``InputError`` where no symbol has ticks enough for the folds.
    """
    folds = FoldPlan.from_settings(meta_config)
    try:
        return WalkForwardEvaluator(History.from_arrays(arrays), settings, folds=folds)
    except HistoryError as error:
        raise InputError(f"these ticks cannot be tuned on: {error}") from error


def tune(
    options: TuneOptions,
    out: Console,
    err: Console,
    *,
    evaluator_factory: EvaluatorFactory = walk_forward_evaluator,
) -> bool:
    """Run or continue a campaign over the ticks in files; print how it went on ``out``, its progress on ``err``.

    Returns whether it came to its end, by trials, patience or time; False after a signal. The first SIGINT or SIGTERM
    ends it after the batch in hand, the second at once; it can be continued after either. Raises ``ConfigError``,
    ``InputError`` and ``TuningError``.
    """
    settings = load_settings(options.config)
    meta_config = _with_options(load_meta_optimization_config(settings), options)
    tier = options.tier or meta_config.tier
    name = options.name or f"usp-{tier}"
    arrays = read_ticks(options, settings, err)
    if options.fresh:
        old = put_away(meta_config, name)
        if old is not None:
            _say(err, f"the campaign that was there is now {old}")
    elif options.resume and name not in campaign_names(meta_config):
        raise StorageError(f"there is no campaign {name!r} to be resumed; leave --resume out to begin it")
    total = options.trials or meta_config.total_trials(tier)
    with _shown(err, total) as show:
        optimizer = BayesianMetaOptimizer(
            evaluator_factory(arrays, settings, meta_config),
            meta_config,
            settings,
            study_name=name,
            tier=tier,
            worker=options.worker,
            progress_fn=show,
        )
        known = sum(record.is_finished for record in optimizer.open().records())
        if known:
            _say(err, f"continuing {name} after {known} trials")
        with _stopping(optimizer, err):
            result = optimizer.optimize(total_trials=total)
            if result.stop_reason is not StopReason.ASKED:
                _say(err, "judging the best trial on the ticks that were kept from the search")
                optimizer.decide()
    _print_end(options, optimizer, result, out, err)
    return result.stop_reason is not StopReason.ASKED


def report(options: ReportOptions, out: Console) -> None:
    """Print what came of a campaign. Raises ``ConfigError`` and ``TuningError``."""
    settings = load_settings(options.config)
    meta_config = load_meta_optimization_config(settings)
    campaign, records, decision = found = _found(options.campaign, meta_config)
    summary = summarise(
        campaign,
        records,
        decision=decision,
        patience_trials=meta_config.patience_trials,
        min_improvement=meta_config.min_improvement,
        audit=_audit_entries(options.audit) if options.audit is not None else (),
    )
    if options.html is not None:
        write_html_report(options.html, summary, campaign, records)
    if options.as_json:
        _plain(out, _as_json(summary, found))
    elif options.propose:
        _plain(out, proposal_of(summary).rstrip("\n"))
    else:
        _plain(out, text_of(summary))


def read_ticks(options: TuneOptions, settings: Settings, err: Console) -> Arrays:
    """The ticks of the files by symbol. Raises ``InputError`` where there are none, or a file breaks off."""
    usual = tick_format_of(settings)
    tick_format = dataclasses.replace(
        usual, time_unit=TimeUnit(options.time_unit) if options.time_unit else usual.time_unit, key_is_symbol=False
    )
    files, errors = [], []
    for path in options.files:
        try:
            files.append(inspect_file(path, tick_format, file_format=options.file_format))
        except InputError as error:
            errors.append(str(error))
    if errors:
        raise InputError("\n".join(errors))
    return asyncio.run(_collected(files, TickDecoder(tick_format), err))


async def _collected(files: Sequence[InputFile], decoder: TickDecoder, err: Console) -> Arrays:
    source = FileSource(files)
    times: dict[str, list[int]] = {}
    values: dict[str, list[float]] = {}
    num_refused = 0
    await source.open()
    try:
        async for raw in source.batches():
            batch = decoder.decode(raw)
            num_refused += len(batch.dead_letters)
            for symbol, time_ns, value in zip(
                batch.symbols, batch.timestamps_ns.tolist(), batch.values.tolist(), strict=True
            ):
                times.setdefault(symbol, []).append(time_ns)
                values.setdefault(symbol, []).append(value)
    finally:
        await source.close()
    if source.problems:
        raise InputError("\n".join(f"{problem.path}: {problem.message}" for problem in source.problems))
    if not times:
        raise InputError("none of the lines is a tick; see `usp-daemon replay` for the reasons")
    if num_refused:
        _say(err, f"{num_refused:,} lines are no ticks and were left out")
    return {symbol: (np.array(times[symbol], np.int64), np.array(values[symbol], np.float64)) for symbol in times}


def _with_options(meta_config: MetaOptimizationConfig, options: TuneOptions) -> MetaOptimizationConfig:
    changes: dict[str, Any] = {}
    if options.out is not None:
        changes |= {"checkpoint_path": str(options.out), "storage_url": ""}
    if options.seed is not None:
        changes["seed"] = options.seed
    if options.time_limit_s is not None:
        changes["time_limit_s"] = options.time_limit_s
    return replaced(meta_config, **changes) if changes else meta_config


@contextlib.contextmanager
def _stopping(optimizer: BayesianMetaOptimizer, err: Console) -> Iterator[None]:
    """Have the first signal end the campaign after its batch, the second interrupt it."""

    def handle(number: int, frame: object) -> None:
        del number, frame
        if was_asked:
            raise KeyboardInterrupt
        was_asked.append(True)
        optimizer.stop()
        _say(err, "interrupted: finishing the batch (once more to abandon it)")

    was_asked: list[bool] = []
    previous = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _shown(err: Console, total: int) -> Iterator[Callable[[Progress], None]]:
    """A function that shows progress: a bar on a terminal, a line now and then elsewhere."""
    if err.is_terminal:
        columns = (BarColumn(), TextColumn("{task.completed:.0f}/{task.total:.0f} trials, {task.description}"))
        with Bar(*columns, TimeElapsedColumn(), console=err) as bar:
            task = bar.add_task("waiting for the first", total=total)
            yield lambda progress: bar.update(task, completed=progress.num_finished, description=_best(progress))
        return
    best, printed = math.inf, 0

    def show(progress: Progress) -> None:
        nonlocal best, printed
        if progress.best_value < best or progress.num_finished >= printed + _TRIALS_PER_LINE:
            best, printed = progress.best_value, progress.num_finished
            _say(err, f"{progress.num_finished}/{progress.num_total} trials, {_best(progress)}")

    yield show


def _best(progress: Progress) -> str:
    if progress.best_number is None:
        return "none feasible so far"
    return f"best {progress.best_value:.5f} (trial {progress.best_number}), {progress.num_structures} structures"


def _print_end(
    options: TuneOptions, optimizer: BayesianMetaOptimizer, result: OptimizationResult, out: Console, err: Console
) -> None:
    if options.propose:
        config = optimizer.meta_config
        summary = summarise(
            optimizer.campaign,
            optimizer.records,
            decision=optimizer.decision,
            patience_trials=config.patience_trials,
            min_improvement=config.min_improvement,
        )
        _plain(out, proposal_of(summary).rstrip("\n"))
    else:
        _plain(out, optimizer.generate_optimization_report())
    if result.stop_reason is StopReason.ASKED:
        _say(err, f"stopped after {result.n_trials} trials; the same command continues the campaign")


def _found(wanted: str | None, meta_config: MetaOptimizationConfig) -> StoredCampaign:
    if wanted is None:
        names = campaign_names(meta_config)
        if len(names) != 1:
            place = "the database" if meta_config.storage_url else meta_config.checkpoint_path
            if not names:
                raise StorageError(f"{place} holds no campaign yet; `usp-daemon tune FILE...` begins one")
            raise StorageError(f"{place} holds {len(names)} campaigns ({', '.join(names)}); name one")
        return read_stored(meta_config, names[0])
    path = pathlib.Path(wanted)
    return read_file(path) if path.is_file() else read_stored(meta_config, wanted)


def _audit_entries(path: pathlib.Path) -> list[dict[str, Any]]:
    """The entries of an audit log, a line of JSON each; what is none of them is left out."""
    try:
        lines = path.read_text("utf-8", "replace").splitlines()
    except OSError as error:
        raise StorageError(f"{path}: {error.strerror or error}") from error
    entries = []
    for line in lines:
        with contextlib.suppress(ValueError):
            entry = json.loads(line)
            if isinstance(entry, dict):
                entries.append(entry)
    return entries


def _as_json(summary: Summary, found: StoredCampaign) -> str:
    content = {
        "summary": msgspec.to_builtins(summary),
        "campaign": msgspec.to_builtins(found.campaign),
        "trials": [msgspec.to_builtins(record) for record in found.records],
    }
    return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)


def _plain(out: Console, text: str) -> None:
    out.print(text, highlight=False, markup=False, soft_wrap=True)


def _say(err: Console, text: str) -> None:
    err.print(Text(text), highlight=False, soft_wrap=True)
