"""Files in which the unit of time changes: found by the size of the jump, since no clock vouches for a file."""

import dataclasses

import numpy as np
from numpy.typing import NDArray

from usp_daemon.telemetry import get_logger
from usp_daemon.wire import DeadLetterEntry, DeadLetterReason, TickBatch, dead_letter_entry

# Units differ by factors of 1000. Times near 1970 are indices or toy data, where such a ratio means nothing.
_FACTOR = 500.0
_SMALLEST_REFERENCE_NS = 10**15  # about 12 days after 1970
_PLAUSIBLE_NS = (315_532_800 * 10**9, 4_102_444_800 * 10**9)  # 1980 to 2100
_AGREEING_TICKS = 16

_log = get_logger(__name__)


@dataclasses.dataclass
class _Watch:
    """What is known of one source: its last good time, and a run of ticks that agree with each other, not with it."""

    reference_ns: int
    other_ns: int = 0
    num_others: int = 0
    warned: bool = False


class TimeUnitGuard:
    """Takes ticks out whose time is at least 500 times later or earlier than that of the ticks before them.

    Seconds among milliseconds, say: let through, one of them would look like a jump of centuries, after which every
    right tick is out of order. If the first ticks were the wrong ones (their time is no date between 1980 and 2100),
    sixteen ticks that agree with each other take over. The first such tick of each source is logged.
    """

    def __init__(self) -> None:
        self._watches: dict[str, _Watch] = {}

    def __call__(self, batch: TickBatch) -> TickBatch:
        """``batch`` without such ticks; each became a dead letter ``time_unit_mismatch``."""
        if not len(batch):
            return batch
        times = batch.timestamps_ns
        source = batch.raw.source
        watch = self._watches.setdefault(source, _Watch(reference_ns=int(times[0])))
        if _all_near(times, watch.reference_ns):
            watch.reference_ns = int(times[-1])
            watch.num_others = 0
            return batch
        keep: list[int] = []
        dead: list[DeadLetterEntry] = list(batch.dead_letters)
        for row, time_ns in enumerate(times.tolist()):
            if self._accept(watch, time_ns):
                keep.append(row)
                continue
            text = (
                f"the time {time_ns} ns is a factor {_ratio(time_ns, watch.reference_ns):.0f} away from "
                f"the one before it, {watch.reference_ns} ns: mixed units of time"
            )
            entry = dead_letter_entry(batch.raw, batch.positions[row], DeadLetterReason.TIME_UNIT_MISMATCH, text)
            dead.append(entry)
            if not watch.warned:
                watch.warned = True
                _log.warning("time_unit_mismatch", source=source, offset=entry.offset, detail=text)
        return TickBatch(
            raw=batch.raw,
            positions=[batch.positions[row] for row in keep],
            symbols=[batch.symbols[row] for row in keep],
            values=batch.values[keep],
            timestamps_ns=times[keep],
            record_timestamps_ns=batch.record_timestamps_ns[keep],
            dead_letters=sorted(dead, key=lambda entry: entry.offset),
        )

    def _accept(self, watch: _Watch, time_ns: int) -> bool:
        if _near(time_ns, watch.reference_ns):
            watch.reference_ns = time_ns
            watch.num_others = 0
            return True
        if watch.num_others and _near(time_ns, watch.other_ns):
            watch.num_others += 1
        else:
            watch.num_others = 1
        watch.other_ns = time_ns
        low, high = _PLAUSIBLE_NS
        if watch.num_others >= _AGREEING_TICKS and not low <= watch.reference_ns < high:
            watch.reference_ns = time_ns
            watch.num_others = 0
            return True
        return False


def _ratio(time_ns: int, reference_ns: int) -> float:
    return max(time_ns, reference_ns, 1) / max(min(time_ns, reference_ns), 1)


def _near(time_ns: int, reference_ns: int) -> bool:
    return max(time_ns, reference_ns) < _SMALLEST_REFERENCE_NS or _ratio(time_ns, reference_ns) < _FACTOR


def _all_near(times: NDArray[np.int64], reference_ns: int) -> bool:
    """A cheap sufficient test: the extremes of the batch are near the reference and near each other."""
    low, high = int(times.min()), int(times.max())
    return _near(low, reference_ns) and _near(high, reference_ns) and _near(low, high)
