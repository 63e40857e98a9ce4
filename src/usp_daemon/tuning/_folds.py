"""Walk-forward folds: a test block is only ever preceded by what came before it.

    ticks    0 ............ train_ratio ........................................ end
    fold 0   train train train |e| test test |
    fold 1   train train train train train    |e| test test |
    fold 2   train train train train train train train      |e| test test |

``e`` is the embargo: ticks that count neither as training nor as test, so that what a learner remembers across the
boundary is not scored as skill. The blocks (embargo and test) tile everything after the first training part.
"""

import itertools
from collections.abc import Sized
from dataclasses import dataclass

import numpy as np

# Below this a block's mean loss says more about the block than about the parameters.
DEFAULT_MIN_TEST = 50


@dataclass(frozen=True)
class Fold:
    """One split: everything in ``train`` precedes everything in ``test``."""

    train: slice
    test: slice


class TooShortError(ValueError):
    """There are too few ticks for the folds asked for."""


def walk_forward_split(
    data: int | Sized,
    *,
    train_ratio: float = 0.7,
    n_folds: int = 5,
    embargo: int = 0,
    min_test: int = DEFAULT_MIN_TEST,
) -> list[Fold]:
    """Expanding, causal folds over a series.

    Args:
      data: number of ticks, or the series itself (its length counts).
      train_ratio: share of the ticks that no fold tests, in (0, 1).
      n_folds: test blocks after it, at least 1. Their lengths differ by at most one tick; none is left over.
      embargo: ticks at the beginning of each block that are neither trained on nor tested, at least 0.
      min_test: fewest ticks that a test may have, at least 1.

    Returns:
      ``n_folds`` folds in time order.

    Raises:
      TooShortError: a test would have fewer than ``min_test`` ticks; the message says how many ticks would do.
      ValueError: an argument is out of its range.
    """
    num_ticks = data if isinstance(data, int) else len(data)
    if not 0.0 < train_ratio < 1.0:
        raise ValueError(f"train_ratio must lie between 0 and 1, got {train_ratio}")
    if n_folds < 1 or embargo < 0 or min_test < 1:
        raise ValueError(
            f"n_folds and min_test must be at least 1 and embargo at least 0, got {n_folds}, {min_test}, {embargo}"
        )
    first = max(1, round(train_ratio * num_ticks))
    # the shortest block has the floor of the mean length
    if (num_ticks - first) // n_folds < embargo + min_test:
        needed = int(np.ceil(n_folds * (embargo + min_test) / (1.0 - train_ratio))) + 1
        raise TooShortError(
            f"{num_ticks} ticks are too few for {n_folds} tests of at least {min_test} after an embargo of {embargo} "
            f"each in the last {1.0 - train_ratio:.0%}: give about {needed}, or fewer folds, or a smaller train_ratio"
        )
    edges = first + ((num_ticks - first) * np.arange(n_folds + 1)) // n_folds
    return [
        Fold(slice(0, int(start)), slice(int(start) + embargo, int(stop))) for start, stop in itertools.pairwise(edges)
    ]
