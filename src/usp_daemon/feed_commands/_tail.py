"""``usp-daemon tail``: what the service has published, as any reader of committed records sees it."""

import asyncio
import dataclasses
import pathlib
from collections.abc import Callable, Sequence

from usp_daemon.config import load_settings
from usp_daemon.transport.kafka import MissingTopicsError, ReadRecord, RecordReader

from ._ends import signals, unless
from ._lines import TOPICS, Lines

_READ_S = 0.5
_RETRY_S = 1.0  # between two looks for topics that are not there


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TailOptions:
    """Which topics to read (names out of :data:`TOPICS`), from where, and how to show their records."""

    topics: Sequence[str] = TOPICS
    config: pathlib.Path | None = None
    from_beginning: bool = False
    symbol: str | None = None
    count: int | None = None
    as_json: bool = False
    colours: bool = False
    wait: bool = True


async def tail(options: TailOptions, write: Callable[[bytes], object], say: Callable[[str], object]) -> int:
    """Show records until ``count`` are shown or a signal comes; returns how many were.

    With ``wait`` topics that are not there are waited for, which ``say`` is told once; what comes into them is shown
    from their first record on. Raises ``ConfigError``, ``TransportError``, and whatever ``write`` raises.
    """
    settings = load_settings(options.config)
    lines = Lines(settings.kafka, colours=options.colours)
    topics = [lines.topic_of(name) for name in options.topics]
    shown = 0
    with signals() as stop:
        reader = RecordReader(settings.kafka, topics, from_beginning=options.from_beginning)
        try:
            awaited: set[str] = set()
            while not stop.first.is_set():
                try:
                    await unless(stop.first, reader.open())
                    break
                except MissingTopicsError as error:
                    if not options.wait:
                        raise
                    if not awaited:
                        say(f"waiting for topics that are not there yet; --no-wait ends instead. {error}")
                    awaited.update(error.topics)
                await unless(stop.first, asyncio.sleep(_RETRY_S))
                reader = RecordReader(settings.kafka, topics, from_beginning=options.from_beginning, new_topics=awaited)
            while not stop.first.is_set() and shown != options.count:
                records = await unless(stop.first, reader.read(_READ_S)) or []
                if options.symbol is not None:
                    name = options.symbol.encode("utf-8")
                    records = [record for record in records if record.key == name]
                if options.count is not None:
                    records = records[: options.count - shown]
                if records:
                    line_of = _json_line if options.as_json else lines.line
                    write(b"".join(line_of(record) for record in records))
                    shown += len(records)
        finally:
            await reader.close()
    return shown


def _json_line(record: ReadRecord) -> bytes:
    return (record.value if record.value is not None else b"null") + b"\n"
