"""A predictor without mathematics: it forecasts the last value, deterministically, and can be told to misbehave."""

import asyncio
import contextlib
import dataclasses

import numpy as np

from usp_daemon.core import PredictionResult

FLAGS = {
    "sinkhorn_converged", "accepted", "degraded_inference_mode", "emergency_mode", "regime_change_detected",
    "mode_collapse_warning", "warming_up", "reference_ready", "refresh_due",
}  # fmt: skip
COUNTS = {
    "dgm_tier", "solver_scheme", "sinkhorn_iterations", "season_length", "sequence", "grace_counter", "missed_periods",
    "gate_reasons", "result_code", "mode", "alarm_kind", "alarm_start_ticks_ago",
}  # fmt: skip
WIDE = {"quantiles": 39, "kernel_predictions": 4, "kernel_confidences": 4, "weights": 4}


@dataclasses.dataclass
class Result:
    admitted: np.ndarray
    columns: dict


class FakePredictor:
    """Keeps count and last value of each key; ticks of more than ``max_symbols`` symbols are not admitted."""

    def __init__(self, *, max_symbols=1000, delay_s=0.0, poison=(), fail_after=None, alarm_every=0):
        self.seen, self.batch_sizes = {}, []
        self._max_symbols, self._delay_s, self._poison = max_symbols, delay_s, set(poison)
        self._fail_after, self._alarm_every = fail_after, alarm_every

    async def step(self, keys, values, timestamps_ns, record_timestamps_ns, parameters=None):
        assert len(keys) == len(values) == len(timestamps_ns) == len(record_timestamps_ns)
        self.batch_sizes.append(len(keys))
        if self._fail_after is not None and len(self.batch_sizes) > self._fail_after:
            raise RuntimeError("the device is gone")
        await asyncio.sleep(self._delay_s)
        n = len(keys)
        columns = {}
        for field in dataclasses.fields(PredictionResult):
            name = field.name
            kind = bool if name in FLAGS else np.int32 if name in COUNTS else np.float64
            columns[name] = np.zeros((n, WIDE[name]) if name in WIDE else n, kind)
        columns["weights"][:] = 0.25
        columns["scale"][:] = 1.0
        admitted = np.ones(n, bool)
        for row, (key, value) in enumerate(zip(keys, values, strict=True)):
            if key not in self.seen and len(self.seen) >= self._max_symbols:
                admitted[row] = False
                continue
            count, last = self.seen.get(key, (0, 0.0))
            accepted = bool(np.isfinite(value))
            last = float(value) if accepted else last
            count += accepted
            self.seen[key] = (count, last)
            columns["accepted"][row] = accepted
            columns["gate_reasons"][row] = 0 if accepted else 1
            columns["sequence"][row] = count
            columns["predicted_next"][row] = np.nan if last in self._poison else last
            columns["lower_80"][row], columns["upper_80"][row] = last - 1.0, last + 1.0
            columns["lower_95"][row], columns["upper_95"][row] = last - 2.0, last + 2.0
            if self._alarm_every and count % self._alarm_every == 0:
                columns["alarm_kind"][row] = 1
        return Result(admitted, columns)


def factory(**behaviour):
    """What ``usp_daemon.app.replay`` takes as ``predictor_factory``."""

    @contextlib.asynccontextmanager
    async def started(settings, options):
        del settings
        yield FakePredictor(max_symbols=options.max_symbols or 1000, **behaviour), "a fake"

    return started
