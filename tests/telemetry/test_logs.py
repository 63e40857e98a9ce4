"""What a log line looks like, and what never stands in one."""

import io
import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from usp_daemon.config import Settings
from usp_daemon.telemetry import configure_logging, get_logger


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    yield
    structlog.reset_defaults()


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_json_line_has_event_level_time_module_and_fields() -> None:
    stream = io.StringIO()
    configure_logging("info", log_format="json", fields={"group": "g", "instance": "i"}, stream=stream)
    get_logger("usp_daemon.some").info("batch_committed", num_records=3)
    (line,) = lines(stream)
    assert line.pop("timestamp").endswith("Z")
    assert line == {
        "event": "batch_committed",
        "level": "info",
        "module": "usp_daemon.some",
        "group": "g",
        "instance": "i",
        "num_records": 3,
    }


def test_a_lines_own_field_stands_over_the_common_one() -> None:
    stream = io.StringIO()
    configure_logging(log_format="json", fields={"group": "common"}, stream=stream)
    get_logger("m").warning("event", group="own")
    assert lines(stream)[0]["group"] == "own"


@pytest.mark.parametrize(
    ("stream", "log_format", "is_json"),
    [
        (Terminal(), "auto", False),
        (io.StringIO(), "auto", True),
        (Terminal(), "json", True),
        (io.StringIO(), "console", False),
    ],
)
def test_format(stream: io.StringIO, log_format: str, is_json: bool) -> None:
    configure_logging(log_format=log_format, stream=stream)
    get_logger("m").warning("something_happened", number=1)
    text = stream.getvalue()
    assert "something_happened" in text
    assert text.startswith("{") == is_json


@pytest.mark.parametrize(("level", "seen"), [("debug", 4), ("info", 3), ("warning", 2), ("error", 1)])
def test_level(level: str, seen: int) -> None:
    stream = io.StringIO()
    configure_logging(level, log_format="json", stream=stream)
    log = get_logger("m")
    for method in (log.debug, log.info, log.warning, log.error):
        method("event")
    assert len(lines(stream)) == seen


def test_levels_and_formats_of_the_settings_are_known() -> None:
    from usp_daemon.config import SPECS

    for level in SPECS["log.level"].key.choices:
        for log_format in SPECS["log.format"].key.choices:
            configure_logging(level, log_format=log_format, stream=io.StringIO())
    configure_logging(Settings().log.level, log_format=Settings().log.format, stream=io.StringIO())


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_secrets_are_masked_at_any_depth(log_format: str) -> None:
    stream = io.StringIO()
    configure_logging(log_format=log_format, stream=stream)
    get_logger("m").warning(
        "event",
        sasl_password="hunter2",
        API_TOKEN="hunter2",
        kafka={"ssl_key_password": "hunter2", "group": "shown", "deeper": [{"clientSecret": "hunter2"}]},
        pairs=({"secret": "hunter2"},),
    )
    assert "hunter2" not in stream.getvalue()
    assert stream.getvalue().count("***") == 5
    assert "shown" in stream.getvalue()


def test_what_is_too_deep_is_not_shown() -> None:
    stream = io.StringIO()
    configure_logging(log_format="json", stream=stream)
    endless: dict[str, Any] = {}
    endless["again"] = endless
    get_logger("m").warning("event", value=endless)
    assert "***" in stream.getvalue()


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_traceback_has_no_local_variables(log_format: str) -> None:
    stream = io.StringIO()
    configure_logging(log_format=log_format, stream=stream)
    try:
        hidden = "hunter" + str(2)
        raise ValueError(len(hidden))
    except ValueError:
        get_logger("m").exception("event_failed")
    assert "ValueError: 7" in stream.getvalue()
    assert "hunter2" not in stream.getvalue()


def test_any_value_can_be_logged() -> None:
    stream = io.StringIO()
    configure_logging(log_format="json", stream=stream)
    get_logger("m").warning("event", thing=object(), table={("a", 1): b"\xff"}, text="\ud800")
    assert lines(stream)[0]["table"] == {"('a', 1)": "b'\\xff'"}


class Full(io.StringIO):
    def write(self, text: str) -> int:
        raise OSError(28, "No space left on device", text)


def test_line_that_cannot_be_written_breaks_nothing() -> None:
    closed = io.StringIO()
    closed.close()
    for stream in (Full(), closed):
        configure_logging(log_format="json", stream=stream)
        get_logger("m").error("event")


def test_lines_of_threads_are_whole() -> None:
    stream = io.StringIO()
    configure_logging(log_format="json", stream=stream)
    threads = [
        threading.Thread(target=lambda: [get_logger("m").error("event", text="x" * 100) for _ in range(100)])
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [line["text"] for line in lines(stream)] == ["x" * 100] * 400
