"""``feed`` and ``tail`` where there is no broker: usage, exit codes, and how records look."""

import base64
import os
import socket
import subprocess
import sys

import orjson
import pytest

from usp_daemon import cli
from usp_daemon.config import Kafka
from usp_daemon.feed_commands._lines import Lines
from usp_daemon.transport.kafka import ReadRecord

PREDICTION = {
    "schema_version": 1, "symbol": "BTC-USD", "ts": 1_700_000_000_123_456_789, "seq": 5, "value": 64123.5,
    "accepted": True, "prediction": 64125.25, "scale": 3.0, "intervals": {"80": [64100.0, 64150.5], "95": [1.0, 2.0]},
    "weights": dict.fromkeys(("rkhs", "deep_galerkin", "levy_sde", "signature"), 0.25),
    "kernel_predictions": dict.fromkeys(("rkhs", "deep_galerkin", "levy_sde", "signature"), 1.0),
    "epsilon": 0.1, "h_t": 5.0, "cusum_up": 0.0, "cusum_down": 0.0, "grace_counter": 0, "kurtosis": 3.0,
    "holder_exponent": 0.5, "dgm_entropy": 1.0, "free_energy": 0.0, "ema_variance": 1.0, "forecast_error": 0.1,
    "season_length": 0, "missed_periods": 0, "mode": "Standard", "flags": [], "gate_reasons": [], "result_codes": [],
    "config_hash": "abc", "a_field_of_the_future": 1,
}  # fmt: skip
ALARM = {
    "schema_version": 1, "symbol": "BTC-USD", "ts": 1_700_000_000_123_456_789, "seq": 5, "kind": "level_up",
    "kinds": ["level_up", "scale_up"], "value": 64123.5, "statistic": 12.5, "threshold": 8.25, "kurtosis": 3.0,
    "start_ticks_ago": 4, "start_seq": 1, "grace_steps": 20, "config_hash": "abc",
}  # fmt: skip
DEAD_LETTER = {
    "schema_version": 1, "reason": "not_json", "message": "expected JSON", "source": "ticks", "partition": 3,
    "offset": 17, "encoding": "utf-8", "original": "{oops", "original_size_bytes": 5, "truncated": False,
}  # fmt: skip


def record(topic, content, key=b"BTC-USD"):
    value = content if isinstance(content, bytes | None) else orjson.dumps(content)
    return ReadRecord(topic, 3, 40, key, value, 1_700_000_000_500)


def line(topic, content, key=b"BTC-USD", colours=False):
    return Lines(Kafka(), colours=colours).line(record(topic, content, key)).decode()


def nobody():
    """An address where nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


def run(*arguments, cwd, **settings):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("USP_")}
    environment |= {f"USP_{name}": value for name, value in settings.items()}
    return subprocess.run(
        [sys.executable, "-m", "usp_daemon.cli", *map(str, arguments)],
        cwd=cwd, env=environment, capture_output=True, text=True, timeout=120,
    )  # fmt: skip


@pytest.mark.parametrize(
    "arguments",
    [["feed", "--rate", "0"], ["feed", "--rate", "inf"], ["feed", "--symbols", "0"], ["feed", "--count", "-1"],
     ["feed", "a.csv", "--symbols", "3"], ["feed", "--symbols", "3", "--original-times"], ["feed", "--seed", "1"],
     ["feed", "--time-unit", "s"], ["feed", "a.csv", "--time-unit", "h"],
     ["tail", "--topic", "ticks"], ["tail", "--from", "now"], ["tail", "--count", "0"], ["tail", "--symbol", " "],
     ["tail", "extra"]],
)  # fmt: skip
def test_wrong_usage_exits_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.run_command(arguments)
    assert caught.value.code == 2
    assert "usage:" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["feed", "tail"])
def test_a_bad_configuration_exits_with_2(command, tmp_path):
    (tmp_path / "bad.toml").write_text("[kafka]\nnope = 1\n")
    done = run(command, "--config", "bad.toml", cwd=tmp_path)
    assert done.returncode == 2
    assert "kafka.nope" in done.stderr


def test_an_unusable_file_exits_with_3_before_anything_is_reached(tmp_path):
    (tmp_path / "empty.csv").write_text("")
    done = run("feed", "empty.csv", "gone.csv", cwd=tmp_path, KAFKA__BOOTSTRAP_SERVERS=nobody())
    assert done.returncode == 3
    assert "empty.csv: is empty" in done.stderr
    assert "gone.csv: no such file" in done.stderr


@pytest.mark.parametrize("command", ["feed", "tail"])
def test_no_broker_exits_with_69_and_says_so(command, tmp_path):
    servers = nobody()
    done = run(command, cwd=tmp_path, KAFKA__BOOTSTRAP_SERVERS=servers, SERVICE__START_TIMEOUT_S="1")
    assert done.returncode == 69, done.stderr
    assert "no Kafka broker could be reached" in done.stderr
    assert servers in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_neither_command_waits_for_jax(tmp_path):
    program = (
        "import sys; from usp_daemon import cli; code = cli.run_command([{!r}]); "
        "assert code == 69, code; assert 'jax' not in sys.modules"
    )
    environment = os.environ | {"USP_KAFKA__BOOTSTRAP_SERVERS": nobody(), "USP_SERVICE__START_TIMEOUT_S": "1"}
    for command in ("feed", "tail"):
        subprocess.run(
            [sys.executable, "-c", program.format(command)],
            check=True, capture_output=True, cwd=tmp_path, env=environment, timeout=120,
        )  # fmt: skip


def test_a_prediction_in_one_line():
    assert line("predictions", PREDICTION) == (
        "2023-11-14 22:13:20.123  BTC-USD           64123.5  next 64125.25  80% [64100, 64150.5]  Standard\n"
    )
    refused = PREDICTION | {"value": None, "accepted": False, "gate_reasons": ["not_finite"], "mode": "Robust"}
    assert line("predictions", refused).endswith(
        "  -  next 64125.25  80% [64100, 64150.5]  Robust  refused: not_finite\n"
    )


def test_an_alarm_in_one_red_line():
    text = (
        "2023-11-14 22:13:20.123  BTC-USD           64123.5  ALARM level_up, scale_up: 12.5 above 8.25, "
        "began about 4 ticks ago"
    )
    assert line("alarms", ALARM) == f"{text}\n"
    assert line("alarms", ALARM, colours=True) == f"\x1b[31m{text}\x1b[0m\n"


def test_a_dead_letter_says_why_and_where():
    assert line("dead-letters", DEAD_LETTER) == (
        "2023-11-14 22:13:20.500  BTC-USD           dead letter not_json: expected JSON (ticks/3/17: {oops)\n"
    )
    binary = DEAD_LETTER | {"encoding": "base64", "original": base64.b64encode(b"\xff" * 900).decode()}
    assert "\\xff\\xff" in line("dead-letters", binary, key=None)


def test_what_a_terminal_would_obey_is_not_passed_on():
    hostile = "\x1b[2J\x07" + "x" * 500
    for topic, content in (
        ("predictions", PREDICTION | {"symbol": hostile, "mode": hostile}),
        ("alarms", ALARM | {"symbol": hostile, "kinds": [hostile]}),
        ("dead-letters", DEAD_LETTER | {"original": hostile, "message": hostile, "source": hostile}),
    ):
        text = line(topic, content, key=hostile.encode())
        assert "\\x1b[2J" in text
        assert text.rstrip("\n").isprintable()
        assert len(text) < 800


@pytest.mark.parametrize("content", [None, b"", b"\xff", b"[]", b'{"symbol": 1}', b"x" * 100])
@pytest.mark.parametrize("topic", ["predictions", "alarms", "dead-letters"])
def test_records_of_others_cost_a_line(topic, content):
    assert line(topic, content) == f"{topic}/3/40: no record that this version can read (--json shows it)\n"
