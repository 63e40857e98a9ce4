"""A process that outlives whoever started it, found again through a file."""

import os
import shlex
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

POLL_S = 0.02


class Daemon:
    """The process recorded in ``pid_file``: its id and its start time, so that a reused id is not mistaken for it.

    It is nobody's child, so any process may start, signal and await it; several test workers share one broker that way.
    """

    def __init__(self, pid_file: Path) -> None:
        self._pid_file = pid_file

    def start(self, command: Sequence[str], log: Path) -> None:
        """Runs ``command`` in a session of its own with its output appended to ``log``. It must not be running."""
        # setsid does not fork here, because a shell without job control gives its background process no group to lead.
        script = f"setsid {shlex.join(command)} >>{shlex.quote(str(log))} 2>&1 </dev/null & echo $!"
        done = subprocess.run(["sh", "-c", script], stdout=subprocess.PIPE, text=True, check=True)
        pid = int(done.stdout)
        stat = _stat(pid)
        self._pid_file.write_text(f"{pid} {stat[1] if stat else 0}\n", "ascii")

    @property
    def pid(self) -> int | None:
        """Its id while it runs, paused included; None otherwise."""
        try:
            pid, started = map(int, self._pid_file.read_text("ascii").split())
        except (FileNotFoundError, ValueError):
            return None
        stat = _stat(pid)
        return pid if stat is not None and stat[0] not in "ZX" and stat[1] == started else None

    def signal(self, number: signal.Signals) -> None:
        """Sends a signal; nothing happens if it does not run."""
        pid = self.pid
        if pid is not None:
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                return

    def has_stopped(self, timeout_s: float) -> bool:
        """Waits until every thread of it stands still after SIGSTOP; False if one still runs after ``timeout_s``.

        The signal is sent to the process, and its threads on other cores hear of it a moment later.
        """
        deadline = time.monotonic() + timeout_s
        while (pid := self.pid) is not None:
            states = [_stat(f"{pid}/task/{thread}") for thread in os.listdir(f"/proc/{pid}/task")]
            if all(stat is None or stat[0] in "TZX" for stat in states):
                return True
            if time.monotonic() > deadline:
                return False
            time.sleep(POLL_S)
        return True

    def has_ended(self, timeout_s: float) -> bool:
        """Waits until it runs no more; False if it still does after ``timeout_s``."""
        deadline = time.monotonic() + timeout_s
        while self.pid is not None:
            if time.monotonic() > deadline:
                return False
            time.sleep(POLL_S)
        return True

    @property
    def resident_bytes(self) -> int:
        """Its resident memory; 0 if it does not run."""
        pid = self.pid
        if pid is None:
            return 0
        try:
            pages = int(Path(f"/proc/{pid}/statm").read_text("ascii").split()[1])
        except (FileNotFoundError, ProcessLookupError):
            return 0
        return pages * os.sysconf("SC_PAGE_SIZE")


def _stat(pid: int | str) -> tuple[str, int] | None:
    """State letter and start time in clock ticks since boot of a process or a "process/task/thread"; None if gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The command's name, in parentheses, may hold spaces and parentheses.
    fields = text.rpartition(")")[2].split()
    return fields[0], int(fields[19])
