"""Records that a broker has handed out, as the service takes them: the same for every broker."""

from collections.abc import Iterable, Sequence
from typing import Protocol

from usp_daemon.wire import NO_TIMESTAMP, RawBatch, TopicPartition

# A producer may give a record any time; beyond this one its nanoseconds are no 64-bit number.
MAX_TIMESTAMP_MS = (2**63 - 1) // 1_000_000


class InputRecord(Protocol):
    """What every broker's record has under the same names."""

    @property
    def offset(self) -> int:
        """Its place in the partition."""
        ...

    @property
    def key(self) -> bytes | None:
        """Its key."""
        ...

    @property
    def value(self) -> bytes | None:
        """Its value."""
        ...

    @property
    def headers(self) -> Sequence[tuple[str, bytes | None]]:
        """Its headers; Kafka allows one without a value."""
        ...


def raw_batch(partition: TopicPartition, records: Sequence[InputRecord], timestamps_ms: Iterable[int]) -> RawBatch:
    """Consecutive records of ``partition``, with each one's time."""
    return RawBatch(
        topic=partition.topic,
        partition=partition.partition,
        source=partition.topic,
        offsets=[record.offset for record in records],
        values=[record.value for record in records],
        keys=[record.key for record in records],
        headers=[[(name, value or b"") for name, value in record.headers] for record in records],
        record_timestamps_ns=[
            time * 1_000_000 if 0 <= time <= MAX_TIMESTAMP_MS else NO_TIMESTAMP for time in timestamps_ms
        ],
    )
