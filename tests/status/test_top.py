"""``usp-daemon top`` against a server, and against none."""

import io
import json
import socket
import subprocess
import sys

import pytest
from rich.console import Console
from status_answers import ServerThread, answer
from test_board import FACTS, ONE
from test_document import check

from usp_daemon import cli
from usp_daemon.config import RunningDaemon
from usp_daemon.status import Board, status_routes
from usp_daemon.telemetry import HttpResponse
from usp_daemon.top_command import NoStatusError, TopOptions, fetch, spark, status_url, top, url_of_running

NAMES = ["alpha", "beta", "evil\x1b[2J\x9b31m\u202ename"]


@pytest.fixture
def board(clock):
    board = Board(50, clock_fn=clock)
    board.partition_state(ONE, "RUNNING")
    board.update(ONE, lag_records=1234, queued=5, symbols=3)
    for ts in range(30):
        values = [float(ts), 2.0 * ts, 3.0]
        board.answered(ONE, [answer(NAMES, [ts] * 3, values, predicted_next=values, sequence=[ts] * 3)])
    board.answered(ONE, [answer(["beta"], [31], [60.0], sequence=[31], alarm_kind=[8], mode=[2])])
    clock.now += 1.0
    return board


@pytest.fixture
def server(board):
    running = ServerThread(status_routes(board, lambda: FACTS))
    running.start()
    yield running
    running.close()


@pytest.fixture
def url(server):
    return f"http://127.0.0.1:{server.port}"


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def run(capsys, *arguments):
    code = cli.run_command(["top", *arguments])
    return code, *capsys.readouterr()


def test_once_shows_what_there_is(url, capsys):
    code, out, err = run(capsys, "--url", url, "--once")
    assert (code, err) == (0, "")
    for text in ("ready", "ticks/0", "RUNNING", "1,234", "alpha", "beta", "Emergency", "scale_down, seq 31", "91 pred"):
        assert text in out, text
    assert not any(character in out for character in "\x1b\x9b\u202e")
    assert out.index("alpha") < out.index("beta")


def test_sort_filter_and_the_number_of_rows(url, board, server, capsys):
    _, out, _ = run(capsys, "--url", url, "--once", "--sort", "alarm")
    assert out.index("beta") < out.index("alpha")
    _, out, _ = run(capsys, "--url", url, "--once", "--filter", "ALP")
    assert "alpha" in out and "beta" not in out
    status = fetch(status_url(url))
    console = Console(file=io.StringIO(), width=120)
    from usp_daemon.top_command import shown

    console.print(shown(status, TopOptions(), num_rows=2))
    assert "and 1 more" in console.file.getvalue()


def test_json_is_the_document_in_ascii(url, capsys):
    code, out, _ = run(capsys, "--url", url, "--json")
    assert code == 0 and out.isascii()
    document = json.loads(out)
    check(document)
    assert {each["symbol"] for each in document["symbols"]} == set(NAMES)


def test_no_daemon_exits_with_3_and_says_where_it_looked(capsys):
    address = f"127.0.0.1:{free_port()}"
    code, out, err = run(capsys, "--url", address)
    assert (code, out) == (3, "")
    assert err.startswith(f"error: no daemon answers at http://{address}/status.json: ")


@pytest.mark.parametrize(
    ("body", "status", "text"),
    [(b"{}", 200, "does not answer as"), (b"\xff", 200, "does not answer as"), (b"[1]", 200, "does not answer as"),
     (b'{"schema_version": 2}', 200, "version 2"), (b"no\x1b", 404, "http.status"), (b"wrong name", 421, "wrong name")],
)  # fmt: skip
def test_what_is_no_daemon_is_said_to_be_none(body, status, text, capsys):
    async def other(request):
        del request
        return HttpResponse(status, body)

    server = ServerThread({"/status.json": other})
    server.start()
    try:
        code, _, err = run(capsys, "--url", f"http://127.0.0.1:{server.port}", "--once")
        assert code == 3 and text in err and "\x1b" not in err
    finally:
        server.close()


@pytest.mark.parametrize(
    ("given", "asked"),
    [("host:9108", "http://host:9108/status.json"), ("http://h", "http://h/status.json"),
     ("http://h:1/status", "http://h:1/status.json"), ("https://h/usp/status.json", "https://h/usp/status.json"),
     ("http://[::1]:1/", "http://[::1]:1/status.json")],
)  # fmt: skip
def test_addresses(given, asked):
    assert status_url(given) == asked


@pytest.mark.parametrize("given", ["file:///etc/passwd", "ftp://h/", "http://", "://"])
def test_what_is_no_address_exits_with_2(given, capsys):
    code, _, err = run(capsys, "--url", given)
    assert code == 2 and "expected http://HOST:PORT" in err


def test_by_default_the_daemon_of_the_configuration_is_asked(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = tmp_path / "c.toml"
    config.write_text('[http]\nhost = "0.0.0.0"\nport = 9301\n[io]\nstate_path = "state"\n')
    assert url_of_running(config) == "http://127.0.0.1:9301/status.json"
    RunningDaemon.write(tmp_path / "state", http_port=9355, started_ns=1, config=str(config))
    assert url_of_running(config) == "http://127.0.0.1:9355/status.json"


def test_goes_on_until_interrupted_and_waits_for_a_daemon_that_is_away(url, server):
    screen = Console(file=io.StringIO(), width=150, height=40, force_terminal=True)
    turns = []

    def sleep(seconds):
        turns.append(seconds)
        if len(turns) == 1:
            server.stop()
        elif len(turns) == 3:
            server.start()
        elif len(turns) == 5:
            raise KeyboardInterrupt

    top(TopOptions(url=url, interval_s=0.25), screen, sleep_fn=sleep)
    frames = screen.file.getvalue().split("\x1b[H")
    assert turns == [0.25] * 5
    away = [("no daemon answers" in frame) for frame in frames if "alpha" in frame]
    assert away == [False, True, True, False, False]


def test_the_first_time_it_must_answer():
    with pytest.raises(NoStatusError):
        top(TopOptions(url=f"127.0.0.1:{free_port()}"), Console(file=io.StringIO(), force_terminal=True))


def test_spark():
    assert spark([0.0, None, 7.0, 3.5], width=9) == "▁ █▄"
    assert spark([1.0] * 5, width=3) == "▁▁▁"
    assert spark([None], width=3) == spark([], width=3) == ""


def test_top_loads_neither_jax_nor_the_service():
    code = "import sys, usp_daemon.top_command; assert not {'jax', 'aiokafka', 'optuna', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
