"""The tuner: campaigns that search for better settings, what is made of them, and whether a change stays."""

from ._async import AsyncMetaOptimizer
from ._campaign import Campaign
from ._candidate import UnknownParameterError, candidate_config, candidate_settings
from ._decision import Decision, DecisionRule, ScorecardSource, decide, prove
from ._drift import ScoreDrift
from ._errors import (
    CampaignInUseError,
    CampaignMismatchError,
    IntegrityError,
    MissingHashError,
    StorageError,
    TuningError,
)
from ._evaluation import BatchEvaluator, Evaluation, PruneFn
from ._folds import Fold, TooShortError, walk_forward_split
from ._history import History, HistoryError, RecordedTick, SymbolHistory
from ._meta_config import MetaOptimizationConfig, load_meta_optimization_config, replaced
from ._objective import EvaluationStoppedError, FoldPlan, WalkForwardEvaluator
from ._optimizer import BayesianMetaOptimizer, OptimizationResult
from ._progress import Progress, StopReason
from ._reading import StoredCampaign, campaign_names, put_away, read_file, read_stored
from ._report import Summary, proposal_of, summarise, text_of
from ._report_html import write_html_report
from ._scores import crps
from ._sequential import SequentialPlan, SequentialSummary, SequentialTest, Verdict
from ._shadow import Shadow, ShadowReport, SideReport, StepFn, choose_shadow, probation_plan, sample_states
from ._space import PARAMETERS, Parameter, Tier, parameters_of, path_of, search_space
from ._trials import TrialRecord

__all__ = [
    "PARAMETERS",
    "AsyncMetaOptimizer",
    "BatchEvaluator",
    "BayesianMetaOptimizer",
    "Campaign",
    "CampaignInUseError",
    "CampaignMismatchError",
    "Decision",
    "DecisionRule",
    "Evaluation",
    "EvaluationStoppedError",
    "Fold",
    "FoldPlan",
    "History",
    "HistoryError",
    "IntegrityError",
    "MetaOptimizationConfig",
    "MissingHashError",
    "OptimizationResult",
    "Parameter",
    "Progress",
    "PruneFn",
    "RecordedTick",
    "ScoreDrift",
    "ScorecardSource",
    "SequentialPlan",
    "SequentialSummary",
    "SequentialTest",
    "Shadow",
    "ShadowReport",
    "SideReport",
    "StepFn",
    "StopReason",
    "StorageError",
    "StoredCampaign",
    "Summary",
    "SymbolHistory",
    "Tier",
    "TooShortError",
    "TrialRecord",
    "TuningError",
    "UnknownParameterError",
    "Verdict",
    "WalkForwardEvaluator",
    "campaign_names",
    "candidate_config",
    "candidate_settings",
    "choose_shadow",
    "crps",
    "decide",
    "load_meta_optimization_config",
    "parameters_of",
    "path_of",
    "probation_plan",
    "proposal_of",
    "prove",
    "put_away",
    "read_file",
    "read_stored",
    "replaced",
    "sample_states",
    "search_space",
    "summarise",
    "text_of",
    "walk_forward_split",
    "write_html_report",
]
