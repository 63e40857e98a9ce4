"""From a candidate to the settings and the predictor's parameters, and back.

A candidate is a mapping from bare parameter names to plain numbers; what it does not name stays as in the base
settings.
"""

from collections.abc import Iterable, Mapping

import numpy as np

from usp_daemon.compute import predictor_config
from usp_daemon.config import SPECS, KeySpec, ParameterClass, Settings, Value, document_of, parse_settings
from usp_daemon.core import PredictorConfig

from ._space import path_of

# Names under which the specification knows a key of ours.
ALIASES = {"cusum_grace_period_steps": "grace_period_steps"}
_TARGETS: dict[str, KeySpec] = {
    spec.name: spec for spec in SPECS.values() if spec.section in ("orchestration", "kernels")
}


class UnknownParameterError(ValueError):
    """A candidate names something that cannot be tuned, or gives a value that the key cannot have."""


def canonical(candidate: Mapping[str, Value]) -> dict[str, Value]:
    """The candidate by dotted path, in the keys' own types. Raises ``UnknownParameterError``."""
    by_path: dict[str, Value] = {}
    for name, value in candidate.items():
        spec = _TARGETS.get(ALIASES.get(name, name))
        if spec is None or spec.key.parameter_class is ParameterClass.LOCKED:
            raise UnknownParameterError(f"{name} is no parameter of the predictor that can be tuned")
        plain = value.item() if isinstance(value, np.generic) else value
        if spec.kind is int and isinstance(plain, float) and plain.is_integer():
            plain = int(plain)
        try:
            by_path[spec.path] = spec.fit(plain)
        except Exception as error:
            raise UnknownParameterError(f"{spec.path}: expected {spec.expectation}, got {value!r}") from error
    return by_path


def candidate_settings(base: Settings, candidate: Mapping[str, Value]) -> Settings:
    """The base settings with the candidate's values. Raises ``UnknownParameterError``, or ``ConfigError`` for values
    that are in range but make no sense together.
    """
    return parse_settings(document_of({**dict(base.items()), **canonical(candidate)}), source="candidate")


def candidate_config(base: Settings, candidate: Mapping[str, Value]) -> PredictorConfig:
    """The predictor's parameters under the candidate; ``cusum_h`` stays "auto" unless the candidate sets it.

    Raises as ``candidate_settings`` does.
    """
    return predictor_config(candidate_settings(base, candidate))


def base_candidate(settings: Settings, names: Iterable[str]) -> dict[str, Value]:
    """The values that ``settings`` give the parameters, "auto" resolved."""
    values: dict[str, Value] = {}
    for name in names:
        value = settings[path_of(name)]
        values[name] = float(getattr(predictor_config(settings), name)) if value == "auto" else value
    return values
