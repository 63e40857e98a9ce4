"""The broker of compose.yaml: a real Kafka starts from its settings and makes the topics."""

import asyncio
import re
import subprocess
import time
from pathlib import Path

import pytest
import yaml
from aiokafka.admin import NewTopic
from aiokafka.errors import KafkaError

from kafka_broker import _jars, fetch, free_port
from kafka_broker.clients import admin
from kafka_broker.fixtures import unavailable_is_skipped

pytestmark = pytest.mark.kafka

ROOT = Path(__file__).resolve().parents[2]
SERVICES = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text("utf-8"))["services"]
VERSION = SERVICES["kafka"]["image"].rpartition(":")[2]


def properties(environment: dict[str, str], data: Path, ports: dict[int, int]) -> str:
    """As the image makes server.properties of KAFKA_*; other ports, and this host in place of the compose network."""
    lines = []
    for name, value in environment.items():
        if name.startswith("KAFKA_"):
            for written, free in ports.items():
                value = value.replace(f":{written}", f":{free}")
            key = name.removeprefix("KAFKA_").lower().replace("_", ".")
            lines.append(f"{key}={data if key == 'log.dirs' else value.replace('kafka:', 'localhost:')}\n")
    return "".join(lines)


def topics() -> list[NewTopic]:
    """What the script of the service ``topics`` makes. Kafka's own tool for it is not among the test's jars."""
    script = SERVICES["topics"]["command"][0].replace("\\\n", " ")
    partitions, replicas = (
        int(re.findall(rf"--{name} (\d+)", script)[0]) for name in ("partitions", "replication-factor")
    )
    return [
        NewTopic(name, partitions, replicas, topic_configs=dict(re.findall(r"--config ([a-z.]+)=(\S+)", rest)))
        for name, rest in re.findall(r"^\s*create ([a-z-]+)(.*)$", script, re.MULTILINE)
    ]


async def test_kafka_starts_from_the_settings_and_takes_the_topics(tmp_path: Path) -> None:
    with unavailable_is_skipped():
        fetch(VERSION)
        java = _jars.java()
    environment = SERVICES["kafka"]["environment"]
    ports = {19092: free_port(), 9092: free_port(), 9093: free_port()}
    text = properties(environment, tmp_path / "data", ports)
    # the loopback address only: the container's own network is not this host's
    text = re.sub(r"^listeners=.*$", lambda line: line[0].replace("://:", "://127.0.0.1:"), text, flags=re.MULTILINE)
    file = tmp_path / "server.properties"
    file.write_text(text)
    line = [java, "-Xms64m", "-Xmx384m", "-XX:TieredStopAtLevel=1", "-cp", ":".join(map(str, _jars.jars(VERSION)))]
    done = subprocess.run(
        [*line, "kafka.tools.StorageTool", "format", "-t", environment["CLUSTER_ID"], "-c", str(file)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    with (tmp_path / "log").open("wb") as log:
        broker = subprocess.Popen([*line, "kafka.Kafka", str(file)], stdout=log, stderr=log, cwd=tmp_path)
    try:
        await answers(f"127.0.0.1:{ports[9092]}", broker, tmp_path / "log")
        for listener in (9092, 19092):  # what is advertised leads back to it
            async with admin(f"127.0.0.1:{ports[listener]}") as client:
                if listener == 9092:
                    made = await client.create_topics(topics())
                    assert [error[1] for error in made.topic_errors] == [0, 0, 0, 0], made
                described = await client.describe_topics()
    finally:
        broker.kill()
        broker.wait(30)
    found = {each["topic"]: len(each["partitions"]) for each in described if not each["topic"].startswith("__")}
    assert found == dict.fromkeys(("ticks", "predictions", "alarms", "dead-letters"), 4)


async def answers(servers: str, broker: subprocess.Popen[bytes], log: Path, timeout_s: float = 120.0) -> None:
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            async with admin(servers):
                return
        except KafkaError:
            assert broker.poll() is None and time.monotonic() < deadline, log.read_text()[-2000:]
            await asyncio.sleep(0.2)
