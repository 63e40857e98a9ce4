"""What listens to the live ticks beside the service: the recorder and the probation of new parameters."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from usp_daemon.wire import TopicPartition

from ._epochs import ProgramEpoch
from ._results import StepResult


@dataclass(frozen=True, slots=True, eq=False)
class LiveStep:
    """Ticks that were stepped together and are answered: all columns in the order of the ticks, none of them copied,
    so whoever keeps one must not change it. ``keys`` name the states, ``epoch`` is what they were stepped under.
    """

    symbols: Sequence[str]
    keys: Sequence[Hashable]
    values: NDArray[np.float64]
    timestamps_ns: NDArray[np.int64]
    record_timestamps_ns: NDArray[np.int64]
    result: StepResult
    epoch: ProgramEpoch

    def __len__(self) -> int:
        return len(self.keys)


class Tap(Protocol):
    """Both methods are called on the event loop, between two steps; they must be cheap, and neither wait nor raise."""

    def stepped(self, step: LiveStep) -> None:
        """These ticks were stepped. Those of a replay are not told."""

    def removed(self, partition: TopicPartition) -> None:
        """The partition's states are forgotten; if it comes back, ticks will have been missed."""
