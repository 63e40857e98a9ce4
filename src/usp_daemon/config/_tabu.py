"""Values that were tried and rolled back, which are not tried again for a while."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ._clock import Clock, Stamp
from ._disk import DamagedStateError, Disk, read_state, write_state
from ._key import Value
from ._load import Problem

TABU_FILE = "tabu.json"
# Values this near to what was tried, as a share of the step that was taken to it, are the same attempt.
NEARNESS = 0.25


@dataclasses.dataclass(frozen=True, slots=True)
class _Tried:
    mutation: str
    stamp: Stamp
    delta: dict[str, list[Value]]  # path -> [old, new]

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> "_Tried":
        delta = {str(path): list(pair) for path, pair in document["delta"].items()}
        if not all(len(pair) == 2 for pair in delta.values()):
            raise ValueError("expected pairs")
        return cls(str(document["mutation"]), Stamp.of(document["stamp"]), delta)

    def is_met_by(self, values: Mapping[str, Value], changes: Mapping[str, Value]) -> bool:
        """Whether ``changes`` lead to ``values`` that are, in every key of the attempt, those that it tried."""
        return bool(changes.keys() & self.delta.keys()) and all(
            _is_near(values[path], old, new) for path, (old, new) in self.delta.items() if path in values
        )


class TabuList:
    """Used under the lock only. What cannot be read of it is forgotten, since it only saves effort."""

    def __init__(self, state_path: Path, disk: Disk, clock: Clock) -> None:
        self._path = state_path / TABU_FILE
        self._disk = disk
        self._clock = clock

    def problems(self, values: Mapping[str, Value], changes: Mapping[str, Value], *, hours: float) -> list[Problem]:
        """What speaks against ``changes`` that lead to ``values``, of all keys that may be changed."""
        found = []
        for tried in self._read():
            left_h = hours - self._clock.age_s(tried.stamp) / 3600.0
            if left_h > 0.0 and tried.is_met_by(values, changes):
                shown = ", ".join(f"{path} = {new}" for path, (_, new) in tried.delta.items())
                path = next(path for path in tried.delta if path in changes)
                hint = f"change {tried.mutation}; allowed again in {left_h:.1f} h"
                found.append(Problem(path, "something that was not rolled back lately", shown, hint))
        return found

    def add(self, mutation: str, stamp: Stamp, delta: Mapping[str, list[Value]], *, hours: float) -> None:
        """Remember what was rolled back, once however often it is called, and forget what is over."""
        tried = [
            each
            for each in self._read()
            if each.mutation != mutation and self._clock.age_s(each.stamp) < hours * 3600.0
        ]
        self._write([*tried, _Tried(mutation, stamp, dict(delta))])

    def forget(self, mutation: str) -> None:
        """Take back what was remembered of a roll-back that did not happen after all."""
        tried = self._read()
        if any(each.mutation == mutation for each in tried):
            self._write([each for each in tried if each.mutation != mutation])

    def _read(self) -> list[_Tried]:
        try:
            tried = [_Tried.of(each) for each in (read_state(self._path) or {"tried": []})["tried"]]
        except (DamagedStateError, KeyError, TypeError, ValueError, AttributeError):
            return []
        settled = [dataclasses.replace(each, stamp=self._clock.settled(each.stamp)) for each in tried]
        if settled != tried:
            self._write(settled)
        return settled

    def _write(self, tried: list[_Tried]) -> None:
        write_state(self._disk, self._path, {"tried": [dataclasses.asdict(each) for each in tried]})


def _is_near(value: Value, old: Value, new: Value) -> bool:
    if value == new:
        return True
    if isinstance(value, str) or isinstance(old, str) or isinstance(new, str):
        return False
    return abs(value - new) <= NEARNESS * abs(new - old)
