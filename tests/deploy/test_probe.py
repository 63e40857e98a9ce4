"""The health check: exit codes against a real listener, and which port it asks."""

import http.server
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from usp_daemon.config import RunningDaemon
from usp_daemon.probe import address, main


class Answers(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/livez" else 503)
        self.end_headers()
        self.wfile.write(b'{"ok": "%s"}' % self.path.encode())

    def log_message(self, *arguments: object) -> None:
        del arguments


@pytest.fixture
def port():
    server = http.server.HTTPServer(("127.0.0.1", 0), Answers)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server.server_port
    server.shutdown()
    thread.join()
    server.server_close()


def settings(tmp_path: Path, text: str = "", **environment: str) -> dict[str, str]:
    path = tmp_path / "config.toml"
    path.write_text(text)
    return {"USP_CONFIG": str(path), "USP_IO__STATE_PATH": str(tmp_path / "state")} | environment


def test_exit_codes(tmp_path: Path, port: int, capsys: pytest.CaptureFixture[str]) -> None:
    environment = settings(tmp_path, USP_HTTP__PORT=str(port))
    assert main([], environment) == 0
    assert main(["readyz"], environment) == 1
    assert main(["metrics"], environment) == 2
    assert "/readyz" in capsys.readouterr().out


def test_nobody_listens(tmp_path: Path, port: int, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))  # bound and not listening: refused
        assert main(["livez"], settings(tmp_path, USP_HTTP__PORT=str(holder.getsockname()[1]))) == 1
    assert "127.0.0.1" in capsys.readouterr().out


@pytest.mark.parametrize(("host", "asked"), [("0.0.0.0", "127.0.0.1"), ("::", "::1"), ("127.0.0.1", "127.0.0.1")])
def test_port_and_host_of_file_and_environment(tmp_path: Path, host: str, asked: str) -> None:
    text = f'[http]\nhost = "{host}"\nport = 1234\n'
    assert address(settings(tmp_path, text)) == (asked, 1234)
    assert address(settings(tmp_path, text, USP_HTTP__PORT="4321")) == (asked, 4321)


def test_a_file_that_was_broken_since_the_start_does_not_matter(tmp_path: Path) -> None:
    environment = settings(tmp_path, "[http\nport = ")
    RunningDaemon.write(tmp_path / "state", http_port=5678, started_ns=time.time_ns(), config="")
    assert address(environment) == ("127.0.0.1", 5678)
    assert address(environment | {"USP_HTTP__HOST": "127.0.0.2"}) == ("127.0.0.2", 5678)


def test_it_needs_nothing_heavy() -> None:
    heavy = ("jax", "numpy", "aiokafka", "structlog", "optuna")
    program = f"import sys, usp_daemon.probe; print([m for m in {heavy!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"
