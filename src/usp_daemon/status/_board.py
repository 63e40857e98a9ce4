"""The board: what is known of symbols, partitions and counts, in little memory, at next to no cost a tick.

Of a symbol that is not watched there are its name and a count.

Answers are put aside as they come, a few references each, and taken in together once there are enough of them or
somebody asks: a numpy call costs the same for ten rows as for a thousand.
"""

import collections
import dataclasses
import functools
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from usp_daemon.wire import ALARM_KIND_LABELS, GATE_REASON_LABELS, TopicPartition, labels_of_bits

from ._document import AlarmEvent, Partition, Snapshot
from ._memory import ALARM_COLUMNS, LAST_COLUMNS, RING_COLUMNS, SymbolMemory
from ._watch import WatchList

SECONDS = 60
MAX_RECENT_ALARMS = 50
# Answers that are put aside hold on to their batches, so that there must not be many.
_PENDING_ROWS = 2_048
_PENDING_ANSWERS = 64
_MAX_REASONS = 64


class Rows(Protocol):
    """The numbers behind some predictions, as the service's ``AnswerRows`` has them."""

    @property
    def symbols(self) -> Sequence[str]: ...
    @property
    def timestamps_ns(self) -> NDArray[np.int64]: ...
    @property
    def values(self) -> NDArray[np.float64]: ...
    def __len__(self) -> int: ...
    def column(self, name: str) -> NDArray[Any]: ...


class Answered(Protocol):
    """The part of the service's ``Answer`` that is used."""

    @property
    def rows(self) -> Rows: ...
    @property
    def reasons(self) -> Mapping[str, int]: ...
    @property
    def alarm_kinds(self) -> Sequence[int]: ...
    @property
    def refused_reasons(self) -> NDArray[np.int64]: ...


@dataclasses.dataclass(frozen=True, slots=True)
class BoardView:
    """The board as it was at one moment; nothing of it changes any more, so that any thread may read it."""

    now_s: float
    names: Sequence[str]
    owners: Sequence[TopicPartition | None]
    memory: SymbolMemory
    num_alarms: NDArray[np.int64]
    last_alarms: Sequence[AlarmEvent | None]
    recent_alarms: Sequence[AlarmEvent]
    partitions: Sequence[Partition]
    counts: Mapping[str, int]
    by_reason: Mapping[str, Mapping[str, int]]
    ticks_by_second: Sequence[int]
    watched_limit: int


class Board:
    """Keeps details of at most ``max_symbols`` symbols and counts of all. Told and read on one thread, the event
    loop's; ``clock_fn`` gives Unix seconds.
    """

    def __init__(self, max_symbols: int = 200, *, clock_fn: Callable[[], float] = time.time) -> None:
        self._clock_fn = clock_fn
        self._watch = WatchList(max_symbols)
        self._memory = SymbolMemory.empty(max_symbols)
        self._num_alarms = np.zeros(max_symbols, np.int64)
        self._last_alarms: list[AlarmEvent | None] = [None] * max_symbols
        self._recent: collections.deque[AlarmEvent] = collections.deque(maxlen=MAX_RECENT_ALARMS)
        self._partitions: dict[TopicPartition, Partition] = {}
        self._pending: list[tuple[TopicPartition, Rows]] = []
        self._num_pending = 0
        self._counts: collections.Counter[str] = collections.Counter()
        self._dead: collections.Counter[str] = collections.Counter()
        self._refused: collections.Counter[int] = collections.Counter()
        self._alarm_bits: collections.Counter[int] = collections.Counter()
        self._by_second = [0] * (SECONDS + 1)
        self._second = int(clock_fn())

    # --- told by the service

    def answered(self, partition: TopicPartition, answers: Sequence[Answered]) -> None:
        """These answers are published."""
        now = self._clock_fn()
        num_rows = 0
        for answer in answers:
            size = len(answer.rows)
            if answer.reasons:
                self._count_dead(answer.reasons)
            if size:
                num_rows += size
                self._pending.append((partition, answer.rows))
                refused = answer.refused_reasons
                if refused.any():
                    bits, counts = np.unique(refused[refused != 0], return_counts=True)
                    self._refused.update(dict(zip(bits.tolist(), counts.tolist(), strict=True)))
                    self._counts["rejected"] += int(counts.sum())
            if answer.alarm_kinds:
                self._counts["alarms"] += len(answer.alarm_kinds)
                self._alarm_bits.update(answer.alarm_kinds)
        self._counts["predictions"] += num_rows
        self._advance(now)
        self._by_second[self._second % (SECONDS + 1)] += num_rows
        held = self._partitions.get(partition)
        if held is not None:
            held.predictions += num_rows
            held.last_answer_ns = int(now * 1e9)
        self._num_pending += num_rows
        if self._num_pending >= _PENDING_ROWS or len(self._pending) >= _PENDING_ANSWERS:
            self._take_in(now)

    def partition_state(self, partition: TopicPartition, state: str | None) -> None:
        """The partition is now in ``state``; None when it is not held any more."""
        if state is None:
            self._take_in(self._clock_fn())
            self._partitions.pop(partition, None)
            for slot in self._watch.drop(partition):
                self._forget(slot)
            return
        held = self._partitions.get(partition)
        if held is None:
            held = self._partitions[partition] = Partition(
                topic=partition.topic, partition=partition.partition, state="", since_ns=0
            )
        if held.state != state:
            held.state, held.since_ns = state, int(self._clock_fn() * 1e9)
        if state == "RUNNING":
            held.replay_left = 0

    def update(self, partition: TopicPartition, **fields: Any) -> None:
        """Fields of :class:`Partition` have these values now; nothing for a partition that is not held."""
        held = self._partitions.get(partition)
        if held is not None:
            for name, value in fields.items():
                setattr(held, name, value)

    def snapshot_saved(self, partition: TopicPartition, seconds: float, size_bytes: int) -> None:
        """A snapshot was written."""
        now_ns = int(self._clock_fn() * 1e9)
        snapshot = Snapshot(time_ns=now_ns, seconds=seconds, size_bytes=size_bytes)
        self.update(partition, snapshot=snapshot, snapshot_error="")

    # --- asked

    def view(self) -> BoardView:
        """All of it, copied: a few hundred kilobytes at most."""
        now = self._clock_fn()
        self._take_in(now)
        self._advance(now)
        second = self._second
        counts = {name: self._counts[name] for name in ("predictions", "rejected", "alarms")}
        counts["dead_letters"] = self._dead.total()
        counts["symbols"] = sum(held.symbols for held in self._partitions.values())
        return BoardView(
            now_s=now,
            names=tuple(self._watch.names),
            owners=tuple(self._watch.partitions),
            memory=self._memory.copy(),
            num_alarms=self._num_alarms.copy(),
            last_alarms=tuple(self._last_alarms),
            recent_alarms=tuple(reversed(self._recent)),
            partitions=tuple(msgspec.structs.replace(held) for _, held in sorted(self._partitions.items())),
            counts=counts,
            by_reason={
                "rejected": _by_label(self._refused, GATE_REASON_LABELS),
                "alarms": _by_label(self._alarm_bits, ALARM_KIND_LABELS),
                "dead_letters": dict(self._dead),
            },
            # the second that has begun is not over
            ticks_by_second=[self._by_second[each % (SECONDS + 1)] for each in range(second - SECONDS, second)],
            watched_limit=self._watch.limit,
        )

    # --- taking in

    def _take_in(self, now: float) -> None:
        pending, self._pending, self._num_pending = self._pending, [], 0
        if not pending or not self._watch.limit:
            return
        found = [self._watch.rows_of(partition, rows.symbols) for partition, rows in pending]
        for (partition, rows), numbers in zip(pending, found, strict=True):
            alarmed = np.flatnonzero(rows.column("alarm_kind"))
            for slot in self._watch.admit(partition, numbers, alarmed, now):
                self._forget(slot)
        # only now: a symbol that came into a slot may have driven out one of an answer before
        slots = np.concatenate(
            [self._watch.slots_of(partition, numbers) for (partition, _), numbers in zip(pending, found, strict=True)]
        )
        columns: dict[str, NDArray] = {
            "ts": np.concatenate([rows.timestamps_ns for _, rows in pending]),
            "value": np.concatenate([rows.values for _, rows in pending]),
        }
        for name in RING_COLUMNS:
            columns[name] = np.concatenate([rows.column(name) for _, rows in pending])
        if (slots >= 0).any():
            self._memory.write(slots, columns, functools.partial(_last_columns, pending))
        alarmed = np.flatnonzero(columns["alarm_kind"])
        if alarmed.size:
            self._note_alarms(pending, slots, columns, alarmed)

    def _note_alarms(
        self,
        pending: Sequence[tuple[TopicPartition, Rows]],
        slots: NDArray[np.intp],
        columns: Mapping[str, NDArray],
        alarmed: NDArray[np.intp],
    ) -> None:
        np.add.at(self._num_alarms, slots[alarmed][slots[alarmed] >= 0], 1)
        firsts = np.cumsum([0] + [len(rows) for _, rows in pending])
        # Of very many only the last ones can be seen, of one symbol and of all.
        for row in alarmed[-max(MAX_RECENT_ALARMS, self._watch.limit) :].tolist():
            index = int(np.searchsorted(firsts, row, side="right")) - 1
            partition, rows = pending[index]
            inside = row - int(firsts[index])
            statistic, threshold, ticks_ago = (rows.column(name)[inside].item() for name in ALARM_COLUMNS)
            sequence, slot = int(columns["sequence"][row]), int(slots[row])
            start = max(sequence - max(ticks_ago, 0), 0)
            event = AlarmEvent(
                symbol=str(rows.symbols[inside]),
                partition=partition.partition,
                ts=int(columns["ts"][row]),
                seq=sequence,
                kinds=labels_of_bits(int(columns["alarm_kind"][row]), ALARM_KIND_LABELS),
                statistic=statistic,
                threshold=threshold,
                start_seq=start,
                start_ts=self._time_of(slot, start),
            )
            self._recent.append(event)
            if slot >= 0:
                self._last_alarms[slot] = event

    def _time_of(self, slot: int, sequence: int) -> int | None:
        """When the symbol's accepted tick ``sequence`` was; None where it is not remembered."""
        if slot < 0:
            return None
        places = self._memory.history(slot)
        found = np.flatnonzero(self._memory.rings["sequence"][slot, places] == sequence)
        return int(self._memory.rings["ts"][slot, places[found[0]]]) if found.size else None

    def _forget(self, slot: int) -> None:
        self._memory.forget(slot)
        self._num_alarms[slot] = 0
        self._last_alarms[slot] = None

    def _count_dead(self, reasons: Mapping[str, int]) -> None:
        for reason, count in reasons.items():
            self._dead[reason if reason in self._dead or len(self._dead) < _MAX_REASONS else "other"] += count

    def _advance(self, now: float) -> None:
        """Let the seconds pass in which nothing came; a clock that was set back stands still until it has caught up."""
        second = int(now)
        for each in range(max(self._second, second - SECONDS - 1) + 1, second + 1):
            self._by_second[each % (SECONDS + 1)] = 0
        self._second = max(self._second, second)


def _last_columns(pending: Sequence[tuple[TopicPartition, Rows]], wanted: NDArray[np.intp]) -> dict[str, NDArray[Any]]:
    """The columns of which only the last row of a symbol is kept, at the rows ``wanted`` of all answers together."""
    order = np.argsort(wanted)
    ascending = wanted[order]
    firsts = np.cumsum([0] + [len(rows) for _, rows in pending])
    bounds = np.searchsorted(ascending, firsts)
    # Mostly the last answers have them all, and the others are not looked into.
    parts = [
        (rows, ascending[bounds[index] : bounds[index + 1]] - firsts[index])
        for index, (_, rows) in enumerate(pending)
        if bounds[index] < bounds[index + 1]
    ]
    back = np.argsort(order)
    return {name: np.concatenate([rows.column(name)[inside] for rows, inside in parts])[back] for name in LAST_COLUMNS}


def _by_label(counts: Mapping[int, int], labels: Iterable[str]) -> dict[str, int]:
    """How often each bit was set, by its name, names that never were left out."""
    found = {label: sum(n for bits, n in counts.items() if bits >> bit & 1) for bit, label in enumerate(labels)}
    return {label: count for label, count in found.items() if count}
