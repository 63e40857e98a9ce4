"""The plan covers every tick once, in order, whatever it decides about moving lanes."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from usp_daemon.compute._schedule import plan_batch

WIDTH = 16


def replayed(plan):
    """(slot, position in the batch) in the order in which the plan steps them, with the jobs that held each slot."""
    steps, holders = [], {}
    for job in (*plan.in_place, *plan.gathered):
        assert len(job.slots) <= WIDTH
        assert len(set(job.slots.tolist())) == len(job.slots)
        if job.page >= 0:
            assert (job.slots // WIDTH == job.page).all()
        for slot in job.slots.tolist():
            holders.setdefault(slot, []).append(job.page)
        for round_number in range(job.num_rounds):
            active = job.num_active(round_number)
            assert active > 0
            rows = plan.order[job.starts[:active] + round_number]
            steps += zip(job.slots[:active].tolist(), rows.tolist(), strict=True)
    return steps, holders


@given(
    slots=st.lists(st.integers(-1, 5 * WIDTH - 1), max_size=300),
    fraction=st.sampled_from([1e-6, 0.25, 0.5, 1.0]),
)
def test_every_tick_runs_once_and_in_order(slots, fraction):
    slots = np.array(slots, np.int64)
    steps, holders = replayed(plan_batch(slots, WIDTH, fraction))
    assert sorted(row for _, row in steps) == np.flatnonzero(slots >= 0).tolist()
    for slot in set(slots[slots >= 0].tolist()):
        assert [row for s, row in steps if s == slot] == np.flatnonzero(slots == slot).tolist()
        # once in place at most, then gathered at most: a lane is never in two places at a time
        assert len(holders[slot]) <= 2
        if len(holders[slot]) == 2:
            assert holders[slot] == [slot // WIDTH, -1]


def test_a_full_page_is_stepped_in_place():
    plan = plan_batch(np.arange(3 * WIDTH), WIDTH)
    assert [job.page for job in plan.in_place] == [0, 1, 2]
    assert plan.gathered == ()


def test_thin_pages_share_a_tile():
    plan = plan_batch(np.arange(8) * WIDTH, WIDTH)
    assert plan.in_place == ()
    assert len(plan.gathered) == 1


def test_a_lone_tick_moves_nothing():
    plan = plan_batch(np.array([5]), WIDTH)
    assert [job.page for job in plan.in_place] == [0]
    assert plan.gathered == ()


def test_hot_symbols_of_full_pages_finish_together():
    everyone = np.arange(3 * WIDTH)
    hot = np.tile([0, WIDTH, 2 * WIDTH], 100)
    plan = plan_batch(np.concatenate([everyone, hot]), WIDTH)
    assert [job.num_rounds for job in plan.in_place] == [1, 1, 1]
    assert [job.num_rounds for job in plan.gathered] == [100]
