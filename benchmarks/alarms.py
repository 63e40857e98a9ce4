"""Regime alarms on a part of the benchmark suite.

``python -m benchmarks.alarms PATH_TO_SUITE_PART`` prints the scorer's table, then per series the changes, how many were
seen, the mean delay, the false alarms and which statistics raised the alarms.
"""

import dataclasses
import math
import sys
from collections import Counter
from collections.abc import Sequence

import numpy as np

from usp_daemon.core import AlarmKind

from ._command import parser, run_tracks
from ._suite import Run, Series, score, write_alarms
from ._table import format_columns

TOLERANCE = {"simchange": 150, "null": 150, "tssb": 300}  # rows after a change within which an alarm counts
MERGE_ROWS = 30  # alarms closer than this to the one before are the same alarm


def merge(alarms: Sequence[int]) -> list[int]:
    """Alarms without those that follow a kept one too closely."""
    kept: list[int] = []
    for alarm in sorted(alarms):
        if not kept or alarm - kept[-1] >= MERGE_ROWS:
            kept.append(alarm)
    return kept


def match(changes: Sequence[int], alarms: Sequence[int], rows: int, tolerance: int) -> tuple[int, list[int], int]:
    """How many changes were seen, the delays of those, and how many alarms belong to no change."""
    delays: list[int] = []
    claimed: set[int] = set()
    for index, change in enumerate(changes):
        end = min(change + tolerance, changes[index + 1] if index + 1 < len(changes) else rows)
        within = [alarm for alarm in alarms if change <= alarm < end]
        claimed.update(within)
        if within:
            delays.append(within[0] - change)
    return len(delays), delays, len([alarm for alarm in alarms if alarm not in claimed])


@dataclasses.dataclass(frozen=True)
class Summary:
    """Alarms of several streams taken together."""

    f1: float
    mean_delay: float
    false_per_thousand: float


def summarise(series: Sequence[Series], runs: Sequence[Run], among: Sequence[str]) -> Summary:
    """F1, mean delay (rows) and false alarms per 1,000 rows outside the tolerance, over series of the given kinds."""
    seen = changes = false = quiet_rows = 0
    delays: list[int] = []
    for one, run in zip(series, runs, strict=True):
        if one.kind not in among:
            continue
        tolerance = TOLERANCE[one.kind]
        hits, late, wrong = match(one.entry.get("cps", []), merge(run.alarms), len(one.values), tolerance)
        seen, changes, false = seen + hits, changes + len(one.entry.get("cps", [])), false + wrong
        delays += late
        quiet_rows += len(one.values) - tolerance * len(one.entry.get("cps", []))
    return Summary(
        f1=2.0 * seen / max(1, seen + false + changes),
        mean_delay=float(np.mean(delays)) if delays else math.nan,
        false_per_thousand=1000.0 * false / max(1, quiet_rows),
    )


def kinds(run: Run) -> str:
    """The statistics behind the alarms, with counts."""
    if "alarm_kind" not in run.extras:
        return ""
    counts: Counter[str] = Counter()
    for alarm in run.alarms:
        counts["|".join(kind.name or "" for kind in AlarmKind(int(run.extras["alarm_kind"][alarm])))] += 1
    return ", ".join(f"{count} {name.lower()}" for name, count in counts.most_common())


def table(series: Sequence[Series], runs: Sequence[Run]) -> str:
    """Per series with known changes: seen, delay, false alarms, causes."""
    lines = []
    for one, run in zip(series, runs, strict=True):
        if one.kind not in TOLERANCE:
            continue
        alarms = merge(run.alarms)
        changes = one.entry.get("cps", [])
        seen, delays, false = match(changes, alarms, len(one.values), TOLERANCE[one.kind])
        delay = f"{np.mean(delays):.1f}" if delays else "-"
        lines.append([one.name, kinds(run), str(len(changes)), str(seen), delay, str(false)])
    return format_columns(["series", "raised by", "changes", "seen", "delay", "false"], lines, left=2)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; the exit status is 0 unless the scorer refuses a file."""
    options = parser("alarms", "Regime alarms on a part of the benchmark suite.").parse_args(arguments)
    series, runs, directory = run_tracks(options, ("alarms",))
    for one, run in zip(series, runs, strict=True):
        write_alarms(directory, one.name, run)
    print(table(series, runs))
    print(score(options.part, "alarms", directory))
    print(f"files for the scorer: {directory}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
