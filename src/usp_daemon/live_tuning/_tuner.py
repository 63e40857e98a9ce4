"""The loop: optimise, mutate, reload, probation, keep or roll back; by itself, one step at a time.

    IDLE --trigger--> CAMPAIGN --decision--> DECIDED --apply--> APPLIED --in force--> PROBATION --verdict--> IDLE
      ^                  |                      |                  |                      |      keep, or
      +--- nothing, -----+---- proposed, -------+-- not in force, -+---- somebody --------+      roll back and
           outdated             rejected            rolled back          changed it              remember

Each phase is on the disk before anything is done in it, and what is done can be done again: after a crash the loop goes
on where it stood. What is in force is never touched by that, only by the mutator.
"""

import asyncio
import contextlib
import dataclasses
import math
import time
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from typing import Any, TypeVar

import msgspec

from usp_daemon.config import (
    SPECS,
    AuditEvent,
    ConfigError,
    ConfigMutationError,
    EntryStatus,
    HistoryEntry,
    MutationOutcome,
    MutationRejectedError,
    Settings,
    Value,
    document_of,
    parse_settings,
)
from usp_daemon.telemetry import get_logger
from usp_daemon.tuning import SequentialTest, ShadowReport, Verdict

from ._ports import CampaignFn, Epochs, Mutator, ProbationFn, RunningProbation, TunerMetrics
from ._request import CampaignFailedError, CampaignProgress, CampaignRequest
from ._state import (
    CampaignRecord,
    ChangeRecord,
    Decision,
    Phase,
    ProbationRecord,
    StateFile,
    Trigger,
    TunerState,
)

_log = get_logger(__name__)
_T = TypeVar("_T")

# Problems of the mutator that time alone solves.
WAITED_FOR = frozenset({"security.allowed_mutation_rate_per_hour", "security.min_ticks_between_mutations"})
_SAVE_S = 10.0
_RETRY_S = 60.0
_PATIENCE_S = 60.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class TunerOptions:
    """What the loop asks for beside the settings: paths, classes of parameters, times in seconds."""

    ticks_path: str
    history_path: str
    applies: tuple[str, ...]
    proposes: tuple[str, ...]
    in_force_timeout_s: float = 900.0  # a structure is compiled meanwhile
    decided_timeout_s: float = 6 * 3600.0
    turn_s: float = 1.0


class Tuner:
    """One tuner; :meth:`run` turns until cancelled, and does nothing while another replica leads.

    ``settings_fn`` gives the settings as the files have them now; ``is_leader_fn`` whether this replica leads;
    ``probation_fn`` makes a probation. ``finished_fn`` is called after a change was kept or rolled back.
    ``crash_fn`` is for tests.
    """

    def __init__(
        self,
        *,
        options: TunerOptions,
        settings: Settings,
        state: StateFile,
        mutator: Mutator,
        epochs: Epochs,
        campaign_fn: CampaignFn,
        probation_fn: ProbationFn,
        settings_fn: Callable[[], Settings],
        is_leader_fn: Callable[[], bool],
        metrics: TunerMetrics,
        reload_fn: Callable[[], None] = lambda: None,
        finished_fn: Callable[[], None] = lambda: None,
        now_ns_fn: Callable[[], int] = time.time_ns,
        call_fn: Callable[..., Awaitable[Any]] = asyncio.to_thread,
        crash_fn: Callable[[str], None] = lambda point: None,
    ) -> None:
        self._options = options
        self._settings = settings
        self._file = state
        self._mutator = mutator
        self._epochs = epochs
        self._campaign_fn = campaign_fn
        self._probation_fn = probation_fn
        self._settings_fn = settings_fn
        self._is_leader_fn = is_leader_fn
        self._metrics = metrics
        self._reload_fn = reload_fn
        self._finished_fn = finished_fn
        self._now_ns = now_ns_fn
        self._call = call_fn
        self._crash_fn = crash_fn
        self._state = TunerState()
        self._asked: set[Trigger] = set()
        self._campaign: asyncio.Task[Decision] | None = None
        self._progress: CampaignProgress | None = None
        self._num_trials_told = 0
        self._probation: RunningProbation | None = None
        self._comparing: asyncio.Task[Verdict] | None = None
        self._saved_ns = 0
        self._told = self._told_of_waiting = ""
        self._retry_at_ns = 0
        self._is_settled = False
        self._differs_since_ns: int | None = None
        self._differing = ""

    @property
    def phase(self) -> Phase:
        """What it is at."""
        return self._state.phase

    @property
    def state(self) -> TunerState:
        """Everything that it does not forget."""
        return self._state

    @property
    def progress(self) -> CampaignProgress | None:
        """How far the campaign that runs is; None when none runs, or nothing of it is known yet."""
        return self._progress if self.phase is Phase.CAMPAIGN else None

    def ask(self, trigger: Trigger) -> None:
        """Begin a campaign as soon as the loop is idle."""
        self._asked.add(trigger)

    async def run(self) -> None:
        """Turn until cancelled. Whatever goes wrong is said and tried again: the service does not depend on it."""
        has_begun = False
        try:
            while True:
                try:
                    if not has_begun:
                        await self._begin()
                        has_begun = True
                    await self.turn()
                except Exception as error:  # a defect here must not end the service, which works without a tuner
                    _log.error("tuner_failed", phase=self.phase.value, error=repr(error), exc_info=error)
                    await asyncio.sleep(_RETRY_S)
                await asyncio.sleep(self._options.turn_s)
        finally:
            self._save_at_the_end()
            await self._stop_tasks()

    def _save_at_the_end(self) -> None:
        """The evidence since it was last written; it would come again, so a disk that refuses is no matter."""
        if self.phase is Phase.PROBATION and self._probation is not None and self._state.probation is not None:
            record = msgspec.structs.replace(self._state.probation, test=self._probation.saved())
            with contextlib.suppress(OSError):
                self._file.write(msgspec.structs.replace(self._state, probation=record))

    async def _begin(self) -> None:
        self._state = await self._call(self._file.read) or TunerState(last_campaign_ns=self._now_ns())
        _log.info("tuner_started", phase=self.phase.value, mode=self._settings.tuning.mode)
        self._metrics.record_tuner_state(self.phase.value)
        if self.phase is Phase.APPLIED:
            self._reload_fn()  # the file may have been changed in the last moment before the end

    async def turn(self) -> None:
        """One look at where it stands."""
        if self._now_ns() < self._retry_at_ns:
            return
        try:
            if not self._is_settled:
                # What a crash left of a change is completed or taken back before anything is concluded from the files.
                await self._call(self._mutator.settle)
                self._is_settled = True
            await {
                Phase.IDLE: self._idle,
                Phase.CAMPAIGN: self._search,
                Phase.DECIDED: self._act,
                Phase.APPLIED: self._wait_for_force,
                Phase.PROBATION: self._compare,
            }[self.phase]()
            self._told = ""
        except (ConfigError, ConfigMutationError, OSError) as error:
            # A full disk, a lock that is held, a damaged log, a wrong file: for a person, or for time, to mend.
            if str(error) != self._told:
                self._told = str(error)
                _log.error("tuner_waits", phase=self.phase.value, error=self._told)
            self._retry_at_ns = self._now_ns() + int(_RETRY_S * 1e9)

    # Idle

    async def _idle(self) -> None:
        if not self._is_leader_fn():
            self._asked.discard(Trigger.DRIFT)  # who leads sees it as well
            return
        trigger = self._due()
        if trigger is None:
            return
        if await self._does_file_differ():
            return
        now_ns = self._now_ns()
        moment = datetime.fromtimestamp(now_ns / 1e9, UTC)
        number = self._state.num_campaigns + 1
        campaign = CampaignRecord(
            name=f"live-{moment:%Y%m%dT%H%M%S}-{number}",
            trigger=trigger,
            seed=self._settings.meta_optimization.seed + number,
            started_ns=now_ns,
            config_hash=self._epochs.current.config_hash,
        )
        await self._enter(Phase.CAMPAIGN, campaign=campaign, num_campaigns=number)
        self._asked.clear()
        await self._note(AuditEvent.CAMPAIGN_STARTED, f"campaign {campaign.name}, by {trigger.value}")

    async def _does_file_differ(self) -> bool:
        """Whether the file is not what is in force. Mostly it is about to be; where another replica has changed the
        settings, or the file was refused, a change of the file would change more than the tuner means to.
        """
        in_file = (await self._call(self._settings_fn)).predictor_hash()
        if in_file == self._epochs.current.config_hash:
            self._differs_since_ns, self._differing = None, ""
            return False
        now_ns = self._now_ns()
        self._differs_since_ns = self._differs_since_ns or now_ns
        if now_ns - self._differs_since_ns >= _PATIENCE_S * 1e9 and self._differing != in_file:
            self._differing = in_file  # said once
            _log.warning("tuner_file_differs", in_file=in_file, in_force=self._epochs.current.config_hash)
        return True

    def _due(self) -> Trigger | None:
        for trigger in (Trigger.OPERATOR, Trigger.DRIFT):
            if trigger in self._asked:
                return trigger
        hours = self._settings.tuning.schedule_hours
        waited_h = (self._now_ns() - self._state.last_campaign_ns) / 3.6e12
        return Trigger.SCHEDULE if hours > 0.0 and waited_h >= hours else None

    # Campaign

    async def _search(self) -> None:
        campaign = self._known(self._state.campaign)
        if self._is_outdated(campaign):
            await self._stop_tasks()
            await self._end_campaign("outdated", "the settings were changed meanwhile")
            return
        if not self._is_leader_fn():
            if self._campaign is not None:
                _log.info("tuner_yields", campaign=campaign.name, reason="another replica leads")
                await self._stop_tasks()
            return
        if self._campaign is None:
            self._num_trials_told = 0
            self._progress = None
            request = CampaignRequest(
                name=campaign.name,
                seed=campaign.seed,
                values=await self._in_force(),
                ticks=self._options.ticks_path,
                history=self._options.history_path,
                applies=self._options.applies,
                proposes=self._options.proposes,
                nice=self._settings.tuning.nice,
            )
            self._campaign = asyncio.create_task(_awaited(self._campaign_fn(request, self._progressed)), name="tuner")
            return
        if not self._campaign.done():
            return
        task, self._campaign = self._campaign, None
        try:
            decision = task.result()
        except CampaignFailedError as error:
            await self._end_campaign("failed", str(error))
            return
        if not decision.apply and not decision.propose:
            await self._end_campaign("nothing", decision.reason, decision)
            return
        self._crash_fn("campaign.ended")
        await self._end_campaign("found" if decision.apply else "proposed", decision.reason, decision)

    def _progressed(self, progress: CampaignProgress) -> None:
        self._progress = progress
        new = max(0, progress.num_trials - self._num_trials_told)
        self._num_trials_told = progress.num_trials
        self._metrics.record_tuner_trials(new, progress.best_value)
        _log.info("tuner_progress", **msgspec.structs.asdict(progress))

    async def _end_campaign(self, outcome: str, reason: str, decision: Decision | None = None) -> None:
        is_found = decision is not None and outcome in ("found", "proposed")
        campaign = self._known(self._state.campaign)
        # Before the state: after a crash in between the line comes twice, which says more than none.
        evidence = {} if decision is None else decision.evidence
        await self._note(AuditEvent.CAMPAIGN_ENDED, f"campaign {campaign.name}: {outcome}: {reason}", evidence=evidence)
        self._metrics.record_tuner_campaign(outcome)
        kept = {"last_campaign_ns": self._now_ns()}
        if is_found:
            await self._enter(Phase.DECIDED, decision=decision, **kept)
        else:
            await self._rest(**kept)

    # Decided

    async def _act(self) -> None:
        campaign, decision = self._known(self._state.campaign), self._known(self._state.decision)
        trigger = f"tuner {campaign.name}"
        if decision.propose:
            try:
                await self._call(self._mutator.propose, decision.propose, trigger=trigger, evidence=decision.evidence)
                self._tell("proposed", proposal=decision.propose)
            except MutationRejectedError as error:
                self._tell("rejected", error=str(error))
            await self._enter(Phase.DECIDED, decision=msgspec.structs.replace(decision, propose={}))
            return
        if not decision.apply:
            await self._rest()
            return
        done = await self._entry_of(lambda entry: entry.trigger == trigger)
        if done is not None:  # a crash came between the change and this file
            await self._applied(done.mutation, {path: new for path, (_, new) in done.delta.items()})
            return
        in_file = (await self._call(self._settings_fn)).predictor_hash()
        if self._is_outdated(campaign) or in_file != campaign.config_hash:
            reason = "not applied: the settings, or the file, were changed meanwhile"
            await self._note(AuditEvent.PROBATION_ENDED, reason)
            self._tell("rejected", reason=reason)
            await self._rest()
            return
        if not self._is_leader_fn():
            return
        problems = await self._call(self._mutator.check, decision.apply)
        waited_s = (self._now_ns() - self._state.since_ns) / 1e9
        if problems and {each.path for each in problems} <= WAITED_FOR and waited_s < self._options.decided_timeout_s:
            text = "; ".join(map(str, problems))
            if text.partition(":")[0] != self._told_of_waiting:
                self._told_of_waiting = text.partition(":")[0]
                _log.info("tuner_mutation_waits", problems=text)
            return
        try:
            mutation = await self._call(
                self._mutator.apply, decision.apply, trigger=trigger, evidence=decision.evidence
            )
        except MutationRejectedError as error:
            self._tell("rejected", error=str(error))
            await self._rest()
            return
        self._crash_fn("mutation.applied")
        if mutation.outcome is not MutationOutcome.APPLIED:
            await self._rest()
            return
        await self._applied(mutation.id, {path: new for path, (_, new) in mutation.delta.items()})

    async def _applied(self, mutation: str, values: Mapping[str, Value]) -> None:
        campaign = self._known(self._state.campaign)
        before = dict(self._epochs.current.settings)
        if self._epochs.current.config_hash != campaign.config_hash:
            # After a crash the change may be in force already.
            entry = await self._entry_of(lambda each: each.mutation == mutation)
            assert entry is not None
            before |= {path: old for path, (old, _) in entry.delta.items()}
        change = ChangeRecord(
            mutation=mutation,
            values=dict(values),
            settings_before=before,
            hash_before=campaign.config_hash,
            hash_after=_hash_of({**before, **values}),
            applied_ns=self._now_ns(),
        )
        self._tell("applied", mutation=mutation, values=change.values)
        await self._enter(Phase.APPLIED, change=change, decision=None)

    # Applied

    async def _wait_for_force(self) -> None:
        change = self._known(self._state.change)
        current = self._epochs.current.config_hash
        if current == change.hash_after:
            await self._note(
                AuditEvent.PROBATION_STARTED,
                f"in force; compared with the former parameters on at most "
                f"{self._settings.tuning.probation_share:.0%} of the symbols",
                mutation=change.mutation,
            )
            await self._enter(Phase.PROBATION, probation=ProbationRecord(began_ns=self._now_ns()))
        elif await self._is_taken_back(change) or current != change.hash_before:
            await self._end_without_verdict(change)
        elif self._now_ns() - change.applied_ns > self._options.in_force_timeout_s * 1e9:
            await self._roll_back(change, "it did not come into force in time; see the log for why", {})

    # Probation

    async def _compare(self) -> None:
        change, probation = self._known(self._state.change), self._known(self._state.probation)
        if probation.verdict:
            await self._conclude(change, probation)
            return
        if self._epochs.current.config_hash != change.hash_after:
            await self._stop_tasks()
            await self._end_without_verdict(change)
            return
        if self._comparing is None:
            test = None
            if probation.test is not None:
                test = SequentialTest.from_dict(probation.test)
            self._probation = await self._probation_fn(change.settings_before, change.hash_after, test)
            self._comparing = asyncio.create_task(self._probation.run(), name="tuner.probation")
            self._saved_ns = self._now_ns()
            return
        running = self._probation
        assert running is not None
        if not math.isnan(running.ratio):
            self._metrics.record_probation(running.ratio)
        if self._comparing.done():
            comparing, self._comparing = self._comparing, None
            error = comparing.exception()
            if error is not None:
                _log.error("probation_interrupted", mutation=change.mutation, error=repr(error))
                self._retry_at_ns = self._now_ns() + int(_RETRY_S * 1e9)
            verdict = Verdict.GO_ON if error is not None else comparing.result()
            await self._save_probation(running, probation, verdict)
        elif self._now_ns() - self._saved_ns >= _SAVE_S * 1e9:
            await self._save_probation(running, probation, Verdict.GO_ON)

    async def _save_probation(self, running: RunningProbation, former: ProbationRecord, verdict: Verdict) -> None:
        self._saved_ns = self._now_ns()
        report = running.report
        record = ProbationRecord(
            began_ns=former.began_ns,
            test=running.saved(),
            verdict=verdict.value if verdict.is_final else "",
            report={} if report is None else _plain(report),
        )
        if not verdict.is_final and (record.test is None or record.test == former.test):
            return
        await self._enter(Phase.PROBATION, probation=record, since_ns=self._state.since_ns)
        self._crash_fn("probation.saved")

    async def _conclude(self, change: ChangeRecord, probation: ProbationRecord) -> None:
        verdict = Verdict(probation.verdict)
        evidence = {"verdict": verdict.value, "probation": probation.report}
        if verdict.rolls_back:
            reason = "worse than the former parameters on probation"
            await self._roll_back(change, f"{reason} ({verdict.value})", evidence)
            return
        entry = await self._entry_of(lambda each: each.mutation == change.mutation)
        if entry is None or entry.status in (EntryStatus.ROLLED_BACK, EntryStatus.RESTORED):
            await self._end_without_verdict(change)
            return
        if entry.status is not EntryStatus.KEPT:
            await self._call(
                self._mutator.keep, change.mutation, reason=f"passed its probation ({verdict.value})", evidence=evidence
            )
        self._crash_fn("mutation.kept")
        self._tell("kept", mutation=change.mutation, verdict=verdict.value)
        await self._rest()
        self._finished_fn()

    async def _roll_back(self, change: ChangeRecord, reason: str, evidence: Mapping[str, Any]) -> None:
        if not await self._is_taken_back(change):
            named = {"mutation": change.mutation, "trigger": "tuner probation", "evidence": evidence}
            try:
                await self._call(self._mutator.rollback, None, reason, **named)
            except ConfigMutationError as error:
                if type(error) is not ConfigMutationError:
                    raise
                # Nothing is left of the change: somebody has undone it by hand.
                await self._end_without_verdict(change)
                return
        self._crash_fn("mutation.rolled_back")
        self._tell("rolled_back", mutation=change.mutation, reason=reason)
        await self._rest()
        self._finished_fn()

    async def _end_without_verdict(self, change: ChangeRecord) -> None:
        reason = "ended without a verdict: the settings were changed or rolled back by somebody else meanwhile"
        await self._note(AuditEvent.PROBATION_ENDED, reason, mutation=change.mutation)
        self._tell("no_verdict", mutation=change.mutation, reason=reason)
        await self._rest()
        self._finished_fn()

    # Pieces

    async def _enter(self, phase: Phase, **changes: Any) -> None:
        """Be in ``phase``, with these changes, on the disk and then here."""
        changes.setdefault("since_ns", self._now_ns() if phase is not self.phase else self._state.since_ns)
        state = msgspec.structs.replace(self._state, phase=phase, **changes)
        await self._call(self._file.write, state)
        self._crash_fn(f"entered.{phase.value}")
        if phase is not self._state.phase:
            _log.info("tuner_state", state=phase.value, former=self._state.phase.value)
        self._state = state
        self._told_of_waiting = ""
        self._metrics.record_tuner_state(phase.value)

    async def _rest(self, **changes: Any) -> None:
        self._asked.discard(Trigger.DRIFT)  # seen under settings, or before a campaign, that are done with
        await self._enter(Phase.IDLE, campaign=None, decision=None, change=None, probation=None, **changes)

    async def _stop_tasks(self) -> None:
        tasks: list[asyncio.Task[Any]] = [each for each in (self._campaign, self._comparing) if each is not None]
        self._campaign = self._comparing = self._probation = None
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _entry_of(self, is_it_fn: Callable[[HistoryEntry], bool]) -> HistoryEntry | None:
        """The change in the mutator's history, the last one that fits."""
        entries = await self._call(self._mutator.history.entries)
        return next((entry for entry in reversed(entries) if is_it_fn(entry)), None)

    async def _is_taken_back(self, change: ChangeRecord) -> bool:
        entry = await self._entry_of(lambda each: each.mutation == change.mutation)
        return entry is not None and entry.status in (EntryStatus.ROLLED_BACK, EntryStatus.RESTORED)

    async def _note(
        self, event: AuditEvent, reason: str, *, mutation: str = "", evidence: Mapping[str, Any] | None = None
    ) -> None:
        _log.info(event.value.lower(), reason=reason, **({"mutation": mutation} if mutation else {}))
        await self._call(
            self._mutator.note, event, trigger="tuner", reason=reason, mutation=mutation, evidence=evidence or {}
        )

    def _tell(self, outcome: str, **fields: Any) -> None:
        self._metrics.record_tuner_mutation(outcome)
        _log.info(f"tuner_mutation_{outcome}", **fields)

    def _is_outdated(self, campaign: CampaignRecord) -> bool:
        return self._epochs.current.config_hash != campaign.config_hash

    async def _in_force(self) -> dict[str, Value]:
        """All settings but the secrets, the predictor's as the group has them."""
        settings = await self._call(self._settings_fn)
        values = {**dict(settings.items()), **self._epochs.current.settings}
        return {path: value for path, value in values.items() if path in SPECS and not SPECS[path].key.secret}

    def _known(self, part: _T | None) -> _T:
        assert part is not None, f"{self.phase}: the state lacks what the phase needs"
        return part


def _hash_of(values: Mapping[str, Value]) -> str:
    """The hash under which an epoch with these traced and structural settings stands."""
    known = {path: value for path, value in values.items() if path in SPECS}
    return parse_settings(document_of(known), source="the changed settings").predictor_hash()


def _plain(report: ShadowReport) -> dict[str, Any]:
    """A report as data, numbers that are not finite as texts."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: plain(each) for name, each in value.items()}
        if isinstance(value, Verdict):
            return value.value
        return str(value) if isinstance(value, float) and not math.isfinite(value) else value

    return plain(dataclasses.asdict(report))


async def _awaited(awaitable: Awaitable[Decision]) -> Decision:
    return await awaitable
