"""Results out: columns of a batch into one JSON record a tick.

The loop below is the busiest Python in the daemon. Columns become Python lists once a batch, bit masks become lists of
names through a cache, and one comprehension builds the dictionaries that orjson writes.
"""

import base64
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from ._batches import DeadLetterEntry, EncodedRecords
from ._records import (
    ALARM_KIND_LABELS,
    FLAG_COLUMNS,
    FLAG_LABELS,
    GATE_REASON_LABELS,
    MODE_LABELS,
    RESULT_CODE_LABELS,
    SCHEMA_VERSION,
    labels_of_bits,
)

Columns = Mapping[str, NDArray[Any]]

OWN_HEADERS = "usp-"  # headers that begin so are this daemon's
REASON_HEADER = "usp-reason"
MAX_KEPT_HEADER_BYTES = 4_096

# Columns whose numbers are published as they are; a row in which one of them is not finite must not leave the daemon.
FLOAT_COLUMNS: tuple[str, ...] = (
    "predicted_next",
    "scale",
    "lower_80",
    "upper_80",
    "lower_95",
    "upper_95",
    "sinkhorn_epsilon",
    "adaptive_threshold",
    "cusum_drift",
    "cusum_drift_down",
    "kurtosis",
    "holder_exponent",
    "dgm_entropy",
    "free_energy",
    "ema_variance",
    "forecast_error",
)
COUNT_COLUMNS: tuple[str, ...] = ("sequence", "grace_counter", "season_length", "missed_periods")
KERNEL_COLUMNS: tuple[str, ...] = ("weights", "kernel_predictions")
ALARM_COLUMNS: tuple[str, ...] = ("alarm_statistic", "alarm_threshold")


def rows_with_finite_output(columns: Columns) -> NDArray[np.bool_]:
    """For each row, whether every number that would be published is finite: bool of shape (n,)."""
    finite = np.isfinite(columns[FLOAT_COLUMNS[0]])
    for name in (*FLOAT_COLUMNS[1:], *ALARM_COLUMNS):
        finite &= np.isfinite(columns[name])
    for name in KERNEL_COLUMNS:
        finite &= np.isfinite(columns[name]).all(axis=1)
    return finite


class ResultEncoder:
    """Encodes results of one configuration. ``include_quantiles`` adds the quantile grid to every prediction."""

    def __init__(self, *, config_hash: str, include_quantiles: bool = False) -> None:
        self.config_hash = config_hash
        self.include_quantiles = include_quantiles

    def predictions(
        self, symbols: Sequence[str], timestamps_ns: NDArray[np.int64], values: NDArray[np.float64], columns: Columns
    ) -> list[bytes]:
        """One record per row, in order; every row's output must be finite, see :func:`rows_with_finite_output`."""
        config_hash = self.config_hash
        dumps = orjson.dumps
        # Each dictionary is dropped as soon as it is written: thousands alive at once would wake the garbage collector.
        records = (
            {
                "schema_version": SCHEMA_VERSION,
                "symbol": symbol,
                "ts": ts,
                "seq": seq,
                "value": value,
                "accepted": accepted,
                "prediction": prediction,
                "scale": scale,
                "intervals": {"80": (lower_80, upper_80), "95": (lower_95, upper_95)},
                "weights": {"rkhs": w_a, "deep_galerkin": w_b, "levy_sde": w_c, "signature": w_d},
                "kernel_predictions": {"rkhs": k_a, "deep_galerkin": k_b, "levy_sde": k_c, "signature": k_d},
                "epsilon": epsilon,
                "h_t": h_t,
                "cusum_up": cusum_up,
                "cusum_down": cusum_down,
                "grace_counter": grace,
                "kurtosis": kurtosis,
                "holder_exponent": holder,
                "dgm_entropy": entropy,
                "free_energy": free_energy,
                "ema_variance": ema_variance,
                "forecast_error": forecast_error,
                "season_length": season,
                "missed_periods": missed,
                "mode": mode,
                "flags": flags,
                "gate_reasons": reasons,
                "result_codes": codes,
                "config_hash": config_hash,
            }
            for (
                symbol,
                ts,
                value,
                (
                    prediction,
                    scale,
                    lower_80,
                    upper_80,
                    lower_95,
                    upper_95,
                    epsilon,
                    h_t,
                    cusum_up,
                    cusum_down,
                    kurtosis,
                    holder,
                    entropy,
                    free_energy,
                    ema_variance,
                    forecast_error,
                    w_a,
                    w_b,
                    w_c,
                    w_d,
                    k_a,
                    k_b,
                    k_c,
                    k_d,
                ),
                (seq, grace, season, missed),
                accepted,
                mode,
                flags,
                reasons,
                codes,
            ) in zip(
                symbols,
                timestamps_ns.tolist(),
                _values_or_null(values),
                _float_rows(columns),
                _count_rows(columns),
                columns["accepted"].astype(bool).tolist(),
                map(_mode_label, columns["mode"].tolist()),
                map(_flag_names, _flag_bits(columns)),
                map(_reason_names, columns["gate_reasons"].tolist()),
                map(_code_names, columns["result_code"].tolist()),
                strict=True,
            )
        )
        if self.include_quantiles:
            quantiles = columns["quantiles"].tolist()
            return [dumps(record | {"quantiles": row}) for record, row in zip(records, quantiles, strict=True)]
        return [dumps(record) for record in records]

    def alarms(
        self, symbols: Sequence[str], timestamps_ns: NDArray[np.int64], values: NDArray[np.float64], columns: Columns
    ) -> tuple[list[int], list[bytes]]:
        """The rows on which a regime change was declared, and one record for each."""
        rows = np.flatnonzero(columns["alarm_kind"] != 0).tolist()
        records = []
        for row in rows:
            kinds = labels_of_bits(int(columns["alarm_kind"][row]), ALARM_KIND_LABELS)
            sequence = int(columns["sequence"][row])
            ticks_ago = max(int(columns["alarm_start_ticks_ago"][row]), 0)
            value = float(values[row])
            record = {
                "schema_version": SCHEMA_VERSION,
                "symbol": symbols[row],
                "ts": int(timestamps_ns[row]),
                "seq": sequence,
                "kind": kinds[0],
                "kinds": kinds,
                "value": value if np.isfinite(value) else None,
                "statistic": float(columns["alarm_statistic"][row]),
                "threshold": float(columns["alarm_threshold"][row]),
                "kurtosis": float(columns["kurtosis"][row]),
                "start_ticks_ago": ticks_ago,
                "start_seq": max(sequence - ticks_ago, 0),
                "grace_steps": int(columns["grace_counter"][row]),
                "config_hash": self.config_hash,
            }
            records.append(orjson.dumps(record))
        return rows, records


def encode_dead_letters(entries: Sequence[DeadLetterEntry]) -> EncodedRecords:
    """One record per entry, in order, keyed as the original was, with the reason and the original's headers."""
    return EncodedRecords(
        keys=[entry.key for entry in entries],
        values=[_dead_letter(entry) for entry in entries],
        origins=[(entry.source, entry.partition, entry.offset) for entry in entries],
        headers=[_dead_letter_headers(entry) for entry in entries],
    )


def shorten_dead_letter(record: bytes) -> bytes | None:
    """The dead letter with half as much of the original and ``truncated`` set; None when there is nothing left to cut.

    For a broker that refuses the whole: the original stays in the input, at the offset that the record names.
    """
    content = orjson.loads(record)
    original = content["original"]
    if not original:
        return None
    # base64 stays decodable in whole groups of four
    half = len(original) // 2 if content["encoding"] == "utf-8" else len(original) // 8 * 4
    return orjson.dumps(content | {"original": original[:half], "truncated": True})


def _dead_letter_headers(entry: DeadLetterEntry) -> list[tuple[str, bytes]]:
    """All of the original's headers stand in the record itself; those that are kept outside are for tracing."""
    headers = [(REASON_HEADER, entry.reason.value.encode())]
    kept = [(name, value) for name, value in entry.headers if not name.startswith(OWN_HEADERS)]
    if sum(len(name.encode("utf-8", "replace")) + len(value or b"") for name, value in kept) <= MAX_KEPT_HEADER_BYTES:
        headers += kept
    return headers


def _dead_letter(entry: DeadLetterEntry) -> bytes:
    try:
        encoding, original = "utf-8", entry.original.decode("utf-8")
    except UnicodeDecodeError:
        encoding, original = "base64", base64.b64encode(entry.original).decode("ascii")
    record: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "reason": entry.reason.value,
        # A message may quote what came, and what came may hold half of a surrogate pair, which is not UTF-8.
        "message": entry.message.encode("utf-8", "replace").decode("utf-8"),
        "source": entry.source.encode("utf-8", "replace").decode("utf-8"),
        "partition": entry.partition,
        "offset": entry.offset,
        "encoding": encoding,
        "original": original,
        "original_size_bytes": entry.original_size_bytes,
        "truncated": len(entry.original) < entry.original_size_bytes,
    }
    if entry.key is not None:
        record["key"] = base64.b64encode(entry.key).decode("ascii")
    if entry.headers:
        record["headers"] = [
            {"name": name, "value": base64.b64encode(value).decode("ascii")} for name, value in entry.headers
        ]
    return orjson.dumps(record)


def _values_or_null(values: NDArray[np.float64]) -> list[float | None]:
    finite = np.isfinite(values)
    if finite.all():
        return values.tolist()
    return [value if good else None for value, good in zip(values.tolist(), finite.tolist(), strict=True)]


def _float_rows(columns: Columns) -> list[list[float]]:
    parts = [columns[name][:, None] for name in FLOAT_COLUMNS] + [columns[name] for name in KERNEL_COLUMNS]
    return np.concatenate([np.asarray(part, dtype=np.float64) for part in parts], axis=1).tolist()


def _count_rows(columns: Columns) -> list[list[int]]:
    return np.stack([np.asarray(columns[name], dtype=np.int64) for name in COUNT_COLUMNS], axis=1).tolist()


def _flag_bits(columns: Columns) -> list[int]:
    bits = np.zeros(len(columns["accepted"]), dtype=np.int64)
    for index, (_, name) in enumerate(FLAG_COLUMNS):
        bits |= columns[name].astype(np.int64) << index
    return bits.tolist()


def _mode_label(mode: int) -> str:
    return MODE_LABELS[mode] if 0 <= mode < len(MODE_LABELS) else f"mode_{mode}"


# The cached lists are shared between records; orjson only reads them.
@functools.lru_cache(maxsize=4096)
def _flag_names(bits: int) -> list[str]:
    return labels_of_bits(bits, FLAG_LABELS)


@functools.lru_cache(maxsize=4096)
def _reason_names(bits: int) -> list[str]:
    return labels_of_bits(bits, GATE_REASON_LABELS)


@functools.lru_cache(maxsize=4096)
def _code_names(bits: int) -> list[str]:
    return labels_of_bits(bits, RESULT_CODE_LABELS)
