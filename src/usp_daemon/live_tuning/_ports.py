"""What the loop needs of the parts around it."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol

from usp_daemon.config import AuditEvent, Mutation, Problem, Value
from usp_daemon.tuning import SequentialTest, ShadowReport, Verdict

from ._request import CampaignProgress, CampaignRequest
from ._state import Decision


class Epochs(Protocol):
    """What is in force: the book of epochs."""

    @property
    def current(self) -> Any:
        """Has ``settings`` (traced and structural ones by path), ``config_hash`` and ``parameters``."""
        ...


class Mutator(Protocol):
    """The part of ``ConfigMutator`` that is used. All of it blocks."""

    def apply(
        self, changes: Mapping[str, Any], *, trigger: str, evidence: Mapping[str, Any] | None = None
    ) -> Mutation: ...
    def propose(
        self, changes: Mapping[str, Any], *, trigger: str, evidence: Mapping[str, Any] | None = None
    ) -> Mutation: ...
    def settle(self) -> str: ...
    def check(self, changes: Mapping[str, Any]) -> tuple[Problem, ...]: ...
    def keep(
        self, mutation: str | None = None, *, reason: str = "", evidence: Mapping[str, Any] | None = None
    ) -> Mutation: ...
    def rollback(
        self,
        to: str | None = None,
        reason: str = "",
        *,
        mutation: str | None = None,
        trigger: str = "rollback",
        evidence: Mapping[str, Any] | None = None,
    ) -> Mutation: ...
    def note(
        self,
        event: AuditEvent,
        *,
        trigger: str,
        reason: str,
        mutation: str = "",
        evidence: Mapping[str, Any] | None = None,
    ) -> None: ...
    @property
    def history(self) -> Any: ...


class RunningProbation(Protocol):
    """A comparison that runs."""

    @property
    def verdict(self) -> Verdict: ...
    @property
    def report(self) -> ShadowReport | None: ...
    @property
    def ratio(self) -> float: ...
    def saved(self) -> dict[str, Any] | None: ...
    async def run(self) -> Verdict: ...


class TunerMetrics(Protocol):
    """The part of ``ServiceMetrics`` that is used."""

    def record_tuner_state(self, state: str) -> None: ...
    def record_tuner_trials(self, num_trials: int, best: float | None) -> None: ...
    def record_tuner_campaign(self, outcome: str) -> None: ...
    def record_tuner_mutation(self, outcome: str) -> None: ...
    def record_probation(self, ratio: float) -> None: ...


CampaignFn = Callable[[CampaignRequest, Callable[[CampaignProgress], None]], Awaitable[Decision]]
# Former settings, the hash of the new ones, the test so far: the probation, ready to run.
ProbationFn = Callable[[Mapping[str, Value], str, SequentialTest | None], Awaitable[RunningProbation]]
