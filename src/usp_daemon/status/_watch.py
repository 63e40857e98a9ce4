"""Which symbols are watched: at most so many, and those that an operator would ask for.

A symbol that alarms is watched from that tick on. Of the others the busiest are, by counts that are halved at every
review; a symbol that is not watched can only be counted by sampling, because its ticks may not cost anything, and takes
another one's slot only where it is clearly busier, so that equally busy ones do not drive each other out.
"""

import collections
import itertools
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from usp_daemon.wire import TopicPartition

REVIEW_S = 10.0
ALARM_KEPT_S = 600.0
_SAMPLE, _ONE_IN = 32, 16  # unwatched ticks looked at in one call: at most so many, and one in so many
_CLEARLY = 2.0  # times as busy
_LEAST_SAMPLED = 3


class WatchList:
    """Slots 0 to ``limit`` - 1, each free or of one symbol of one partition. Times are seconds of one clock."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.names: list[str] = [""] * limit
        self.partitions: list[TopicPartition | None] = [None] * limit
        self._slots: dict[TopicPartition, dict[str, int]] = {}
        self._free = list(range(limit - 1, -1, -1))
        self._activity = np.zeros(limit)
        self._alarmed_at = np.full(limit, -np.inf)
        self._candidates: collections.Counter[tuple[TopicPartition, str]] = collections.Counter()
        self._sampled: collections.Counter[tuple[TopicPartition, str]] = collections.Counter()
        self._offset = 0
        self._reviewed_at = -np.inf

    def __len__(self) -> int:
        return self.limit - len(self._free)

    @property
    def taken(self) -> list[int]:
        """The slots that are in use, ascending."""
        return [slot for slot, partition in enumerate(self.partitions) if partition is not None]

    def slots_of(self, partition: TopicPartition, symbols: Sequence[str]) -> NDArray[np.intp]:
        """The slot of each symbol, -1 where it is not watched."""
        known: Mapping[str, int] = self._slots.get(partition, {})
        return np.fromiter(map(known.get, symbols, itertools.repeat(-1)), np.intp, len(symbols))

    def admit(
        self,
        partition: TopicPartition,
        symbols: Sequence[str],
        slots: NDArray[np.intp],
        alarmed: NDArray[np.intp],
        now: float,
    ) -> list[int]:
        """Give slots to symbols of a batch that deserve them; returns the slots whose symbol is new.

        ``slots`` are those of ``symbols``, ``alarmed`` the rows on which an alarm was declared. Where the
        list is not empty, the slots must be asked for again.
        """
        new: list[int] = []
        if not self.limit:
            return new
        for row in map(int, alarmed):
            slot = self._slots.get(partition, {}).get(symbols[row])
            if slot is None:
                slot = self._take(partition, symbols[row], self._weakest(now, also_alarmed=True))
                new.append(slot)
            self._alarmed_at[slot] = now
        unwatched = np.flatnonzero(slots < 0)
        if unwatched.size and self._free:
            for row in map(int, unwatched):
                if not self._free:
                    break
                if symbols[row] not in self._slots.get(partition, {}):
                    new.append(self._take(partition, symbols[row], self._free[-1]))
        elif unwatched.size:
            self._sample(partition, symbols, unwatched)
            if now - self._reviewed_at >= REVIEW_S:
                new.extend(self._review(now))
        return new

    def count(self, slots: NDArray[np.intp], counts: NDArray[np.intp]) -> None:
        """So many ticks came of the symbols in these slots, each named once."""
        self._activity[slots] += counts

    def drop(self, partition: TopicPartition) -> list[int]:
        """Watch no symbol of the partition any more; returns the slots that are free now."""
        dropped = list(self._slots.pop(partition, {}).values())
        for slot in dropped:
            self._clear(slot)
            self._free.append(slot)
        for table in (self._candidates, self._sampled):
            for key in [key for key in table if key[0] == partition]:
                del table[key]
        return dropped

    def _sample(self, partition: TopicPartition, symbols: Sequence[str], unwatched: NDArray[np.intp]) -> None:
        """Count some of the unwatched ticks, each for as many as it stands for."""
        step = max(unwatched.size // _SAMPLE, _ONE_IN)
        rows = unwatched[self._offset % step :: step]
        self._offset += 1
        for row in map(int, rows):
            key = (partition, symbols[row])
            if key not in self._candidates and len(self._candidates) >= 4 * self.limit:
                continue
            self._candidates[key] += step
            self._sampled[key] += 1

    def _review(self, now: float) -> list[int]:
        self._reviewed_at = now
        new = []
        for key, estimate in self._candidates.most_common(self.limit):
            partition, symbol = key
            # One that was watched meanwhile, because it alarmed, has its slot.
            if self._sampled[key] < _LEAST_SAMPLED or symbol in self._slots.get(partition, {}):
                continue
            weakest = self._weakest(now, also_alarmed=False)
            if weakest < 0 or estimate < _CLEARLY * self._activity[weakest]:
                break
            slot = self._take(partition, symbol, weakest)
            self._activity[slot] = estimate
            new.append(slot)
        self._activity *= 0.5
        self._candidates.clear()
        self._sampled.clear()
        return new

    def _weakest(self, now: float, *, also_alarmed: bool) -> int:
        """A free slot, else the least busy one that has not alarmed lately, else the one whose alarm is oldest."""
        if self._free:
            return self._free[-1]
        quiet = np.flatnonzero(self._alarmed_at < now - ALARM_KEPT_S)
        if quiet.size:
            return int(quiet[np.argmin(self._activity[quiet])])
        return int(np.argmin(self._alarmed_at)) if also_alarmed else -1

    def _take(self, partition: TopicPartition, symbol: str, slot: int) -> int:
        if self._free and slot == self._free[-1]:
            self._free.pop()
        else:
            former = self.partitions[slot]
            assert former is not None
            del self._slots[former][self.names[slot]]
            self._clear(slot)
        self._slots.setdefault(partition, {})[symbol] = slot
        self.names[slot], self.partitions[slot] = symbol, partition
        return slot

    def _clear(self, slot: int) -> None:
        self.names[slot], self.partitions[slot] = "", None
        self._activity[slot], self._alarmed_at[slot] = 0.0, -np.inf
