"""The tuner in the running daemon: records live ticks, searches in another process, applies, proves, takes back."""

from ._assembly import LiveTuning
from ._campaign import CampaignProcess, CpuBudget
from ._probation import SHADOW_TOPIC, Probation, Taps
from ._recorder import Recorder
from ._request import CampaignFailedError, CampaignMessage, CampaignProgress, CampaignRequest
from ._search import choose_changes, classes_of, run_campaign
from ._state import CampaignRecord, ChangeRecord, Decision, Phase, ProbationRecord, StateFile, Trigger, TunerState
from ._tuner import Tuner, TunerOptions

__all__ = [
    "SHADOW_TOPIC",
    "CampaignFailedError",
    "CampaignMessage",
    "CampaignProcess",
    "CampaignProgress",
    "CampaignRecord",
    "CampaignRequest",
    "ChangeRecord",
    "CpuBudget",
    "Decision",
    "LiveTuning",
    "Phase",
    "Probation",
    "ProbationRecord",
    "Recorder",
    "StateFile",
    "Taps",
    "Trigger",
    "Tuner",
    "TunerOptions",
    "TunerState",
    "choose_changes",
    "classes_of",
    "run_campaign",
]
