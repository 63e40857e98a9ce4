"""Directories that are there after a power failure too."""

import os
import pathlib


def sync_directory(directory: pathlib.Path) -> None:
    """Flush which names are in ``directory``."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def make_directory(directory: pathlib.Path, *, fsync: bool = True) -> None:
    """Make ``directory`` and its parents where they are missing, and flush each one's name. Raises ``OSError``."""
    missing = []
    while not directory.is_dir():
        missing.append(directory)
        directory = directory.parent
    for made in reversed(missing):
        made.mkdir(exist_ok=True)
        if fsync:
            sync_directory(made.parent)
