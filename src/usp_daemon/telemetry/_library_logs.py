"""Lines that libraries log through the standard library, as events of ours: ``library_log`` with their logger and text.

A broker that is away makes a client repeat itself many times a second. Of one message, that is one logger and one
template, five lines pass in ten seconds; the others are counted, and the count stands on a line of its own later.
"""

import logging
import math
import re
import time
from collections.abc import Callable

from ._logs import get_logger

_log = get_logger(__name__)

_WINDOW_S = 10.0
_LINES_PER_WINDOW = 5
# Beyond so many different messages in one window, further ones of a logger share its allowance.
_MAX_TEMPLATES = 512
_SHARED = "(various)"
_NUMBER = re.compile(r"0x[0-9a-fA-F]+|\d+")


class _Window:
    __slots__ = ("ends_at", "num_lines")

    def __init__(self, ends_at: float) -> None:
        self.ends_at = ends_at
        self.num_lines = 0


class LibraryLogHandler(logging.Handler):
    """Turns records of the standard library's logging into events. ``clock_fn`` is monotonic, in seconds."""

    def __init__(self, level: int = logging.WARNING, *, clock_fn: Callable[[], float] = time.monotonic) -> None:
        super().__init__(level)
        self._clock_fn = clock_fn
        self._windows: dict[tuple[str, str], _Window] = {}

    def emit(self, record: logging.LogRecord) -> None:
        """Log the record, or count it; whoever logged it never hears of a failure. Called under the handler's lock."""
        try:
            self._log_or_count(record)
        except Exception:
            self.handleError(record)

    def _log_or_count(self, record: logging.LogRecord) -> None:
        now = self._clock_fn()
        self._close_windows(now)
        text = _text(record)
        # Without its numbers a text that was put together before it was logged is a template again.
        template = text if record.msg == "%s" else str(record.msg)
        key = (record.name, _NUMBER.sub("#", template[:200]))
        if key not in self._windows and len(self._windows) >= _MAX_TEMPLATES:
            key = (record.name, _SHARED)
        window = self._windows.get(key)
        if window is None:
            window = self._windows[key] = _Window(now + _WINDOW_S)
        window.num_lines += 1
        if window.num_lines > _LINES_PER_WINDOW:
            return
        log_fn = _log.error if record.levelno >= logging.ERROR else _log.warning
        log_fn("library_log", logger=record.name, message=text, exc_info=record.exc_info or None)

    def flush(self) -> None:
        """Say what was left out so far."""
        self.acquire()
        try:
            self._close_windows(math.inf)
        finally:
            self.release()

    def _close_windows(self, now: float) -> None:
        for key in [key for key, window in self._windows.items() if window.ends_at <= now]:
            suppressed = self._windows.pop(key).num_lines - _LINES_PER_WINDOW
            if suppressed > 0:
                _log.warning("library_log_suppressed", logger=key[0], template=key[1], num_lines=suppressed)


def route_library_logs(level: str = "warning") -> Callable[[], None]:
    """Have every library's lines of at least ``level``, and no less than a warning, come out as events.

    Python's warnings come with them. Returns what undoes it, and says first what was left out.
    """
    handler = LibraryLogHandler(max(logging.WARNING, logging.getLevelNamesMapping()[level.upper()]))
    root = logging.getLogger()
    root.addHandler(handler)
    logging.captureWarnings(True)

    def undo() -> None:
        logging.captureWarnings(False)
        root.removeHandler(handler)
        handler.flush()

    return undo


def _text(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except Exception:  # the arguments do not fit the template, or cannot be printed; the line still matters
        return f"{record.msg} (arguments that do not fit it)"
