"""The tuner's settings under the name that the specification gives them (chapter 9, GAP-6.3)."""

import dataclasses
import os

from usp_daemon.config import SPECS, ConfigError, MetaOptimization, Problem, Settings, load_settings, parse_settings


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class MetaOptimizationConfig(MetaOptimization):
    """Every key of ``[meta_optimization]``. Defaults, types and ranges are the schema's; there are none here.

    Raises ``ConfigError`` for a value that the schema refuses.
    """

    def __post_init__(self) -> None:
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        # names that the schema does not know cannot come here, the constructor refuses them
        parse_settings({"meta_optimization": values}, source=type(self).__name__)

    @property
    def tier(self) -> str:
        """What is searched unless asked otherwise: ``default_tier``, or "deep" where ``enable_deep_tuning`` is set."""
        return "deep" if self.enable_deep_tuning else self.default_tier

    def total_trials(self, tier: str) -> int:
        """Trials of a whole campaign of ``tier``."""
        return self.max_deep_tuning_iterations if tier in ("deep", "wide") else self.n_trials


def load_meta_optimization_config(source: str | os.PathLike[str] | Settings | None = None) -> MetaOptimizationConfig:
    """The tuner's settings from a TOML file, from loaded settings, or (None) from where the daemon looks for its file.

    Environment overrides hold for files. Raises ``ConfigError``.
    """
    settings = source if isinstance(source, Settings) else load_settings(source)
    section = settings.meta_optimization
    return MetaOptimizationConfig(**{field.name: getattr(section, field.name) for field in dataclasses.fields(section)})


def replaced(config: MetaOptimizationConfig, **changes: object) -> MetaOptimizationConfig:
    """``config`` with ``changes``. Raises ``ConfigError`` for an unknown name too."""
    unknown = [name for name in changes if f"meta_optimization.{name}" not in SPECS]
    if unknown:
        raise ConfigError(
            "MetaOptimizationConfig", [Problem(unknown[0], "a key of [meta_optimization]", "an unknown one")]
        )
    return dataclasses.replace(config, **changes)  # type: ignore[arg-type]
