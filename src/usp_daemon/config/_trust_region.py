"""How far one change may go: a share of the present value, or one level."""

import math
from collections.abc import Callable, Mapping

from ._key import Value
from ._load import Problem
from ._policy import MUTABLE, Move
from ._settings import Settings

# Below this a share of the present value is no distance at all, and one in absolute terms counts.
NEAR_ZERO = 1e-12
ABSOLUTE_NEAR_ZERO = 1.0

ResolveFn = Callable[[str], float | None]


def too_far(path: str, old: Value, new: Value, *, max_relative: float, resolve_fn: ResolveFn) -> Problem | None:
    """What speaks against moving the key from ``old`` to ``new`` in one change, if anything does.

    ``resolve_fn`` says what "auto" stands for at the moment, or None if nobody knows.
    """
    start, end = _number(path, old, resolve_fn), _number(path, new, resolve_fn)
    if start is None or end is None:
        return Problem(path, "a number in place of a number", f"{old} -> {new}", "nobody knows how far that is")
    low, high = reach_of(path, start, max_relative=max_relative)
    if low <= end <= high:
        return None
    how = "one level" if MUTABLE[path].move is Move.LEVEL else f"at most {max_relative:.0%} of {start:g}"
    return Problem(path, f"a move of {how}, so {low:g} to {high:g}", f"{new}", "")


def reach_of(path: str, start: float, *, max_relative: float) -> tuple[float, float]:
    """The least and the greatest value to which one change may move the key from ``start``, range apart."""
    key = MUTABLE[path]
    if key.move is Move.LEVEL:
        return (start / 2, start * 2) if key.spec.key.power_of_two else (start - 1, start + 1)
    step = ABSOLUTE_NEAR_ZERO if abs(start) < NEAR_ZERO else max_relative * abs(start)
    if key.spec.kind is int:
        step = max(step, 1.0)  # else 1 could never become 2
    # the last digits of a product must not refuse exactly the share that is allowed
    slack = 4 * math.ulp(abs(start) + step)
    return start - step - slack, start + step + slack


def step_toward(settings: Settings, wanted: Mapping[str, Value], *, max_relative: float) -> dict[str, Value]:
    """The changes of ``wanted``, each cut down to what one change may do from the value in ``settings``.

    Repeated it arrives, where every value between makes sense; values that are no numbers are left as they are wanted.
    """
    changes: dict[str, Value] = {}
    for path, value in wanted.items():
        start = settings[path]
        if isinstance(start, str) or isinstance(value, str):
            changes[path] = value
            continue
        low, high = reach_of(path, float(start), max_relative=max_relative)
        spec = MUTABLE[path].spec
        if spec.kind is int:
            low, high = math.ceil(low), math.floor(high)
        nearest = min(max(value, low), high)
        changes[path] = int(nearest) if spec.kind is int else float(nearest)
    return changes


def _number(path: str, value: Value, resolve_fn: ResolveFn) -> float | None:
    return resolve_fn(path) if isinstance(value, str) else float(value)
