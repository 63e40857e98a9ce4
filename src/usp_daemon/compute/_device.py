"""Which device computes, in which precision, and what makes its arithmetic what it is.

Bit-equality holds for one program on one kind of device with one instruction set, so those are named here once and
enter the program's identity and the key of the compilation cache.
"""

import hashlib
import os
import platform
import re
from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np
from jax._src import xla_bridge

from ._errors import DeviceUnavailableError

_X86 = ("x86_64", "AMD64")
# The widest vectors without fused multiply-adds. The compiler fuses a product and a sum where it sees fit, which
# differs between the body of a vectorised loop and what is unrolled around it, and so between lanes in the last bit.
_NO_FUSED_ARITHMETIC = "--xla_cpu_max_isa=AVX"


def forbid_fused_arithmetic(environ: MutableMapping[str, str]) -> None:
    """Has programs for the CPU compiled without fused multiply-adds, so that a lane's bits do not depend on its place.

    Takes effect only before the first device is asked for. Whoever sets ``xla_cpu_max_isa`` in ``XLA_FLAGS`` is left
    alone. See docs/decisions/0006-no-fused-multiply-add.md.
    """
    flags = environ.get("XLA_FLAGS", "")
    if platform.machine() in _X86 and "xla_cpu_max_isa" not in flags and not xla_bridge.backends_are_initialized():
        environ["XLA_FLAGS"] = f"{flags} {_NO_FUSED_ARITHMETIC}".strip()


_CUDA = re.compile(r"cuda:(\d+)")
_ACCELERATORS = ("gpu", "tpu")

# A tile must fill the widest vector unit evenly, else the remainder loop rounds differently from the body.
TILE_MULTIPLE = 16
_DEFAULT_TILE_WIDTH = {"cpu": 64}
_ACCELERATOR_TILE_WIDTH = 1024
_DEFAULT_REFRESH_WIDTH = {"cpu": 16}
_ACCELERATOR_REFRESH_WIDTH = 256


class DeviceBackend(Protocol):
    """What this package asks of the machine; tests answer in its place."""

    def devices(self, kind: str) -> Sequence[Any]:
        """Devices of one ``kind`` (``"cpu"``, ``"gpu"``, ``"tpu"``), empty where there is none."""
        ...

    def instruction_set(self, kind: str) -> str:
        """A short key of the instruction set that programs for ``kind`` are compiled to."""
        ...


class JaxBackend:
    """The machine as jax sees it."""

    def devices(self, kind: str) -> Sequence[Any]:
        """Devices of one kind; a backend that cannot start counts as absent."""
        try:
            return jax.devices(kind)
        except RuntimeError:  # jax: unknown backend, or its driver is missing
            return ()

    def instruction_set(self, kind: str) -> str:
        """On the CPU a digest of its feature flags, which the compiler targets exactly; else the machine type."""
        return f"{platform.machine()}-{_cpu_features_digest()}" if kind == "cpu" else platform.machine()


@dataclass(frozen=True)
class DeviceChoice:
    """One pinned device with the precision and tile widths that go with it."""

    device: Any
    kind: str  # "cpu", "gpu", "tpu"
    name: str  # what the vendor calls it
    instruction_set: str
    precision: str  # "float32" or "float64"
    tile_width: int
    refresh_width: int

    @property
    def dtype(self) -> np.dtype:
        """The real dtype of all arithmetic."""
        return np.dtype(self.precision)

    def describe(self) -> str:
        """One line for the start-up log: what was asked for is known, this is what was got."""
        address = f"{self.kind}:{getattr(self.device, 'id', 0)}"
        return f"{address} ({self.name}), {self.precision}, tiles of {self.tile_width}"


def choose_device(
    device: str = "auto",
    precision: str = "auto",
    tile_width: int | None = None,
    refresh_width: int | None = None,
    backend: DeviceBackend | None = None,
) -> DeviceChoice:
    """Resolves what the settings ask for into one device.

    ``device`` is ``"auto"`` (an accelerator if there is one, else the CPU), ``"cpu"`` or ``"cuda:N"``. ``precision`` is
    ``"auto"`` (float64 on the CPU, float32 elsewhere), ``"float32"`` or ``"float64"``. Widths are in lanes, positive
    multiples of 16. Raises :class:`DeviceUnavailableError` if the device is not there, ``ValueError`` for anything
    else.
    """
    backend = backend or JaxBackend()
    found, kind = _find(device, backend)
    if precision not in ("auto", "float32", "float64"):
        raise ValueError(f"precision must be auto, float32 or float64, got {precision!r}")
    if precision == "auto":
        precision = "float64" if kind == "cpu" else "float32"
    return DeviceChoice(
        device=found,
        kind=kind,
        name=str(getattr(found, "device_kind", kind)),
        instruction_set=backend.instruction_set(kind),
        precision=precision,
        tile_width=_checked_width("tile_width", tile_width, _DEFAULT_TILE_WIDTH.get(kind, _ACCELERATOR_TILE_WIDTH)),
        refresh_width=_checked_width(
            "refresh_width", refresh_width, _DEFAULT_REFRESH_WIDTH.get(kind, _ACCELERATOR_REFRESH_WIDTH)
        ),
    )


def _find(device: str, backend: DeviceBackend) -> tuple[Any, str]:
    if device == "auto":
        for kind in (*_ACCELERATORS, "cpu"):
            devices = backend.devices(kind)
            if devices:
                return devices[0], kind
        raise DeviceUnavailableError("device = 'auto' found no device at all, not even a CPU")
    if device == "cpu":
        devices = backend.devices("cpu")
        if not devices:
            raise DeviceUnavailableError("device = 'cpu', but jax offers no CPU; is JAX_PLATFORMS set?")
        return devices[0], "cpu"
    match = _CUDA.fullmatch(device)
    if match is None:
        raise ValueError(f"device must be 'auto', 'cpu' or 'cuda:N', got {device!r}")
    devices, number = backend.devices("gpu"), int(match.group(1))
    if number >= len(devices):
        available = ", ".join(f"cuda:{i}" for i in range(len(devices))) or "no CUDA device"
        raise DeviceUnavailableError(
            f"device = {device!r}, but jax sees {available}; "
            "install the cuda extra, check the driver, or set device = 'cpu'"
        )
    return devices[number], "gpu"


def _checked_width(name: str, asked: int | None, default: int) -> int:
    width = default if asked is None else int(asked)
    if width <= 0 or width % TILE_MULTIPLE:
        raise ValueError(f"{name} must be a positive multiple of {TILE_MULTIPLE}, got {width}")
    return width


def _cpu_features_digest() -> str:
    """Digest of the CPU's feature flags; of its marketing name where the system does not list them."""
    description = platform.processor()
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith(("flags", "Features")):
                description = " ".join(sorted(line.partition(":")[2].split()))
                break
    except OSError:  # not Linux
        pass
    isa_limit = re.search(r"--xla_cpu_max_isa=(\S+)", os.environ.get("XLA_FLAGS", ""))
    if isa_limit:
        description += " limit " + isa_limit.group(1)
    return hashlib.sha256(description.encode()).hexdigest()[:12]
