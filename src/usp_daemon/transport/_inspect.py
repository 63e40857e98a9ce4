"""A first look at a file before anything is started: is it there, is it text, where are its fields."""

import codecs
import csv
import dataclasses
import gzip
import io
import json
import pathlib
import stat
import zlib
from typing import IO, Any

from usp_daemon.wire import CsvLayout, TickFormat, TransportError

GZIP_MAGIC = b"\x1f\x8b"
# Names under which the fields of a tick also go, tried in order when the configured name is not in a header.
TIME_ALIASES = ("ts", "timestamp", "time", "t", "datetime", "date")
VALUE_ALIASES = ("value", "price")
DELIMITERS = (",", ";", "\t")
_FORMATS_BY_SUFFIX = {".csv": "csv", ".tsv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl"}
_HEADER_LIMIT_BYTES = 65_536
_UTF16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


class InputError(TransportError):
    """A file that cannot be replayed at all; the text names the file, what was expected and what to do."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class InputFile:
    """A file that looks usable: its kind, where its fields stand, and a sample of how it writes the time."""

    path: pathlib.Path
    layout: CsvLayout | None
    num_header_lines: int
    compressed: bool
    size_bytes: int
    default_symbol: str
    first_time: str | None

    def open(self) -> tuple[Any, IO[bytes]]:
        """The file's content as a binary stream, and the stream whose position tells how much of the file is read."""
        raw = self.path.open("rb")
        return (gzip.GzipFile(fileobj=raw, mode="rb") if self.compressed else raw), raw


def inspect_file(
    path: pathlib.Path, tick_format: TickFormat, *, file_format: str = "auto", symbol: str | None = None
) -> InputFile:
    """Look at the beginning of ``path``.

    ``file_format`` is ``csv``, ``jsonl`` or ``auto`` (by suffix, else by the first character). ``symbol`` names the
    series of records that carry no symbol; by default the file's stem does. Raises :class:`InputError` for a file that
    is missing, not a regular file, unreadable, empty, UTF-16, a damaged archive, or a CSV whose header lacks a field.
    """
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise InputError(f"{path}: is a directory; name the files in it")
        if not stat.S_ISREG(status.st_mode):
            raise InputError(f"{path}: is not a regular file")
        with path.open("rb") as raw:
            compressed = raw.read(2) == GZIP_MAGIC
        with gzip.open(path) if compressed else path.open("rb") as stream:
            header, num_lines = _first_line(stream)
            following, _ = _first_line(stream)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: cannot be read: {error}") from None
    if not header:
        raise InputError(f"{path}: is empty; expected ticks")
    if header.startswith(_UTF16_MARKS):
        raise InputError(f"{path}: is UTF-16; expected UTF-8 (convert it: iconv -f UTF-16 -t UTF-8)")
    header = header.removeprefix(codecs.BOM_UTF8)
    kind = _kind_of(path, header) if file_format == "auto" else file_format
    layout = first_time = None
    if kind == "csv":
        layout = _layout_of(path, header, tick_format)
        if not following:
            raise InputError(f"{path}: has a header but no ticks")
        first_time = _first_csv_time(following, layout)
    else:
        num_lines = 0
        first_time = _first_json_time(header, tick_format)
    return InputFile(
        path=path,
        layout=layout,
        num_header_lines=num_lines,
        compressed=compressed,
        size_bytes=status.st_size,
        default_symbol=symbol if symbol is not None else _stem(path),
        first_time=first_time,
    )


def _first_line(stream: io.BufferedIOBase) -> tuple[bytes, int]:
    """The next line that is not blank (cut at a limit) and how many lines were read up to it; b"" at the end."""
    num_lines = 0
    while line := stream.readline(_HEADER_LIMIT_BYTES):
        num_lines += 1
        if line.strip():
            return line.rstrip(b"\r\n"), num_lines
    return b"", num_lines


def _kind_of(path: pathlib.Path, first_line: bytes) -> str:
    suffixes = [suffix.lower() for suffix in path.suffixes if suffix.lower() != ".gz"]
    if suffixes and suffixes[-1] in _FORMATS_BY_SUFFIX:
        return _FORMATS_BY_SUFFIX[suffixes[-1]]
    return "jsonl" if first_line.lstrip().startswith(b"{") else "csv"


def _stem(path: pathlib.Path) -> str:
    name = path.name
    for suffix in (".gz", *_FORMATS_BY_SUFFIX):
        name = name.removesuffix(suffix)
    return name or path.name


def _layout_of(path: pathlib.Path, header: bytes, tick_format: TickFormat) -> CsvLayout:
    try:
        text = header.decode("utf-8")
    except UnicodeDecodeError:
        raise InputError(f"{path}: the header is not UTF-8 text") from None
    delimiter = max(DELIMITERS, key=text.count)
    try:
        names = [name.strip() for name in next(csv.reader([text], delimiter=delimiter, strict=True))]
    except csv.Error as error:
        raise InputError(f"{path}: the header cannot be read: {error}") from None
    time_column = _find(names, tick_format.time_field, TIME_ALIASES)
    value_column = _find(names, tick_format.value_field, VALUE_ALIASES)
    if time_column is None or value_column is None:
        if all(_is_number(name) for name in names):
            raise InputError(
                f"{path}: has no header: its first line is {text[:80]!r}; "
                f"expected a line that names the columns, such as '{tick_format.time_field},{tick_format.value_field}'"
            )
        what, field, option = (
            ("time", tick_format.time_field, "--time-field")
            if time_column is None
            else ("value", tick_format.value_field, "--value-field")
        )
        raise InputError(
            f"{path}: no column {field!r} for the {what}; the header has {', '.join(map(repr, names))[:400]} "
            f"(name the column with {option})"
        )
    if time_column == value_column:
        raise InputError(f"{path}: time and value are the same column {names[time_column]!r}")
    if len(set(names)) != len(names) and (names.count(names[time_column]) > 1 or names.count(names[value_column]) > 1):
        raise InputError(f"{path}: the header names a column twice: {', '.join(map(repr, names))[:400]}")
    return CsvLayout(
        time_column=time_column,
        value_column=value_column,
        symbol_column=_find(names, tick_format.symbol_field, ()),
        num_columns=len(names),
        delimiter=delimiter,
    )


def _find(names: list[str], wanted: str, aliases: tuple[str, ...]) -> int | None:
    if wanted in names:
        return names.index(wanted)
    lowered = [name.lower() for name in names]
    # Aliases stand in only for a default name: somebody who asked for a column by name wants that one.
    for alias in aliases if wanted in aliases[:1] else ():
        if alias in lowered:
            return lowered.index(alias)
    return None


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return not text
    return True


def _first_csv_time(line: bytes, layout: CsvLayout) -> str | None:
    try:
        cells = next(csv.reader([line.decode("utf-8")], delimiter=layout.delimiter))
        return cells[layout.time_column].strip()
    except (UnicodeDecodeError, csv.Error, IndexError):
        return None


def _first_json_time(line: bytes, tick_format: TickFormat) -> str | None:
    try:
        content = json.loads(line)
    except (ValueError, RecursionError):
        return None
    found = content.get(tick_format.time_field) if isinstance(content, dict) else None
    return None if found is None or isinstance(found, dict | list) else str(found)[:100]
