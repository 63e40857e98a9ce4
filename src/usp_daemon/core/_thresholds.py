"""Base thresholds of the change detector for the false-alarm rate that an operator asks for."""

import math

import numpy as np

from ._threshold_table import ALLOWANCES, FIT_TICKS, MEAN_TICKS, STATISTICS, THRESHOLDS

# The mean interval between false alarms may be asked up to this factor beyond the simulated range. Thresholds there
# follow the law of every cumulative sum with negative drift, linear in the logarithm of the interval.
EXTRAPOLATION_FACTOR = 20.0


def resolve_thresholds(
    *,
    cusum_k: float | int,
    mean_ticks_between_false: float | int,
    reference_fit_ticks: float | int,
    cusum_h: float | int | None = None,
) -> dict[str, float]:
    """Base threshold of the level statistic and the other statistics' thresholds relative to it.

    The five statistics together then alarm about once in ``mean_ticks_between_false`` ticks on Gaussian noise whose
    reference model was fitted on ``reference_fit_ticks`` ticks and held. Values come from a simulation
    (``scripts/simulate_thresholds.py``), interpolated: linearly in the logarithm of the interval, log-linearly in the
    allowance and the number of fitting ticks; the latter two are held at the ends of the simulated range.

    Args:
      cusum_k: allowance of the level statistic, in standard deviations of an innovation, positive.
      mean_ticks_between_false: accepted ticks between two false alarms of the whole bank, 100 to 10^6 say.
      reference_fit_ticks: accepted ticks that the held reference model is fitted on, positive.
      cusum_h: an explicit base threshold of the level statistic, which then scales the whole bank and overrides the
        asked interval; ``None`` for the simulated one.

    Returns:
      ``cusum_h``, ``cusum_slow_ratio``, ``scale_up_ratio``, ``scale_down_ratio`` and ``dynamics_ratio``, dimensionless,
      the fields of ``PredictorConfig`` with these names.

    Raises:
      ValueError: an argument is not a positive finite number.
    """
    asked = {
        "cusum_k": cusum_k,
        "mean_ticks_between_false": mean_ticks_between_false,
        "reference_fit_ticks": reference_fit_ticks,
        **({} if cusum_h is None else {"cusum_h": cusum_h}),
    }
    for name, value in asked.items():
        if not (math.isfinite(value) and value > 0.0):
            raise ValueError(f"{name} must be positive and finite, got {value}")
    table = np.asarray(THRESHOLDS, dtype=np.float64)
    by_allowance_and_mean = np.exp(_between(np.log(table), np.log(FIT_TICKS), math.log(reference_fit_ticks)))
    by_mean = np.exp(_between(np.log(by_allowance_and_mean), np.log(ALLOWANCES), math.log(cusum_k)))
    thresholds = _along_mean(by_mean, mean_ticks_between_false)
    level, *others = (float(threshold) for threshold in thresholds)
    names = ("cusum_slow_ratio", "scale_up_ratio", "scale_down_ratio", "dynamics_ratio")
    ratios = dict(zip(names, (other / level for other in others), strict=True))
    return {"cusum_h": level if cusum_h is None else float(cusum_h), **ratios}


def _between(values: np.ndarray, knots: np.ndarray, at: float) -> np.ndarray:
    """Linear interpolation of ``values`` along their first axis, constant beyond the ends."""
    place = float(np.interp(at, knots, np.arange(len(knots), dtype=np.float64)))
    lower = min(int(place), len(knots) - 2)
    share = place - lower
    return (1.0 - share) * values[lower] + share * values[lower + 1]


def _along_mean(values: np.ndarray, mean_ticks: float | int) -> np.ndarray:
    """Linear in the logarithm of the interval, continued with the end slopes up to ``EXTRAPOLATION_FACTOR`` beyond."""
    knots = np.log(MEAN_TICKS)
    spare = math.log(EXTRAPOLATION_FACTOR)
    at = min(max(math.log(mean_ticks), knots[0] - spare), knots[-1] + spare)
    segment = int(np.clip(np.searchsorted(knots, at) - 1, 0, len(knots) - 2))
    share = (at - knots[segment]) / (knots[segment + 1] - knots[segment])
    extended = values[segment] + share * (values[segment + 1] - values[segment])
    # towards short intervals a straight line would cross zero
    return np.maximum(extended, 0.25 * values[0])


__all__ = ["STATISTICS", "resolve_thresholds"]
