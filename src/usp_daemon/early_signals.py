"""What SIGINT and SIGTERM do while the service is not there to take them: before it begins, and once it has ended.

Python's own answer to SIGINT is an exception in whatever runs at the moment. While the numerical libraries are being
imported that may be a callback whose exceptions are printed and dropped, and the signal is lost. SIGTERM would end the
process with a signal instead of an exit code, and does nothing at all to the first process of a container.
"""

import os
import signal
import types
from collections.abc import Mapping
from typing import Any

NUMBERS = (signal.SIGINT, signal.SIGTERM)


class EndAtOnce:
    """While it is entered, SIGINT and SIGTERM end the process at once with ``code``; the former handlers come back.

    To be entered in the main thread. Whoever takes the signals over in between gives them back as they were found.
    """

    def __init__(self, code: int = 0) -> None:
        self.code = code
        self._former: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "EndAtOnce":
        self._former = {number: signal.signal(number, self._end) for number in NUMBERS}
        return self

    def __exit__(self, *error: object) -> None:
        put_back(self._former)

    def _end(self, number: int, frame: types.FrameType | None) -> None:
        # No exception, which something might swallow, and no lock or buffer, which something might hold.
        os._exit(self.code)


def put_back(former: Mapping[signal.Signals, Any]) -> None:
    """Have the signals handled as ``signal.getsignal`` said of them before."""
    for number, handler in former.items():
        # None: a handler that Python does not know, which it cannot put back either
        signal.signal(number, signal.SIG_DFL if handler is None else handler)
