"""``python -m usp_daemon.live_tuning._campaign_process``: runs one campaign for the daemon, at low priority.

The request comes as one line on standard input, which the daemon keeps open: when it is closed, the daemon is gone, and
so is this process. Answers go to standard output, a line each.
"""

import ctypes
import os
import signal
import sys
import threading

import msgspec

from usp_daemon.config import ConfigError

from ._request import CampaignFailedError, CampaignMessage, CampaignProgress, CampaignRequest

_PR_SET_PDEATHSIG = 1


def main() -> int:
    """Reads the request, runs the campaign, prints what came of it."""
    _end_with_parent()
    # Libraries may print; only messages go to where the daemon reads.
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)

    def say(message: CampaignMessage) -> None:
        answers.write(msgspec.json.encode(message) + b"\n")

    request = msgspec.json.decode(sys.stdin.buffer.readline(), type=CampaignRequest)
    threading.Thread(target=_end_with_input, daemon=True).start()
    os.nice(max(0, request.nice - os.nice(0)))

    # Imported at low priority: it takes seconds.
    from usp_daemon.tuning import TuningError

    from ._search import run_campaign

    def progress(each: CampaignProgress) -> None:
        say(CampaignMessage(progress=each))

    try:
        decision = run_campaign(request, progress_fn=progress)
    except (CampaignFailedError, TuningError, ConfigError) as error:
        say(CampaignMessage(error=str(error)))
        return 0
    say(CampaignMessage(decision=decision))
    return 0


def _end_with_parent() -> None:
    """Where the system can do it: also a process that is suspended is ended with the daemon."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() == 1:
            os._exit(1)


def _end_with_input() -> None:
    sys.stdin.buffer.read()
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
