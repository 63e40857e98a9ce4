"""The log of everything that was done to the configuration: JSON Lines, each with the hash of the line before it.

A line that is changed, removed, added or moved breaks the chain. So that lines missing at the end are noticed as well,
a small file beside it, the head, says how many lines there are and what the last one's hash is.

    append the line | fsync | write the head
    ----------------|-------|----------------
      a crash: a torn line,    a crash: a line that the head does not know yet,
      put aside at the next    which is taken up at the next change
      change, with a notice
"""

import contextlib
import dataclasses
import datetime
import enum
import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ._disk import DamagedStateError, Disk, make_directory, read_state, write_all, write_state, write_whole
from ._mutation_errors import AuditDamagedError

HEAD_FILE = "audit_head.json"
NO_LINE = "0" * 64  # what the first line names as the hash of the one before it
MAX_LINE_BYTES = 1 << 20


class AuditEvent(enum.StrEnum):
    """What happened."""

    MUTATION_APPLIED = "MUTATION_APPLIED"
    MUTATION_REJECTED = "MUTATION_REJECTED"  # against the policy; nothing was changed
    MUTATION_FAILED = "MUTATION_FAILED"  # allowed, and could not be made; nothing was changed
    MUTATION_ROLLED_BACK = "MUTATION_ROLLED_BACK"
    MUTATION_KEPT = "MUTATION_KEPT"  # it has passed its probation
    PROPOSAL = "PROPOSAL"  # for a person to decide; nothing was changed
    CAMPAIGN_STARTED = "CAMPAIGN_STARTED"
    CAMPAIGN_ENDED = "CAMPAIGN_ENDED"  # with what came of it
    PROBATION_STARTED = "PROBATION_STARTED"  # the change is in force, and compared with what was before
    PROBATION_ENDED = "PROBATION_ENDED"  # without a verdict; one with a verdict ends in KEPT or ROLLED_BACK
    LOG_REPAIRED = "LOG_REPAIRED"  # a line that a crash had torn was put aside


@dataclasses.dataclass(frozen=True, slots=True)
class AuditReport:
    """How many lines hold, and everything that is wrong, with the number of its line (0: the log as a whole)."""

    num_lines: int
    problems: tuple[tuple[int, str], ...]

    @property
    def is_whole(self) -> bool:
        """Whether the log is what was written, from its first line to its last."""
        return not self.problems


class AuditLog:
    """``path`` is the log, ``state_path`` the directory of its head. Only ``append`` needs the mutation lock."""

    def __init__(self, path: Path, state_path: Path, disk: Disk | None = None) -> None:
        self.path = path
        self._head_path = state_path / HEAD_FILE
        self._disk = disk or Disk()

    def append(self, event: AuditEvent, time_ns: int, fields: Mapping[str, Any]) -> str:
        """Add one line, on the disk when this returns; gives its hash.

        What a crash has torn is put aside first, and a line says so. Raises :class:`AuditDamagedError` where the log is
        not what was written before, and ``OSError``.
        """
        self.repair(time_ns)
        return self._append(self._end(), event, time_ns, fields)

    def repair(self, time_ns: int) -> None:
        """Put aside what a crash has torn at the end, so that the log is whole again. Raises as :meth:`append`."""
        make_directory(self._disk, self.path.parent)
        make_directory(self._disk, self._head_path.parent)
        end = self._end()
        if end.torn:
            # A name that depends on the content: the same after a crash in the middle of this.
            aside = self.path.with_name(f"{self.path.name}.torn-{hashlib.sha256(end.torn).hexdigest()[:12]}")
            write_whole(self._disk, aside, end.torn)
            self._write_head(dataclasses.replace(end, notice=aside.name))
            fd = self._disk.open_to_append(self.path)
            try:
                self._disk.truncate(fd, end.size)
                self._disk.fsync(fd)
            finally:
                os.close(fd)
            end = dataclasses.replace(end, torn=b"", notice=aside.name)
        if end.notice:
            reason = "the last line was torn, as by a power failure; what was there of it has been put aside"
            self._append(end, AuditEvent.LOG_REPAIRED, time_ns, {"reason": reason, "file": end.notice})
        elif end.count and end != self._read_head():
            self._write_head(end)  # lines that were written and of which the head was not told

    def set_aside(self, time_ns: int) -> Path:
        """Begin a new log in place of a damaged one, which is kept under another name. Raises ``OSError``."""
        aside = self.path.with_name(f"{self.path.name}.damaged-{time_ns}")
        with contextlib.suppress(FileNotFoundError):
            self._disk.replace(self.path, aside)
        with contextlib.suppress(FileNotFoundError):
            self._disk.unlink(self._head_path)
        self._disk.fsync_directory(self.path.parent)
        reason = "the log was not what had been written; it has been put aside and a new one begun"
        self.append(AuditEvent.LOG_REPAIRED, time_ns, {"reason": reason, "file": aside.name})
        return aside

    def read(self) -> Iterator[dict[str, Any]]:
        """Every line that is one, oldest first, the chain unseen. Raises ``OSError``."""
        for _, line in self._lines():
            with contextlib.suppress(ValueError, RecursionError):
                record = json.loads(line)
                if isinstance(record, dict):
                    yield record

    def has(self, mutation: str, event: AuditEvent) -> bool:
        """Whether a line says that of the change."""
        try:
            return any(each.get("mutation") == mutation and each.get("event") == event for each in self.read())
        except FileNotFoundError:
            return False

    def verify(self) -> AuditReport:
        """Read the whole log and its head. Raises ``OSError`` where there is a log that cannot be read."""
        problems: list[tuple[int, str]] = []
        hashes: list[str] = []
        previous = NO_LINE
        try:
            for number, line in self._lines():
                problem, own = _problem_of(line, previous)
                if problem:
                    problems.append((number, problem))
                previous = own
                hashes.append(own)
        except FileNotFoundError:
            pass
        try:
            head = self._read_head()
        except AuditDamagedError as error:
            problems.append((0, str(error)))
            head = None
        if head is not None and head.count > len(hashes):
            problems.append((0, f"{head.count - len(hashes)} lines are missing at the end"))
        elif head is not None and head.count and hashes[head.count - 1] != head.hash:
            problems.append((head.count, "it is not the line that was written as the last one then"))
        elif head is None and hashes and not problems:
            problems.append((0, f"there is no {self._head_path}: whether lines are missing at the end is not known"))
        return AuditReport(len(hashes), tuple(problems))

    def _append(self, end: "_End", event: AuditEvent, time_ns: int, fields: Mapping[str, Any]) -> str:
        moment = datetime.datetime.fromtimestamp(time_ns / 1e9, datetime.UTC).isoformat(timespec="microseconds")
        record = {"time": moment, "event": event.value, **plain(fields), "previous": end.hash}
        own = _hash(record)
        line = _canonical({**record, "hash": own}) + b"\n"
        if len(line) > MAX_LINE_BYTES:
            raise AuditDamagedError(f"a line of {len(line)} bytes; the evidence is too long")
        is_new = not self.path.exists()
        fd = self._disk.open_to_append(self.path)
        try:
            try:
                write_all(self._disk, fd, line)
                self._disk.fsync(fd)
            except OSError:
                with contextlib.suppress(OSError):  # a full disk leaves no half of a line
                    self._disk.truncate(fd, end.size)
                raise
        finally:
            os.close(fd)
        if is_new:
            self._disk.fsync_directory(self.path.parent)
        self._write_head(_End(end.count + 1, end.size + len(line), own))
        return own

    def _end(self) -> "_End":
        """Where the next line goes."""
        head = self._read_head()
        size = self.path.stat().st_size if self.path.exists() else 0
        if head is None:
            head = _End(0, 0, NO_LINE)
        elif size < head.size:
            raise AuditDamagedError(self._told(f"it is {head.size - size} bytes shorter than it was"))
        elif head.size:
            self._check_last(head)
        count, place, previous, notice = head.count, head.size, head.hash, head.notice
        rest = self._bytes(place, size)
        while b"\n" in rest:
            line, _, following = rest.partition(b"\n")
            problem, own = _problem_of(line, previous)
            if problem:
                if head.size == 0 and self._read_head() is None and following:
                    raise AuditDamagedError(self._told(f"line {count + 1}: {problem}"))
                break  # a page of the last line that never reached the disk
            notice = "" if json.loads(line)["event"] == AuditEvent.LOG_REPAIRED else notice
            count, place, previous, rest = count + 1, place + len(line) + 1, own, following
        return _End(count, place, previous, notice, rest)

    def _check_last(self, head: "_End") -> None:
        tail = self._bytes(max(0, head.size - MAX_LINE_BYTES), head.size)
        if tail.endswith(b"\n"):
            line = tail[:-1].rpartition(b"\n")[2]
            with contextlib.suppress(ValueError, KeyError, TypeError, RecursionError):
                record = json.loads(line)
                if not _problem_of(line, record["previous"])[0] and record["hash"] == head.hash:
                    return
        raise AuditDamagedError(self._told(f"line {head.count} is not the one that was written"))

    def _told(self, what: str) -> str:
        return (
            f"{self.path}: {what}; see usp-daemon audit verify. No change is made while its log is not to be trusted. "
            f"To begin a new one, move it and {self._head_path} away"
        )

    def _bytes(self, start: int, end: int) -> bytes:
        if start >= end:
            return b""
        with self.path.open("rb") as file:
            file.seek(start)
            return file.read(end - start)

    def _lines(self) -> Iterator[tuple[int, bytes]]:
        """The lines with their numbers, without their ends; a last one without an end counts as a broken one."""
        with self.path.open("rb") as file:
            for number, line in enumerate(file, 1):
                yield number, line[:-1] if line.endswith(b"\n") else line + b"\0"

    def _read_head(self) -> "_End | None":
        try:
            document = read_state(self._head_path)
            if document is None:
                return None
            return _End(
                int(document["count"]), int(document["size"]), str(document["hash"]), str(document.get("notice", ""))
            )
        except (DamagedStateError, KeyError, TypeError, ValueError, AttributeError) as error:
            raise AuditDamagedError(self._told(f"{self._head_path} cannot be read")) from error

    def _write_head(self, end: "_End") -> None:
        document = {"count": end.count, "size": end.size, "hash": end.hash, "notice": end.notice}
        write_state(self._disk, self._head_path, document)


@dataclasses.dataclass(frozen=True, slots=True)
class _End:
    """``count`` lines in ``size`` bytes, the last one's hash; a notice still to be written; what is torn after them."""

    count: int
    size: int
    hash: str
    notice: str = ""
    torn: bytes = b""


def plain(value: Any) -> Any:
    """The value as JSON can hold it: numbers that are not finite as words, what is no JSON as text."""
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, int) and value.bit_length() > 256:  # Python refuses to print thousands of digits
        return f"a whole number of {value.bit_length()} bits"
    if value is None or isinstance(value, bool | int | str):
        return value
    return str(value)


def _canonical(record: Mapping[str, Any]) -> bytes:
    return json.dumps(record, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode("ascii")


def _hash(record: Mapping[str, Any]) -> str:
    return hashlib.sha256(_canonical(record)).hexdigest()


def _problem_of(line: bytes, previous: str) -> tuple[str, str]:
    """What is wrong with the line, "" if nothing is, and the hash that the next one must name."""
    try:
        record = json.loads(line)
        own = record.pop("hash")
        if not isinstance(own, str):
            raise TypeError
        # every byte counts: the line must be exactly what would be written of what it says
        if _canonical({**record, "hash": own}) != line or _hash(record) != own:
            return "its content does not fit its hash: it was changed", own
        if record["previous"] != previous:
            return "it does not follow the line before it: a line was removed, added or moved", own
        return "", own
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return "it is no line of this log, or only a part of one", ""
