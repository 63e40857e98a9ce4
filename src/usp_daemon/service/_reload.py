"""From an edited configuration to an epoch: judged as a whole, then proposed to the group, then adopted.

==============================  ====================================================================================
what differs                    what becomes of it
==============================  ====================================================================================
a value that is wrong           refused as a whole, with every reason; what was in force stays
a locked key                    the same: it needs a restart
traced keys only                an epoch; nothing is compiled
structural keys as well         an epoch; its programs are compiled aside, and the former epoch serves meanwhile
==============================  ====================================================================================
"""

import asyncio
import time
from collections.abc import Callable

from usp_daemon.config import (
    SPECS,
    ConfigError,
    ConfigSource,
    ConfigWatcher,
    LoadedConfig,
    ParameterClass,
    ReloadOutcome,
    ReloadReport,
    ReloadTrigger,
    Settings,
    diff_settings,
)
from usp_daemon.persistence import PersistenceError
from usp_daemon.telemetry import get_logger

from ._epochs import EpochBook, EpochError

_log = get_logger(__name__)


class Reloader:
    """Follows the configuration of one replica.

    ``started`` is what the replica was started with, whose locked keys hold until it ends. ``check_fn`` raises
    ``ValueError`` for settings that the predictor cannot be built from; ``reported_fn`` is told of every attempt.
    ``asked`` is set by whoever wants the configuration read again (SIGHUP).
    """

    def __init__(
        self,
        *,
        source: ConfigSource,
        started: LoadedConfig,
        epochs: EpochBook,
        check_fn: Callable[[Settings], object],
        reported_fn: Callable[[ReloadReport, LoadedConfig | None], None],
        asked: asyncio.Event,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._source = source
        self._started = self._in_force = started
        self._epochs = epochs
        self._check_fn = check_fn
        self._reported_fn = reported_fn
        self._wall_clock = wall_clock
        self._asked = asked
        self._one_at_a_time = asyncio.Lock()

    async def run(self, *, poll_interval_s: float) -> None:
        """Follow changes and requests until cancelled."""
        watching = ConfigWatcher(self._source, poll_interval_s=poll_interval_s, known=self._started)
        async with watching as watcher, asyncio.TaskGroup() as tasks:
            tasks.create_task(self._answer_requests(watcher), name="reload.requests")
            async for event in watcher:
                await self._take(event.loaded, event.error, ReloadTrigger.FILE)

    async def _answer_requests(self, watcher: ConfigWatcher) -> None:
        while True:
            await self._asked.wait()
            self._asked.clear()
            report = await self.reload(ReloadTrigger.SIGNAL)
            if report.outcome in (ReloadOutcome.REFUSED, ReloadOutcome.FAILED):
                # Put right before the watcher has settled on it, it would count as refused for ever.
                watcher.forget()

    async def reload(self, trigger: ReloadTrigger) -> ReloadReport:
        """Read the configuration and apply it; says how that went and never raises for what is wrong with it."""
        loop = asyncio.get_running_loop()
        try:
            loaded = await loop.run_in_executor(None, self._source.load)
        except ConfigError as error:
            return await self._take(None, error, trigger)
        return await self._take(loaded, None, trigger)

    async def _take(
        self, loaded: LoadedConfig | None, error: ConfigError | None, trigger: ReloadTrigger
    ) -> ReloadReport:
        async with self._one_at_a_time:
            began = time.perf_counter()
            outcome, problems = ReloadOutcome.REFUSED, () if error is None else tuple(map(str, error.problems))
            changed: dict[str, list[str]] = {}
            if loaded is not None:
                changed = self._changes(loaded.settings)
                outcome, problems = await self._apply(loaded, changed, trigger)
                if outcome in (ReloadOutcome.APPLIED, ReloadOutcome.UNCHANGED):
                    self._in_force = loaded
            report = ReloadReport(
                time_ns=int(self._wall_clock() * 1e9),
                trigger=trigger,
                outcome=outcome,
                epoch=self._epochs.current.number,
                content_hash=self._in_force.content_hash,
                changed=changed,
                problems=problems,
                seconds=round(time.perf_counter() - began, 4),
            )
            _tell(report)
            self._reported_fn(report, loaded)
            return report

    def _changes(self, settings: Settings) -> dict[str, list[str]]:
        """Paths by class: predictor keys against the newest epoch, locked ones against the start."""
        newest = self._epochs.newest.settings
        changed: dict[str, list[str]] = {}
        for path, value in settings.predictor_values().items():
            if newest.get(path) != value:
                changed.setdefault(_class_of(path).value, []).append(path)
        locked = [change.path for change in diff_settings(self._started.settings, settings).locked]
        if locked:
            changed[ParameterClass.LOCKED.value] = locked
        return changed

    async def _apply(
        self, loaded: LoadedConfig, changed: dict[str, list[str]], trigger: ReloadTrigger
    ) -> tuple[ReloadOutcome, tuple[str, ...]]:
        settings = loaded.settings
        locked = changed.get(ParameterClass.LOCKED.value, [])
        if locked:
            return ReloadOutcome.REFUSED, tuple(
                f"{path}: a change needs a restart, so nothing of this edit is applied" for path in locked
            )
        if not changed:
            return ReloadOutcome.UNCHANGED, ()
        try:
            self._check_fn(settings)
        except (ValueError, ArithmeticError) as error:
            return ReloadOutcome.REFUSED, (f"no predictor can be built from this: {error}",)
        try:
            await self._epochs.propose(
                settings.predictor_values(), settings.predictor_hash(), loaded.base_hash, reason=trigger.value
            )
            await self._epochs.adopt_newest()
        except (PersistenceError, EpochError) as error:
            return ReloadOutcome.FAILED, (str(error),)
        return ReloadOutcome.APPLIED, ()


def _tell(report: ReloadReport) -> None:
    fields = {
        "trigger": report.trigger.value,
        "epoch": report.epoch,
        "changed": dict(report.changed),
        "problems": list(report.problems),
        "seconds": report.seconds,
    }
    if report.outcome is ReloadOutcome.REFUSED:
        _log.error("config_refused", **fields)
    elif report.outcome is ReloadOutcome.FAILED:
        _log.error("config_failed", **fields)
    else:
        _log.info("config_reloaded", outcome=report.outcome.value, **fields)


def _class_of(path: str) -> ParameterClass:
    return SPECS[path].key.parameter_class
