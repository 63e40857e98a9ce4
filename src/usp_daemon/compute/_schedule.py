"""Sorts a batch of ticks into rounds and tiles.

A symbol's ticks must run in order, so its i-th tick of the batch belongs to round i. Per page, the number of symbols
with a tick falls from round to round. As long as enough lanes of a page have one, the page itself is the tile and
nothing is moved; the thin rest of all pages is gathered into shared tiles, once per batch, and scattered back:

    page 0   ############    round 0   page is the tile
             #########...    round 1   page is the tile
             #...........    round 2   gathered, together with page 1's
    page 1   ########....    round 0   page is the tile
             ##..........    round 1   gathered

The plan decides speed only: every lane's numbers are the same wherever it is computed.
"""

from dataclasses import dataclass

import numpy as np

# Measured: a lane gathered from a thin page costs about 1/24 of a tile's step, there and back; with more of them, less.
# A page is worth stepping in place from three quarters of its lanes on, see docs/decisions/0001-pages-of-one-tile.md.
_MOVE_COST_IN_TILES = 1.0 / 24.0
_DIRECT_FRACTION = 0.75


@dataclass(frozen=True)
class TileJob:
    """Consecutive rounds of up to one tile of lanes, most ticks first.

    ``slots`` are the lanes' addresses, ``starts`` where each lane's first tick of this job stands in
    ``BatchPlan.order``, ``counts`` how many ticks each has here (descending). ``page`` is the page to run in place, -1
    for a gathered tile.
    """

    page: int
    slots: np.ndarray
    starts: np.ndarray
    counts: np.ndarray

    @property
    def num_rounds(self) -> int:
        """How many steps this tile takes."""
        return int(self.counts[0])

    def num_active(self, round_number: int) -> int:
        """Lanes, counted from the front, that have a tick in this round."""
        return int(np.searchsorted(-self.counts, -round_number, side="left"))


@dataclass(frozen=True)
class BatchPlan:
    """``order`` lists the ticks' positions in the batch, grouped by lane; ``in_place`` runs before ``gathered``."""

    order: np.ndarray
    in_place: tuple[TileJob, ...]
    gathered: tuple[TileJob, ...]


def plan_batch(slots: np.ndarray, tile_width: int, direct_fraction: float = _DIRECT_FRACTION) -> BatchPlan:
    """The plan for ticks whose lanes are ``slots`` (page times ``tile_width`` plus lane; negative ones are skipped).

    ``direct_fraction`` is the share of a page's lanes that must have a tick for the page to run in place.
    """
    order = np.argsort(slots, kind="stable")
    order = order[np.searchsorted(slots[order], 0) :]
    lanes, starts, counts = np.unique(slots[order], return_index=True, return_counts=True)
    pages = lanes // tile_width
    # Within a page, most ticks first; then lanes with a tick in round r are a prefix.
    by_page = np.lexsort((lanes, -counts, pages))
    lanes, starts, counts, pages = lanes[by_page], starts[by_page], counts[by_page], pages[by_page]
    edges = np.flatnonzero(np.r_[True, pages[1:] != pages[:-1], True]) if lanes.size else np.zeros(1, np.int64)
    threshold = max(1, int(np.ceil(direct_fraction * tile_width)))
    first, last = edges[:-1], edges[1:]
    full_enough = last - first >= threshold
    # Rounds in which at least `threshold` lanes have a tick: the tick count of the lane in that rank.
    ranked = np.where(full_enough, first + threshold - 1, first)
    direct = np.where(full_enough, counts[ranked], 0)
    most = counts[first]
    rest = counts - np.repeat(direct, last - first)
    leftover = np.flatnonzero(rest > 0)
    leftover = leftover[np.argsort(-rest[leftover], kind="stable")]
    cost_gathered = rest[leftover][::tile_width].sum() + leftover.size * _MOVE_COST_IN_TILES
    if (most - direct).sum() <= cost_gathered:
        direct, leftover = most, leftover[:0]
    in_place = tuple(
        TileJob(int(pages[a]), lanes[a:b], starts[a:b], np.minimum(counts[a:b], rounds))
        for a, b, rounds in zip(first, last, direct, strict=True)
        if rounds > 0
    )
    gathered = tuple(
        TileJob(-1, lanes[chunk], starts[chunk] + (counts - rest)[chunk], rest[chunk])
        for chunk in (leftover[i : i + tile_width] for i in range(0, leftover.size, tile_width))
    )
    return BatchPlan(order, in_place, gathered)
