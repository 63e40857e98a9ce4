"""The broker as aiokafka sees it: records, transactions, faults of its processes."""

import asyncio
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from kafka_broker import VERSIONS, Broker, BrokerFailed
from kafka_broker.clients import admin, consume, create_topic, produce, producer

pytestmark = pytest.mark.kafka

VALUES = [b"%d" % number for number in range(100)]


async def leader(servers: str, topic: str) -> int:
    async with admin(servers) as client:
        (description,) = await client.describe_topics([topic])
    return description["partitions"][0]["leader"]


async def transactions(servers: str, topic: str) -> None:
    """One transaction that commits and one that does not are told apart by readers of committed records."""
    await create_topic(servers, topic)
    async with producer(servers, transactional_id=topic) as client:
        async with client.transaction():
            await client.send_and_wait(topic, b"committed", partition=0)
        with pytest.raises(ZeroDivisionError):
            async with client.transaction():
                await client.send_and_wait(topic, b"aborted", partition=0)
                raise ZeroDivisionError
    assert await consume(servers, topic, isolation_level="read_committed") == [b"committed"]
    assert await consume(servers, topic, isolation_level="read_uncommitted") == [b"committed", b"aborted"]


async def killed_and_restarted(broker: Broker, topic: str) -> None:
    """What was acknowledged before SIGKILL is there after a restart, at the same address."""
    servers = broker.bootstrap_servers
    await create_topic(servers, topic)
    await produce(servers, topic, VALUES)
    before = broker.daemon().pid
    broker.kill()
    assert broker.running == ()
    broker.start()
    assert broker.daemon().pid not in (None, before)
    assert broker.bootstrap_servers == servers
    assert await consume(servers, topic) == VALUES


async def test_transactions(kafka_bootstrap_servers: str, topic_name: Callable[..., str]) -> None:
    await transactions(kafka_bootstrap_servers, topic_name())


async def test_a_misspelt_topic_is_not_created(kafka_bootstrap_servers: str, topic_name: Callable[..., str]) -> None:
    topic = topic_name()
    async with producer(kafka_bootstrap_servers, request_timeout_ms=500) as client:
        with pytest.raises(Exception, match=r"(?i)metadata|unknown|timeout|timed"):
            await client.send_and_wait(topic, b"value")
    async with admin(kafka_bootstrap_servers) as client:
        assert topic not in await client.list_topics()


async def test_sigkill_loses_nothing(own_broker: Broker, topic_name: Callable[..., str]) -> None:
    await killed_and_restarted(own_broker, topic_name())


def thread_states(broker: Broker) -> list[str]:
    found = [task.read_text() for task in Path(f"/proc/{broker.daemon().pid}/task").glob("*/status")]
    return [state for text in found for state in re.findall(r"^State:\s+(\w)", text, re.MULTILINE)]


async def test_pause_and_resume_then_stop_and_start(own_broker: Broker, topic_name: Callable[..., str]) -> None:
    """A paused broker does not answer until it is resumed; a stopped one is started by another object with its data."""
    topic = topic_name()
    await create_topic(own_broker.bootstrap_servers, topic)
    async with producer(own_broker.bootstrap_servers) as client:
        await client.send_and_wait(topic, b"before")
        own_broker.pause()
        assert set(thread_states(own_broker)) == {"T"}
        waiting = await client.send(topic, b"during")
        done, _ = await asyncio.wait([waiting], timeout=0.5)
        assert not done
        own_broker.resume()
        await waiting
    own_broker.stop()
    assert own_broker.running == ()
    Broker.at(own_broker.directory).start()
    assert own_broker.running == (1,)
    assert await consume(own_broker.bootstrap_servers, topic) == [b"before", b"during"]


@pytest.mark.slow
async def test_three_nodes_outlive_one(make_broker: Callable[..., Broker], topic_name: Callable[..., str]) -> None:
    broker = make_broker(nodes=3)
    topic = topic_name()
    servers = broker.bootstrap_servers
    assert len(servers.split(",")) == 3
    await create_topic(servers, topic, replicas=3)
    await produce(servers, topic, VALUES[:50])
    first = await leader(servers, topic)
    broker.kill(first)
    assert set(broker.running) == set(broker.nodes) - {first}
    await produce(servers, topic, VALUES[50:])
    assert await consume(servers, topic) == VALUES
    assert await leader(servers, topic) != first
    broker.start(first)
    assert broker.running == broker.nodes


@pytest.mark.slow
async def test_transactions_over_three_nodes_of_the_older_version(
    make_broker: Callable[..., Broker], topic_name: Callable[..., str]
) -> None:
    await transactions(make_broker(nodes=3, version=VERSIONS[1]).bootstrap_servers, topic_name())


@pytest.mark.slow
async def test_the_older_version(make_broker: Callable[..., Broker], topic_name: Callable[..., str]) -> None:
    broker = make_broker(version=VERSIONS[1])
    await transactions(broker.bootstrap_servers, topic_name())
    await killed_and_restarted(broker, topic_name())


def test_settings_and_a_broker_that_cannot_start(make_broker: Callable[..., Broker]) -> None:
    broker = make_broker(settings={"message.max.bytes": 12345})
    assert "message.max.bytes = 12345" in broker.log().read_text("utf-8")
    broker.stop()
    with pytest.raises(BrokerFailed, match="take another directory"):
        Broker(broker.directory, nodes=3)
    stored = broker.directory / "node-1" / "data" / "meta.properties"
    stored.write_text(stored.read_text("ascii").replace("node.id=1", "node.id=7"), "ascii")
    with pytest.raises(BrokerFailed, match=r"(?s)(node 1 ended|no node runs).*node\W*id.*7"):
        broker.start()
    assert broker.running == ()
