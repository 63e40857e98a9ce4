"""Former configurations: their bytes under their own hashes, and an index of what led from one to the next."""

import contextlib
import dataclasses
import enum
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ._disk import DamagedStateError, Disk, make_directory, read_state, write_state, write_whole
from ._key import Value
from ._mutation_errors import ConfigMutationError, MutationFailedError

HISTORY_FILE = "history.json"
BACKUPS_DIRECTORY = "backups"
_LEAST_PREFIX = 6


class EntryStatus(enum.StrEnum):
    """What became of a change."""

    APPLIED = "applied"
    KEPT = "kept"
    ROLLED_BACK = "rolled_back"
    RESTORED = "restored"  # itself a way back to a former configuration
    MARKED = "marked"  # no change: the configuration of an epoch


STANDING = (EntryStatus.APPLIED, EntryStatus.KEPT)


@dataclasses.dataclass(frozen=True, slots=True)
class HistoryEntry:
    """One change. Hashes are of the bytes of file and overlay ("" for none), and of the effective settings."""

    mutation: str
    status: EntryStatus
    time_ns: int
    who: str
    trigger: str
    delta: Mapping[str, list[Value]]
    target: str  # "file", "overlay" or "both"
    file_before: str
    file_after: str
    overlay_before: str
    overlay_after: str
    config_before: str
    config_after: str
    epoch: int | None = None

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> "HistoryEntry":
        """From what ``dataclasses.asdict`` made of one. Raises ``KeyError``, ``TypeError`` and ``ValueError``."""
        fields = {field.name: document[field.name] for field in dataclasses.fields(cls)}
        return cls(**{**fields, "status": EntryStatus(fields["status"]), "delta": dict(fields["delta"])})


@dataclasses.dataclass(frozen=True, slots=True)
class FormerConfig:
    """The bytes of file and overlay as they were, None where there was none, and the standing changes made since."""

    file: bytes | None
    overlay: bytes | None
    undone: Mapping[str, EntryStatus]


def hash_of(content: bytes | None) -> str:
    """SHA-256 in hexadecimal; "" for None."""
    return "" if content is None else hashlib.sha256(content).hexdigest()


class BackupHistory:
    """The last ``keep`` changes, and as many marked epochs, below ``state_path``.

    Writing needs the mutation lock, reading does not.
    """

    def __init__(self, state_path: Path, disk: Disk | None = None) -> None:
        self._index = state_path / HISTORY_FILE
        self._directory = state_path / BACKUPS_DIRECTORY
        self._disk = disk or Disk()

    def entries(self) -> list[HistoryEntry]:
        """Oldest first. Raises :class:`MutationFailedError` where the index is damaged."""
        try:
            document = read_state(self._index) or {"entries": []}
            return [HistoryEntry.of(each) for each in document["entries"]]
        except (DamagedStateError, KeyError, TypeError, ValueError, AttributeError) as error:
            raise MutationFailedError(
                f"{self._index} is damaged: {error}; the configurations themselves lie in {self._directory}"
            ) from error

    def back_up(self, content: bytes | None) -> str:
        """Keep the bytes; gives their hash. They may hold secrets, so that only this user may read them."""
        digest = hash_of(content)
        if content is not None and self._content(digest) != content:
            make_directory(self._disk, self._directory)
            write_whole(self._disk, self._directory / digest, content, mode=0o600)
        return digest

    def content(self, digest: str) -> bytes | None:
        """The bytes under a hash, None for "". Raises :class:`MutationFailedError` where they are not there whole."""
        if not digest:
            return None
        content = self._content(digest)
        if content is None:
            raise MutationFailedError(f"the backup {digest[:12]} is not in {self._directory}, or is damaged")
        return content

    def add(self, entry: HistoryEntry, *, keep: int) -> None:
        """Add the entry, once however often it is called, and let go of the oldest of its kind beyond ``keep``."""
        entries = [each for each in self._entries_if_whole() if each.mutation != entry.mutation]
        entries.append(entry)
        # counted apart: every change makes an epoch as well, and would take the place of another change
        marked = [each.mutation for each in entries if each.status is EntryStatus.MARKED]
        changes = [each.mutation for each in entries if each.status is not EntryStatus.MARKED]
        kept = {*marked[-keep:], *changes[-keep:]}
        self._write([each for each in entries if each.mutation in kept])

    def mark(self, mutation: str, status: EntryStatus) -> None:
        """Say what became of a change."""
        entries = self.entries()
        marked = [dataclasses.replace(each, status=status) if each.mutation == mutation else each for each in entries]
        if marked != entries:
            self._write(marked)

    def forget(self, mutation: str) -> None:
        """Take back the entry of a change that was not made after all."""
        entries = self._entries_if_whole()
        if any(each.mutation == mutation for each in entries):
            self._write([each for each in entries if each.mutation != mutation])

    def prune(self) -> None:
        """Remove the backups that no entry names. What cannot be removed stays."""
        named = {digest for each in self.entries() for digest in _digests_of(each)}
        with contextlib.suppress(OSError):
            for path in list(self._directory.iterdir()):
                if path.name not in named:
                    self._disk.unlink(path)

    def last_change(self, mutation: str | None = None) -> HistoryEntry:
        """The last change that still stands, or the one that is named. Raises :class:`ConfigMutationError`."""
        for entry in reversed(self.entries()):
            if entry.status in STANDING and mutation in (None, entry.mutation):
                return entry
        wanted = "no change that still stands" if mutation is None else f"no change {mutation} that still stands"
        raise ConfigMutationError(f"there is {wanted} in {self._index}")

    def find(self, wanted: str) -> FormerConfig:
        """The configuration under an epoch's number, or under the beginning of a hash of its file or its settings.

        Of several that share a file the one that stood last. A hash means a change where there is one, and otherwise
        a marked epoch. Raises :class:`ConfigMutationError` where there is none, or where it fits several files.
        """
        entries = self.entries()
        found = self._found(wanted, entries, is_marked=False) or self._found(wanted, entries, is_marked=True)
        if len({file for (file, _), _ in found}) != 1:
            many = "more than one configuration" if found else "no configuration"
            raise ConfigMutationError(
                f"{many} under {wanted!r}; usp-daemon audit show lists them; an epoch, or at least {_LEAST_PREFIX} "
                "characters of a hash, are needed"
            )
        (file, overlay), position = found[-1]
        undone = {each.mutation: each.status for each in entries[position:] if each.status in STANDING}
        return FormerConfig(self.content(file), self.content(overlay), undone)

    @staticmethod
    def _found(wanted: str, entries: list[HistoryEntry], *, is_marked: bool) -> list[tuple[tuple[str, str], int]]:
        """Hashes of file and overlay that fit, each with the position of the first change that came after them."""
        found: list[tuple[tuple[str, str], int]] = []
        for position, entry in enumerate(entries):
            before, after = (entry.file_before, entry.overlay_before), (entry.file_after, entry.overlay_after)
            if wanted.isdecimal() and entry.epoch == int(wanted):
                return [(after, position + 1)]
            if len(wanted) >= _LEAST_PREFIX and is_marked == (entry.status is EntryStatus.MARKED):
                if entry.file_before.startswith(wanted) or entry.config_before.startswith(wanted):
                    found.append((before, position))
                if entry.file_after.startswith(wanted) or entry.config_after.startswith(wanted):
                    found.append((after, position + 1))
        return found

    def _entries_if_whole(self) -> list[HistoryEntry]:
        try:
            return self.entries()
        except MutationFailedError:
            # a new index must not wait for a person; the damaged one is kept beside it
            with contextlib.suppress(OSError):
                self._disk.replace(self._index, self._index.with_suffix(".damaged"))
            return []

    def _content(self, digest: str) -> bytes | None:
        try:
            content = (self._directory / digest).read_bytes()
        except OSError:
            return None
        return content if hash_of(content) == digest else None

    def _write(self, entries: list[HistoryEntry]) -> None:
        write_state(self._disk, self._index, {"entries": [dataclasses.asdict(each) for each in entries]})


def _digests_of(entry: HistoryEntry) -> tuple[str, ...]:
    return entry.file_before, entry.file_after, entry.overlay_before, entry.overlay_after
