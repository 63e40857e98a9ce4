"""Which versions run: for ``usp-daemon version`` and the status page."""

import importlib.metadata
import platform

_PACKAGES = ("jax", "jaxlib", "equinox", "diffrax", "numpy", "aiokafka", "optuna")


def versions() -> dict[str, str | None]:
    """Of Python and of the packages that results depend on; None for one that is missing."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    return found


def present_versions() -> dict[str, str]:
    """The same without what is missing."""
    return {name: version for name, version in versions().items() if version is not None}
