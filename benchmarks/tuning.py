"""How fast candidates are judged, and what tuning gains on ticks that the search has not seen.

``python -m benchmarks.tuning``                   a campaign of 50 trials on one series of 5,000 ticks x 5 folds
``python -m benchmarks.tuning --tier deep``       a deep one (500 trials, at most 8 structures), same ticks
``python -m benchmarks.tuning --one-by-one 3``    a few candidates alone besides, to compare with
``python -m benchmarks.tuning --gain PART``       every point series of a suite part tuned by itself on its first part;
                                                  the decision's outcome on the rest
``python -m benchmarks.tuning --against-random``  the sampler beside random search, 20 campaigns each on bundled series

Campaigns are the optimizer's own, in memory.
"""

import argparse
import os
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import optuna

from usp_daemon.config import Settings
from usp_daemon.tuning import (
    BayesianMetaOptimizer,
    Decision,
    FoldPlan,
    History,
    MetaOptimizationConfig,
    Progress,
    Tier,
    WalkForwardEvaluator,
)

from ._against_random import against_random
from ._bundled import load_bundled
from ._suite import Series, geometric_mean, load_series
from ._table import Row, format_columns, format_rows

FIGURES = {Tier.FAST: "< 120", Tier.DEEP: "< 3,600"}
SECOND = 1_000_000_000
COMPARED = "waterflow_1h,btcusd_1h,nyc_taxi_30m"
# Of the tuned part of a series: short series leave too little after the settings' own train_ratio and embargo.
GAIN_PLAN = FoldPlan(train_ratio=0.2, embargo=10, min_test=30)


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


def optimizer_over(judge: WalkForwardEvaluator, tier: str, **changes: Any) -> BayesianMetaOptimizer:
    """A campaign in memory under the default settings."""
    config = MetaOptimizationConfig(**changes)
    storage = optuna.storages.InMemoryStorage()
    return BayesianMetaOptimizer(judge, config, Settings(), tier=tier, storage=storage, progress_fn=show)


def show(progress: Progress) -> None:
    """How far it is."""
    print(f"\r{progress.num_finished}/{progress.num_total} trials", end="", file=sys.stderr, flush=True)


def campaign(
    history: History,
    tier: str,
    *,
    trials: int | None,
    batch: int,
    precision: str,
    num_structures: int,
    one_by_one: int,
) -> list[Row]:
    """Time a whole campaign: draws, evaluations, structure by structure."""
    began = time.perf_counter()
    processor = time.process_time()
    judge = WalkForwardEvaluator(history, Settings(), dtype=precision)
    optimizer = optimizer_over(judge, tier, batch_size=batch, max_structures=num_structures, patience_trials=0)
    trials = optimizer.optimize(total_trials=trials).n_trials
    print(file=sys.stderr)
    elapsed, used = time.perf_counter() - began, time.process_time() - processor
    running = elapsed - judge.compile_seconds
    ticks = trials * history.num_ticks
    note = f"{precision}, batches of {batch}, load {os.getloadavg()[0]:.1f}"
    rows = [
        Row(
            name=f"{tier} campaign, {trials} trials, {history.num_ticks:,} ticks",
            figure_to_reach=FIGURES.get(Tier(tier), "-"),
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
        feasible = [record.candidate for record in optimizer.records if record.is_feasible][-one_by_one:]
        alone = time.perf_counter()
        for candidate in feasible:
            judge.evaluate_batch([candidate])
        seconds = (time.perf_counter() - alone) / len(feasible)
        rows.append(
            Row(name="trials an hour, one by one", figure_to_reach="-", measured=3600.0 / seconds, unit="trials")
        )
        rows.append(
            Row(name="batched over one by one", figure_to_reach="-", measured=seconds * trials / running, unit="ratio")
        )
    return rows


def tuned(
    series: Series,
    *,
    tier: str,
    trials: int | None,
    share: float,
    precision: str,
    seed: int,
    programs: Any = None,
) -> tuple[Decision, tuple[float, float], Any]:
    """Tune one series on its first ``share``: the decision, the later CRPS and absolute error over the default's on
    the rest, and the programs, for the next series.
    """
    history = History.from_arrays({series.name: (series.timestamps_ns, series.values)})
    head = history.head(share)
    judge = WalkForwardEvaluator(head, Settings(), folds=GAIN_PLAN, dtype=precision, programs=programs)
    optimizer = optimizer_over(judge, tier, max_structures=1, seed=seed)
    optimizer.optimize(total_trials=trials)
    decision = optimizer.decide()
    assert decision is not None
    if not decision.adopted:
        return decision, (1.0, 1.0), judge.programs
    # one block: everything after the part that was tuned on
    plan = FoldPlan(train_ratio=share, n_folds=1, n_validation=0, embargo=0)
    ratios = []
    for score in ("crps", "absolute_error"):
        later = WalkForwardEvaluator(
            history, Settings(), folds=plan, dtype=precision, score=score, programs=judge.programs
        )
        ratios.append(later.evaluate_batch([decision.candidate])[0].value)
    return decision, (ratios[0], ratios[1]), judge.programs


def gain_table(
    part: Path,
    *,
    tier: str,
    trials: int | None,
    share: float,
    precision: str,
    seed: int,
    only: Sequence[str],
    jobs: int,
) -> str:
    """The outcome by series, and how many became better or worse, in the whole suite and in every other series."""
    first, *rest = load_series(part, ("point",), only=only)

    def one(series: Series, programs: Any = None) -> tuple[Decision, tuple[float, float], Any]:
        found = tuned(series, tier=tier, trials=trials, share=share, precision=precision, seed=seed, programs=programs)
        print(f"\r{series.name}: {found[1]} {found[0].reason}", file=sys.stderr, flush=True)
        return found

    outcomes = [one(first)]  # it makes the program for all
    with ThreadPoolExecutor(jobs) as pool:
        outcomes += pool.map(lambda series: one(series, outcomes[0][2]), rest)
    lines = [
        [series.name, "adopted" if decision.adopted else "kept", f"{crps:.4f}", f"{error:.4f}", decision.reason]
        for series, (decision, (crps, error), _) in zip([first, *rest], outcomes, strict=True)
    ]
    ratios = np.asarray([ratio for _, ratio, _ in outcomes])
    rows = []
    for score, column in (("CRPS", ratios[:, 0]), ("absolute error", ratios[:, 1])):
        for which, part_of in (("", column), (", even series", column[0::2]), (", odd series", column[1::2])):
            if not len(part_of):
                continue
            reach = ("< 1", ">= 0.30", ">= 0.85") if score == "CRPS" and not which else ("-", "-", "-")
            mean = geometric_mean(part_of.tolist())
            better, not_worse = float(np.mean(part_of < 0.99)), float(np.mean(part_of <= 1.005))
            rows += [
                Row(name=f"{score} over the default's, later ticks{which}", figure_to_reach=reach[0], measured=mean),
                Row(name="better by more than 1 %", figure_to_reach=reach[1], measured=better, unit="of series"),
                Row(
                    name="not worse by more than 0.5 %", figure_to_reach=reach[2], measured=not_worse, unit="of series"
                ),
            ]
    columns = ["series", "", "CRPS later", "MAE later", "why"]
    return format_columns(columns, lines, left=2) + "\n" + format_rows(rows)


def bundled_history(names: Sequence[str], num_ticks: int) -> History:
    """The first ticks of bundled series. Raises ``ValueError`` for a name that none has."""
    found = {series.name: series for series in load_bundled(num_ticks)}
    unknown = sorted(set(names) - set(found))
    if unknown:
        raise ValueError(f"no bundled series {', '.join(unknown)}; there are {', '.join(found)}")
    return History.from_arrays({name: (found[name].timestamps_ns, found[name].values) for name in names})


def comparison_rows(
    history: History, tier: str, *, trials: int, repeats: int, seed: int, precision: str, threads: int | None
) -> list[Row]:
    """The sampler's best values beside those of random search."""
    used = time.process_time()
    found = against_random(history, tier=tier, trials=trials, repeats=repeats, precision=precision, num_threads=threads)
    used = time.process_time() - used
    rows = []
    for name, values in (("the sampler's", found.modelled), ("random search's", found.random)):
        low, middle, high = np.percentile(values, (25, 50, 75))
        note = f"quartiles {low:.4f} to {high:.4f}, {repeats} campaigns of {trials} trials"
        rows.append(Row(name=f"{name} best value, median", figure_to_reach="-", measured=f"{middle:.4f}", note=note))
    note = f"{found.num_evaluated:,} evaluations of {history.num_ticks:,} ticks, load {os.getloadavg()[0]:.1f}"
    chance = found.chance_of_winning
    return [
        *rows,
        Row(name="a campaign of the sampler beats a random one", figure_to_reach="> 0.5", measured=chance),
        Row(name="Mann-Whitney, one-sided p", figure_to_reach="< 0.05", measured=f"{found.p:.2g}"),
        Row(name="time", figure_to_reach="-", measured=found.seconds, unit="s", note=note),
        Row(name="processor time of the process", figure_to_reach="-", measured=used, unit="s"),
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tuning", description="Speed and gain of tuning.")
    parser.add_argument("--tier", choices=[str(tier) for tier in Tier], help="(default: fast, sensitive with --gain)")
    parser.add_argument("--trials", type=int, help="trials (default: as the settings say)")
    parser.add_argument("--ticks", type=int, help="ticks of a symbol (default: 5000, 1000 with --against-random)")
    parser.add_argument("--symbols", type=int, default=1)
    parser.add_argument("--batch", type=int, default=16, help="candidates evaluated together")
    parser.add_argument("--structures", type=int, default=8, help="most structures")
    parser.add_argument("--one-by-one", type=int, default=0, help="candidates to evaluate alone, for comparison")
    parser.add_argument("--precision", choices=("float64", "float32"), default="float64")
    parser.add_argument("--gain", type=Path, metavar="PATH_TO_SUITE_PART", help="tune the point series of this part")
    parser.add_argument("--share", type=float, default=0.65, help="first part of each series that is tuned on")
    parser.add_argument("--jobs", type=int, default=2, help="series that are tuned side by side, with --gain")
    parser.add_argument("--only", default="", help="only series whose name contains one of these, comma-separated")
    parser.add_argument("--seed", type=int, help="of the draws, with --gain (default: 42) and --against-random (0)")
    parser.add_argument("--against-random", action="store_true", help="compare the sampler with random search")
    parser.add_argument("--repeats", type=int, default=20, help="campaigns of each kind, with --against-random")
    parser.add_argument(
        "--series", default=COMPARED, help=f"bundled series, with --against-random (default: {COMPARED})"
    )
    parser.add_argument("--threads", type=int, help="threads, with --against-random (default: one for each processor)")
    options = parser.parse_args(arguments)
    if options.against_random:
        try:
            history = bundled_history(options.series.split(","), options.ticks or 1000)
        except ValueError as error:
            parser.error(str(error))
        rows = comparison_rows(
            history,
            options.tier or Tier.SENSITIVE,
            trials=options.trials or 50,
            repeats=options.repeats,
            seed=options.seed or 0,
            precision=options.precision,
            threads=options.threads,
        )
        print(format_rows(rows))
        return 0
    if options.gain:
        only = [text for text in options.only.split(",") if text]
        table = gain_table(
            options.gain,
            tier=options.tier or Tier.SENSITIVE,
            trials=options.trials,
            share=options.share,
            precision=options.precision,
            seed=42 if options.seed is None else options.seed,
            only=only,
            jobs=options.jobs,
        )
        print(table)
        return 0
    rows = campaign(
        synthetic(options.ticks or 5000, options.symbols),
        options.tier or Tier.FAST,
        trials=options.trials,
        batch=options.batch,
        precision=options.precision,
        num_structures=options.structures,
        one_by_one=options.one_by_one,
    )
    print(format_rows(rows))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
