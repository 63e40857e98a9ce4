"""What the configuration was when this replica last looked, so that an edit made while it was down is known for one."""

import contextlib
import os
from pathlib import Path

from ._disk import Disk, make_directory, write_whole


class SeenBase:
    """The hash of the configuration without its overlay, kept in a file of ``directory``.

    Nothing that goes wrong here is an error: then it is not known, and whoever asks goes by what the group knows.
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self._path = Path(directory) / "seen_base"

    def has_changed(self, base_hash: str) -> bool | None:
        """Whether ``base_hash`` differs from what was seen last; None when nothing was seen yet."""
        try:
            return self._path.read_text("ascii").strip() != base_hash
        except (OSError, UnicodeDecodeError):
            return None

    def remember(self, base_hash: str) -> None:
        """``base_hash`` was seen, and proposed or found in force."""
        disk = Disk()
        with contextlib.suppress(OSError):
            make_directory(disk, self._path.parent)
            write_whole(disk, self._path, f"{base_hash}\n".encode("ascii"))
