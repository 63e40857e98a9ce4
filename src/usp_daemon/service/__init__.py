"""The service: the pipeline from records to results, and what paces and guards it in a replay."""

from ._daemon import Daemon, DaemonOptions, Outcome, StopRequest
from ._epochs import EpochBook, EpochError, ProgramEpoch, Switches
from ._marks import EpochMarks
from ._observer import Observer, Observers, TelemetryObserver
from ._pacing import AbstractPacer, Pacer, RatePacer
from ._pipeline import Pipeline, PipelineStats
from ._recovery import RecoveryError, RecoveryPolicy
from ._reload import Reloader
from ._results import Answer, AnswerRows, StepResult
from ._stages import Exported, StatefulPredictor
from ._stepping import Predictor
from ._tap import LiveStep, Tap
from ._time_units import TimeUnitGuard

__all__ = [
    "AbstractPacer",
    "Answer",
    "AnswerRows",
    "Daemon",
    "DaemonOptions",
    "EpochBook",
    "EpochError",
    "EpochMarks",
    "Exported",
    "LiveStep",
    "Observer",
    "Observers",
    "Outcome",
    "Pacer",
    "Pipeline",
    "PipelineStats",
    "Predictor",
    "ProgramEpoch",
    "RatePacer",
    "RecoveryError",
    "RecoveryPolicy",
    "Reloader",
    "StatefulPredictor",
    "StepResult",
    "StopRequest",
    "Switches",
    "Tap",
    "TelemetryObserver",
    "TimeUnitGuard",
]
