"""Throw-away certificates and users for a broker's secured listeners. Nothing here protects anything."""

import base64
import json
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from kafka_broker._jars import BrokerUnavailable

# The certificates are made once per folder and may stay there for as long as a developer keeps it.
VALID_DAYS = 3650


@dataclass(frozen=True, kw_only=True)
class User:
    """One user of every SASL mechanism; OAUTHBEARER takes the name only."""

    name: str
    password: str


@dataclass(frozen=True, kw_only=True)
class Credentials:
    """What a client needs for the secured listeners: PEM files and a user.

    ``stranger_*`` are a certificate and key of another authority, which the broker must refuse.
    """

    authority: Path
    certificate: Path
    key: Path
    stranger_certificate: Path
    stranger_key: Path
    user: User

    def token(self, lifetime_s: float = 3600.0) -> str:
        """An OAUTHBEARER token of the user."""
        return unsecured_token(self.user.name, lifetime_s)


USER = User(name="usp", password="usp-password")


def unsecured_token(subject: str, lifetime_s: float = 3600.0) -> str:
    """An unsigned JSON web token (RFC 7515, appendix A.5), which Kafka's default OAUTHBEARER validator accepts.

    A negative ``lifetime_s`` gives one that expired.
    """
    now = time.time()
    claims = {"sub": subject, "iat": now + min(lifetime_s, 0.0) - 1.0, "exp": now + lifetime_s}

    def encoded(part: dict[str, object]) -> str:
        return base64.urlsafe_b64encode(json.dumps(part).encode("utf-8")).decode("ascii").rstrip("=")

    return f"{encoded({'alg': 'none'})}.{encoded(dict(claims))}."


def create(directory: Path) -> Credentials:
    """The credentials in ``directory``, made on the first call; raises ``BrokerUnavailable`` without openssl."""
    credentials = Credentials(
        authority=directory / "ca.pem",
        certificate=directory / "client.pem",
        key=directory / "client.key",
        stranger_certificate=directory / "stranger.pem",
        stranger_key=directory / "stranger.key",
        user=USER,
    )
    if not (directory / "server-keystore.pem").is_file():
        directory.mkdir(parents=True, exist_ok=True)
        _authority(directory, "ca")
        _authority(directory, "other-ca")
        _certificate(directory, "server", "ca", "localhost")
        _certificate(directory, "client", "ca", USER.name)
        _certificate(directory, "stranger", "other-ca", "stranger")
        # Kafka reads key and certificate from one file.
        pem = (directory / "server.key").read_bytes() + (directory / "server.pem").read_bytes()
        (directory / "server-keystore.pem").write_bytes(pem)
    return credentials


def _authority(directory: Path, name: str) -> None:
    _openssl(
        directory,
        *("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", str(VALID_DAYS)),
        *("-subj", f"/CN={name}", "-keyout", f"{name}.key", "-out", f"{name}.pem"),
        *("-addext", "keyUsage=critical,keyCertSign,cRLSign"),
    )


def _certificate(directory: Path, name: str, authority: str, common_name: str) -> None:
    _openssl(
        directory,
        *("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", f"/CN={common_name}"),
        *("-keyout", f"{name}.key", "-out", f"{name}.csr"),
    )
    (directory / f"{name}.extensions").write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\n", "ascii")
    _openssl(
        directory,
        *(
            "x509",
            "-req",
            "-in",
            f"{name}.csr",
            "-CA",
            f"{authority}.pem",
            "-CAkey",
            f"{authority}.key",
            "-CAcreateserial",
        ),
        *("-days", str(VALID_DAYS), "-extfile", f"{name}.extensions", "-out", f"{name}.pem"),
    )


def _openssl(directory: Path, *arguments: str) -> None:
    openssl = shutil.which("openssl")
    if openssl is None:
        raise BrokerUnavailable(
            "no openssl on the path; it makes the certificates of secured listeners: apt-get install openssl"
        )
    done = subprocess.run([openssl, *arguments], cwd=directory, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BrokerUnavailable(f"openssl {arguments[0]} failed: {done.stderr.strip()}")
