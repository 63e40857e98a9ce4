"""Points in time that a restart survives and a clock that is set does not mislead.

Within one boot of the machine the time since its start counts, which nobody can set. Across boots the wall clock is all
there is; a point that lies in the future by it is taken for the present one, so that it neither lasts for ever nor is
over at once.
"""

import dataclasses
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def boot_id() -> str:
    """What this boot of the machine is called; "" where the system does not say."""
    try:
        return _BOOT_ID.read_text("ascii").strip()
    except OSError:
        return ""


def _since_boot_ns() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else 0


@dataclasses.dataclass(frozen=True, slots=True)
class Stamp:
    """One moment: by the wall clock (ns since 1970), and since the start of the machine that ``boot`` names."""

    wall_ns: int
    since_boot_ns: int
    boot: str

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> "Stamp":
        """From what ``dataclasses.asdict`` made of one. Raises ``KeyError``, ``TypeError`` and ``ValueError``."""
        return cls(int(document["wall_ns"]), int(document["since_boot_ns"]), str(document["boot"]))


@dataclasses.dataclass(frozen=True, slots=True)
class Clock:
    """The clocks; tests set them."""

    wall_ns_fn: Callable[[], int] = time.time_ns
    since_boot_ns_fn: Callable[[], int] = _since_boot_ns
    boot: str = dataclasses.field(default_factory=boot_id)

    def now(self) -> Stamp:
        """The present moment."""
        return Stamp(self.wall_ns_fn(), self.since_boot_ns_fn(), self.boot)

    def settled(self, stamp: Stamp) -> Stamp:
        """The stamp, or the present moment in place of one that lies in the future. To be kept in the stamp's place."""
        return stamp if self._age_ns(stamp) >= 0 else self.now()

    def age_s(self, stamp: Stamp) -> float:
        """Seconds since then, never below 0."""
        return max(0, self._age_ns(stamp)) / 1e9

    def _age_ns(self, stamp: Stamp) -> int:
        if self.boot and stamp.boot == self.boot:
            return self.since_boot_ns_fn() - stamp.since_boot_ns
        return self.wall_ns_fn() - stamp.wall_ns
