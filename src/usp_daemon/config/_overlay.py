"""Values that the service wrote beside a file that it cannot write: a small JSON file in the state directory.

Each entry remembers what the operator's file said when it was made. As soon as the file says anything else, the entry
yields: what a person writes stands above what a machine has found.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ._cross_field import RULES
from ._key import Unfit, Value
from ._load import MAX_FILE_BYTES, Problem
from ._policy import MUTABLE
from ._settings import SPECS

OVERLAY_FILE = "overlay.json"
VERSION = 1
_HINT = "it is written by the service; without it the file stands alone"


@dataclasses.dataclass(frozen=True, slots=True)
class OverlayEntry:
    """``value`` stands in place of ``base``, the value of the file (or the default) when the entry was made."""

    path: str
    value: Value
    base: Value
    mutation: str  # the change that made it


@dataclasses.dataclass(frozen=True, slots=True)
class YieldedEntry:
    """An entry that does not act at the moment, and why."""

    entry: OverlayEntry
    reason: str
    is_for_good: bool  # False: it would act again without the environment variable


def overlay_path(state_path: str) -> Path:
    """Where the overlay lies below ``io.state_path``."""
    return Path(state_path) / OVERLAY_FILE


def read_overlay(path: Path) -> bytes | None:
    """The bytes of the overlay, None where there is none. Raises ``OSError``."""
    try:
        with path.open("rb") as file:
            return file.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError:
        return None


def decode_overlay(content: bytes | None, path: Path) -> tuple[tuple[OverlayEntry, ...], list[Problem]]:
    """The entries in the bytes of the file ``path``, and everything that is wrong with them."""
    if content is None:
        return (), []
    try:
        return _entries_of(json.loads(content), path)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return (), [Problem(str(path), "an overlay in JSON", "something else", _HINT)]


def encode_overlay(entries: Mapping[str, OverlayEntry]) -> bytes:
    """The file of these entries."""
    document = {
        "version": VERSION,
        "entries": {
            path: {"value": entry.value, "base": entry.base, "mutation": entry.mutation}
            for path, entry in sorted(entries.items())
        },
    }
    return (json.dumps(document, indent=2, allow_nan=False) + "\n").encode("ascii")


def settle_overlay(
    entries: tuple[OverlayEntry, ...], of_file: Mapping[str, Value], of_environment: Mapping[str, Value]
) -> tuple[tuple[OverlayEntry, ...], tuple[YieldedEntry, ...]]:
    """Which entries act over what the file and the environment say, and which yield.

    File and environment must make sense by themselves. Where an entry does not make sense together with them, it is the
    entry that gives way.
    """
    acting: dict[str, OverlayEntry] = {}
    yielded: list[YieldedEntry] = []
    for entry in entries:
        present = of_file.get(entry.path, SPECS[entry.path].default)
        if present != entry.base:
            reason = f"the file was changed from {entry.base} to {present}"
            yielded.append(YieldedEntry(entry, reason, is_for_good=True))
        elif entry.path in of_environment:
            reason = f"{SPECS[entry.path].variable} stands above it"
            yielded.append(YieldedEntry(entry, reason, is_for_good=False))
        else:
            acting[entry.path] = entry
    defaults = {path: spec.default for path, spec in SPECS.items()}
    while acting:
        values = {**defaults, **of_file, **{path: entry.value for path, entry in acting.items()}, **of_environment}
        broken = [rule for rule in RULES if rule.is_broken_by(values)]
        if not broken:
            break  # reached at the latest without any entry: file and environment fit each other
        for rule in broken:
            for path in acting.keys() & set(rule.paths):
                reason = f"{rule.paths[0]} must be {rule.expectation}"
                yielded.append(YieldedEntry(acting.pop(path), reason, is_for_good=True))
    return tuple(acting.values()), tuple(yielded)


def _entries_of(document: Any, path: Path) -> tuple[tuple[OverlayEntry, ...], list[Problem]]:
    if document["version"] != VERSION:
        return (), [Problem(str(path), f"an overlay of version {VERSION}", f"version {document['version']!r:.20}")]
    entries: list[OverlayEntry] = []
    problems: list[Problem] = []
    for name, fields in document["entries"].items():
        where = f"{path}: {name:.60}"
        if name not in MUTABLE:
            problems.append(Problem(where, "a key that the service may change", "another one"))
            continue
        spec = SPECS[name]
        try:
            value, base = spec.fit(fields["value"]), spec.fit(fields["base"])
        except Unfit:
            problems.append(Problem(where, spec.expectation, f"{fields['value']!r:.40} over {fields['base']!r:.40}"))
            continue
        entries.append(OverlayEntry(name, value, base, str(fields["mutation"])))
    return tuple(entries), problems
