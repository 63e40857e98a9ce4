"""Every secured listener, with the settings an operator would write; and what is said when they are wrong."""

import asyncio
import dataclasses
import logging
import sys

import pytest

from group_worlds import KafkaWorld, Listener, read
from kafka_broker import VERSIONS, Broker, fetch, unsecured_token
from kafka_broker.fixtures import unavailable_is_skipped
from usp_daemon.config import Kafka
from usp_daemon.transport.kafka import KafkaTransport
from usp_daemon.wire import OutcomeUnknownError, TransportError

pytestmark = pytest.mark.kafka

ACLS = {
    "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
    "super.users": "User:ANONYMOUS",
}


@pytest.fixture(scope="module")
def secured(tmp_path_factory):
    with unavailable_is_skipped():
        fetch(VERSIONS[0])
        broker = Broker(tmp_path_factory.mktemp("secured"), security=True)
    broker.start()
    yield broker
    broker.kill()


@pytest.fixture(scope="module")
def forbidding(tmp_path_factory):
    with unavailable_is_skipped():
        broker = Broker(tmp_path_factory.mktemp("forbidding"), security=True, settings=ACLS)
    broker.start()
    yield broker
    broker.kill()


def options(broker, listener, **more):
    """Settings for one listener."""
    secrets = broker.credentials
    found = dict(
        bootstrap_servers=broker.listeners[listener],
        security_protocol={"MTLS": "SSL"}.get(listener, listener),
        ssl_ca_file=str(secrets.authority),
    )
    if listener == "MTLS":
        found |= dict(ssl_certificate_file=str(secrets.certificate), ssl_key_file=str(secrets.key))
    if listener.startswith("SASL"):
        found |= dict(sasl_username=secrets.user.name, sasl_password=secrets.user.password)
    return found | more


def provider():
    """What sasl_oauth_token_provider names."""

    class Provider:
        async def token(self):
            return unsecured_token("usp")

    return Provider()


async def round_trip(broker, **settings):
    async with KafkaWorld(broker.bootstrap_servers) as world:
        world.kafka_options |= settings
        transport, consumer, _ = await world.member()
        await world.produce(0, [b"x"])
        consumer.seek(world.partition(0), 0)
        assert await read(consumer, 1) == {world.partition(0): [(0, b"x")]}
        writer = await world.writer(transport, 0)
        await writer.publish(world.batch(0, 1, [b"p"]))
        assert await consumer.committed(world.partition(0)) == 1
        assert await world.predictions(0) == [b"p"]


@pytest.mark.parametrize("listener", ["SSL", "MTLS"])
async def test_tls(secured, listener):
    await round_trip(secured, **options(secured, listener))


@pytest.mark.parametrize(
    ("listener", "mechanism"),
    [("SASL_SSL", "PLAIN"), ("SASL_SSL", "SCRAM-SHA-512"), ("SASL_PLAINTEXT", "SCRAM-SHA-256")],
)
async def test_passwords_and_no_trace_of_them_in_the_log(secured, listener, mechanism, caplog):
    caplog.set_level(logging.DEBUG)
    await round_trip(secured, **options(secured, listener, sasl_mechanism=mechanism))
    assert "aiokafka" in caplog.text
    assert secured.credentials.user.password not in caplog.text


async def test_a_password_from_a_file(secured, tmp_path):
    path = tmp_path / "password"
    path.write_text(secured.credentials.user.password + "\n")
    await round_trip(secured, **options(secured, "SASL_SSL", sasl_password="", sasl_password_file=str(path)))


async def test_tokens(secured, monkeypatch):
    monkeypatch.setitem(sys.modules, "operators_tokens", sys.modules[__name__])
    settings = dict(sasl_mechanism="OAUTHBEARER", sasl_oauth_token_provider="operators_tokens:provider")
    await round_trip(secured, **options(secured, "SASL_SSL", **settings))


async def refused(settings, match, **more):
    transport = KafkaTransport(Kafka(**settings), start_timeout_s=4.0, **more)
    with pytest.raises(TransportError, match=match) as caught:
        await transport.prepare()
    return str(caught.value)


async def test_a_wrong_password_is_said_and_not_shown(secured):
    settings = options(secured, "SASL_SSL", sasl_password="wr0ng-secret")
    text = await refused(settings, "credentials of user 'usp' were refused")
    assert "wr0ng-secret" not in text
    assert "wr0ng-secret" not in repr(Kafka(**settings))


async def test_an_authority_that_is_not_trusted_is_said(secured):
    await refused(options(secured, "SSL", ssl_ca_file=""), "certificate is not trusted .*ssl_ca_file")


async def test_a_client_without_its_certificate_is_refused(secured):
    settings = options(secured, "MTLS", ssl_certificate_file="", ssl_key_file="", request_timeout_ms=1_000)
    await refused(settings, "no Kafka broker could be reached")


async def test_plaintext_against_tls_hints_at_the_protocol(secured):
    settings = dict(bootstrap_servers=secured.listeners["SSL"], request_timeout_ms=1_000)
    await refused(settings, "no Kafka broker could be reached")
    settings = options(secured, "SSL", bootstrap_servers=secured.bootstrap_servers, request_timeout_ms=1_000)
    await refused(settings, "security_protocol|no answer|reached")


@pytest.mark.parametrize(
    ("more", "match"),
    [
        ({"ssl_ca_file": "/nowhere"}, r"kafka\.ssl_ca_file = '/nowhere' cannot be read"),
        ({"ssl_key_file": __file__}, "ssl_certificate_file is not"),
        ({"ssl_key_password_file": "/nowhere"}, "ssl_key_password_file = '/nowhere' cannot be read: No such file"),
        ({"ssl_ca_file": __file__}, "not PEM"),
        ({"security_protocol": "SASL_SSL"}, "needs kafka.sasl_username and a password"),
        (
            {"security_protocol": "SASL_SSL", "sasl_username": "u", "sasl_password_file": "/nowhere"},
            "sasl_password_file = '/nowhere' cannot be read: No such file",
        ),
        ({"security_protocol": "SASL_SSL", "sasl_mechanism": "OAUTHBEARER"}, "module:factory"),
        (
            {
                "security_protocol": "SASL_SSL",
                "sasl_mechanism": "OAUTHBEARER",
                "sasl_oauth_token_provider": "no_such_module_x:f",
            },
            "cannot be used: ModuleNotFoundError",
        ),
        (
            {
                "security_protocol": "SASL_SSL",
                "sasl_mechanism": "OAUTHBEARER",
                "sasl_oauth_token_provider": "builtins:dict",
            },
            r"no coroutine token\(\)",
        ),
        ({"security_protocol": "PLAINTEXT", "bootstrap_servers": "broker"}, "'broker' is not host:port"),
    ],
)
async def test_settings_that_cannot_work_are_explained(more, match):
    await refused(dict(security_protocol="SSL") | more, match)


async def test_missing_rights_are_named(forbidding):
    """The user may log in and do nothing; the plaintext listener belongs to a super-user."""
    async with KafkaWorld(forbidding.bootstrap_servers) as world:
        await (await world.transport()).prepare()  # by the super-user, so that the topics are there
        world.kafka_options |= options(forbidding, "SASL_SSL")
        kafka = world.kafka()
        with pytest.raises(TransportError, match=r"missing topics|no right to see topic") as caught:
            await KafkaTransport(dataclasses.replace(kafka, create_topics=False), start_timeout_s=3.0).prepare()
        assert not isinstance(caught.value, OutcomeUnknownError)
        transport = KafkaTransport(kafka, close_timeout_s=1.0)
        with pytest.raises(TransportError, match=r"transactional ids that begin with .*delivery\.guarantee") as caught:
            await transport.writer(world.partition(0)).open()
        assert not isinstance(caught.value, OutcomeUnknownError)
        consumer = transport.consumer(Listener())
        try:
            await consumer.open()
            with pytest.raises(TransportError, match=r"no right to use (the consumer group|ticks)"):
                async with asyncio.timeout(20):
                    while True:
                        await consumer.poll(0.1, 10)
        finally:
            await consumer.close()
