"""Lines of libraries come out as events, and not in floods."""

import asyncio
import io
import json
import logging
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from usp_daemon.telemetry import LibraryLogHandler, configure_logging, route_library_logs

Clock = Any  # the fixture of conftest.py


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    stream = io.StringIO()
    configure_logging("info", log_format="json", stream=stream)
    yield stream
    structlog.reset_defaults()


@pytest.fixture
def library(stream: io.StringIO, clock: Clock) -> Iterator[logging.Logger]:
    """A library's logger that goes only to a handler with the test's clock."""
    logger = logging.getLogger("aiokafka.client")
    handler = LibraryLogHandler(clock_fn=clock)
    logger.addHandler(handler)
    logger.propagate = False
    yield logger
    logger.propagate = True
    logger.removeHandler(handler)


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_line_is_an_event(library: logging.Logger, stream: io.StringIO) -> None:
    library.error("cannot reach %s:%d", "broker", 9092)
    (line,) = lines(stream)
    assert line["event"] == "library_log"
    assert line["logger"] == "aiokafka.client"
    assert line["message"] == "cannot reach broker:9092"
    assert line["level"] == "error"


def test_only_warnings_and_worse(library: logging.Logger, stream: io.StringIO) -> None:
    library.setLevel(logging.DEBUG)
    for level in (logging.DEBUG, logging.INFO, 25, logging.WARNING, 35, logging.ERROR, logging.CRITICAL):
        library.log(level, "line at %d", level)
    assert [(line["message"], line["level"]) for line in lines(stream)] == [
        ("line at 30", "warning"),
        ("line at 35", "warning"),
        ("line at 40", "error"),
        ("line at 50", "error"),
    ]
    library.setLevel(logging.NOTSET)


def test_exception_is_kept(library: logging.Logger, stream: io.StringIO) -> None:
    try:
        raise OSError("gone")
    except OSError:
        library.exception("broken")
    assert "OSError: gone" in lines(stream)[0]["exception"]


def test_flood_is_cut_to_five_lines_in_ten_seconds(library: logging.Logger, stream: io.StringIO, clock: Clock) -> None:
    for number in range(1000):
        library.error("attempt %d failed", number)
        library.error("something else")
        clock.now += 0.005
    assert [line["message"] for line in lines(stream)] == [
        text for number in range(5) for text in (f"attempt {number} failed", "something else")
    ]
    clock.now += 10.0
    library.error("attempt %d failed", 1000)
    *_, first, second, last = lines(stream)
    assert last["message"] == "attempt 1000 failed"
    assert {(line["event"], line["template"], line["num_lines"]) for line in (first, second)} == {
        ("library_log_suppressed", "attempt %d failed", 995),
        ("library_log_suppressed", "something else", 995),
    }


def test_every_line_is_shown_or_counted(library: logging.Logger, stream: io.StringIO, clock: Clock) -> None:
    for number in range(777):
        library.warning("again")
        clock.now += 0.01 * (number % 37)
    for handler in library.handlers:
        handler.flush()
    counted = sum(line["num_lines"] if line["event"] == "library_log_suppressed" else 1 for line in lines(stream))
    assert counted == 777


def test_text_made_beforehand_is_one_message_whatever_its_numbers(library: logging.Logger, stream: io.StringIO) -> None:
    for number in range(100):
        library.error(f"attempt {number} of <Task at {id(object()) + number:#x}>")
    assert len(lines(stream)) == 5


def test_memory_is_bounded(library: logging.Logger, stream: io.StringIO) -> None:
    names = ["".join(chr(ord("a") + int(digit)) for digit in str(number)) for number in range(3000)]
    for name in names:
        library.error(f"no such thing: {name}")
    handler = next(handler for handler in library.handlers if isinstance(handler, LibraryLogHandler))
    assert len(handler._windows) <= 513
    assert len(lines(stream)) == 512 + 5


def test_arguments_that_do_not_fit_lose_no_line(stream: io.StringIO) -> None:
    # Straight to the handler: pytest's own one, which stands on every logger, would raise first.
    LibraryLogHandler().handle(logging.LogRecord("aiokafka", logging.ERROR, "f.py", 1, "%d records", ("many",), None))
    assert lines(stream)[0]["message"] == "%d records (arguments that do not fit it)"


def test_library_does_not_hear_of_our_failures(
    stream: io.StringIO, monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    handler = LibraryLogHandler(clock_fn=clock)
    failures = []
    monkeypatch.setattr(handler, "handleError", failures.append)
    structlog.configure(processors=[lambda *_: 1 / 0])
    record = logging.LogRecord("aiokafka", logging.ERROR, "f.py", 1, "text", None, None)
    handler.handle(record)
    assert failures == [record]


def test_routing_reaches_every_library_and_can_be_undone(stream: io.StringIO) -> None:
    undo = route_library_logs()
    try:
        logging.getLogger("jax._src.dispatch").warning("slow")
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.showwarning("old", DeprecationWarning, "file.py", 1)
    finally:
        undo()
    logging.getLogger("jax._src.dispatch").warning("unseen")
    assert [line["logger"] for line in lines(stream)] == ["jax._src.dispatch", "py.warnings"]


def test_undoing_says_what_was_left_out(stream: io.StringIO) -> None:
    undo = route_library_logs()
    for _ in range(8):
        logging.getLogger("aiokafka").error("again")
    undo()
    assert lines(stream)[-1]["num_lines"] == 3


def test_level_error_leaves_warnings_out(stream: io.StringIO) -> None:
    undo = route_library_logs("error")
    logging.getLogger("aiokafka").warning("unseen")
    logging.getLogger("aiokafka").error("seen")
    undo()
    assert [line["message"] for line in lines(stream)] == ["seen"]


async def test_exceptions_that_nobody_fetched_are_logged(stream: io.StringIO) -> None:
    undo = route_library_logs()
    try:
        asyncio.get_running_loop().call_exception_handler({"message": "task failed", "exception": ValueError("why")})
    finally:
        undo()
    (line,) = lines(stream)
    assert line["logger"] == "asyncio"
    assert "ValueError: why" in line["exception"]
