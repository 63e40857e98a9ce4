"""The report: one HTML file with everything in it, drawn by its own script, no network needed.

Long series are thinned for drawing: each drawn point then stands for ``stride`` consecutive ticks and keeps the lowest
and the highest value, the outermost interval bounds, the means of weights, epsilon and threshold, and the highest grace
counter, so that no spike is lost. The page says so.
"""

import html
import importlib.resources
import math
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from usp_daemon.wire import KERNEL_NAMES

from ._metrics import PredictionLine, SymbolScore, read_alarms, read_predictions, score_predictions

MAX_POINTS = 4000
MAX_SYMBOLS = 24
# Rows of the matrix that is collected per symbol.
_VALUE, _PREDICTION, _LOW_80, _HIGH_80, _LOW_95, _HIGH_95, _EPSILON, _THRESHOLD, _GRACE, _WEIGHTS = range(10)
_NUM_ROWS = _WEIGHTS + len(KERNEL_NAMES)


def write_report(
    path: pathlib.Path,
    *,
    predictions: pathlib.Path,
    alarms: pathlib.Path,
    title: str,
    facts: Sequence[tuple[str, str]] = (),
    notes: dict[str, str] | None = None,
    scores: Sequence[SymbolScore] | None = None,
) -> None:
    """Write the report on the records in ``predictions`` and ``alarms`` to ``path``.

    ``facts`` are pairs of words for the head, ``notes`` a line of plain text per symbol (its source, say).
    ``scores`` saves computing them again. At most 24 symbols are drawn, those with the most ticks; the table has all,
    up to 500.
    """
    if scores is None:
        scores = score_predictions(predictions, alarms)
    chosen = sorted(sorted(scores, key=lambda score: -score.num_ticks)[:MAX_SYMBOLS], key=lambda score: score.symbol)
    collectors = {score.symbol: _Collector(score.num_ticks) for score in chosen}
    for line in read_predictions(predictions):
        if line.symbol in collectors:
            collectors[line.symbol].add(line)
    for alarm in read_alarms(alarms):
        if alarm.symbol in collectors:
            collectors[alarm.symbol].add_alarm(alarm.ts, alarm.kind)
    series = [
        {"symbol": symbol, "note": (notes or {}).get(symbol, ""), **collector.drawn()}
        for symbol, collector in collectors.items()
    ]
    data = orjson.dumps({"kernels": KERNEL_NAMES, "series": series}).decode()
    template = (
        importlib.resources.files(__package__ or "usp_daemon.service.report")
        .joinpath("template.html")
        .read_text(encoding="utf-8")
    )
    head = "".join(f"<li><b>{html.escape(value)}</b> {html.escape(name)}</li>" for name, value in facts)
    page = (
        template.replace("@@TITLE@@", html.escape(title))
        .replace("@@FACTS@@", head)
        .replace("@@TABLE@@", _table(scores))
        # A closing tag inside a symbol's name must not end the script.
        .replace("@@DATA@@", data.replace("<", "\\u003c"))
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")


class _Collector:
    """One symbol's numbers for drawing; each column is one tick, or ``stride`` ticks put together."""

    def __init__(self, num_ticks: int) -> None:
        self.stride = max(math.ceil(num_ticks / MAX_POINTS), 1)
        size = math.ceil(num_ticks / self.stride)
        self.times = np.zeros(size, np.int64)
        self.sums = np.zeros((_NUM_ROWS, size))
        self.lowest = np.full(size, np.nan)
        self.highest = np.full(size, np.nan)
        self.counts = np.zeros(size, np.int64)
        self.alarms: list[tuple[int, str]] = []
        self._num_seen = 0
        self._standing: PredictionLine | None = None

    def add(self, line: PredictionLine) -> None:
        """Take one tick, drawn with the forecast that was standing when it came."""
        column = self._num_seen // self.stride
        self._num_seen += 1
        first = self.counts[column] == 0
        self.counts[column] += 1
        if first:
            self.times[column] = line.ts
        if line.value is not None:
            self.lowest[column] = np.fmin(self.lowest[column], line.value)
            self.highest[column] = np.fmax(self.highest[column], line.value)
        sums = self.sums[:, column]
        weights = line.weights
        sums[_WEIGHTS:] += (weights.rkhs, weights.deep_galerkin, weights.levy_sde, weights.signature)
        sums[_EPSILON] += line.epsilon
        sums[_THRESHOLD] += line.h_t
        sums[_GRACE] = max(sums[_GRACE], line.grace_counter)
        standing = self._standing if self._standing is not None else line
        sums[_PREDICTION] += standing.prediction
        for row, bound, outermost in (
            (_LOW_80, standing.intervals.p80[0], min),
            (_HIGH_80, standing.intervals.p80[1], max),
            (_LOW_95, standing.intervals.p95[0], min),
            (_HIGH_95, standing.intervals.p95[1], max),
        ):
            sums[row] = bound if first else outermost(sums[row], bound)
        self._standing = line

    def add_alarm(self, ts: int, kind: str) -> None:
        """Take one alarm."""
        self.alarms.append((ts, kind))

    def drawn(self) -> dict[str, Any]:
        """The numbers as the page's script wants them, rounded to a five-thousandth of what can be seen."""
        counts = np.maximum(self.counts, 1)
        mean = self.sums / counts
        finite = self.lowest[np.isfinite(self.lowest)]
        spread = float(np.ptp(finite)) if finite.size else 1.0
        places = 4 - math.floor(math.log10(spread)) if spread > 0.0 else 6
        kinds = sorted({kind for _, kind in self.alarms})
        return {
            "ticks": int(self.counts.sum()),
            "stride": self.stride,
            "t": (self.times // 1_000_000).tolist(),
            "low": _rounded(self.lowest, places),
            "high": _rounded(self.highest, places) if self.stride > 1 else None,
            "prediction": _rounded(mean[_PREDICTION], places),
            "band80": [_rounded(self.sums[row], places) for row in (_LOW_80, _HIGH_80)],
            "band95": [_rounded(self.sums[row], places) for row in (_LOW_95, _HIGH_95)],
            "epsilon": _rounded(mean[_EPSILON], 5),
            "threshold": _rounded(mean[_THRESHOLD], 3),
            "grace": self.sums[_GRACE].astype(int).tolist(),
            "weights": [_rounded(mean[_WEIGHTS + kernel], 3) for kernel in range(len(KERNEL_NAMES))],
            "alarms": [[ts // 1_000_000, kinds.index(kind)] for ts, kind in self.alarms],
            "kinds": kinds,
        }


def _rounded(numbers: NDArray[np.float64], places: int) -> list[float | int | None]:
    rounded = np.round(numbers, places)
    whole = places <= 0
    return [None if value != value else int(value) if whole else value for value in rounded.tolist()]


def _table(scores: Sequence[SymbolScore]) -> str:
    rows = []
    for score in scores[:500]:
        relative = score.relative_mae
        kind = "" if relative is None else " good" if relative < 0.995 else " poor" if relative > 1.01 else ""
        rows.append(
            f"<tr><td>{html.escape(score.symbol)}</td><td>{score.num_ticks:,}</td><td>{_number(score.mae, '.6g')}</td>"
            f"<td class='relative{kind}'>{_number(relative, '.3f')}</td><td>{_number(score.coverage_80, '.1%')}</td>"
            f"<td>{_number(score.coverage_95, '.1%')}</td><td>{score.num_alarms}</td></tr>"
        )
    if len(scores) > 500:
        rows.append(f"<tr><td colspan='7'>and {len(scores) - 500:,} more</td></tr>")
    return "".join(rows)


def _number(value: float | None, form: str) -> str:
    return "&ndash;" if value is None else format(value, form)
