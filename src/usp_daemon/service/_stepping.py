"""Batches into the predictor, for replay and service alike."""

from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from usp_daemon.wire import TickBatch, TopicPartition

from ._results import StepResult

_MOST_SYMBOLS = 200_000


class Predictor(Protocol):
    """What steps ticks: the worker, as a pipeline uses it."""

    async def step(
        self,
        keys: list[Any],
        values: NDArray[np.float64],
        timestamps_ns: NDArray[np.int64],
        record_timestamps_ns: NDArray[np.int64],
        parameters: Any = None,
    ) -> StepResult:
        """Step every tick once, in order, under ``parameters`` if given, of whatever structure."""
        ...


class StateKeys:
    """The key of each symbol's state, made once; ``new_fn`` is told of a partition's symbol when it is first seen.

    What is remembered of a partition is cleared when it grows past all reason.
    """

    def __init__(
        self,
        key_fn: Callable[[str, int, str], Hashable],
        new_fn: Callable[[TopicPartition, str], None] = lambda partition, symbol: None,
    ) -> None:
        self._key_fn = key_fn
        self._new_fn = new_fn
        self._known: dict[TopicPartition, dict[str, Hashable]] = {}

    def of(self, batch: TickBatch) -> list[Hashable]:
        """The keys of a batch's ticks."""
        partition = TopicPartition(batch.raw.topic, batch.raw.partition)
        known = self._known.setdefault(partition, {})
        if len(known) > _MOST_SYMBOLS:
            known.clear()  # far more names than states: somebody makes them up
        keys = []
        for symbol in batch.symbols:
            key = known.get(symbol)
            if key is None:
                key = known[symbol] = self._key_fn(partition.topic, partition.partition, symbol)
                self._new_fn(partition, symbol)
            keys.append(key)
        return keys

    def num_symbols(self, partition: TopicPartition) -> int:
        """Symbols seen in a partition."""
        return len(self._known.get(partition, ()))

    def known(self, partition: TopicPartition) -> dict[str, Hashable]:
        """The symbols seen in a partition, with their keys; a copy."""
        return dict(self._known.get(partition, {}))

    def forget(self, partition: TopicPartition) -> Iterable[str]:
        """Forget a partition; returns its symbols."""
        return self._known.pop(partition, {})


class StepInput(NamedTuple):
    """The ticks of several batches one after the other, as the predictor takes them."""

    keys: list[Hashable]
    values: NDArray[np.float64]
    timestamps_ns: NDArray[np.int64]
    record_timestamps_ns: NDArray[np.int64]


def joined(keys: StateKeys, batches: Sequence[TickBatch]) -> StepInput | None:
    """All ticks of ``batches``; None when there are none."""
    if not any(map(len, batches)):
        return None
    return StepInput(
        [key for batch in batches for key in keys.of(batch)],
        np.concatenate([batch.values for batch in batches]),
        np.concatenate([batch.timestamps_ns for batch in batches]),
        np.concatenate([batch.record_timestamps_ns for batch in batches]),
    )


async def step_together(
    predictor: Predictor, keys: StateKeys, batches: Sequence[TickBatch], parameters: Any = None
) -> StepResult | None:
    """All ticks of ``batches`` in one call of the predictor; None when there are none."""
    ticks = joined(keys, batches)
    return None if ticks is None else await predictor.step(*ticks, parameters=parameters)
