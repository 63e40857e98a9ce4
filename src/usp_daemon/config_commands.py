"""``usp-daemon audit``, ``rollback``, ``reload``: the log of changes, the way back, a word to the running daemon."""

import contextlib
import dataclasses
import json
import os
import pathlib
import time
from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from usp_daemon.config import (
    AuditLog,
    ConfigMutator,
    ConfigSource,
    MutationOutcome,
    ReloadReport,
    ReloadTrigger,
    RunningDaemon,
    Settings,
    settings_as_far_as_right,
)

_PAUSE_S = 0.05
_DIGITS = 12  # of a hash, in a table


class NoDaemonError(Exception):
    """No daemon runs that could be spoken to; the text says what was found instead."""


class NoAnswerError(Exception):
    """The daemon did not say in time what came of it."""


def verify_audit(out: Console, *, config: pathlib.Path | None = None, as_json: bool = False) -> bool:
    """Read the log of changes from its first line to its last, print what is wrong; gives whether nothing is.

    Raises ``OSError`` where there is a log and it cannot be read.
    """
    log = _log(_settings(config))
    report = log.verify()
    if not report.is_whole:
        # a line that is being written at this moment is no torn one
        time.sleep(2 * _PAUSE_S)
        report = log.verify()
    if as_json:
        problems = [{"line": number or None, "problem": problem} for number, problem in report.problems]
        _print_json(
            out, {"file": str(log.path), "is_whole": report.is_whole, "lines": report.num_lines, "problems": problems}
        )
        return report.is_whole
    for number, problem in report.problems:
        _print(out, f"{log.path}{f', line {number}' if number else ''}: {problem}")
    if report.is_whole:
        _print(out, f"{log.path}: {report.num_lines} lines, each as it was written, none missing")
    return report.is_whole


def show_audit(
    out: Console, *, config: pathlib.Path | None = None, last: int | None = None, as_json: bool = False
) -> None:
    """Print the log of changes, or its ``last`` lines. Raises ``OSError``."""
    log = _log(_settings(config))
    try:
        records = list(log.read())
    except FileNotFoundError:
        records = []
    records = records[-last:] if last is not None else records
    if as_json:
        _print_json(out, records)
        return
    if not records:
        _print(out, f"{log.path}: no change yet")
        return
    table = Table()
    for heading in ("time (UTC)", "event", "change", "who", "trigger", "values", "before", "after", "reason"):
        table.add_column(heading, overflow="fold")
    for record in records:
        reason = record.get("reason") or ""
        cells = (
            str(record.get("time", ""))[:19].replace("T", " "),
            record.get("event", ""),
            record.get("mutation", ""),
            record.get("who", ""),
            record.get("trigger", ""),
            _values(record.get("delta") or {}),
            str(record.get("config_hash_before", ""))[:_DIGITS],
            str(record.get("config_hash_after", ""))[:_DIGITS],
            "; ".join(map(str, reason)) if isinstance(reason, list) else reason,
        )
        table.add_row(*(Text(str(cell)) for cell in cells))
    out.print(table)


def roll_back(
    out: Console, *, config: pathlib.Path | None = None, to: str | None = None, as_json: bool = False
) -> None:
    """Take the last change back, or everything since ``to``, and print what that was.

    Raises ``ConfigMutationError``.
    """
    mutator = ConfigMutator(ConfigSource(config))
    done = mutator.rollback(to, "by hand", trigger="usp-daemon rollback")
    if as_json:
        _print_json(
            out,
            {
                "outcome": str(done.outcome),
                "id": done.id,
                "wrote_to": None if done.wrote_to is None else str(done.wrote_to),
                "hash_before": done.hash_before,
                "hash_after": done.hash_after,
                "changed": {path: {"from": old, "to": new} for path, (old, new) in done.delta.items()},
            },
        )
        return
    if done.outcome is MutationOutcome.UNCHANGED:
        _print(out, "nothing to do: the configuration is that one already")
        return
    _print(out, f"{done.id}: {done.wrote_to} is back to {done.hash_after[:_DIGITS]} (was {done.hash_before[:_DIGITS]})")
    for path, (old, new) in done.delta.items():
        _print(out, f"  {path}: {old} -> {new}")


def reload(
    out: Console,
    *,
    config: pathlib.Path | None = None,
    wait_s: float = 30.0,
    as_json: bool = False,
    err: Console | None = None,
) -> ReloadReport:
    """Have the running daemon read its configuration now, wait for what it says came of it, and print that.

    ``err`` is where a terminal is told that it waits.

    Raises :class:`NoDaemonError`, :class:`NoAnswerError` and ``PermissionError``.
    """
    state_path = pathlib.Path(_settings(config).io.state_path)
    daemon = RunningDaemon.read(state_path)
    if daemon is None:
        raise NoDaemonError(f"no daemon has said in {state_path} that it runs; is io.state_path the same for both?")
    if not daemon.process.is_here:
        raise NoDaemonError(f"the daemon is {daemon.process}: ask it there")
    before = ReloadReport.read(state_path)
    if not daemon.hang_up():
        raise NoDaemonError(f"the daemon that was {daemon.process} does not run any more")
    with _waiting(err, f"waiting for {daemon.process}"):
        report = _answer(state_path, daemon, before, wait_s)
    if as_json:
        _print_json(out, dataclasses.asdict(report))
        return report
    hint = f", epoch {report.epoch}" if report.epoch is not None else ""
    _print(out, f"{report.outcome}: {report.content_hash[:_DIGITS]}{hint}, in {report.seconds:.3f} s")
    for name, paths in report.changed.items():
        for path in paths:
            _print(out, f"  {name}: {path}")
    for problem in report.problems:
        _print(out, f"  {problem}")
    return report


def _answer(
    state_path: pathlib.Path, daemon: RunningDaemon, before: ReloadReport | None, wait_s: float
) -> ReloadReport:
    """The first report of a reload by signal since ``before``; at the end of the time any that is newer."""
    until = time.monotonic() + wait_s
    while True:
        report = ReloadReport.read(state_path)
        is_new = report is not None and report != before
        is_over = time.monotonic() >= until
        if report is not None and is_new and (report.trigger is ReloadTrigger.SIGNAL or is_over):
            return report
        if not daemon.is_alive:
            raise NoDaemonError(f"the daemon, {daemon.process}, has ended meanwhile")
        if is_over:
            raise NoAnswerError(f"{daemon.process} has not said within {wait_s:g} s what came of it; see its log")
        time.sleep(_PAUSE_S)


def _settings(config: pathlib.Path | None) -> Settings:
    return settings_as_far_as_right(ConfigSource(config, os.environ))


def _log(settings: Settings) -> AuditLog:
    return AuditLog(pathlib.Path(settings.io.mutations_log), pathlib.Path(settings.io.state_path))


def _values(delta: Mapping[str, Any]) -> str:
    return "\n".join(
        f"{path}: {pair[0]} -> {pair[1]}" for path, pair in delta.items() if isinstance(pair, list) and len(pair) == 2
    )


@contextlib.contextmanager
def _waiting(err: Console | None, text: str) -> Iterator[None]:
    """Say on a terminal, and nowhere else, what is being waited for."""
    with err.status(text) if err is not None and err.is_terminal else contextlib.nullcontext():
        yield


def _print_json(out: Console, value: Any) -> None:
    _print(out, json.dumps(value, indent=2, ensure_ascii=False, default=str))


def _print(out: Console, text: str) -> None:
    out.print(text, highlight=False, markup=False, soft_wrap=True)
