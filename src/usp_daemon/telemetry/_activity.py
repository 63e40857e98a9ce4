"""Which symbols are the busiest: an index of every partition's symbols, and how often each came lately."""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from usp_daemon.wire import TopicPartition


class Busy(NamedTuple):
    """A symbol, its row in its partition, and its count."""

    count: float
    partition: TopicPartition
    row: int
    symbol: str


class _Symbols:
    """Those of one partition, in the order in which they first came."""

    def __init__(self) -> None:
        self.index: dict[str, int] = {}
        self.names: list[str] = []
        self.counts = np.zeros(256)


class Activity:
    """Counts ticks by partition and symbol; what lies further back counts half at each :meth:`review`.

    Memory is that of one name and one number for each symbol, and goes with the partition. Not to be used from several
    threads at once.
    """

    def __init__(self) -> None:
        self._partitions: dict[TopicPartition, _Symbols] = {}

    def rows_of(self, partition: TopicPartition, symbols: Sequence[str]) -> NDArray[np.intp]:
        """The row of each symbol in its partition; a new symbol gets the next one."""
        known = self._partitions.get(partition)
        if known is None:
            known = self._partitions[partition] = _Symbols()
        index = known.index
        rows = np.fromiter(map(index.get, symbols, itertools.repeat(-1)), np.intp, len(symbols))
        if (new := np.flatnonzero(rows < 0)).size:
            for position in new.tolist():
                symbol = symbols[position]
                row = index.setdefault(symbol, len(index))
                if row == len(known.names):
                    known.names.append(symbol)
                rows[position] = row
            known.counts = grown(known.counts, len(index))
        return rows

    def count(self, partition: TopicPartition, rows: NDArray[np.intp]) -> None:
        """A tick came of the symbol in each of these rows."""
        np.add.at(self._partitions[partition].counts, rows, 1.0)

    def counts(self, partition: TopicPartition) -> NDArray[np.float64]:
        """By row, as they stand; at least as long as there are symbols."""
        return self._partitions[partition].counts

    def names(self, partition: TopicPartition) -> Sequence[str]:
        """The symbol of each row; nothing for a partition of which nothing came."""
        known = self._partitions.get(partition)
        return () if known is None else known.names

    def review(self, limit: int) -> list[Busy]:
        """The ``limit`` symbols with the highest counts, highest first; of equal ones those that came first."""
        ranking: list[Busy] = []
        for partition, known in self._partitions.items():
            counts = known.counts[: len(known.names)]
            for row in np.argsort(-counts, kind="stable")[:limit].tolist():
                ranking.append(Busy(float(counts[row]), partition, row, known.names[row]))
            known.counts *= 0.5
        return sorted(ranking, key=lambda busy: -busy.count)[:limit]

    def drop(self, partition: TopicPartition) -> None:
        """Forget the partition's symbols. Harmless when repeated."""
        self._partitions.pop(partition, None)


def grown(array: NDArray, length: int, fill: float = 0.0) -> NDArray:
    """``array`` if its last axis has ``length`` or more, else a copy that has, and room for twice as many."""
    size = array.shape[-1]
    if length <= size:
        return array
    larger = np.full((*array.shape[:-1], max(length, 2 * size)), fill, array.dtype)
    larger[..., :size] = array
    return larger
