"""Reading records whose header names are no UTF-8: what is wrong in them becomes replacement characters.

aiokafka's reader raises for such a record, and so for every later one of its batch, which would stop the partition for
ever. Any producer can send one. The slower reader in Python, with decoding that cannot fail, then takes its place for a
while.
"""

from typing import Any

from aiokafka.consumer import fetcher
from aiokafka.record.default_records import _DefaultRecordBatchPy
from aiokafka.record.memory_records import _MemoryRecordsPy

LENIENT_ANSWERS = 256  # answers of brokers that are read so before the fast reader is tried again
HEADERS_SINCE_MAGIC = 2  # the form of a batch that can hold headers

_FastRecords = fetcher.MemoryRecords
_remaining = 0


class _Text(bytes):
    def decode(self, encoding: str = "utf-8", errors: str = "replace") -> str:
        return super().decode(encoding, "replace")


class _Buffer(bytearray):
    """Bytes whose slices decode without fail."""

    def __getitem__(self, index: Any) -> Any:
        part = super().__getitem__(index)
        return _Text(part) if isinstance(index, slice) else part


class _LenientBatch(_DefaultRecordBatchPy):  # pyright: ignore[reportGeneralTypeIssues]  # final, but all there is
    def _maybe_uncompress(self) -> None:
        super()._maybe_uncompress()
        if not isinstance(self._buffer, _Buffer):
            self._buffer = _Buffer(self._buffer)


class _LenientRecords(_MemoryRecordsPy):  # pyright: ignore[reportGeneralTypeIssues]
    def next_batch(self, *_: Any) -> Any:
        batch = self._next_slice
        if batch is None or len(batch) <= self.MAGIC_OFFSET or batch[self.MAGIC_OFFSET] < HEADERS_SINCE_MAGIC:
            return super().next_batch()
        self._cache_next()
        return _LenientBatch(batch)


def _records(data: bytes) -> Any:
    global _remaining
    if _remaining <= 0:
        return _FastRecords(data)
    _remaining -= 1
    return _LenientRecords(data)


def read_headers_leniently() -> None:
    """Use the slower reader for the next answers, in every consumer of this process."""
    global _remaining
    _remaining = LENIENT_ANSWERS
    fetcher.MemoryRecords = _records  # type: ignore[misc,assignment]
