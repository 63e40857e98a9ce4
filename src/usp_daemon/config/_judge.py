"""Whether changes are allowed by the policy, and what they amount to."""

from collections.abc import Mapping
from typing import Any

from ._key import Unfit, Value
from ._load import Problem, broken_rules, show_of
from ._policy import MUTABLE, why_immutable
from ._settings import SPECS
from ._source import LoadedConfig
from ._trust_region import ResolveFn, too_far

Delta = dict[str, list[Value]]


def judge_changes(loaded: LoadedConfig, changes: Mapping[str, Any]) -> tuple[Delta, list[Problem]]:
    """The keys that would differ, each with its old and its new value, and everything that speaks against it.

    Judged are the policy, the ranges, the environment's precedence and the rules between keys; not how far and how
    often.
    """
    delta: Delta = {}
    problems: list[Problem] = []
    for path, value in changes.items():
        reason = why_immutable(path)
        if reason:
            problems.append(Problem(f"{path:.80}", "a key that the service may change", "another one", reason))
            continue
        spec = SPECS[path]
        try:
            fit = spec.fit(value)
        except Unfit:
            problems.append(Problem(path, spec.expectation, show_of(path, value)))
            continue
        if path in loaded.of_environment:
            text = f"{spec.variable} stands above file and overlay"
            problems.append(Problem(path, "a key that the environment leaves open", f"{fit}", text))
        if fit != loaded.settings[path]:
            delta[path] = [loaded.settings[path], fit]
    after = {**dict(loaded.settings.items()), **{path: new for path, (_, new) in delta.items()}}
    problems.extend(broken_rules(after, refused={problem.path for problem in problems}))
    return delta, problems


def judge_distance(delta: Delta, *, max_relative: float, resolve_fn: ResolveFn) -> list[Problem]:
    """Everything that is further away than one change may go."""
    judged = (
        too_far(path, old, new, max_relative=max_relative, resolve_fn=resolve_fn)
        for path, (old, new) in delta.items()
        if path in MUTABLE
    )
    return [problem for problem in judged if problem is not None]


def shown(changes: Mapping[str, Any], loaded: LoadedConfig | None) -> dict[str, list[Any]]:
    """Refused changes as the log may hold them: no secret, and nothing long."""
    delta: dict[str, list[Any]] = {}
    for path, value in changes.items():
        spec = SPECS.get(path)
        old = None if spec is None or loaded is None else loaded.settings[path]
        is_short = value is None or isinstance(value, bool | float) or (isinstance(value, int) and abs(value) < 1 << 64)
        new = value if is_short or spec is None else show_of(path, value)
        is_secret = spec is None or spec.key.secret
        delta[f"{path:.80}"] = ["(hidden)", "(hidden)"] if is_secret else [old, new]
    return delta
