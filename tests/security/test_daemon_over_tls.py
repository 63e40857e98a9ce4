"""``usp-daemon run`` itself over TLS: with a password, with a certificate; and no secret in anything that it leaves."""

import asyncio
import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from service_process import ChaosTimeoutError, ServiceProcess, produce, read_committed, seeded_ticks

from kafka_broker import VERSIONS, Broker, fetch
from kafka_broker.clients import create_topic
from kafka_broker.fixtures import unavailable_is_skipped

pytestmark = [pytest.mark.kafka, pytest.mark.slow]

NUM_RECORDS = 200
KEY_PASSWORD = "key-pass-phrase-5b1e"
ENDPOINTS = ("/", "/metrics", "/livez", "/readyz")


@pytest.fixture(scope="module")
def secured(tmp_path_factory):
    with unavailable_is_skipped():
        fetch(VERSIONS[0])
        broker = Broker(tmp_path_factory.mktemp("secured"), security=True)
    broker.start()
    yield broker
    broker.kill()


@pytest.fixture(scope="module")
def encrypted_key(secured, tmp_path_factory):
    """The client's private key under a password."""
    path = tmp_path_factory.mktemp("key") / "client.key"
    line = [shutil.which("openssl"), "pkcs8", "-topk8", "-in", secured.credentials.key, "-out", path]
    subprocess.run([*line, "-passout", f"pass:{KEY_PASSWORD}"], check=True, capture_output=True)
    assert b"ENCRYPTED" in path.read_bytes()
    return path


def scram(secured, **more):
    return {
        "USP_KAFKA__SECURITY_PROTOCOL": "SASL_SSL",
        "USP_KAFKA__SSL_CA_FILE": str(secured.credentials.authority),
        "USP_KAFKA__SASL_MECHANISM": "SCRAM-SHA-512",
        "USP_KAFKA__SASL_USERNAME": secured.credentials.user.name,
    } | more


def certificate(secured, key, **more):
    return {
        "USP_KAFKA__SECURITY_PROTOCOL": "SSL",
        "USP_KAFKA__SSL_CA_FILE": str(secured.credentials.authority),
        "USP_KAFKA__SSL_CERTIFICATE_FILE": str(secured.credentials.certificate),
        "USP_KAFKA__SSL_KEY_FILE": str(key),
    } | more


def in_a_file(directory: Path, text: str) -> str:
    path = directory / "credential"
    path.write_text(text + "\n")
    path.chmod(0o600)
    return str(path)


@pytest.mark.parametrize("way", ["scram-file", "scram-environment", "certificate-file", "certificate-environment"])
async def test_ticks_are_answered_and_no_secret_is_left_anywhere(secured, encrypted_key, tmp_path, way):
    password = secured.credentials.user.password
    settings = {
        "scram-file": lambda: scram(secured, USP_KAFKA__SASL_PASSWORD_FILE=in_a_file(tmp_path, password)),
        "scram-environment": lambda: scram(secured, USP_KAFKA__SASL_PASSWORD=password),
        "certificate-file": lambda: certificate(
            secured, encrypted_key, USP_KAFKA__SSL_KEY_PASSWORD_FILE=in_a_file(tmp_path, KEY_PASSWORD)
        ),
        "certificate-environment": lambda: certificate(
            secured, encrypted_key, USP_KAFKA__SSL_KEY_PASSWORD=KEY_PASSWORD
        ),
    }[way]()
    secret = (password if way.startswith("scram") else KEY_PASSWORD).encode()
    listener = "SASL_SSL" if way.startswith("scram") else "MTLS"
    plain = secured.bootstrap_servers
    await create_topic(plain, f"{way}.ticks", partitions=4)
    # debug: the lines of the clients as well
    replica = ServiceProcess(
        tmp_path / "daemon", secured.listeners[listener], group=f"group-{way}", prefix=way, USP_LOG__LEVEL="debug",
        **settings,
    )  # fmt: skip
    topics = [replica.environment[f"USP_KAFKA__{name}_TOPIC"] for name in ("PREDICTIONS", "ALARMS", "DEAD_LETTERS")]
    try:
        assert await replica.start().wait_ready(holding=4), replica.tail()
        await produce(plain, f"{way}.ticks", seeded_ticks(3, NUM_RECORDS))
        published = await all_answers(plain, topics, replica)
        pages = [(await asyncio.to_thread(replica.http, page))[1] for page in ENDPOINTS]
        command_line = Path(f"/proc/{replica.process.pid}/cmdline").read_bytes()
        assert await replica.stop() == 0
    finally:
        replica.discard()

    assert len(replica.events("partition_running")) == 4
    kept = [path for path in (tmp_path / "daemon").rglob("*") if path.is_file()]
    assert [path for path in kept if path.suffix == ".usp"]  # snapshots are among them
    assert [path for path in kept if secret in path.read_bytes()] == []
    assert secret not in b"".join(pages) + command_line
    assert not any(secret in record for record in published)


async def all_answers(servers, topics, replica, timeout_s=60.0):
    """Every byte that was published, once there is an answer to each record."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        found = [await read_committed(servers, topic) for topic in topics]
        records = [[record for partition in topic.values() for record in partition] for topic in found]
        if len(records[0]) + len(records[2]) == NUM_RECORDS:
            return [repr(record).encode() for topic in records for record in topic]
        await asyncio.sleep(0.2)
    raise ChaosTimeoutError(f"not all is answered\n{replica.tail()}")


@pytest.mark.parametrize("way", ["wrong-password", "strangers-certificate"])
async def test_the_daemon_ends_with_69_where_it_is_refused_and_does_not_show_why_it_was(secured, tmp_path, way):
    wrong = "not-the-pass-word-91"
    if way == "wrong-password":
        settings = scram(secured, USP_KAFKA__SASL_PASSWORD=wrong)
        servers = secured.listeners["SASL_SSL"]
    else:
        settings = certificate(secured, secured.credentials.stranger_key) | {
            "USP_KAFKA__SSL_CERTIFICATE_FILE": str(secured.credentials.stranger_certificate)
        }
        servers = secured.listeners["MTLS"]
    settings |= {"USP_SERVICE__START_TIMEOUT_S": "3", "USP_KAFKA__REQUEST_TIMEOUT_MS": "1000"}
    replica = ServiceProcess(tmp_path / "daemon", servers, group=f"group-{way}", prefix=way, **settings)
    try:
        assert await replica.start().ended(120.0) == 69, replica.tail()
    finally:
        replica.discard()
    assert wrong.encode() not in replica.log.read_bytes()
    assert os.listdir(replica.directory)  # what it left was looked at
