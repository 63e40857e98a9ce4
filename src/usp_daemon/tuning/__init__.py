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
from ._meta_config import MetaOptimizationConfig, load_meta_optimization_config, replaced
from ._optimizer import BayesianMetaOptimizer, OptimizationResult
from ._progress import Progress, StopReason
from ._reading import campaign_names, put_away, read_file, read_stored
from ._report import Summary, proposal_of, summarise, text_of
from ._report_html import write_html_report
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
    "Summary",
    "TrialRecord",
    "TuningError",
    "campaign_names",
    "load_meta_optimization_config",
    "proposal_of",
    "put_away",
    "read_file",
    "read_stored",
    "replaced",
    "search_space",
    "summarise",
    "text_of",
    "write_html_report",
]
