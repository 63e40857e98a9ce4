"""The campaign in words (V-MIN-2), and as data for whoever wants to go on with it."""

import math
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import msgspec

from usp_daemon.config import Value

from ._campaign import Campaign
from ._decision import Decision
from ._importance import MIN_TRIALS, parameter_importance
from ._progress import StopReason, best_of, is_out_of_patience, last_improvement
from ._sampling import structure_fn_of
from ._space import path_of
from ._trials import TrialRecord

_RULE = "=" * 80
_STATES = ("complete", "pruned", "failed", "running")


class StructureSummary(msgspec.Struct, frozen=True, kw_only=True):
    """One structure: its parameters, the trials tried in it, the best feasible value among them."""

    params: dict[str, Any]
    num_trials: int
    best_value: float | None
    best_number: int | None


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """What a report says, as data. ``importance`` is None with fewer than 20 complete trials.

    What is proposed is the trial that was decided for, which need not be the best; the best as long as nothing was.
    """

    study_name: str
    tier: str
    seed: int
    num_trials: int
    states: dict[str, int]
    num_infeasible: int
    seconds: float
    best_value: float | None
    best_number: int | None
    best_params: dict[str, Any]
    changes: dict[str, tuple[Any, Any]]
    proposed_number: int | None
    proposed_value: float | None
    proposed_changes: dict[str, tuple[Any, Any]]
    base_value: float | None
    last_improvement: int | None
    trials_since_improvement: int | None
    patience_trials: int
    is_out_of_patience: bool
    stop_reason: str | None
    decision: Decision | None
    importance: dict[str, float] | None
    structures: tuple[StructureSummary, ...]
    audit: tuple[dict[str, Any], ...] = ()


def summarise(
    campaign: Campaign,
    records: Sequence[TrialRecord],
    *,
    patience_trials: int = 0,
    min_improvement: float = 0.0,
    stop_reason: StopReason | None = None,
    decision: Decision | None = None,
    audit: Sequence[Mapping[str, Any]] = (),
) -> Summary:
    """Everything that the reports show."""
    best = best_of(records)
    settled = [record for record in records if record.is_finished]
    counts = Counter(record.state for record in records)
    improved = last_improvement(settled, min_improvement)
    candidate = best.candidate if best is not None else {}
    proposed = best
    if decision is not None and decision.adopted:
        proposed = next((record for record in records if record.candidate == decision.candidate), None)
    first = next((record for record in records if record.number == 0), None)
    return Summary(
        study_name=campaign.name,
        tier=campaign.tier,
        seed=campaign.seed,
        num_trials=len(records),
        states={state: counts[state] for state in _STATES if counts[state]},
        num_infeasible=sum(record.state == "complete" and not record.is_feasible for record in records),
        seconds=sum(record.seconds for record in records),
        best_value=best.value if best is not None else None,
        best_number=best.number if best is not None else None,
        best_params=dict(sorted(candidate.items())),
        changes=_changes(campaign, candidate),
        proposed_number=proposed.number if proposed is not None else None,
        proposed_value=proposed.value if proposed is not None else None,
        proposed_changes=_changes(campaign, proposed.candidate if proposed is not None else {}),
        base_value=first.value if first is not None else None,
        last_improvement=improved,
        trials_since_improvement=settled[-1].number - improved if settled and improved is not None else None,
        patience_trials=patience_trials,
        is_out_of_patience=is_out_of_patience(settled, patience_trials, min_improvement),
        stop_reason=str(stop_reason) if stop_reason is not None else None,
        decision=decision,
        importance=parameter_importance(records, campaign.distributions(), seed=campaign.seed % 2**32),
        structures=_structures(campaign, records),
        audit=tuple(dict(entry) for entry in audit),
    )


def _changes(campaign: Campaign, candidate: Mapping[str, Value]) -> dict[str, tuple[Any, Any]]:
    return {
        path_of(name): (campaign.base[name], value)
        for name, value in sorted(candidate.items())
        if value != campaign.base[name]
    }


def render_report(campaign: Campaign, records: Sequence[TrialRecord], **options: Any) -> str:
    """The report in words; ``options`` are those of :func:`summarise`."""
    return text_of(summarise(campaign, records, **options))


def text_of(summary: Summary) -> str:
    """The report in words."""
    lines = [_RULE, "Meta-Optimization Summary", _RULE]
    lines.append(f"Study Name: {summary.study_name}")
    lines.append(f"Tier: {summary.tier}_tuning")
    states = ", ".join(f"{count} {state}" for state, count in summary.states.items())
    lines.append(f"Total Trials: {summary.num_trials}" + (f" ({states})" if states else ""))
    if summary.num_infeasible:
        lines.append(f"Infeasible: {summary.num_infeasible} of the complete ones break the constraint")
    lines.append(f"Evaluation Time: {duration(summary.seconds)}")
    if summary.best_value is None:
        lines.append("Best Value: none yet: no trial is complete and feasible")
    else:
        lines.append(f"Best Value: {summary.best_value:.6f} (trial {summary.best_number})")
        if summary.base_value is not None:
            lines.append(f"Settings At The Start: {summary.base_value:.6f} (trial 0)")
    lines += ["", *_decision(summary), "", *_parameters(summary), "", *_importance(summary), "", *_convergence(summary)]
    if summary.structures and summary.structures[0].params:
        lines += ["", "Structures Visited:"]
        for structure in summary.structures:
            shown = ", ".join(f"{name} = {shortest(value)}" for name, value in structure.params.items())
            best = "none feasible" if structure.best_value is None else f"best {structure.best_value:.6f}"
            lines.append(f"    {shown}: {structure.num_trials} trials, {best}")
    lines += ["", *_audit(summary), _RULE]
    return "\n".join(lines)


def verdict_of(summary: Summary) -> str:
    """What to do, in a line."""
    if summary.decision is None:
        return "not yet: the best trial was not judged on ticks that the search has not seen"
    if summary.decision.adopted:
        return f"adopt these: {summary.decision.reason}"
    return f"keep the default: no candidate proved itself on ticks it was not chosen on ({summary.decision.reason})"


def proposal_of(summary: Summary) -> str:
    """What is proposed as TOML, the old values beside them; a comment only where nothing is to be adopted."""
    if summary.proposed_value is None or not summary.proposed_changes:
        return f"# {summary.study_name}: no trial is better than the settings at the start\n"
    if summary.decision is not None and not summary.decision.adopted:
        return f"# {summary.study_name}: {verdict_of(summary)}\n"
    sections: dict[str, list[str]] = {}
    for path, (old, new) in summary.proposed_changes.items():
        section, _, name = path.partition(".")
        sections.setdefault(section, []).append(f"{name} = {toml_value(new)}  # was {toml_value(old)}")
    head = f"# {summary.study_name}, trial {summary.proposed_number}: value {summary.proposed_value:.6f}"
    if summary.base_value is not None:
        head += f", the settings at the start: {summary.base_value:.6f}"
    head += f"\n# {verdict_of(summary)}"
    body = "\n\n".join("\n".join([f"[{section}]", *lines]) for section, lines in sections.items())
    return f"{head}\n{body}\n"


def _structures(campaign: Campaign, records: Sequence[TrialRecord]) -> tuple[StructureSummary, ...]:
    structure_fn = structure_fn_of(campaign.structural)
    groups: dict[Hashable, list[TrialRecord]] = {}
    for record in records:
        groups.setdefault(structure_fn(record.params), []).append(record)
    summaries = []
    for members in groups.values():
        best = best_of(members)
        summaries.append(
            StructureSummary(
                params={name: members[0].params[name] for name in campaign.structural},
                num_trials=len(members),
                best_value=best.value if best is not None else None,
                best_number=best.number if best is not None else None,
            )
        )
    summaries.sort(key=lambda summary: (summary.best_value is None, summary.best_value or 0.0))
    return tuple(summaries)


def _decision(summary: Summary) -> list[str]:
    lines = [f"Decision: {verdict_of(summary)}"]
    decision = summary.decision
    if decision is not None and decision.gain is not None and decision.standard_error is not None:
        lines.append(
            f"    gain on the ticks kept from the search: {decision.gain:.2%} +- {decision.standard_error:.2%} "
            f"({decision.num_blocks} blocks)"
        )
    if decision is not None and decision.adopted and summary.proposed_number != summary.best_number:
        lines.append(f"    trial {summary.proposed_number}: what was better in the search did not prove itself")
        for path, (old, new) in summary.proposed_changes.items():
            lines.append(f"    {path.partition('.')[2]:30s} = {_aligned(new)}  (was {_aligned(old)})")
    return lines


def _parameters(summary: Summary) -> list[str]:
    if not summary.best_params:
        return ["Best Hyperparameters: none"]
    changed = {path.partition(".")[2]: old for path, (old, _) in summary.changes.items()}
    lines = ["Best Hyperparameters:"]
    for name, value in summary.best_params.items():
        was = f"  (was {_aligned(changed[name])})" if name in changed else ""
        lines.append(f"    {name:30s} = {_aligned(value)}{was}")
    return lines


def _importance(summary: Summary) -> list[str]:
    if summary.importance is None:
        num_complete = summary.states.get("complete", 0)
        return [f"Parameter Importance: not available (needs {MIN_TRIALS} complete trials, there are {num_complete})"]
    lines = ["Parameter Importance (fANOVA):", "    (share in the objective's variance; the rest is interaction)", ""]
    lines += [f"    {name:30s} {share:.4f}" for name, share in list(summary.importance.items())[:10]]
    if len(summary.importance) > 10:
        lines.append(
            f"    {'the other ' + str(len(summary.importance) - 10):30s} "
            f"{sum(list(summary.importance.values())[10:]):.4f}"
        )
    return lines


def _convergence(summary: Summary) -> list[str]:
    lines = ["Convergence:"]
    if summary.last_improvement is None:
        lines.append("    no trial may be used so far")
    else:
        lines.append(f"    last improvement: trial {summary.last_improvement}")
        patience = f" of {summary.patience_trials} (patience)" if summary.patience_trials else ""
        lines.append(f"    trials since then: {summary.trials_since_improvement}{patience}")
    if summary.is_out_of_patience:
        lines.append("    status: converged, by patience")
    elif summary.stop_reason is not None:
        lines.append(f"    status: ended: {summary.stop_reason}")
    else:
        lines.append("    status: not converged")
    if "running" in summary.states:
        lines.append(f"    unfinished: {summary.states['running']} trials are running or were interrupted")
    return lines


def _audit(summary: Summary) -> list[str]:
    if not summary.audit:
        return ["Applied: nothing on record"]
    lines = ["Applied And Rolled Back:"]
    for entry in summary.audit:
        lines.append("    " + audit_line(entry))
    return lines


def audit_line(entry: Mapping[str, Any]) -> str:
    """One entry of the audit log in words; whatever it lacks is left out."""
    parts = [str(entry.get("time") or entry.get("timestamp") or ""), str(entry.get("event") or "")]
    delta = entry.get("delta")
    if isinstance(delta, Mapping):
        parts.append(", ".join(f"{name}: {_change(change)}" for name, change in delta.items()))
    for name in ("trigger", "reason", "status"):
        if entry.get(name):
            parts.append(f"{name}: {entry[name]}")
    return "  ".join(part for part in parts if part)


def _change(change: Any) -> str:
    if isinstance(change, Sequence) and not isinstance(change, str) and len(change) == 2:
        return f"{shortest(change[0])} -> {shortest(change[1])}"
    return shortest(change)


def _aligned(value: Value) -> str:
    if isinstance(value, float):
        return f"{value:.6f}" if value == 0.0 or 1e-3 <= abs(value) < 1e6 else f"{value:.4e}"
    return str(value)


def shortest(value: Any) -> str:
    """A value in few characters."""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def toml_value(value: Value) -> str:
    """A value as TOML writes it, every digit kept."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return repr(value) if math.isfinite(value) else "nan"
    if isinstance(value, int):
        return str(value)
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


def duration(seconds: float) -> str:
    """A time in words: "45.2 s", "12 min 30 s", "3 h 5 min"."""
    if seconds < 60.0:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min"
