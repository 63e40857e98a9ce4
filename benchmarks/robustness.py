"""Forecasts on damaged streams of the benchmark suite, against those on the clean ones.

``python -m benchmarks.robustness PATH_TO_SUITE_PART`` prints the scorer's table, then per stream the error on clean
points relative to the clean run, the share of refused ticks among damaged and among clean rows, and non-finite outputs.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ._command import parser, run_tracks
from ._suite import Run, Series, score, write_forecasts
from ._table import format_columns


def damaged_rows(series: Series) -> np.ndarray:
    """Which rows of a corrupted stream are not what the clean one had."""
    damaged = np.zeros(len(series.values), dtype=bool)
    for start, stop in series.entry.get("bad_runs", []):
        damaged[start:stop] = True
    return damaged


def ratio(series: Series, run: Run, clean: tuple[Series, Run] | None) -> float:
    """Error on clean points over the clean run's error, or, on a shifted stream, over the last value's error."""
    rows = np.arange(len(series.values)) >= series.burn_in
    if clean is None:
        rows[series.entry["cps"]] = False
        step = np.abs(np.diff(series.values, prepend=series.values[0]))
        return float(np.mean(np.abs(series.values - run.mean)[rows]) / np.mean(step[rows]))
    base, base_run = clean
    truth = base.values[: len(series.values)]
    rows &= ~damaged_rows(series) & np.isfinite(truth)
    error = np.abs(truth - run.mean)[rows]
    return float(np.mean(error) / np.mean(np.abs(truth - base_run.mean[: len(truth)])[rows]))


def rows_not_finite(run: Run) -> int:
    """Rows after the first with a forecast or a quantile that is not a finite number."""
    columns = np.column_stack([run.mean, run.lower_95, run.lower_80, run.upper_80, run.upper_95, run.quantiles])
    return int(np.sum(~np.isfinite(columns[1:]).all(axis=1)))


def ratios(series: Sequence[Series], runs: Sequence[Run]) -> dict[str, list[float]]:
    """The error ratios of the corrupted streams by kind of damage."""
    by_name = {one.name: (one, run) for one, run in zip(series, runs, strict=True)}
    found: dict[str, list[float]] = {}
    for one, run in zip(series, runs, strict=True):
        if one.track == "robust":
            base = one.entry.get("base")
            found.setdefault(one.kind, []).append(ratio(one, run, by_name[Path(base).stem] if base else None))
    return found


def table(series: Sequence[Series], runs: Sequence[Run]) -> str:
    """Per corrupted stream: the ratio, what was refused, what was not finite."""
    by_name = {one.name: (one, run) for one, run in zip(series, runs, strict=True)}
    lines = []
    for one, run in zip(series, runs, strict=True):
        if one.track != "robust":
            continue
        base = one.entry.get("base")
        clean = by_name[Path(base).stem] if base else None
        damaged = damaged_rows(one)
        refused = run.extras["accepted"] == 0 if "accepted" in run.extras else np.zeros(len(damaged), dtype=bool)
        observed_clean = ~damaged & np.isfinite(one.values)
        lines.append(
            [
                one.name,
                one.kind,
                f"{ratio(one, run, clean):.3f}",
                f"{refused[damaged].mean():.3f}" if damaged.any() else "-",
                f"{refused[observed_clean].mean():.4f}",
                str(rows_not_finite(run)),
            ]
        )
    header = ["stream", "damage", "error ratio", "damaged refused", "clean refused", "rows not finite"]
    return format_columns(header, lines, left=2)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; the exit status is 0 unless the scorer refuses a file."""
    options = parser("robustness", "Damaged streams of the benchmark suite against clean ones.").parse_args(arguments)
    series, runs, directory = run_tracks(options, ("robust",))
    for one, run in zip(series, runs, strict=True):
        write_forecasts(directory, one.name, run)
    print(table(series, runs))
    print(score(options.part, "robust", directory))
    print(f"files for the scorer: {directory}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
