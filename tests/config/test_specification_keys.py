"""No key of the specification is lost: each stands in the schema or in the list of what became of it."""

from pathlib import Path

import pytest

from usp_daemon.config import SPECS
from usp_daemon.config._retired import CHANGED, RETIRED

SPECIFICATION_KEYS = [
    line
    for line in (Path(__file__).parent / "specification_keys.txt").read_text("utf-8").splitlines()
    if not line.startswith("#")
]

STANDING = {spec.name for spec in SPECS.values()}


@pytest.mark.parametrize("name", SPECIFICATION_KEYS)
def test_key_stands_or_is_accounted_for(name: str) -> None:
    assert (name in STANDING) != (name in RETIRED)


def test_no_name_stands_twice() -> None:
    assert len(STANDING) == len(SPECS)


def test_accounts_point_at_keys_that_stand() -> None:
    assert set(CHANGED) <= set(SPECS)
    for name, fate in RETIRED.items():
        for word in fate.replace(",", " ").replace(";", " ").split():
            if "_" in word and "." in word:
                assert word in SPECS, f"{name}: {fate}"
