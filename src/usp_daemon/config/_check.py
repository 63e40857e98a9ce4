"""The answer to "is this configuration right?"."""

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

from ._diff import diff_settings
from ._load import BUILT_IN, ConfigError, Problem, find_config, load_settings, override_names
from ._settings import Settings


@dataclasses.dataclass(frozen=True, slots=True)
class ConfigReport:
    """What ``check_config`` found: the settings, or the problems that stand in their way."""

    source: str
    overrides: tuple[str, ...]
    settings: Settings | None
    error: ConfigError | None

    @property
    def is_ok(self) -> bool:
        """Whether the daemon would start with it."""
        return self.settings is not None

    @property
    def problems(self) -> tuple[Problem, ...]:
        """Everything that is wrong; empty if nothing is."""
        return self.error.problems if self.error else ()

    def as_dict(self) -> dict[str, Any]:
        """The same as data: ``ok``, ``hash``, ``changed`` from the defaults by path, ``problems``."""
        changes = () if self.settings is None else diff_settings(Settings(), self.settings).changes
        return {
            "source": self.source,
            "ok": self.is_ok,
            "hash": None if self.settings is None else self.settings.content_hash(),
            "overridden_by": list(self.overrides),
            "changed": {c.path: {"value": c.new, "default": c.old, "class": str(c.parameter_class)} for c in changes},
            "problems": [dataclasses.asdict(problem) for problem in self.problems],
        }

    def __str__(self) -> str:
        if self.settings is None:
            return str(self.error)
        lines = [f"{self.source}: ok", f"  hash {self.settings.content_hash()}"]
        lines += [f"  overridden by {name}" for name in self.overrides]
        departures = diff_settings(Settings(), self.settings).changes
        lines += [f"  {c.path} = {c.new} (default {c.old}, {c.parameter_class})" for c in departures]
        return "\n".join(lines)


def check_config(path: str | os.PathLike[str] | None = None, environ: Mapping[str, str] | None = None) -> ConfigReport:
    """Loads as ``load_settings`` does, but reports problems instead of raising them."""
    environ = os.environ if environ is None else environ
    found = find_config(path, environ)
    source = BUILT_IN if found is None else str(found)
    overrides = tuple(override_names(environ))
    try:
        return ConfigReport(source, overrides, load_settings(path, environ), None)
    except ConfigError as error:
        return ConfigReport(source, overrides, None, error)
