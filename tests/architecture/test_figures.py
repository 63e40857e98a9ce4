"""Every published figure comes from a command, and the command exists."""

import importlib
import re
from pathlib import Path

import pytest

FIGURES = Path(__file__).resolve().parents[2] / "docs" / "figures.md"
COMMAND = re.compile(r"python -m (benchmarks\.\w+)")


def rows() -> list[tuple[str, str]]:
    """What and by which command, of every row of the page's tables; "same" is the command of the row above."""
    found: list[tuple[str, str]] = []
    for line in FIGURES.read_text("utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("|") and len(cells) == 4 and cells[0] != "what" and not cells[0].startswith("--"):
            found.append((cells[0], found[-1][1] if cells[-1] == "same" else cells[-1]))
    return found


def test_there_is_something_to_check() -> None:
    assert len(rows()) >= 15


@pytest.mark.parametrize(("what", "command"), rows())
def test_figure_names_a_command_that_exists(what: str, command: str, monkeypatch, repository_root: Path) -> None:
    named = COMMAND.search(command)
    assert named, f"{what}: no command in {command!r}"
    monkeypatch.syspath_prepend(str(repository_root))
    assert callable(importlib.import_module(named[1]).main)
