"""The report: what it says is what the trials say."""

import html.parser
import json
import pathlib
import tomllib
from typing import Any

import msgspec
import numpy as np
import optuna
import pytest

from tuning_landscapes import FoldedBowl, bowl, settings_for
from usp_daemon.config import Settings, parse_settings
from usp_daemon.tuning import (
    BayesianMetaOptimizer,
    Decision,
    _svg,
    proposal_of,
    read_stored,
    summarise,
    text_of,
    write_html_report,
)
from usp_daemon.tuning._importance import forest_shares, parameter_importance
from usp_daemon.tuning._scorecard import Scorecard

AUDIT = [
    {
        "time": "2026-01-02T03:04:05Z",
        "event": "MUTATION_APPLIED",
        "trigger": "tuner",
        "delta": {"orchestration.cusum_k": [0.5, 0.61]},
    },
    {"time": "2026-01-02T04:00:00Z", "event": "AUTO_ROLLBACK", "reason": "worse by 3.1 % on 800 pairs <b>"},
]


@pytest.fixture(scope="module")
def optimizer() -> BayesianMetaOptimizer:
    optimizer = BayesianMetaOptimizer(
        FoldedBowl(), settings_for(pathlib.Path("unused")), Settings(), storage=optuna.storages.InMemoryStorage()
    )
    optimizer.optimize(80)
    return optimizer


def test_before_a_campaign() -> None:
    optimizer = BayesianMetaOptimizer(bowl, settings_for(pathlib.Path("unused")), Settings())
    assert optimizer.generate_optimization_report() == "No optimization run yet. Call optimize() first."


def test_text_says_what_the_trials_say(optimizer: BayesianMetaOptimizer) -> None:
    text = optimizer.generate_optimization_report(AUDIT)
    records = optimizer.records
    best = min((record for record in records if record.is_feasible), key=lambda record: record.value or 0.0)
    assert "Study Name: usp-fast" in text
    assert "Tier: fast_tuning" in text
    assert f"Total Trials: {len(records)} (" in text
    for state in ("complete", "pruned"):
        assert f"{sum(record.state == state for record in records)} {state}" in text
    assert f"Best Value: {best.value:.6f} (trial {best.number})" in text
    lines = [
        line.split()[0] for line in text.splitlines() if line.startswith("    ") and " = " in line and ":" not in line
    ]
    assert lines == sorted(best.params)
    assert f"    cusum_k                        = {best.params['cusum_k']:.6f}  (was 0.500000)" in text
    assert "Parameter Importance (fANOVA):" in text
    assert "status: ended: all trials are done" in text
    assert "orchestration.cusum_k: 0.5 -> 0.61" in text and "AUTO_ROLLBACK" in text and "worse by 3.1 %" in text
    visited = {record.params["log_sig_depth"] for record in records}
    assert sum(f"log_sig_depth = {depth}: " in text for depth in range(2, 6)) == len(visited)


def test_tier_is_the_campaigns_own_not_guessed() -> None:
    """The reference called every study of at most six parameters fast."""
    optimizer = BayesianMetaOptimizer(
        bowl, settings_for(pathlib.Path("unused")), Settings(), tier="deep", storage=optuna.storages.InMemoryStorage()
    )
    optimizer.optimize(3)
    text = optimizer.generate_optimization_report()
    assert "Tier: deep_tuning" in text
    assert "Parameter Importance: not available (needs 20 complete trials, there are 3)" in text


def test_what_was_decided_for_is_proposed_even_if_it_is_not_the_best(optimizer: BayesianMetaOptimizer) -> None:
    records = optimizer.records
    feasible = sorted((record for record in records if record.is_feasible), key=lambda record: record.value or 0.0)
    second = feasible[1]
    passed = Decision(True, "2.00% less", dict(second.candidate), second.value or 0.0, 0.02, 0.01, 8)
    summary = summarise(optimizer.campaign, records, decision=passed)
    text = text_of(summary)
    assert "Decision: adopt these: 2.00% less" in text and f"    trial {second.number}: what was better" in text
    assert "2.00% +- 1.00% (8 blocks)" in text
    proposed = parse_settings(tomllib.loads(proposal_of(summary)))
    assert proposed["orchestration.cusum_k"] == second.candidate["cusum_k"] != feasible[0].candidate["cusum_k"]
    json.loads(msgspec.json.encode(summary))


def test_nothing_is_proposed_that_did_not_prove_itself(optimizer: BayesianMetaOptimizer) -> None:
    best = min((record for record in optimizer.records if record.is_feasible), key=lambda record: record.value or 0.0)
    failed = Decision(False, "too small", dict(best.candidate), 0.9, 0.001, 0.01, 8)
    summary = summarise(optimizer.campaign, optimizer.records, decision=failed)
    words = "keep the default: no candidate proved itself on ticks it was not chosen on (too small)"
    assert f"Decision: {words}" in text_of(summary)
    assert tomllib.loads(proposal_of(summary)) == {} and words in proposal_of(summary)
    assert "Decision: not yet" in text_of(summarise(optimizer.campaign, optimizer.records))


class Proving(FoldedBowl):
    """The bowl with ticks kept from the search, on which every candidate does as well as at ``holds``."""

    num_selection_folds = 0

    def __init__(self, holds: float) -> None:
        super().__init__()
        self.holds = holds

    @property
    def base_scorecard(self) -> Scorecard:
        return self._card(1.0)

    def scorecard(self, candidate: Any) -> Scorecard:
        return self._card(self.holds)

    def validation_constraint(self, card: Scorecard) -> float:
        return 0.0

    def _card(self, loss: float) -> Scorecard:
        card = Scorecard.empty(1, 2)
        card.count[:], card.loss[:] = 10, 10.0 * loss
        return card


@pytest.mark.parametrize(("holds", "adopted"), [(0.9, True), (1.1, False)])
def test_a_decision_is_kept_until_there_are_more_trials(tmp_path: pathlib.Path, holds: float, adopted: bool) -> None:
    config = settings_for(tmp_path)
    first = BayesianMetaOptimizer(Proving(holds), config, Settings())
    first.optimize(8)
    assert first.decision is None
    made = first.decide()
    assert made is not None and made.adopted == adopted
    stored = read_stored(config, "usp-fast")
    assert stored.decision == made == first.decision
    again = BayesianMetaOptimizer(Proving(holds), config, Settings())
    again.optimize(8)
    assert read_stored(config, "usp-fast").decision is None
    assert BayesianMetaOptimizer(bowl, settings_for(tmp_path / "b"), Settings()).decide() is None


def test_convergence() -> None:
    evaluator = FoldedBowl(value_fn=lambda candidate: 1.0, spread=0.0)
    optimizer = BayesianMetaOptimizer(
        evaluator,
        settings_for(pathlib.Path("unused"), patience_trials=10),
        Settings(),
        storage=optuna.storages.InMemoryStorage(),
    )
    optimizer.optimize(50)
    text = optimizer.generate_optimization_report()
    assert "last improvement: trial 0" in text
    assert "trials since then: 15 of 10 (patience)" in text
    assert "status: converged, by patience" in text


def test_proposal_is_a_valid_configuration(optimizer: BayesianMetaOptimizer) -> None:
    summary = summarise(optimizer.campaign, optimizer.records)
    text = proposal_of(summary)
    settings = parse_settings(tomllib.loads(text))
    assert {path: settings[path] for path in optimizer.best_changes()} == optimizer.best_changes()
    assert settings.content_hash() == optimizer.get_best_config().content_hash()
    nothing = summarise(optimizer.campaign, [])
    assert tomllib.loads(proposal_of(nothing)) == {}


class Page(html.parser.HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.classes: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag == "circle":
            self.classes.append(dict(attrs)["class"])
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_page_is_whole_and_loads_nothing(optimizer: BayesianMetaOptimizer, tmp_path: pathlib.Path) -> None:
    summary = summarise(optimizer.campaign, optimizer.records, audit=AUDIT)
    path = tmp_path / "sub" / "report.html"
    write_html_report(path, summary, optimizer.campaign, optimizer.records)
    text = path.read_text("utf-8")
    page = Page()
    page.feed(text)
    assert page.open == []
    assert not {"script", "link", "img", "iframe"} & set(page.tags)
    assert not [name for name, _ in page.attributes if name in ("src", "href")]
    assert "url(" not in text and "@import" not in text
    assert "prefers-color-scheme: dark" in text
    assert "&lt;b&gt;" in text and "<b>worse" not in text
    with_value = [record for record in optimizer.records if record.value is not None]
    num_slices = min(6, len(summary.best_params))
    assert len(page.classes) == len(with_value) * (1 + num_slices)
    infeasible = sum(record.state == "complete" and not record.is_feasible for record in with_value)
    assert infeasible and page.classes.count("infeasible") == infeasible * (1 + num_slices)
    assert page.classes.count("best") == num_slices


def test_page_of_a_campaign_without_results(optimizer: BayesianMetaOptimizer, tmp_path: pathlib.Path) -> None:
    for records in ([], [msgspec.structs.replace(optimizer.records[0], state="failed", value=None)]):
        summary = summarise(optimizer.campaign, records)
        write_html_report(tmp_path / "x.html", summary, optimizer.campaign, records)
        assert "No trial has a value yet" in (tmp_path / "x.html").read_text("utf-8")
        assert "none yet" in text_of(summary)


def test_summary_is_data(optimizer: BayesianMetaOptimizer) -> None:
    summary = summarise(optimizer.campaign, optimizer.records, audit=AUDIT)
    assert json.loads(msgspec.json.encode(summary))["best_number"] == summary.best_number


@pytest.mark.parametrize(
    ("coefficients", "interaction"), [((3.0, 1.0, 0.0), 0.0), ((1.0, 1.0, 1.0), 0.0), ((1.0, 1.0, 0.0), 3.0)]
)
def test_shares_against_the_closed_form(coefficients: tuple[float, ...], interaction: float) -> None:
    """f = sum a_i x_i + b (x_0 - 1/2)(x_1 - 1/2) on the unit cube: variances a_i^2/12 and b^2/144."""
    generator = np.random.Generator(np.random.PCG64(3))
    points = generator.random((600, 3))
    values = points @ np.array(coefficients) + interaction * (points[:, 0] - 0.5) * (points[:, 1] - 0.5)
    variances = np.array(coefficients) ** 2 / 12.0
    expected = variances / (variances.sum() + interaction**2 / 144.0)
    assert forest_shares(points, values, seed=1) == pytest.approx(expected, abs=0.06)


def test_shares_are_invariant_to_what_does_not_matter() -> None:
    generator = np.random.Generator(np.random.PCG64(5))
    points = generator.random((100, 4))
    values = np.sin(3.0 * points[:, 2]) + 0.3 * points[:, 0]
    shares = forest_shares(points, values, seed=2)
    assert forest_shares(points, 5.0 - 2.0 * values, seed=2) == pytest.approx(shares, abs=0.01)  # ties between splits
    assert forest_shares(points, np.ones(100), seed=2) == pytest.approx(np.zeros(4))
    assert int(np.argmax(shares)) == 2 and shares.min() >= 0.0 and shares.sum() <= 1.0 + 1e-9


def test_importance_needs_twenty_complete_trials(optimizer: BayesianMetaOptimizer) -> None:
    space = optimizer.campaign.distributions()
    complete = [record for record in optimizer.records if record.state == "complete"]
    assert parameter_importance(complete[:19], space) is None
    importance = parameter_importance(complete, space)
    assert importance is not None and set(importance) == set(space)
    assert list(importance.values()) == sorted(importance.values(), reverse=True)


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (3.0, 3.0), (-5.0, 1e-3), (1e-8, 1e-3), (0.61, 0.6101)])
def test_axes_hold_their_ticks(low: float, high: float) -> None:
    axes = [_svg.linear_axis(low, high)] + ([_svg.log_axis(low, high)] if low > 0.0 else [])
    for axis in axes:
        assert axis.low <= low <= high <= axis.high
        assert 2 <= len(axis.ticks) <= 12
        shares = [axis.share(value) for value, _ in axis.ticks]
        assert shares == sorted(shares) and shares[0] >= -1e-9 and shares[-1] <= 1.0 + 1e-9
        assert len({label for _, label in axis.ticks}) == len(axis.ticks)
