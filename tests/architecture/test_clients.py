"""Each outside client lives in one package, so that replacing it is the work of one folder."""

import ast
from pathlib import Path

import pytest

import usp_daemon

PACKAGE = Path(usp_daemon.__file__).parent
HOMES = {
    "aiokafka": {"transport"},
    "optuna": {"tuning"},
    "prometheus_client": {"telemetry"},
    "structlog": {"telemetry"},
    "tomlkit": {"config"},
    "watchfiles": {"config"},
}


def importers(client: str) -> set[str]:
    """First-level packages or modules that import ``client``, at whatever depth of nesting."""
    found = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module or ""]
            if any(name.partition(".")[0] == client for name in names):
                found.add(path.relative_to(PACKAGE).parts[0].removesuffix(".py"))
    return found


@pytest.mark.parametrize("client", HOMES)
def test_client_has_one_home(client: str) -> None:
    assert importers(client) <= HOMES[client]


def test_importers_are_found() -> None:
    assert {"core", "compute"} <= importers("jax")
