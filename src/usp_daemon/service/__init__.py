"""The service: the pipeline from records to results, and what paces and guards it in a replay."""

from ._daemon import Daemon, DaemonOptions, Outcome, StopRequest
from ._observer import Observer, TelemetryObserver
from ._pacing import Pacer
from ._pipeline import Pipeline, PipelineStats, Predictor
from ._recovery import Program, RecoveryError, RecoveryPolicy
from ._results import Answer, StepResult
from ._stages import StatefulPredictor
from ._time_units import TimeUnitGuard

__all__ = [
    "Answer",
    "Daemon",
    "DaemonOptions",
    "Observer",
    "Outcome",
    "Pacer",
    "Pipeline",
    "PipelineStats",
    "Predictor",
    "Program",
    "RecoveryError",
    "RecoveryPolicy",
    "StatefulPredictor",
    "StepResult",
    "StopRequest",
    "TelemetryObserver",
    "TimeUnitGuard",
]
