"""One campaign from recorded ticks to a decision: search on the older ticks, judge on the newest.

    recorded ticks   ------- search: walk-forward folds, all trials -------|--- holdout ---
                                                                            one judgement of the few that count

The search's best value is the best of many, and so too good; nothing is applied or proposed for it. What is judged on
the holdout, by the tuner's own rule, is what would be done: one step within the trust region where the daemon applies
it itself.
"""

import contextlib
import math
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from usp_daemon.config import SPECS, ParameterClass, Settings, Value, document_of, parse_settings, step_toward
from usp_daemon.persistence import RecordedTicks, read_ticks
from usp_daemon.tuning import (
    PARAMETERS,
    BatchEvaluator,
    BayesianMetaOptimizer,
    DecisionRule,
    FoldPlan,
    History,
    HistoryError,
    Progress,
    ScorecardSource,
    TrialRecord,
    WalkForwardEvaluator,
    load_meta_optimization_config,
    path_of,
    prove,
    replaced,
)
from usp_daemon.tuning import Decision as Verdict

from ._request import CampaignFailedError, CampaignProgress, CampaignRequest
from ._state import Decision

EvaluatorFn = Callable[[History, Settings, FoldPlan], "JudgingEvaluator"]
_KEEP_JOURNALS = 20


class JudgingEvaluator(BatchEvaluator, ScorecardSource, Protocol):
    """What a campaign asks of its evaluator: to judge candidates, and to prove one on the holdout."""


def walk_forward(history: History, settings: Settings, plan: FoldPlan) -> JudgingEvaluator:
    """The predictor over recorded ticks, on one thread: the budget is a share of one core."""
    return WalkForwardEvaluator(history, settings, folds=plan, num_threads=1)


def run_campaign(
    request: CampaignRequest,
    *,
    progress_fn: Callable[[CampaignProgress], None],
    evaluator_fn: EvaluatorFn = walk_forward,
) -> Decision:
    """Search and judge. Raises :class:`CampaignFailedError` where the ticks do not suffice, and what tuning raises."""
    settings = request.settings()
    history = _history(request)
    try:
        judge = evaluator_fn(history, settings, FoldPlan.from_settings(settings))
    except HistoryError as error:
        raise CampaignFailedError(f"not enough recorded ticks: {error}") from error

    told = 0

    def tell(progress: Progress) -> None:
        nonlocal told
        told = progress.num_finished
        best = None if progress.best_number is None else progress.best_value
        progress_fn(CampaignProgress(num_trials=told, num_total=progress.num_total, best_value=best))

    config = replaced(load_meta_optimization_config(settings), seed=request.seed, **_fixed_structure(request, settings))
    _remove_old(pathlib.Path(config.checkpoint_path), request.name)
    optimizer = BayesianMetaOptimizer(judge, config, settings, study_name=request.name, progress_fn=tell)
    optimizer.optimize(total_trials=config.total_trials(config.tier))
    base = {path_of(name): value for name, value in optimizer.campaign.base.items()}
    wanted = _wanted(optimizer.records, base, optimizer.campaign.structural)
    decision = choose_changes(request, settings, base, wanted, judge, num_trials=len(optimizer.records))
    with contextlib.suppress(OSError):
        os.unlink(request.history)
    return decision


def _fixed_structure(request: CampaignRequest, settings: Settings) -> dict[str, Value]:
    """Where nothing may come of another structure, none is searched: each costs a compilation."""
    if ParameterClass.STRUCTURAL.value in (*request.applies, *request.proposes):
        return {}
    structural = (one for one in PARAMETERS if one.is_structural)
    return {f"{one.name}_{end}": settings[one.path] for one in structural for end in ("min", "max")}


def choose_changes(
    request: CampaignRequest,
    settings: Settings,
    base: Mapping[str, Value],
    wanted: Mapping[str, TrialRecord],
    judge: JudgingEvaluator,
    *,
    num_trials: int,
) -> Decision:
    """What to do with the best trials: ``wanted`` has the best one that changes traced parameters only ("traced") and
    the best of all ("all"), ``base`` the settings in force by path with "auto" worked out.
    """
    resolved = _with_values(settings, base)
    limit = settings.security.max_relative_change
    options: dict[str, dict[str, Value]] = {}
    for kind, trial in wanted.items():
        target = {path_of(name): value for name, value in trial.candidate.items()}
        full = {path: value for path, value in target.items() if value != base[path]}
        classes = {SPECS[path].key.parameter_class.value for path in full}
        if not full:
            continue
        if classes <= set(request.applies):
            step = step_toward(resolved, full, max_relative=limit)
            near = {path: _short(value, base[path]) for path, value in step.items()}
            options[f"apply {kind}"] = {path: value for path, value in near.items() if value != base[path]}
        if classes <= set(request.applies) | set(request.proposes):
            options[f"propose {kind}"] = full
    names = list(options)
    if names:
        judge.evaluate_batch([_bare(options[name]) for name in names])  # together: they share a run
    rule = DecisionRule.from_settings(settings)
    verdicts = {name: prove(_bare(options[name]), judge, rule=rule) for name in names}
    values = {name: _value_of(verdict) for name, verdict in verdicts.items()}
    good = {name: 1.0 - (verdict.gain or 0.0) for name, verdict in verdicts.items() if verdict.adopted}
    apply = min((name for name in good if name.startswith("apply")), key=good.__getitem__, default=None)
    rest = [name for name in good if name.startswith("propose") and _goes_beyond(options[name], request)]
    propose = min(rest, key=good.__getitem__, default=None)
    if apply is not None and propose is not None:
        # Another structure must be worth it beside what the traced parameters alone come to in the end.
        others = [value for name, value in good.items() if name != propose]
        if good[propose] > min(others) - rule.min_gain:
            propose = None
    trials = [trial for trial in wanted.values()]
    best = min(trials, key=lambda trial: trial.value or 0.0) if trials else None
    found = best is not None and any(options.values())
    reason = "better on ticks that the search had not seen" if good else (
        "what was best in the search was not better on ticks that it had not seen" if found
        else "no trial was better than the settings in force"
    )  # fmt: skip
    evidence: dict[str, Any] = {
        "campaign": request.name,
        "trials": num_trials,
        "best_trial": None if best is None else best.number,
        "best_value_in_search": None if best is None else best.value,
        "values_on_holdout": values,
        "standard_errors": {name: verdict.standard_error for name, verdict in verdicts.items()},
        "verdicts": {name: verdict.reason for name, verdict in verdicts.items()},
        "least_gain": rule.min_gain,
        "least_standard_errors": rule.min_t,
    }
    return Decision(
        apply=options[apply] if apply is not None else {},
        propose=options[propose] if propose is not None else {},
        reason=reason,
        num_trials=num_trials,
        best_value=None if best is None else best.value,
        evidence=evidence,
    )


def _short(value: Value, toward: Value) -> Value:
    """The value with six digits, rounded to the side of ``toward``: it stands in a file that people read."""
    if not isinstance(value, float) or not isinstance(toward, int | float) or value == toward:
        return value
    rounded = float(f"{value:.6g}")
    if abs(rounded - toward) <= abs(value - toward):
        return rounded
    unit = 10.0 ** (math.floor(math.log10(abs(value))) - 5) if value else 1e-6
    return float(f"{value + math.copysign(0.5 * unit, toward - value):.6g}")


def _goes_beyond(changes: Mapping[str, Value], request: CampaignRequest) -> bool:
    """Whether a proposal has something in it that is not applied anyway."""
    return not {SPECS[path].key.parameter_class.value for path in changes} <= set(request.applies)


def _wanted(
    records: Sequence[TrialRecord], base: Mapping[str, Value], structural: Sequence[str]
) -> dict[str, TrialRecord]:
    """The best feasible trial of all, and the best of those in the present structure."""
    usable = [record for record in records if record.is_feasible and record.value is not None]
    wanted: dict[str, TrialRecord] = {}
    same = [r for r in usable if all(r.candidate[name] == base[path_of(name)] for name in structural)]
    for kind, some in (("traced", same), ("all", usable)):
        if some:
            wanted[kind] = min(some, key=lambda record: (record.value, record.number))
    if "all" in wanted and wanted.get("traced") is wanted["all"]:
        del wanted["all"]
    return wanted


def _value_of(verdict: Verdict) -> float | None:
    return None if verdict.gain is None else 1.0 - verdict.gain


def _bare(changes: Mapping[str, Value]) -> dict[str, Value]:
    return {path.partition(".")[2]: value for path, value in changes.items()}


def _with_values(settings: Settings, values: Mapping[str, Value]) -> Settings:
    shown = {path: value for path, value in {**dict(settings.items()), **values}.items() if not SPECS[path].key.secret}
    return parse_settings(document_of(shown), source="the settings in force")


def classes_of(mode: str, structural_mode: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Which classes of parameters are applied, and which only proposed, under ``tuning.mode`` and
    ``tuning.structural_mode``; what ``mode`` does not do is not done for structural ones either.
    """
    ranks = ("off", "propose", "autonomous")
    rank = {
        ParameterClass.TRACED.value: ranks.index(mode),
        ParameterClass.STRUCTURAL.value: min(ranks.index(mode), ranks.index(structural_mode)),
    }
    return tuple(name for name in rank if rank[name] == 2), tuple(name for name in rank if rank[name] == 1)


# The ticks of a campaign


def _history(request: CampaignRequest) -> History:
    """The ticks that the campaign was begun with, or, at its beginning, those recorded by now."""
    path = pathlib.Path(request.history)
    arrays = _read_arrays(path)
    if arrays is None:
        recorded = read_ticks(request.ticks)
        arrays = {name: _columns(ticks) for name, ticks in sorted(recorded.items())}
        if not arrays:
            raise CampaignFailedError(f"no ticks are recorded in {request.ticks} yet")
        _write_arrays(path, arrays)
    return History.from_arrays(arrays)


_Columns = tuple[Any, Any, Any]


def _columns(ticks: RecordedTicks) -> _Columns:
    return ticks.timestamps_ns, ticks.values, ticks.record_timestamps_ns


def _read_arrays(path: pathlib.Path) -> dict[str, _Columns] | None:
    try:
        with np.load(path, allow_pickle=False) as file:
            names = [str(name) for name in file["symbols"]]
            return {
                name: (
                    file[f"{number}.timestamps_ns"],
                    file[f"{number}.values"],
                    file[f"{number}.record_timestamps_ns"],
                )
                for number, name in enumerate(names)
            }
    except (OSError, ValueError, KeyError, EOFError):
        return None


def _write_arrays(path: pathlib.Path, arrays: Mapping[str, _Columns]) -> None:
    content: dict[str, Any] = {"symbols": np.asarray(list(arrays))}
    for number, columns in enumerate(arrays.values()):
        for part, column in zip(("timestamps_ns", "values", "record_timestamps_ns"), columns, strict=True):
            content[f"{number}.{part}"] = column
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.usp-tmp")
    with temporary.open("wb") as file:
        np.savez(file, **content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def _remove_old(directory: pathlib.Path, name: str) -> None:
    """Campaigns of the daemon's own beyond the last few; those of other names are somebody's."""
    journals = sorted(path for path in directory.glob("live-*.journal") if path.stem != name)
    for path in journals[: -_KEEP_JOURNALS or None]:
        with contextlib.suppress(OSError):
            path.unlink()
