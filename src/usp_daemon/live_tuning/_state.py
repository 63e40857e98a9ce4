"""Where the loop stands, on the disk, so that a restart goes on from there."""

import contextlib
import enum
import os
import pathlib
from typing import Any

import msgspec

from usp_daemon.config import Value

FORMAT = 1
STATE_FILE = "tuner.json"


class Phase(enum.StrEnum):
    """What the tuner is at."""

    IDLE = "idle"  # waits for a trigger
    CAMPAIGN = "campaign"  # searches
    DECIDED = "decided"  # has found something, and waits until it may be applied
    APPLIED = "applied"  # the file is changed; waits until the change is in force
    PROBATION = "probation"  # compares with a shadow under the former parameters


class Trigger(enum.StrEnum):
    """What led to a campaign."""

    SCHEDULE = "schedule"
    DRIFT = "drift"
    OPERATOR = "operator"


class CampaignRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A campaign: its name in the storage, what led to it, and the settings that it is to improve, by their hash."""

    name: str
    trigger: Trigger
    seed: int
    started_ns: int
    config_hash: str


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """What a campaign came to: changes to be applied, changes to be reported, with what speaks for them.

    Both by dotted path, empty for none. ``evidence`` goes into the audit log.
    """

    apply: dict[str, Value] = {}
    propose: dict[str, Value] = {}
    reason: str = ""
    num_trials: int = 0
    best_value: float | None = None
    evidence: dict[str, Any] = {}


class ChangeRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A change that was made: its name in the audit log, and the settings before it, for the shadow."""

    mutation: str
    values: dict[str, Value]
    settings_before: dict[str, Value]
    hash_before: str
    hash_after: str
    applied_ns: int


class ProbationRecord(msgspec.Struct, frozen=True, kw_only=True):
    """How far a probation is: the state of the sequential test, and what it was last seen to say."""

    began_ns: int
    test: dict[str, Any] | None = None
    verdict: str = ""
    report: dict[str, Any] = {}


class TunerState(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that the loop must not forget."""

    format: int = FORMAT
    phase: Phase = Phase.IDLE
    since_ns: int = 0  # of the phase
    last_campaign_ns: int = 0  # end of the last one, or the first start
    num_campaigns: int = 0
    campaign: CampaignRecord | None = None
    decision: Decision | None = None
    change: ChangeRecord | None = None
    probation: ProbationRecord | None = None


class StateFile:
    """``tuner.json`` in the state directory; written whole or not at all."""

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self.path = pathlib.Path(directory) / STATE_FILE

    def read(self) -> TunerState | None:
        """What was written last; None where there is nothing, or nothing that this version understands.

        What cannot be read is put aside: the loop then begins anew, and changes nothing that is in force.
        """
        try:
            content = self.path.read_bytes()
        except FileNotFoundError:
            return None
        try:
            state = msgspec.json.decode(content, type=TunerState)
            if state.format != FORMAT:
                raise ValueError(f"format {state.format}")
        except (ValueError, msgspec.MsgspecError):
            with contextlib.suppress(OSError):
                os.replace(self.path, self.path.with_suffix(".damaged"))
            return None
        return state

    def write(self, state: TunerState) -> None:
        """Durable when it returns. Raises ``OSError``."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_name(f".{self.path.name}.usp-tmp")
        with temporary.open("wb") as file:
            file.write(msgspec.json.format(msgspec.json.encode(state), indent=2) + b"\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, self.path)
        directory = os.open(self.path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
