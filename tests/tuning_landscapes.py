"""Objectives for campaigns that cost nothing: functions of a candidate, the same in every process."""

import hashlib
import math
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from usp_daemon.tuning import Evaluation, MetaOptimizationConfig

OPTIMUM = {"cusum_k": 0.7, "besov_cone_c": 2.2, "log_sig_depth": 4, "wtmm_buffer_size": 256, "volatility_alpha": 0.2}


def bowl(candidate: Mapping[str, Any]) -> float:
    """1 for the settings at the start (about), least at OPTIMUM; the other parameters hardly matter."""
    value = 0.6
    value += 1.5 * (candidate["cusum_k"] - OPTIMUM["cusum_k"]) ** 2
    value += 0.2 * (candidate["besov_cone_c"] - OPTIMUM["besov_cone_c"]) ** 2
    value += 0.05 * abs(candidate["log_sig_depth"] - OPTIMUM["log_sig_depth"])
    value += 0.03 * abs(math.log2(candidate["wtmm_buffer_size"] / OPTIMUM["wtmm_buffer_size"]))
    value += 5.0 * (candidate["volatility_alpha"] - OPTIMUM["volatility_alpha"]) ** 2
    return value + 0.01 * candidate["sinkhorn_alpha"]


def noise(candidate: Mapping[str, Any], fold: int) -> float:
    """Between 0 and 1, by the candidate's every bit."""
    text = repr(sorted(candidate.items())) + str(fold)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") / 2**32


class FoldedBowl:
    """A batch evaluator over the bowl: folds, a constraint, pruning; it keeps what it was asked."""

    def __init__(
        self,
        *,
        num_folds: int = 4,
        constraint_fn: Callable[[Mapping[str, Any]], float] = lambda candidate: candidate["cusum_k"] - 0.9,
        value_fn: Callable[[Mapping[str, Any]], float] = bowl,
        spread: float = 0.05,
        log: pathlib.Path | None = None,
        fingerprint: str = "bowl",
    ) -> None:
        self.batches: list[list[dict[str, Any]]] = []
        self.fingerprint = fingerprint
        self._num_folds = num_folds
        self._constraint_fn = constraint_fn
        self._value_fn = value_fn
        self._spread = spread
        self._log = log

    def evaluate_batch(self, candidates: Sequence[Mapping[str, Any]], *, prune_fn: Any = None) -> list[Evaluation]:
        self.batches.append([dict(candidate) for candidate in candidates])
        return [self._evaluate(index, candidate, prune_fn) for index, candidate in enumerate(candidates)]

    def _evaluate(self, index: int, candidate: Mapping[str, Any], prune_fn: Any) -> Evaluation:
        values: list[float] = []
        pruned = False
        for fold in range(self._num_folds):
            values.append(self._value_fn(candidate) + self._spread * (noise(candidate, fold) - 0.5))
            mean = sum(values) / len(values)
            if prune_fn is not None and prune_fn(index, len(values), mean):
                pruned = True
                break
        return Evaluation(
            value=sum(values) / len(values),
            constraint=self._constraint_fn(candidate),
            fold_values=tuple(values),
            pruned=pruned,
            seconds=0.25,
        )


def settings_for(directory: pathlib.Path, **changes: Any) -> MetaOptimizationConfig:
    """Settings of the tuner with the campaigns in ``directory``."""
    return MetaOptimizationConfig(
        checkpoint_path=str(directory), **{"patience_trials": 0, "default_tier": "fast", **changes}
    )


def essence(records: Sequence[Any]) -> list[tuple[Any, ...]]:
    """Everything about trials but when and by whom they were run."""
    return [
        (record.number, record.state, record.params, record.outside, record.value, record.constraint,
         record.fold_values, record.reason)
        for record in records
    ]  # fmt: skip
