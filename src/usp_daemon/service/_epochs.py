"""Configuration epochs: which settings answer which records, so that a replay answers as it was answered.

An epoch is one set of predictor settings under a number. Epochs live in a log that all replicas of a group read; a
replica proposes by appending, and obeys what the log says. Where in a partition an epoch began is committed with that
partition's offset, in the note beside it, by whoever owned the partition then: atomically with the first answers given
under it. So whoever recovers the partition knows for every record under which settings it was answered.

    note   {"epochs": [[1, 0], [4, 5200]]}    offsets 0 to 5199 under epoch 1, from 5200 on under epoch 4
"""

import asyncio
import bisect
import dataclasses
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from usp_daemon.persistence import AbstractEpochLog, Epoch, PersistenceError
from usp_daemon.telemetry import get_logger
from usp_daemon.wire import ResultEncoder

_log = get_logger(__name__)

Value = float | int | bool | str

# In a note, which the broker bounds; snapshots are taken at every change, so replays begin far later than that.
MAX_NOTED = 64


class EpochError(Exception):
    """An epoch cannot be used: the log does not have it, or nothing can be made of its settings."""


@dataclasses.dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class ProgramEpoch:
    """An epoch made ready: its settings, and what steps and encodes under them.

    ``settings`` are the traced and structural keys by dotted path, ``config_hash`` their hash, which stands in every
    record; ``parameters`` goes to the predictor; ``identity`` is all that must agree for the same bits. ``number`` is
    0 for settings that are known from a snapshot only.
    """

    number: int
    settings: Mapping[str, Value]
    config_hash: str
    parameters: Any
    identity: Mapping[str, str | int]
    encoder: ResultEncoder


class Switches:
    """Where in one partition which epoch began: pairs of number and first offset, ascending in both."""

    def __init__(self, pairs: Sequence[tuple[int, int]] = ()) -> None:
        self._pairs = [(int(number), int(first)) for number, first in pairs]
        ascending = all(a[0] < b[0] and a[1] < b[1] for a, b in zip(self._pairs, self._pairs[1:], strict=False))
        if not ascending or any(number < 1 or first < 0 for number, first in self._pairs):
            raise ValueError(f"epochs and their first offsets must ascend, got {self._pairs}")

    @classmethod
    def from_note(cls, note: str) -> "Switches":
        """Reads a note; an empty one names no epoch. Raises ``ValueError`` for what is not a note of this service."""
        if not note:
            return cls()
        try:
            pairs = json.loads(note)["epochs"]
            return cls([(number, first) for number, first in pairs])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"the note beside the committed offset is not this service's: {note[:200]!r}") from error

    def note(self, below: int) -> str:
        """The note for the committed offset ``below``: the epochs that began before it."""
        pairs = [[number, first] for number, first in self._pairs if first < below] or self._pairs[:1]
        return json.dumps({"epochs": pairs[-MAX_NOTED:]}, separators=(",", ":")) if pairs else ""

    def append(self, number: int, first: int) -> None:
        """From offset ``first`` on it is epoch ``number``; one that never answered anything is replaced."""
        while self._pairs and self._pairs[-1][1] >= first:
            self._pairs.pop()
        self._pairs.append((number, first))
        del self._pairs[: -2 * MAX_NOTED]

    def at(self, offset: int) -> int | None:
        """The number in force at ``offset``; None when that is before the first one known."""
        index = bisect.bisect_right(self._pairs, offset, key=lambda pair: pair[1])
        return self._pairs[index - 1][0] if index else None

    def next_after(self, offset: int) -> int | None:
        """The first offset above ``offset`` at which another epoch begins; None when there is none."""
        index = bisect.bisect_right(self._pairs, offset, key=lambda pair: pair[1])
        return self._pairs[index][1] if index < len(self._pairs) else None

    @property
    def is_full(self) -> bool:
        """Whether older ones may have been left out of the note that this was read from."""
        return len(self._pairs) >= MAX_NOTED

    @property
    def last(self) -> int | None:
        """The number that began last."""
        return self._pairs[-1][0] if self._pairs else None

    def numbers(self, start: int, stop: int) -> list[int]:
        """The numbers in force anywhere in ``start`` to ``stop``, in order."""
        found = [] if (first := self.at(start)) is None else [first]
        return found + [number for number, begun in self._pairs if start < begun < stop]


MakeFn = Callable[[Epoch], Awaitable[ProgramEpoch]]


class EpochBook:
    """The epochs of the group as this replica knows them; ``current`` is the one that new records are answered under.

    ``make_fn`` makes an epoch ready: it may compile, and may take minutes. Until it is done the former epoch stays.
    """

    def __init__(
        self,
        log: AbstractEpochLog,
        make_fn: MakeFn,
        *,
        instance: str = "",
        now_ns_fn: Callable[[], int] = lambda: 0,
        adopted_fn: Callable[[ProgramEpoch], None] = lambda epoch: None,
    ) -> None:
        self._epoch_log = log
        self._make_fn = make_fn
        self._instance = instance
        self._now_ns_fn = now_ns_fn
        self._adopted_fn = adopted_fn
        self._known: dict[int, Epoch] = {}
        self._ready: dict[int, ProgramEpoch] = {}
        self._making: dict[int, asyncio.Task[ProgramEpoch]] = {}
        self._current: ProgramEpoch | None = None

    @property
    def current(self) -> ProgramEpoch:
        """What new records are answered under."""
        assert self._current is not None, "open() was not awaited"
        return self._current

    @property
    def newest(self) -> Epoch:
        """The last epoch of the log, as last read; it becomes ``current`` once it is ready."""
        return self._known[max(self._known)]

    @property
    def epochs(self) -> tuple[Epoch, ...]:
        """All epochs of the log, as last read."""
        return tuple(self._known[number] for number in sorted(self._known))

    async def open(
        self, settings: Mapping[str, Value], config_hash: str, base_hash: str, *, has_changed: bool | None = None
    ) -> ProgramEpoch:
        """Read the log, propose ``settings`` where that is due, and make the newest epoch the current one.

        ``base_hash`` stands for what the operator wrote. ``has_changed`` says whether that has changed since this
        replica last ran, where it knows: a change is proposed. Where it does not know, what the log has never seen is
        proposed, and what was replaced since is taken for an old file, which must not undo what the group has agreed
        on. The first epoch is proposed in any case.
        """
        await self._epoch_log.open()
        await self._read()
        if has_changed is None:
            has_changed = base_hash not in {epoch.base_hash for epoch in self._known.values()}
        if has_changed or not self._known:
            await self.propose(settings, config_hash, base_hash, reason="start")
        elif self.newest.config_hash != config_hash:
            _log.warning(
                "config_superseded",
                own_config_hash=config_hash,
                epoch=self.newest.number,
                proposed_by=self.newest.proposed_by,
                hint="the group runs under a later epoch than this configuration; SIGHUP proposes the file again",
            )
        await self.adopt_newest()
        return self.current

    async def close(self) -> None:
        """Give the log back; whatever is being made ready is dropped."""
        for task in self._making.values():
            task.cancel()
        await asyncio.gather(*self._making.values(), return_exceptions=True)
        await self._epoch_log.close()

    async def propose(self, settings: Mapping[str, Value], config_hash: str, base_hash: str, *, reason: str) -> Epoch:
        """Append an epoch with ``settings``, unless the newest one has them already; returns the newest then.

        Raises :class:`PersistenceError` when the log cannot be written.
        """
        while True:
            await self._read()
            newest = self.newest if self._known else None
            if newest is not None and newest.config_hash == config_hash and newest.base_hash == base_hash:
                return newest
            epoch = Epoch(
                number=1 if newest is None else newest.number + 1,
                settings=dict(settings),
                config_hash=config_hash,
                base_hash=base_hash,
                created_ns=self._now_ns_fn(),
                proposed_by=self._instance,
                reason=reason,
            )
            if await self._epoch_log.append(epoch):
                self._known[epoch.number] = epoch
                _log.info("epoch_proposed", epoch=epoch.number, config_hash=config_hash, reason=reason)
                return epoch

    async def get(self, number: int) -> ProgramEpoch:
        """Epoch ``number``, made ready. Raises :class:`EpochError`, and :class:`PersistenceError` for the log."""
        if number not in self._known:
            await self._read()
        epoch = self._known.get(number)
        if epoch is None:
            raise EpochError(f"epoch {number} is not in the log of epochs ({self._epoch_log})")
        return await self._made(epoch)

    async def made_of(self, settings: Mapping[str, Value], config_hash: str) -> ProgramEpoch:
        """Settings that are known from elsewhere than the log, as epoch 0."""
        epoch = Epoch(
            number=0,
            settings=dict(settings),
            config_hash=config_hash,
            base_hash="",
            created_ns=0,
            proposed_by="",
            reason="",
        )
        return await self._make(epoch)

    async def adopt_newest(self) -> bool:
        """Read the log, and make its newest epoch the current one; returns whether that changed anything."""
        await self._read()
        newest = self.newest
        if self._current is not None and self._current.number == newest.number:
            return False
        made = await self._made(newest)
        if self._current is not None and self._current.number >= made.number:
            return False  # overtaken while it was made: an epoch never follows a later one
        former, self._current = self._current, made
        self._adopted_fn(made)
        _log.info(
            "epoch_adopted",
            epoch=made.number,
            config_hash=made.config_hash,
            former=None if former is None else former.number,
            reason=newest.reason,
            proposed_by=newest.proposed_by,
        )
        return True

    async def follow(self, interval_s: float) -> None:
        """Adopt what others, or this replica, append, until cancelled. What goes wrong is said and tried again."""
        told = ""
        while True:
            await asyncio.sleep(interval_s)
            try:
                await self.adopt_newest()
                told = ""
            except (PersistenceError, EpochError) as error:
                if str(error) != told:
                    told = str(error)
                    _log.error("epoch_refused", error=told)

    async def _read(self) -> None:
        self._known.update({epoch.number: epoch for epoch in await self._epoch_log.read()})

    async def _made(self, epoch: Epoch) -> ProgramEpoch:
        ready = self._ready.get(epoch.number)
        if ready is not None:
            return ready
        # Asked for from several sides, made once; who asked may be cancelled meanwhile.
        task = self._making.get(epoch.number)
        if task is None:
            task = asyncio.create_task(self._make(epoch), name=f"epochs.make.{epoch.number}")
            self._making[epoch.number] = task
        try:
            made = await asyncio.shield(task)
        finally:
            if task.done():
                self._making.pop(epoch.number, None)
        self._ready[epoch.number] = made
        return made

    async def _make(self, epoch: Epoch) -> ProgramEpoch:
        try:
            return await self._make_fn(epoch)
        except (ValueError, ArithmeticError) as error:
            raise EpochError(f"nothing can be made of epoch {epoch.number}: {error}") from error
