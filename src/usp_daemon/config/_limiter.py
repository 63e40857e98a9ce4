"""How often the service may change its configuration: so many times an hour, and only so many ticks apart.

What was done is kept in a file, so that a restart opens nothing.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ._clock import Clock, Stamp
from ._disk import DamagedStateError, Disk, read_state, write_state
from ._load import Problem
from ._process import ProcessIdentity, this_process

LIMITER_FILE = "limiter.json"
_HOUR_S = 3600.0


@dataclasses.dataclass(frozen=True, slots=True)
class _Done:
    mutation: str
    stamp: Stamp
    tick: int | None  # ticks that ``process`` had seen by then
    process: ProcessIdentity

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> "_Done":
        tick = document["tick"]
        return cls(
            str(document["mutation"]),
            Stamp.of(document["stamp"]),
            None if tick is None else int(tick),
            ProcessIdentity.of(document["process"]),
        )


class MutationLimiter:
    """The changes of the last hour and the last one of all. Used under the lock only."""

    def __init__(self, state_path: Path, disk: Disk, clock: Clock) -> None:
        self._path = state_path / LIMITER_FILE
        self._disk = disk
        self._clock = clock

    def problems(self, *, per_hour: int, min_ticks: int, tick: int | None) -> list[Problem]:
        """What speaks against another change now. ``tick`` counts ticks in this process; None judges no ticks.

        A record that cannot be read counts as a full hour from now on.
        """
        try:
            done = self._settled()
        except DamagedStateError:
            done = [_Done("", self._clock.now(), tick, this_process())] * max(per_hour, 1)
            self._write(done)
        found = []
        recent = [each for each in done if self._clock.age_s(each.stamp) < _HOUR_S]
        if len(recent) >= per_hour:
            waits = f"the next in {_HOUR_S - self._clock.age_s(recent[-per_hour].stamp):.0f} s" if per_hour else ""
            expected = f"at most {per_hour} changes in an hour"
            found.append(Problem("security.allowed_mutation_rate_per_hour", expected, f"{len(recent) + 1}", waits))
        if done and tick is not None:
            last = done[-1]
            # Ticks are counted from the start of the process: of another's, only that all of ours came later is known.
            seen = tick - last.tick if last.process == this_process() and last.tick is not None else tick
            if seen < min_ticks:
                expected = f"at least {min_ticks} ticks between two changes"
                found.append(Problem("security.min_ticks_between_mutations", expected, f"{max(seen, 0)}"))
        return found

    def record(self, mutation: str, stamp: Stamp, tick: int | None, process: ProcessIdentity) -> None:
        """Count a change, once however often it is called."""
        try:
            done = self._settled()
        except DamagedStateError:
            done = []
        if any(each.mutation == mutation for each in done):
            return
        kept = [each for each in done if self._clock.age_s(each.stamp) < _HOUR_S]
        self._write([*kept, _Done(mutation, stamp, tick, process)])

    def forget(self, mutation: str) -> None:
        """Take back the count of a change that was not made after all."""
        try:
            done = self._settled()
        except DamagedStateError:
            return
        if any(each.mutation == mutation for each in done):
            self._write([each for each in done if each.mutation != mutation])

    def _settled(self) -> list[_Done]:
        """The record, with times that have come to lie in the future set to now, for good."""
        document = read_state(self._path)
        try:
            done = [_Done.of(each) for each in (document or {"done": []})["done"]]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DamagedStateError(f"{self._path}: {error!r}") from error
        settled = [dataclasses.replace(each, stamp=self._clock.settled(each.stamp)) for each in done]
        if settled != done:
            self._write(settled)
        return settled

    def _write(self, done: list[_Done]) -> None:
        write_state(self._disk, self._path, {"done": [dataclasses.asdict(each) for each in done]})
