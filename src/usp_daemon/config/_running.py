"""What a running daemon leaves in its state directory for whoever wants to speak to it."""

import dataclasses
import enum
import json
import os
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ._disk import DamagedStateError, Disk, make_directory, read_state, write_whole
from ._process import ProcessIdentity, this_process

DAEMON_FILE = "daemon.json"
RELOAD_FILE = "last_reload.json"


@dataclasses.dataclass(frozen=True, slots=True)
class RunningDaemon:
    """A daemon and how to reach it. ``http_port`` is 0 where it does not listen."""

    process: ProcessIdentity
    http_port: int
    started_ns: int
    config: str  # its file, "" for the built-in defaults

    @classmethod
    def write(cls, state_path: Path, *, http_port: int, started_ns: int, config: str) -> "RunningDaemon":
        """Say that this process is the daemon. Only after it has taken over SIGHUP, which would end it otherwise.

        Raises ``OSError``.
        """
        daemon = cls(this_process(), http_port, started_ns, config)
        _write(state_path / DAEMON_FILE, dataclasses.asdict(daemon))
        return daemon

    @classmethod
    def read(cls, state_path: Path) -> "RunningDaemon | None":
        """The daemon that said so last, alive or not; None where there is none, or nothing readable."""
        try:
            document = read_state(state_path / DAEMON_FILE)
            if document is None:
                return None
            process = ProcessIdentity.of(document["process"])
            return cls(process, int(document["http_port"]), int(document["started_ns"]), str(document["config"]))
        except (OSError, DamagedStateError, KeyError, TypeError, ValueError, AttributeError):
            return None

    @staticmethod
    def remove(state_path: Path) -> None:
        """Say no more that this process is the daemon. Another one's word is left alone."""
        found = RunningDaemon.read(state_path)
        if found is not None and found.process == this_process():
            (state_path / DAEMON_FILE).unlink(missing_ok=True)

    @property
    def is_alive(self) -> bool:
        """Whether it runs, on this host; a process that was given its number later is not it."""
        return self.process.is_alive

    def hang_up(self) -> bool:
        """Send it SIGHUP; False where it does not run any more. Raises ``PermissionError``."""
        try:
            # The handle names the process, not the number: what is found alive after it was opened is what is meant.
            handle = os.pidfd_open(self.process.pid)
        except ProcessLookupError:
            return False
        try:
            if not self.is_alive:
                return False
            signal.pidfd_send_signal(handle, signal.SIGHUP)
        except ProcessLookupError:
            return False
        finally:
            os.close(handle)
        return True


class ReloadOutcome(enum.StrEnum):
    """What came of a reload."""

    APPLIED = "applied"
    UNCHANGED = "unchanged"
    REFUSED = "refused"  # the configuration is wrong, or a locked key differs
    FAILED = "failed"  # it was right, and could not be put into force


class ReloadTrigger(enum.StrEnum):
    """What led to a reload."""

    START = "start"
    FILE = "file"  # the watcher
    SIGNAL = "signal"  # SIGHUP
    GROUP = "group"  # an epoch that another replica proposed


@dataclasses.dataclass(frozen=True, slots=True)
class ReloadReport:
    """What the last reload has done: ``changed`` are the paths by class, ``problems`` why it was refused or failed."""

    time_ns: int
    trigger: ReloadTrigger
    outcome: ReloadOutcome
    epoch: int | None
    content_hash: str  # of the configuration that is in force now
    changed: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
    problems: Sequence[str] = ()
    seconds: float = 0.0

    def write(self, state_path: Path) -> None:
        """Put it in the place of the last. Raises ``OSError``."""
        _write(state_path / RELOAD_FILE, dataclasses.asdict(self))

    @classmethod
    def read(cls, state_path: Path) -> "ReloadReport | None":
        """The last report; None where there is none, or nothing readable."""
        try:
            document = read_state(state_path / RELOAD_FILE)
            if document is None:
                return None
            epoch = document["epoch"]
            return cls(
                time_ns=int(document["time_ns"]),
                trigger=ReloadTrigger(document["trigger"]),
                outcome=ReloadOutcome(document["outcome"]),
                epoch=None if epoch is None else int(epoch),
                content_hash=str(document["content_hash"]),
                changed={str(name): tuple(map(str, paths)) for name, paths in document["changed"].items()},
                problems=tuple(map(str, document["problems"])),
                seconds=float(document["seconds"]),
            )
        except (OSError, DamagedStateError, KeyError, TypeError, ValueError, AttributeError):
            return None


def _write(path: Path, document: Any) -> None:
    disk = Disk()
    make_directory(disk, path.parent)
    content = json.dumps(document, indent=2, allow_nan=False).encode("ascii") + b"\n"
    # two daemons that were given one directory do not tear each other's files
    write_whole(disk, path, content, temporary=path.with_name(f".{path.name}.{os.getpid()}.usp-tmp"))
