"""What ``/status.json`` says, as records. The JSON Schema in ``docs/schemas`` comes from here.

Times are Unix nanoseconds, durations seconds, values in the symbol's own units. A number that is not known or not
finite is null. Fields may be added within one ``schema_version``, never renamed or removed.
"""

from typing import Annotated

import msgspec
from msgspec import Meta

from usp_daemon.wire import ALARM_KIND_LABELS, FLAG_LABELS, GATE_REASON_LABELS, KERNEL_NAMES, MODE_LABELS

SCHEMA_VERSION = 1

Ns = Annotated[int, Meta(description="Unix time in nanoseconds")]
Count = Annotated[int, Meta(ge=0)]
Number = float | None
Plain = str | float | int | bool


class Service(msgspec.Struct, kw_only=True):
    """Who answers."""

    kind: Annotated[str, Meta(description="run for the service, demo for a replay of the bundled series")]
    instance: Annotated[str, Meta(description="Name of this replica")]
    group: Annotated[str, Meta(description="Consumer group; empty where there is none")]
    version: str
    versions: Annotated[dict[str, str], Meta(description="Versions of what it computes with")]
    device: Annotated[str, Meta(description="Empty until the predictor is ready")] = ""
    started_ns: Ns = 0
    uptime_s: float = 0.0


class Health(msgspec.Struct, kw_only=True):
    """The verdicts of /livez and /readyz."""

    live: bool
    ready: bool
    reasons: Annotated[list[str], Meta(description="Each thing that is not well, as a sentence")]


class Totals(msgspec.Struct, kw_only=True):
    """Counts since the start, over all symbols, of this replica."""

    predictions: Count
    rejected: Annotated[int, Meta(ge=0, description="Ticks that the gate refused; they are answered too")]
    rejected_by_reason: dict[str, Count]
    alarms: Annotated[int, Meta(ge=0, description="Ticks on which a regime change was declared")]
    alarms_by_kind: dict[str, Count]
    dead_letters: Count
    dead_letters_by_reason: dict[str, Count]
    symbols: Annotated[int, Meta(ge=0, description="Symbols of the partitions that are held")]
    watched: Annotated[int, Meta(ge=0, description="Symbols of which this document has details")]
    watched_limit: Annotated[int, Meta(ge=0, description="http.status_symbols")]
    ticks_per_s: Annotated[float, Meta(ge=0.0, description="Mean over the last ten whole seconds")]
    ticks_by_second: Annotated[list[Count], Meta(description="The last 60 whole seconds, oldest first")]


class Snapshot(msgspec.Struct, kw_only=True):
    """The last snapshot of a partition that this replica wrote."""

    time_ns: Ns
    seconds: float
    size_bytes: Count


class Partition(msgspec.Struct, kw_only=True):
    """One partition that is held, or was lost and not yet given up."""

    topic: str
    partition: int
    state: Annotated[str, Meta(description="ASSIGNED, RESTORING, REPLAYING, RUNNING, REVOKING, LOST or FAILED")]
    since_ns: Annotated[int, Meta(description="When it entered that state")]
    lag_records: Annotated[int | None, Meta(description="Records that are not answered yet; null until known")] = None
    lag_s: Annotated[float | None, Meta(description="Age of the oldest of them that was read")] = None
    queued: Count = 0
    paused: bool = False
    symbols: Count = 0
    predictions: Count = 0
    replay_left: Annotated[int, Meta(ge=0, description="Records still to be replayed before it runs")] = 0
    last_answer_ns: Annotated[int | None, Meta(description="When answers of it were last committed")] = None
    snapshot: Snapshot | None = None
    snapshot_error: Annotated[str, Meta(description="Why the last attempt at a snapshot failed")] = ""


class Change(msgspec.Struct, kw_only=True):
    """One key that differs; a secret's values are hidden."""

    path: str
    old: Plain | None
    new: Plain | None
    parameter_class: Annotated[str, Meta(description="traced, structural or locked")]


class Reload(msgspec.Struct, kw_only=True):
    """What came of the last change of the configuration."""

    time_ns: Ns
    outcome: Annotated[str, Meta(description="applied, unchanged, refused or failed")]
    seconds: float
    problems: list[str]


class Config(msgspec.Struct, kw_only=True):
    """The configuration that new records are answered under."""

    epoch: Annotated[int, Meta(ge=0, description="Number of the configuration epoch; 0 where there are none")]
    config_hash: Annotated[str, Meta(description="Predictor hash, as in every record")]
    adopted_ns: Ns
    changes_to_defaults: list[Change]
    changes_to_last_epoch: list[Change]
    last_reload: Reload | None = None


class Tuner(msgspec.Struct, kw_only=True):
    """What the tuner of this replica is at."""

    mode: Annotated[str, Meta(description="off, propose or autonomous")]
    phase: Annotated[str, Meta(description="off, idle, campaign, decided, applied or probation")]
    leads: Annotated[bool, Meta(description="Whether this replica tunes for the group")] = False
    since_ns: Ns = 0
    trigger: str = ""
    trials: Count = 0
    trials_total: Count = 0
    best_ratio: Annotated[
        float | None,
        Meta(description="Best score of the campaign over that of the settings in force; below 1 is better"),
    ] = None
    campaigns: Count = 0
    last_campaign_ns: Ns = 0
    change: Annotated[dict[str, Plain], Meta(description="Values that are applied or on probation, by path")] = {}
    verdict: Annotated[str, Meta(description="What the probation says so far")] = ""


class AlarmEvent(msgspec.Struct, kw_only=True):
    """A regime change that was declared."""

    symbol: str
    partition: int
    ts: Annotated[int, Meta(description="Time of the tick, Unix nanoseconds")]
    seq: Count
    kinds: Annotated[list[str], Meta(description=f"Of: {', '.join(ALARM_KIND_LABELS)}")]
    statistic: Number
    threshold: Number
    start_seq: Annotated[int, Meta(ge=0, description="Estimated start of the change as a sequence number")]
    start_ts: Annotated[int | None, Meta(description="Its time; null where it lies before the history that is kept")]


class History(msgspec.Struct, kw_only=True):
    """The last ticks of a symbol, oldest first, all lists equally long; the forecast of each row was made with its
    tick, for the next one. Values are rounded to a hundred-thousandth of their range.
    """

    ts: list[Ns]
    value: list[Number]
    prediction: list[Number]
    lower_80: list[Number]
    upper_80: list[Number]
    lower_95: list[Number]
    upper_95: list[Number]
    alarm: Annotated[list[int], Meta(description="Bits of the kinds of alarm declared on the tick, 0 for none")]


class SymbolStatus(msgspec.Struct, kw_only=True):
    """One watched symbol after its last tick."""

    id: Annotated[int, Meta(ge=0, description="For history=; it may name another symbol later")]
    symbol: str
    partition: int
    ts: Ns
    seq: Count
    seen: Annotated[int, Meta(ge=0, description="Ticks since it is watched")]
    value: Number
    accepted: bool
    prediction: Number
    scale: Number
    interval_80: tuple[Number, Number]
    interval_95: tuple[Number, Number]
    weights: Annotated[list[float], Meta(description=f"In the order {', '.join(KERNEL_NAMES)}")]
    mode: Annotated[str, Meta(description=f"Of: {', '.join(MODE_LABELS)}")]
    flags: Annotated[list[str], Meta(description=f"Of: {', '.join(FLAG_LABELS)}")]
    gate_reasons: Annotated[list[str], Meta(description=f"Of: {', '.join(GATE_REASON_LABELS)}")]
    h_t: Number
    epsilon: Number
    grace_counter: Count
    cusum_up: Number
    cusum_down: Number
    kurtosis: Number
    holder_exponent: Number
    forecast_error: Number
    season_length: Count
    alarms: Annotated[int, Meta(ge=0, description="Alarms since it is watched")]
    last_alarm: AlarmEvent | None
    history: Annotated[History | None, Meta(description="null where history= left it out")] = None


class Status(msgspec.Struct, kw_only=True):
    """Everything that the status page shows."""

    schema_version: Annotated[int, Meta(ge=1)] = SCHEMA_VERSION
    generated_ns: Ns
    service: Service
    health: Health
    totals: Totals
    partitions: list[Partition]
    config: Config | None
    tuner: Tuner | None
    recent_alarms: Annotated[list[AlarmEvent], Meta(description="Newest first, of all symbols")]
    kernels: Annotated[list[str], Meta(description="Names of the weights")] = msgspec.field(
        default_factory=lambda: list(KERNEL_NAMES)
    )
    symbols: list[SymbolStatus]
