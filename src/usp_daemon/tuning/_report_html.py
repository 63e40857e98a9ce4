"""The campaign as one HTML page: drawings are inline SVG, nothing is loaded from anywhere, no script is needed."""

import html
import math
import pathlib
from collections.abc import Sequence
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution

from ._campaign import Campaign
from ._importance import MIN_TRIALS
from ._progress import best_so_far
from ._report import Summary, audit_line, duration, proposal_of, shortest, verdict_of
from ._svg import Axis, Chart, bars, category_axis, linear_axis, log_axis
from ._trials import TrialRecord

MAX_SLICES = 6
_STYLE = """
:root { color-scheme: light dark;
  --page: #f6f7f9; --card: #ffffff; --line: #dfe3e8; --text: #1d2530; --soft: #67717e; --grid: #e9ecf0;
  --mark: #1668dc; --best: #d4380d; --pruned: #b0b7c0; --bar: #1668dc; --infeasible: #d48806; }
@media (prefers-color-scheme: dark) { :root {
  --page: #12161c; --card: #1a2028; --line: #2c3540; --text: #e4e8ee; --soft: #93a0b0; --grid: #262e38;
  --mark: #5aa2ff; --best: #ff7a45; --pruned: #5c6673; --bar: #5aa2ff; --infeasible: #ffc53d; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--text);
  font: 14px/1.5 system-ui, -apple-system, "Segoe UI", sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 28px 20px 60px; }
h1 { font-size: 24px; margin: 0 0 4px; } h2 { font-size: 17px; margin: 0 0 8px; } p { margin: 6px 0; }
.soft { color: var(--soft); }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 16px 18px;
  margin: 16px 0; }
.grid { display: grid; grid-template-columns: repeat(auto-fit, minmax(320px, 1fr)); gap: 12px 20px; }
ul.facts { list-style: none; display: flex; flex-wrap: wrap; gap: 6px 26px; padding: 0; margin: 12px 0 0;
  color: var(--soft); }
ul.facts b { color: var(--text); font-variant-numeric: tabular-nums; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: 5px 10px; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { color: var(--soft); font-weight: 600; } th:first-child, td:first-child { text-align: left; }
tr:last-child td { border-bottom: 0; } td.changed { color: var(--best); font-weight: 600; }
pre { margin: 0; overflow-x: auto; font: 12.5px/1.5 ui-monospace, monospace; }
svg { display: block; width: 100%; height: auto; } svg text { fill: var(--soft); font-size: 11px; }
svg .grid-line { stroke: var(--grid); } svg .name { fill: var(--text); font-size: 12px; }
svg .complete { fill: var(--mark); fill-opacity: .75; } svg .pruned, svg .failed { fill: var(--pruned); }
svg .infeasible { fill: none; stroke: var(--infeasible); stroke-width: 1.4; }
svg .best { fill: var(--best); } svg .line { fill: none; stroke: var(--best); stroke-width: 1.8; }
svg .base { stroke: var(--soft); stroke-dasharray: 4 4; } svg .bar { fill: var(--bar); }
.legend { display: flex; flex-wrap: wrap; gap: 2px 16px; color: var(--soft); font-size: 12px; margin: 2px 0 6px; }
.legend i { display: inline-block; width: 10px; height: 10px; border-radius: 50%; margin-right: 5px; }
"""


def write_html_report(path: pathlib.Path, summary: Summary, campaign: Campaign, records: Sequence[TrialRecord]) -> None:
    """Write the page to ``path``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(html_of(summary, campaign, records), encoding="utf-8")


def html_of(summary: Summary, campaign: Campaign, records: Sequence[TrialRecord]) -> str:
    """The page: history, importance, slices of the parameters that matter most, structures, best values, audit."""
    title = f"Tuning campaign {summary.study_name}"
    cards = [
        _card("Value by trial", _legend() + _history(summary, records)),
        _card("Importance", _importance(summary)),
        _card("Value by parameter", _slices(summary, campaign, records)),
        _card("Best values", _best_table(summary, campaign)),
        _card("Structures", _structures(summary)),
        _card("Applied and rolled back", _audit(summary)),
        _card("As settings", f"<pre>{html.escape(proposal_of(summary))}</pre>"),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head><body><main>"
        f"<h1>{html.escape(title)}</h1><p class='soft'>A value is a mean score over that of the settings at the start: "
        f"below 1 is better.</p><ul class='facts'>{_facts(summary)}</ul>"
        f"<p><b>Decision:</b> {html.escape(verdict_of(summary))}</p>{''.join(cards)}</main></body></html>\n"
    )


def _facts(summary: Summary) -> str:
    best = "none" if summary.best_value is None else f"{summary.best_value:.5f}"
    facts = [
        (best, "best value" + ("" if summary.best_number is None else f", trial {summary.best_number}")),
        (summary.tier, "tier"),
        *((str(count), state) for state, count in summary.states.items()),
        *([(str(summary.num_infeasible), "infeasible")] if summary.num_infeasible else []),
        *(
            [(str(summary.trials_since_improvement), "trials since the last improvement")]
            if summary.trials_since_improvement is not None
            else []
        ),
        (duration(summary.seconds), "of evaluation"),
    ]
    return "".join(f"<li><b>{html.escape(value)}</b> {html.escape(name)}</li>" for value, name in facts)


def _card(heading: str, content: str) -> str:
    return f"<section class='card'><h2>{html.escape(heading)}</h2>{content}</section>"


def _legend() -> str:
    entries = (
        ("var(--mark)", "complete"), ("var(--infeasible)", "infeasible"), ("var(--pruned)", "given up early"),
        ("var(--best)", "best so far"),
    )  # fmt: skip
    spans = "".join(f"<span><i style='background:{colour}'></i>{text}</span>" for colour, text in entries)
    return f"<div class='legend'>{spans}</div>"


def _kind(record: TrialRecord) -> str:
    return "infeasible" if record.state == "complete" and not record.is_feasible else record.state


def _tip(record: TrialRecord) -> str:
    value = "no value" if record.value is None else shortest(record.value)
    params = ", ".join(f"{name} {shortest(setting)}" for name, setting in sorted(record.params.items()))
    return f"trial {record.number}, {_kind(record)}: {value}\n{params}"


def _value_axis(records: Sequence[TrialRecord]) -> Axis | None:
    """From the best to where most trials lie; the few far above are drawn at the upper edge."""
    values = sorted(record.value for record in records if record.value is not None)
    if not values:
        return None
    shown = values[: max(1, math.ceil(0.95 * len(values)))]
    return linear_axis(shown[0], shown[-1])


def _history(summary: Summary, records: Sequence[TrialRecord]) -> str:
    axis = _value_axis(records)
    if axis is None:
        return "<p class='soft'>No trial has a value yet.</p>"
    chart = Chart(1100, 280, linear_axis(0, max(len(records) - 1, 1), whole=True), axis, name="trial")
    if summary.base_value is not None:
        chart.horizontal(summary.base_value, "base")
    for record in records:
        if record.value is not None:
            chart.point(record.number, record.value, _kind(record), _tip(record))
    path = [(record.number, best) for record, best in zip(records, best_so_far(records), strict=True)]
    chart.steps([(number, best) for number, best in path if math.isfinite(best)], "line")
    return chart.svg()


def _importance(summary: Summary) -> str:
    if summary.importance is None:
        return f"<p class='soft'>Not available: it takes {MIN_TRIALS} complete trials.</p>"
    shares = list(summary.importance.items())
    return (
        bars([(name, share, f"{share:.1%}") for name, share in shares], width=1100)
        + "<p class='soft'>Share of each parameter in the variance of the value (fANOVA, main effects); the rest is "
        "interaction.</p>"
    )


def _slices(summary: Summary, campaign: Campaign, records: Sequence[TrialRecord]) -> str:
    axis = _value_axis(records)
    if axis is None:
        return "<p class='soft'>No trial has a value yet.</p>"
    space = campaign.distributions()
    names = list(summary.importance or space)[:MAX_SLICES]
    charts = []
    for name in names:
        chart = Chart(360, 220, _parameter_axis(space[name]), axis, name=name)
        for record in records:
            if record.value is not None:
                kind = "best" if record.number == summary.best_number else _kind(record)
                chart.point(_position(record.params[name], space[name]), record.value, kind, _tip(record))
        charts.append(chart.svg())
    return f"<div class='grid'>{''.join(charts)}</div>"


def _parameter_axis(distribution: BaseDistribution) -> Axis:
    if isinstance(distribution, CategoricalDistribution):
        return category_axis([shortest(choice) for choice in distribution.choices])
    low, high = float(distribution.low), float(distribution.high)  # type: ignore[attr-defined]
    if distribution.log:  # type: ignore[attr-defined]
        return log_axis(low, high)
    return linear_axis(low, high)


def _position(value: Any, distribution: BaseDistribution) -> float:
    if isinstance(distribution, CategoricalDistribution):
        return float(distribution.choices.index(value))
    return float(value)


def _best_table(summary: Summary, campaign: Campaign) -> str:
    if not summary.best_params:
        return "<p class='soft'>No trial may be used so far.</p>"
    rows = []
    for name, value in summary.best_params.items():
        base = campaign.base[name]
        kind = " class='changed'" if value != base else ""
        share = "&ndash;" if summary.importance is None else f"{summary.importance[name]:.1%}"
        rows.append(
            f"<tr><td>{html.escape(name)}</td><td{kind}>{html.escape(shortest(value))}</td>"
            f"<td>{html.escape(shortest(base))}</td><td>{share}</td></tr>"
        )
    return _table(("parameter", "best trial", "at the start", "importance"), rows)


def _structures(summary: Summary) -> str:
    rows = []
    for structure in summary.structures:
        shown = ", ".join(f"{name} {shortest(value)}" for name, value in structure.params.items()) or "the only one"
        best = "&ndash;" if structure.best_value is None else f"{structure.best_value:.5f}"
        number = "&ndash;" if structure.best_number is None else str(structure.best_number)
        rows.append(
            f"<tr><td>{html.escape(shown)}</td><td>{structure.num_trials}</td><td>{best}</td><td>{number}</td></tr>"
        )
    return _table(("structure", "trials", "best value", "in trial"), rows)


def _audit(summary: Summary) -> str:
    if not summary.audit:
        return "<p class='soft'>Nothing is on record.</p>"
    lines = "\n".join(html.escape(audit_line(entry)) for entry in summary.audit)
    return f"<pre>{lines}</pre>"


def _table(headings: Sequence[str], rows: Sequence[str]) -> str:
    head = "".join(f"<th>{html.escape(heading)}</th>" for heading in headings)
    return f"<div class='scroll'><table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
