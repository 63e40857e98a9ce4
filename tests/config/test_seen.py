"""What a replica remembers of its configuration between two runs."""

from pathlib import Path

from usp_daemon.config import SeenBase


def test_an_edit_made_meanwhile_is_known_for_one(tmp_path: Path) -> None:
    directory = tmp_path / "io" / "state"
    assert SeenBase(directory).has_changed("a") is None
    SeenBase(directory).remember("a")
    assert SeenBase(directory).has_changed("a") is False
    assert SeenBase(directory).has_changed("b") is True
    SeenBase(directory).remember("b")
    assert SeenBase(directory).has_changed("b") is False
    assert [path.name for path in directory.iterdir()] == ["seen_base"]


def test_where_nothing_can_be_kept_nothing_is_known(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    SeenBase(tmp_path / "file").remember("a")
    assert SeenBase(tmp_path / "file").has_changed("a") is None
