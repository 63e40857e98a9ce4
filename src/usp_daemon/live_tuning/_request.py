"""What the daemon tells the campaign's process, and what it hears back: one line of JSON each."""

import msgspec

from usp_daemon.config import Settings, Value, document_of, parse_settings

from ._state import Decision


class CampaignRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A campaign to run, or to go on with.

    ``values`` are all settings in force but the secrets, ``ticks`` the recorder's directory, ``history`` the file in
    which the campaign keeps what it has read of it: a later run of the same ``name`` goes on with the same ticks.
    ``applies`` and ``proposes`` name the classes of parameters, "traced" and "structural", that may be changed, and of
    which a change is only reported.
    """

    name: str
    seed: int
    values: dict[str, Value]
    ticks: str
    history: str
    applies: tuple[str, ...]
    proposes: tuple[str, ...]
    nice: int = 19

    def settings(self) -> Settings:
        """The settings in force. Raises ``ConfigError``."""
        return parse_settings(document_of(self.values), source=f"campaign {self.name}")


class CampaignProgress(msgspec.Struct, frozen=True, kw_only=True):
    """After a batch: trials that are done, and the best value so far, None before there is any."""

    num_trials: int
    num_total: int
    best_value: float | None = None


class CampaignMessage(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the process: that it may be suspended from now on, progress, the decision at the end, or why there
    is none.
    """

    is_ready: bool = False
    progress: CampaignProgress | None = None
    decision: Decision | None = None
    error: str = ""


class CampaignFailedError(Exception):
    """A campaign came to no decision; the message says why."""
