"""Every secured listener lets the right client in and no other."""

import ssl
from collections.abc import Callable, Iterator

import pytest
from aiokafka.abc import AbstractTokenProvider
from aiokafka.errors import KafkaError

from kafka_broker import VERSIONS, Broker, Credentials, fetch, unsecured_token
from kafka_broker.clients import consume, create_topic, produce
from kafka_broker.fixtures import unavailable_is_skipped

pytestmark = pytest.mark.kafka

MECHANISMS = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER")


@pytest.fixture(
    scope="module", params=[VERSIONS[0], pytest.param(VERSIONS[1], marks=pytest.mark.slow)], ids="kafka-{}".format
)
def secured(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    with unavailable_is_skipped():
        fetch(request.param)
        broker = Broker(tmp_path_factory.mktemp("secured"), version=request.param, security=True)
    broker.start()
    yield broker
    broker.kill()


class Token(AbstractTokenProvider):
    def __init__(self, token: str) -> None:
        self._token = token

    async def token(self) -> str:
        return self._token


def tls(broker: Broker, *, client: str | None = None) -> dict[str, object]:
    """Options of a client that trusts the broker and shows ``client``'s certificate."""
    credentials = credentials_of(broker)
    context = ssl.create_default_context(cafile=credentials.authority)
    if client == "client":
        context.load_cert_chain(credentials.certificate, credentials.key)
    elif client == "stranger":
        context.load_cert_chain(credentials.stranger_certificate, credentials.stranger_key)
    return {"security_protocol": "SSL", "ssl_context": context}


def login(broker: Broker, mechanism: str, *, wrong: bool = False) -> dict[str, object]:
    user = credentials_of(broker).user
    if mechanism == "OAUTHBEARER":
        token = unsecured_token(user.name, -60.0 if wrong else 3600.0)
        return {"sasl_mechanism": mechanism, "sasl_oauth_token_provider": Token(token)}
    password = user.password + ("-not" if wrong else "")
    return {"sasl_mechanism": mechanism, "sasl_plain_username": user.name, "sasl_plain_password": password}


def credentials_of(broker: Broker) -> Credentials:
    assert broker.credentials is not None
    return broker.credentials


async def round_trip(broker: Broker, listener: str, topic: str, options: dict[str, object]) -> None:
    servers = broker.listeners[listener]
    await create_topic(servers, topic, **options)
    await produce(servers, topic, [b"a", b"b"], **options)
    assert await consume(servers, topic, **options) == [b"a", b"b"]


async def refused(broker: Broker, listener: str, topic: str, options: dict[str, object]) -> None:
    # On a refused token Kafka waits for the client to close and aiokafka waits for an answer: its timeout ends that.
    with pytest.raises(KafkaError):
        await produce(broker.listeners[listener], topic, [b"a"], request_timeout_ms=2000, **options)


async def test_tls(secured: Broker, topic_name: Callable[..., str]) -> None:
    await round_trip(secured, "SSL", topic_name(), tls(secured))


async def test_mutual_tls(secured: Broker, topic_name: Callable[..., str]) -> None:
    await round_trip(secured, "MTLS", topic_name(), tls(secured, client="client"))


@pytest.mark.parametrize("mechanism", MECHANISMS)
async def test_sasl_in_plaintext(secured: Broker, topic_name: Callable[..., str], mechanism: str) -> None:
    options = {"security_protocol": "SASL_PLAINTEXT"} | login(secured, mechanism)
    await round_trip(secured, "SASL_PLAINTEXT", topic_name(), options)


@pytest.mark.parametrize("mechanism", MECHANISMS)
async def test_sasl_over_tls(secured: Broker, topic_name: Callable[..., str], mechanism: str) -> None:
    options = tls(secured) | {"security_protocol": "SASL_SSL"} | login(secured, mechanism)
    await round_trip(secured, "SASL_SSL", topic_name(), options)


async def test_plaintext_beside_them(secured: Broker, topic_name: Callable[..., str]) -> None:
    await round_trip(secured, "PLAINTEXT", topic_name(), {})


@pytest.mark.parametrize("mechanism", MECHANISMS)
async def test_wrong_password_or_expired_token(secured: Broker, topic_name: Callable[..., str], mechanism: str) -> None:
    options = {"security_protocol": "SASL_PLAINTEXT"} | login(secured, mechanism, wrong=True)
    await refused(secured, "SASL_PLAINTEXT", topic_name(), options)


@pytest.mark.parametrize("client", [None, "stranger"])
async def test_mutual_tls_without_the_right_certificate(
    secured: Broker, topic_name: Callable[..., str], client: str | None
) -> None:
    await refused(secured, "MTLS", topic_name(), tls(secured, client=client))


async def test_client_that_does_not_trust_the_broker(secured: Broker, topic_name: Callable[..., str]) -> None:
    options = {"security_protocol": "SSL", "ssl_context": ssl.create_default_context()}
    await refused(secured, "SSL", topic_name(), options)


async def test_no_login_where_one_is_asked_for(secured: Broker, topic_name: Callable[..., str]) -> None:
    await refused(secured, "SASL_PLAINTEXT", topic_name(), {})
