"""The one way in which the service changes its own configuration.

    lock | complete what a crash left | load | judge | back up | write | log | unlock

A change that the policy refuses leaves a line in the log and nothing else. One that is allowed goes into the file,
with its comments and its order as they were; where the file cannot be written, as on a ConfigMap, it goes into the
overlay in the state directory.
"""

import contextlib
import getpass
import json
import os
import re
import socket
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

from ._audit import AuditEvent, AuditLog, plain
from ._change_writer import ChangeWriter
from ._clock import Clock
from ._disk import Disk, make_directory
from ._edit import as_toml
from ._history import BackupHistory, EntryStatus, HistoryEntry
from ._journal import Pending
from ._judge import Delta, judge_changes, judge_distance, shown
from ._key import Value
from ._load import ConfigError, Problem, parse_content, read_content, values_of_document, values_of_environment
from ._lock import LOCK_FILE, mutation_lock
from ._mutation import Mutation, MutationOutcome
from ._mutation_errors import AuditDamagedError, MutationFailedError, MutationRejectedError
from ._policy import MUTABLE
from ._settings import Settings, build_settings
from ._source import ConfigSource, LoadedConfig
from ._transaction import PROPOSALS_DIRECTORY, Transactions

MAX_EVIDENCE_BYTES = 256 * 1024
# where the state lies, in a file that is no TOML any more
_PLACE = re.compile(r"""^[ \t]*(state_path|mutations_log)[ \t]*=[ \t]*["']([^"'\\\n]+)["']""", re.MULTILINE)


class ConfigMutator:
    """Changes the configuration of ``source``. Every method blocks, on the lock and the disk: call it in a thread.

    ``settings`` are those in force: their [io] says where the state lies, their [security] what is allowed, whatever
    the file has come to say since; by default those that ``source`` gives now. ``who`` stands in the log. ``ticks_fn``
    counts the ticks of this process; without it no ticks are asked for. ``resolve_fn`` says what "auto" stands for in a
    key at the moment. ``disk`` and ``clock`` are for tests.
    """

    def __init__(
        self,
        source: ConfigSource,
        *,
        settings: Settings | None = None,
        who: str | None = None,
        ticks_fn: Callable[[], int] | None = None,
        resolve_fn: Callable[[str], float | None] = lambda path: None,
        lock_timeout_s: float = 10.0,
        disk: Disk | None = None,
        clock: Clock | None = None,
    ) -> None:
        self._source = source
        self._settings = settings if settings is not None else settings_as_far_as_right(source)
        self._who = who if who is not None else default_who()
        self._ticks_fn = ticks_fn
        self._resolve_fn = resolve_fn
        self._lock_timeout_s = lock_timeout_s
        self._disk = disk or Disk()
        self._clock = clock or Clock()
        self._state_path = Path(self._settings.io.state_path)
        self._transactions = Transactions(
            self._state_path, Path(self._settings.io.mutations_log), disk=self._disk, clock=self._clock
        )
        self._writer = ChangeWriter(
            source,
            self._transactions,
            who=self._who,
            keep=self._settings.io.config_backups_keep,
            tabu_hours=self._settings.security.tabu_hours,
            tick_fn=self._tick,
            clock=self._clock,
        )

    @property
    def audit(self) -> AuditLog:
        """The log of changes, for reading."""
        return self._transactions.audit

    @property
    def history(self) -> BackupHistory:
        """The former configurations, for reading."""
        return self._transactions.history

    def apply(self, changes: Mapping[str, Any], *, trigger: str, evidence: Mapping[str, Any] | None = None) -> Mutation:
        """Change the keys to these values, all of them or none.

        ``trigger`` says what led to it, ``evidence`` is kept in the log. Raises :class:`MutationRejectedError` with
        everything that speaks against it, :class:`MutationFailedError`, ``MutationLockedError`` and
        ``AuditDamagedError``; nothing is changed then.
        """
        with self._locked():
            loaded = self._loaded(trigger, changes)
            delta, problems = self._judge(loaded, changes, evidence)
            if problems:
                self._reject(problems, changes, loaded, trigger, evidence)
            if not delta:
                return self._writer.unchanged(loaded)
            return self._writer.store(
                self._writer.new_id(),
                AuditEvent.MUTATION_APPLIED,
                delta,
                self._writer.tidied(loaded),
                trigger=trigger,
                evidence=evidence,
                is_counted=True,
            )

    def check(self, changes: Mapping[str, Any]) -> tuple[Problem, ...]:
        """What would speak against :meth:`apply` now. Nothing is written, nothing logged. Raises as that."""
        with self._locked():
            try:
                return tuple(self._judge(self._source.load(), changes, None)[1])
            except ConfigError as error:
                return error.problems

    def propose(
        self, changes: Mapping[str, Any], *, trigger: str, evidence: Mapping[str, Any] | None = None
    ) -> Mutation:
        """Write changes down, with their evidence, for a person to decide; nothing is changed.

        They must be of keys that may be changed, in range, and make sense together. How far they go and how often is
        the person's affair. Raises as :meth:`apply`.
        """
        with self._locked():
            loaded = self._loaded(trigger, changes)
            delta, problems = judge_changes(loaded, changes)
            problems.extend(_problems_of(evidence))
            if problems:
                self._reject(problems, changes, loaded, trigger, evidence)
            if not delta:
                return self._writer.unchanged(loaded)
            name = self._writer.new_id()
            path = self._state_path / PROPOSALS_DIRECTORY / f"{name}.json"
            fields = self._writer.fields(name, trigger, delta, evidence, loaded.content_hash, loaded.content_hash)
            document = {
                "time_ns": self._clock.now().wall_ns,
                **fields,
                "is_within_one_change": not self._too_far(delta),
                "toml": as_toml({key: new for key, (_, new) in delta.items()}),
            }
            try:
                self._transactions.write_proposal(path, json.dumps(plain(document), indent=2).encode("ascii") + b"\n")
                self._writer.log(AuditEvent.PROPOSAL, {**fields, "wrote_to": str(path)})
            except OSError as error:
                raise MutationFailedError(f"the proposal could not be written: {error}") from error
            return Mutation(
                name, MutationOutcome.PROPOSED, delta, path, "", loaded.content_hash, loaded.content_hash, ""
            )

    def rollback(
        self,
        to: str | None = None,
        reason: str = "",
        *,
        mutation: str | None = None,
        trigger: str = "rollback",
        evidence: Mapping[str, Any] | None = None,
    ) -> Mutation:
        """Take back a change: the last that stands, the one named ``mutation``, or everything since ``to``.

        ``to`` is an epoch's number or the beginning of a hash in the log; the file is then as it was to the last byte.
        Otherwise, where somebody has edited the file since, only the values of the change go back, and of those only
        the ones that nobody has changed since. Values that are taken back are not tried again for a while. Neither how
        far nor how often is asked, and a damaged log is put aside: the way back is always open. Raises as
        :meth:`apply`, and :class:`ConfigMutationError` where there is nothing to take back.
        """
        with self._locked(is_way_back=True):
            if to is not None:
                return self._writer.restore(self.history.find(to), reason or f"back to {to}", trigger, evidence)
            entry = self.history.last_change(mutation)
            try:
                loaded = self._source.load()
            except ConfigError as error:
                text = f"the configuration is not right at the moment, so name the one to go back to: {error}"
                raise MutationFailedError(text) from error
            return self._writer.undo(entry, loaded, reason, trigger, evidence)

    def keep(
        self, mutation: str | None = None, *, reason: str = "", evidence: Mapping[str, Any] | None = None
    ) -> Mutation:
        """Say that the last change, or the one named, has passed its probation. Raises as :meth:`apply`."""
        with self._locked():
            entry = self.history.last_change(mutation)
            hashes = (entry.config_before, entry.config_after)
            fields = self._writer.fields(entry.mutation, entry.trigger, entry.delta, evidence, *hashes)
            try:
                self._writer.log(AuditEvent.MUTATION_KEPT, {**fields, "reason": reason})
                self.history.mark(entry.mutation, EntryStatus.KEPT)
            except OSError as error:
                raise MutationFailedError(f"it could not be written down: {error}") from error
            return Mutation(entry.mutation, MutationOutcome.KEPT, entry.delta, None, "", *hashes, entry.file_before)

    def note(
        self,
        event: AuditEvent,
        *,
        trigger: str,
        reason: str,
        mutation: str = "",
        evidence: Mapping[str, Any] | None = None,
    ) -> None:
        """Write a line of what changes nothing, such as the beginning of a probation. Raises as :meth:`apply`."""
        with self._locked():
            try:
                digest = self._source.load().content_hash
            except ConfigError:
                digest = ""
            try:
                fields = self._writer.fields(mutation, trigger, {}, evidence, digest, digest)
                self._writer.log(event, {**fields, "reason": reason})
            except OSError as error:
                raise MutationFailedError(f"it could not be written down: {error}") from error

    def mark_epoch(self, number: int, loaded: LoadedConfig | None = None) -> None:
        """Remember a configuration as that of an epoch, so that ``rollback`` finds it by its number.

        ``loaded`` is the configuration that led to the epoch, by default the present one. An epoch that is marked
        again has the later text. Raises as :meth:`apply`, and ``ConfigError`` where the configuration is not right at
        the moment.
        """
        with self._locked():
            loaded = self._source.load() if loaded is None else loaded
            digests = self._writer.back_up(loaded.content, loaded.overlay_content)
            entry = HistoryEntry(
                mutation=f"epoch-{number}",
                status=EntryStatus.MARKED,
                time_ns=self._clock.now().wall_ns,
                who=self._who,
                trigger="epoch",
                delta={},
                target="",
                file_before=digests[0],
                file_after=digests[0],
                overlay_before=digests[1],
                overlay_after=digests[1],
                config_before=loaded.content_hash,
                config_after=loaded.content_hash,
                epoch=number,
            )
            try:
                self.history.add(entry, keep=self._settings.io.config_backups_keep)
                self.history.prune()
            except OSError as error:
                raise MutationFailedError(f"the epoch could not be remembered: {error}") from error

    def settle(self) -> str:
        """Complete or take back what a crash has interrupted; gives the change's name, "" where there was none.

        Every other method does so first; a daemon calls this at its start. Raises as :meth:`apply`.
        """
        with self._locked() as recovered:
            return recovered

    @contextlib.contextmanager
    def _locked(self, *, is_way_back: bool = False) -> Iterator[str]:
        try:
            make_directory(self._disk, self._state_path)
        except OSError as error:
            raise MutationFailedError(
                f"{self._state_path}: {error.strerror}; io.state_path must be writable"
            ) from error
        with mutation_lock(self._state_path / LOCK_FILE, self._who, timeout_s=self._lock_timeout_s):
            now_ns = self._clock.now().wall_ns
            try:
                try:
                    self.audit.repair(now_ns)
                except AuditDamagedError:
                    if not is_way_back:
                        raise
                    self.audit.set_aside(now_ns)
                yield self._transactions.recover(self._stands, keep=self._keep, tabu_hours=self._tabu_hours)
            except OSError as error:
                raise MutationFailedError(f"the log or the state cannot be read or written: {error}") from error

    @property
    def _keep(self) -> int:
        return self._settings.io.config_backups_keep

    @property
    def _tabu_hours(self) -> float:
        return self._settings.security.tabu_hours

    def _judge(
        self, loaded: LoadedConfig, changes: Mapping[str, Any], evidence: Mapping[str, Any] | None
    ) -> tuple[Delta, list[Problem]]:
        security = self._settings.security
        delta, problems = judge_changes(loaded, changes)
        problems.extend(_problems_of(evidence))
        problems.extend(self._too_far(delta))
        if delta:
            new = {path: value for path, (_, value) in delta.items()}
            values = {path: loaded.settings[path] for path in MUTABLE} | new
            problems.extend(self._transactions.tabu.problems(values, new, hours=security.tabu_hours))
            problems.extend(
                self._transactions.limiter.problems(
                    per_hour=security.allowed_mutation_rate_per_hour,
                    min_ticks=security.min_ticks_between_mutations,
                    tick=self._tick(),
                )
            )
        return delta, problems

    def _too_far(self, delta: Delta) -> list[Problem]:
        limit = self._settings.security.max_relative_change
        return judge_distance(delta, max_relative=limit, resolve_fn=self._resolve_fn)

    def _loaded(self, trigger: str, changes: Mapping[str, Any]) -> LoadedConfig:
        try:
            return self._source.load()
        except ConfigError as error:
            text = f"the configuration is not right at the moment: {error}"
            self._writer.fail(text, "", shown(changes, None), None, trigger=trigger, evidence=None)

    def _reject(
        self,
        problems: list[Problem],
        changes: Mapping[str, Any],
        loaded: LoadedConfig,
        trigger: str,
        evidence: Mapping[str, Any] | None,
    ) -> NoReturn:
        error = MutationRejectedError(problems)
        kept = None if _problems_of(evidence) else evidence
        hashes = (loaded.content_hash, loaded.content_hash)
        fields = self._writer.fields("", trigger, shown(changes, loaded), kept, *hashes)
        try:
            self._writer.log(AuditEvent.MUTATION_REJECTED, {**fields, "reason": [str(problem) for problem in problems]})
        except OSError as failure:
            raise MutationFailedError(f"refused, and that could not be logged ({failure}): {error}") from error
        raise error

    def _stands(self, pending: Pending) -> bool:
        try:
            loaded = self._source.load()
        except ConfigError:
            return False
        return all(loaded.settings[path] == new for path, (_, new) in pending.entry.delta.items())

    def _tick(self) -> int | None:
        return None if self._ticks_fn is None else self._ticks_fn()


def default_who() -> str:
    """The user, the host and the process, as the log shows them."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        user = f"uid {os.getuid()}"
    return f"{user}@{socket.gethostname()}:{os.getpid()}"


def settings_as_far_as_right(source: ConfigSource) -> Settings:
    """What the source gives; where it is wrong, the sound values of its [io], as far as they can be made out.

    Good for finding the state directory of a daemon whose file is to be put right, and for nothing else.
    """
    try:
        return source.load().settings
    except ConfigError:
        values: dict[str, Value] = {}
        with contextlib.suppress(ConfigError):
            content = b"" if source.path is None else read_content(source.path)
            try:
                values, _ = values_of_document(parse_content(content, source.path or Path()))
            except ConfigError:
                text = content.decode("utf-8", "replace")
                values = {f"io.{name}": value for name, value in _PLACE.findall(text)}
        values |= values_of_environment(source.environ)[0]
        return build_settings({path: value for path, value in values.items() if path.startswith("io.")})


def _problems_of(evidence: Mapping[str, Any] | None) -> list[Problem]:
    size = len(json.dumps(plain(evidence or {})))
    if size <= MAX_EVIDENCE_BYTES:
        return []
    return [Problem("evidence", f"at most {MAX_EVIDENCE_BYTES} bytes", f"{size}")]
