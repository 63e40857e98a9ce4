"""What the service tells the status page: observer calls for the board, and the facts beside it."""

import re
import time
from collections.abc import Callable, Mapping, Sequence

import usp_daemon
from usp_daemon.config import HIDDEN, SPECS, Change, ReloadReport, Settings, Value, diff_settings
from usp_daemon.service import Answer, Observer, ProgramEpoch
from usp_daemon.status import Board, Config, Facts, Reload, Service, Tuner
from usp_daemon.status import Change as ShownChange
from usp_daemon.status import Health as HealthFacts
from usp_daemon.telemetry import Health, PartitionState, Verdict
from usp_daemon.versions import present_versions
from usp_daemon.wire import TopicPartition

# user:password@ in an address, whatever key it stands under
_CREDENTIALS = re.compile(r"(?<=//)[^/@\s]+@")


class StatusObserver(Observer):
    """Passes on to the board what it shows."""

    def __init__(self, board: Board, *, clock_fn: Callable[[], float] = time.time) -> None:
        self._board = board
        self._clock_fn = clock_fn

    def partition_state(self, partition: TopicPartition, state: PartitionState | None) -> None:
        """See :class:`Observer`."""
        self._board.partition_state(partition, None if state is None else state.value)

    def queued(self, partition: TopicPartition, num_records: int, paused: bool) -> None:
        """See :class:`Observer`."""
        self._board.update(partition, queued=num_records, paused=paused)

    def lag(self, partition: TopicPartition, num_records: int, oldest_ns: int | None) -> None:
        """See :class:`Observer`."""
        age_s = None if oldest_ns is None else max(self._clock_fn() - oldest_ns / 1e9, 0.0)
        self._board.update(partition, lag_records=num_records, lag_s=age_s)

    def answered(self, partition: TopicPartition, answers: Sequence[Answer]) -> None:
        """See :class:`Observer`."""
        self._board.answered(partition, answers)

    def replayed(self, partition: TopicPartition, num_records: int, num_left: int) -> None:
        """See :class:`Observer`."""
        self._board.update(partition, replay_left=num_left)

    def snapshot_saved(self, partition: TopicPartition, seconds: float, size_bytes: int) -> None:
        """See :class:`Observer`."""
        self._board.snapshot_saved(partition, seconds, size_bytes)

    def snapshot_failed(self, partition: TopicPartition, reason: str) -> None:
        """See :class:`Observer`."""
        self._board.update(partition, snapshot_error=reason)

    def symbols(self, partition: TopicPartition, num_symbols: int) -> None:
        """See :class:`Observer`."""
        self._board.update(partition, symbols=num_symbols)


class StatusFacts(Observer):
    """Service, health and configuration as the page shows them. ``settings`` are those of the start; ``tuner_fn`` gives
    the tuner's part. Secrets do not come in here unmasked.
    """

    def __init__(
        self,
        settings: Settings,
        health: Health,
        *,
        instance: str,
        tuner_fn: Callable[[], Tuner] | None = None,
        clock_fn: Callable[[], float] = time.time,
    ) -> None:
        self._settings = settings
        self._health = health
        self._clock_fn = clock_fn
        self._started_s = clock_fn()
        self.tuner_fn = tuner_fn or (lambda: Tuner(mode=settings.tuning.mode, phase="off"))
        self.service = Service(
            kind="run",
            instance=instance,
            group=settings.kafka.group,
            version=usp_daemon.__version__,
            versions=present_versions(),
            started_ns=int(self._started_s * 1e9),
        )
        self._config: Config | None = None
        self._epoch: ProgramEpoch | None = None

    def epoch_adopted(self, epoch: ProgramEpoch) -> None:
        """See :class:`Observer`."""
        former, self._epoch = self._epoch, epoch
        self._config = Config(
            epoch=epoch.number,
            config_hash=epoch.config_hash,
            adopted_ns=int(self._clock_fn() * 1e9),
            changes_to_defaults=changes_to_defaults(self._settings, epoch.settings),
            changes_to_last_epoch=[] if former is None else _between(former.settings, epoch.settings),
            last_reload=None if self._config is None else self._config.last_reload,
        )

    def record_reload(self, report: ReloadReport) -> None:
        """A change of the configuration was dealt with."""
        if self._config is not None:
            self._config.last_reload = Reload(
                time_ns=report.time_ns,
                outcome=report.outcome.value,
                seconds=report.seconds,
                problems=[without_credentials(problem) for problem in report.problems[:20]],
            )

    def facts(self) -> Facts:
        """As they are now."""
        self.service.uptime_s = max(self._clock_fn() - self._started_s, 0.0)
        return Facts(
            service=self.service,
            health=health_facts(self._health.livez(), self._health.readyz()),
            config=self._config,
            tuner=self.tuner_fn(),
        )


def health_facts(live: Verdict, ready: Verdict) -> HealthFacts:
    """Both verdicts; readiness has all the reasons of liveness."""
    return HealthFacts(live=live.ok, ready=ready.ok, reasons=list(ready.reasons))


def changes_to_defaults(settings: Settings, in_force: Mapping[str, Value]) -> list[ShownChange]:
    """What differs from the defaults: of the predictor's keys as they are ``in_force``, of the locked ones as they were
    at the start.
    """
    changes = [change for change in diff_settings(Settings(), settings).locked]
    defaults = Settings().predictor_values()
    return [*_between(defaults, in_force), *map(_shown, changes)]


def _between(old: Mapping[str, Value], new: Mapping[str, Value]) -> list[ShownChange]:
    """What differs between two epochs; keys that only one of them has belong to another version."""
    return [
        _shown(Change(path, old[path], new[path], SPECS[path].key.parameter_class))
        for path in SPECS
        if path in old and path in new and old[path] != new[path]
    ]


def _shown(change: Change) -> ShownChange:
    old, new = change.shown
    return ShownChange(
        path=change.path,
        old=without_credentials(old) if isinstance(old, str) else old,
        new=without_credentials(new) if isinstance(new, str) else new,
        parameter_class=change.parameter_class.value,
    )


def without_credentials(text: str) -> str:
    """The text without what stands before an @ in an address."""
    return _CREDENTIALS.sub(f"{HIDDEN}@", text)
