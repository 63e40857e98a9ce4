"""Pytest fixtures for tests on a real broker; ``tests/conftest.py`` registers them for every folder.

Mark a test that takes one ``kafka``. Where no broker can run it is skipped, or fails under ``USP_REQUIRE_KAFKA=1``.
"""

import fcntl
import itertools
import os
import re
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kafka_broker import VERSIONS, Broker, BrokerUnavailable, fetch

SERVERS, REQUIRED = "KAFKA_BOOTSTRAP_SERVERS", "USP_REQUIRE_KAFKA"


@pytest.fixture(scope="session")
def kafka_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """One plaintext broker of one node for all tests and all workers. To stop or kill one, take ``own_broker``."""
    with unavailable_is_skipped():
        fetch(VERSIONS[0])
    # With pytest-xdist each worker has a folder of its own in one that they share.
    base = tmp_path_factory.getbasetemp()
    with shared_broker(base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) as broker:
        yield broker


@contextmanager
def shared_broker(folder: Path) -> Iterator[Broker]:
    """A broker in ``folder`` that the first process to come starts and the last one to go stops.

    Every user holds a shared lock on one file; whoever gets it exclusively on leaving is the last. The kernel drops the
    lock of a process that dies, so nobody is counted who is not there.
    """
    with (folder / "kafka-users").open("w") as users, (folder / "kafka-change").open("w") as change:
        fcntl.flock(change, fcntl.LOCK_EX)
        fcntl.flock(users, fcntl.LOCK_SH)
        broker = Broker(folder / "kafka")
        try:
            broker.start()
        finally:
            fcntl.flock(change, fcntl.LOCK_UN)
        try:
            yield broker
        finally:
            fcntl.flock(change, fcntl.LOCK_EX)
            try:
                fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                pass
            else:
                broker.stop()


@pytest.fixture(scope="session")
def kafka_bootstrap_servers(request: pytest.FixtureRequest) -> str:
    """Where to connect in plaintext: ``KAFKA_BOOTSTRAP_SERVERS`` if set, else the shared broker."""
    given = os.environ.get(SERVERS)
    if given:
        return given
    return request.getfixturevalue("kafka_broker").bootstrap_servers


@pytest.fixture
def make_broker(tmp_path: Path) -> Iterator[Callable[..., Broker]]:
    """Starts brokers for this test alone, from the arguments of ``Broker`` but its directory; kills them afterwards."""
    made: list[Broker] = []

    def make(**options: object) -> Broker:
        with unavailable_is_skipped():
            fetch(str(options.get("version", VERSIONS[0])))
            broker = Broker(tmp_path / f"kafka-{len(made)}", **options)  # type: ignore[arg-type]
        made.append(broker)
        broker.start()
        return broker

    yield make
    for broker in made:
        # nobody reads these data again, so there is no reason to wait for an orderly end
        broker.kill()


@pytest.fixture
def own_broker(make_broker: Callable[..., Broker]) -> Broker:
    """A broker of one node for this test alone, to stop, kill or pause; with a listener for a ``Proxy``."""
    return make_broker(proxied=True)


@pytest.fixture
def topic_name(request: pytest.FixtureRequest) -> Callable[..., str]:
    """Makes topic names no other test uses, from this test's name and a given word."""
    test = re.sub(r"[^A-Za-z0-9]+", "-", request.node.name).strip("-")[:60]
    run = uuid.uuid4().hex[:8]
    counter = itertools.count(1)

    def name(word: str = "topic") -> str:
        return f"{test}.{run}.{next(counter)}.{word}"

    return name


@contextmanager
def unavailable_is_skipped() -> Iterator[None]:
    """Skips the test where no broker can run, or fails it under ``USP_REQUIRE_KAFKA=1``."""
    try:
        yield
    except BrokerUnavailable as error:
        if os.environ.get(REQUIRED) == "1":
            pytest.fail(f"{REQUIRED}=1 and no broker: {error}", pytrace=False)
        pytest.skip(f"no broker: {error}")
