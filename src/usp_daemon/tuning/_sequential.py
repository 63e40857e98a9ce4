"""Are the new parameters worse? A test on paired differences of scores that may be looked at after every tick.

A difference d is (new score - old score) / typical old score of the symbol: positive is worse, 0.05 is worse by 5 %.
Differences of one stretch of ticks are averaged, over the ticks of each symbol and then over symbols, to one number x
of a block, clipped to [-clip, clip]. Against each hypothesis about the mean of x somebody bets; the capital K is a
martingale, or falls, where the hypothesis holds, so that P(K ever reaches 1/e) <= e [Ville1939], whenever one stops:

    hypothesis           bet on one block            refuted means
    mean <= tolerance    1 + l (x - tolerance)       worse       roll back
    mean >= margin       1 + l (margin - x)          not worse   keep
    mean >= 0            1 + l (0 - x)               better      keep

The stakes l are a fixed grid of shares of what may be staked without going bankrupt, with the capital divided among
them evenly: diversified Kelly betting [WaudbySmithRamdas2024]. Nothing is estimated, and nothing but
boundedness is assumed of the law of x; blocks make its mean given the past nearly constant where ticks depend.
"""

import dataclasses
import enum
import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

_SHARES = (0.95, 0.7, 0.5, 0.35, 0.25, 0.15, 0.1, 0.05)
_FORMAT = 1


class Verdict(enum.Enum):
    """What the test says so far."""

    GO_ON = "go_on"
    WORSE = "worse"
    NOT_WORSE = "not_worse"
    BETTER = "better"
    # Neither was shown within the longest time; the mean difference decided.
    WORSE_AT_LIMIT = "worse_at_limit"
    NOT_WORSE_AT_LIMIT = "not_worse_at_limit"

    @property
    def is_final(self) -> bool:
        """Whether the test has ended."""
        return self is not Verdict.GO_ON

    @property
    def rolls_back(self) -> bool:
        """Whether the previous parameters should come back."""
        return self in (Verdict.WORSE, Verdict.WORSE_AT_LIMIT)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SequentialPlan:
    """What the test is to decide, and when. Ticks are those of a symbol, on average over ``num_symbols``.

    ``margin`` is the relative loss that must be ruled out before the new parameters are kept; they are rolled back once
    a mean loss above ``tolerance`` is shown. ``false_rollback_rate`` bounds the probability of WORSE where the mean is
    at most ``tolerance``, ``false_keep_rate`` that of NOT_WORSE or BETTER where it is at least ``margin``. Nothing is
    kept before ``min_ticks``; at ``max_ticks`` the new parameters stay if the mean difference is below the middle
    between ``tolerance`` and ``margin``. ``block_ticks`` should be several times as long as the differences remember;
    ``clip`` bounds what one block can say.
    """

    margin: float = 0.05
    tolerance: float = 0.0
    false_rollback_rate: float = 0.05
    false_keep_rate: float = 0.05
    min_ticks: int = 500
    max_ticks: int = 5_000
    block_ticks: int = 32
    num_symbols: int = 1
    clip: float = 0.35

    def __post_init__(self) -> None:
        """Raises ``ValueError`` for what makes no sense."""
        if not 0.0 <= self.tolerance < self.margin < self.clip:
            raise ValueError(
                f"expected 0 <= tolerance < margin < clip, got {self.tolerance:g}, {self.margin:g} and {self.clip:g}"
            )
        for name in ("false_rollback_rate", "false_keep_rate"):
            if not 0.0 < getattr(self, name) < 1.0:
                raise ValueError(f"{name}: expected above 0 and below 1, got {getattr(self, name):g}")
        if min(self.block_ticks, self.num_symbols, self.min_ticks) < 1:
            raise ValueError("expected block_ticks, num_symbols and min_ticks of at least 1")
        if max(self.block_ticks, self.min_ticks) > self.max_ticks:
            raise ValueError(f"max_ticks: expected at least block_ticks and min_ticks, got {self.max_ticks}")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SequentialSummary:
    """Where the test stands: ``evidence`` against each hypothesis is the largest capital reached, refuting it at one
    over the error rate; ``mean_difference`` is that of the clipped blocks, NaN before the first.
    """

    verdict: Verdict
    num_pairs: int
    num_blocks: int
    ticks: float
    mean_difference: float
    evidence_worse: float
    evidence_not_worse: float
    evidence_better: float


class _Bettor:
    """Bets on ``sign * (x - mean) > 0`` for x in [-clip, clip]."""

    def __init__(self, sign: int, mean: float, clip: float) -> None:
        self._sign = sign
        self._mean = mean
        # The most that one block can take from a stake of 1.
        self._greatest_loss = clip + sign * mean
        self.log_capitals = [0.0] * len(_SHARES)
        self.log_maximum = 0.0

    def bet(self, x: float) -> None:
        gain = self._sign * (x - self._mean) / self._greatest_loss
        self.log_capitals = [
            capital + math.log1p(share * gain) for capital, share in zip(self.log_capitals, _SHARES, strict=True)
        ]
        top = max(self.log_capitals)
        mean = math.fsum(math.exp(capital - top) for capital in self.log_capitals) / len(_SHARES)
        self.log_maximum = max(self.log_maximum, top + math.log(mean))

    @property
    def evidence(self) -> float:
        return math.exp(min(self.log_maximum, 700.0))


class SequentialTest:
    """Takes differences one by one and says what they show; the same however they are cut into calls."""

    def __init__(self, plan: SequentialPlan) -> None:
        self._plan = plan
        self._block_pairs = plan.block_ticks * plan.num_symbols
        self._bettors = {
            "worse": _Bettor(1, plan.tolerance, plan.clip),
            "not_worse": _Bettor(-1, plan.margin, plan.clip),
            "better": _Bettor(-1, 0.0, plan.clip),
        }
        self._sums: dict[Hashable, tuple[float, int]] = {}
        self._in_block = 0
        self._num_pairs = 0
        self._num_blocks = 0
        self._sum_of_blocks = 0.0
        self._verdict = Verdict.GO_ON

    @property
    def plan(self) -> SequentialPlan:
        """What the test was asked."""
        return self._plan

    @property
    def verdict(self) -> Verdict:
        """What was shown so far; once final, it stays."""
        return self._verdict

    def update(self, symbols: Sequence[Hashable], differences: Sequence[float]) -> Verdict:
        """Take ``differences``, one each of ``symbols``, in the order of their ticks; those after the end are ignored.

        Infinite ones count as the clip. Raises ``ValueError``, having taken none, if one is not a number.
        """
        if len(symbols) != len(differences):
            raise ValueError(f"expected a difference for each of {len(symbols)} symbols, got {len(differences)}")
        if any(math.isnan(difference) for difference in differences):
            raise ValueError("differences: expected numbers, got NaN; what has no score must not be passed")
        for symbol, difference in zip(symbols, differences, strict=True):
            if self._verdict.is_final:
                break
            self._take(symbol, float(difference))
        return self._verdict

    def summary(self) -> SequentialSummary:
        """Where the test stands."""
        blocks = self._num_blocks
        return SequentialSummary(
            verdict=self._verdict,
            num_pairs=self._num_pairs,
            num_blocks=blocks,
            ticks=self._num_pairs / self._plan.num_symbols,
            mean_difference=self._sum_of_blocks / blocks if blocks else math.nan,
            evidence_worse=self._bettors["worse"].evidence,
            evidence_not_worse=self._bettors["not_worse"].evidence,
            evidence_better=self._bettors["better"].evidence,
        )

    def _take(self, symbol: Hashable, difference: float) -> None:
        # One tick cannot say more than a whole block of its symbol could at the most.
        bound = self._plan.clip * self._plan.block_ticks
        total, count = self._sums.get(symbol, (0.0, 0))
        self._sums[symbol] = total + max(-bound, min(bound, difference)), count + 1
        self._num_pairs += 1
        self._in_block += 1
        if self._in_block == self._block_pairs:
            self._end_block()

    def _end_block(self) -> None:
        means = [total / count for total, count in self._sums.values()]
        clip = self._plan.clip
        x = max(-clip, min(clip, math.fsum(means) / len(means)))
        self._sums = {}
        self._in_block = 0
        self._num_blocks += 1
        self._sum_of_blocks += x
        for bettor in self._bettors.values():
            bettor.bet(x)
        self._decide()

    def _decide(self) -> None:
        plan = self._plan
        ticks = self._num_blocks * plan.block_ticks
        shown = {name: bettor.log_maximum for name, bettor in self._bettors.items()}
        keeps_at = -math.log(plan.false_keep_rate)
        if shown["worse"] >= -math.log(plan.false_rollback_rate):
            self._verdict = Verdict.WORSE
        elif ticks >= plan.min_ticks and shown["not_worse"] >= keeps_at:
            self._verdict = Verdict.BETTER if shown["better"] >= keeps_at else Verdict.NOT_WORSE
        elif ticks + plan.block_ticks > plan.max_ticks:  # another block would not fit
            is_worse = self._sum_of_blocks / self._num_blocks >= (plan.tolerance + plan.margin) / 2.0
            self._verdict = Verdict.WORSE_AT_LIMIT if is_worse else Verdict.NOT_WORSE_AT_LIMIT

    # Over a restart

    def to_dict(self) -> dict[str, Any]:
        """Everything, as plain data for JSON; symbols must be texts."""
        if not all(isinstance(symbol, str) for symbol in self._sums):
            raise TypeError("symbols: only texts can be written")
        return {
            "format": _FORMAT,
            "plan": dataclasses.asdict(self._plan),
            "capitals": {
                name: {"log_capitals": list(bettor.log_capitals), "log_maximum": bettor.log_maximum}
                for name, bettor in self._bettors.items()
            },
            "block": {symbol: [total, count] for symbol, (total, count) in self._sums.items()},
            "in_block": self._in_block,
            "num_pairs": self._num_pairs,
            "num_blocks": self._num_blocks,
            "sum_of_blocks": self._sum_of_blocks,
            "verdict": self._verdict.value,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "SequentialTest":
        """The test that ``to_dict`` wrote, to the last bit. Raises ``ValueError`` for anything else."""
        try:
            if data["format"] != _FORMAT:
                raise ValueError(f"format: expected {_FORMAT}, got {data['format']!r}")
            test = cls(SequentialPlan(**data["plan"]))
            for name, bettor in test._bettors.items():
                capital = data["capitals"][name]
                bettor.log_capitals = [float(one) for one in capital["log_capitals"]]
                bettor.log_maximum = float(capital["log_maximum"])
                if len(bettor.log_capitals) != len(_SHARES):
                    raise ValueError(f"capitals: expected {len(_SHARES)} of each kind, got {len(bettor.log_capitals)}")
            test._sums = {str(symbol): (float(total), int(count)) for symbol, (total, count) in data["block"].items()}
            test._in_block = int(data["in_block"])
            test._num_pairs = int(data["num_pairs"])
            test._num_blocks = int(data["num_blocks"])
            test._sum_of_blocks = float(data["sum_of_blocks"])
            test._verdict = Verdict(data["verdict"])
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not the state of a sequential test: {error!r}") from error
        return test
