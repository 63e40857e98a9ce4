"""What is needed is declared, pinned with hashes, and what the tests run on is what is pinned."""

import ast
import importlib.metadata
import re
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
LOCKS = {
    name: (ROOT / name).read_text("utf-8")
    for name in ("requirements.lock", "requirements-dev.lock", "requirements-build.lock", "requirements-cuda.lock")
}


def entries(lock: str) -> list[tuple[Requirement, list[str]]]:
    """The requirements of a lock, each with its hashes."""
    joined = LOCKS[lock].replace("\\\n", " ")
    found = []
    for line in joined.splitlines():
        if line.strip() and not line.lstrip().startswith("#"):
            head, *hashes = re.split(r"\s--hash=", line.strip())
            found.append((Requirement(head.strip()), [one.strip() for one in hashes]))
    return found


def declared(*extras: str) -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    lists = [project["dependencies"], *[project["optional-dependencies"][extra] for extra in extras]]
    return [Requirement(text) for part in lists for text in part]


@pytest.mark.parametrize("lock", LOCKS)
def test_everything_in_a_lock_is_pinned_and_hashed(lock: str) -> None:
    found = entries(lock)
    assert found
    for requirement, hashes in found:
        assert re.fullmatch(r"==[^*,]+", str(requirement.specifier)), requirement
        assert hashes, requirement
        assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", one) for one in hashes), requirement


@pytest.mark.parametrize(
    ("lock", "extras"),
    [("requirements.lock", ()), ("requirements-dev.lock", ("test", "dev")), ("requirements-cuda.lock", ("cuda",))],
)
def test_locks_have_all_that_is_declared(lock: str, extras: tuple[str, ...]) -> None:
    pinned = {canonicalize_name(requirement.name): requirement for requirement, _ in entries(lock)}
    for requirement in declared(*extras):
        name = canonicalize_name(requirement.name)
        assert name in pinned, f"{lock} does not pin {name}"
        version = str(pinned[name].specifier).removeprefix("==")
        assert requirement.specifier.contains(version, prereleases=True), f"{lock}: {name} {version}"


def test_tests_run_on_what_is_pinned() -> None:
    for requirement, _ in [*entries("requirements.lock"), *entries("requirements-dev.lock")]:
        if requirement.marker is None or requirement.marker.evaluate():
            installed = importlib.metadata.version(requirement.name)
            assert requirement.specifier.contains(installed, prereleases=True), f"{requirement}, not {installed}"


# Folders, the extras that their imports may come from, and two modules that show that anything was found.
IMPORTING = [
    (("src",), (), ("jax", "equinox")),
    (("tests", "benchmarks", "deploy", "scripts"), ("test", "dev", "docs"), ("pytest", "yaml")),
]


@pytest.mark.parametrize(("folders", "extras", "expected"), IMPORTING, ids=lambda value: str(value)[:20])
def test_every_import_is_a_declared_requirement(
    folders: tuple[str, ...], extras: tuple[str, ...], expected: tuple[str, ...]
) -> None:
    """A package that only another one's requirements bring goes when that one does."""
    imported: dict[str, Path] = {}
    for path in (path for folder in folders for path in (ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0]: path for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                imported[node.module.partition(".")[0]] = path
    foreign = imported.keys() - sys.stdlib_module_names - {"usp_daemon"}
    assert set(expected) <= foreign
    distributions = importlib.metadata.packages_distributions()
    known = {canonicalize_name(requirement.name) for requirement in declared(*extras)}
    for module in foreign:
        names = {canonicalize_name(name) for name in distributions.get(module, [])}
        # tests also import each other's helpers, which are no distribution's
        if names or "src" in folders:
            assert names & known, f"{imported[module]} imports {module}, which pyproject.toml does not list"
