"""What judges candidates: the interface."""

import dataclasses
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
