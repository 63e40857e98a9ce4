"""A probation in the running service: samples the states, steps them under the former parameters, compares.

    fork     between two live steps: states of the sampled symbols, once the new parameters are in force there
    tap      live ticks of these symbols wait (bounded; whoever falls behind gives half of the symbols up)
    shadow   steps them under the former parameters, in a partition of the predictor that nobody else knows

Both sides so start from the same states, at a tick that is no batch's business. A change of structure is undone for the
shadow by the predictor itself, which begins anew what the structures do not share, as the live side has done.
"""

import asyncio
import contextlib
import dataclasses
import math
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping
from typing import Any, Protocol

from usp_daemon.config import Tuning
from usp_daemon.service import Exported, LiveStep, StatefulPredictor
from usp_daemon.telemetry import get_logger
from usp_daemon.tuning import (
    SequentialTest,
    Shadow,
    ShadowReport,
    Verdict,
    choose_shadow,
    probation_plan,
    sample_states,
)
from usp_daemon.wire import TopicPartition

_log = get_logger(__name__)

# No topic can have this name, so no partition of the input is meant.
SHADOW_TOPIC = "\0shadow"
_ROUND_S = 0.5
_MAX_PENDING = 8_192


class LiveSource(Protocol):
    """The running service, as a probation sees it."""

    @property
    def partitions(self) -> Mapping[TopicPartition, Any]:
        """Those held here."""
        ...

    def symbols(self, partition: TopicPartition) -> Mapping[str, Hashable]:
        """The symbols seen in a partition that runs, with the keys of their states."""
        ...

    async def export_states(self, partition: TopicPartition, then_fn: Callable[[Exported], None]) -> None:
        """Give ``then_fn`` the states of a partition between two steps."""
        ...


@dataclasses.dataclass(slots=True)
class _Fork:
    """States of one partition's sample that go to the shadow; ``number`` is the shadow's partition."""

    number: int
    partition: TopicPartition
    keys: dict[Hashable, Hashable]
    states: Any
    parameters: Any


class Probation:
    """Compares what is in force with ``former`` (parameters for the predictor) until there is a verdict.

    ``config_hash`` is that of the epoch on probation: ticks under any other are not compared. ``test`` continues an
    earlier one. ``room_fn`` says for how many symbols the predictor has room beside the live ones.
    """

    def __init__(
        self,
        *,
        source: LiveSource,
        predictor: StatefulPredictor,
        key_fn: Callable[[str, int, str], Hashable],
        former: Any,
        config_hash: str,
        settings: Tuning,
        test: SequentialTest | None = None,
        room_fn: Callable[[], int] = lambda: 1 << 30,
        round_s: float = _ROUND_S,
    ) -> None:
        self._source = source
        self._predictor = predictor
        self._key_fn = key_fn
        self._former = former
        self._config_hash = config_hash
        self._settings = settings
        self._test = test
        self._room_fn = room_fn
        self._round_s = round_s
        self._shadow: Shadow | None = None
        self._sample: frozenset[str] = frozenset()
        self._forks: dict[TopicPartition, _Fork] = {}
        self._released: list[int] = []
        self._next_number = 0
        self._has_warned = False

    # The tap

    def stepped(self, step: LiveStep) -> None:
        """See ``Tap``."""
        if self._shadow is not None and self._forks and step.epoch.config_hash == self._config_hash:
            times = step.timestamps_ns, step.record_timestamps_ns
            self._shadow.observe(step.keys, step.values, *times, step.result)

    def removed(self, partition: TopicPartition) -> None:
        """See ``Tap``."""
        fork = self._forks.pop(partition, None)
        if fork is not None:
            assert self._shadow is not None
            self._shadow.discard(fork.keys)
            self._released.append(fork.number)

    # What it says

    @property
    def verdict(self) -> Verdict:
        """The test's."""
        return Verdict.GO_ON if self._test is None else self._test.verdict

    @property
    def report(self) -> ShadowReport | None:
        """The comparison so far; None before it has begun."""
        return None if self._shadow is None else self._shadow.report()

    @property
    def ratio(self) -> float:
        """Mean score over that of the former parameters; NaN before there are any."""
        report = self.report
        if report is None or not report.old.mean_score > 0.0:
            return math.nan
        return report.new.mean_score / report.old.mean_score

    def saved(self) -> dict[str, Any] | None:
        """What a later probation goes on from."""
        return None if self._test is None else self._test.to_dict()

    # Its task

    async def run(self) -> Verdict:
        """Compare until there is a verdict, and forget the shadow's states. Raises what the predictor raises."""
        try:
            await asyncio.sleep(self._settings.probation_settle_s)
            while True:
                await self._fork_due()
                await self._release(self._released)
                if self._shadow is not None:
                    await self._shadow.advance(flush=True)
                if self.verdict.is_final:
                    return self.verdict
                await asyncio.sleep(self._round_s)
        finally:
            self._released += [fork.number for fork in self._forks.values()]
            self._forks = {}
            with contextlib.suppress(Exception):  # the predictor is gone, and the states with it
                await asyncio.shield(self._release(self._released))

    async def _release(self, numbers: list[int]) -> None:
        while numbers:
            await self._predictor.release(SHADOW_TOPIC, numbers.pop())

    async def _fork_due(self) -> None:
        """Fork the partitions that have sampled symbols and are not forked yet."""
        if self._shadow is None or not self._shadow.report().num_symbols:
            self._choose()
        for partition in sorted(self._source.partitions):
            keys = self._source.symbols(partition)
            wanted = self._sample & keys.keys()
            if wanted and partition not in self._forks:
                await self._fork(partition, {symbol: keys[symbol] for symbol in wanted})

    def _choose(self) -> None:
        """The symbols of the sample, anew where all of a former one were given up."""
        for partition in list(self._forks):
            self.removed(partition)
        symbols = {symbol for each in self._source.partitions for symbol in self._source.symbols(each)}
        settings = self._settings
        most = min(settings.probation_max_symbols, self._room_fn())
        if most < 1 and not self._has_warned:
            self._has_warned = True
            _log.warning("shadow_without_room", hint="the probation waits until compute.max_symbols leaves room")
        if not symbols or most < 1:
            return
        self._sample = frozenset(choose_shadow(symbols, share=settings.probation_share, max_symbols=most))
        if self._test is None:
            self._test = SequentialTest(probation_plan(settings, len(self._sample)))
        self._shadow = Shadow({}, step_fn=self._step, test=self._test, max_pending=_MAX_PENDING)
        _log.info("shadow_chosen", symbols=len(self._sample), of=len(symbols))

    async def _fork(self, partition: TopicPartition, live_keys: Mapping[str, Hashable]) -> None:
        number = self._next_number
        self._next_number += 1
        taken: list[_Fork] = []

        def take(exported: Exported) -> None:
            # Called between two live steps: from here on this partition's ticks are compared.
            if exported.epoch.config_hash != self._config_hash or self._shadow is None:
                return  # the parameters are not in force here yet: the next round asks again
            symbols = [symbol for symbol in exported.states.symbols if symbol in live_keys]
            if not symbols:
                return
            keys = {live_keys[symbol]: self._key_fn(SHADOW_TOPIC, number, symbol) for symbol in symbols}
            states = sample_states(exported.states, symbols)
            fork = _Fork(number, partition, keys, states, exported.epoch.parameters)
            self._forks[partition] = fork
            self._shadow.add(keys)
            taken.append(fork)

        await self._source.export_states(partition, take)
        for fork in taken:
            # Ticks that come meanwhile wait: nothing advances the shadow before this has returned.
            await self._predictor.import_states(SHADOW_TOPIC, fork.number, fork.states, fork.parameters)
            fork.states = None

    async def _step(self, keys: list[Any], values: Any, timestamps_ns: Any, record_timestamps_ns: Any) -> Any:
        return await self._predictor.step(keys, values, timestamps_ns, record_timestamps_ns, parameters=self._former)


class Taps:
    """Several taps as one; they may come and go."""

    def __init__(self, taps: Iterable[Any] = ()) -> None:
        self._taps = list(taps)

    def add(self, tap: Any) -> None:
        """Tell it from now on."""
        self._taps.append(tap)

    def discard(self, tap: Any) -> None:
        """Tell it no more."""
        self._taps = [each for each in self._taps if each is not tap]

    @property
    def listeners(self) -> Collection[Any]:
        """Those that are told."""
        return tuple(self._taps)

    def stepped(self, step: LiveStep) -> None:
        """See ``Tap``."""
        for tap in self._taps:
            tap.stepped(step)

    def removed(self, partition: TopicPartition) -> None:
        """See ``Tap``."""
        for tap in self._taps:
            tap.removed(partition)
