"""A choice of symbols that is the same in every process and does not depend on the order in which they came."""

import bisect
import hashlib
from collections.abc import Iterable


def symbol_hash(symbol: str, purpose: str) -> int:
    """64 bits that depend on the two texts only; different purposes choose independently."""
    digest = hashlib.blake2b(
        symbol.encode("utf-8", "surrogatepass"), digest_size=8, person=purpose.encode("ascii")[:16]
    )
    return int.from_bytes(digest.digest(), "big")


def choose_symbols(symbols: Iterable[str], count: int, purpose: str) -> tuple[str, ...]:
    """The ``count`` symbols with the lowest hashes, in that order; all, if there are no more."""
    return tuple(sorted(set(symbols), key=lambda symbol: (symbol_hash(symbol, purpose), symbol))[: max(0, count)])


class SymbolSample:
    """The ``count`` symbols with the lowest hashes of those offered so far."""

    def __init__(self, count: int, purpose: str) -> None:
        if count < 1:
            raise ValueError(f"count: expected at least 1, got {count}")
        self._count = count
        self._purpose = purpose
        self._kept: list[tuple[int, str]] = []

    def __contains__(self, symbol: str) -> bool:
        entry = (symbol_hash(symbol, self._purpose), symbol)
        place = bisect.bisect_left(self._kept, entry)
        return place < len(self._kept) and self._kept[place] == entry

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def symbols(self) -> tuple[str, ...]:
        """Those kept, lowest hash first."""
        return tuple(symbol for _, symbol in self._kept)

    def offer(self, symbol: str) -> tuple[bool, str | None]:
        """Whether ``symbol`` is kept now, and which one had to make room for it, if any."""
        entry = (symbol_hash(symbol, self._purpose), symbol)
        place = bisect.bisect_left(self._kept, entry)
        if place < len(self._kept) and self._kept[place] == entry:
            return True, None
        if place >= self._count:
            return False, None
        self._kept.insert(place, entry)
        return True, self._kept.pop()[1] if len(self._kept) > self._count else None

    def remove(self, symbol: str) -> None:
        """Make room; harmless when it is not kept."""
        if symbol in self:
            self._kept.remove((symbol_hash(symbol, self._purpose), symbol))
