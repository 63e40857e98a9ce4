"""``usp-daemon top``: what a running daemon says on ``/status.json``, in a terminal."""

import contextlib
import dataclasses
import json
import math
import pathlib
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Sequence
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from usp_daemon.config import ConfigSource, RunningDaemon, settings_as_far_as_right

_TIMEOUT_S = 5.0
_MAX_BYTES = 64 << 20
_BARS = "▁▂▃▄▅▆▇█"
_MODE_STYLES = {"Standard": "green", "Robust": "yellow", "Emergency": "bold red"}
_STATE_STYLES = {"RUNNING": "green", "FAILED": "bold red", "LOST": "bold red"}
_ROWS_WITHOUT_TERMINAL = 50
_ROWS_AROUND = 14  # lines that head and partitions take


class NoStatusError(Exception):
    """No daemon answers, or what answers is no daemon; the text says what was asked and what came."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TopOptions:
    """What to show. ``url`` None stands for the daemon that the configuration names. ``sort`` is symbol, alarm, mode
    or seq; ``filter`` a part of the symbol's name.
    """

    url: str | None = None
    config: pathlib.Path | None = None
    once: bool = False
    as_json: bool = False
    interval_s: float = 1.0
    sort: str = "symbol"
    filter: str = ""


def top(options: TopOptions, out: Console, *, sleep_fn: Callable[[float], None] = time.sleep) -> None:
    """Show the daemon's status, once or again and again until interrupted.

    A daemon that goes away while it is watched is waited for; one that does not answer at the start raises
    :class:`NoStatusError`. Raises ``ValueError`` for a URL that is none.
    """
    url = status_url(options.url) if options.url else url_of_running(options.config)
    status = fetch(url)
    if options.as_json:
        # ASCII: names of symbols come from outside, and a terminal obeys some characters.
        print(json.dumps(status))
        return
    if options.once or not out.is_terminal:
        out.print(shown(status, options, num_rows=_ROWS_WITHOUT_TERMINAL))
        return
    with contextlib.suppress(KeyboardInterrupt), Live(console=out, screen=True, auto_refresh=False) as live:
        problem = ""
        while True:
            num_rows = max(out.size.height - _ROWS_AROUND - len(status["partitions"]), 3)
            live.update(shown(status, options, num_rows=num_rows, problem=problem), refresh=True)
            sleep_fn(options.interval_s)
            try:
                status, problem = fetch(url), ""
            except NoStatusError as error:
                problem = str(error)


def status_url(url: str) -> str:
    """The address of the document for an address of the daemon, or a host and port. Raises ``ValueError``."""
    parts = urllib.parse.urlsplit(url if "://" in url else f"http://{url}")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"expected http://HOST:PORT, got {url!r}")
    path = parts.path.rstrip("/").removesuffix("/status.json").removesuffix("/status")
    return urllib.parse.urlunsplit((parts.scheme, parts.netloc, f"{path}/status.json", "", ""))


def url_of_running(config: pathlib.Path | None) -> str:
    """The address of the daemon that has this configuration: where it said it listens, else where it should."""
    settings = settings_as_far_as_right(ConfigSource(config))
    running = RunningDaemon.read(pathlib.Path(settings.io.state_path))
    port = settings.http.port
    if running is not None and running.is_alive and running.http_port:
        port = running.http_port
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]", "": "127.0.0.1"}.get(settings.http.host, settings.http.host)
    return status_url(f"http://{host}:{port}")


def fetch(url: str) -> dict[str, Any]:
    """The document at ``url``. Raises :class:`NoStatusError`."""
    # No proxy: the daemon is asked for by its own address.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=_TIMEOUT_S) as answer:
            body = answer.read(_MAX_BYTES)
        status = json.loads(body)
        version = status["schema_version"]
    except urllib.error.HTTPError as error:
        with error:
            hint = "is http.status on?" if error.code == 404 else error.read(300).decode("utf-8", "replace").strip()
        raise NoStatusError(f"{url} answers {error.code}: {hint}") from error
    except (OSError, TimeoutError) as error:
        reason = getattr(error, "reason", None) or error
        raise NoStatusError(f"no daemon answers at {url}: {reason}; is it running, and http.enabled?") from error
    except (ValueError, KeyError, TypeError) as error:
        raise NoStatusError(f"{url} does not answer as a usp-daemon does") from error
    if version != 1:
        raise NoStatusError(f"{url} speaks version {version} of the status, this command version 1")
    return status


def shown(status: dict[str, Any], options: TopOptions, *, num_rows: int, problem: str = "") -> Group:
    """The document for a terminal; at most ``num_rows`` symbols."""
    parts: list[Any] = [_head(status, problem)]
    if status["partitions"]:
        parts.append(_partitions(status))
    parts.append(_symbols(status, options, num_rows))
    return Group(*parts)


def _head(status: dict[str, Any], problem: str) -> Panel:
    service, totals, health = status["service"], status["totals"], status["health"]
    text = Text()
    if problem:
        text.append(f"{_clean(problem)}\n", "bold red")
    text.append("ready" if health["ready"] else "not ready", "green" if health["ready"] else "bold yellow")
    text.append(f"  up {_span(service['uptime_s'])}  {_clean(service['device'])}\n")
    for reason in health["reasons"]:
        text.append(f"  {_clean(reason)}\n", "yellow")
    text.append(f"{totals['ticks_per_s']:,.0f} ticks/s ", "bold")
    text.append(spark(totals["ticks_by_second"], width=30), "blue")
    text.append(
        f"  {totals['predictions']:,} predictions  {totals['symbols']:,} symbols  {totals['rejected']:,} refused  "
        f"{totals['dead_letters']:,} dead letters  "
    )
    text.append(f"{totals['alarms']:,} alarms", "bold red" if totals["alarms"] else "")
    if status["config"]:
        text.append(f"\nconfiguration epoch {status['config']['epoch']}, {status['config']['config_hash'][:12]}")
    if (tuner := status["tuner"]) and tuner["phase"] != "off":
        trials = f", trial {tuner['trials']} of {tuner['trials_total']}" if tuner["trials_total"] else ""
        text.append(f"  tuner {_clean(tuner['phase'])}{trials}")
    title = f"usp-daemon {service['version']}  {_clean(service['instance'])}  {_clean(service['group'])}".rstrip()
    return Panel(text, title=Text(title), title_align="left")


def _partitions(status: dict[str, Any]) -> Table:
    table = Table(box=None, header_style="bold", padding=(0, 2))
    for heading, justify in (("partition", "left"), ("state", "left"), ("lag", "right"), ("queue", "right")):
        table.add_column(heading, justify=justify, no_wrap=True)  # type: ignore[arg-type]
    table.add_column("snapshot", justify="right", no_wrap=True)
    for each in status["partitions"]:
        snapshot = "-"
        if each["snapshot_error"]:
            snapshot = f"failed: {_clean(each['snapshot_error'])}"
        elif each["snapshot"]:
            snapshot = f"{_span((status['generated_ns'] - each['snapshot']['time_ns']) / 1e9)} ago"
        table.add_row(
            Text(_clean(f"{each['topic']}/{each['partition']}")),
            Text(each["state"], _STATE_STYLES.get(each["state"], "yellow")),
            "-" if each["lag_records"] is None else f"{each['lag_records']:,}",
            f"{each['queued']:,}{' paused' if each['paused'] else ''}",
            Text(snapshot),
        )
    return table


def _symbols(status: dict[str, Any], options: TopOptions, num_rows: int) -> Table:
    keys: dict[str, Callable[[dict[str, Any]], Any]] = {
        "symbol": lambda each: each["symbol"],
        "alarm": lambda each: -(each["last_alarm"]["ts"] if each["last_alarm"] else -math.inf),
        "mode": lambda each: -("Standard", "Robust", "Emergency").index(each["mode"]),
        "seq": lambda each: -each["seq"],
    }
    found = [each for each in status["symbols"] if options.filter.lower() in each["symbol"].lower()]
    found.sort(key=lambda each: (keys[options.sort](each), each["symbol"]))
    table = Table(expand=True, box=None, header_style="bold")
    table.add_column("symbol", no_wrap=True, overflow="ellipsis")
    table.add_column("last ticks", no_wrap=True)
    for heading in ("value", "next", "80 %"):
        table.add_column(heading, justify="right", no_wrap=True)
    for heading in ("mode", "weights %", "last alarm"):
        table.add_column(heading, no_wrap=True)
    for each in found[:num_rows]:
        alarm = each["last_alarm"]
        low, high = each["interval_80"]
        table.add_row(
            Text(_clean(each["symbol"])),
            Text(spark(each["history"]["value"] if each["history"] else (), width=20), "blue"),
            _number(each["value"]),
            _number(each["prediction"]),
            f"{_number(low)} .. {_number(high)}",
            Text(each["mode"], _MODE_STYLES.get(each["mode"], "yellow")),
            " ".join(f"{100 * weight:.0f}" for weight in each["weights"]),
            Text(f"{' '.join(alarm['kinds'])}, seq {alarm['seq']:,}" if alarm else "-", "red" if alarm else "dim"),
        )
    if len(found) > num_rows:
        table.caption = f"and {len(found) - num_rows:,} more"
    return table


def spark(values: Sequence[float | None], *, width: int) -> str:
    """The last ``width`` values as a row of blocks, a space where one is missing."""
    last = list(values)[-width:]
    finite = [value for value in last if value is not None]
    if not finite:
        return ""
    low, spread = min(finite), (max(finite) - min(finite)) or 1.0
    return "".join(" " if value is None else _BARS[int((value - low) / spread * (len(_BARS) - 1))] for value in last)


def _clean(text: str) -> str:
    """The text without characters that a terminal would obey."""
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:,.6g}"


def _span(seconds: float) -> str:
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{max(seconds, 0.0):.0f} s"


def run_top(options: TopOptions) -> int:
    """The command: 0 shown, 2 no such URL or configuration, 3 no daemon answers."""
    out = Console(width=None if sys.stdout.isatty() else 160)
    try:
        top(options, out)
    except KeyboardInterrupt:
        return 0
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except NoStatusError as error:
        print(f"error: {_clean(str(error))}", file=sys.stderr)
        return 3
    return 0
