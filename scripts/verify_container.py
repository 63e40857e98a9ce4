#!/usr/bin/env python3
"""Builds the image, runs it as deploy/ does, beside a real broker, and says what held.

    python3 scripts/verify_container.py [--port 19210] [--skip-build] [--image NAME]

Needs root, buildah, podman, runc and mmdebstrap, and what scripts/kafka.py needs; no registry and no Docker engine.
Ports are three from ``--port`` on: broker, HTTP, HTTP of the second container. Ends with 0 if everything held.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HERE = ROOT / "deploy" / "verify"
SYMBOLS = 8
TICKS = 400
READY_S = 120.0
STOP_S = 40
HARDENED = (
    *("--network", "host", "--read-only", "--tmpfs", "/tmp:size=64m", "--cap-drop", "all"),
    *("--security-opt", "no-new-privileges", "--memory", "4g", "--pids-limit", "512"),
)
PASSWORD = "verify-secret-7f3a"


class CheckFailedError(Exception):
    """Something did not hold; the text says what was expected and what came."""


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--port", type=int, default=19210)
    options.add_argument("--image", default="localhost/usp-daemon:check")
    options.add_argument("--skip-build", action="store_true")
    chosen = options.parse_args()
    os.environ.setdefault("CONTAINERS_CONF", str(HERE / "containers.conf"))
    if not chosen.skip_build:
        started = time.monotonic()
        call(str(HERE / "build.sh"), chosen.image)
        passed("built", f"{time.monotonic() - started:.0f} s")
    try:
        image_is_as_promised(chosen.image)
        with broker(chosen.port) as servers:
            lives(chosen.image, servers, chosen.port + 1)
            ends_with_the_right_code(chosen.image, servers, chosen.port + 2)
    except CheckFailedError as error:
        print(f"FAILED: {error}", file=sys.stderr)
        return 1
    return 0


def image_is_as_promised(image: str) -> None:
    """User, signal, health check, volumes, labels; nothing of the host in a layer; no package manager of Python."""
    seen = json.loads(call("podman", "inspect", "--type", "image", image))[0]
    config = seen["Config"]
    expect("user", config["User"], "10001:10001")
    expect("stop signal", config["StopSignal"], "SIGTERM")
    expect("health check", seen["Healthcheck"]["Test"], ["CMD", "python", "-m", "usp_daemon.probe", "livez"])
    expect("volumes", sorted(config["Volumes"]), ["/var/cache/usp-daemon", "/var/lib/usp-daemon"])
    expect("licence", config["Labels"]["org.opencontainers.image.licenses"], "MIT")
    expect("architecture", seen["Architecture"], "amd64")
    base = json.loads(call("podman", "inspect", "--type", "image", f"localhost/usp-base:{python_version()}"))[0]
    words = json.dumps(seen["History"]) + json.dumps(config)
    if re.search(r"https?://|password|token|secret", words, re.IGNORECASE):
        raise CheckFailedError(f"an address or a secret in the history of the image: {words}")
    look = "import os,sys; print(os.path.getsize('/etc/pip.conf') if os.path.exists('/etc/pip.conf') else 0)"
    expect("pip's settings in a layer", in_image(image, "python", "-c", look).strip(), "0")
    found = in_image(image, "python", "-c", "import importlib.util as u; print(u.find_spec('pip'))").strip()
    expect("pip", found, "None")
    passed("image", f"{seen['Size'] / 1e6:.0f} MB, of which {base['Size'] / 1e6:.0f} MB are the base")


def lives(image: str, servers: str, port: int) -> None:
    """Start, ready, hardened, reload, refusal, orderly stop, and a restart that goes on where it stopped."""
    with container(image, servers, port) as daemon:
        passed("ready, cold", f"{daemon.ready():.0f} s")
        is_hardened(daemon, port)
        first = exchange(daemon, TICKS)
        passed("answered", f"{len(first)} symbols, sequence numbers to {max(first.values())}")
        reloads(daemon)
        daemon.stop(expected=0)
        passed("SIGTERM", f"exit code 0 after {daemon.took:.1f} s")
        call("podman", "start", daemon.name)
        passed("ready, warm", f"{daemon.ready():.0f} s")
        second = exchange(daemon, TICKS)
        expect("symbols after the restart", sorted(second), sorted(first))
        for symbol, number in first.items():
            # as many ticks again, numbered on from where the first container stopped
            expect(f"sequence of {symbol}", second[symbol], 2 * (number + 1) - 1)
        passed("state kept", "sequence numbers go on after the restart")
        daemon.stop(expected=0)
        if PASSWORD in daemon.logs() + json.dumps(first):
            raise CheckFailedError("the password is in the log")


def is_hardened(daemon: "Container", port: int) -> None:
    """What the process may do, seen from inside."""
    status = daemon.run("cat", "/proc/1/status")
    expect("user", re.findall(r"^Uid:\s+(.*)$", status, re.MULTILINE), ["10001\t10001\t10001\t10001"])
    expect("capabilities", re.findall(r"^Cap(?:Eff|Prm|Bnd|Amb):\s+(\w+)$", status, re.MULTILINE), ["0" * 16] * 4)
    expect("no new privileges", re.findall(r"^NoNewPrivs:\s+(\d)$", status, re.MULTILINE), ["1"])
    for place in ("/etc/x", "/opt/usp-daemon/x", "/etc/usp-daemon/x", "/usr/local/x"):
        written = subprocess.run(["podman", "exec", daemon.name, "touch", place], capture_output=True, check=False)
        if not written.returncode:
            raise CheckFailedError(f"{place} could be written")
    daemon.run("touch", "/tmp/x", "/var/lib/usp-daemon/x", "/var/cache/usp-daemon/x")
    listening = re.findall(r"^\s*\d+: (\w+):(\w+) \S+ 0A", daemon.run("cat", "/proc/net/tcp"), re.MULTILINE)
    expect("listens on", [address for address, there in listening if int(there, 16) == port], ["0100007F"])
    expect("health check", call("podman", "healthcheck", "run", daemon.name, codes=(0, 1)).strip(), "")
    passed("hardened", "uid 10001, no capability, read-only root, no new privileges, loopback only, healthy")


def reloads(daemon: "Container") -> None:
    """A right file is applied on SIGHUP, a wrong one changes nothing and harms nothing."""
    daemon.configure("[orchestration]\ncusum_k = 0.6\n")
    call("podman", "kill", "--signal", "HUP", daemon.name)
    wait_for("the reload", lambda: daemon.metrics("usp_config_last_reload_success") == [1.0] and daemon.epoch() == 2.0)
    # the file is watched as well: SIGHUP and the watcher may both have seen it
    answer = daemon.run("usp-daemon", "reload")
    expect("what usp-daemon reload says", answer.partition(":")[0], "unchanged")
    daemon.configure("[orchestration]\ncusum_k = -1.0\n")
    call("podman", "kill", "--signal", "HUP", daemon.name)
    wait_for("the refusal", lambda: daemon.metrics("usp_config_last_reload_success") == [0.0])
    expect("epoch after a wrong file", daemon.epoch(), 2.0)
    daemon.run("python", "-m", "usp_daemon.probe", "readyz")
    daemon.configure("[orchestration]\ncusum_k = 0.6\n")
    wait_for("the right file", lambda: daemon.metrics("usp_config_last_reload_success") == [1.0])
    passed("SIGHUP", "a right file in force, a wrong one refused, ready all the while")


def ends_with_the_right_code(image: str, servers: str, port: int) -> None:
    """Wrong settings end with 2, a broker that is not there with 69, and the health check says so meanwhile."""
    with container(image, servers, port, USP_KAFKA__NO_SUCH_KEY="1") as daemon:
        expect("exit code for wrong settings", daemon.wait(), 2)
    away = {"USP_KAFKA__BOOTSTRAP_SERVERS": "127.0.0.1:1", "USP_SERVICE__START_TIMEOUT_S": "1"}
    with container(image, servers, port, **away) as daemon:
        expect("exit code without a broker", daemon.wait(), 69)
    passed("exit codes", "2 and 69")


def exchange(daemon: "Container", count: int) -> dict[str, int]:
    """Sends ``count`` ticks from the image itself, and gives the last sequence number of each symbol."""
    before = sum(line["seq"] >= 0 for line in daemon.predictions())
    daemon.run("usp-daemon", "feed", "--symbols", str(SYMBOLS), "--count", str(count), "--rate", "400")
    wait_for("the answers", lambda: len(daemon.predictions()) == before + count)
    last: dict[str, int] = {}
    for line in daemon.predictions():
        expected = last.get(line["symbol"], -1) + 1
        expect(f"sequence number of {line['symbol']}", line["seq"] - daemon.first_number, expected)
        last[line["symbol"]] = expected
    return last


class Container:
    """One container of the image, hardened as in deploy/compose.yaml, with volumes of its own."""

    def __init__(self, image: str, servers: str, port: int, **environment: str) -> None:
        self.name = f"usp-verify-{uuid.uuid4().hex[:8]}"
        self.port = port
        self.took = 0.0
        self.first_number = 1
        # answered before this process: a counter begins anew with it
        self.total = 0
        self.directory = Path(tempfile.mkdtemp(prefix="usp-verify-"))
        self.directory.chmod(0o755)
        self.configure("")
        # The listener has no use for the password; it is there to be looked for afterwards.
        told = {
            "USP_KAFKA__BOOTSTRAP_SERVERS": servers,
            "USP_KAFKA__GROUP_INSTANCE_ID": "verify",
            "USP_KAFKA__SASL_PASSWORD": PASSWORD,
            "USP_TUNING__MODE": "off",
            "USP_HTTP__PORT": str(port),
        } | environment
        call(
            *("podman", "run", "--detach", "--name", self.name, *HARDENED),
            *(word for name, value in told.items() for word in ("--env", f"{name}={value}")),
            *(
                "--volume",
                f"{self.name}-state:/var/lib/usp-daemon",
                "--volume",
                f"{self.name}-cache:/var/cache/usp-daemon",
            ),
            *("--volume", f"{self.directory}:/etc/usp-daemon:ro", image),
        )

    def configure(self, text: str) -> None:
        """Put a whole file in the place of the settings, as an editor does."""
        new = self.directory / "config.toml.new"
        new.write_text(text)
        new.chmod(0o644)
        new.replace(self.directory / "config.toml")

    def run(self, *line: str) -> str:
        return call("podman", "exec", self.name, *line)

    def ready(self) -> float:
        """Seconds until /readyz says so, asked from inside as the health check does."""
        started = time.monotonic()
        line = ["podman", "exec", self.name, "python", "-m", "usp_daemon.probe", "readyz"]
        wait_for(
            "readiness",
            lambda: subprocess.run(line, capture_output=True, check=False).returncode == 0 or self.has_ended(),
        )
        if self.has_ended():
            raise CheckFailedError(f"it ended: {self.logs()[-2000:]}")
        return time.monotonic() - started

    def metrics(self, name: str) -> list[float]:
        """The values of all series of a metric."""
        program = (
            f"import urllib.request as u; print(u.urlopen('http://127.0.0.1:{self.port}/metrics').read().decode())"
        )
        text = self.run("python", "-c", program)
        return [float(value) for value in re.findall(rf"^{name}(?:{{.*}})? (\S+)$", text, re.MULTILINE)]

    def epoch(self) -> float:
        return max(self.metrics("usp_config_epoch"), default=0.0)

    def published(self) -> int:
        return int(sum(self.metrics("usp_predictions_published_total")))

    def predictions(self) -> list[dict[str, object]]:
        """All that is published, in order within a symbol."""
        count = self.total + self.published()
        if not count:
            return []
        text = self.run(
            *("usp-daemon", "tail", "--json", "--topic", "predictions", "--from", "earliest"),
            *("--count", str(count)),
        )
        return [json.loads(line) for line in text.splitlines() if line.startswith("{")]

    def stop(self, *, expected: int) -> None:
        self.total += self.published()
        started = time.monotonic()
        call("podman", "stop", "--time", str(STOP_S), self.name)
        self.took = time.monotonic() - started
        expect("exit code after SIGTERM", self.wait(), expected)

    def wait(self) -> int:
        return int(call("podman", "wait", self.name).strip())

    def has_ended(self) -> bool:
        return call("podman", "inspect", "--format", "{{.State.Running}}", self.name).strip() == "false"

    def logs(self) -> str:
        done = subprocess.run(["podman", "logs", self.name], capture_output=True, text=True, check=True)
        return done.stdout + done.stderr

    def remove(self) -> None:
        subprocess.run(["podman", "rm", "--force", "--time", "5", self.name], capture_output=True, check=False)
        for kind in ("state", "cache"):
            subprocess.run(
                ["podman", "volume", "rm", "--force", f"{self.name}-{kind}"], capture_output=True, check=False
            )
        shutil.rmtree(self.directory)


@contextmanager
def container(image: str, servers: str, port: int, **environment: str) -> Iterator[Container]:
    one = Container(image, servers, port, **environment)
    try:
        yield one
    except CheckFailedError:
        print(one.logs()[-4000:], file=sys.stderr)
        raise
    finally:
        one.remove()


@contextmanager
def broker(port: int) -> Iterator[str]:
    """Apache Kafka on 127.0.0.1, from scripts/kafka.py."""
    with tempfile.TemporaryDirectory(prefix="usp-verify-kafka-") as directory:
        line = [sys.executable, str(ROOT / "scripts" / "kafka.py")]
        call(*line, "start", "--port", str(port), "--directory", directory)
        try:
            yield f"127.0.0.1:{port}"
        finally:
            call(*line, "stop", "--directory", directory)


def wait_for(what: str, holds: Callable[[], bool], timeout_s: float = READY_S) -> None:
    deadline = time.monotonic() + timeout_s
    while not holds():
        if time.monotonic() > deadline:
            raise CheckFailedError(f"{what} did not come within {timeout_s:.0f} s")
        time.sleep(0.5)


def in_image(image: str, *line: str) -> str:
    return call("podman", "run", "--rm", *HARDENED, "--entrypoint", line[0], image, *line[1:])


def call(*line: str, codes: tuple[int, ...] = (0,)) -> str:
    """What a command prints; :class:`CheckFailedError` if it ends with another code than expected."""
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    if done.returncode not in codes:
        raise CheckFailedError(f"{' '.join(line)}: {done.returncode}\n{done.stdout[-1000:]}{done.stderr[-2000:]}")
    return done.stdout


def expect(what: str, got: object, wanted: object) -> None:
    if got != wanted:
        raise CheckFailedError(f"{what}: {got!r} instead of {wanted!r}")


def passed(what: str, detail: str) -> None:
    print(f"ok  {what}: {detail}", flush=True)


def python_version() -> str:
    return "{}.{}".format(*sys.version_info[:2])


if __name__ == "__main__":
    sys.exit(main())
