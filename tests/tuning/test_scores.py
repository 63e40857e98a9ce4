"""The CRPS of a grid against the closed form of the normal law and against the benchmark's."""

import math
from pathlib import Path

import numpy as np
import pytest
from scipy import integrate, stats

from usp_daemon.core import QUANTILE_LEVELS
from usp_daemon.tuning import crps

LEVELS = np.asarray(QUANTILE_LEVELS)


def test_near_the_closed_form_of_the_normal_law():
    """Gneiting & Raftery (2007), eq. 21; the grid's ends cost a few per cent."""
    rng = np.random.default_rng(0)
    values = rng.normal(2.0, 3.0, 4000)
    z = (values - 2.0) / 3.0
    exact = 3.0 * (z * (2 * stats.norm.cdf(z) - 1) + 2 * stats.norm.pdf(z) - 1 / math.sqrt(math.pi))
    grid = crps(values, np.broadcast_to(stats.norm.ppf(LEVELS, 2.0, 3.0), (4000, LEVELS.size)))
    assert grid.mean() == pytest.approx(exact.mean(), rel=0.03)


def test_it_is_the_integral_of_the_pinball_loss():
    value, quantiles = 0.3, stats.norm.ppf(LEVELS)
    at = {round(level, 3): quantile for level, quantile in zip(LEVELS, quantiles, strict=True)}
    losses = [(level - (value < at[round(level, 3)])) * (value - at[round(level, 3)]) for level in LEVELS]
    assert float(crps(value, quantiles)) == pytest.approx(2.0 * np.mean(losses), rel=1e-14)
    exact = integrate.quad(lambda u: (u - (value < stats.norm.ppf(u))) * (value - stats.norm.ppf(u)), 0, 1)[0]
    assert float(crps(value, quantiles)) == pytest.approx(2.0 * exact, rel=0.1)


def test_same_as_the_benchmarks(repository_root: Path, monkeypatch):
    monkeypatch.syspath_prepend(str(repository_root))
    from benchmarks._suite import crps as mean_crps

    rng = np.random.default_rng(1)
    values, quantiles = rng.normal(size=50), np.sort(rng.normal(size=(50, LEVELS.size)), axis=1)
    assert crps(values, quantiles).mean() == pytest.approx(mean_crps(values, quantiles), rel=1e-14)


def test_what_is_not_finite_has_no_finite_score():
    quantiles = np.zeros((3, LEVELS.size))
    quantiles[1, 4] = math.nan
    assert np.isfinite(crps([1.0, 1.0, math.inf], quantiles)).tolist() == [True, False, False]
