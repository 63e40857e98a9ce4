"""Prometheus as a process of its own on a free port of the loopback, from Debian's package ``prometheus``."""

import json
import os
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

import pytest
import yaml

# Read here, because tests/conftest.py hides the developer's USP_* variables from tests.
REQUIRED = os.environ.get("USP_REQUIRE_PROMETHEUS") == "1"
PATIENCE_S = 60.0


def _binary(name):
    found = shutil.which(name)
    if found is None:
        reason = f"{name} (Debian package prometheus) is not installed"
        if REQUIRED:
            pytest.fail(f"USP_REQUIRE_PROMETHEUS=1 and {reason}", pytrace=False)
        pytest.skip(reason)
    return found


@pytest.fixture(scope="session")
def promtool():
    return _binary("promtool")


class Prometheus:
    """A server with the project's own rules; ``holds`` overrides the ``for`` of single alerts."""

    def __init__(self, binary, directory, root, targets, holds):
        self.directory = Path(directory)
        rules = []
        for path in sorted((root / "deploy/prometheus/rules").glob("*.yml")):
            content = yaml.safe_load(path.read_text("utf-8"))
            for group in content["groups"]:
                group["interval"] = "1s"
                for rule in group["rules"]:
                    if rule.get("alert") in holds:
                        rule["for"] = holds[rule["alert"]]
            rules.append(str(self.directory / path.name))
            Path(rules[-1]).write_text(yaml.safe_dump(content), "utf-8")
        config = yaml.safe_load((root / "deploy/prometheus/prometheus.yml").read_text("utf-8"))
        config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
        config["rule_files"] = rules
        config["scrape_configs"][0]["static_configs"] = [{"targets": targets}]
        (self.directory / "prometheus.yml").write_text(yaml.safe_dump(config), "utf-8")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.address = f"127.0.0.1:{probe.getsockname()[1]}"
        self.log = self.directory / "prometheus.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [
                    binary,
                    f"--config.file={self.directory / 'prometheus.yml'}",
                    f"--storage.tsdb.path={self.directory / 'data'}",
                    f"--web.listen-address={self.address}",
                    *_features(root),
                ],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        self.until(self._is_ready, "Prometheus is ready")

    def _is_ready(self):
        assert self.process.poll() is None, self.log.read_text(errors="replace")
        try:
            with urllib.request.urlopen(f"http://{self.address}/-/ready", timeout=5) as answer:
                return answer.status == 200
        except OSError:
            return False

    def api(self, path, **query):
        """What an endpoint of its API answers; a query that it refuses is an ``AssertionError`` with its reason."""
        url = f"http://{self.address}/api/v1/{path}?" + urllib.parse.urlencode(query, doseq=True)
        try:
            with urllib.request.urlopen(url, timeout=20) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{query}: {error.read().decode(errors='replace')}") from error

    def value(self, expression):
        """The first value of an instant query; None without a result."""
        result = self.api("query", query=expression)["result"]
        return float(result[0]["value"][1]) if result else None

    def firing(self):
        """Firing alerts by name."""
        return {a["labels"]["alertname"]: a for a in self.api("alerts")["alerts"] if a["state"] == "firing"}

    @staticmethod
    def until(condition_fn, what, patience_s=PATIENCE_S):
        """Wait until it is so, and return what was waited for."""
        deadline = time.monotonic() + patience_s
        while not (found := condition_fn()):
            assert time.monotonic() < deadline, f"not within {patience_s:g} s: {what}"
            time.sleep(0.2)
        return found

    def stop(self):
        self.process.terminate()
        self.process.wait(30)


def _features(root):
    """Those with which the compose file starts it."""
    services = yaml.safe_load((root / "deploy/compose.yaml").read_text("utf-8"))["services"]
    return [word for word in services["prometheus"]["command"] if word.startswith("--enable-feature=")]


@pytest.fixture
def make_prometheus(tmp_path, repository_root):
    """Starts a server that scrapes ``targets``."""
    binary, made = _binary("prometheus"), []

    def make(*targets, **holds):
        directory = tmp_path / f"prometheus-{len(made)}"
        directory.mkdir()
        made.append(Prometheus(binary, directory, repository_root, list(targets), holds))
        return made[-1]

    yield make
    for server in made:
        server.stop()
