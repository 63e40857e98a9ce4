"""What to do next after an error of the command line, where there is one thing to try first."""

from usp_daemon.config import ConfigError

_CONFIG_HINT = "every key is explained in docs/configuration.md; `usp-daemon check-config` says when it is right"
_BROKER_HINT = (
    "start one with `make kafka`, or name yours: kafka.bootstrap_servers in the configuration, or "
    "USP_KAFKA__BOOTSTRAP_SERVERS=HOST:PORT"
)


def hint_for(error: BaseException) -> str | None:
    """A sentence on what to try first, None where the error's own text says it all."""
    if isinstance(error, ConfigError):
        return _CONFIG_HINT
    # Errors of packages that take long to import are told by what they say.
    text = str(error)
    return next((hint for words, hint in _BY_WORDS if words in text), None)


_BY_WORDS = (
    ("no Kafka broker could be reached", _BROKER_HINT),
    ("http.port", "another process listens there; choose another: USP_HTTP__PORT=9109 usp-daemon run"),
    ("no daemon has said", "is `usp-daemon run` running here, with the same configuration?"),
    ("no change that still stands", "`usp-daemon audit show` lists what was changed"),
    (
        "no configuration under",
        "`usp-daemon audit show` lists hashes; the service's log has its epochs (epoch_adopted)",
    ),
)
