"""Tuning: what decides whether parameters should change, and whether a change stays."""

from ._decision import Decision, DecisionRule, decide
from ._evaluation import BatchEvaluator, Evaluation, PruneFn
from ._folds import Fold, TooShortError, walk_forward_split
from ._history import History, HistoryError, RecordedTick, SymbolHistory
from ._objective import EvaluationStoppedError, FoldPlan, Progress, WalkForwardEvaluator
from ._space import (
    Parameter,
    SearchSpace,
    Tier,
    UnknownParameterError,
    candidate_config,
    candidate_settings,
    choose_structures,
)

__all__ = [
    "BatchEvaluator",
    "Decision",
    "DecisionRule",
    "Evaluation",
    "EvaluationStoppedError",
    "Fold",
    "FoldPlan",
    "History",
    "HistoryError",
    "Parameter",
    "Progress",
    "PruneFn",
    "RecordedTick",
    "SearchSpace",
    "SymbolHistory",
    "Tier",
    "TooShortError",
    "UnknownParameterError",
    "WalkForwardEvaluator",
    "candidate_config",
    "candidate_settings",
    "choose_structures",
    "decide",
    "walk_forward_split",
]
