"""Looking at snapshots from outside: nothing here takes a lock, renames or writes."""

import dataclasses
import os
import pathlib
from collections.abc import Iterator

from ._codec import StoredHeader, read_header, read_snapshot
from ._errors import DamagedSnapshotError, PersistenceError, SnapshotReadError, SnapshotVersionError
from ._names import SUFFIX, is_set_aside


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class FoundFile:
    """A snapshot's file. ``header`` is None when it cannot be read, and ``problem`` then says why."""

    path: pathlib.Path
    size_bytes: int
    is_set_aside: bool
    header: StoredHeader | None
    problem: str


def snapshot_files(directory: str | os.PathLike[str]) -> Iterator[pathlib.Path]:
    """Every snapshot below ``directory``, also those set aside, sorted. Raises :class:`SnapshotReadError`."""

    def refuse(error: OSError) -> None:
        raise SnapshotReadError(f"{error.filename}: {error.strerror}") from error

    for parent, directories, names in os.walk(directory, onerror=refuse):
        # Partitions by number, the rest by name.
        directories.sort(key=lambda name: (name.zfill(20) if name.isdecimal() else name, name))
        for name in sorted(names):
            if (name.endswith(SUFFIX) and not name.startswith(".")) or is_set_aside(name):
                yield pathlib.Path(parent, name)


def look_at(path: pathlib.Path) -> FoundFile:
    """What a file says about itself. Raises :class:`SnapshotReadError` when it cannot be opened."""
    header, problem = None, ""
    try:
        size = path.stat().st_size
        header = read_header(path)
    except OSError as error:
        raise SnapshotReadError(f"{path}: {error.strerror or error}") from error
    except PersistenceError as error:
        problem = str(error)
    return FoundFile(path=path, size_bytes=size, is_set_aside=is_set_aside(path.name), header=header, problem=problem)


def problem_of(path: pathlib.Path) -> str | None:
    """What is wrong with a file, every bit of it read; None when it is whole."""
    try:
        read_snapshot(path)
    except DamagedSnapshotError as error:
        return f"damaged: {error}"
    except SnapshotVersionError as error:
        return f"cannot be read: {error}"
    except OSError as error:
        return f"cannot be read: {error.strerror or error}"
    return None
