"""``python -m usp_daemon.campaign_process``: runs one campaign for the daemon, at low priority.

The request comes as one line on standard input, which the daemon keeps open: when it is closed, the daemon is gone, and
so is this process. Answers go to standard output, a line each. It stands outside of the package that it works for, so
that it can lower its priority before the libraries are imported, which takes seconds.
"""

import contextlib
import ctypes
import json
import os
import signal
import sys
import threading
from typing import Any

_PR_SET_PDEATHSIG = 1


def main(**options: Any) -> int:
    """Reads the request, runs the campaign, prints what came of it. ``options`` are for tests."""
    line = sys.stdin.buffer.readline()
    os.nice(max(0, int(json.loads(line)["nice"]) - os.nice(0)))
    _end_with_parent()
    threading.Thread(target=_end_with_input, daemon=True).start()
    # Libraries may print; only messages go to where the daemon reads.
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    # From here on it may be suspended: it would be ended nevertheless.
    answers.write(b'{"is_ready":true}\n')

    import msgspec

    from usp_daemon.config import ConfigError
    from usp_daemon.live_tuning import (
        CampaignFailedError,
        CampaignMessage,
        CampaignProgress,
        CampaignRequest,
        run_campaign,
    )
    from usp_daemon.tuning import TuningError

    def say(message: CampaignMessage) -> None:
        answers.write(msgspec.json.encode(message) + b"\n")

    def progress(each: CampaignProgress) -> None:
        say(CampaignMessage(progress=each))

    request = msgspec.json.decode(line, type=CampaignRequest)
    try:
        decision = run_campaign(request, progress_fn=progress, **options)
    except (CampaignFailedError, TuningError, ConfigError) as error:
        say(CampaignMessage(error=str(error)))
        return 0
    say(CampaignMessage(decision=decision))
    return 0


def _end_with_parent() -> None:
    """Where the system can do it: also a process that is suspended is ended with the daemon."""
    if sys.platform == "linux":
        with contextlib.suppress(AttributeError, OSError):
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() == 1:
        os._exit(1)  # it was gone before


def _end_with_input() -> None:
    # Not through the buffered reader: its lock would be held by this thread at the end of the process.
    while os.read(0, 4096):
        pass
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
