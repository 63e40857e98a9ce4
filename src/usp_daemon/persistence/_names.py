"""Names of topics and groups as names of directories: injective, and never a way out of the parent directory."""

import hashlib
import re
import urllib.parse

SUFFIX = ".usp"
DAMAGED_SUFFIX = ".damaged"
SUPERSEDED_SUFFIX = ".superseded"
TEMPORARY_SUFFIX = ".tmp"
LOCK_FILE = ".lock"

_MAX_LENGTH = 180
_SNAPSHOT = re.compile(r"([0-9]{20})\.usp", re.ASCII)
_SET_ASIDE = re.compile(r"[0-9]{20}\.usp(\.[0-9]+)?\.(damaged|superseded)", re.ASCII)


def directory_name(name: str) -> str:
    """``name`` with everything but letters, digits and ``._-~`` as %XX; a leading point too, so that no name is hidden.

    What would be too long for a file system ends in its SHA-256 behind ``%~``, which no escape looks like.
    """
    escaped = urllib.parse.quote(name, safe="", errors="surrogatepass")
    if escaped.startswith("."):
        escaped = "%2E" + escaped[1:]
    if not escaped:
        return "%"
    if len(escaped) > _MAX_LENGTH:
        digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()
        return f"{escaped[: _MAX_LENGTH - len(digest) - 2]}%~{digest}"
    return escaped


def snapshot_name(offset: int) -> str:
    """The file of a snapshot at ``offset``; sorting by name sorts by offset."""
    return f"{offset:020d}{SUFFIX}"


def offset_of(name: str) -> int | None:
    """The offset of a snapshot's file, None for any other file (temporary, set aside, lock, foreign)."""
    match = _SNAPSHOT.fullmatch(name)
    return int(match[1]) if match else None


def is_set_aside(name: str) -> bool:
    """Whether this is a snapshot that was renamed because it is damaged or superseded."""
    return _SET_ASIDE.fullmatch(name) is not None
