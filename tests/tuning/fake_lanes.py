"""A predictor that a reader can follow, in place of the compiled one: an exponentially weighted level.

Its forecast is the level, which moves by ``volatility_alpha`` of each error; it alarms when an error exceeds
``cusum_h``; it refuses what is not finite. ``log_sig_depth`` is its structure.
"""

import numpy as np

from usp_daemon.core import PredictorConfig
from usp_daemon.tuning._lanes import Observed, Ticks


def steps(values: np.ndarray, alpha: float, threshold: float) -> tuple[np.ndarray, np.ndarray]:
    """Absolute errors of the forecasts and alarms of one lane, tick by tick: the plain loop."""
    losses, alarms, level = [], [], np.nan
    for value in values:
        loss = abs(value - level)
        losses.append(loss)
        alarms.append(bool(loss > threshold))
        if np.isfinite(value):
            level = value if np.isnan(level) else level + alpha * (value - level)
    return np.asarray(losses), np.asarray(alarms)


class FakeProgram:
    def __init__(self, width: int) -> None:
        self.width = width
        self.rows_run = 0  # chunks times lanes, to see what pruning saves

    def stacked(self, configs: list[PredictorConfig]) -> np.ndarray:
        assert len(configs) == self.width
        return np.asarray([[c.volatility_alpha, c.cusum_h, c.kernel_ridge_lambda] for c in configs])

    def start(self, configs: np.ndarray) -> np.ndarray:
        return np.full(len(configs), np.nan)

    def run(self, carry: np.ndarray, ticks: Ticks, configs: np.ndarray) -> tuple[np.ndarray, Observed]:
        level = np.asarray(carry).copy()
        assert ticks.values.shape[1] == len(configs) == self.width
        losses, alarms, accepted = [], [], []
        for value in ticks.values:
            loss = np.abs(value - level)
            losses.append(np.where(configs[:, 2] > 5e-4, np.inf, loss))  # such a ridge breaks it
            alarms.append(loss > configs[:, 1])
            good = np.isfinite(value)
            accepted.append(good)
            moved = np.where(np.isnan(level), value, level + configs[:, 0] * (value - level))
            level = np.where(good, moved, level)
        self.rows_run += ticks.values.size
        return level, Observed(np.stack(losses), np.stack(losses), np.stack(alarms), np.stack(accepted))


class FakePrograms:
    compile_seconds = 0.0

    def __init__(self, width: int = 16) -> None:
        self.made: dict[int, FakeProgram] = {}
        self._width = width

    def get(self, config: PredictorConfig) -> FakeProgram:
        return self.made.setdefault(config.log_sig_depth, FakeProgram(self._width))

    def __len__(self) -> int:
        return len(self.made)
