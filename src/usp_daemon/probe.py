"""``python -m usp_daemon.probe [livez|readyz]``: asks the daemon of this host how it is; a container's health check.

Exit code 0 where it answers 200, 1 otherwise, with its answer. It needs nothing beyond the standard library and the
settings, so that it costs a tenth of a second. The port is the one that the running daemon has written into
``io.state_path``: a file edited since, wrong or not, does not matter; where nothing was written, it is ``http.port``.
"""

import contextlib
import http.client
import os
import pathlib
import sys
from collections.abc import Mapping, Sequence

from usp_daemon.config import ConfigError, ConfigSource, RunningDaemon, load_settings, settings_as_far_as_right

ENDPOINTS = ("livez", "readyz")
TIMEOUT_S = 4.0
_ANY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}


def address(environ: Mapping[str, str]) -> tuple[str, int]:
    """Host and port on which the daemon of these settings answers this host."""
    settings = settings_as_far_as_right(ConfigSource(None, environ))
    host = settings.http.host
    port = settings.http.port
    # a broken file leaves the sections beside [io] at their defaults; what the environment says stands all the same
    with contextlib.suppress(ConfigError):
        outside = {name: value for name, value in environ.items() if name.startswith("USP_HTTP__")}
        told = load_settings(None, outside | {"USP_CONFIG": os.devnull}).http
        host = told.host if "USP_HTTP__HOST" in environ else host
        port = told.port if "USP_HTTP__PORT" in environ else port
    running = RunningDaemon.read(pathlib.Path(settings.io.state_path))
    if running is not None and running.is_alive and running.http_port:
        port = running.http_port
    return _ANY_ADDRESS.get(host, host), port


def ask(host: str, port: int, endpoint: str) -> tuple[bool, str]:
    """Whether the endpoint answers 200, and what it says."""
    connection = http.client.HTTPConnection(host, port, timeout=TIMEOUT_S)
    try:
        connection.request("GET", f"/{endpoint}")
        answer = connection.getresponse()
        return answer.status == 200, answer.read(4096).decode("utf-8", "replace").strip()
    except (OSError, http.client.HTTPException) as error:
        return False, f"{host}:{port}: {error}"
    finally:
        connection.close()


def main(arguments: Sequence[str] | None = None, environ: Mapping[str, str] | None = None) -> int:
    """0 where it answers 200, 1 where it does not, 2 for wrong usage."""
    words = list(sys.argv[1:] if arguments is None else arguments) or ["livez"]
    if len(words) != 1 or words[0] not in ENDPOINTS:
        print(f"usage: python -m usp_daemon.probe [{'|'.join(ENDPOINTS)}]", file=sys.stderr)
        return 2
    ok, text = ask(*address(os.environ if environ is None else environ), words[0])
    print(text)
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
