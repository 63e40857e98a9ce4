"""Log lines: a constant event name with fields, as text for people or as JSON for machines, on standard error."""

import contextlib
import logging
import os
import re
import sys
import threading
from collections.abc import Mapping, MutableMapping
from typing import IO, Any

import structlog

_SECRET_NAME = re.compile("password|secret|token", re.IGNORECASE)
_MASK = "***"
_WRITING = threading.Lock()


def configure_logging(
    level: str = "warning",
    *,
    log_format: str = "console",
    fields: Mapping[str, object] | None = None,
    stream: IO[str] | None = None,
) -> None:
    """Send every event of at least ``level`` (debug, info, warning, error) to ``stream``, standard error by default.

    ``log_format`` is ``console``, ``json``, or ``auto`` for console on a terminal and JSON elsewhere. ``fields`` stand
    on every line, such as the group and the instance. Values under names like ``password`` are masked.
    """
    target = stream if stream is not None else sys.stderr
    as_json = log_format == "json" or (log_format == "auto" and not target.isatty())
    common = dict(fields or {})

    def add_common(logger: object, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        del logger, method
        return {**common, **event}

    processors: list[Any] = [
        structlog.contextvars.merge_contextvars,
        add_common,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _mask_secrets,
    ]
    # Tracebacks are plain on purpose: prettier ones print local variables, and those may hold anything.
    if as_json:
        processors += [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    else:  # the console renderer formats tracebacks itself
        processors.append(
            structlog.dev.ConsoleRenderer(
                colors=target.isatty() and not os.environ.get("NO_COLOR"),
                exception_formatter=structlog.dev.plain_traceback,
                pad_event_to=0,
            )
        )
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        # Standard error is looked up line by line: whoever replaces it gets the lines from then on.
        logger_factory=lambda *_: _LineLogger(stream if stream is not None else sys.stderr),
        cache_logger_on_first_use=False,
    )


def get_logger(name: str) -> Any:
    """A logger that puts ``name`` (the module's) on every line as ``module``."""
    return structlog.get_logger(module=name)


class _LineLogger:
    """Writes lines whole. A full disk or a closed pipe costs the line, not the service."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def msg(self, line: str) -> None:
        with _WRITING, contextlib.suppress(OSError, ValueError):
            self._stream.write(line + "\n")
            self._stream.flush()

    debug = info = warning = error = critical = exception = log = msg


def _mask_secrets(logger: object, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    del logger, method
    return {name: _masked(name, value) for name, value in event.items()}


def _masked(name: str, value: Any, depth: int = 0) -> Any:
    """``value`` without what stands under a secret's name at any depth; beyond eight levels nothing is shown."""
    if _SECRET_NAME.search(name):
        return _MASK
    if isinstance(value, Mapping):
        return {str(key): _masked(str(key), item, depth + 1) for key, item in value.items()} if depth < 8 else _MASK
    # Named tuples and the triple of an exception are left as they are: only plain lists and tuples are looked into.
    if type(value) in (list, tuple) and name != "exc_info":
        return [_masked("", item, depth + 1) for item in value] if depth < 8 else _MASK
    return value
