"""The tuner: campaigns that search for better settings, and what is made of them."""

from ._async import AsyncMetaOptimizer
from ._campaign import Campaign
from ._errors import (
    CampaignInUseError,
    CampaignMismatchError,
    IntegrityError,
    MissingHashError,
    StorageError,
    TuningError,
)
from ._evaluation import BatchEvaluator, Evaluation, PruneFn
from ._meta_config import MetaOptimizationConfig, load_meta_optimization_config
from ._optimizer import BayesianMetaOptimizer, OptimizationResult
from ._progress import Progress, StopReason
from ._search_space import search_space
from ._trials import TrialRecord

__all__ = [
    "AsyncMetaOptimizer",
    "BatchEvaluator",
    "BayesianMetaOptimizer",
    "Campaign",
    "CampaignInUseError",
    "CampaignMismatchError",
    "Evaluation",
    "IntegrityError",
    "MetaOptimizationConfig",
    "MissingHashError",
    "OptimizationResult",
    "Progress",
    "PruneFn",
    "StopReason",
    "StorageError",
    "TrialRecord",
    "TuningError",
    "load_meta_optimization_config",
    "search_space",
]
