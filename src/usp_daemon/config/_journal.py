"""What is about to be done, written down before it is done, so that a crash in the middle leaves no doubt.

The journal holds everything that belongs to a change. Whoever finds it under the lock either completes the change, when
it has reached the files, or takes it back, when it has not.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ._audit import AuditEvent
from ._clock import Stamp
from ._disk import DamagedStateError, Disk, read_state, write_state
from ._history import EntryStatus, HistoryEntry
from ._mutation_errors import MutationFailedError
from ._process import ProcessIdentity

JOURNAL_FILE = "pending.json"


@dataclasses.dataclass(frozen=True, slots=True)
class FileStep:
    """One file to be put in place: where, by way of which temporary file, hashes of its bytes before and after."""

    path: str
    temporary: str
    before: str
    after: str


@dataclasses.dataclass(frozen=True, slots=True)
class Pending:
    """A change under way."""

    mutation: str
    event: AuditEvent
    steps: tuple[FileStep, ...]
    entry: HistoryEntry
    fields: Mapping[str, Any]  # of the line in the log
    stamp: Stamp
    process: ProcessIdentity
    tick: int | None
    is_counted: bool  # by the limiter
    undone: Mapping[str, EntryStatus]  # the changes that this one takes back, with what had become of them
    tabu: Mapping[str, list[Any]]  # values that are not to be tried again

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> "Pending":
        """From what ``dataclasses.asdict`` made of one. Raises ``KeyError``, ``TypeError`` and ``ValueError``."""
        fields = {field.name: document[field.name] for field in dataclasses.fields(cls)}
        fields["event"] = AuditEvent(fields["event"])
        fields["steps"] = tuple(FileStep(**each) for each in fields["steps"])
        fields["entry"] = HistoryEntry.of(fields["entry"])
        fields["stamp"] = Stamp.of(fields["stamp"])
        fields["process"] = ProcessIdentity.of(fields["process"])
        fields["undone"] = {str(mutation): EntryStatus(each) for mutation, each in fields["undone"].items()}
        return cls(**fields)


class Journal:
    """The one change under way, if there is one. Used under the lock only."""

    def __init__(self, state_path: Path, disk: Disk) -> None:
        self._path = state_path / JOURNAL_FILE
        self._disk = disk

    def read(self) -> Pending | None:
        """What was begun and not finished. Raises :class:`MutationFailedError` where that cannot be read."""
        try:
            document = read_state(self._path)
            return None if document is None else Pending.of(document)
        except (DamagedStateError, KeyError, TypeError, ValueError, AttributeError) as error:
            raise MutationFailedError(
                f"{self._path} is damaged: {error!r}; look whether the last change stands, then remove it"
            ) from error

    def begin(self, pending: Pending) -> None:
        """Write down what is about to be done. Raises ``OSError``."""
        write_state(self._disk, self._path, pending)

    def end(self) -> None:
        """It is done, or taken back. Raises ``OSError``."""
        self._disk.unlink(self._path)
        self._disk.fsync_directory(self._path.parent)
