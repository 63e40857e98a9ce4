"""Health as recent facts that the service has left here; asking costs nothing and tries nothing.

``livez``: is the process worth keeping? The loop turns, the worker answers, no partition is stuck. A broker that is
away is no reason to restart, and while it is away no partition counts as stuck.

``readyz``: does it do its work? Alive, started, not stopping, the broker there, every partition RUNNING.
"""

import asyncio
import dataclasses
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from usp_daemon.wire import TopicPartition

from ._states import PartitionState

# States in which input must be worked off; a partition that FAILED waits for a person, not for a restart.
_WORKING = frozenset({PartitionState.RESTORING, PartitionState.REPLAYING, PartitionState.RUNNING})
_BEAT_INTERVAL_S = 0.5


class Verdict(NamedTuple):
    """Whether all is well, and each thing that is not, as a sentence."""

    ok: bool
    reasons: tuple[str, ...]


@dataclasses.dataclass(slots=True)
class _PartitionFacts:
    state: PartitionState
    progress_at: float
    # Since when there is input that waits, None while there is none.
    waiting_since: float | None = None


class Health:
    """What is known of the service's health. All times are of ``clock_fn``, a monotonic clock in seconds.

    ``stall_timeout_s`` is how long a partition may wait with input and without progress, ``loop_timeout_s`` how old the
    event loop's heartbeat may be, ``worker_timeout_s`` the worker's where its last beat did not say otherwise. The
    worker's beat may come from any thread, everything else comes from the event loop's.
    """

    def __init__(
        self,
        *,
        stall_timeout_s: float,
        loop_timeout_s: float = 5.0,
        worker_timeout_s: float = 120.0,
        clock_fn: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stall_timeout_s = stall_timeout_s
        self._loop_timeout_s = loop_timeout_s
        self._worker_timeout_s = worker_timeout_s
        self._clock_fn = clock_fn
        self._loop_at = clock_fn()
        # None until the worker's first beat: before it the start's own time limit counts.
        self._worker: tuple[float, float] | None = None
        self._not_ready: str | None = "the service is starting"
        self._broker_away: str | None = None
        self._broker_back_at = clock_fn()
        self._partitions: dict[TopicPartition, _PartitionFacts] = {}

    # --- told by the service

    def beat_loop(self) -> None:
        """The event loop turns."""
        self._loop_at = self._clock_fn()

    def beat_worker(self, allowance_s: float | None = None) -> None:
        """The worker is alive; its next beat may take ``allowance_s``, as before a compilation."""
        self._worker = (self._clock_fn(), self._worker_timeout_s if allowance_s is None else allowance_s)

    def worker_stopped(self) -> None:
        """The worker was ended on purpose; no more beats are expected of it."""
        self._worker = None

    def set_ready(self) -> None:
        """The start is over."""
        self._not_ready = None

    def set_not_ready(self, reason: str) -> None:
        """The service does not do its work for ``reason``, a sentence without its full stop."""
        self._not_ready = reason

    def broker_away(self, reason: str) -> None:
        """The broker does not answer; until :meth:`broker_back` no partition can be expected to move."""
        self._broker_away = reason

    def broker_back(self) -> None:
        """The broker answers; partitions have the whole stall timeout from here. Harmless when repeated."""
        if self._broker_away is not None:
            self._broker_away = None
            self._broker_back_at = self._clock_fn()

    def record_state(self, partition: TopicPartition, state: PartitionState) -> None:
        """The partition is held and in ``state``; a change of state is progress."""
        facts = self._partitions.get(partition)
        if facts is None:
            self._partitions[partition] = _PartitionFacts(state, self._clock_fn())
        elif facts.state is not state:
            facts.state, facts.progress_at = state, self._clock_fn()

    def record_given_up(self, partition: TopicPartition) -> None:
        """The partition is not held any more. Harmless when repeated."""
        self._partitions.pop(partition, None)

    def record_progress(self, partition: TopicPartition) -> None:
        """Records of the partition were answered or replayed, or its state was loaded further."""
        if facts := self._partitions.get(partition):
            facts.progress_at = self._clock_fn()

    def record_waiting(self, partition: TopicPartition, is_waiting: bool) -> None:
        """Whether there is input of the partition that is not answered."""
        if facts := self._partitions.get(partition):
            if not is_waiting:
                facts.waiting_since = None
            elif facts.waiting_since is None:
                facts.waiting_since = self._clock_fn()

    # --- asked

    def stalled(self) -> dict[TopicPartition, float]:
        """The partitions that are stuck, each with the seconds since it last had a reason to be called moving."""
        if self._broker_away is not None:
            return {}
        now = self._clock_fn()
        stuck = {}
        for partition, facts in self._partitions.items():
            if facts.state not in _WORKING:
                continue
            if facts.state is PartitionState.RUNNING:
                if facts.waiting_since is None:
                    continue
                since = max(facts.progress_at, facts.waiting_since, self._broker_back_at)
            else:  # restoring and replaying are work in themselves, whether or not new input waits
                since = max(facts.progress_at, self._broker_back_at)
            if now - since > self._stall_timeout_s:
                stuck[partition] = now - since
        return stuck

    def livez(self) -> Verdict:
        """Whether the process is worth keeping."""
        now = self._clock_fn()
        reasons = []
        if (age := now - self._loop_at) > self._loop_timeout_s:
            reasons.append(f"the event loop has not turned for {age:.1f} s")
        if self._worker is not None:
            beat_at, allowance_s = self._worker
            if (age := now - beat_at) > allowance_s:
                reasons.append(f"the worker has not answered for {age:.1f} s, {allowance_s:g} s were allowed")
        reasons.extend(
            f"partition {partition} has input and made no progress for {age:.1f} s"
            for partition, age in self.stalled().items()
        )
        return Verdict(not reasons, tuple(reasons))

    def readyz(self) -> Verdict:
        """Whether the service does its work. A replica without partitions is ready: it is a spare."""
        reasons = list(self.livez().reasons)
        if self._not_ready is not None:
            reasons.append(self._not_ready)
        if self._broker_away is not None:
            reasons.append(f"the broker is away: {self._broker_away}")
        reasons.extend(
            f"partition {partition} is {facts.state}"
            for partition, facts in self._partitions.items()
            if facts.state is not PartitionState.RUNNING
        )
        return Verdict(not reasons, tuple(reasons))

    def facts(self) -> dict[str, Any]:
        """All of it as plain data, ages in seconds, for a status page."""
        now = self._clock_fn()
        return {
            "loop_heartbeat_age_s": now - self._loop_at,
            "worker_heartbeat_age_s": None if self._worker is None else now - self._worker[0],
            "broker_away": self._broker_away,
            "not_ready": self._not_ready,
            "partitions": {
                str(partition): {
                    "state": facts.state.value,
                    "progress_age_s": now - facts.progress_at,
                    "waiting_s": None if facts.waiting_since is None else now - facts.waiting_since,
                }
                for partition, facts in self._partitions.items()
            },
        }


async def beat_event_loop(
    health: Health,
    on_lag: Callable[[float], None],
    *,
    interval_s: float = _BEAT_INTERVAL_S,
    clock_fn: Callable[[], float] = time.monotonic,
) -> None:
    """Beat for the event loop for ever, and report how much later than asked for it came round each time."""
    while True:
        asked_at = clock_fn()
        await asyncio.sleep(interval_s)
        on_lag(max(clock_fn() - asked_at - interval_s, 0.0))
        health.beat_loop()
