"""Carries a change out so that it is there wholly or not at all, whenever the power is cut.

     1  keep the bytes before and after    a crash: nothing has happened
     2  write the journal                  a crash: found by the next, which sees that no file has changed, and says so
     3  put the file in its place          a crash: the file is old or new, whole; the next sees which, and acts on it
     4  the line in the log, the index,    a crash: the next sees that the file is new and completes these; each may be
        the counts                            done twice without harm
     5  remove the journal

Where step 3 or 4 fails without a crash, the files are taken back to what they were.
"""

import contextlib
import errno
import os
from collections.abc import Callable
from pathlib import Path

from ._audit import AuditEvent, AuditLog
from ._clock import Clock
from ._disk import TEMPORARY_SUFFIX, Disk, make_directory, write_whole
from ._history import BACKUPS_DIRECTORY, BackupHistory, EntryStatus, hash_of
from ._journal import FileStep, Journal, Pending
from ._limiter import MutationLimiter
from ._mutation_errors import MutationFailedError
from ._running import DAEMON_FILE, RELOAD_FILE
from ._tabu import TabuList

PROPOSALS_DIRECTORY = "proposals"
# What a system says where a file cannot be replaced: mounted read-only, no rights, marked immutable, itself a mount.
_READ_ONLY = frozenset({errno.EROFS, errno.EACCES, errno.EPERM, errno.EBUSY, errno.EXDEV})


class ReadOnlyError(Exception):
    """The file cannot be replaced here, and never will be; nothing was changed."""


class _EditedMeanwhileError(OSError):
    """Somebody else changed the file after it had been read."""


class Transactions:
    """Everything in the state directory that a change touches. Used under the lock only."""

    def __init__(self, state_path: Path, log_path: Path, *, disk: Disk, clock: Clock) -> None:
        self.state_path = state_path
        self.audit = AuditLog(log_path, state_path, disk)
        self.history = BackupHistory(state_path, disk)
        self.limiter = MutationLimiter(state_path, disk, clock)
        self.tabu = TabuList(state_path, disk, clock)
        self._journal = Journal(state_path, disk)
        self._disk = disk
        self._clock = clock

    def carry_out(self, pending: Pending, *, keep: int, tabu_hours: float) -> None:
        """Make the change. The bytes of its steps must have been backed up.

        Raises :class:`ReadOnlyError` and :class:`MutationFailedError`; the files are then as they were, unless the text
        says otherwise.
        """
        try:
            self._journal.begin(pending)
            try:
                for step in pending.steps:
                    self._put(step)
            except OSError as error:
                self._take_back(pending)
                self._journal.end()
                if error.errno in _READ_ONLY:
                    raise ReadOnlyError(f"{pending.steps[0].path}: {error.strerror}") from error
                raise MutationFailedError(f"nothing was changed: {error}") from error
            try:
                self._finish(pending, keep=keep, tabu_hours=tabu_hours, is_new=True)
            except OSError:
                # the journal stays: who comes next sees that nothing stands, and says so in the log
                self._take_back(pending)
                raise
        except OSError as error:
            raise MutationFailedError(f"the change could not be recorded, so it was taken back: {error}") from error
        self.history.prune()

    def recover(self, stands_fn: Callable[[Pending], bool], *, keep: int, tabu_hours: float) -> str:
        """Complete or take back what a crash has interrupted; gives the change's name, "" where there was none.

        ``stands_fn`` says of a change whose file somebody has edited since whether its values are in force.
        """
        self._sweep()
        pending = self._journal.read()
        if pending is None:
            return ""
        for step in pending.steps:
            with contextlib.suppress(OSError):
                self._disk.unlink(Path(step.temporary))
        present = [_hash_at(Path(step.path)) for step in pending.steps]
        num_reached = sum(digest == step.after for digest, step in zip(present, pending.steps, strict=True))
        is_edited = any(
            digest not in (step.before, step.after) for digest, step in zip(present, pending.steps, strict=True)
        )
        if num_reached or (is_edited and stands_fn(pending)):
            for digest, step in zip(present, pending.steps, strict=True):
                if digest == step.before:
                    self._put(step)
                else:
                    # the new name may not have reached the disk when the power went
                    self._disk.fsync_directory(Path(step.path).parent)
            self._finish(pending, keep=keep, tabu_hours=tabu_hours, is_new=False)
        else:
            self._give_up(pending)
        self.history.prune()
        return pending.mutation

    def _sweep(self) -> None:
        """Remove what a crash has left half-written: whoever wrote it held the lock, and lives no more."""
        for name in (".", BACKUPS_DIRECTORY, PROPOSALS_DIRECTORY):
            with contextlib.suppress(OSError):
                for path in list((self.state_path / name).glob(f".*{TEMPORARY_SUFFIX}")):
                    # the daemon's own two files are written without the lock
                    if not path.name.startswith((f".{DAEMON_FILE}", f".{RELOAD_FILE}")):
                        self._disk.unlink(path)

    def put_aside_yielded(self, path: Path, content: bytes) -> None:
        """Write an overlay without entries that act no more, which changes nothing that is in force."""
        make_directory(self._disk, path.parent)
        write_whole(self._disk, path, content)

    def write_proposal(self, path: Path, content: bytes) -> None:
        """Put a proposal in its place."""
        make_directory(self._disk, path.parent)
        write_whole(self._disk, path, content)

    def _put(self, step: FileStep) -> None:
        path = Path(step.path)

        def check() -> None:
            if _hash_at(path) != step.before:
                raise _EditedMeanwhileError(f"{path} was edited at the same moment; try again")

        check()
        content = self.history.content(step.after)
        assert content is not None
        try:
            like: os.stat_result | None = os.stat(path)
        except FileNotFoundError:
            like = None
            make_directory(self._disk, path.parent)
        write_whole(self._disk, path, content, temporary=Path(step.temporary), like=like, check_fn=check)

    def _take_back(self, pending: Pending) -> None:
        """Put back what was there before, as far as it was changed. Raises :class:`MutationFailedError`."""
        for step in pending.steps:
            path = Path(step.path)
            if _hash_at(path) != step.after:
                continue
            content = self.history.content(step.before)
            try:
                if content is None:
                    self._disk.unlink(path)
                    self._disk.fsync_directory(path.parent)
                else:
                    write_whole(self._disk, path, content, temporary=Path(step.temporary), like=os.stat(path))
            except OSError as error:
                if _hash_at(path) == step.after:
                    text = f"{path} holds the change and cannot be put back ({error}); the next change completes it"
                    raise MutationFailedError(text) from error

    def _finish(self, pending: Pending, *, keep: int, tabu_hours: float, is_new: bool) -> None:
        if is_new or not self.audit.has(pending.mutation, pending.event):
            self.audit.append(pending.event, self._clock.now().wall_ns, pending.fields)
        self.history.add(pending.entry, keep=keep)
        for mutation in pending.undone:
            self.history.mark(mutation, EntryStatus.ROLLED_BACK)
        if pending.is_counted:
            self.limiter.record(pending.mutation, pending.stamp, pending.tick, pending.process)
        if pending.tabu:
            self.tabu.add(pending.mutation, pending.stamp, pending.tabu, hours=tabu_hours)
        with contextlib.suppress(OSError):  # all is recorded; a journal that stays is only completed once more
            self._journal.end()

    def _give_up(self, pending: Pending) -> None:
        """Nothing of it stands: so says the log, and it counts for nothing."""
        self.history.forget(pending.mutation)
        for mutation, status in pending.undone.items():
            self.history.mark(mutation, status)
        self.limiter.forget(pending.mutation)
        self.tabu.forget(pending.mutation)
        if not self.audit.has(pending.mutation, AuditEvent.MUTATION_FAILED):
            reason = "it was interrupted before it reached the file; nothing was changed"
            fields = {**pending.fields, "reason": reason, "config_hash_after": pending.fields["config_hash_before"]}
            self.audit.append(AuditEvent.MUTATION_FAILED, self._clock.now().wall_ns, fields)
        self._journal.end()


def _hash_at(path: Path) -> str:
    try:
        return hash_of(path.read_bytes())
    except OSError:
        return ""
