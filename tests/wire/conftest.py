"""Columns as the predictor returns them, from its own result record, so that a renamed field breaks these tests."""

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest

from usp_daemon.core._parameters import QUANTILE_LEVELS
from usp_daemon.core._results import PredictionResult

FLAGS = {
    "sinkhorn_converged", "accepted", "degraded_inference_mode", "emergency_mode", "regime_change_detected",
    "mode_collapse_warning", "warming_up", "reference_ready", "refresh_due",
}  # fmt: skip
COUNTS = {
    "dgm_tier", "solver_scheme", "sinkhorn_iterations", "season_length", "sequence", "grace_counter", "missed_periods",
    "gate_reasons", "result_code", "mode", "alarm_kind", "alarm_start_ticks_ago",
}  # fmt: skip
WIDE = {"quantiles": len(QUANTILE_LEVELS), "kernel_predictions": 4, "kernel_confidences": 4, "weights": 4}


@pytest.fixture
def make_columns() -> Callable[[int], dict[str, np.ndarray]]:
    """Columns for ``n`` ticks with plausible contents."""

    def make(n: int) -> dict[str, np.ndarray]:
        generator = np.random.default_rng(7)
        columns: dict[str, np.ndarray] = {}
        for field in dataclasses.fields(PredictionResult):
            name = field.name
            if name in FLAGS:
                columns[name] = np.zeros(n, bool)
            elif name in COUNTS:
                columns[name] = np.zeros(n, np.int32)
            elif name in WIDE:
                columns[name] = np.sort(generator.random((n, WIDE[name])), axis=1)
            else:
                columns[name] = generator.random(n)
        columns["weights"] /= columns["weights"].sum(axis=1, keepdims=True)
        columns["accepted"][:] = True
        columns["sequence"] = np.arange(1, n + 1, dtype=np.int32)
        return columns

    return make
