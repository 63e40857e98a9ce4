"""The errata pages name the tests that hold them; those tests exist."""

import ast
import re
from pathlib import Path

import pytest

ERRATA = Path(__file__).resolve().parents[2] / "docs" / "errata"
PAGES = sorted(path for path in ERRATA.glob("*.md") if path.name not in ("README.md", "configuration.md"))
NAMED_TEST = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")
WITHOUT_TEST = "not built"  # what the specification says and nobody needs


def rows(page: Path) -> list[list[str]]:
    """The numbered rows of a page's table, as cells."""
    lines = [line for line in page.read_text("utf-8").splitlines() if re.match(r"\| [A-Z]\d+ \|", line)]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


ROWS = [(page.name, row) for page in PAGES for row in rows(page)]


def functions_of(path: Path) -> set[str]:
    """Names of all functions and methods in a file."""
    tree = ast.parse(path.read_text("utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


def test_there_is_something_to_check() -> None:
    assert len(PAGES) == 4
    assert len(ROWS) > 60


@pytest.mark.parametrize(("page", "row"), [pytest.param(page, row, id=row[0]) for page, row in ROWS])
def test_row_is_whole_and_its_tests_exist(repository_root: Path, page: str, row: list[str]) -> None:
    assert len(row) == 6, f"{page} {row[0]}: expected six cells"
    named = NAMED_TEST.findall(row[-1])
    assert named or row[-1] == WITHOUT_TEST, f"{page} {row[0]}: names no test, says {row[-1]!r}"
    for path, function in named:
        assert (repository_root / path).is_file(), f"{page} {row[0]}: no file {path}"
        assert function in functions_of(repository_root / path), f"{page} {row[0]}: no {function} in {path}"


def test_numbers_are_unique() -> None:
    numbers = [row[0] for _, row in ROWS]
    assert len(numbers) == len(set(numbers))
