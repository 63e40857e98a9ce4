"""Which symbols are watched: at most so many, and those that an operator would ask for.

A symbol that alarms is watched from that tick on. Of the others the busiest are, by counts that are halved at every
review; one that is not watched takes another one's slot only where it is clearly busier, so that equally busy ones do
not drive each other out.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from usp_daemon.telemetry import Activity, grown
from usp_daemon.wire import TopicPartition

REVIEW_S = 10.0
ALARM_KEPT_S = 600.0
_CLEARLY = 2.0  # times as busy
_LEAST_TICKS = 3.0


class WatchList:
    """Slots 0 to ``limit`` - 1, each free or of one symbol of one partition. Times are seconds of one clock."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.names: list[str] = [""] * limit
        self.partitions: list[TopicPartition | None] = [None] * limit
        self._activity = Activity()
        self._rows = np.zeros(limit, np.intp)
        # by partition: the slot of each of its symbols, by the symbol's row in the activity, -1 where it is not watched
        self._slots: dict[TopicPartition, NDArray[np.intp]] = {}
        self._free = list(range(limit - 1, -1, -1))
        self._alarmed_at = np.full(limit, -np.inf)
        self._reviewed_at = -np.inf

    def __len__(self) -> int:
        return self.limit - len(self._free)

    @property
    def taken(self) -> list[int]:
        """The slots that are in use, ascending."""
        return [slot for slot, partition in enumerate(self.partitions) if partition is not None]

    def rows_of(self, partition: TopicPartition, symbols: Sequence[str]) -> NDArray[np.intp]:
        """The symbols as numbers, by which the other methods know them until the partition is dropped."""
        rows = self._activity.rows_of(partition, symbols)
        known = self._slots.get(partition)
        length = len(self._activity.names(partition))
        self._slots[partition] = np.full(length, -1, np.intp) if known is None else grown(known, length, -1)
        return rows

    def slots_of(self, partition: TopicPartition, rows: NDArray[np.intp]) -> NDArray[np.intp]:
        """The slot of each of these symbols, -1 where it is not watched."""
        return self._slots[partition][rows]

    def admit(
        self, partition: TopicPartition, rows: NDArray[np.intp], alarmed: NDArray[np.intp], now: float
    ) -> list[int]:
        """Count the ticks of a batch, and give slots to symbols that deserve them; returns those whose symbol is new.

        ``rows`` are the symbols of its ticks, ``alarmed`` the positions in it at which an alarm was declared.
        """
        new: list[int] = []
        if not self.limit:
            return new
        self._activity.count(partition, rows)
        slots = self._slots[partition]
        for row in rows[alarmed].tolist():
            slot = int(slots[row])
            if slot < 0:
                slot = self._take(partition, row, self._weakest(now, also_alarmed=True))
                new.append(slot)
            self._alarmed_at[slot] = now
        if self._free:
            for row in rows[slots[rows] < 0].tolist():
                if not self._free:
                    break
                if slots[row] < 0:
                    new.append(self._take(partition, row, self._free[-1]))
        elif now - self._reviewed_at >= REVIEW_S:
            new.extend(self._review(now))
        return new

    def drop(self, partition: TopicPartition) -> list[int]:
        """Watch no symbol of the partition any more; returns the slots that are free now."""
        dropped = [slot for slot, owner in enumerate(self.partitions) if owner == partition]
        for slot in dropped:
            self._clear(slot)
            self._free.append(slot)
        self._slots.pop(partition, None)
        self._activity.drop(partition)
        return dropped

    def _review(self, now: float) -> list[int]:
        self._reviewed_at = now
        counts = self._counts()
        new = []
        for busy in self._activity.review(self.limit):
            if self._slots[busy.partition][busy.row] >= 0:
                continue
            weakest = self._weakest(now, also_alarmed=False, counts=counts)
            if weakest < 0 or busy.count < max(_LEAST_TICKS, _CLEARLY * counts[weakest]):
                break
            new.append(self._take(busy.partition, busy.row, weakest))
            counts[weakest] = busy.count
        return new

    def _counts(self) -> NDArray[np.float64]:
        """How busy the symbol of each slot was lately; nothing where the slot is free."""
        counts = np.zeros(self.limit)
        for slot, (owner, row) in enumerate(zip(self.partitions, self._rows.tolist(), strict=True)):
            if owner is not None:
                counts[slot] = self._activity.counts(owner)[row]
        return counts

    def _weakest(self, now: float, *, also_alarmed: bool, counts: NDArray[np.float64] | None = None) -> int:
        """A free slot, else the least busy one that has not alarmed lately, else the one whose alarm is oldest."""
        if self._free:
            return self._free[-1]
        quiet = np.flatnonzero(self._alarmed_at < now - ALARM_KEPT_S)
        if quiet.size:
            counts = self._counts() if counts is None else counts
            return int(quiet[np.argmin(counts[quiet])])
        return int(np.argmin(self._alarmed_at)) if also_alarmed else -1

    def _take(self, partition: TopicPartition, row: int, slot: int) -> int:
        if self._free and slot == self._free[-1]:
            self._free.pop()
        else:
            former = self.partitions[slot]
            assert former is not None
            self._slots[former][self._rows[slot]] = -1
            self._clear(slot)
        self._slots[partition][row] = slot
        self.names[slot], self.partitions[slot] = self._activity.names(partition)[row], partition
        self._rows[slot] = row
        return slot

    def _clear(self, slot: int) -> None:
        self.names[slot], self.partitions[slot] = "", None
        self._alarmed_at[slot] = -np.inf
