"""Do the forecasts get worse? A trigger for a campaign, on the score relative to that of the forecast of no change.

A score alone rises with the volatility of the feed, which no parameter helps. So each symbol's score and the error of
its "no change" forecast are both divided by the running mean of the latter, and what is watched is the quotient of the
two averages over all symbols:

    skill  =  mean score / mean error of no change           an average over the last ticks, and a long one
    drift  =  skill over fast_ticks / skill over slow_ticks

It fires when drift reaches ``ratio``, and not again before drift has fallen halfway back to 1.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

_FORMAT = 1
_SCALE_RATE = 0.02
# One tick's error counts as at most so many times the usual: a gap is no drift.
_MOST = 10.0


@dataclasses.dataclass(slots=True)
class _Scale:
    mean: float = 0.0
    count: int = 0

    def take(self, error: float) -> None:
        self.count += 1
        bounded = min(error, _MOST * self.mean) if self.count > 20 and self.mean > 0.0 else error
        self.mean += max(_SCALE_RATE, 1.0 / self.count) * (bounded - self.mean)


@dataclasses.dataclass(slots=True)
class _Skill:
    """Exponentially weighted sums of scores and errors over about ``ticks`` ticks; their common weight cancels."""

    ticks: float
    score: float = 0.0
    error: float = 0.0

    def take(self, score: float, error: float) -> None:
        kept = 1.0 - 1.0 / self.ticks
        self.score = kept * self.score + score
        self.error = kept * self.error + error

    @property
    def value(self) -> float:
        return self.score / self.error if self.error > 0.0 else math.nan


class ScoreDrift:
    """Watches scores of any number of symbols; the same however the ticks are cut into calls.

    ``ratio`` above 1 is the drift that fires; ``fast_ticks`` below ``slow_ticks`` are the memories, in ticks of all
    symbols together. Nothing fires before ``min_ticks``, nor before as many since :meth:`rebase`.
    """

    def __init__(
        self, *, ratio: float = 1.2, fast_ticks: int = 1_000, slow_ticks: int = 20_000, min_ticks: int = 5_000
    ) -> None:
        if not 1.0 < ratio < math.inf or not 1 <= fast_ticks < slow_ticks or min_ticks < 1:
            raise ValueError(
                "expected ratio above 1, 1 <= fast_ticks < slow_ticks and min_ticks of at least 1, got "
                f"{ratio:g}, {fast_ticks}, {slow_ticks} and {min_ticks}"
            )
        self._ratio = ratio
        self._min_ticks = min_ticks
        self._fast = _Skill(fast_ticks)
        self._slow = _Skill(slow_ticks)
        self._scales: dict[str, _Scale] = {}
        self._num_ticks = 0
        self._is_armed = True

    @property
    def drift(self) -> float:
        """Recent skill over long-run skill: 1.2 is worse by 20 %. NaN before there is anything to compare."""
        return self._fast.value / self._slow.value if self._slow.score > 0.0 else math.nan

    @property
    def num_ticks(self) -> int:
        """Ticks compared since the beginning, or since :meth:`rebase`."""
        return self._num_ticks

    def update(self, symbols: Sequence[str], scores: Sequence[float], errors: Sequence[float]) -> bool:
        """Whether it fired at one of these ticks.

        ``scores`` are those of the forecasts, ``errors`` the absolute differences from the value before, both in the
        symbol's own units. Ticks with a number that is not finite or negative are left out.
        """
        has_fired = False
        for symbol, score, error in zip(symbols, scores, errors, strict=True):
            has_fired |= self._take(symbol, float(score), float(error))
        return has_fired

    def rebase(self) -> None:
        """The recent skill is the one to compare with from now on, as after new parameters."""
        self._slow.score, self._slow.error = self._fast.score, self._fast.error
        self._num_ticks = 0
        self._is_armed = True

    def _take(self, symbol: str, score: float, error: float) -> bool:
        if not (0.0 <= score < math.inf and 0.0 <= error < math.inf):
            return False
        scale = self._scales.setdefault(symbol, _Scale())
        usual = scale.mean
        scale.take(error)
        if usual <= 0.0:  # the symbol's first tick, or it never moved
            return False
        relative = min(score / usual, _MOST), min(error / usual, _MOST)
        self._fast.take(*relative)
        self._slow.take(*relative)
        self._num_ticks += 1
        drift = self.drift
        if not self._is_armed:
            self._is_armed = drift < 1.0 + (self._ratio - 1.0) / 2.0
        elif self._num_ticks >= self._min_ticks and drift >= self._ratio:
            self._is_armed = False
            return True
        return False

    def to_dict(self) -> dict[str, Any]:
        """Everything but the settings, as plain data for JSON."""
        return {
            "format": _FORMAT,
            "fast": [self._fast.score, self._fast.error],
            "slow": [self._slow.score, self._slow.error],
            "scales": {symbol: [scale.mean, scale.count] for symbol, scale in self._scales.items()},
            "num_ticks": self._num_ticks,
            "is_armed": self._is_armed,
        }

    def restore(self, data: Mapping[str, Any]) -> None:
        """Go on from what ``to_dict`` gave. Raises ``ValueError``, and changes nothing, for anything else."""
        try:
            if data["format"] != _FORMAT:
                raise ValueError(f"format: expected {_FORMAT}, got {data['format']!r}")
            fast, slow = ([float(number) for number in data[name]] for name in ("fast", "slow"))
            scales = {str(symbol): _Scale(float(mean), int(count)) for symbol, (mean, count) in data["scales"].items()}
            num_ticks, is_armed = int(data["num_ticks"]), bool(data["is_armed"])
            (fast_score, fast_error), (slow_score, slow_error) = fast, slow
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not the state of a drift trigger: {error!r}") from error
        self._fast.score, self._fast.error = fast_score, fast_error
        self._slow.score, self._slow.error = slow_score, slow_error
        self._scales, self._num_ticks, self._is_armed = scales, num_ticks, is_armed
