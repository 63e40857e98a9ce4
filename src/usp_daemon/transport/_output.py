"""Which record goes to which output topic, with which time and headers: the same for every broker."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from usp_daemon.config import Kafka
from usp_daemon.wire import MAX_NOTE_BYTES, CommittedOffset, EncodedRecords, OutputBatch, TopicPartition

SOURCE_HEADER = "usp-source"


class OutputRecord(NamedTuple):
    """One record of an output topic; ``timestamp_ms`` is None where the client's clock stands for it."""

    timestamp_ms: int | None
    key: bytes | None
    value: bytes
    headers: Sequence[tuple[str, bytes]]


@dataclasses.dataclass(frozen=True, slots=True)
class Output:
    """One part of a batch and the topic it goes to. ``name`` is the part's name in :class:`OutputBatch`."""

    name: str
    topic: str
    records: EncodedRecords

    def __iter__(self) -> Iterator[OutputRecord]:
        records = self.records
        times = [time // 1_000_000 if time >= 0 else None for time in records.timestamps_ns]
        for index, (source, partition, offset) in enumerate(records.origins):
            headers = [(SOURCE_HEADER, f"{source}/{partition}/{offset}".encode("utf-8", "replace"))]
            if records.headers:
                headers += records.headers[index]
            yield OutputRecord(times[index] if times else None, records.keys[index], records.values[index], headers)


def outputs_of(batch: OutputBatch, topics: Kafka) -> list[Output]:
    """The parts of ``batch`` that hold records."""
    parts = [
        Output("predictions", topics.predictions_topic, batch.predictions),
        Output("alarms", topics.alarms_topic, batch.alarms),
        Output("dead_letters", topics.dead_letters_topic, batch.dead_letters),
    ]
    return [part for part in parts if len(part.records)]


def standing_after(batch: OutputBatch, partition: TopicPartition) -> CommittedOffset | None:
    """What to commit for ``partition``; None when the batch moves no offset.

    Raises ``ValueError`` for a position of another partition, and for a note that is too long.
    """
    others = set(batch.positions) - {partition}
    if others:
        raise ValueError(f"a batch for the writer of {partition} holds positions of {sorted(others)}")
    if len(batch.note.encode()) > MAX_NOTE_BYTES:
        raise ValueError(f"a note beside an offset may have {MAX_NOTE_BYTES} bytes, not {len(batch.note.encode())}")
    position = batch.positions.get(partition)
    return None if position is None else CommittedOffset(position, batch.note)
