"""Rules load, every alert fires and clears, each has its page, and every metric in them exists."""

import re
import shutil
import subprocess

import pytest
import yaml

from .promql import FOREIGN, declared, metric_names

SEVERITIES = {"critical", "warning"}
GROUPS = (
    "availability",
    "config",
    "flow",
    "input",
    "kafka",
    "partitions",
    "predictor",
    "recovery",
    "resources",
    "tuner",
)


@pytest.fixture
def folder(repository_root):
    return repository_root / "deploy/prometheus"


@pytest.fixture
def pages(repository_root):
    return repository_root / "docs/runbooks"


def rules(folder):
    return [
        rule
        for path in sorted((folder / "rules").glob("*.yml"))
        for group in yaml.safe_load(path.read_text("utf-8"))["groups"]
        for rule in group["rules"]
    ]


def alerts(folder):
    return {rule["alert"]: rule for rule in rules(folder) if "alert" in rule}


def run(*command):
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_configuration_and_rules_are_valid(promtool, folder):
    for command in ("config", "rules"):
        paths = [folder / "prometheus.yml"] if command == "config" else sorted((folder / "rules").glob("*.yml"))
        checked = run(promtool, "check", command, *paths)
        assert checked.returncode == 0, checked.stdout + checked.stderr


def test_the_groups_are_all_there_is(folder):
    assert {path.stem for path in (folder / "tests").glob("*.yml")} == set(GROUPS)


@pytest.mark.parametrize("group", GROUPS)
def test_alerts_fire_and_clear(promtool, folder, group):
    checked = run(promtool, "test", "rules", folder / "tests" / f"{group}.yml")
    assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.parametrize("change", ["never", "always"])
@pytest.mark.parametrize("group", GROUPS)
def test_the_tests_notice_alerts_that_never_or_always_fire(promtool, folder, tmp_path, group, change):
    shutil.copytree(folder, tmp_path / "prometheus")
    path = tmp_path / "prometheus/rules/usp-alerts.yml"
    content = yaml.safe_load(path.read_text("utf-8"))
    for each in content["groups"]:
        for rule in each["rules"]:
            rule["expr"], rule["for"] = ("vector(0) > 1" if change == "never" else "vector(1)"), "0s"
    path.write_text(yaml.safe_dump(content), "utf-8")
    checked = run(promtool, "test", "rules", tmp_path / "prometheus/tests" / f"{group}.yml")
    assert checked.returncode != 0
    assert not [name for name in expectations(folder, group) if name not in checked.stdout + checked.stderr]


def expectations(folder, group):
    content = yaml.safe_load((folder / "tests" / f"{group}.yml").read_text("utf-8"))
    found = {}
    for test in content["tests"]:
        for check in test["promql_expr_test"]:
            (name,) = re.findall(r'alertname="(\w+)"', check["expr"])
            assert 'alertstate="firing"' in check["expr"]
            found.setdefault(name, []).append([sample["value"] for sample in check["exp_samples"]])
    return found


def test_every_alert_is_tested_quiet_then_firing_then_clear(folder):
    found = {}
    for group in GROUPS:
        found |= expectations(folder, group)
    assert found == {name: [[], [1], []] for name in alerts(folder)}


def test_metrics_in_rules_exist(folder):
    recorded = {rule["record"] for rule in rules(folder) if "record" in rule}
    known = set(declared()) | FOREIGN | recorded
    for rule in rules(folder):
        names = metric_names(rule["expr"])
        assert names, rule
        assert names <= known, rule.get("alert") or rule["record"]


def test_alerts_say_what_an_operator_needs(folder):
    for name, rule in alerts(folder).items():
        assert re.fullmatch(r"Usp[A-Z]\w+", name)
        assert rule["labels"]["severity"] in SEVERITIES
        assert "for" in rule
        assert set(rule["annotations"]) == {"summary", "description", "runbook_url"}
        assert rule["annotations"]["runbook_url"] == f"docs/runbooks/{name}.md"


def test_alerts_and_pages_go_together(folder, pages):
    assert {path.stem for path in pages.glob("*.md")} - {"README"} == set(alerts(folder))
    index = (pages / "README.md").read_text("utf-8")
    for name, rule in alerts(folder).items():
        page = (pages / f"{name}.md").read_text("utf-8")
        assert page.startswith(f"# {name}\n")
        assert f"`{rule['labels']['severity']}`" in page
        (shown,) = re.findall(r"```promql\n(.*?)\n```", page, re.DOTALL)
        assert shown.split() == rule["expr"].split(), name
        wanted = ["What it means", "First look", "Causes", "What to do", "When it clears"]
        assert re.findall(r"^## (.*)$", page, re.MULTILINE) == wanted
        held = "at once" if rule["for"] == "0m" else f"for {rule['for']}"
        assert f"fires {held} when" in page
        assert f"| [{name}]({name}.md) | {rule['labels']['severity']} |" in index
    assert index.count("](Usp") == len(alerts(folder))


def test_links_of_pages_lead_somewhere(pages):
    for path in pages.glob("*.md"):
        for target, anchor in re.findall(r"\]\(([^)#]*)#?([^)]*)\)", path.read_text("utf-8")):
            other = (path.parent / target).resolve() if target else path
            assert other.exists(), f"{path.name}: {target}"
            if anchor:
                headings = re.findall(r"^#+ (.*)$", other.read_text("utf-8"), re.MULTILINE)
                slugs = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
                assert anchor in slugs, f"{path.name}: {target}#{anchor}"
