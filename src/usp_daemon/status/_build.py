"""From the board as it was at one moment to the document; plain work that any thread may do."""

import dataclasses
import functools
import math
from collections.abc import Collection

import msgspec
import numpy as np
from numpy.typing import NDArray

from usp_daemon.wire import FLAG_COLUMNS, FLAG_LABELS, GATE_REASON_LABELS, MODE_LABELS, TopicPartition, labels_of_bits

from ._board import SECONDS, BoardView
from ._document import Config, Health, History, Service, Status, SymbolStatus, Totals, Tuner
from ._memory import SymbolMemory

_RATE_SECONDS = 10


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What the document says beside the board."""

    service: Service
    health: Health
    config: Config | None = None
    tuner: Tuner | None = None


def build_status(view: BoardView, facts: Facts, *, history: Collection[int] | None = None) -> Status:
    """The document; ``history`` names the slots whose last ticks stand in it, None for all."""
    rate = view.ticks_by_second[SECONDS - _RATE_SECONDS :]
    symbols = [
        _symbol(view, slot, name, owner, with_history=history is None or slot in history)
        for slot, (name, owner) in enumerate(zip(view.names, view.owners, strict=True))
        if owner is not None and view.memory.seen[slot]
    ]
    totals = Totals(
        predictions=view.counts["predictions"],
        rejected=view.counts["rejected"],
        rejected_by_reason=dict(view.by_reason["rejected"]),
        alarms=view.counts["alarms"],
        alarms_by_kind=dict(view.by_reason["alarms"]),
        dead_letters=view.counts["dead_letters"],
        dead_letters_by_reason=dict(view.by_reason["dead_letters"]),
        symbols=view.counts["symbols"],
        watched=len(symbols),
        watched_limit=view.watched_limit,
        ticks_per_s=sum(rate) / len(rate),
        ticks_by_second=list(view.ticks_by_second),
    )
    return Status(
        generated_ns=int(view.now_s * 1e9),
        service=facts.service,
        health=facts.health,
        totals=totals,
        partitions=list(view.partitions),
        config=facts.config,
        tuner=facts.tuner,
        recent_alarms=list(view.recent_alarms),
        symbols=symbols,
    )


def encode_status(status: Status) -> bytes:
    """The document as JSON; numbers that are not finite are null."""
    return msgspec.json.encode(status)


def _symbol(view: BoardView, slot: int, name: str, owner: TopicPartition, *, with_history: bool) -> SymbolStatus:
    memory = view.memory
    places = memory.history(slot)
    newest = int(places[-1])

    def ring(column: str) -> float:
        return memory.rings[column][slot, newest].item()

    def last(column: str) -> float:
        return memory.last[column][slot].item()

    flags = sum(int(last(column)) << bit for bit, (_, column) in enumerate(FLAG_COLUMNS))
    mode = int(last("mode"))
    return SymbolStatus(
        id=slot,
        symbol=name,
        partition=owner.partition,
        ts=int(ring("ts")),
        seq=int(ring("sequence")),
        seen=int(memory.seen[slot]),
        value=ring("value"),
        accepted=bool(last("accepted")),
        prediction=ring("predicted_next"),
        scale=last("scale"),
        interval_80=(ring("lower_80"), ring("upper_80")),
        interval_95=(ring("lower_95"), ring("upper_95")),
        weights=memory.last["weights"][slot].tolist(),
        mode=MODE_LABELS[mode] if 0 <= mode < len(MODE_LABELS) else f"mode_{mode}",
        flags=_labels(flags, FLAG_LABELS),
        gate_reasons=_labels(int(last("gate_reasons")), GATE_REASON_LABELS),
        h_t=last("adaptive_threshold"),
        epsilon=last("sinkhorn_epsilon"),
        grace_counter=int(last("grace_counter")),
        cusum_up=last("cusum_drift"),
        cusum_down=last("cusum_drift_down"),
        kurtosis=last("kurtosis"),
        holder_exponent=last("holder_exponent"),
        forecast_error=last("forecast_error"),
        season_length=int(last("season_length")),
        alarms=int(view.num_alarms[slot]),
        last_alarm=view.last_alarms[slot],
        history=_history(memory, slot, places) if with_history else None,
    )


def _history(memory: SymbolMemory, slot: int, places: NDArray[np.intp]) -> History:
    rings = {name: ring[slot, places] for name, ring in memory.rings.items()}
    spread = np.ptp(finite) if (finite := rings["value"][np.isfinite(rings["value"])]).size else 0.0
    places_kept = 5 - math.floor(math.log10(spread)) if spread > 0.0 and np.isfinite(spread) else None

    def rounded(name: str) -> list[float | None]:
        numbers = rings[name]
        # beyond what a double holds there is nothing to round
        if places_kept is not None and abs(places_kept) < 300:
            numbers = np.round(numbers, places_kept)
        return numbers.tolist()

    return History(
        ts=rings["ts"].tolist(),
        value=rounded("value"),
        prediction=rounded("predicted_next"),
        lower_80=rounded("lower_80"),
        upper_80=rounded("upper_80"),
        lower_95=rounded("lower_95"),
        upper_95=rounded("upper_95"),
        alarm=rings["alarm_kind"].tolist(),
    )


@functools.lru_cache(maxsize=1024)
def _cached_labels(bits: int, labels: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(labels_of_bits(bits, labels))


def _labels(bits: int, labels: tuple[str, ...]) -> list[str]:
    return list(_cached_labels(bits, labels))
