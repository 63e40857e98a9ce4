"""A short form of every benchmark, as one table: the figure to reach beside the measured one.

``python -m benchmarks.bench`` measures speed, memory and batch invariance, and accuracy on the series bundled with the
package. ``--suite PATH_TO_SUITE_PART`` measures accuracy, alarms and robustness on that part instead; ``--full`` gives
every measurement its full length.
"""

import argparse
import importlib
import os
import platform
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from usp_daemon import core

from . import accuracy, alarms, robustness
from ._command import keep_compiled_programs
from ._engines import scan
from ._suite import Run, Series, geometric_mean, load_series, published_yardstick
from ._table import Row, format_rows

MACHINE_BENCHMARKS = ("throughput", "sinkhorn", "memory", "invariance")
TRACKS = ("point", "alarms", "robust")
ROBUSTNESS_FIGURES = {
    "missing": "<= 1.04",
    "spikes": "<= 1.10",
    "frozen": "<= 1.03",
    "garbage": "<= 1.5",
    "shift": "<= 0.85",
}


def accuracy_rows(series: Sequence[Series], runs: Sequence[Run], part: Path | None) -> list[Row]:
    """Relative errors and coverage by group."""
    published = published_yardstick(part) if part else {}
    scores = [accuracy.evaluate(one, run, published.get(one.name)) for one, run in zip(series, runs, strict=True)]
    split = accuracy.groups(scores)
    reach = {"all": "<= 0.72", "finance+tick": "<= 1.002", "other real": "<= 0.50", "simulated": "<= 0.81"}
    rows = [
        Row(
            name=f"MAE / last value, {name} ({len(members)})",
            figure_to_reach=reach[name] if part else "-",
            measured=geometric_mean([one.relative_mae for one in members]),
            unit="ratio",
        )
        for name, members in split.items()
    ]
    everything = split["all"]
    # on series that mostly repeat their value no interval can cover 80 %
    continuous = [
        score
        for score, one in zip(scores, series, strict=True)
        if np.mean(np.diff(one.values[np.isfinite(one.values)]) == 0.0) <= 0.5
    ]
    return [
        *rows,
        Row(
            name="CRPS / last value with Gaussian interval, all",
            figure_to_reach="<= 0.69" if part else "-",
            measured=geometric_mean([one.relative_crps for one in everything]),
            unit="ratio",
        ),
        Row(
            name="coverage of 80 % intervals",
            figure_to_reach="0.80 +- 0.02",
            measured=float(np.mean([one.coverage_80 for one in continuous])),
        ),
        Row(
            name="coverage of 95 % intervals",
            figure_to_reach="0.95 +- 0.01",
            measured=float(np.mean([one.coverage_95 for one in continuous])),
        ),
    ]


def alarm_rows(series: Sequence[Series], runs: Sequence[Run]) -> list[Row]:
    """F1, delay and false alarms on the simulated streams."""
    summary = alarms.summarise(series, runs, ("simchange", "null"))
    quiet = alarms.summarise(series, runs, ("null",))
    return [
        Row(name="alarms, simulated changes, F1", figure_to_reach=">= 0.88", measured=summary.f1),
        Row(name="alarms, mean delay", figure_to_reach="<= 22", measured=summary.mean_delay, unit="ticks"),
        Row(
            name="false alarms on no-change streams",
            figure_to_reach="<= 0.3",
            measured=quiet.false_per_thousand,
            unit="per 1,000 ticks",
        ),
    ]


def robustness_rows(series: Sequence[Series], runs: Sequence[Run]) -> list[Row]:
    """Error on clean points by kind of damage, and whether anything was not finite."""
    ratios = robustness.ratios(series, runs)
    rows = [
        Row(
            name=f"robustness, {kind}",
            figure_to_reach=figure,
            measured=geometric_mean(ratios[kind]),
            unit="MAE / last value" if kind == "shift" else "MAE / clean MAE",
        )
        for kind, figure in ROBUSTNESS_FIGURES.items()
        if kind in ratios
    ]
    bad = sum(robustness.rows_not_finite(run) for run in runs)
    return [*rows, Row(name="forecasts that are not finite", figure_to_reach="0", measured=float(bad), unit="rows")]


def suite_rows(part: Path, short: bool) -> list[Row]:
    """Accuracy, alarms and robustness on a suite part: all its series side by side, in one compiled program."""
    series = load_series(part, TRACKS)
    if short:
        # a whole track costs little more than a piece of it; only the alarm series that nothing is reported of go
        series = [one for one in series if one.kind not in ("tssb", "tcpd")]
    began = time.perf_counter()
    runs = scan(series, core.PredictorConfig())
    elapsed = time.perf_counter() - began
    kept: dict[str, tuple[list[Series], list[Run]]] = {}
    for track in TRACKS:
        pairs = [(one, run) for one, run in zip(series, runs, strict=True) if one.track == track]
        if track == "robust":
            bases = {one.entry.get("base") for one, _ in pairs}
            pairs += [(one, run) for one, run in zip(series, runs, strict=True) if one.entry["file"] in bases]
        kept[track] = ([one for one, _ in pairs], [run for _, run in pairs])
    ticks = sum(len(one.values) for one in series)
    return [
        *accuracy_rows(*kept["point"], part),
        *alarm_rows(*kept["alarms"]),
        *robustness_rows(*kept["robust"]),
        Row(
            name="the above", figure_to_reach="-", measured=elapsed, unit="s", note=f"{ticks:,} ticks, with compilation"
        ),
    ]


def bundled_rows(short: bool) -> list[Row]:
    """Accuracy on the series that come with the package."""
    from ._bundled import load_bundled

    series = load_bundled(rows=1000 if short else None)
    return accuracy_rows(series, scan(series, core.PredictorConfig()), None)


def machine() -> str:
    """What the figures were measured on."""
    device = jax.devices()[0]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{platform.machine()}, {cores} cores, {device.platform} {device.device_kind}, JAX {jax.__version__}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; the exit status is 1 if a measurement failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench", description="A short form of every benchmark.")
    parser.add_argument("--suite", type=Path, help="a part of the benchmark suite, a directory with index.json")
    parser.add_argument("--full", action="store_true", help="every measurement at its full length")
    parser.add_argument("--skip", default="", help="benchmarks to leave out, comma-separated")
    options = parser.parse_args(arguments)
    keep_compiled_programs()
    short = not options.full
    skipped = set(options.skip.split(","))
    measurements = {
        name: (lambda name=name: importlib.import_module(f"benchmarks.{name}").measure(short))
        for name in MACHINE_BENCHMARKS
    }
    measurements["accuracy"] = lambda: suite_rows(options.suite, short) if options.suite else bundled_rows(short)
    rows: list[Row] = []
    failed = False
    for name, measure in measurements.items():
        if name in skipped:
            continue
        print(f"{name} ...", file=sys.stderr)
        try:
            rows += measure()
        except Exception:
            # one broken measurement must not hide the others; the table and the exit status say so
            traceback.print_exc()
            rows.append(Row(name=name, figure_to_reach="", measured="failed", note="traceback on standard error"))
            failed = True
    print(f"measured on {machine()}")
    print(format_rows(rows))
    return int(failed)


if __name__ == "__main__":
    raise SystemExit(main())
