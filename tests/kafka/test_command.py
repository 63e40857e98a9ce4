"""``scripts/kafka.py``, with the interpreter's own library only."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kafka_broker import Broker, free_port
from kafka_broker.clients import consume, create_topic, produce


class Command:
    def __init__(self, root: Path, directory: Path) -> None:
        self._line = [sys.executable, "-I", "-S", str(root / "scripts" / "kafka.py")]
        self.directory = directory

    def line(self, word: str, *options: str) -> list[str]:
        return [*self._line, word, "--directory", str(self.directory), *options]

    def run(self, word: str, *options: str, **environment: str) -> tuple[int, str]:
        done = subprocess.run(
            self.line(word, *options),
            env=os.environ | environment,
            capture_output=True,
            text=True,
            timeout=400,
            check=False,
        )
        return done.returncode, done.stdout + done.stderr


@pytest.fixture
def command(repository_root: Path, tmp_path: Path) -> Iterator[Command]:
    command = Command(repository_root, tmp_path / "brokers")
    yield command
    for file in command.directory.glob("*/broker.json"):
        Broker.at(file.parent).kill()


@pytest.mark.kafka
async def test_start_status_stop_and_start_again(command: Command, kafka_broker: Broker) -> None:
    del kafka_broker  # its absence has been dealt with
    port = str(free_port())
    servers = f"127.0.0.1:{port}"
    assert command.run("status")[0] == 1
    code, output = command.run("start", "--port", port)
    assert code == 0, output
    assert servers in output
    await create_topic(servers, "kept")
    await produce(servers, "kept", [b"value"])
    code, output = command.run("status")
    assert code == 0
    assert servers in output
    assert command.run("stop")[0] == 0
    assert command.run("status")[0] == 1

    with subprocess.Popen(
        command.line("start", "--port", port, "--foreground"),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        output = ""
        while "Ctrl-C" not in output:
            line = process.stdout.readline()
            assert line, output
            output += line
        assert await consume(servers, "kept") == [b"value"]
        process.send_signal(signal.SIGINT)
        assert "stopped" in process.stdout.read()
    assert process.returncode == 0
    assert command.run("status")[0] == 1


@pytest.mark.kafka
def test_taken_port(command: Command, kafka_broker: Broker) -> None:
    del kafka_broker
    with socket.socket() as holder:
        port = free_port()
        holder.bind(("127.0.0.1", port))
        holder.listen()
        code, output = command.run("start", "--port", str(port))
    assert code == 1
    assert output == f"kafka: port {port} for PLAINTEXT of node 1: Address already in use\n"


def test_missing_java(command: Command) -> None:
    code, output = command.run("start", JAVA_HOME="/nowhere")
    assert code == 1
    assert output.startswith("kafka: no java at /nowhere/bin/java; install a Java 17 runtime")
    assert len(output.splitlines()) == 1


def test_java_too_old(command: Command, tmp_path: Path) -> None:
    java = tmp_path / "old" / "bin" / "java"
    java.parent.mkdir(parents=True)
    java.write_text("#!/bin/sh\necho 'openjdk version \"1.8.0_412\"' >&2\n", "ascii")
    java.chmod(0o755)
    code, output = command.run("start", JAVA_HOME=str(tmp_path / "old"))
    assert code == 1
    assert "is Java 8, the broker needs 17 or newer" in output


def test_missing_maven(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from kafka_broker import BrokerUnavailable, _jars, fetch

    monkeypatch.setattr(_jars, "CACHE", tmp_path / "empty")
    monkeypatch.setattr(_jars, "java", lambda: "java")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BrokerUnavailable, match="no mvn on the path; install Maven"):
        fetch()
    assert not (tmp_path / "empty").exists()
