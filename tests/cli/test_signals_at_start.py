"""SIGINT and SIGTERM at every moment of the start of ``usp-daemon run``: code 0, soon, and never lost.

The broker is one that does not answer, so that the start goes on until it is ended.
"""

import contextlib
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import pytest

LIMIT_S = 60.0  # on a machine with much else to do; the end itself takes a second or two
PREDICTOR_LIMIT_S = 600.0  # where the predictor must be compiled first
SETTINGS = {
    "USP_LOG__FORMAT": "json",
    "USP_HTTP__PORT": "0",
    "USP_SERVICE__START_TIMEOUT_S": "600",
    "USP_SERVICE__SHUTDOWN_TIMEOUT_S": "10",
    "USP_TUNING__MODE": "off",
}
# As a shell without job control does with what it starts by "&".
IGNORING = ("sh", "-c", 'trap "" INT; exec "$@"', "sh")
# What shows that the start has come so far: a library in the process's memory, or words in its log.
MOMENTS = {
    "the numerical libraries begin to be imported": "numpy/",
    "JAX is being imported": "libjax",
    "the first line of the log": "http_listening",
}


class Start:
    """A service that is being started, its signals in the state that ``ignored`` says."""

    def __init__(self, directory: pathlib.Path, servers: str, *, ignored: bool) -> None:
        self.log = directory / "log"
        environment = os.environ | SETTINGS | {"USP_KAFKA__BOOTSTRAP_SERVERS": servers}
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [*(IGNORING if ignored else ()), sys.executable, "-m", "usp_daemon.cli", "run"],
                cwd=directory, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip

    def reach(self, sign: str, limit_s: float = LIMIT_S) -> None:
        until = time.monotonic() + limit_s
        while sign not in self._signs():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < until, self.log.read_text()
            time.sleep(0.005)

    def _signs(self) -> str:
        with contextlib.suppress(OSError):
            return pathlib.Path(f"/proc/{self.process.pid}/maps").read_text() + self.log.read_text()
        return ""

    def end(self, number: signal.Signals) -> int:
        self.process.send_signal(number)
        return self.process.wait(LIMIT_S)


@pytest.fixture
def start(tmp_path):
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # and does not listen
        started = []

        def make(*, ignored=False):
            started.append(Start(tmp_path, f"127.0.0.1:{nobody.getsockname()[1]}", ignored=ignored))
            return started[-1]

        yield make
        for each in started:
            each.process.kill()
            each.process.wait()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_signal_at_any_moment_of_the_start_ends_it_in_order(start, moment, number):
    started = start()
    started.reach(MOMENTS[moment])
    assert started.end(number) == 0, started.log.read_text()
    assert "Traceback" not in started.log.read_text()


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["JAX is being imported", "the first line of the log"])
def test_one_that_was_started_with_sigint_ignored_listens_to_it(start, moment):
    started = start(ignored=True)
    started.reach(MOMENTS[moment])
    assert started.end(signal.SIGINT) == 0, started.log.read_text()


@pytest.mark.long
def test_a_signal_while_the_broker_is_tried(start):
    started = start()
    started.reach("predictor_ready", PREDICTOR_LIMIT_S)
    assert started.end(signal.SIGINT) == 0, started.log.read_text()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_no_exception_is_raised_that_could_be_swallowed(number):
    """Where SIGINT raises KeyboardInterrupt in a callback whose exceptions are dropped, it is lost."""
    code = f"""
import os, weakref
from usp_daemon.early_signals import EndAtOnce

class Thing: ...

def gone(reference):
    os.kill(os.getpid(), {int(number)})
    sum(range(1000))  # the handler has run by now

with EndAtOnce(7):
    thing = Thing()
    reference = weakref.ref(thing, gone)
    del thing
    print("survived")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (7, "", "")


def test_the_former_handlers_come_back_also_from_the_service():
    import asyncio

    from usp_daemon import daemon_app
    from usp_daemon.config import Settings
    from usp_daemon.early_signals import EndAtOnce
    from usp_daemon.service import StopRequest

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
    before = [signal.getsignal(number) for number in numbers]

    async def serve():
        within = [signal.getsignal(number) for number in numbers]
        with daemon_app._signals(StopRequest(), Settings(), asyncio.Event(), asyncio.Event()):
            assert [signal.getsignal(number) for number in numbers] != within
        assert [signal.getsignal(number) for number in numbers] == within

    with EndAtOnce():
        assert [signal.getsignal(number) for number in numbers[:2]] != before[:2]
        asyncio.run(serve())
    assert [signal.getsignal(number) for number in numbers] == before
