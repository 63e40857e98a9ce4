"""Every test case of the specification is accounted for, and the tests named for it exist."""

import ast
import functools
import re
from pathlib import Path

import pytest

PAGE = Path(__file__).resolve().parents[2] / "docs" / "numerics" / "test_cases.md"
NAMED_TEST = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")
HELD, LEFT = ("adopted", "changed"), ("elsewhere", "not built")


def rows(prefix: str) -> list[list[str]]:
    """The rows whose number begins with ``prefix``, as cells."""
    lines = [line for line in PAGE.read_text("utf-8").splitlines() if line.startswith(f"| {prefix}-")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


DEMANDED, KNOWN = rows("T"), rows("K")


@functools.cache
def functions_of(path: Path) -> frozenset[str]:
    """Names of the test functions in a file."""
    tree = ast.parse(path.read_text("utf-8"))
    functions = (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
    return frozenset(node.name for node in functions if node.name.startswith("test_"))


def test_no_case_is_missing_and_none_is_there_twice() -> None:
    assert [row[0] for row in DEMANDED] == [f"T-{number:02d}" for number in range(1, 87)]
    assert [row[0] for row in KNOWN] == [f"K-{number}" for number in range(1, 11)]


@pytest.mark.parametrize("row", DEMANDED, ids=[row[0] for row in DEMANDED])
def test_verdict_fits_what_is_named(row: list[str]) -> None:
    assert len(row) == 4
    _, verdict, note, tests = row
    assert verdict in HELD + LEFT
    assert bool(NAMED_TEST.findall(tests)) == (verdict in HELD), f"{row[0]} is {verdict} and names {tests}"
    assert note != "-" or verdict == "adopted", f"{row[0]} is {verdict} and does not say why"


@pytest.mark.parametrize("row", DEMANDED + KNOWN, ids=[row[0] for row in DEMANDED + KNOWN])
def test_named_tests_exist(repository_root: Path, row: list[str]) -> None:
    for path, function in NAMED_TEST.findall(row[-1]):
        assert (repository_root / path).is_file(), f"{row[0]}: no file {path}"
        assert function in functions_of(repository_root / path), f"{row[0]}: no {function} in {path}"
