"""What changed between two settings, and what the change costs."""

import dataclasses

from ._key import ParameterClass, Value
from ._settings import SPECS, Settings

HIDDEN = "(hidden)"


@dataclasses.dataclass(frozen=True, slots=True)
class Change:
    """One key that differs."""

    path: str
    old: Value
    new: Value
    parameter_class: ParameterClass

    @property
    def shown(self) -> tuple[Value, Value]:
        """The old and the new value as anybody may see them: a secret's are hidden."""
        return (HIDDEN, HIDDEN) if SPECS[self.path].key.secret else (self.old, self.new)


@dataclasses.dataclass(frozen=True, slots=True)
class SettingsDiff:
    """All keys that differ, by what changing them costs."""

    traced: tuple[Change, ...]
    structural: tuple[Change, ...]
    locked: tuple[Change, ...]

    @property
    def changes(self) -> tuple[Change, ...]:
        """Every change, cheapest class first."""
        return self.traced + self.structural + self.locked

    @property
    def needs_restart(self) -> bool:
        """Whether a locked key differs, so that the new settings are refused while the daemon runs."""
        return bool(self.locked)

    @property
    def needs_compilation(self) -> bool:
        """Whether a structural key differs, so that another program has to be compiled."""
        return bool(self.structural)


def diff_settings(old: Settings, new: Settings) -> SettingsDiff:
    """The keys in which ``new`` differs from ``old``."""
    changes = [
        Change(path, old[path], new[path], spec.key.parameter_class)
        for path, spec in SPECS.items()
        if old[path] != new[path]
    ]
    by_class = {each: tuple(change for change in changes if change.parameter_class is each) for each in ParameterClass}
    return SettingsDiff(
        by_class[ParameterClass.TRACED], by_class[ParameterClass.STRUCTURAL], by_class[ParameterClass.LOCKED]
    )
