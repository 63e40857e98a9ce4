"""The records that leave the daemon, and the words they use. The JSON Schemas in ``docs/schemas`` come from here.

Times are Unix nanoseconds, values are in the symbol's own units, and no number is ever NaN or infinite. A consumer must
ignore fields it does not know: fields may be added within one ``schema_version``, never renamed or removed.
"""

import enum
from typing import Annotated

import msgspec
from msgspec import Meta

SCHEMA_VERSION = 1

# Labels of the integers and bits that the predictor returns, in the order of its enumerations. They are repeated here
# because a consumer of records needs no predictor; tests/wire holds the two lists together.
KERNEL_NAMES: tuple[str, ...] = ("rkhs", "deep_galerkin", "levy_sde", "signature")
MODE_LABELS: tuple[str, ...] = ("Standard", "Robust", "Emergency")
SOLVER_SCHEMES: tuple[str, ...] = ("explicit", "mixed", "implicit")
GATE_REASON_LABELS: tuple[str, ...] = (
    "not_finite",
    "future",
    "too_old",
    "duplicate",
    "out_of_order",
    "outlier",
    "frozen",
    "stale",
    "sparse",
    "rebased",
)
RESULT_CODE_LABELS: tuple[str, ...] = (
    "kernel_a_non_finite",
    "kernel_b_non_finite",
    "kernel_c_non_finite",
    "kernel_d_non_finite",
    "sinkhorn_not_converged",
    "sinkhorn_log_domain",
    "weights_reset",
    "learner_reset",
    "warming_up",
)
ALARM_KIND_LABELS: tuple[str, ...] = ("level_up", "level_down", "scale_up", "scale_down", "dynamics", "jump")
# Published name of each flag, and the predictor's column that holds it.
FLAG_COLUMNS: tuple[tuple[str, str], ...] = (
    ("degraded", "degraded_inference_mode"),
    ("emergency", "emergency_mode"),
    ("regime_changed", "regime_change_detected"),
    ("mode_collapse", "mode_collapse_warning"),
    ("warming_up", "warming_up"),
    ("reference_ready", "reference_ready"),
)
FLAG_LABELS: tuple[str, ...] = tuple(label for label, _ in FLAG_COLUMNS)


def labels_of_bits(bits: int, labels: tuple[str, ...]) -> list[str]:
    """Names of the bits set in ``bits``, lowest first; a bit without a name reads ``bit_<index>``."""
    names = [label for index, label in enumerate(labels) if bits >> index & 1]
    names += [f"bit_{index}" for index in range(len(labels), bits.bit_length()) if bits >> index & 1]
    return names


class DeadLetterReason(enum.StrEnum):
    """Why a record got no forecast."""

    RECORD_TOO_LARGE = "record_too_large"
    EMPTY_RECORD = "empty_record"
    NOT_UTF8 = "not_utf8"
    NOT_JSON = "not_json"
    NOT_AN_OBJECT = "not_an_object"
    WRONG_NUMBER_OF_COLUMNS = "wrong_number_of_columns"
    MISSING_FIELD = "missing_field"
    SYMBOL_INVALID = "symbol_invalid"
    TIMESTAMP_INVALID = "timestamp_invalid"
    TIMESTAMP_NEGATIVE = "timestamp_negative"
    TIMESTAMP_OUT_OF_RANGE = "timestamp_out_of_range"
    TIME_UNIT_MISMATCH = "time_unit_mismatch"
    VALUE_NOT_A_NUMBER = "value_not_a_number"
    SYMBOL_CAPACITY = "symbol_capacity"
    NON_FINITE_OUTPUT = "non_finite_output"


Timestamp = Annotated[int, Meta(ge=0, le=2**63 - 1, description="Unix time in nanoseconds")]
Symbol = Annotated[str, Meta(min_length=1, description="Name of the series")]
Sequence_ = Annotated[int, Meta(ge=0, description="Accepted ticks of this symbol up to and including this one")]
ConfigHash = Annotated[str, Meta(description="Digest of the configuration in force")]
Version = Annotated[int, Meta(ge=1, description="Version of this record's layout")]
NonNegative = Annotated[float, Meta(ge=0.0)]


class KernelValues(msgspec.Struct):
    """One number for each of the four kernels, by name."""

    rkhs: float
    deep_galerkin: float
    levy_sde: float
    signature: float


class Intervals(msgspec.Struct):
    """Prediction intervals of the next value as ``[lower, upper]``, by nominal coverage in percent."""

    p80: Annotated[tuple[float, float], Meta(description="80 % interval")] = msgspec.field(name="80")
    p95: Annotated[tuple[float, float], Meta(description="95 % interval")] = msgspec.field(name="95")


class Prediction(msgspec.Struct):
    """What the predictor says after one tick: the forecast of the next value and the state of the machinery."""

    schema_version: Version
    symbol: Symbol
    ts: Timestamp
    seq: Sequence_
    value: Annotated[float | None, Meta(description="Value of the tick; null when it was missing or not finite")]
    accepted: Annotated[bool, Meta(description="False when the gate refused the tick; the forecast then stands")]
    prediction: Annotated[float, Meta(description="Forecast of the next value")]
    scale: Annotated[float, Meta(ge=0.0, description="Robust standard deviation of the forecast error")]
    intervals: Intervals
    weights: Annotated[KernelValues, Meta(description="Weights of the kernels in this forecast; they sum to 1")]
    kernel_predictions: Annotated[KernelValues, Meta(description="Each kernel's own forecast of the next value")]
    epsilon: Annotated[float, Meta(ge=0.0, description="Entropic regularisation used in the fusion, dimensionless")]
    h_t: Annotated[float, Meta(ge=0.0, description="Adaptive threshold of the change detector, dimensionless")]
    cusum_up: Annotated[float, Meta(ge=0.0, description="Upward CUSUM statistic, dimensionless")]
    cusum_down: Annotated[float, Meta(ge=0.0, description="Downward CUSUM statistic, dimensionless")]
    grace_counter: Annotated[int, Meta(ge=0, description="Ticks left in which no alarm can be raised")]
    kurtosis: Annotated[float, Meta(description="Kurtosis of the recent innovations (3 for a Gaussian)")]
    holder_exponent: Annotated[float, Meta(description="Estimated Hölder exponent of the path")]
    dgm_entropy: Annotated[float, Meta(description="Entropy of the Deep Galerkin value function in nats")]
    free_energy: Annotated[float, Meta(description="Free energy of the weights, dimensionless")]
    ema_variance: Annotated[float, Meta(ge=0.0, description="EWMA variance of innovations relative to its slow scale")]
    forecast_error: Annotated[float, Meta(description="Error of the previous forecast in units of its scale")]
    season_length: Annotated[int, Meta(ge=0, description="Season found, in ticks; 0 when none was found")]
    missed_periods: Annotated[int, Meta(ge=0, description="Periods of the cadence since the last accepted tick")]
    mode: Annotated[str, Meta(description="Operating mode: Standard, Robust or Emergency")]
    flags: Annotated[list[str], Meta(description=f"Conditions that hold, of: {', '.join(FLAG_LABELS)}")]
    gate_reasons: Annotated[list[str], Meta(description=f"What the gate found, of: {', '.join(GATE_REASON_LABELS)}")]
    result_codes: Annotated[list[str], Meta(description=f"Numerical incidents, of: {', '.join(RESULT_CODE_LABELS)}")]
    config_hash: ConfigHash
    quantiles: Annotated[
        list[float] | None, Meta(description="Quantiles of the next value at 0.025, 0.05 ... 0.975, when asked for")
    ] = None


class Alarm(msgspec.Struct):
    """A regime change that the detector declared on one tick."""

    schema_version: Version
    symbol: Symbol
    ts: Timestamp
    seq: Sequence_
    kind: Annotated[str, Meta(description=f"What changed, the first that applies of: {', '.join(ALARM_KIND_LABELS)}")]
    kinds: Annotated[list[str], Meta(min_length=1, description="Every kind that crossed its threshold on this tick")]
    value: Annotated[float | None, Meta(description="Value of the tick")]
    statistic: Annotated[float, Meta(description="Statistic that crossed, dimensionless")]
    threshold: Annotated[float, Meta(description="Threshold that it crossed, dimensionless")]
    kurtosis: Annotated[float, Meta(description="Kurtosis of the recent innovations (3 for a Gaussian)")]
    start_ticks_ago: Annotated[int, Meta(ge=0, description="Estimated start of the change, in accepted ticks ago")]
    start_seq: Annotated[int, Meta(ge=0, description="Estimated start of the change as a sequence number")]
    grace_steps: Annotated[int, Meta(ge=0, description="Ticks from here on in which no further alarm can be raised")]
    config_hash: ConfigHash


class Header(msgspec.Struct):
    """One header of the original record; the value is base64."""

    name: str
    value: str


class DeadLetter(msgspec.Struct):
    """A record that got no forecast, with the reason and its original bytes."""

    schema_version: Version
    reason: Annotated[DeadLetterReason, Meta(description="Machine-readable reason")]
    message: Annotated[str, Meta(description="What was expected and what came")]
    source: Annotated[str, Meta(description="Topic or file that the record came from")]
    partition: Annotated[int, Meta(ge=0, description="Partition of the topic; 0 for a file")]
    offset: Annotated[int, Meta(ge=0, description="Offset in the partition, or line number in the file, from 1")]
    encoding: Annotated[str, Meta(pattern="^(utf-8|base64)$", description="How the original is written here")]
    original: Annotated[str, Meta(description="The record's bytes: as text when they are UTF-8, else in base64")]
    original_size_bytes: Annotated[int, Meta(ge=0, description="Size of the whole original record")]
    truncated: Annotated[bool, Meta(description="True when only the beginning of the original is kept")]
    key: Annotated[str | None, Meta(description="The record's key in base64")] = None
    headers: Annotated[list[Header], Meta(description="The record's headers")] = []
