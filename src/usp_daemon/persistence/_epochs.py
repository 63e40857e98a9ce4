"""The log of configuration epochs: which settings the replicas of a group have agreed on, in order, for good.

Exactness rests on it: what was answered under an epoch is replayed under it. So an epoch is durable before anybody
answers under it, a number is given once, and one that cannot be read is an error, never passed over.
"""

import abc
import asyncio
import concurrent.futures
import contextlib
import dataclasses
import hashlib
import itertools
import json
import os
import pathlib
import re
import tempfile
from collections.abc import Callable, Mapping
from typing import Any

from ._durable import make_directory, sync_directory
from ._errors import SnapshotStoreError
from ._names import TEMPORARY_SUFFIX, directory_name

FORMAT_VERSION = 1
KEEP_EPOCHS = 500
# A temporary file that has not changed for so long, by the file system's own clock, is nobody's any more.
LEFTOVER_AGE_S = 3600.0
_NAME = re.compile(r"([0-9]{8})\.json", re.ASCII)

Value = float | int | bool | str


class EpochLogError(SnapshotStoreError):
    """The log cannot be read or written, or holds something that is not a whole epoch."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Epoch:
    """One agreed change of configuration.

    ``settings`` are the traced and structural keys by dotted path, ``config_hash`` their hash; ``base_hash`` is that of
    what the operator wrote (file and environment, without the overlay). ``reason`` and ``proposed_by`` are for people.
    """

    number: int
    settings: Mapping[str, Value]
    config_hash: str
    base_hash: str
    created_ns: int
    proposed_by: str
    reason: str


class AbstractEpochLog(abc.ABC):
    """Epochs of one group, numbered from 1, appended and never changed. No method blocks the event loop.

    Every method raises :class:`EpochLogError` when the log cannot do its work.
    """

    @abc.abstractmethod
    async def open(self) -> None:
        """Acquire what is needed."""

    @abc.abstractmethod
    async def close(self) -> None:
        """Give everything back; harmless when repeated."""

    @abc.abstractmethod
    async def read(self) -> tuple[Epoch, ...]:
        """All epochs that are kept, ascending."""

    @abc.abstractmethod
    async def append(self, epoch: Epoch) -> bool:
        """Make ``epoch`` durable under its number; False, and nothing is changed, when somebody was faster.

        The number must follow the newest; an empty log takes any. Raises :class:`EpochLogError` for one that leaves
        a gap, and when it cannot be told whether the epoch was appended: :meth:`read` tells then.
        """


def in_order(epochs: Mapping[int, Epoch], locator: str) -> tuple[Epoch, ...]:
    """All of them, ascending. Raises :class:`EpochLogError` when one in between is missing."""
    numbers = sorted(epochs)
    for number, following in itertools.pairwise(numbers):
        if following != number + 1:
            raise EpochLogError(f"{locator}: epoch {number + 1} is missing. Bring it back from a backup")
    return tuple(epochs[number] for number in numbers)


def is_free(epoch: Epoch, newest: int | None, locator: str) -> bool:
    """Whether ``epoch`` is the one after ``newest``; False where its number was given before, kept or not."""
    if newest is None:
        return True
    if epoch.number > newest + 1:
        raise EpochLogError(f"{locator}: epoch {epoch.number} cannot follow epoch {newest}")
    return epoch.number == newest + 1


class MemoryEpochLog(AbstractEpochLog):
    """A log that lives as long as ``epochs``, which several of these may share: for simulations and embedding."""

    def __init__(self, epochs: dict[int, Epoch] | None = None, *, keep: int = KEEP_EPOCHS) -> None:
        self._epochs = {} if epochs is None else epochs
        self._keep = keep

    def __str__(self) -> str:
        return "memory"

    async def open(self) -> None:
        """Nothing to do."""

    async def close(self) -> None:
        """Nothing to do."""

    async def read(self) -> tuple[Epoch, ...]:
        """See :class:`AbstractEpochLog`."""
        return in_order(self._epochs, str(self))

    async def append(self, epoch: Epoch) -> bool:
        """See :class:`AbstractEpochLog`."""
        if not is_free(epoch, max(self._epochs, default=None), str(self)):
            return False
        self._epochs[epoch.number] = epoch
        for number in [number for number in self._epochs if number <= epoch.number - self._keep]:
            del self._epochs[number]
        return True


def encode_epoch(epoch: Epoch) -> bytes:
    """An epoch as JSON with its own checksum."""
    fields = dataclasses.asdict(epoch) | {"format_version": FORMAT_VERSION, "settings": dict(epoch.settings)}
    return _canonical(fields | {"sha256": _digest(fields)}) + b"\n"


def decode_epoch(content: bytes, locator: str) -> Epoch:
    """The reverse. Raises :class:`EpochLogError`, naming ``locator``."""
    try:
        fields: dict[str, Any] = json.loads(content)
        digest = fields.pop("sha256")
        if digest != _digest(fields):
            raise EpochLogError(f"{locator} is damaged: its checksum does not fit. Bring it back from a backup")
        if fields.pop("format_version") != FORMAT_VERSION:
            raise EpochLogError(f"{locator} is in a format that this version does not know; use a newer version")
        return Epoch(**fields)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise EpochLogError(f"{locator} is no epoch: {error}. Bring it back from a backup") from error


# In the order in which an append passes them.
EPOCH_CRASH_POINTS = (
    "epoch.half_written",
    "epoch.before_fsync",
    "epoch.before_link",
    "epoch.before_directory_fsync",
    "epoch.appended",
)


class DirectoryEpochLog(AbstractEpochLog):
    """Files below the directory of the snapshots, which the replicas of the group share.

    ``<path>/<group>/epochs/<number, 8 digits>.json``. A file is written under another name, flushed, and then linked
    to its own, which the file system refuses where there is one: so of several who append the same number one wins.

    ``crash_fn`` is for tests; it is called at every name in ``EPOCH_CRASH_POINTS``.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        group: str,
        keep: int = KEEP_EPOCHS,
        crash_fn: Callable[[str], None] = lambda point: None,
    ) -> None:
        self._directory = pathlib.Path(path) / directory_name(group) / "epochs"
        self._keep = keep
        self._crash_fn = crash_fn
        self._executor: concurrent.futures.ThreadPoolExecutor | None = None
        # An epoch never changes, so each is read once.
        self._known: dict[int, Epoch] = {}

    def __str__(self) -> str:
        return str(self._directory)

    async def open(self) -> None:
        """Make the directory, or find it."""
        if self._executor is None:
            self._executor = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="epochs")
        await self._do(self._make)

    async def close(self) -> None:
        """End the thread."""
        executor, self._executor = self._executor, None
        if executor is not None:
            executor.shutdown(wait=False, cancel_futures=True)

    async def read(self) -> tuple[Epoch, ...]:
        """See :class:`AbstractEpochLog`."""
        return await self._do(self._read)

    async def append(self, epoch: Epoch) -> bool:
        """See :class:`AbstractEpochLog`."""
        return await self._do(self._append, epoch)

    async def _do(self, function: Callable[..., Any], *arguments: Any) -> Any:
        if self._executor is None:
            raise EpochLogError(f"the log of epochs in {self._directory} is not open")
        try:
            return await asyncio.get_running_loop().run_in_executor(self._executor, function, *arguments)
        except OSError as error:
            raise EpochLogError(f"the log of epochs in {self._directory}: {error.strerror or error}") from error

    def _make(self) -> None:
        make_directory(self._directory)

    def _numbers(self) -> set[int]:
        return {int(match[1]) for name in os.listdir(self._directory) if (match := _NAME.fullmatch(name))}

    def _read(self) -> tuple[Epoch, ...]:
        numbers = self._numbers()
        if numbers and max(numbers) - min(numbers) >= len(numbers):
            # A directory that changes while it is listed may show what came last and not what came before it.
            numbers = self._numbers()
        for number in sorted(numbers - self._known.keys()):
            path = self._path(number)
            try:
                content = path.read_bytes()
            except FileNotFoundError:  # removed in between: it was the oldest
                continue
            epoch = decode_epoch(content, str(path))
            if epoch.number != number:
                raise EpochLogError(f"{path} holds epoch {epoch.number}: it was renamed")
            self._known[number] = epoch
        self._known = {number: epoch for number, epoch in self._known.items() if number in numbers}
        return in_order(self._known, str(self))

    def _append(self, epoch: Epoch) -> bool:
        if not is_free(epoch, max(self._numbers(), default=None), str(self)):
            return False
        handle, name = tempfile.mkstemp(dir=self._directory, prefix=".epoch-", suffix=TEMPORARY_SUFFIX)
        temporary = pathlib.Path(name)
        try:
            with os.fdopen(handle, "wb") as file:
                content = encode_epoch(epoch)
                file.write(content[: len(content) // 2])
                file.flush()
                self._crash_fn("epoch.half_written")
                file.write(content[len(content) // 2 :])
                file.flush()
                self._crash_fn("epoch.before_fsync")
                os.fsync(file.fileno())
                written_s = os.fstat(file.fileno()).st_mtime
            self._crash_fn("epoch.before_link")
            try:
                os.link(temporary, self._path(epoch.number))  # fails where there is one: the compare-and-set
            except FileExistsError:
                return False
        finally:
            temporary.unlink(missing_ok=True)
        self._crash_fn("epoch.before_directory_fsync")
        sync_directory(self._directory)
        self._known[epoch.number] = epoch
        self._tidy(epoch.number, written_s - LEFTOVER_AGE_S)
        self._crash_fn("epoch.appended")
        return True

    def _tidy(self, newest: int, abandoned_s: float) -> None:
        """Remove the oldest, and what those left who died while they appended; what fails is made good next time."""
        # From the lowest number on, so that whoever is interrupted leaves no gap.
        for entry in sorted(os.scandir(self._directory), key=lambda entry: entry.name):
            match = _NAME.fullmatch(entry.name)
            with contextlib.suppress(OSError):
                if match is not None:
                    is_done_with = int(match[1]) <= newest - self._keep
                else:
                    is_done_with = entry.name.endswith(TEMPORARY_SUFFIX) and entry.stat().st_mtime < abandoned_s
                if is_done_with:
                    os.unlink(entry.path)

    def _path(self, number: int) -> pathlib.Path:
        return self._directory / f"{number:08d}.json"


def _canonical(fields: Mapping[str, Any]) -> bytes:
    return json.dumps(fields, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("utf-8", "surrogatepass")


def _digest(fields: Mapping[str, Any]) -> str:
    return hashlib.sha256(_canonical(fields)).hexdigest()
