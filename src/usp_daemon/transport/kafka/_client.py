"""What every Kafka client here is given: addresses, TLS and credentials. Secrets are read once and shown nowhere."""

import asyncio
import importlib
import inspect
import logging
import os
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

from aiokafka.abc import AbstractTokenProvider
from aiokafka.conn import AIOKafkaConnection
from aiokafka.errors import KafkaError
from aiokafka.helpers import create_ssl_context

from usp_daemon.config import Kafka
from usp_daemon.wire import TransportError

from ._watch import abort

# Between attempts; each of them writes lines to the log, so not too often.
RETRY_BACKOFF_MS = 250


class UnreachableError(TransportError):
    """No broker answered; ``may_pass`` tells one that is not up yet from one that refuses this client."""

    def __init__(self, message: str, may_pass: bool) -> None:
        super().__init__(message)
        self.may_pass = may_pass


def client_options(kafka: Kafka) -> dict[str, Any]:
    """The arguments that consumer, producer and admin client share.

    Raises :class:`TransportError` for a file that cannot be read or a token provider that cannot be had.
    """
    _keep_credentials_out_of_logs()
    options: dict[str, Any] = {
        "bootstrap_servers": [server.strip() for server in kafka.bootstrap_servers.split(",") if server.strip()],
        "client_id": kafka.client_id,
        "request_timeout_ms": kafka.request_timeout_ms,
        "retry_backoff_ms": RETRY_BACKOFF_MS,
        "security_protocol": kafka.security_protocol,
    }
    if "SSL" in kafka.security_protocol.split("_"):
        options["ssl_context"] = _ssl_context(kafka)
    if kafka.security_protocol.startswith("SASL_"):
        options |= _sasl_options(kafka)
    return options


def _ssl_context(kafka: Kafka) -> ssl.SSLContext:
    for key in ("ssl_ca_file", "ssl_certificate_file", "ssl_key_file"):
        path = getattr(kafka, key)
        if path and not os.access(path, os.R_OK):
            raise TransportError(f"kafka.{key} = {path!r} cannot be read")
    if kafka.ssl_key_file and not kafka.ssl_certificate_file:
        raise TransportError("kafka.ssl_key_file is set but kafka.ssl_certificate_file is not")
    try:
        context = create_ssl_context(
            cafile=kafka.ssl_ca_file or None,
            certfile=kafka.ssl_certificate_file or None,
            keyfile=kafka.ssl_key_file or None,
            # Never None: for a key that is encrypted, OpenSSL would ask the terminal.
            password=_password(kafka, "ssl_key_password"),
        )
    except (ssl.SSLError, OSError, ValueError) as error:
        raise TransportError(
            "the TLS files of [kafka] do not go together (not PEM, key of another certificate, or wrong "
            f"kafka.ssl_key_password or kafka.ssl_key_password_file): {error}"
        ) from error
    context.check_hostname = kafka.ssl_check_hostname
    return context


def _sasl_options(kafka: Kafka) -> dict[str, Any]:
    if kafka.sasl_mechanism == "OAUTHBEARER":
        return {
            "sasl_mechanism": kafka.sasl_mechanism,
            "sasl_oauth_token_provider": _TokenProvider(kafka.sasl_oauth_token_provider),
        }
    password = _password(kafka, "sasl_password")
    if not kafka.sasl_username or not password:
        raise TransportError(
            f"kafka.sasl_mechanism = {kafka.sasl_mechanism!r} needs kafka.sasl_username and a password, in "
            "kafka.sasl_password_file or USP_KAFKA__SASL_PASSWORD"
        )
    return {
        "sasl_mechanism": kafka.sasl_mechanism,
        "sasl_plain_username": kafka.sasl_username,
        "sasl_plain_password": password,
    }


def _password(kafka: Kafka, key: str) -> str:
    """The password under ``key``, or the first line of the file under ``key_file``; may be empty.

    Raises :class:`TransportError` for a file that cannot be read.
    """
    path = getattr(kafka, f"{key}_file")
    if not path:
        return getattr(kafka, key)
    try:
        return Path(path).read_text("utf-8").partition("\n")[0].rstrip("\r")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise TransportError(f"kafka.{key}_file = {path!r} cannot be read: {reason}") from None


class _TokenProvider(AbstractTokenProvider):
    """Passes on the tokens of the operator's object."""

    def __init__(self, target: str) -> None:
        module, _, name = target.partition(":")
        if not module or not name:
            raise TransportError(
                f'kafka.sasl_oauth_token_provider = {target!r} must be "module:factory" for sasl_mechanism OAUTHBEARER'
            )
        try:
            factory: Callable[[], Any] = getattr(importlib.import_module(module), name)
            self._provider = factory()
        except Exception as error:  # whatever the operator's module does when it is imported or called
            raise TransportError(
                f"kafka.sasl_oauth_token_provider = {target!r} cannot be used: {type(error).__name__}"
            ) from error
        if not inspect.iscoroutinefunction(getattr(self._provider, "token", None)):
            raise TransportError(f"what kafka.sasl_oauth_token_provider = {target!r} returns has no coroutine token()")

    async def token(self) -> str:
        return await self._provider.token()

    def extensions(self) -> dict[str, str]:
        extensions = getattr(self._provider, "extensions", None)
        return extensions() if extensions is not None else {}


class _NoCredentials(logging.Filter):
    """Drops aiokafka's debug lines that print requests of the SASL exchange, which hold passwords and tokens."""

    def filter(self, record: logging.LogRecord) -> bool:
        arguments = record.args if isinstance(record.args, tuple) else ()
        return not any(type(argument).__name__.startswith("Sasl") for argument in arguments)


_NO_CREDENTIALS = _NoCredentials()


def _keep_credentials_out_of_logs() -> None:
    logging.getLogger("aiokafka.conn").addFilter(_NO_CREDENTIALS)  # adding the same one again changes nothing


async def check_reachable(options: dict[str, Any]) -> None:
    """Connect to each bootstrap server until one answers and takes the credentials.

    aiokafka only logs why it cannot connect; here that is the message of the :class:`UnreachableError`.
    """
    reasons = []
    may_pass = True
    for server in options["bootstrap_servers"]:
        host, separator, port = server.rpartition(":")
        if not separator or not port.isdecimal():
            raise TransportError(f"kafka.bootstrap_servers: {server!r} is not host:port")
        connection = AIOKafkaConnection(
            host.strip("[]"),
            int(port),
            **{name: value for name, value in options.items() if name not in ("bootstrap_servers", "retry_backoff_ms")},
        )
        try:
            await connection.connect()
        except ssl.SSLCertVerificationError as error:
            may_pass = False
            reasons.append(
                f"{server}: its certificate is not trusted ({error.verify_message}); see kafka.ssl_ca_file and "
                "kafka.ssl_check_hostname"
            )
        except ssl.SSLError as error:
            reasons.append(f"{server}: TLS failed ({error.reason or error}); is kafka.security_protocol right?")
        except TimeoutError:
            reasons.append(f"{server}: no answer within {options['request_timeout_ms']} ms")
        except OSError as error:
            reasons.append(f"{server}: {error.strerror or error}")
        except KafkaError as error:
            may_pass = may_pass and not _is_refusal(error)
            reasons.append(f"{server}: {_refusal(error, options)}")
        else:
            return
        finally:
            # Also what aiokafka has begun to close itself: over TLS that waits for the other side.
            if (closed := abort(connection)) is not None:
                await asyncio.wait([closed], timeout=1.0)
    raise UnreachableError("no Kafka broker could be reached: " + "; ".join(reasons), may_pass)


def _is_refusal(error: KafkaError) -> bool:
    return any(word in type(error).__name__ for word in ("Sasl", "Authentication"))


def _refusal(error: KafkaError, options: dict[str, Any]) -> str:
    name = type(error).__name__
    if _is_refusal(error):
        return f"the credentials of user {options.get('sasl_plain_username', '')!r} were refused ({name})"
    return f"{name}; is kafka.security_protocol right?"
