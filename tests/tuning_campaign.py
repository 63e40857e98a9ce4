"""Runs a campaign in a process of its own and, where asked, kills itself at one write to the journal.

python tuning_campaign.py DIRECTORY TOTAL_TRIALS [KILL_AT before|after|torn]
"""

import os
import pathlib
import signal
import sys

from tuning_landscapes import FoldedBowl, settings_for
from usp_daemon.config import Settings
from usp_daemon.tuning import BayesianMetaOptimizer, _journal


def kill_at(number: int, manner: str) -> None:
    """Have the process die at its write ``number``: before it, after it, or with half of it on the disk."""
    append_logs = _journal.JournalFile.append_logs
    count = 0

    def append(journal: _journal.JournalFile, logs: list) -> None:
        nonlocal count
        count += 1
        if count < number:
            return append_logs(journal, logs)
        if manner != "before":
            append_logs(journal, logs)
        if manner == "torn":
            lines = journal._path.read_bytes().splitlines(keepends=True)
            os.truncate(journal._path, journal._path.stat().st_size - len(lines[-1]) // 2)
        os.kill(os.getpid(), signal.SIGKILL)

    _journal.JournalFile.append_logs = append  # type: ignore[method-assign]


if __name__ == "__main__":
    if len(sys.argv) > 3:
        kill_at(int(sys.argv[3]), sys.argv[4])
    config = settings_for(pathlib.Path(sys.argv[1]))
    BayesianMetaOptimizer(FoldedBowl(), config, Settings(), worker="here").optimize(total_trials=int(sys.argv[2]))
