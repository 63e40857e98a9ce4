"""The settings of one node, as ``server.properties``."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from kafka_broker._security import User

CONTROLLER, PLAINTEXT, PROXIED = "CONTROLLER", "PLAINTEXT", "PROXIED"
# Listener to security protocol. MTLS is SSL that asks for the client's certificate.
SECURED = {"SSL": "SSL", "MTLS": "SSL", "SASL_PLAINTEXT": "SASL_PLAINTEXT", "SASL_SSL": "SASL_SSL"}
MECHANISMS = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER")


@dataclass(frozen=True, kw_only=True)
class Ports:
    """Where one node listens, and what it tells clients: listener name to port of 127.0.0.1.

    The two differ for ``PROXIED`` only, whose advertised port is for a proxy to listen on.
    """

    bound: Mapping[str, int]
    advertised: Mapping[str, int]


def properties(
    node: int,
    every: Sequence[Ports],
    data: Path,
    *,
    certificates: Path | None,
    user: User | None,
    overrides: Mapping[str, object],
) -> str:
    """``server.properties`` of ``node`` (counted from 1) in a cluster with one entry of ``every`` for each node."""
    ports = every[node - 1]
    replicas = len(every)
    in_sync = 2 if replicas > 1 else 1
    settings: dict[str, object] = {
        "process.roles": "broker,controller",
        "node.id": node,
        "controller.quorum.voters": ",".join(
            f"{number}@127.0.0.1:{one.bound[CONTROLLER]}" for number, one in enumerate(every, 1)
        ),
        "listeners": ",".join(f"{name}://127.0.0.1:{port}" for name, port in ports.bound.items()),
        "advertised.listeners": ",".join(f"{name}://127.0.0.1:{port}" for name, port in ports.advertised.items()),
        "listener.security.protocol.map": ",".join(f"{name}:{SECURED.get(name, PLAINTEXT)}" for name in ports.bound),
        "controller.listener.names": CONTROLLER,
        "inter.broker.listener.name": PLAINTEXT,
        "log.dirs": data,
        # A topic that a client misspells is an error here, as it is in production.
        "auto.create.topics.enable": "false",
        "num.partitions": 1,
        "default.replication.factor": replicas,
        "min.insync.replicas": in_sync,
        # A killed node may register again only once its old session ran out; the default is nine seconds.
        "broker.heartbeat.interval.ms": 500,
        "broker.session.timeout.ms": 3000,
        # Consumer groups: no wait for more members, and sessions as short as a test may want.
        "group.initial.rebalance.delay.ms": 0,
        "group.min.session.timeout.ms": 1000,
        # Open transactions that ran out are looked for every second instead of every ten.
        "transaction.abort.timed.out.transaction.cleanup.interval.ms": 1000,
        # Internal topics: one partition, so that the first use of a group or a transaction does not create fifty.
        "offsets.topic.num.partitions": 1,
        "offsets.topic.replication.factor": replicas,
        "transaction.state.log.num.partitions": 1,
        "transaction.state.log.replication.factor": replicas,
        "transaction.state.log.min.isr": in_sync,
        # Threads and buffers for two cores and a small heap; the cleaner alone would take 128 MiB of it.
        "num.network.threads": 2,
        "num.io.threads": 4,
        "background.threads": 2,
        "log.cleaner.dedupe.buffer.size": 4 * 1024 * 1024,
    }
    if certificates is not None and user is not None:
        settings |= _secured(certificates, user)
    settings |= overrides
    return "".join(f"{key}={value}\n" for key, value in settings.items())


def _secured(certificates: Path, user: User) -> dict[str, object]:
    settings: dict[str, object] = {
        "ssl.keystore.type": "PEM",
        "ssl.keystore.location": certificates / "server-keystore.pem",
        "ssl.truststore.type": "PEM",
        "ssl.truststore.location": certificates / "ca.pem",
        "listener.name.mtls.ssl.client.auth": "required",
        "sasl.enabled.mechanisms": ",".join(MECHANISMS),
    }
    security = "org.apache.kafka.common.security"
    token = f"{security}.oauthbearer.OAuthBearerLoginModule"
    logins = {
        "plain": f'{security}.plain.PlainLoginModule required user_{user.name}="{user.password}";',
        "scram-sha-256": f"{security}.scram.ScramLoginModule required;",
        "scram-sha-512": f"{security}.scram.ScramLoginModule required;",
        # The option makes the listener's own login succeed; clients bring their own token.
        "oauthbearer": f'{token} required unsecuredLoginStringClaim_sub="broker";',
    }
    for listener in ("sasl_plaintext", "sasl_ssl"):
        for mechanism, login in logins.items():
            settings[f"listener.name.{listener}.{mechanism}.sasl.jaas.config"] = login
    return settings


def scram_users(user: User) -> list[str]:
    """The options of ``StorageTool format`` that write the user into a new cluster's metadata."""
    options = []
    for mechanism in ("SCRAM-SHA-256", "SCRAM-SHA-512"):
        options += ["--add-scram", f"{mechanism}=[name={user.name},password={user.password}]"]
    return options
