"""``usp-daemon snapshot``: what lies in the store, what a snapshot says about itself, whether it is whole.

Nothing here takes a lock or changes a file, so all of it may run beside a daemon.
"""

import datetime
import json
import pathlib
import re
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
from rich.console import Console
from rich.progress import track
from rich.table import Table
from rich.text import Text

from usp_daemon.config import SPECS, load_settings
from usp_daemon.persistence import (
    FORMAT_VERSION,
    DamagedSnapshotError,
    FoundFile,
    PersistenceError,
    StoredHeader,
    look_at,
    problem_of,
    read_header,
    snapshot_files,
)

# Secrets are refused when a snapshot is written. A file may still come from elsewhere, and with keys that this version
# does not know, so what merely sounds like one is not shown either.
_SOUNDS_SECRET = re.compile(r"pass(word|wd|phrase)|secret|token|credential|private|api_?key", re.IGNORECASE)
_HIDDEN = "(hidden)"


class SnapshotCommandError(Exception):
    """A file or directory that cannot be looked at; the text says which and why."""


def list_snapshots(
    out: Console, *, config: pathlib.Path | None = None, directory: pathlib.Path | None = None, as_json: bool = False
) -> None:
    """Print every snapshot below ``directory``, by default ``io.snapshot_path`` of the settings in ``config``.

    Only headers are read. Raises :class:`SnapshotCommandError` and ``ConfigError``.
    """
    if directory is None:
        directory = pathlib.Path(load_settings(config).io.snapshot_path)
    found = [_look_at(path) for path in _files(directory)]
    if as_json:
        _print_json(out, [_summary(file) for file in found])
        return
    if not found:
        out.print(f"no snapshots below {directory}", highlight=False, markup=False, soft_wrap=True)
        return
    table = Table()
    for heading in ("group", "partition", "offset", "symbols", "size", "created (UTC)", "file", "remark"):
        right = heading in ("offset", "symbols", "size")
        table.add_column(heading, justify="right" if right else "left", overflow="fold")
    for file in found:
        stored = file.header
        header = stored.header if stored is not None else None
        table.add_row(
            Text(header.group if header else "-"),
            Text(f"{header.topic}/{header.partition}" if header else "-"),
            str(header.offset) if header else "-",
            f"{len(header.symbols):,}" if header else "-",
            _size(file.size_bytes),
            _time(header.created_ns) if header else "-",
            Text(str(file.path.relative_to(directory))),
            Text(_remark(file)),
        )
    out.print(table)


def inspect_snapshot(out: Console, path: pathlib.Path, *, as_json: bool = False) -> None:
    """Print the header of one snapshot. Raises :class:`SnapshotCommandError` when it cannot be read."""
    try:
        stored = read_header(path)
    except DamagedSnapshotError as error:
        raise SnapshotCommandError(f"{path}: damaged: {error}") from error
    except PersistenceError as error:
        raise SnapshotCommandError(f"{path}: {error}") from error
    except OSError as error:
        raise SnapshotCommandError(f"{path}: {error.strerror or error}") from error
    if as_json:
        _print_json(out, _described(path, stored))
        return
    header = stored.header
    facts = Table(show_header=False)
    facts.add_column(no_wrap=True)
    facts.add_column(overflow="fold")
    rows: list[tuple[str, object]] = [
        ("file", path),
        ("size", f"{_size(stored.size_bytes)} ({stored.size_bytes:,} bytes)"),
        ("format", f"version {stored.format_version} of {FORMAT_VERSION}, compression {header.compression}"),
        ("group", header.group),
        ("partition", f"{header.topic}/{header.partition} of {header.num_input_partitions or 'an unknown number'}"),
        ("offset", f"{header.offset} (the next record to be stepped)"),
        ("created", f"{_time(header.created_ns)} UTC, by the clock of its writer"),
        ("symbols", f"{len(header.symbols):,}"),
        ("configuration", f"{header.config_hash}, epoch {header.config_epoch}"),
        *((f"identity: {name}", value) for name, value in header.identity.items()),
        *((f"counter: {name}", value) for name, value in header.counters.items()),
        ("settings", f"{len(header.settings)} (--json shows them)"),
    ]
    for name, value in rows:
        facts.add_row(Text(name), Text(str(value)))
    arrays = Table()
    arrays.add_column("array", overflow="fold")
    for heading in ("type", "shape", "size"):
        arrays.add_column(heading, justify="right")
    for entry in header.arrays:
        arrays.add_row(Text(entry.path), entry.dtype, str(entry.shape), _size(entry.length))
    out.print(facts)
    out.print(arrays)
    out.print("Only the header was read; `usp-daemon snapshot verify` reads everything.", highlight=False, markup=False)


def verify_snapshots(
    out: Console, paths: Sequence[pathlib.Path], *, as_json: bool = False, err: Console | None = None
) -> bool:
    """Read every file, and every snapshot below every directory, to its last bit; print one line each.

    Returns whether all of them are whole, and there was at least one. Snapshots that a daemon has already set aside are
    counted only, unless they are named. ``err`` shows how far it is, where it is a terminal. Raises
    :class:`SnapshotCommandError`.
    """
    found = [(file, path.is_dir()) for path in paths for file in (_files(path) if path.is_dir() else [path])]
    named = [file for file, is_below in found if not is_below or file.suffix == ".usp"]
    num_set_aside = len(found) - len(named)
    problems: dict[pathlib.Path, str | None] = {}
    for file in _shown(named, err):
        problem = problem_of(file)
        problems[file] = None if problem is None else str(problem)
        if not as_json:
            out.print(f"{file}: {problem or 'whole'}", highlight=False, markup=False, soft_wrap=True)
    num_bad = sum(problem is not None for problem in problems.values())
    num_whole = len(problems) - num_bad
    is_good = num_bad == 0 and num_whole > 0
    if as_json:
        files = [
            {"file": str(file), "is_whole": problem is None, "problem": problem} for file, problem in problems.items()
        ]
        _print_json(out, {"is_whole": is_good, "num_set_aside": num_set_aside, "files": files})
        return is_good
    text = f"{num_whole} whole, {num_bad} damaged or unreadable"
    if num_set_aside:
        text += f", {num_set_aside} set aside before and not read"
    out.print(text if problems else f"no snapshots found; {text}", highlight=False, markup=False)
    return is_good


def _shown(files: Sequence[pathlib.Path], err: Console | None) -> Iterable[pathlib.Path]:
    """The files, with a bar on a terminal that says how many are left."""
    if err is None or not err.is_terminal or not files:
        return files
    return track(files, description="verifying", console=err, transient=True)


def _files(directory: pathlib.Path) -> list[pathlib.Path]:
    try:
        return list(snapshot_files(directory))
    except PersistenceError as error:
        text = str(error)
        if not directory.exists():
            text = f"{directory}: no such directory; `usp-daemon run` makes it, and --path or --config name another"
        raise SnapshotCommandError(text) from error


def _look_at(path: pathlib.Path) -> FoundFile:
    try:
        return look_at(path)
    except PersistenceError as error:
        raise SnapshotCommandError(str(error)) from error


def _summary(file: FoundFile) -> dict[str, Any]:
    summary: dict[str, Any] = {
        "file": str(file.path),
        "size_bytes": file.size_bytes,
        "is_set_aside": file.is_set_aside,
        "problem": file.problem or None,
    }
    if file.header is not None:
        header = file.header.header
        summary |= {
            "group": header.group,
            "topic": header.topic,
            "partition": header.partition,
            "offset": header.offset,
            "num_symbols": len(header.symbols),
            "created_ns": header.created_ns,
            "config_hash": header.config_hash,
            "format_version": file.header.format_version,
        }
    return summary


def _described(path: pathlib.Path, stored: StoredHeader) -> dict[str, Any]:
    described = msgspec.to_builtins(stored.header)
    described["settings"] = {
        name: _HIDDEN if _is_secret(name) else value for name, value in stored.header.settings.items()
    }
    return {
        "file": str(path),
        "size_bytes": stored.size_bytes,
        "format_version": stored.format_version,
        "num_symbols": len(stored.header.symbols),
        **described,
    }


def _is_secret(path: str) -> bool:
    spec = SPECS.get(path)
    return spec.key.secret if spec is not None else _SOUNDS_SECRET.search(path) is not None


def _remark(file: FoundFile) -> str:
    remarks = [file.path.suffix.removeprefix(".")] if file.is_set_aside else []
    return ": ".join([*remarks, file.problem] if file.problem else remarks)


def _print_json(out: Console, value: Any) -> None:
    # Not finite numbers become null, as JSON has none; the file itself keeps them.
    text = json.dumps(json.loads(msgspec.json.encode(value)), indent=2, ensure_ascii=False)
    out.print(text, highlight=False, markup=False, soft_wrap=True)


def _size(num_bytes: int) -> str:
    size = float(num_bytes)
    for unit in ("B", "KiB", "MiB"):
        if size < 1024.0:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024.0
    return f"{size:.1f} GiB"


def _time(unix_ns: int) -> str:
    moment = datetime.datetime.fromtimestamp(unix_ns // 1_000_000_000, datetime.UTC)
    return moment.strftime("%Y-%m-%d %H:%M:%S")
