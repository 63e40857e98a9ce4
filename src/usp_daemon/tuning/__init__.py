"""Tuning: what decides whether parameters should change, and whether a change stays."""

from ._drift import ScoreDrift
from ._scores import crps
from ._sequential import SequentialPlan, SequentialSummary, SequentialTest, Verdict
from ._shadow import Shadow, ShadowReport, SideReport, StepFn, choose_shadow, probation_plan, sample_states

__all__ = [
    "ScoreDrift",
    "SequentialPlan",
    "SequentialSummary",
    "SequentialTest",
    "Shadow",
    "ShadowReport",
    "SideReport",
    "StepFn",
    "Verdict",
    "choose_shadow",
    "crps",
    "probation_plan",
    "sample_states",
]
