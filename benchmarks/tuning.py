"""How fast candidates are judged, and what tuning gains on ticks that the search has not seen.

``python -m benchmarks.tuning``                   a fast campaign (50 trials) on one series of 5,000 ticks x 5 folds
``python -m benchmarks.tuning --tier deep``       a deep one (500 trials, at most 8 structures), same ticks
``python -m benchmarks.tuning --one-by-one 3``    a few candidates alone besides, to compare with
``python -m benchmarks.tuning --gain PART``       every point series of a suite part tuned by itself on its first part;
                                                  the decision's outcome on the rest

Candidates are drawn at random from the search space: the same work as a sampler's, without its wits.
"""

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from usp_daemon.config import Settings
from usp_daemon.core import PredictorConfig, resolve_thresholds
from usp_daemon.tuning import (
    Decision,
    FoldPlan,
    History,
    SearchSpace,
    Tier,
    WalkForwardEvaluator,
    choose_structures,
    decide,
)

from ._suite import Series, geometric_mean, load_series
from ._table import Row, format_columns, format_rows

TRIALS = {Tier.FAST: 50, Tier.DEEP: 500}
FIGURES = {Tier.FAST: "< 120", Tier.DEEP: "< 3,600"}
SECOND = 1_000_000_000
# Of the tuned part of a series: what is only trained on, then five folds for the search and two for the decision.
GAIN_PLAN = FoldPlan(train_ratio=0.3, n_folds=5, n_validation=2, embargo=10, min_test=30)
Candidate = dict[str, int | float | bool | str]


def synthetic(num_ticks: int, num_symbols: int) -> History:
    """Autoregressions whose level and persistence change now and then."""
    arrays = {}
    for symbol in range(num_symbols):
        generator = np.random.default_rng([symbol])
        values, level, memory = np.zeros(num_ticks), 0.0, 0.6
        for tick in range(1, num_ticks):
            if generator.random() < 1.0 / 800.0:
                level, memory = 4.0 * generator.standard_normal(), generator.uniform(-0.2, 0.9)
            values[tick] = level + memory * (values[tick - 1] - level) + generator.standard_normal()
        arrays[f"symbol-{symbol}"] = (1_700_000_000 * SECOND + SECOND * np.arange(num_ticks), values)
    return History.from_arrays(arrays)


def draw(space: SearchSpace, generator: np.random.Generator, structure: Candidate | None = None) -> Candidate:
    """A random candidate whose detector stands at the asked rate of false alarms or above: others are never run."""
    candidate = space.random_candidate(generator, structure)
    if "cusum_h" in candidate:
        least = resolve_thresholds(
            cusum_k=float(candidate["cusum_k"]), mean_ticks_between_false=50_000.0, reference_fit_ticks=180.0
        )["cusum_h"]
        most = space["cusum_h"].high
        if least > most:
            del candidate["cusum_h"]  # too small an allowance: leave the threshold to the asked rate
        else:
            candidate["cusum_h"] = least + float(generator.random()) * (most - least)
    return candidate


def campaign(
    history: History, tier: Tier, *, trials: int, batch: int, precision: str, num_structures: int, one_by_one: int
) -> list[Row]:
    """Time a campaign's evaluations: structures one after the other, batches of candidates within each."""
    space = SearchSpace.from_settings(Settings(), tier)
    generator = np.random.default_rng(0)
    structures = choose_structures(space, PredictorConfig(), limit=min(num_structures, trials))
    began = time.perf_counter()
    processor = time.process_time()
    judge = WalkForwardEvaluator(history, Settings(), dtype=precision)
    values: list[float] = []
    shares = np.array_split(np.arange(trials), len(structures))
    for structure, share in zip(structures, shares, strict=True):
        for first in range(0, len(share), batch):
            size = min(batch, len(share) - first)
            candidates = [draw(space, generator, structure) for _ in range(size)]
            values += [one.value for one in judge.evaluate_batch(candidates)]
            print(f"\r{len(values)}/{trials} trials", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    elapsed, used = time.perf_counter() - began, time.process_time() - processor
    running = elapsed - judge.compile_seconds
    ticks = trials * history.num_ticks
    note = f"{precision}, batches of {batch}, load {os.getloadavg()[0]:.1f}"
    rows = [
        Row(
            name=f"{tier} campaign, {trials} trials, {history.num_ticks:,} ticks",
            figure_to_reach=FIGURES[tier],
            measured=elapsed,
            unit="s",
            note=note,
        ),
        Row(
            name="of it making programs",
            figure_to_reach="-",
            measured=judge.compile_seconds,
            unit="s",
            note=f"{judge.num_programs} structures",
        ),
        Row(name="processor time of the process", figure_to_reach="-", measured=used, unit="s"),
        Row(
            name="trials an hour, programs made", figure_to_reach="-", measured=3600.0 * trials / running, unit="trials"
        ),
        Row(name="a tick of a candidate, batched", figure_to_reach="-", measured=1e6 * running / ticks, unit="us"),
    ]
    if one_by_one:
        alone = time.perf_counter()
        for _ in range(one_by_one):
            judge.evaluate_batch([draw(space, generator, structures[0])])
        seconds = (time.perf_counter() - alone) / one_by_one
        rows.append(
            Row(name="trials an hour, one by one", figure_to_reach="-", measured=3600.0 / seconds, unit="trials")
        )
        rows.append(
            Row(name="batched over one by one", figure_to_reach="-", measured=seconds * trials / running, unit="ratio")
        )
    return rows


def tuned(
    series: Series, *, trials: int, share: float, precision: str, programs: Any = None
) -> tuple[Decision, float, Any]:
    """Tune one series on its first ``share``: the decision, the later CRPS over the default's on the rest, and the
    programs, for the next series.
    """
    arrays = {series.name: (series.timestamps_ns, series.values)}
    history = History.from_arrays(arrays)
    judge = WalkForwardEvaluator(history.head(share), Settings(), folds=GAIN_PLAN, dtype=precision, programs=programs)
    space = SearchSpace.from_settings(Settings(), Tier.DEEP)
    generator = np.random.default_rng(0)
    candidates = [draw(space, generator) for _ in range(trials)]
    decision = decide(candidates, judge.evaluate_batch(candidates), judge)
    if not decision.adopted:
        return decision, 1.0, judge.programs
    # one block: everything after the part that was tuned on
    plan = FoldPlan(train_ratio=share, n_folds=1, n_validation=0, embargo=0)
    later = WalkForwardEvaluator(history, Settings(), folds=plan, dtype=precision, programs=judge.programs)
    return decision, later.evaluate_batch([dict(decision.candidate)])[0].value, judge.programs


def gain_table(part: Path, *, trials: int, share: float, precision: str, only: Sequence[str]) -> str:
    """The outcome by series, and how many became better or worse."""
    lines, ratios, programs = [], [], None
    for one in load_series(part, ("point",), only=only):
        decision, ratio, programs = tuned(one, trials=trials, share=share, precision=precision, programs=programs)
        ratios.append(ratio)
        lines.append([one.name, "adopted" if decision.adopted else "kept", f"{ratio:.4f}", decision.reason])
        print(*lines[-1], file=sys.stderr, flush=True)
    better, not_worse = np.mean(np.asarray(ratios) < 0.99), np.mean(np.asarray(ratios) <= 1.005)
    rows = [
        Row(name="CRPS over the default's, later ticks", figure_to_reach="< 1", measured=geometric_mean(ratios)),
        Row(name="better by more than 1 %", figure_to_reach=">= 0.30", measured=float(better), unit="of series"),
        Row(
            name="not worse by more than 0.5 %", figure_to_reach=">= 0.85", measured=float(not_worse), unit="of series"
        ),
    ]
    return format_columns(["series", "", "later", "why"], lines, left=2) + "\n" + format_rows(rows)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tuning", description="Speed and gain of tuning.")
    parser.add_argument("--tier", type=Tier, choices=list(Tier), default=Tier.FAST)
    parser.add_argument("--trials", type=int, help="trials (default: 50 fast, 500 deep, 60 with --gain)")
    parser.add_argument("--ticks", type=int, default=5000, help="ticks of a symbol")
    parser.add_argument("--symbols", type=int, default=1)
    parser.add_argument("--batch", type=int, default=16, help="candidates evaluated together")
    parser.add_argument("--structures", type=int, default=8, help="most structures")
    parser.add_argument("--one-by-one", type=int, default=0, help="candidates to evaluate alone, for comparison")
    parser.add_argument("--precision", choices=("float64", "float32"), default="float64")
    parser.add_argument("--gain", type=Path, metavar="PATH_TO_SUITE_PART", help="tune the point series of this part")
    parser.add_argument("--share", type=float, default=0.65, help="first part of each series that is tuned on")
    parser.add_argument("--only", default="", help="only series whose name contains one of these, comma-separated")
    options = parser.parse_args(arguments)
    if options.gain:
        only = [text for text in options.only.split(",") if text]
        trials = options.trials or 60
        print(gain_table(options.gain, trials=trials, share=options.share, precision=options.precision, only=only))
        return 0
    rows = campaign(
        synthetic(options.ticks, options.symbols),
        options.tier,
        trials=options.trials or TRIALS[options.tier],
        batch=options.batch,
        precision=options.precision,
        num_structures=options.structures,
        one_by_one=options.one_by_one,
    )
    print(format_rows(rows))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
