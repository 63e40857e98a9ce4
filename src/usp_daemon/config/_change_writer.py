"""Writes a change, or the way back from one, into the file or the overlay, and what belongs to it into the log."""

import contextlib
import datetime
import os
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

from ._audit import AuditEvent, plain
from ._clock import Clock
from ._diff import diff_settings
from ._disk import TEMPORARY_SUFFIX
from ._edit import EditError, edit_toml
from ._history import EntryStatus, FormerConfig, HistoryEntry, hash_of
from ._journal import FileStep, Pending
from ._judge import Delta
from ._key import Value
from ._load import ConfigError
from ._mutation import Mutation, MutationOutcome
from ._mutation_errors import ConfigMutationError, MutationFailedError
from ._overlay import OverlayEntry, decode_overlay, encode_overlay
from ._process import this_process
from ._source import ConfigSource, LoadedConfig
from ._transaction import ReadOnlyError, Transactions


class ChangeWriter:
    """Everything of a change but the question whether it is allowed. Used under the lock only.

    ``keep`` backups are kept, values that were taken back are not tried for ``tabu_hours``; ``tick_fn`` counts ticks.
    """

    def __init__(
        self,
        source: ConfigSource,
        transactions: Transactions,
        *,
        who: str,
        keep: int,
        tabu_hours: float,
        tick_fn: Callable[[], int | None],
        clock: Clock,
    ) -> None:
        self._source = source
        self._transactions = transactions
        self._who = who
        self._keep = keep
        self._tabu_hours = tabu_hours
        self._tick = tick_fn
        self._clock = clock

    def store(
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
                self.fail(f"{self._source.path}: {error}", name, delta, loaded, **recorded)
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
            self.fail(text, name, delta, loaded, **recorded)
        except EditError as error:
            self.fail(f"{self._source.overlay_path}: {error}", name, delta, loaded, **recorded)

    def undo(
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
        name, event = self.new_id(), AuditEvent.MUTATION_ROLLED_BACK
        if entry.target == "overlay":
            return self._undo_in_overlay(name, entry, loaded, undone, recorded)
        if loaded.file_hash == entry.file_after:
            content = self._transactions.history.content(entry.file_before)
            assert content is not None
            after = self._source.judge(content, loaded.overlay_content)
            delta = _delta_of(loaded, after)
            return self.store(name, event, delta, loaded, content=content, undone=undone, **recorded)
        back = {path: old for path, (old, new) in entry.delta.items() if loaded.value_of_file(path) == new}
        if not back:
            raise ConfigMutationError(f"nothing is left of the change {entry.mutation}: its keys were changed since")
        _note_left(recorded, entry, back)
        delta = {path: [loaded.settings[path], old] for path, old in back.items() if loaded.settings[path] != old}
        return self.store(name, event, delta, loaded, undone=undone, **recorded)

    def _undo_in_overlay(
        self,
        name: str,
        entry: HistoryEntry,
        loaded: LoadedConfig,
        undone: Mapping[str, EntryStatus],
        recorded: dict[str, Any],
    ) -> Mutation:
        former, _ = decode_overlay(self._transactions.history.content(entry.overlay_before), self._source.overlay_path)
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
            self.fail(f"the overlay cannot be written: {error}", name, _delta_of(loaded, after), loaded, **recorded)

    def restore(self, former: FormerConfig, reason: str, trigger: str, evidence: Mapping[str, Any] | None) -> Mutation:
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
            return self.unchanged(loaded)
        recorded: dict[str, Any] = {"trigger": trigger, "evidence": evidence, "reason": reason}
        name = self.new_id()
        try:
            after = self._source.judge(former.file or b"", overlay)
        except ConfigError as error:
            self.fail(f"the former configuration is not right any more: {error}", name, {}, loaded, **recorded)
        target = "both" if len(steps) == 2 else "file" if steps and steps[0][0] == self._file else "overlay"
        event = AuditEvent.MUTATION_ROLLED_BACK
        try:
            return self._carry_out(name, event, loaded, after, target, steps, former.undone, **recorded)
        except ReadOnlyError as error:
            self.fail(f"the file cannot be written: {error}", name, {}, loaded, **recorded)

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
        before = self.back_up(present.file, present.overlay)
        by_path = {path: content for path, _, content in steps}
        file_after = present.file if self._source.path is None else by_path.get(self._file, present.file)
        later = self.back_up(file_after, by_path.get(self._source.overlay_path, present.overlay))
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
        fields = self.fields(name, trigger, delta, evidence, hash_before, after.content_hash)
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
                self.log(AuditEvent.MUTATION_FAILED, {**fields, "reason": str(error)})
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

    def tidied(self, loaded: LoadedConfig) -> LoadedConfig:
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

    def fail(
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
        """Write into the log that it failed, and raise :class:`MutationFailedError`."""
        del rest
        digest = "" if loaded is None else loaded.content_hash
        with contextlib.suppress(OSError):
            fields = self.fields(name, trigger, delta, evidence, digest, digest)
            self.log(AuditEvent.MUTATION_FAILED, {**fields, "reason": text})
        raise MutationFailedError(text)

    def fields(
        self,
        name: str,
        trigger: str,
        delta: Mapping[str, Any],
        evidence: Mapping[str, Any] | None,
        hash_before: str,
        hash_after: str,
    ) -> dict[str, Any]:
        """What every line of the log says."""
        return {
            "mutation": name,
            "trigger": trigger,
            "who": self._who,
            "delta": dict(delta),
            "evidence": evidence or {},
            "config_hash_before": hash_before,
            "config_hash_after": hash_after,
        }

    def log(self, event: AuditEvent, fields: Mapping[str, Any]) -> None:
        """Add a line to the log. Raises as ``AuditLog.append``."""
        self._transactions.audit.append(event, self._clock.now().wall_ns, fields)

    def _bytes_now(self) -> FormerConfig:
        file: bytes | None = None
        overlay: bytes | None = None
        with contextlib.suppress(OSError, ValueError):
            file = None if self._source.path is None else self._source.path.read_bytes()
        with contextlib.suppress(OSError):
            overlay = self._source.overlay_path.read_bytes()
        return FormerConfig(file, overlay, {})

    def back_up(self, file: bytes | None, overlay: bytes | None) -> tuple[str, str]:
        """Keep the bytes of file and overlay; gives their hashes. Raises :class:`MutationFailedError`."""
        try:
            digest = "" if self._source.path is None else self._transactions.history.back_up(file)
            return digest, self._transactions.history.back_up(overlay)
        except OSError as error:
            raise MutationFailedError(
                f"the former configuration could not be kept, so nothing is changed: {error}"
            ) from error

    def new_id(self) -> str:
        """The name of a change: when, and something random."""
        moment = datetime.datetime.fromtimestamp(self._clock.now().wall_ns / 1e9, datetime.UTC)
        return f"{moment:%Y%m%dT%H%M%S}-{secrets.token_hex(4)}"

    def unchanged(self, loaded: LoadedConfig) -> Mutation:
        """That everything was as wanted already."""
        return Mutation("", MutationOutcome.UNCHANGED, {}, None, "", loaded.content_hash, loaded.content_hash, "")

    @property
    def _file(self) -> Path:
        """The file itself, at the end of every link that leads to it, so that links stay links."""
        assert self._source.path is not None
        return Path(os.path.realpath(self._source.path))


def _delta_of(loaded: LoadedConfig | None, after: LoadedConfig) -> Delta:
    """What differs, for the log: a former file may hold another secret, which is not shown."""
    if loaded is None:
        return {}
    changes = diff_settings(loaded.settings, after.settings).changes
    return {each.path: list(each.shown) for each in changes}


def _note_left(recorded: dict[str, Any], entry: HistoryEntry, back: Mapping[str, Value] | list[str]) -> None:
    left = sorted(entry.delta.keys() - set(back))
    if left:
        reason = recorded["reason"]
        recorded["reason"] = f"{reason + '; ' if reason else ''}left as somebody has changed them: {', '.join(left)}"


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
