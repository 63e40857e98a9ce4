"""Which process it is: a number alone is given away again when its process has ended."""

import dataclasses
import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ._clock import boot_id


@dataclasses.dataclass(frozen=True, slots=True)
class ProcessIdentity:
    """``start`` is when the process began, in the kernel's units since ``boot``; 0 where the system does not say."""

    host: str
    pid: int
    start: int
    boot: str

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"

    @property
    def is_here(self) -> bool:
        """Whether it is, or was, on this host."""
        return self.host == socket.gethostname()

    @property
    def is_alive(self) -> bool:
        """Whether it still runs, as far as this host can see; False for a process of another host."""
        if not self.is_here or self.boot != boot_id():
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            pass  # of another user, and alive
        except (OverflowError, ValueError):
            return False
        return start_of(self.pid) == self.start

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> "ProcessIdentity":
        """From what ``dataclasses.asdict`` made of one. Raises ``KeyError``, ``TypeError`` and ``ValueError``."""
        return cls(str(document["host"]), int(document["pid"]), int(document["start"]), str(document["boot"]))


def this_process() -> ProcessIdentity:
    """The process that asks."""
    return ProcessIdentity(socket.gethostname(), os.getpid(), start_of(os.getpid()), boot_id())


def start_of(pid: int) -> int:
    """When the process began, in clock ticks since the start of the machine; 0 if it is not there or not to be seen."""
    try:
        text = Path(f"/proc/{int(pid)}/stat").read_text("ascii", "replace")
        fields = text.rpartition(")")[2].split()  # the name before it may hold spaces and brackets
        # a zombie has ended, it only waits for its parent to take note
        return 0 if fields[0] in ("Z", "X") else int(fields[19])
    except (OSError, IndexError, ValueError):
        return 0
