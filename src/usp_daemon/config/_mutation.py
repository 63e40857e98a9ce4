"""What comes of an attempt to change the configuration."""

import dataclasses
import enum
from collections.abc import Mapping
from pathlib import Path

from ._key import Value


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
