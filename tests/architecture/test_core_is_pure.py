"""What the mathematics may import: numerical libraries and what is harmless of the standard library."""

import ast
from pathlib import Path

import pytest

import usp_daemon

NUMERICAL = {"diffrax", "equinox", "jax", "jaxtyping", "lineax", "numpy", "optimistix"}
# importlib reads the shipped weights of the networks, once, at import
STANDARD = {
    "__future__", "abc", "collections", "dataclasses", "enum", "functools", "importlib", "io", "itertools", "math",
    "operator", "statistics", "struct", "typing", "types",
}  # fmt: skip

CORE = Path(usp_daemon.__file__).parent / "core"
SOURCES = sorted(CORE.rglob("*.py"))


def imported_packages(source: str) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add((node.module or "").partition(".")[0])
    return names


@pytest.mark.parametrize("path", SOURCES, ids=[str(path.relative_to(CORE)) for path in SOURCES])
def test_imports_are_pure(path: Path) -> None:
    assert imported_packages(path.read_text("utf-8")) <= NUMERICAL | STANDARD | {"usp_daemon"}


def test_there_is_something_to_check() -> None:
    assert SOURCES
    assert imported_packages("import os.path\nfrom jax import numpy\nfrom . import x") == {"os", "jax"}
