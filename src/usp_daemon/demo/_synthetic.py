"""Made-up series for a feed that never ends: three kinds, and now and then a change worth an alarm."""

import numpy as np
from numpy.typing import NDArray

KINDS: tuple[str, ...] = ("walk", "revert", "season")

# Once in so many ticks a symbol's level shifts, and as often its volatility changes.
TICKS_BETWEEN_CHANGES = 2_000
_SHIFT = (8.0, 16.0)  # of a level, in standard deviations of one tick
_VOLATILITIES = (0.4, 1.0, 2.5)
_REVERSION = 0.05
_PERIODS = (24, 48, 96)  # ticks
_AMPLITUDE = 6.0  # of a season, in standard deviations of one tick
_MEMORY = 0.5  # of the noise around a season


class SyntheticSeries:
    """``num_symbols`` series side by side, all decided by ``seed``.

    A symbol is a random walk, an Ornstein-Uhlenbeck process or a season with autocorrelated noise, in turn; its name
    says which. ``num_changes`` counts the shifts and the changes of volatility so far.
    """

    def __init__(self, num_symbols: int, seed: int = 0) -> None:
        if num_symbols < 1:
            raise ValueError(f"num_symbols: expected at least 1, got {num_symbols}")
        self._rng = np.random.default_rng(seed)
        self._kind = np.arange(num_symbols) % len(KINDS)
        self._mean = 100.0 * np.exp(self._rng.normal(0.0, 1.0, num_symbols))
        self._sigma = self._mean * 10.0 ** self._rng.uniform(-3.5, -2.0, num_symbols)
        self._volatility = np.ones(num_symbols)
        self._deviation = np.zeros(num_symbols)  # from the mean, without the season
        self._period = self._rng.choice(_PERIODS, num_symbols)
        self._phase = self._rng.uniform(0.0, 2.0 * np.pi, num_symbols)
        self._tick = 0
        self.names = tuple(f"{KINDS[kind]}-{index:04d}" for index, kind in enumerate(self._kind))
        self.num_changes = 0

    def next_values(self) -> NDArray[np.float64]:
        """The next value of every symbol, in the order of ``names``."""
        rng, count, kind = self._rng, len(self.names), self._kind
        shifted = rng.random(count) < 1.0 / TICKS_BETWEEN_CHANGES
        size = rng.uniform(*_SHIFT, count) * rng.choice((-1.0, 1.0), count)
        self._mean = self._mean + np.where(shifted, size * self._sigma, 0.0)
        changed = rng.random(count) < 1.0 / TICKS_BETWEEN_CHANGES
        self._volatility = np.where(changed, rng.choice(_VOLATILITIES, count), self._volatility)
        self.num_changes += int(np.count_nonzero(shifted)) + int(np.count_nonzero(changed))
        kept = np.choose(kind, (1.0, 1.0 - _REVERSION, _MEMORY))
        noise = rng.normal(0.0, 1.0, count) * self._sigma * self._volatility
        self._deviation = kept * self._deviation + noise
        angle = 2.0 * np.pi * self._tick / self._period + self._phase
        season = np.where(kind == KINDS.index("season"), _AMPLITUDE * self._sigma * np.sin(angle), 0.0)
        self._tick += 1
        return self._mean + self._deviation + season
