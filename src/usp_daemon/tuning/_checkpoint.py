"""A saved study: one file of JSON, and its hash beside it.

The first line is the header: format, version, the campaign's name and identity, the number of trials, and the SHA-256
of everything after the line. Each further line is one trial. Nothing in it is code, and nothing but these records is
accepted. ``<path>.sha256`` holds the SHA-256 of the whole file, as the specification wants it.

Two files cannot be replaced in one step. So the hash file is written first, with the hashes of both the old file and
the new, then the file, then the hash file with the new hash alone: at every moment it has the hash of the file.
"""

import hashlib
import os
import pathlib
import tempfile
from collections.abc import Sequence

import msgspec

from ._campaign import Campaign
from ._errors import IntegrityError, MissingHashError
from ._trials import TrialRecord

FORMAT = "usp-daemon study"
VERSION = 1
# Far above any honest campaign (100,000 trials are 100 MB), far below what would fill the memory.
MAX_BYTES = 1 << 30


class Header(msgspec.Struct, frozen=True, kw_only=True):
    """The first line."""

    format: str
    version: int
    study_name: str
    directions: list[str]
    num_trials: int
    sha256: str
    campaign: msgspec.Raw


class _Preamble(msgspec.Struct):
    """What a header of any version has."""

    format: str
    version: int


def write_checkpoint(path: pathlib.Path, campaign: Campaign, lines: Sequence[bytes]) -> None:
    """Write the trials, encoded already, to ``path``. What the caller's thread holds the interpreter for is short."""
    body = b"".join(line + b"\n" for line in lines)
    header = msgspec.json.encode(
        Header(
            format=FORMAT,
            version=VERSION,
            study_name=campaign.name,
            directions=["minimize"],
            num_trials=len(lines),
            sha256=hashlib.sha256(body).hexdigest(),
            campaign=msgspec.Raw(msgspec.json.encode(campaign)),
        )
    )
    content = header + b"\n" + body
    digest = hashlib.sha256(content).hexdigest()
    path.parent.mkdir(parents=True, exist_ok=True)
    hash_path = _hash_path(path)
    try:
        with path.open("rb") as file:
            old = hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        _replace(hash_path, f"{digest}\n".encode())
    else:
        _replace(hash_path, f"{digest}\n{old}\n".encode())
    _replace(path, content)
    _replace(hash_path, f"{digest}\n".encode())


def read_checkpoint(path: pathlib.Path) -> tuple[Campaign, list[TrialRecord]]:
    """The campaign and its trials by number.

    Raises ``FileNotFoundError`` where there is no file, :class:`MissingHashError` where its hash file is missing,
    :class:`IntegrityError` where a hash does not fit, the format is newer, or the content is none of ours.
    """
    if path.stat().st_size > MAX_BYTES:
        raise IntegrityError(f"{path}: more than {MAX_BYTES} bytes; this is no saved study")
    content = path.read_bytes()
    try:
        expected = _hash_path(path).read_bytes().split()
    except FileNotFoundError:
        raise MissingHashError(f"{_hash_path(path)}: missing; without it the study is not trusted") from None
    if hashlib.sha256(content).hexdigest().encode() not in expected:
        raise IntegrityError(f"{path}: SHA-256 mismatch; the file is not the one that was saved")
    first, _, body = content.partition(b"\n")
    try:
        preamble = msgspec.json.decode(first, type=_Preamble)
    except msgspec.DecodeError as error:
        raise IntegrityError(f"{path}: not a saved study: {error}") from error
    if preamble.format != FORMAT:
        raise IntegrityError(f"{path}: not a saved study: its format is {preamble.format[:40]!r}")
    if preamble.version > VERSION:
        raise IntegrityError(
            f"{path}: format version {preamble.version} is newer than {VERSION}, the newest that this program reads"
        )
    try:
        header = msgspec.json.decode(first, type=Header)
        if hashlib.sha256(body).hexdigest() != header.sha256:
            raise IntegrityError(f"{path}: SHA-256 mismatch inside; the file is not the one that was saved")
        campaign = msgspec.json.decode(header.campaign, type=Campaign)
        records = [msgspec.json.decode(line, type=TrialRecord) for line in body.splitlines()]
    except msgspec.DecodeError as error:
        raise IntegrityError(f"{path}: not a saved study: {error}") from error
    _require_sense(path, header, campaign, records)
    return campaign, records


def _require_sense(path: pathlib.Path, header: Header, campaign: Campaign, records: Sequence[TrialRecord]) -> None:
    if header.study_name != campaign.name or header.directions != ["minimize"]:
        raise IntegrityError(f"{path}: the header contradicts itself")
    if [record.number for record in records] != list(range(header.num_trials)):
        raise IntegrityError(f"{path}: trials are missing or out of order")
    try:
        space = campaign.distributions()
    except Exception as error:  # Optuna raises what it comes upon: KeyError, ValueError, TypeError
        raise IntegrityError(f"{path}: its search space cannot be read: {error}") from error
    for record in records:
        if set(record.params) != set(space):
            raise IntegrityError(f"{path}: trial {record.number} has other parameters than the campaign")
        if record.state == "complete" and record.value is None:
            raise IntegrityError(f"{path}: trial {record.number} is complete and has no value")
        for name, value in record.params.items():
            if not _is_in(value, space[name]):
                raise IntegrityError(f"{path}: trial {record.number}: {name} is outside of its range")


def _is_in(value: object, distribution: object) -> bool:
    choices = getattr(distribution, "choices", None)
    if choices is not None:
        return value in choices
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return distribution.low <= value <= distribution.high  # type: ignore[attr-defined]


def _hash_path(path: pathlib.Path) -> pathlib.Path:
    return path.with_name(f"{path.name}.sha256")


def _replace(path: pathlib.Path, content: bytes) -> None:
    """Put ``content`` in place of ``path`` in one step, on the disk when this returns."""
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o666 & ~_umask())
        os.replace(name, path)
    except BaseException:
        pathlib.Path(name).unlink(missing_ok=True)
        raise
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _umask() -> int:
    for line in pathlib.Path("/proc/self/status").read_text("ascii", "replace").splitlines():
        if line.startswith("Umask:"):
            return int(line.split()[1], 8)
    return 0o077
