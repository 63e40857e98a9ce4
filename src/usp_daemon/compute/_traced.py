"""Traced programs kept on disk, so that a restart need not trace them again.

Tracing the step takes longer than everything else a warm start does, and holds the interpreter's lock meanwhile. What
is traced depends on the sources, the versions of the libraries and the shapes, and on nothing else, so it is kept as
serialised StableHLO under a digest of those. What is read back is the program itself: whether it was traced now or
then, the same text is compiled.
"""

import contextlib
import functools
import hashlib
import importlib.metadata
import importlib.resources
import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import export

_LIBRARIES = ("jax", "jaxlib", "equinox", "diffrax", "lineax", "optimistix", "numpy")
_SUFFIXES = (".py", ".npz")


@functools.cache
def sources_digest() -> str:
    """SHA-256 over what the step is made of: sources and weights of core and compute, and versions of libraries."""
    digest = hashlib.sha256()
    for name in _LIBRARIES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            digest.update(f"{name}=={importlib.metadata.version(name)}\n".encode())
    for package in ("usp_daemon.core", "usp_daemon.compute"):
        folder = Path(str(importlib.resources.files(package)))
        for path in sorted(folder.rglob("*")):
            if path.suffix in _SUFFIXES:
                digest.update(f"{path.relative_to(folder)}\0".encode())
                digest.update(path.read_bytes())
    return digest.hexdigest()


class TracedPrograms:
    """A folder of traced programs for one ``key``; ``folder`` None keeps nothing.

    Nothing that is wrong with the folder is an error: then the programs are traced as if there were none.
    """

    def __init__(self, folder: Path | None, key: str) -> None:
        self._folder = folder
        self._key = hashlib.sha256(key.encode()).hexdigest()[:32]

    def program(
        self, name: str, trace_fn: Callable[[], export.Exported], donate_argnums: tuple[int, ...]
    ) -> Callable[..., Any]:
        """The program ``name`` as a jitted function; ``trace_fn`` traces it if it is not kept."""
        content = self._read(f"{name}.stablehlo")
        exported = None
        if content is not None:
            with contextlib.suppress(Exception):  # written by another version, or half of it
                exported = export.deserialize(bytearray(content))
        if exported is None:
            # Through the serialised form here too, so that the text that is compiled is the same either way.
            content = bytes(trace_fn().serialize())
            self._write(f"{name}.stablehlo", content)
            exported = export.deserialize(bytearray(content))
        return jax.jit(exported.call, donate_argnums=donate_argnums)

    def shapes(self, name: str, shapes_fn: Callable[[], Mapping[str, Any]]) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes by name, from ``shapes_fn`` if they are not kept."""
        content = self._read(f"{name}.json")
        if content is not None:
            with contextlib.suppress(ValueError, TypeError, KeyError):
                return {
                    each: jax.ShapeDtypeStruct(tuple(shape), np.dtype(dtype))
                    for each, (shape, dtype) in json.loads(content).items()
                }
        found = shapes_fn()
        plain = {each: (list(value.shape), np.dtype(value.dtype).name) for each, value in found.items()}
        self._write(f"{name}.json", json.dumps(plain).encode())
        return {each: jax.ShapeDtypeStruct(value.shape, value.dtype) for each, value in found.items()}

    def _path(self, name: str) -> Path | None:
        return None if self._folder is None else self._folder / "traced" / f"{self._key}-{name}"

    def _read(self, name: str) -> bytes | None:
        path = self._path(name)
        with contextlib.suppress(OSError):
            return None if path is None else path.read_bytes()
        return None

    def _write(self, name: str, content: bytes) -> None:
        path = self._path(name)
        if path is None:
            return
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            # Several processes may start at once; whoever renames last leaves the same bytes.
            handle, temporary = tempfile.mkstemp(dir=path.parent)
            with os.fdopen(handle, "wb") as file:
                file.write(content)
            os.replace(temporary, path)


def traced(
    function: Callable[..., Any], specs: Sequence[Any], donate_argnums: tuple[int, ...], platform: str
) -> export.Exported:
    """``function`` traced for arguments of the shapes ``specs`` on ``platform`` ("cpu", "cuda", "tpu")."""
    jitted = jax.jit(function, donate_argnums=donate_argnums)
    return export.export(jitted, platforms=(platform,))(*specs)
