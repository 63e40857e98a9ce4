"""The compilation cache on disk: the second start of the daemon compiles nothing."""

import os
from pathlib import Path

import jax

from ._device import DeviceChoice


def default_cache_directory() -> Path:
    """``$USP_CACHE_DIR`` if set, else ``usp-daemon`` in ``$XDG_CACHE_HOME`` or ``~/.cache``."""
    explicit = os.environ.get("USP_CACHE_DIR")
    if explicit:
        return Path(explicit)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "usp-daemon"


def enable_compilation_cache(choice: DeviceChoice, directory: Path | None = None) -> Path | None:
    """Keeps compiled programs under ``directory`` and returns the folder in use, or ``None`` if none could be made.

    The folder's name holds the device kind, the instruction set and the jax version: a binary that was compiled for one
    CPU may use instructions that another one lacks. A cache that cannot be written costs time, never the start.
    """
    folder = (directory or default_cache_directory()) / f"{choice.kind}-{choice.instruction_set}-jax{jax.__version__}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    jax.config.update("jax_raise_persistent_cache_errors", False)
    return folder
