"""Log lines: a constant event name with fields, as text for people or as JSON for machines, on standard error."""

import logging
import sys
from typing import IO, Any, TextIO, cast

import structlog


def configure_logging(level: str = "warning", *, as_json: bool = False, stream: IO[str] | None = None) -> None:
    """Send every event of at least ``level`` (debug, info, warning, error) to ``stream``, standard error by default."""
    target = stream if stream is not None else sys.stderr
    processors: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    # Tracebacks are plain on purpose: prettier ones print local variables, and those may hold anything.
    processors.append(
        structlog.processors.JSONRenderer()
        if as_json
        else structlog.dev.ConsoleRenderer(
            colors=target.isatty(), exception_formatter=structlog.dev.plain_traceback, pad_event_to=0
        )
    )
    if not as_json:
        processors.remove(structlog.processors.format_exc_info)  # the console renderer does that itself
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        # Standard error is looked up line by line: whoever replaces it gets the lines from then on.
        logger_factory=lambda *_: structlog.PrintLogger(
            file=cast(TextIO, stream if stream is not None else sys.stderr)
        ),
        cache_logger_on_first_use=False,
    )


def get_logger(name: str) -> Any:
    """A logger that puts ``name`` (the module's) on every line as ``module``."""
    return structlog.get_logger(module=name)
