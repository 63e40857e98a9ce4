"""What judges candidates: the interface, and an adapter for a plain function."""

import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, runtime_checkable

from usp_daemon.config import Value

# (index of the candidate in the batch, folds done, mean of its values so far) -> give this candidate up
PruneFn = Callable[[int, int, float], bool]


@dataclasses.dataclass(frozen=True, slots=True)
class Evaluation:
    """How one candidate did.

    ``value`` is its mean score over that of the settings at the start: 1 is equal, lower is better. ``constraint`` is
    at most 0 for a candidate that may be used. ``fold_values`` are the values of the folds that were done, all of them
    unless ``pruned``; ``seconds`` is the time it took.
    """

    value: float
    constraint: float = 0.0
    fold_values: tuple[float, ...] = ()
    pruned: bool = False
    seconds: float = 0.0


@runtime_checkable
class BatchEvaluator(Protocol):
    """Judges several candidates at once.

    The result for a candidate must not depend on its company: a campaign that was interrupted evaluates the rest of a
    batch alone, and ends as if it had not been. Optional attributes: ``fingerprint``, a text that differs when the
    data or the way of judging do; ``structure_of(candidate)``, a hashable that is equal for candidates that share a
    compiled program.
    """

    def evaluate_batch(
        self, candidates: Sequence[Mapping[str, Value]], *, prune_fn: PruneFn | None = None
    ) -> list[Evaluation]:
        """One evaluation per candidate, in order."""
        ...


class FunctionEvaluator:
    """The specification's ``walk_forward_evaluator``: a function from a candidate to its value."""

    def __init__(self, evaluator_fn: Callable[[dict[str, Value]], float]) -> None:
        self._evaluator_fn = evaluator_fn
        self.fingerprint = str(getattr(evaluator_fn, "fingerprint", ""))

    def evaluate_batch(
        self, candidates: Sequence[Mapping[str, Value]], *, prune_fn: PruneFn | None = None
    ) -> list[Evaluation]:
        """Call the function once per candidate; it has no folds, so nothing is pruned."""
        del prune_fn
        evaluations = []
        for candidate in candidates:
            begun = time.perf_counter()
            value = float(self._evaluator_fn(dict(candidate)))
            evaluations.append(Evaluation(value, seconds=time.perf_counter() - begun))
        return evaluations


def as_batch_evaluator(evaluator: BatchEvaluator | Callable[[dict[str, Value]], float]) -> BatchEvaluator:
    """The evaluator itself, or a plain function in its guise. Raises ``TypeError`` for anything else."""
    if isinstance(evaluator, BatchEvaluator):
        return evaluator
    if callable(evaluator):
        return FunctionEvaluator(evaluator)
    raise TypeError(f"expected a function or something with evaluate_batch, got {type(evaluator).__name__}")


def problem_of(evaluation: Evaluation) -> str:
    """Why the evaluation is of no use, or ""."""
    if not math.isfinite(evaluation.value):
        return f"its value is {evaluation.value}"
    if math.isnan(evaluation.constraint):
        return "its constraint is not a number"
    return ""
