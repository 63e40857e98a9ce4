"""Stub, replaced at the merge."""

import dataclasses
import enum
import json
import os


class ReloadOutcome(enum.StrEnum):
    APPLIED = "applied"
    UNCHANGED = "unchanged"
    REFUSED = "refused"
    FAILED = "failed"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReloadReport:
    time_s: float
    trigger: str
    outcome: ReloadOutcome
    epoch: int
    content_hash: str
    changed: dict
    problems: tuple
    seconds: float

    def write(self, path):
        os.makedirs(path, exist_ok=True)
        open(os.path.join(path, "last_reload.json"), "w").write(json.dumps(dataclasses.asdict(self)))


class RunningDaemon: ...
