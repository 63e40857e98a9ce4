"""The one way in which the service changes its own configuration.

    lock | complete what a crash left | load | judge | back up | write | log | unlock

A change that the policy refuses leaves a line in the log and nothing else. One that is allowed goes into the file,
with its comments and its order as they were; where the file cannot be written, as on a ConfigMap, it goes into the
overlay in the state directory.
"""

import contextlib
import dataclasses
import datetime
import enum
import getpass
import json
import os
import re
import secrets
import socket
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

from ._audit import AuditEvent, AuditLog, plain
from ._clock import Clock
from ._diff import diff_settings
from ._disk import TEMPORARY_SUFFIX, Disk, make_directory
from ._edit import EditError, as_toml, edit_toml
from ._history import BackupHistory, EntryStatus, FormerConfig, HistoryEntry, hash_of
from ._journal import FileStep, Pending
from ._judge import Delta, judge_changes, judge_distance, shown
from ._key import Value
from ._load import ConfigError, Problem, parse_content, read_content, values_of_document, values_of_environment
from ._lock import LOCK_FILE, mutation_lock
from ._mutation_errors import AuditDamagedError, ConfigMutationError, MutationFailedError, MutationRejectedError
from ._overlay import OverlayEntry, decode_overlay, encode_overlay
from ._policy import MUTABLE
from ._process import this_process
from ._settings import SPECS, Settings, build_settings
from ._source import ConfigSource, LoadedConfig
from ._transaction import ReadOnlyError, Transactions

PROPOSALS_DIRECTORY = "proposals"
MAX_EVIDENCE_BYTES = 256 * 1024
_HIDDEN = "(hidden)"
# where the state lies, in a file that is no TOML any more
_PLACE = re.compile(r"""^[ \t]*(state_path|mutations_log)[ \t]*=[ \t]*["']([^"'\\\n]+)["']""", re.MULTILINE)


class MutationOutcome(enum.StrEnum):
    """What came of an attempt that was neither refused nor failed."""

    APPLIED = "applied"
    UNCHANGED = "unchanged"  # everything was as wanted already
    PROPOSED = "proposed"
    ROLLED_BACK = "rolled_back"
    KEPT = "kept"


@dataclasses.dataclass(frozen=True, slots=True)
class Mutation:
    """A change, or the proposal, keeping or undoing of one.

    ``delta`` gives old and new value by path. ``wrote_to`` is the file that holds it now, None where nothing was
    written; ``why_not_the_file`` is "" unless that is the overlay. Hashes are ``content_hash`` before and after;
    ``backup`` is the hash under which the former bytes are kept.
    """

    id: str
    outcome: MutationOutcome
    delta: Mapping[str, list[Value]]
    wrote_to: Path | None
    why_not_the_file: str
    hash_before: str
    hash_after: str
    backup: str


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
                return self._unchanged(loaded)
            return self._store(
                self._new_id(),
                AuditEvent.MUTATION_APPLIED,
                delta,
                self._tidied(loaded),
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
                return self._unchanged(loaded)
            name = self._new_id()
            path = self._state_path / PROPOSALS_DIRECTORY / f"{name}.json"
            fields = self._fields(name, trigger, delta, evidence, loaded.content_hash, loaded.content_hash)
            document = {
                "time_ns": self._clock.now().wall_ns,
                **fields,
                "is_within_one_change": not self._too_far(delta),
                "toml": as_toml({key: new for key, (_, new) in delta.items()}),
            }
            try:
                self._transactions.write_proposal(path, json.dumps(plain(document), indent=2).encode("ascii") + b"\n")
                self._log(AuditEvent.PROPOSAL, {**fields, "wrote_to": str(path)})
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
                return self._restore(self.history.find(to), reason or f"back to {to}", trigger, evidence)
            entry = self.history.last_change(mutation)
            try:
                loaded = self._source.load()
            except ConfigError as error:
                text = f"the configuration is not right at the moment, so name the one to go back to: {error}"
                raise MutationFailedError(text) from error
            return self._undo(entry, loaded, reason, trigger, evidence)

    def keep(
        self, mutation: str | None = None, *, reason: str = "", evidence: Mapping[str, Any] | None = None
    ) -> Mutation:
        """Say that the last change, or the one named, has passed its probation. Raises as :meth:`apply`."""
        with self._locked():
            entry = self.history.last_change(mutation)
            hashes = (entry.config_before, entry.config_after)
            fields = self._fields(entry.mutation, entry.trigger, entry.delta, evidence, *hashes)
            try:
                self._log(AuditEvent.MUTATION_KEPT, {**fields, "reason": reason})
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
                self._log(event, {**self._fields(mutation, trigger, {}, evidence, digest, digest), "reason": reason})
            except OSError as error:
                raise MutationFailedError(f"it could not be written down: {error}") from error

    def mark_epoch(self, number: int) -> None:
        """Remember the present configuration as that of an epoch, so that ``rollback`` finds it by its number.

        Raises as :meth:`apply`, and ``ConfigError`` where the configuration is not right at the moment.
        """
        with self._locked():
            loaded = self._source.load()
            digests = self._back_up(loaded.content, loaded.overlay_content)
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

    def _store(
        self,
        name: str,
        event: AuditEvent,
        delta: Delta,
        loaded: LoadedConfig,
        *,
        content: bytes | None = None,
        undone: Mapping[str, EntryStatus] | None = None,
        **recorded: Any,
    ) -> Mutation:
        """Write the new values into the file if that is possible, else into the overlay.

        ``content`` are the bytes of the file where those are known; otherwise the values are edited into it.
        """
        changes = {path: new for path, (_, new) in delta.items()}
        in_overlay = sorted(changes.keys() & {entry.path for entry in loaded.overlay_applied})
        if self._source.path is None:
            why = "there is no file"
        elif in_overlay:
            why = f"the overlay already stands above the file in {', '.join(in_overlay)}"
        elif _is_projected(self._source.path):
            why = f"{self._source.path} is a mount that Kubernetes keeps up to date, which would undo it"
        else:
            try:
                if content is None:
                    content = edit_toml(loaded.content, changes)
                after = self._judged(content, loaded.overlay_content, loaded, changes)
                return self._carry_out(
                    name,
                    event,
                    loaded,
                    after,
                    "file",
                    [(self._file, loaded.content, content)],
                    undone or {},
                    **recorded,
                )
            except EditError as error:
                self._fail(f"{self._source.path}: {error}", name, delta, loaded, **recorded)
            except ReadOnlyError as error:
                why = f"{error}"
        entries = {entry.path: entry for entry in loaded.overlay_applied}
        entries |= {each.entry.path: each.entry for each in loaded.overlay_yielded if not each.is_for_good}
        entries |= {
            path: OverlayEntry(path, value, loaded.value_of_file(path), name) for path, value in changes.items()
        }
        overlay = encode_overlay(entries)
        step = (self._source.overlay_path, loaded.overlay_content, overlay)
        try:
            after = self._judged(loaded.content, overlay, loaded, changes)
            return self._carry_out(name, event, loaded, after, "overlay", [step], undone or {}, why=why, **recorded)
        except ReadOnlyError as error:
            text = f"neither the file nor the overlay can be written: {why}; {error}"
            self._fail(text, name, delta, loaded, **recorded)
        except EditError as error:
            self._fail(f"{self._source.overlay_path}: {error}", name, delta, loaded, **recorded)

    def _undo(
        self,
        entry: HistoryEntry,
        loaded: LoadedConfig,
        reason: str,
        trigger: str,
        evidence: Mapping[str, Any] | None,
    ) -> Mutation:
        """Take one change back, by its bytes where the file is still what it made of it, else by its values."""
        recorded: dict[str, Any] = {"trigger": trigger, "evidence": evidence, "reason": reason, "tabu": entry.delta}
        undone = {entry.mutation: entry.status}
        name, event = self._new_id(), AuditEvent.MUTATION_ROLLED_BACK
        if entry.target == "overlay":
            return self._undo_in_overlay(name, entry, loaded, undone, recorded)
        if loaded.file_hash == entry.file_after:
            content = self.history.content(entry.file_before)
            assert content is not None
            after = self._source.judge(content, loaded.overlay_content)
            delta = _delta_of(loaded, after)
            return self._store(name, event, delta, loaded, content=content, undone=undone, **recorded)
        back = {path: old for path, (old, new) in entry.delta.items() if loaded.value_of_file(path) == new}
        if not back:
            raise ConfigMutationError(f"nothing is left of the change {entry.mutation}: its keys were changed since")
        _note_left(recorded, entry, back)
        delta = {path: [loaded.settings[path], old] for path, old in back.items() if loaded.settings[path] != old}
        return self._store(name, event, delta, loaded, undone=undone, **recorded)

    def _undo_in_overlay(
        self,
        name: str,
        entry: HistoryEntry,
        loaded: LoadedConfig,
        undone: Mapping[str, EntryStatus],
        recorded: dict[str, Any],
    ) -> Mutation:
        former, _ = decode_overlay(self.history.content(entry.overlay_before), self._source.overlay_path)
        before = {each.path: each for each in former}
        present = {each.path: each for each in loaded.overlay_applied}
        present |= {each.entry.path: each.entry for each in loaded.overlay_yielded if not each.is_for_good}
        back = [path for path, (_, new) in entry.delta.items() if path in present and present[path].value == new]
        if not back:
            raise ConfigMutationError(f"nothing is left of the change {entry.mutation}: its keys were changed since")
        _note_left(recorded, entry, back)
        for path in back:
            del present[path]
            if path in before:
                present[path] = before[path]
        overlay = encode_overlay(present)
        after = self._source.judge(loaded.content, overlay)
        step = (self._source.overlay_path, loaded.overlay_content, overlay)
        event = AuditEvent.MUTATION_ROLLED_BACK
        why = "the change was made there"
        try:
            return self._carry_out(name, event, loaded, after, "overlay", [step], undone, why=why, **recorded)
        except ReadOnlyError as error:
            self._fail(f"the overlay cannot be written: {error}", name, _delta_of(loaded, after), loaded, **recorded)

    def _restore(self, former: FormerConfig, reason: str, trigger: str, evidence: Mapping[str, Any] | None) -> Mutation:
        """Put file and overlay back to what they were, to the last byte."""
        present = self._bytes_now()
        try:
            loaded: LoadedConfig | None = self._source.load()
        except ConfigError:
            loaded = None  # that is what a way back is for
        overlay = former.overlay
        if overlay is None and present.overlay is not None:
            overlay = encode_overlay({})
        steps: list[tuple[Path, bytes | None, bytes]] = []
        if former.file is not None and former.file != present.file:
            steps.append((self._file, present.file, former.file))
        if overlay is not None and overlay != present.overlay:
            steps.append((self._source.overlay_path, present.overlay, overlay))
        if not steps and loaded is not None:
            return self._unchanged(loaded)
        recorded: dict[str, Any] = {"trigger": trigger, "evidence": evidence, "reason": reason}
        name = self._new_id()
        try:
            after = self._source.judge(former.file or b"", overlay)
        except ConfigError as error:
            self._fail(f"the former configuration is not right any more: {error}", name, {}, loaded, **recorded)
        target = "both" if len(steps) == 2 else "file" if steps and steps[0][0] == self._file else "overlay"
        event = AuditEvent.MUTATION_ROLLED_BACK
        try:
            return self._carry_out(name, event, loaded, after, target, steps, former.undone, **recorded)
        except ReadOnlyError as error:
            self._fail(f"the file cannot be written: {error}", name, {}, loaded, **recorded)

    def _carry_out(
        self,
        name: str,
        event: AuditEvent,
        loaded: LoadedConfig | None,
        after: LoadedConfig,
        target: str,
        steps: list[tuple[Path, bytes | None, bytes]],
        undone: Mapping[str, EntryStatus],
        *,
        trigger: str,
        evidence: Mapping[str, Any] | None,
        reason: str = "",
        is_counted: bool = False,
        tabu: Mapping[str, list[Value]] | None = None,
        why: str = "",
    ) -> Mutation:
        delta = _delta_of(loaded, after)
        hash_before = "" if loaded is None else loaded.content_hash
        present = self._bytes_now() if loaded is None else FormerConfig(loaded.content, loaded.overlay_content, {})
        before = self._back_up(present.file, present.overlay)
        by_path = {path: content for path, _, content in steps}
        file_after = present.file if self._source.path is None else by_path.get(self._file, present.file)
        later = self._back_up(file_after, by_path.get(self._source.overlay_path, present.overlay))
        is_way_back = event is AuditEvent.MUTATION_ROLLED_BACK
        now = self._clock.now()
        entry = HistoryEntry(
            mutation=name,
            status=EntryStatus.RESTORED if is_way_back else EntryStatus.APPLIED,
            time_ns=now.wall_ns,
            who=self._who,
            trigger=trigger,
            delta=delta,
            target=target,
            file_before=before[0],
            file_after=later[0],
            overlay_before=before[1],
            overlay_after=later[1],
            config_before=hash_before,
            config_after=after.content_hash,
        )
        fields = self._fields(name, trigger, delta, evidence, hash_before, after.content_hash)
        backup = before[1] if target == "overlay" else before[0]
        fields |= {"backup": backup, "reason": reason, "wrote_to": str(steps[0][0])}
        if why:
            fields["why_not_the_file"] = why
        if undone:
            fields["undone"] = list(undone)
        pending = Pending(
            mutation=name,
            event=event,
            steps=tuple(
                FileStep(
                    str(path),
                    str(path.with_name(f".{path.name}.{name}{TEMPORARY_SUFFIX}")),
                    hash_of(old),
                    hash_of(new),
                )
                for path, old, new in steps
            ),
            entry=entry,
            fields=plain(fields),
            stamp=now,
            process=this_process(),
            tick=self._tick(),
            is_counted=is_counted,
            undone=dict(undone),
            tabu=dict(tabu or {}),
        )
        try:
            self._transactions.carry_out(pending, keep=self._keep, tabu_hours=self._tabu_hours)
        except MutationFailedError as error:
            with contextlib.suppress(OSError, ConfigMutationError):
                self._log(AuditEvent.MUTATION_FAILED, {**fields, "reason": str(error)})
            raise
        outcome = MutationOutcome.ROLLED_BACK if is_way_back else MutationOutcome.APPLIED
        return Mutation(name, outcome, delta, steps[0][0], why, hash_before, after.content_hash, backup)

    def _judged(
        self, content: bytes, overlay: bytes | None, loaded: LoadedConfig, changes: Mapping[str, Value]
    ) -> LoadedConfig:
        """What the bytes amount to, if that is the present configuration with these changes and nothing else."""
        try:
            after = self._source.judge(content, overlay)
        except ConfigError as error:
            raise EditError(f"the result would be refused: {error}") from error
        wanted = {**dict(loaded.settings.items()), **changes}
        if dict(after.settings.items()) != wanted:
            raise EditError("the result would be another configuration than it should")
        return after

    def _tidied(self, loaded: LoadedConfig) -> LoadedConfig:
        """The same without overlay entries that yielded for good, which a change might bring back to life."""
        if not any(each.is_for_good for each in loaded.overlay_yielded):
            return loaded
        kept = [*loaded.overlay_applied, *(each.entry for each in loaded.overlay_yielded if not each.is_for_good)]
        content = encode_overlay({entry.path: entry for entry in kept})
        try:
            self._transactions.put_aside_yielded(self._source.overlay_path, content)
        except OSError as error:
            raise MutationFailedError(f"the overlay cannot be written: {error}") from error
        return self._source.judge(loaded.content, content)

    def _loaded(self, trigger: str, changes: Mapping[str, Any]) -> LoadedConfig:
        try:
            return self._source.load()
        except ConfigError as error:
            text = f"the configuration is not right at the moment: {error}"
            self._fail(text, "", shown(changes, None), None, trigger=trigger, evidence=None)

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
        fields = self._fields("", trigger, shown(changes, loaded), kept, *hashes)
        try:
            self._log(AuditEvent.MUTATION_REJECTED, {**fields, "reason": [str(problem) for problem in problems]})
        except OSError as failure:
            raise MutationFailedError(f"refused, and that could not be logged ({failure}): {error}") from error
        raise error

    def _fail(
        self,
        text: str,
        name: str,
        delta: Mapping[str, list[Any]],
        loaded: LoadedConfig | None,
        *,
        trigger: str,
        evidence: Mapping[str, Any] | None,
        **rest: Any,
    ) -> NoReturn:
        del rest
        digest = "" if loaded is None else loaded.content_hash
        with contextlib.suppress(OSError):
            fields = self._fields(name, trigger, delta, evidence, digest, digest)
            self._log(AuditEvent.MUTATION_FAILED, {**fields, "reason": text})
        raise MutationFailedError(text)

    def _fields(
        self,
        name: str,
        trigger: str,
        delta: Mapping[str, Any],
        evidence: Mapping[str, Any] | None,
        hash_before: str,
        hash_after: str,
    ) -> dict[str, Any]:
        return {
            "mutation": name,
            "trigger": trigger,
            "who": self._who,
            "delta": dict(delta),
            "evidence": evidence or {},
            "config_hash_before": hash_before,
            "config_hash_after": hash_after,
        }

    def _log(self, event: AuditEvent, fields: Mapping[str, Any]) -> None:
        self.audit.append(event, self._clock.now().wall_ns, fields)

    def _unchanged(self, loaded: LoadedConfig) -> Mutation:
        return Mutation("", MutationOutcome.UNCHANGED, {}, None, "", loaded.content_hash, loaded.content_hash, "")

    def _stands(self, pending: Pending) -> bool:
        try:
            loaded = self._source.load()
        except ConfigError:
            return False
        return all(loaded.settings[path] == new for path, (_, new) in pending.entry.delta.items())

    def _bytes_now(self) -> FormerConfig:
        file: bytes | None = None
        overlay: bytes | None = None
        with contextlib.suppress(OSError, ValueError):
            file = None if self._source.path is None else self._source.path.read_bytes()
        with contextlib.suppress(OSError):
            overlay = self._source.overlay_path.read_bytes()
        return FormerConfig(file, overlay, {})

    def _back_up(self, file: bytes | None, overlay: bytes | None) -> tuple[str, str]:
        try:
            digest = "" if self._source.path is None else self.history.back_up(file)
            return digest, self.history.back_up(overlay)
        except OSError as error:
            raise MutationFailedError(
                f"the former configuration could not be kept, so nothing is changed: {error}"
            ) from error

    def _tick(self) -> int | None:
        return None if self._ticks_fn is None else self._ticks_fn()

    def _new_id(self) -> str:
        moment = datetime.datetime.fromtimestamp(self._clock.now().wall_ns / 1e9, datetime.UTC)
        return f"{moment:%Y%m%dT%H%M%S}-{secrets.token_hex(4)}"

    @property
    def _file(self) -> Path:
        """The file itself, at the end of every link that leads to it, so that links stay links."""
        assert self._source.path is not None
        return Path(os.path.realpath(self._source.path))


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


def _delta_of(loaded: LoadedConfig | None, after: LoadedConfig) -> Delta:
    """What differs, for the log: a former file may hold another secret, which is not shown."""
    if loaded is None:
        return {}
    changes = diff_settings(loaded.settings, after.settings).changes
    return {each.path: [_HIDDEN, _HIDDEN] if SPECS[each.path].key.secret else [each.old, each.new] for each in changes}


def _note_left(recorded: dict[str, Any], entry: HistoryEntry, back: Mapping[str, Value] | list[str]) -> None:
    left = sorted(entry.delta.keys() - set(back))
    if left:
        reason = recorded["reason"]
        recorded["reason"] = f"{reason + '; ' if reason else ''}left as somebody has changed them: {', '.join(left)}"


def _problems_of(evidence: Mapping[str, Any] | None) -> list[Problem]:
    size = len(json.dumps(plain(evidence or {})))
    if size <= MAX_EVIDENCE_BYTES:
        return []
    return [Problem("evidence", f"at most {MAX_EVIDENCE_BYTES} bytes", f"{size}")]


def _is_projected(path: Path) -> bool:
    """Whether the file comes by the links with which Kubernetes publishes a ConfigMap."""
    current = Path(os.path.abspath(path))
    for _ in range(40):
        if "..data" in current.parts:
            return True
        try:
            current = Path(os.path.normpath(current.parent / os.readlink(current)))
        except OSError:
            return False
    return False
