"""The documentation names what there is, and nothing that there is not."""

import ast
import re
from pathlib import Path

import pytest

from usp_daemon import cli
from usp_daemon.app import ExitCode
from usp_daemon.config import SPECS, Reader
from usp_daemon.persistence import SnapshotEventKind, TickRingEventKind

ROOT = Path(__file__).resolve().parent.parent.parent
PACKAGE = ROOT / "src" / "usp_daemon"
# Pages written by hand for whoever runs the daemon; the others come from the code.
GENERATED = {"commands.md", "configuration.md", "metrics.md"}
PAGES = sorted(path for path in (ROOT / "docs").glob("*.md") if path.name not in GENERATED)
TEXTS = {path.name: path.read_text("utf-8") for path in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *PAGES]}
ALL = "\n".join(TEXTS.values())
MANUAL = ("service.md", "operations.md", "performance.md", "recovery.md", "scaling.md")
SECTIONS = sorted({path.partition(".")[0] for path in SPECS})
# Events below a warning are of no concern to whoever is on call.
EVENT_CALLS = ("warning", "error", "log_fn")


def commands() -> list[str]:
    (subparsers,) = [action for action in cli.build_parser()._actions if action.dest == "command"]
    return list(subparsers.choices)  # type: ignore[arg-type]


def events_in_code() -> set[str]:
    """First words of every warning and error that a module's logger, or a function called ``log_fn``, is given."""
    found = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if not (isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant)):
                continue
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            event = re.match(r"[a-z0-9]+(?:_[a-z0-9]+)*(?=:|$)", str(node.args[0].value))
            if called in EVENT_CALLS and event is not None:
                found.add(event[0])
    return found


def events_in_docs() -> set[str]:
    _, _, section = TEXTS["operations.md"].partition("## Log events")
    rows = [row.split("|")[1] for row in section.splitlines() if row.startswith("| `")]
    return {name for row in rows for name in re.findall(r"`([a-z0-9_]+)`", row)}


def service_metrics() -> list[str]:
    """Metrics that the page lists; tests/telemetry compares that page with what is exposed."""
    return re.findall(r"^\| `(usp_\w+)` \|", (ROOT / "docs" / "metrics.md").read_text("utf-8"), re.MULTILINE)


@pytest.mark.parametrize("path", sorted(SPECS))
def test_every_setting_is_in_the_reference(path: str) -> None:
    section, _, key = path.partition(".")
    text = (ROOT / "docs" / "configuration.md").read_text("utf-8").partition(f"\n## [{section}]\n")[2]
    assert f"\n| `{key}` |" in text.partition("\n## ")[0]


def test_every_recovery_policy_and_exit_code_is_among_the_symptoms() -> None:
    text = TEXTS["troubleshooting.md"]
    assert {path for path in SPECS if path.startswith("recovery.on_") and f"`{path}" not in text} == set()
    assert {code for code in ExitCode if code.value in (2, 69, 75) and f"exit code {code.value}" not in text} == set()


def test_what_tells_of_trouble_is_among_the_symptoms() -> None:
    text = TEXTS["troubleshooting.md"] + TEXTS["operations.md"] + TEXTS["recovery.md"] + TEXTS["autonomous.md"]
    telling = [
        name for name in service_metrics() if re.search("failed|refused|fenced|lag_|dropped|conflicts|dead_", name)
    ]
    assert len(telling) >= 6
    assert {name for name in telling if name not in text} == set()


@pytest.mark.parametrize("name", commands())
def test_every_command_is_explained(name: str) -> None:
    assert f"`usp-daemon {name}" in ALL or f"usp-daemon {name} " in ALL


@pytest.mark.parametrize("code", ExitCode)
def test_every_exit_code_is_in_both_tables(code: ExitCode) -> None:
    assert f"| {code.value} | {code.meaning} |" in TEXTS["quickstart.md"]
    section = TEXTS["service.md"].partition("## Shutdown, signals, exit codes")[2].partition("\n## ")[0]
    assert re.search(rf"\b{code.value}\b", section)


@pytest.mark.parametrize("section", SECTIONS)
def test_every_section_of_the_configuration_has_its_reference(section: str) -> None:
    assert f"\n## [{section}]\n" in (ROOT / "docs" / "configuration.md").read_text("utf-8")


@pytest.mark.parametrize(
    "section", sorted({path.partition(".")[0] for path, spec in SPECS.items() if spec.key.reader is Reader.SERVICE})
)
def test_every_section_of_the_service_is_explained_by_hand(section: str) -> None:
    assert any(f"`{section}." in TEXTS[page] for page in MANUAL)


@pytest.mark.parametrize("page", TEXTS)
def test_keys_that_are_named_exist(page: str) -> None:
    named = re.findall(rf"`((?:{'|'.join(SECTIONS)})\.[a-z_0-9]+)(?= = |`)", TEXTS[page])
    assert {name for name in named if name not in SPECS and not name.endswith((".md", ".toml"))} == set()


@pytest.mark.parametrize("page", TEXTS)
def test_metrics_that_are_named_exist(page: str) -> None:
    reference = (ROOT / "docs" / "metrics.md").read_text("utf-8")
    named = set(re.findall(r"`(usp_[a-z0-9_]+)", TEXTS[page])) - {"usp_daemon"}
    assert {name for name in named if f"| `{name}` |" not in reference} == set()


def test_every_warning_and_error_of_the_service_is_listed_and_no_other() -> None:
    code = events_in_code()
    assert len(code) > 30
    assert code - events_in_docs() == set()
    assert events_in_docs() - code - {kind.value for kind in (*SnapshotEventKind, *TickRingEventKind)} == set()


@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))])
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)", page.read_text("utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), target


def test_tests_that_hold_a_promise_exist() -> None:
    text = TEXTS["guarantees.md"]
    for name in re.findall(r"`(tests/[\w/]+\.py)`", text):
        assert (ROOT / name).is_file(), name
    row = r"`(tests/[\w/]+\.py)` \(((?:`test_\w+`(?:, )?)+)\)"
    for name, functions in re.findall(row, text):
        for function in re.findall(r"`(test_\w+)`", functions):
            assert f"def {function}(" in (ROOT / name).read_text("utf-8"), function
