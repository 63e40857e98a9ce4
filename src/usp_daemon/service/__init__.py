"""The service: the pipeline from records to results, and what paces and guards it in a replay."""

from ._pacing import Pacer
from ._pipeline import Pipeline, PipelineStats, Predictor
from ._results import StepResult
from ._time_units import TimeUnitGuard

__all__ = ["Pacer", "Pipeline", "PipelineStats", "Predictor", "StepResult", "TimeUnitGuard"]
