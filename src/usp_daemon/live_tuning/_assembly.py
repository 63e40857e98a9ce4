"""Recorder, tuner and their parts, put together for one replica."""

import asyncio
import functools
import math
import os
import pathlib
import time
from collections.abc import Callable, Coroutine, Hashable, Mapping
from typing import Any

from usp_daemon.config import SPECS, ConfigMutator, ConfigSource, Settings, Value
from usp_daemon.persistence import TickRing
from usp_daemon.service import Daemon, EpochBook, StatefulPredictor
from usp_daemon.telemetry import PartitionState, ServiceMetrics, get_logger
from usp_daemon.tuning import ScoreDrift, SequentialTest
from usp_daemon.wire import TopicPartition

from ._campaign import CampaignProcess
from ._ports import CampaignFn
from ._probation import Probation, Taps
from ._recorder import Recorder
from ._search import classes_of
from ._state import StateFile, Trigger
from ._tuner import Tuner, TunerOptions

_log = get_logger(__name__)
_REPORT_S = 5.0


class LiveTuning:
    """What the daemon needs of the tuner: a tap, companions, and to be told which service it belongs to.

    ``key_fn`` makes the key of a symbol's state; ``reload_fn`` has the configuration read again. ``campaign_fn`` and
    the further options, passed on to the tuner, are for tests.
    """

    def __init__(
        self,
        settings: Settings,
        source: ConfigSource,
        *,
        epochs: EpochBook,
        predictor: StatefulPredictor,
        key_fn: Callable[[str, int, str], Hashable],
        metrics: ServiceMetrics,
        reload_fn: Callable[[], None],
        who: str,
        campaign_fn: CampaignFn | None = None,
        drift: ScoreDrift | None = None,
        turn_s: float = 1.0,
        round_s: float = 0.5,
        now_ns_fn: Callable[[], int] = time.time_ns,
        mutator: ConfigMutator | None = None,
    ) -> None:
        tuning = settings.tuning
        self._settings = settings
        self._epochs = epochs
        self._predictor = predictor
        self._key_fn = key_fn
        self._metrics = metrics
        self._round_s = round_s
        self._now_ns = now_ns_fn
        self._daemon: Daemon | None = None
        self._probation: Probation | None = None
        ring = TickRing(tuning.record_path, ticks_per_symbol=tuning.record_ticks, max_symbols=tuning.record_symbols)
        self.recorder = Recorder(
            ring=ring,
            drift=drift or ScoreDrift(ratio=tuning.drift_ratio),
            drifted_fn=lambda: self.ask(Trigger.DRIFT),
        )
        self.tap = Taps([self.recorder])
        process = CampaignProcess(cpu_share=tuning.cpu_share, max_lag_s=tuning.max_lag_s, lag_fn=self.lag_s)
        applies, proposes = classes_of(tuning.mode, tuning.structural_mode)
        state_path = pathlib.Path(settings.io.state_path)
        self.mutator = mutator or ConfigMutator(
            source,
            settings=settings,
            who=f"tuner@{who}:{os.getpid()}",
            ticks_fn=lambda: self.recorder.num_ticks,
            resolve_fn=self._resolved,
        )
        self.tuner = Tuner(
            options=TunerOptions(
                ticks_path=tuning.record_path,
                history_path=str(state_path / "campaign_ticks.npz"),
                applies=applies,
                proposes=proposes,
                turn_s=turn_s,
            ),
            settings=settings,
            state=StateFile(state_path),
            mutator=self.mutator,
            epochs=epochs,
            campaign_fn=campaign_fn or process.run,
            probation_fn=self._new_probation,
            settings_fn=lambda: source.load().settings,
            is_leader_fn=self.is_leader,
            metrics=metrics,
            reload_fn=reload_fn,
            finished_fn=self._finished,
            now_ns_fn=now_ns_fn,
        )

    def attach(self, daemon: Daemon) -> None:
        """The service that it belongs to; before its companions run."""
        self._daemon = daemon

    @property
    def companions(self) -> Mapping[str, Callable[[], Coroutine[Any, Any, None]]]:
        """What runs beside the service."""
        return {
            "tuner.recorder": self.recorder.run,
            "tuner.loop": self.tuner.run,
            "tuner.report": functools.partial(self._report, _REPORT_S),
        }

    def ask(self, trigger: Trigger = Trigger.OPERATOR) -> None:
        """Begin a campaign as soon as may be."""
        _log.info("campaign_asked", trigger=trigger.value)
        self.tuner.ask(trigger)

    def is_leader(self) -> bool:
        """Whether this replica tunes for the group: the one that answers partition 0 does."""
        daemon = self._daemon
        if daemon is None:
            return False
        owner = daemon.partitions.get(TopicPartition(self._settings.kafka.input_topic, 0))
        return owner is not None and owner.state is PartitionState.RUNNING

    def status(self) -> Mapping[str, Any]:
        """What the tuner is at, by the names of the status page's record."""
        state, progress = self.tuner.state, self.tuner.progress
        probation = self._probation
        campaign, change = state.campaign, state.change
        verdict = "" if state.probation is None else state.probation.verdict or "undecided"
        ratio = probation.ratio if probation is not None else math.nan
        return {
            "phase": state.phase.value,
            "leads": self.is_leader(),
            "since_ns": state.since_ns,
            "trigger": "" if campaign is None else campaign.trigger.value,
            "trials": 0 if progress is None else progress.num_trials,
            "trials_total": 0 if progress is None else progress.num_total,
            "best_ratio": None if progress is None else progress.best_value,
            "campaigns": state.num_campaigns,
            "last_campaign_ns": state.last_campaign_ns,
            "change": {} if change is None else dict(change.values),
            "verdict": verdict if math.isnan(ratio) else f"{verdict}, ratio {ratio:.3f}",
        }

    def lag_s(self) -> float:
        """Age of the oldest record that was read and is not answered yet, over all partitions held here."""
        if self._daemon is None:
            return 0.0
        stamps = [owner.oldest_waiting_ns() for owner in self._daemon.partitions.values()]
        oldest = min((stamp for stamp in stamps if stamp is not None), default=None)
        return 0.0 if oldest is None else max(0.0, (self._now_ns() - oldest) / 1e9)

    def _resolved(self, path: str) -> float | None:
        """What "auto" stands for in a predictor's key at the moment."""
        value = getattr(self._epochs.current.parameters, SPECS[path].name, None)
        return None if value is None else float(value)

    async def _new_probation(
        self, former: Mapping[str, Value], config_hash: str, test: SequentialTest | None
    ) -> Probation:
        assert self._daemon is not None
        if self._probation is not None:
            self.tap.discard(self._probation)
        made = await self._epochs.made_of(former, "former")
        probation = Probation(
            source=self._daemon,
            predictor=self._predictor,
            key_fn=self._key_fn,
            former=made.parameters,
            config_hash=config_hash,
            settings=self._settings.tuning,
            test=test,
            room_fn=self._room,
            round_s=self._round_s,
        )
        self._probation = probation
        self.tap.add(probation)
        return probation

    def _room(self) -> int:
        """Symbols that the predictor can take beside the live ones; a tenth of all is left to new ones of those."""
        assert self._daemon is not None
        most = self._settings.compute.max_symbols
        live = sum(len(self._daemon.symbols(partition)) for partition in self._daemon.partitions)
        return int(0.9 * most) - live

    def _finished(self) -> None:
        if self._probation is not None:
            self.tap.discard(self._probation)
            self._probation = None
        self.recorder.rebase()

    async def _report(self, interval_s: float) -> None:
        dropped = 0
        while True:
            await asyncio.sleep(interval_s)
            drift, now = self.recorder.drift, self.recorder.num_dropped
            self._metrics.record_drift(1.0 if math.isnan(drift) else drift, now - dropped)
            if now > dropped:
                _log.warning("ticks_not_seen", recorder_dropped=now - dropped)
            dropped = now
