"""docs/security.md names tests that exist."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "security.md").read_text("utf-8")


@pytest.mark.parametrize("name", sorted(set(re.findall(r"`(tests/[\w/]+(?:\.py)?)`", PAGE))))
def test_file_exists(name: str) -> None:
    assert (ROOT / name).exists()


@pytest.mark.parametrize(("name", "function"), re.findall(r"`(tests/[\w/]+\.py)` \(`(test_\w+)`\)", PAGE))
def test_function_exists(name: str, function: str) -> None:
    assert f"def {function}(" in (ROOT / name).read_text("utf-8")
