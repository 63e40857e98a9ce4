"""The fixtures: one broker for all workers, the environment's two variables, and what happens without Java."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from kafka_broker import Broker
from kafka_broker.fixtures import shared_broker

PIDS = """
import os, pathlib, time
import pytest

@pytest.mark.parametrize("number", range(4))
def test_shares(kafka_broker, number, tmp_path_factory):
    folder = pathlib.Path(os.environ["SEEN"])
    (folder / f"{os.getpid()}-{number}").write_text(str(kafka_broker.daemon().pid))
    # each worker has one test at least, because neither ends its first before the other begins
    deadline = time.monotonic() + 300
    while len({file.name.split("-")[0] for file in folder.iterdir()}) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.01)
"""
SERVERS = """
def test_servers(kafka_bootstrap_servers):
    assert kafka_bootstrap_servers == "elsewhere:1234"
"""


def run_pytest(folder: Path, root: Path, test: str, *options: str, **environment: str) -> tuple[int, str]:
    """Runs ``test`` in a process of its own with the fixtures and nothing else of this suite."""
    (folder / "test_it.py").write_text(test, "utf-8")
    (folder / "pytest.ini").write_text("[pytest]\n", "ascii")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "KAFKA_", "USP_"))}
    command = [sys.executable, "-m", "pytest", "-ra", "-p", "kafka_broker.fixtures", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, *options, "--basetemp", str(folder / "base"), "test_it.py"],
        cwd=folder,
        env=kept | {"PYTHONPATH": str(root / "tests")} | environment,
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.kafka
def test_workers_share_a_broker_that_ends_with_them(
    tmp_path: Path, repository_root: Path, kafka_broker: Broker
) -> None:
    del kafka_broker  # its absence has been dealt with
    seen = tmp_path / "seen"
    seen.mkdir()
    code, output = run_pytest(tmp_path, repository_root, PIDS, "-n", "2", SEEN=str(seen))
    assert code == 0, output
    files = list(seen.iterdir())
    assert len({file.name.split("-")[0] for file in files}) == 2
    assert len({file.read_text("ascii") for file in files}) == 1
    assert Broker.at(tmp_path / "base" / "kafka").running == ()


@pytest.mark.kafka
def test_the_last_user_stops_it(tmp_path: Path, kafka_broker: Broker) -> None:
    del kafka_broker
    with shared_broker(tmp_path) as first:
        with shared_broker(tmp_path) as second:
            assert first.daemon().pid == second.daemon().pid
        assert first.running == (1,)
    assert first.running == ()


def test_servers_from_the_environment(tmp_path: Path, repository_root: Path) -> None:
    code, output = run_pytest(tmp_path, repository_root, SERVERS, KAFKA_BOOTSTRAP_SERVERS="elsewhere:1234")
    assert code == 0, output


def test_without_java_a_test_is_skipped(tmp_path: Path, repository_root: Path) -> None:
    code, output = run_pytest(tmp_path, repository_root, SERVERS, JAVA_HOME="/nowhere")
    assert code == 0
    assert "1 skipped" in output
    assert "apt-get install default-jre-headless maven" in output


def test_without_java_a_required_broker_fails_the_test(tmp_path: Path, repository_root: Path) -> None:
    code, output = run_pytest(tmp_path, repository_root, SERVERS, JAVA_HOME="/nowhere", USP_REQUIRE_KAFKA="1")
    assert code == 1
    assert "USP_REQUIRE_KAFKA=1 and no broker" in output
    assert "skipped" not in output
