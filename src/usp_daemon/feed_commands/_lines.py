"""Records and ticks as lines for people."""

import base64
import datetime
from collections.abc import Callable

import msgspec

from usp_daemon.config import Kafka
from usp_daemon.transport.kafka import ReadRecord
from usp_daemon.wire import Alarm, DeadLetter, Prediction

# The output topics by the names that the command line has for them.
TOPICS = ("predictions", "alarms", "dead-letters")

_SHOWN_CHARACTERS = 80
_SHOWN_BASE64 = 4 * _SHOWN_CHARACTERS  # whole groups of four
_RED, _YELLOW, _DIM, _PLAIN = "\x1b[31m", "\x1b[33m", "\x1b[2m", "\x1b[0m"


class Lines:
    """Records as lines for people."""

    def __init__(self, kafka: Kafka, *, colours: bool) -> None:
        topics = (kafka.predictions_topic, kafka.alarms_topic, kafka.dead_letters_topic)
        self._topics: dict[str, str] = dict(zip(TOPICS, topics, strict=True))
        self._forms: dict[str, tuple[Callable[[ReadRecord], str], str]] = {
            kafka.predictions_topic: (_prediction_line, ""),
            kafka.alarms_topic: (_alarm_line, _RED),
            kafka.dead_letters_topic: (_dead_letter_line, _YELLOW),
        }
        self._colours = colours

    def topic_of(self, name: str) -> str:
        """The topic that goes by ``name`` out of :data:`TOPICS`."""
        return self._topics[name]

    def line(self, record: ReadRecord) -> bytes:
        """One line, with its end."""
        form_fn, colour = self._forms[record.topic]
        try:
            text = form_fn(record)
        except (msgspec.MsgspecError, UnicodeDecodeError, ValueError):
            where = f"{record.topic}/{record.partition}/{record.offset}"
            text, colour = f"{where}: no record that this version can read (--json shows it)", _DIM
        if self._colours and colour:
            text = f"{colour}{text}{_PLAIN}"
        return text.encode("utf-8", "replace") + b"\n"


def _prediction_line(record: ReadRecord) -> str:
    found = msgspec.json.decode(record.value or b"", type=Prediction)
    lower, upper = map(shown_number, found.intervals.p80)
    line = (
        f"{shown_tick(found.symbol, found.ts, found.value)}  next {shown_number(found.prediction)}  "
        f"80% [{lower}, {upper}]  {printable(found.mode)}"
    )
    if not found.accepted:
        line += f"  refused: {printable(', '.join(found.gate_reasons))}"
    return line


def _alarm_line(record: ReadRecord) -> str:
    found = msgspec.json.decode(record.value or b"", type=Alarm)
    return (
        f"{shown_tick(found.symbol, found.ts, found.value)}  ALARM {printable(', '.join(found.kinds))}: "
        f"{found.statistic:.4g} above {found.threshold:.4g}, began about {found.start_ticks_ago} ticks ago"
    )


def _dead_letter_line(record: ReadRecord) -> str:
    found = msgspec.json.decode(record.value or b"", type=DeadLetter)
    original = found.original if found.encoding == "utf-8" else repr(base64.b64decode(found.original[:_SHOWN_BASE64]))
    when = shown_time(record.timestamp_ms * 1_000_000) if record.timestamp_ms >= 0 else " " * len(shown_time(0))
    return (
        f"{when}  {shown_name((record.key or b'').decode('utf-8', 'replace'))}  dead letter {found.reason.value}: "
        f"{printable(found.message)} ({printable(found.source)}/{found.partition}/{found.offset}: "
        f"{printable(original)})"
    )


def shown_tick(symbol: str, time_ns: int, value: float | None) -> str:
    """Time, symbol and value: how every line begins."""
    return f"{shown_time(time_ns)}  {shown_name(symbol)}  {shown_number(value)}"


def shown_time(unix_ns: int) -> str:
    """Date and time in UTC, to the millisecond."""
    seconds, rest = divmod(unix_ns, 1_000_000_000)
    moment = datetime.datetime.fromtimestamp(seconds, datetime.UTC)
    return f"{moment:%Y-%m-%d %H:%M:%S}.{rest // 1_000_000:03d}"


def shown_number(value: float | None) -> str:
    """Seven digits, or a dash where there is none."""
    return "-" if value is None else f"{value:.7g}"


def shown_name(symbol: str) -> str:
    """A symbol, as wide as most are."""
    return f"{printable(symbol):<16}"


def printable(text: str) -> str:
    """Part of ``text``, without anything that a terminal would obey: a topic may hold whatever somebody has sent."""
    short = text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}..."
    return short if short.isprintable() else repr(short)[1:-1]
