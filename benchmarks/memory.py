"""Bytes of state on the device, per symbol: ``python -m benchmarks.memory``.

Counted from the shapes of the state that the step carries; the engine adds no bytes per symbol, only whole pages, so a
partition with few symbols pays for up to one page.
"""

import argparse
import dataclasses
from collections.abc import Sequence

import jax
import numpy as np

from usp_daemon.compute import choose_device
from usp_daemon.core import PredictorConfig, initialize_state

from ._table import Row, format_rows

KIB = 1024
FIGURES = {3: 64, 5: 160}


def bytes_by_part(config: PredictorConfig, precision: str) -> dict[str, int]:
    """Bytes of one symbol by part of the state, such as ``model/kernels/0``."""
    state = jax.eval_shape(lambda: initialize_state(config, dtype=np.dtype(precision)))
    parts: dict[str, int] = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(state)[0]:
        names = jax.tree_util.keystr(path, simple=True, separator="/").split("/")
        part = "/".join(names[: 3 if "kernels" in names else 2])
        parts[part] = parts.get(part, 0) + int(np.prod(leaf.shape)) * np.dtype(leaf.dtype).itemsize
    return parts


def measure(short: bool) -> list[Row]:
    """The rows of the common table."""
    del short  # nothing is run, shapes suffice
    width = choose_device("cpu").tile_width
    rows = []
    for depth, figure in FIGURES.items():
        config = dataclasses.replace(PredictorConfig(), log_sig_depth=depth)
        for precision in ("float64", "float32"):
            parts = bytes_by_part(config, precision)
            largest = sorted(parts.items(), key=lambda item: -item[1])[:2]
            rows.append(
                Row(
                    name=f"state a symbol, signature depth {depth}, {precision}",
                    figure_to_reach=f"<= {figure}" if precision == "float64" else "-",
                    measured=sum(parts.values()) / KIB,
                    unit="KiB",
                    note=", ".join(f"{name} {size / KIB:.1f}" for name, size in largest)
                    + f"; a page of {width} symbols {sum(parts.values()) * width / KIB / KIB:.1f} MiB",
                )
            )
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the table, then every part of the state."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory", description="Bytes of state per symbol.")
    parser.parse_args(arguments)
    print(format_rows(measure(False)))
    print()
    for part, size in sorted(bytes_by_part(PredictorConfig(), "float64").items(), key=lambda item: -item[1]):
        print(f"{size:8,d} bytes  {part}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
