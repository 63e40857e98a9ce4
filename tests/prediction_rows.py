"""Rows of predictions as the service hands them to metrics and pages, made up at random."""

import dataclasses

import numpy as np

from fake_predictor import COUNTS, FLAGS, WIDE
from usp_daemon.core import PredictionResult


@dataclasses.dataclass
class Rows:
    symbols: list
    values: np.ndarray
    columns: dict

    def __len__(self):
        return len(self.symbols)

    def column(self, name):
        return self.columns[name]

    def part(self, first, last):
        return Rows(
            self.symbols[first:last], self.values[first:last], {k: v[first:last] for k, v in self.columns.items()}
        )


def random_rows(symbols, seed=0, **given):
    rng = np.random.default_rng(seed)
    n = len(symbols)
    columns = {}
    for field in dataclasses.fields(PredictionResult):
        shape = (n, WIDE[field.name]) if field.name in WIDE else n
        if field.name in FLAGS:
            columns[field.name] = rng.random(shape) < 0.3
        elif field.name in COUNTS:
            columns[field.name] = rng.integers(0, 3, shape)
        else:
            columns[field.name] = rng.gamma(2.0, 1.0, shape)
    values = rng.normal(size=n)
    centre = rng.normal(size=n)
    columns["predicted_next"] = centre
    columns["lower_80"], columns["upper_80"] = centre - 1.3, centre + 1.3
    columns["lower_95"], columns["upper_95"] = centre - 2.0, centre + 2.0
    columns["weights"] = rng.dirichlet(np.ones(4), n)
    columns["gate_reasons"] = rng.integers(0, 1 << 10, n)
    columns["result_code"] = rng.integers(0, 1 << 9, n)
    columns["alarm_kind"] = (rng.random(n) < 0.1) * rng.integers(1, 32, n)
    columns["accepted"] = rng.random(n) < 0.8
    columns.update({name: np.asarray(column) for name, column in given.items()})
    return Rows(list(symbols), values, columns)
