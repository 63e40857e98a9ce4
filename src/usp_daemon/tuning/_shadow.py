"""New parameters on probation: a few symbols are predicted a second time, under the previous ones, on the same ticks.

    live ticks --> step under the new parameters ----> forecasts, alarms ---+
        |                                                                   +--> paired scores --> sequential test
        +- sample -> step under the previous ones ---> forecasts, alarms ---+

Both sides start from the same states. The forecast that each side made at one tick is scored at the next by the CRPS;
the difference, relative to the usual score of the previous parameters on that symbol, goes to the test. It cannot be
large because the value is extreme, only because the two forecasts are far apart.

A tick is scored if either side accepted it: a side that refuses everything is not spared what it got wrong meanwhile.
"""

import dataclasses
import math
from collections.abc import Awaitable, Callable, Collection, Hashable, Iterable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from usp_daemon.config import Tuning
from usp_daemon.persistence import choose_symbols

from ._scores import crps
from ._sequential import SequentialPlan, SequentialSummary, SequentialTest, Verdict

_PURPOSE = "shadow"
_SCALE_RATE = 0.02


class StepResult(Protocol):
    """What a step says: which ticks were admitted, and columns in the order of the ticks."""

    @property
    def admitted(self) -> NDArray[np.bool_]:
        """False where there is no room for the symbol."""
        ...

    @property
    def columns(self) -> Mapping[str, NDArray[Any]]:
        """Among them ``quantiles`` (ticks, levels), ``accepted`` and ``alarm_kind`` (ticks,)."""
        ...


StepFn = Callable[
    [list[Any], NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]],
    Awaitable[StepResult],
]


class _States(Protocol):
    """States of a partition as the predictor exports them: a dataclass."""

    @property
    def symbols(self) -> tuple[str, ...]: ...

    @property
    def arrays(self) -> Mapping[str, NDArray[Any]]: ...


_S = TypeVar("_S", bound=_States)


def choose_shadow(symbols: Collection[str], *, share: float, max_symbols: int) -> tuple[str, ...]:
    """The symbols to shadow: at most ``share`` of them and at most ``max_symbols``, but one if there is any; the same
    whenever the symbols are the same.
    """
    count = max(1, min(max_symbols, math.floor(share * len(symbols))))
    return choose_symbols(symbols, count, _PURPOSE)


def sample_states(states: _S, symbols: Iterable[str]) -> _S:
    """The states of ``symbols`` only, those that are there, for the shadow to start from."""
    wanted = set(symbols)
    rows = [row for row, symbol in enumerate(states.symbols) if symbol in wanted]
    return dataclasses.replace(
        states,  # type: ignore[type-var]
        symbols=tuple(states.symbols[row] for row in rows),
        arrays={path: np.asarray(array)[rows] for path, array in states.arrays.items()},
    )


def probation_plan(settings: Tuning, num_symbols: int) -> SequentialPlan:
    """What the settings ask of the test on ``num_symbols``."""
    base = SequentialPlan()
    return SequentialPlan(
        margin=settings.probation_margin,
        false_rollback_rate=settings.probation_error_rate,
        false_keep_rate=settings.probation_error_rate,
        min_ticks=settings.probation_min_ticks,
        max_ticks=max(settings.probation_max_ticks, base.block_ticks),
        num_symbols=num_symbols,
    )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SideReport:
    """One side so far. ``mean_score`` is relative to the usual score of the previous parameters, NaN before the first;
    ``num_not_finite`` forecasts could not be scored.
    """

    num_accepted: int
    num_rejected: int
    num_alarms: int
    num_not_finite: int
    mean_score: float

    @property
    def alarms_per_1000(self) -> float:
        """Alarms in 1,000 accepted ticks."""
        return 1000.0 * self.num_alarms / self.num_accepted if self.num_accepted else math.nan


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ShadowReport:
    """The comparison so far: ``new`` is live, ``old`` the shadow. ``num_shed`` symbols were given up, because there was
    no room for them or the shadow fell behind; without any symbol left, there will be no verdict.
    """

    num_symbols: int
    num_shed: int
    num_scored: int
    new: SideReport
    old: SideReport
    test: SequentialSummary


@dataclasses.dataclass(slots=True)
class _Side:
    num_accepted: int = 0
    num_rejected: int = 0
    num_alarms: int = 0
    num_not_finite: int = 0
    sum_of_scores: float = 0.0
    num_scores: int = 0

    def count(self, accepted: NDArray[np.bool_], alarm_kind: NDArray[Any]) -> None:
        self.num_accepted += int(np.count_nonzero(accepted))
        self.num_rejected += int(np.count_nonzero(~accepted))
        self.num_alarms += int(np.count_nonzero(alarm_kind))

    def score(self, relative: float) -> None:
        self.sum_of_scores += relative
        self.num_scores += 1

    def report(self) -> SideReport:
        return SideReport(
            num_accepted=self.num_accepted,
            num_rejected=self.num_rejected,
            num_alarms=self.num_alarms,
            num_not_finite=self.num_not_finite,
            mean_score=self.sum_of_scores / self.num_scores if self.num_scores else math.nan,
        )


@dataclasses.dataclass(slots=True)
class _Symbol:
    """A symbol of the sample: both sides' standing forecasts, and the usual score of the previous parameters."""

    shadow_key: Hashable
    new_forecast: NDArray[np.float64] | None = None
    old_forecast: NDArray[np.float64] | None = None
    scale: float = 0.0
    num_scores: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class _Ticks:
    """Ticks of the sample with what the live side said about them."""

    keys: list[Hashable]
    values: NDArray[np.float64]
    timestamps_ns: NDArray[np.int64]
    record_timestamps_ns: NDArray[np.int64]
    quantiles: NDArray[np.float64]
    accepted: NDArray[np.bool_]
    alarm_kind: NDArray[Any]

    def rows(self, rows: Sequence[int] | NDArray[np.int64]) -> "_Ticks":
        at = np.asarray(rows, np.int64)
        return _Ticks(
            [self.keys[row] for row in at.tolist()],
            self.values[at],
            self.timestamps_ns[at],
            self.record_timestamps_ns[at],
            self.quantiles[at],
            self.accepted[at],
            self.alarm_kind[at],
        )


def _join(parts: Sequence[_Ticks]) -> _Ticks:
    return _Ticks(
        [key for part in parts for key in part.keys],
        np.concatenate([part.values for part in parts]),
        np.concatenate([part.timestamps_ns for part in parts]),
        np.concatenate([part.record_timestamps_ns for part in parts]),
        np.concatenate([part.quantiles for part in parts]),
        np.concatenate([part.accepted for part in parts]),
        np.concatenate([part.alarm_kind for part in parts]),
    )


class Shadow:
    """Steps the sample under the previous parameters and compares; all methods are for one event loop.

    ``keys`` maps the sample's live keys to those that ``step_fn`` knows them by; their states must already be there,
    equal to the live ones at the first tick that :meth:`observe` gets. ``settle_ticks`` of each symbol only teach how
    large its scores are. :meth:`advance` waits for ``batch_ticks``, which changes what it costs and nothing else.
    """

    def __init__(
        self,
        keys: Mapping[Hashable, Hashable],
        *,
        step_fn: StepFn,
        test: SequentialTest,
        settle_ticks: int = 10,
        batch_ticks: int = 256,
        max_pending: int = 20_000,
    ) -> None:
        self._step_fn = step_fn
        self._test = test
        self._settle_ticks = settle_ticks
        self._batch_ticks = batch_ticks
        self._max_pending = max_pending
        self._symbols: dict[Hashable, _Symbol] = {}
        self._pending: list[_Ticks] = []
        self._num_pending = 0
        self._num_shed = 0
        self._num_scored = 0
        self._new, self._old = _Side(), _Side()
        self._is_stepping = False
        self.add(keys)

    @property
    def verdict(self) -> Verdict:
        """The test's."""
        return self._test.verdict

    @property
    def num_pending(self) -> int:
        """Ticks that the shadow has not taken yet."""
        return self._num_pending

    def report(self) -> ShadowReport:
        """The comparison so far."""
        return ShadowReport(
            num_symbols=len(self._symbols),
            num_shed=self._num_shed,
            num_scored=self._num_scored,
            new=self._new.report(),
            old=self._old.report(),
            test=self._test.summary(),
        )

    def add(self, keys: Mapping[Hashable, Hashable]) -> None:
        """Further symbols, as when another partition passes to the new parameters."""
        for key, shadow_key in keys.items():
            self._symbols[key] = _Symbol(shadow_key)

    def discard(self, keys: Iterable[Hashable]) -> None:
        """Compare these no more, as when their partition goes away."""
        for key in keys:
            self._symbols.pop(key, None)
        self._forget_pending()

    def observe(
        self,
        keys: Sequence[Hashable],
        values: NDArray[np.float64],
        timestamps_ns: NDArray[np.int64],
        record_timestamps_ns: NDArray[np.int64],
        live: StepResult,
    ) -> int:
        """Take note of a batch that was stepped live under the new parameters; returns how many ticks wait.

        Does not wait itself. When more than ``max_pending`` ticks do, half of the symbols are given up.
        """
        if self._test.verdict.is_final:
            return 0
        rows = [row for row, key in enumerate(keys) if key in self._symbols]
        if not rows:
            return self._num_pending
        at = np.asarray(rows, np.int64)
        columns = live.columns
        self._pending.append(
            _Ticks(
                [keys[row] for row in rows],
                np.asarray(values, np.float64)[at],
                np.asarray(timestamps_ns, np.int64)[at],
                np.asarray(record_timestamps_ns, np.int64)[at],
                np.asarray(columns["quantiles"], np.float64)[at],
                np.asarray(columns["accepted"], bool)[at],
                np.asarray(columns["alarm_kind"])[at],
            )
        )
        self._num_pending += len(rows)
        while self._num_pending > self._max_pending:
            self._shed()
        return self._num_pending

    async def advance(self, *, flush: bool = False) -> Verdict:
        """Step and compare what waits, if it is ``batch_ticks`` or ``flush``; returns what the test says then.

        Not to be called again before it has returned. What ``step_fn`` raises passes through, and the shadow is void.
        """
        if self._is_stepping:
            raise RuntimeError("the shadow is being advanced already")
        if self._test.verdict.is_final or not self._pending or (self._num_pending < self._batch_ticks and not flush):
            return self._test.verdict
        ticks = _join(self._pending)
        self._pending, self._num_pending = [], 0
        self._is_stepping = True
        try:
            keys = [self._symbols[key].shadow_key for key in ticks.keys]
            result = await self._step_fn(keys, ticks.values, ticks.timestamps_ns, ticks.record_timestamps_ns)
        finally:
            self._is_stepping = False
        self._compare(ticks, result)
        return self._test.verdict

    def _compare(self, ticks: _Ticks, result: StepResult) -> None:
        admitted = np.asarray(result.admitted, bool)
        refused = {key for key, one in zip(ticks.keys, admitted.tolist(), strict=True) if not one}
        self._give_up(refused)
        # Given up meanwhile, while the step was under way, perhaps.
        rows = [row for row, key in enumerate(ticks.keys) if key in self._symbols]
        if not rows:
            return
        at = np.asarray(rows, np.int64)
        ticks = ticks.rows(at)
        old_quantiles = np.asarray(result.columns["quantiles"], np.float64)[at]
        old_accepted = np.asarray(result.columns["accepted"], bool)[at]
        self._new.count(ticks.accepted, ticks.alarm_kind)
        self._old.count(old_accepted, np.asarray(result.columns["alarm_kind"])[at])
        new_before, old_before, has_forecast = self._forecasts_before(ticks, old_quantiles)
        new_scores, old_scores = crps(ticks.values, new_before), crps(ticks.values, old_before)
        counts = has_forecast & (ticks.accepted | old_accepted) & np.isfinite(ticks.values)
        names, differences = [], []
        for row in np.flatnonzero(counts).tolist():
            key = ticks.keys[row]
            difference = self._difference(self._symbols[key], float(new_scores[row]), float(old_scores[row]))
            if difference is not None:
                names.append(str(key))
                differences.append(difference)
        self._num_scored += len(differences)
        self._test.update(names, differences)

    def _forecasts_before(
        self, ticks: _Ticks, old_quantiles: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]:
        """For each tick both sides' forecasts from the tick before of its symbol, and whether there is one."""
        new_before, old_before = np.full_like(ticks.quantiles, np.nan), np.full_like(old_quantiles, np.nan)
        has_forecast = np.zeros(len(ticks.keys), bool)
        for row, key in enumerate(ticks.keys):
            symbol = self._symbols[key]
            if symbol.new_forecast is not None and symbol.old_forecast is not None:
                new_before[row], old_before[row] = symbol.new_forecast, symbol.old_forecast
                has_forecast[row] = True
            # A refused tick is answered with the standing forecast, carried on: that is what is scored next.
            symbol.new_forecast, symbol.old_forecast = ticks.quantiles[row].copy(), old_quantiles[row].copy()
        return new_before, old_before, has_forecast

    def _difference(self, symbol: _Symbol, new: float, old: float) -> float | None:
        """How much worse the new parameters were; None while the symbol's scores are being learnt."""
        new_is_finite, old_is_finite = math.isfinite(new), math.isfinite(old)
        self._new.num_not_finite += not new_is_finite
        self._old.num_not_finite += not old_is_finite
        if not old_is_finite:
            return -math.inf if new_is_finite else None
        usual = symbol.scale
        symbol.num_scores += 1
        symbol.scale += max(_SCALE_RATE, 1.0 / symbol.num_scores) * (old - usual)
        if symbol.num_scores <= self._settle_ticks:
            return None
        if not new_is_finite:
            return math.inf
        if usual <= 0.0:  # the symbol has not moved yet, and the forecasts were right
            return 0.0 if new == old else math.copysign(math.inf, new - old)
        self._new.score(new / usual)
        self._old.score(old / usual)
        return (new - old) / usual

    def _shed(self) -> None:
        """Give half of the symbols up, at least one: a smaller comparison is better than a late one."""
        keys = list(self._symbols)
        self._give_up(keys[len(keys) // 2 :])
        self._forget_pending()

    def _give_up(self, keys: Collection[Hashable]) -> None:
        self._num_shed += len([key for key in keys if self._symbols.pop(key, None) is not None])

    def _forget_pending(self) -> None:
        kept = []
        for part in self._pending:
            rows = [row for row, key in enumerate(part.keys) if key in self._symbols]
            if rows:
                kept.append(part.rows(rows))
        self._pending = kept
        self._num_pending = sum(len(part.keys) for part in kept)
