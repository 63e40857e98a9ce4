"""Layers hold, every module imports, and the package's front door stays light."""

import importlib
import importlib.metadata
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import usp_daemon

MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(usp_daemon.__path__, prefix="usp_daemon.")
    if not module.name.endswith("__main__")
)


@pytest.mark.parametrize("name", MODULES)
def test_module_imports(name: str) -> None:
    module = importlib.import_module(name)
    assert module.__doc__, f"{name} says nothing about itself"


def test_import_contracts_hold(repository_root: Path) -> None:
    done = subprocess.run(
        [str(Path(sys.executable).parent / "lint-imports"), "--no-cache"],
        cwd=repository_root,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", ["usp_daemon", "usp_daemon.config"])
def test_import_is_light(name: str) -> None:
    heavy = ("jax", "jaxlib", "numpy", "optuna", "aiokafka", "rich")
    program = f"import sys, {name}; print([m for m in {heavy!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


def test_version_is_the_packages() -> None:
    assert importlib.metadata.version("usp-daemon") == usp_daemon.__version__


def test_modules_stay_readable(repository_root: Path) -> None:
    long = {
        str(path.relative_to(repository_root)): lines
        for path in (repository_root / "src").rglob("*.py")
        if (lines := len(path.read_text("utf-8").splitlines())) > 600
    }
    assert not long, f"over 600 lines: {long}"
