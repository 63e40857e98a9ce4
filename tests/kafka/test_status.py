"""A real daemon beside the broker says at ``/status`` and ``/status.json`` what it was fed, and under which epoch."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import orjson
import pytest

from chaos import service_process as chaos

pytestmark = [pytest.mark.kafka, pytest.mark.slow]

TICKS_PER_SYMBOL = 30
SYMBOLS = {f"s{number}": number % chaos.NUM_PARTITIONS for number in range(6)}  # and the partition of each
BROKEN = b"{"


@pytest.fixture
def replica(kafka_bootstrap_servers: str, topic_name: Callable[..., str], tmp_path: Path) -> Iterator[Any]:
    made = chaos.ServiceProcess(tmp_path / "r0", kafka_bootstrap_servers, group="g", prefix=topic_name("status"))
    yield made
    made.discard()


def status(replica: Any) -> dict[str, Any]:
    code, body = replica.http("/status.json")
    assert code == 200
    return json.loads(body)


async def until(condition: Callable[[], Any], replica: Any) -> Any:
    deadline = time.monotonic() + 120.0
    while not (found := await asyncio.to_thread(condition)):
        assert replica.alive and time.monotonic() < deadline, replica.tail()
        await asyncio.sleep(0.1)
    return found


async def test_what_was_fed_is_on_the_page_and_the_way_back_leads_to_the_first_epoch(
    replica: Any, kafka_bootstrap_servers: str, repository_root: Path
) -> None:
    topic = replica.environment["USP_KAFKA__INPUT_TOPIC"]
    await chaos.create_topics(kafka_bootstrap_servers, topic.removesuffix(".ticks"), ["g"])
    config = replica.directory / "config" / "config.toml"
    config.parent.mkdir()
    config.write_text("# the first\n[orchestration]\ncusum_k = 0.5\n")
    first = config.read_bytes()
    assert await replica.start().wait_ready(holding=chaos.NUM_PARTITIONS), replica.tail()

    began_ms = time.time_ns() // 1_000_000
    records, last = [], {}
    for number in range(TICKS_PER_SYMBOL):
        for symbol, partition in SYMBOLS.items():
            stamp_ms = began_ms + number
            last[symbol] = (100.0 + number + 0.25 * partition, stamp_ms * 1_000_000)
            value = orjson.dumps({"symbol": symbol, "ts": last[symbol][1], "value": last[symbol][0]})
            records.append((partition, symbol.encode(), value, stamp_ms))
    records.append((0, b"x", BROKEN, began_ms))
    await chaos.produce(kafka_bootstrap_servers, topic, records)
    await chaos.wait_answered(kafka_bootstrap_servers, replica)

    code, page = replica.http("/status")
    assert code == 200 and page.startswith(b"<!doctype html>")

    def settled() -> dict | None:
        now = status(replica)
        done = now["totals"]["predictions"] == len(records) - 1 and all(
            p["lag_records"] == 0 for p in now["partitions"]
        )
        return now if done else None

    found = await until(settled, replica)
    (schema,) = (repository_root / "docs" / "schemas").glob("status*.json")
    jsonschema.validate(found, json.loads(schema.read_text("utf-8")))
    assert found["health"]["ready"] and await replica.metric("usp_ready") == 1.0
    assert (found["totals"]["dead_letters"], found["totals"]["symbols"]) == (1, len(SYMBOLS))
    partitions = {each["partition"]: each for each in found["partitions"]}
    assert set(partitions) == set(range(chaos.NUM_PARTITIONS))
    for number, each in partitions.items():
        own = [symbol for symbol, partition in SYMBOLS.items() if partition == number]
        assert (each["topic"], each["state"], each["lag_records"]) == (topic, "RUNNING", 0)
        assert (each["symbols"], each["predictions"]) == (len(own), len(own) * TICKS_PER_SYMBOL)
    shown = {each["symbol"]: each for each in found["symbols"]}
    assert {symbol: each["partition"] for symbol, each in shown.items()} == SYMBOLS
    assert {symbol: (each["value"], each["ts"]) for symbol, each in shown.items()} == last
    assert found["config"]["epoch"] == 1
    published = (await chaos.outputs(kafka_bootstrap_servers, replica))["PREDICTIONS"]
    (answered_under,) = {json.loads(value)["config_hash"] for part in published.values() for _, value, _, _ in part}
    assert found["config"]["config_hash"] == answered_under

    config.write_text("# the second, by a person\n[orchestration]\ncusum_k = 0.6\n")
    os.kill(replica.process.pid, signal.SIGHUP)
    await until(lambda: status(replica)["config"]["epoch"] == 2, replica)
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "usp_daemon.cli", "rollback", "--to", "1", "--config", str(config)],
        cwd=replica.directory, env=os.environ | replica.environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "orchestration.cusum_k: 0.6 -> 0.5" in done.stdout
    assert config.read_bytes() == first
    back = await until(lambda: (now := status(replica)["config"])["epoch"] == 3 and now, replica)
    assert back["config_hash"] == answered_under
    assert await replica.stop() == 0, replica.tail()
