"""Simulates the change detector's bank on Gaussian noise and writes the table of its base thresholds.

An operator asks for a mean number of ticks between false alarms. Five statistics watch one stream of standardised
innovations, and the innovations come from a reference model that was fitted on a finite number of ticks and then held,
so that its errors (a wrong mean, scale and coefficients) raise every alarm rate for as long as it is held. Neither
effect has a usable closed form; both are simulated here.

For each number of fitting ticks many independent references are fitted on white noise and held over a further stream of
it. The time at which each statistic first passes each level of a fine grid is recorded. An alarm rate is the number of
first alarms over the ticks observed, each reference being observed until its alarm or for twice the asked interval at
most (references are replaced at every change of regime, so that the few that never alarm must not make up for the many
that do). Thresholds are first set so that each statistic alone alarms at a fifth of the asked rate, then multiplied by
one common factor that brings the whole bank to the asked rate.

    python scripts/simulate_thresholds.py            writes src/usp_daemon/core/_threshold_table.py (some minutes)
    python scripts/simulate_thresholds.py --check    prints the bank's rate under the committed table instead
"""

import argparse
import dataclasses
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

TABLE_PATH = Path(__file__).resolve().parent.parent / "src" / "usp_daemon" / "core" / "_threshold_table.py"

ALLOWANCES = (0.1, 0.25, 0.5, 0.75, 1.0)
FIT_TICKS = (60, 120, 180, 360, 720)
MEAN_TICKS = (500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000)
STATISTICS = ("level", "level_slow", "scale_up", "scale_down", "dynamics")

HORIZON_FACTOR = 2  # a reference is observed for at most this many asked intervals
REFERENCE_ORDER = 3
SCALE_CLIP = 4.0
DYNAMICS_ALLOWANCE = 0.35
KURTOSIS_WINDOW = 252
LEVELS = np.exp(np.arange(math.log(1.0), math.log(20_000.0), 0.01))


@dataclasses.dataclass(frozen=True)
class Passages:
    """First passage times (ticks, from 1) of each statistic through each of ``LEVELS``, per stream.

    ``times`` maps a statistic's key to an array (levels, streams); one that was not passed within ``horizon`` ticks has
    ``horizon + 1``. Level statistics have their allowance as key.
    """

    times: dict[str | float, np.ndarray]
    horizon: int

    def rate(self, thresholds: dict[str | float, float], mean_ticks: float) -> float:
        """Alarms a tick of the statistics named in ``thresholds`` together."""
        horizon = min(self.horizon, round(HORIZON_FACTOR * mean_ticks))
        first = np.minimum.reduce([self.passed(key, level) for key, level in thresholds.items()])
        alarms = int(np.count_nonzero(first <= horizon))
        return alarms / float(np.sum(np.minimum(first, horizon), dtype=np.float64))

    def passed(self, key: str | float, level: float) -> np.ndarray:
        """First passage times of one statistic through the lowest grid level that is not below ``level``."""
        index = min(int(np.searchsorted(LEVELS, level)), len(LEVELS) - 1)
        return self.times[key][index]

    def threshold(self, key: str | float, mean_ticks: float, observed: float) -> float:
        """The level at which ``key`` alone alarms once in ``mean_ticks``, references observed as for ``observed``."""
        return _bisect(lambda level: self.rate({key: level}, observed) - 1.0 / mean_ticks, LEVELS[0], LEVELS[-1])


def _bisect(excess, low: float, high: float) -> float:
    """Where the falling function ``excess`` changes sign, in the logarithm."""
    for _ in range(40):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if excess(middle) > 0.0 else (low, middle)
    return high


def fit_references(noise: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Least-squares autoregressions with intercept, one per column of ``noise`` (ticks, streams).

    Returns coefficients (1 + order, streams), intercept first, and residual standard deviations (streams,).
    """
    ticks = len(noise) - REFERENCE_ORDER
    lags = [noise[REFERENCE_ORDER - lag : REFERENCE_ORDER - lag + ticks] for lag in range(1, REFERENCE_ORDER + 1)]
    design = np.stack([np.ones_like(lags[0]), *lags], axis=-1).transpose(1, 0, 2)
    target = noise[REFERENCE_ORDER:].T[..., None]
    gram = design.transpose(0, 2, 1) @ design
    coefficients = np.linalg.solve(gram, design.transpose(0, 2, 1) @ target)
    residual = (target - design @ coefficients)[..., 0]
    deviation = np.sqrt(np.sum(residual**2, axis=1) / (ticks - REFERENCE_ORDER - 1))
    return coefficients[..., 0].T, deviation


class _RollingKurtosis:
    """m4 / m2^2 of the last ``KURTOSIS_WINDOW`` values per stream; the window grows until it is full."""

    def __init__(self, streams: int) -> None:
        self.window = np.zeros((KURTOSIS_WINDOW, streams))
        self.sums = np.zeros((4, streams))
        self.powers = np.empty((4, streams))
        self.count = 0

    def update(self, values: np.ndarray) -> np.ndarray:
        slot = self.count % KURTOSIS_WINDOW
        for sign, source in ((-1.0, self.window[slot]), (1.0, values)):
            np.copyto(self.powers[0], source)
            np.multiply(source, source, out=self.powers[1])
            np.multiply(self.powers[1], source, out=self.powers[2])
            np.multiply(self.powers[1], self.powers[1], out=self.powers[3])
            self.powers *= sign
            self.sums += self.powers
        self.window[slot] = values
        self.count += 1
        mean, second, third, fourth = self.sums / min(self.count, KURTOSIS_WINDOW)
        square = mean * mean
        variance = np.maximum(second - square, 1e-12)
        return (fourth - 4.0 * mean * third + 6.0 * square * second - 3.0 * square * square) / (variance * variance)


def simulate(
    fit_ticks: int | None,
    *,
    horizon: int,
    streams: int,
    allowances: Sequence[float] = ALLOWANCES,
    adapt_to_kurtosis: bool = True,
    seed: int = 0,
    shift: float = 0.0,
) -> Passages:
    """First passage times on white noise with references fitted on ``fit_ticks`` ticks (``None``: the true law known).

    ``shift`` is added to the innovations, in standard deviations, to measure detection delays.
    """
    generator = np.random.default_rng([seed, fit_ticks or 0])
    level_keys = sorted({*allowances, *(allowance / 2.0 for allowance in allowances)})
    keys: list[str | float] = [*level_keys, "scale_up", "scale_down", "dynamics"]
    if fit_ticks is None:
        coefficients, deviation = np.zeros((1 + REFERENCE_ORDER, streams)), np.ones(streams)
        past = [np.zeros(streams)] * REFERENCE_ORDER
    else:
        noise = generator.standard_normal((fit_ticks, streams))
        coefficients, deviation = fit_references(noise)
        past = [noise[-lag] for lag in range(1, REFERENCE_ORDER + 1)]
    intercept, slopes = coefficients[0], coefficients[1:]

    slack = np.asarray(level_keys)[:, None]
    up, down = np.zeros((len(level_keys), streams)), np.zeros((len(level_keys), streams))
    scale_up, scale_down = np.zeros(streams), np.zeros(streams)
    together, against = np.zeros(streams), np.zeros(streams)
    kurtosis = _RollingKurtosis(streams)
    previous = np.zeros(streams)
    passed = np.zeros((len(keys), streams), dtype=np.int64)  # how many levels of the grid are behind
    ahead = np.full((len(keys), streams), LEVELS[0])
    times = np.full((len(keys), len(LEVELS), streams), horizon + 1, dtype=np.int32)
    values = np.empty((len(keys), streams))
    for tick in range(1, horizon + 1):
        fresh = generator.standard_normal(streams)
        innovation = fresh - intercept
        for slope, lagged in zip(slopes, past, strict=True):
            innovation -= slope * lagged
        innovation /= deviation
        innovation += shift
        past = [fresh, *past[:-1]]

        np.maximum(up + innovation - slack, 0.0, out=up)
        np.maximum(down - innovation - slack, 0.0, out=down)
        clipped = np.clip(innovation, -SCALE_CLIP, SCALE_CLIP)
        square = clipped * clipped
        scale_up = np.maximum(scale_up - math.log(2.0) + square * 0.375, 0.0)
        scale_down = np.maximum(scale_down + math.log(2.0) - square * 1.5, 0.0)
        product = clipped * previous
        together = np.maximum(together + product - DYNAMICS_ALLOWANCE, 0.0)
        against = np.maximum(against - product - DYNAMICS_ALLOWANCE, 0.0)
        previous = clipped

        np.maximum(up, down, out=values[: len(level_keys)])
        values[-3], values[-2] = scale_up, scale_down
        np.maximum(together, against, out=values[-1])
        if adapt_to_kurtosis:
            values /= 1.0 + np.log(np.maximum(kurtosis.update(innovation), 3.0) / 3.0)
        record = values >= ahead
        if record.any():
            for which, stream in zip(*np.nonzero(record), strict=True):
                reached = int(np.searchsorted(LEVELS, values[which, stream], side="right"))
                times[which, passed[which, stream] : reached, stream] = tick
                passed[which, stream] = reached
                ahead[which, stream] = LEVELS[reached] if reached < len(LEVELS) else math.inf
    return Passages({key: times[index] for index, key in enumerate(keys)}, horizon)


def bank(allowance: float, thresholds: Sequence[float]) -> dict[str | float, float]:
    """The thresholds of the five statistics under their keys; the two level statistics differ in their allowance."""
    fast, slow, up, down, dynamics = thresholds
    return {allowance: fast, allowance / 2.0: slow, "scale_up": up, "scale_down": down, "dynamics": dynamics}


def thresholds_for(passages: Passages, allowance: float, mean_ticks: float) -> list[float]:
    """Base thresholds in the order of ``STATISTICS`` for one allowance and one asked interval."""
    keys = list(bank(allowance, [0.0] * len(STATISTICS)))
    alone = [passages.threshold(key, len(keys) * mean_ticks, mean_ticks) for key in keys]
    factor = _bisect(
        lambda c: passages.rate(bank(allowance, [c * level for level in alone]), mean_ticks) - 1.0 / mean_ticks,
        0.5,
        2.0,
    )
    return [factor * level for level in alone]


def render(table: np.ndarray) -> str:
    """The table as the source of a module."""
    lines = [
        '"""Base thresholds of the change detector\'s bank, written by scripts/simulate_thresholds.py; do not edit.',
        "",
        "``THRESHOLDS[fit ticks][allowance][mean ticks]`` holds one threshold per statistic, dimensionless.",
        '"""',
        "",
        f"ALLOWANCES = {ALLOWANCES}",
        f"FIT_TICKS = {FIT_TICKS}",
        f"MEAN_TICKS = {MEAN_TICKS}",
        "STATISTICS = (" + ", ".join(f'"{name}"' for name in STATISTICS) + ")",
        "",
        "THRESHOLDS = (",
    ]
    for by_allowance in table:
        lines.append("    (")
        for by_mean in by_allowance:
            lines.append("        (")
            lines += ["            (" + ", ".join(f"{value:.3f}" for value in row) + ")," for row in by_mean]
            lines.append("        ),")
        lines.append("    ),")
    return "\n".join([*lines, ")", ""])


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the table, or check the committed one."""
    parser = argparse.ArgumentParser(description="Base thresholds of the change detector, by simulation.")
    parser.add_argument("--streams", type=int, default=2500, help="independent references per number of fitting ticks")
    parser.add_argument("--seed", type=int, default=20)
    parser.add_argument("--check", action="store_true", help="print the rate under the committed table instead")
    options = parser.parse_args(arguments)
    table = np.zeros((len(FIT_TICKS), len(ALLOWANCES), len(MEAN_TICKS), len(STATISTICS)))
    committed = None
    if options.check:
        from usp_daemon.core._threshold_table import THRESHOLDS

        committed = np.asarray(THRESHOLDS)
    for row, fit_ticks in enumerate(FIT_TICKS):
        began = time.perf_counter()
        horizon = HORIZON_FACTOR * max(MEAN_TICKS)
        passages = simulate(fit_ticks, horizon=horizon, streams=options.streams, seed=options.seed + options.check)
        for column, allowance in enumerate(ALLOWANCES):
            for depth, mean_ticks in enumerate(MEAN_TICKS):
                if committed is None:
                    table[row, column, depth] = thresholds_for(passages, allowance, mean_ticks)
                    continue
                rate = passages.rate(bank(allowance, committed[row, column, depth].tolist()), mean_ticks)
                print(
                    f"fitted on {fit_ticks:4d}, allowance {allowance:4.2f}: asked {mean_ticks:6d}, got {1 / rate:8.0f}"
                )
        print(f"{fit_ticks} fitting ticks: {time.perf_counter() - began:.0f} s", file=sys.stderr)
    if committed is None:
        TABLE_PATH.write_text(render(table))
        print(f"wrote {TABLE_PATH}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
