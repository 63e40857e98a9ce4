"""The report on a replay: scores per symbol and a self-contained HTML page, both made from the published records."""

from ._html import write_report
from ._metrics import SymbolScore, score_predictions

__all__ = ["SymbolScore", "score_predictions", "write_report"]
