"""How much of the objective's variance each parameter explains.

This is the functional analysis of variance of [HutterHoosLeytonBrown2014], main effects only.

A forest of regression trees is grown on the complete trials. A tree is constant on boxes, so the variance of its
prediction under the uniform law on the search space, and that of its mean given one parameter, are finite sums. Their
ratio, averaged over the trees, is the parameter's share; interactions have the rest. Optuna's own evaluator needs
scikit-learn, which nothing else here does.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from ._trials import TrialRecord

MIN_TRIALS = 20
_NUM_TREES = 48
_MAX_DEPTH = 10
_MIN_LEAF = 2
_Boxes = tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]


def parameter_importance(
    records: Sequence[TrialRecord], space: Mapping[str, BaseDistribution], *, seed: int = 0
) -> dict[str, float] | None:
    """Share of each parameter in the variance of the value, most important first; the shares sum to at most 1.

    Of complete trials only; None with fewer than 20 of them. Parameters are scaled to the unit cube: logarithmically
    where they are searched so, choices as equal cells.
    """
    complete = [record for record in records if record.state == "complete" and record.value is not None]
    if len(complete) < MIN_TRIALS:
        return None
    names = list(space)
    points = np.array([[_unit(record.params[name], space[name]) for name in names] for record in complete])
    values = np.array([record.value for record in complete], dtype=np.float64)
    shares = forest_shares(points, values, seed=seed)
    order = np.argsort(-shares, kind="stable")
    return {names[index]: float(shares[index]) for index in order}


def forest_shares(points: NDArray[np.float64], values: NDArray[np.float64], *, seed: int = 0) -> NDArray[np.float64]:
    """The first-order shares of each column of ``points`` (rows in the unit cube) in the variance of ``values``."""
    num_points, num_columns = points.shape
    generator = np.random.Generator(np.random.PCG64(seed))
    shares, num_informative = np.zeros(num_columns), 0
    for _ in range(_NUM_TREES):
        rows = generator.integers(num_points, size=num_points)
        boxes = _grown(points[rows], values[rows], generator)
        fractions = _first_order(boxes)
        if fractions is not None:
            shares += fractions
            num_informative += 1
    return shares / max(num_informative, 1)


def _grown(points: NDArray[np.float64], values: NDArray[np.float64], generator: np.random.Generator) -> _Boxes:
    """The leaves of one tree: lower corners, upper corners, predictions."""
    num_columns = points.shape[1]
    num_tried = max(1, math.ceil(num_columns * 2 / 3))  # what makes the trees differ, beside the rows
    lows, highs, means = [], [], []
    stack = [(np.arange(len(values)), np.zeros(num_columns), np.ones(num_columns), 0)]
    while stack:
        rows, low, high, depth = stack.pop()
        split = None
        if depth < _MAX_DEPTH and len(rows) >= 2 * _MIN_LEAF:
            columns = generator.permutation(num_columns)[:num_tried]
            split = _best_split(points[np.ix_(rows, columns)], values[rows])
        if split is None:
            lows.append(low)
            highs.append(high)
            means.append(values[rows].mean())
            continue
        column, threshold = int(columns[split[0]]), split[1]
        is_left = points[rows, column] <= threshold
        middle_high, middle_low = high.copy(), low.copy()
        middle_high[column] = middle_low[column] = threshold
        stack.append((rows[is_left], low, middle_high, depth + 1))
        stack.append((rows[~is_left], middle_low, high, depth + 1))
    return np.array(lows), np.array(highs), np.array(means)


def _best_split(points: NDArray[np.float64], values: NDArray[np.float64]) -> tuple[int, float] | None:
    """Column and threshold that lower the sum of squares most, or None where nothing does."""
    count = len(values)
    order = np.argsort(points, axis=0, kind="stable")
    ordered = np.take_along_axis(points, order, axis=0)
    centred = values - values.mean()
    sums = np.cumsum(centred[order], axis=0)[:-1]
    left = np.arange(1, count)[:, None]
    gain = sums * sums * (1.0 / left + 1.0 / (count - left))
    gain[ordered[1:] <= ordered[:-1]] = 0.0  # no threshold lies between equal values
    gain[: _MIN_LEAF - 1] = 0.0
    gain[count - _MIN_LEAF :] = 0.0
    row, column = np.unravel_index(int(np.argmax(gain)), gain.shape)
    if not gain[row, column] > 1e-12 * max(float(centred @ centred), 1e-300):
        return None
    return int(column), 0.5 * float(ordered[row, column] + ordered[row + 1, column])


def _first_order(boxes: _Boxes) -> NDArray[np.float64] | None:
    lows, highs, means = boxes
    widths = highs - lows
    volumes = widths.prod(axis=1)
    mean = float(volumes @ means)
    variance = float(volumes @ (means - mean) ** 2)
    if not variance > 0.0:
        return None
    fractions = np.zeros(widths.shape[1])
    for column in range(widths.shape[1]):
        edges = np.unique(np.concatenate([lows[:, column], highs[:, column]]))
        if len(edges) < 3:
            continue  # never split on
        middles = 0.5 * (edges[1:] + edges[:-1])
        is_inside = (lows[:, column, None] <= middles) & (middles < highs[:, column, None])
        # given the parameter, a box has the volume of its other sides
        conditional = ((volumes / widths[:, column]) * (means - mean)) @ is_inside
        fractions[column] = float(np.diff(edges) @ conditional**2) / variance
    return fractions


def _unit(value: float | int | str | bool, distribution: BaseDistribution) -> float:
    if isinstance(distribution, CategoricalDistribution):
        return (distribution.choices.index(value) + 0.5) / len(distribution.choices)
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    low, high = float(distribution.low), float(distribution.high)
    if isinstance(distribution, IntDistribution):
        low, high = low - 0.5, high + 0.5
    if high <= low:
        return 0.5
    if distribution.log:
        return (math.log(float(value)) - math.log(low)) / (math.log(high) - math.log(low))
    return (float(value) - low) / (high - low)
