"""Accuracy of point forecasts and intervals on a part of the benchmark suite.

``python -m benchmarks.accuracy PATH_TO_SUITE_PART`` prints the scorer's table, then per series and per group the CRPS
and the four experts' own errors, all relative to the last value with a Gaussian interval.
"""

import dataclasses
import math
import sys
from collections.abc import Mapping, Sequence

import numpy as np

from ._command import parser, run_tracks
from ._suite import (
    Run,
    Series,
    crps,
    geometric_mean,
    naive_run,
    published_yardstick,
    score,
    scored_rows,
    write_forecasts,
)
from ._table import format_columns

EXPERTS = ("A", "B", "C", "D")
GROUPS = {
    "all": lambda kind: True,
    "finance+tick": lambda kind: kind in ("finance", "tick"),
    "other real": lambda kind: kind not in ("finance", "tick", "simulated", "bundled"),
    "simulated": lambda kind: kind == "simulated",
}


@dataclasses.dataclass(frozen=True)
class Scores:
    """One series: ratios to the yardstick, coverage, the experts' own ratios and their mean weights."""

    name: str
    kind: str
    relative_mae: float
    relative_crps: float
    coverage_80: float
    coverage_95: float
    expert_relative_mae: tuple[float, ...]
    mean_weights: tuple[float, ...]
    season: float


def evaluate(series: Series, run: Run, published: Mapping[str, float] | None = None) -> Scores:
    """Score one run against the yardstick on the rows that count.

    ``published`` holds the suite's own figures of the yardstick (``mae``, ``crps``), where it has them. Ours agree with
    them to 1e-3 except for the CRPS on tick data and around gaps, where the suite's interval is the wider one.
    """
    rows = scored_rows(series)
    values = series.values[rows]
    yardstick = naive_run(series)
    naive_mae = float(np.mean(np.abs(values - yardstick.mean[rows])))
    naive_crps = (published or {}).get("crps") or crps(values, yardstick.quantiles[rows])
    experts: tuple[float, ...] = ()
    weights: tuple[float, ...] = ()
    season = math.nan
    if "kernel_predictions" in run.extras:
        said = np.roll(run.extras["kernel_predictions"], 1, axis=0)[rows]
        experts = tuple(float(error) / naive_mae for error in np.mean(np.abs(values[:, None] - said), axis=0))
        weights = tuple(float(weight) for weight in np.mean(run.extras["weights"][rows], axis=0))
        season = float(run.extras["season_length"][-1])
    return Scores(
        name=series.name,
        kind=series.kind,
        relative_mae=float(np.mean(np.abs(values - run.mean[rows]))) / naive_mae,
        relative_crps=crps(values, run.quantiles[rows]) / naive_crps,
        coverage_80=float(np.mean((values >= run.lower_80[rows]) & (values <= run.upper_80[rows]))),
        coverage_95=float(np.mean((values >= run.lower_95[rows]) & (values <= run.upper_95[rows]))),
        expert_relative_mae=experts,
        mean_weights=weights,
        season=season,
    )


def groups(scores: Sequence[Scores]) -> dict[str, list[Scores]]:
    """The scores by the suite's groups, empty ones left out."""
    split = {name: [one for one in scores if belongs(one.kind)] for name, belongs in GROUPS.items()}
    return {name: members for name, members in split.items() if members}


def table(scores: Sequence[Scores]) -> str:
    """Per series and per group: relative MAE and CRPS, the experts' relative MAE and their mean weights."""
    header = [
        "series",
        "rMAE",
        "rCRPS",
        "cov80",
        "cov95",
        *[f"{e} rMAE" for e in EXPERTS],
        *[f"w {e}" for e in EXPERTS],
    ]
    header.append("season")

    def cells(values: Sequence[float], pattern: str, width: int = 4) -> list[str]:
        return [format(value, pattern) for value in values] if values else ["-"] * width

    lines = [
        [
            one.name,
            *cells([one.relative_mae, one.relative_crps], ".4f"),
            *cells([one.coverage_80, one.coverage_95], ".3f"),
            *cells(one.expert_relative_mae, ".4f"),
            *cells(one.mean_weights, ".2f"),
            "-" if math.isnan(one.season) else f"{one.season:.0f}",
        ]
        for one in scores
    ]
    for name, members in groups(scores).items():
        experts = [one.expert_relative_mae for one in members if one.expert_relative_mae]
        weights = [one.mean_weights for one in members if one.mean_weights]
        lines.append(
            [
                f"{name} ({len(members)})",
                *cells([geometric_mean([one.relative_mae for one in members])], ".4f"),
                *cells([geometric_mean([one.relative_crps for one in members])], ".4f"),
                *cells([float(np.mean([one.coverage_80 for one in members]))], ".3f"),
                *cells([float(np.mean([one.coverage_95 for one in members]))], ".3f"),
                *cells([geometric_mean(column) for column in zip(*experts, strict=True)], ".4f"),
                *cells([float(np.mean(column)) for column in zip(*weights, strict=True)], ".2f"),
                "",
            ]
        )
    return format_columns(header, lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; the exit status is 0 unless the scorer refuses a file."""
    options = parser("accuracy", "Point forecasts and intervals on a part of the benchmark suite.").parse_args(
        arguments
    )
    series, runs, directory = run_tracks(options, ("point",))
    for one, run in zip(series, runs, strict=True):
        write_forecasts(directory, one.name, run)
    print(score(options.part, "point", directory))
    published = published_yardstick(options.part)
    print(table([evaluate(one, run, published.get(one.name)) for one, run in zip(series, runs, strict=True)]))
    print(f"files for the scorer: {directory}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
