"""Every package has a licence that is allowed; the page and the bill of materials name them all."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TOOLS = Path(sys.executable).parent


@pytest.fixture(scope="module")
def licences():
    spec = importlib.util.spec_from_file_location("licences", ROOT / "scripts" / "licences.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_all_are_allowed(licences) -> None:
    found = {each.name: licences.licence_of(each.name) for each in licences.installed()}
    assert len(found) > 30
    assert {name: text for name, text in found.items() if not licences.is_allowed(text)} == {}


def test_page_is_what_is_installed(licences) -> None:
    assert licences.PAGE.read_text("utf-8") == licences.page(), "run python scripts/licences.py"


@pytest.mark.parametrize(
    ("expression", "allowed"),
    [
        ("MIT", True),
        ("GPL-3.0-only", False),
        ("MIT OR GPL-3.0-only", True),
        ("GPL-3.0-only OR MIT", True),
        ("MIT AND GPL-3.0-only", False),
        ("MPL-2.0 AND (Apache-2.0 OR GPL-2.0-only)", True),
        ("(GPL-2.0-only OR AGPL-3.0-only) AND MIT", False),
    ],
)
def test_expressions(licences, expression: str, allowed: bool) -> None:
    assert licences.is_allowed(expression) is allowed


def test_bill_of_materials_has_every_package_of_the_lock(licences, tmp_path: Path) -> None:
    path = tmp_path / "sbom.json"
    line = [TOOLS / "cyclonedx-py", "requirements", "--output-reproducible", "--pyproject", ROOT / "pyproject.toml"]
    line += ["--output-format", "JSON", "--output-file", path, licences.LOCK]
    done = subprocess.run(list(map(str, line)), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    document = json.loads(path.read_text("utf-8"))
    assert document["bomFormat"] == "CycloneDX"
    assert document["metadata"]["component"]["name"] == "usp-daemon"
    listed = {(each["name"], each["version"]) for each in document["components"]}
    assert {(each.name, str(each.specifier).removeprefix("==")) for each in licences.installed()} <= listed
