"""Scores of forecasts that are given as a grid of quantiles."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from usp_daemon.core import QUANTILE_LEVELS

_LEVELS = np.asarray(QUANTILE_LEVELS)


def crps(values: ArrayLike, quantiles: ArrayLike) -> NDArray[np.float64]:
    """Continuous ranked probability score of each forecast [GneitingRaftery2007], in the units of the values; lower is
    better: twice the mean pinball loss over the grid.

    ``values`` (...) are what came, ``quantiles`` (..., levels) what was said before on ``QUANTILE_LEVELS``. A forecast
    or a value that is not finite gives a score that is not finite.
    """
    said = np.asarray(quantiles, np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        error = np.asarray(values, np.float64)[..., None] - said
        return 2.0 * np.mean(np.maximum(_LEVELS * error, (_LEVELS - 1.0) * error), axis=-1)
