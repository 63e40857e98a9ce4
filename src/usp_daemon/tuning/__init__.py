"""Tuning: what decides whether parameters should change, and whether a change stays."""

from ._scores import crps
from ._sequential import SequentialPlan, SequentialSummary, SequentialTest, Verdict

__all__ = ["SequentialPlan", "SequentialSummary", "SequentialTest", "Verdict", "crps"]
