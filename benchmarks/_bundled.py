"""The real series that come with the package, as series of a benchmark."""

import csv
import gzip
import math

import numpy as np

from usp_daemon.demo import demo_files

from ._suite import Series, seconds_to_ns


def load_bundled(rows: int | None = None) -> list[Series]:
    """The bundled series, each cut to its first ``rows`` values."""
    found = []
    for path in demo_files():
        with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
            records = list(csv.DictReader(file))[:rows]
        name = path.name.partition(".")[0]
        found.append(
            Series(
                name=name,
                track="point",
                kind="bundled",
                timestamps_ns=np.asarray([seconds_to_ns(record["t"]) for record in records], dtype=np.int64),
                values=np.asarray([float(record["value"] or math.nan) for record in records]),
                entry={"id": name, "file": path.name},
            )
        )
    return found
