"""config.toml, the reference and the list of retired keys come from the schema and are up to date."""

import re
import tomllib
from pathlib import Path

import pytest

from usp_daemon.config import SPECS, Settings, load_settings
from usp_daemon.config.__main__ import GENERATED, main


@pytest.mark.parametrize("name", GENERATED)
def test_committed_file_is_the_generated_one(repository_root: Path, name: str) -> None:
    assert (repository_root / name).read_text("utf-8") == GENERATED[name](), "run make docs"


def test_generation_writes_every_file(tmp_path: Path) -> None:
    main(tmp_path)
    assert {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.*")} == set(GENERATED)


def test_committed_configuration_is_the_default(repository_root: Path) -> None:
    assert load_settings(repository_root / "config/config.toml", {}) == Settings()


def test_committed_configuration_has_every_key(repository_root: Path) -> None:
    document = tomllib.loads((repository_root / "config/config.toml").read_text("utf-8"))
    assert [f"{section}.{name}" for section, table in document.items() for name in table] == list(SPECS)


def test_every_key_is_commented(repository_root: Path) -> None:
    text = (repository_root / "config/config.toml").read_text("utf-8")
    for path, spec in SPECS.items():
        found = re.search(rf"((?:^#.*\n)+)^{spec.name} = ", text, flags=re.MULTILINE)
        assert found, path
        comment = " ".join(line.removeprefix("# ") for line in found[1].splitlines())
        assert comment.startswith(spec.key.meaning), path
        assert f"Range: {spec.range_text}." in comment, path
        assert f"Class: {spec.key.parameter_class.value}." in comment, path
        assert not spec.key.unit or f"Unit: {spec.key.unit}." in comment, path


def test_every_key_is_in_the_reference(repository_root: Path) -> None:
    text = (repository_root / "docs/configuration.md").read_text("utf-8")
    assert all(f"| `{spec.name}` |" in text for spec in SPECS.values())


def test_meanings_are_sentences() -> None:
    for path, spec in SPECS.items():
        assert spec.key.meaning[0].isupper() or spec.key.meaning.startswith("JKO"), path
        assert spec.key.meaning.endswith("."), path
