"""Reading a part of the benchmark suite, writing the scorer's files, and the scores the scorer leaves to us."""

import csv
import dataclasses
import json
import math
import statistics
import subprocess
import sys
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np

from usp_daemon.core import QUANTILE_LEVELS

FORECAST_COLUMNS = ("mean", "q025", "q100", "q900", "q975")
NAIVE_MEMORY = 0.97  # of the Gaussian interval around the last value that all ratios refer to


@dataclasses.dataclass(frozen=True)
class Series:
    """One stream of the suite: nanosecond timestamps, values (NaN where missing) and its entry in the index."""

    name: str
    track: str
    kind: str
    timestamps_ns: np.ndarray
    values: np.ndarray
    entry: dict[str, Any]

    @property
    def burn_in(self) -> int:
        """Rows that are never scored: 100 of a short series, else a tenth but at least 200."""
        rows = len(self.values)
        return 100 if rows < 400 else max(200, rows // 10)


@dataclasses.dataclass
class Run:
    """What a predictor said about one series.

    Row i of every array was computed from rows < i, so row 0 is NaN. ``quantiles`` stand on ``QUANTILE_LEVELS``.
    Alarms are row numbers, locations the estimated first rows of the new regimes. ``extras`` holds further columns by
    name, and there row i is what was said *after* row i.
    """

    mean: np.ndarray
    lower_95: np.ndarray
    lower_80: np.ndarray
    upper_80: np.ndarray
    upper_95: np.ndarray
    quantiles: np.ndarray
    alarms: list[int] = dataclasses.field(default_factory=list)
    locations: list[int] = dataclasses.field(default_factory=list)
    extras: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)


def seconds_to_ns(text: str) -> int:
    """Seconds written as a decimal number, in nanoseconds, without a detour over binary fractions."""
    return int((Decimal(text) * 1_000_000_000).to_integral_value())


def read_values(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Timestamps (ns) and values of a ``t,value`` file; an empty or ``nan`` value is NaN.

    ``t`` is Unix seconds or an index, which then counts seconds; decimals are read exactly.
    """
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    timestamps = [seconds_to_ns(row["t"]) for row in rows]
    values = [float(row["value"]) if row["value"] not in ("", "nan") else math.nan for row in rows]
    return np.asarray(timestamps, dtype=np.int64), np.asarray(values, dtype=np.float64)


def load_series(
    part: Path, tracks: Sequence[str], *, only: Sequence[str] = (), limit: int | None = None
) -> list[Series]:
    """The series of ``part`` that belong to ``tracks``, in the order of its index.

    ``only`` keeps the series whose name contains one of the given texts, ``limit`` the first so many. The clean series
    that a kept corrupted one is compared with always comes along.
    """
    index_path = part / "index.json"
    if not index_path.is_file():
        raise SystemExit(f"{part} is not a part of the suite: {index_path} is missing")
    entries = json.loads(index_path.read_text())["series"]
    chosen = [entry for entry in entries if entry["track"] in tracks]
    if only:
        chosen = [entry for entry in chosen if any(text in entry["id"] for text in only)]
    chosen = chosen[:limit]
    bases = {entry["base"] for entry in chosen if entry.get("base")}
    chosen += [entry for entry in entries if entry["file"] in bases and entry not in chosen]
    if not chosen:
        raise SystemExit(f"no series of {part} matches tracks {list(tracks)}, only {list(only)}")
    return [
        Series(entry["id"], entry["track"], entry["kind"], *read_values(part / entry["file"]), entry)
        for entry in chosen
    ]


def write_forecasts(directory: Path, name: str, run: Run) -> None:
    """One forecast file in the scorer's format; a forecast that is not finite is left empty."""
    columns = np.stack([run.mean, run.lower_95, run.lower_80, run.upper_80, run.upper_95], axis=1)
    with (directory / f"{name}.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(FORECAST_COLUMNS)
        writer.writerows([[repr(float(cell)) if math.isfinite(cell) else "" for cell in row] for row in columns])


def write_alarms(directory: Path, name: str, run: Run) -> None:
    """One alarm file in the scorer's format."""
    (directory / f"{name}.json").write_text(json.dumps({"alarms": run.alarms, "locations": run.locations}))


def score(part: Path, track: str, directory: Path) -> str:
    """The table that the suite's own scorer prints for ``directory``."""
    scorer = part.resolve().parent / "score.py"
    if not scorer.is_file():
        raise SystemExit(f"the suite's scorer is missing: {scorer}")
    command = [sys.executable, str(scorer), str(part), track, str(directory)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"the scorer failed on {directory}:\n{done.stdout}{done.stderr}")
    return done.stdout


def crps(values: np.ndarray, quantiles: np.ndarray) -> float:
    """Twice the mean pinball loss of ``quantiles`` (rows, levels) on ``QUANTILE_LEVELS``: a grid's CRPS."""
    levels = np.asarray(QUANTILE_LEVELS)
    error = values[:, None] - quantiles
    return float(2.0 * np.mean(np.maximum(levels * error, (levels - 1.0) * error)))


def scored_rows(series: Series) -> np.ndarray:
    """Which rows count: observed ones after the burn-in."""
    mask = np.isfinite(series.values)
    mask[: series.burn_in] = False
    return mask


def naive_run(series: Series) -> Run:
    """The yardstick: the last value, with Gaussian quantiles from an EWMA(0.97) of squared increments."""
    rows = len(series.values)
    mean = np.full(rows, math.nan)
    deviation = np.full(rows, math.nan)
    last, variance, seen = math.nan, 0.0, 0
    for row, value in enumerate(series.values):
        mean[row], deviation[row] = last, math.sqrt(variance)
        if math.isfinite(value):
            if math.isfinite(last):
                seen += 1
                # a growing window until the memory is full
                gain = max(1.0 - NAIVE_MEMORY, 1.0 / seen)
                variance += gain * ((value - last) ** 2 - variance)
            last = value
    normal = statistics.NormalDist()
    offsets = np.asarray([normal.inv_cdf(level) for level in QUANTILE_LEVELS])
    quantiles = mean[:, None] + deviation[:, None] * offsets
    at = {level: index for index, level in enumerate(QUANTILE_LEVELS)}
    return Run(
        mean=mean,
        lower_95=quantiles[:, at[0.025]],
        lower_80=quantiles[:, at[0.1]],
        upper_80=quantiles[:, at[0.9]],
        upper_95=quantiles[:, at[0.975]],
        quantiles=quantiles,
    )


def published_yardstick(part: Path) -> dict[str, dict[str, float]]:
    """The suite's own figures of the yardstick by series, empty where the part comes without them."""
    path = part / "reference.json"
    if not path.is_file():
        return {}
    peers = json.loads(path.read_text()).get("point", {})
    return {name: figures["naive+gauss"] for name, figures in peers.items() if "naive+gauss" in figures}


def geometric_mean(values: Sequence[float]) -> float:
    """Geometric mean; NaN of nothing."""
    return float(np.exp(np.mean(np.log(np.maximum(values, 1e-9))))) if len(values) else math.nan
