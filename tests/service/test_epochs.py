"""Epochs: the note beside an offset, and the book that a replica keeps of the group's log."""

import asyncio
import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from usp_daemon.persistence import AbstractEpochLog, Epoch, EpochLogError
from usp_daemon.service import EpochBook, EpochError, ProgramEpoch, Switches
from usp_daemon.service._epochs import MAX_NOTED
from usp_daemon.wire import MAX_NOTE_BYTES, ResultEncoder

ascending = st.lists(st.tuples(st.integers(1, 5), st.integers(1, 50)), max_size=20).map(
    lambda steps: [
        (sum(step for step, _ in steps[: i + 1]), sum(gap for _, gap in steps[: i + 1])) for i in range(len(steps))
    ]
)


def brute_force_at(pairs, offset):
    return next((number for number, first in reversed(pairs) if first <= offset), None)


@given(ascending, st.integers(0, 1200))
def test_the_number_at_an_offset_is_that_of_the_last_one_begun(pairs, offset):
    assert Switches(pairs).at(offset) == brute_force_at(pairs, offset)


@given(ascending, st.integers(0, 1200), st.integers(0, 1200))
def test_numbers_of_a_stretch_are_those_of_its_offsets(pairs, start, stop):
    found = Switches(pairs).numbers(start, stop)
    at_each = [brute_force_at(pairs, offset) for offset in range(start, stop)]
    if start < stop:
        assert sorted(set(found) - {None}) == sorted(set(at_each) - {None})


@given(ascending, st.integers(0, 1200))
def test_a_note_gives_back_what_began_below_the_offset(pairs, below):
    kept = [pair for pair in pairs if pair[1] < below] or pairs[:1]
    note = Switches(pairs).note(below)
    again = Switches.from_note(note)
    assert [again.at(first) for _, first in kept[-MAX_NOTED:]] == [
        brute_force_at(kept, f) for _, f in kept[-MAX_NOTED:]
    ]


def test_the_longest_note_fits_beside_an_offset():
    switches = Switches()
    for number in range(1, 1000):
        switches.append(10**7 + number, 10**18 + number)
    assert len(switches.note(below=2 * 10**18).encode()) <= MAX_NOTE_BYTES
    assert Switches.from_note(switches.note(below=2 * 10**18)).is_full


def test_an_epoch_that_answered_nothing_is_replaced():
    switches = Switches([(1, 0)])
    switches.append(2, 10)
    switches.append(3, 10)
    assert switches.note(below=11) == '{"epochs":[[1,0],[3,10]]}'


@pytest.mark.parametrize(
    "note", ["{}", "[]", "x", '{"epochs":[[2,0],[1,5]]}', '{"epochs":[[1,5],[2,0]]}', '{"epochs":[[0,0]]}']
)
def test_a_note_of_somebody_else_is_refused(note):
    with pytest.raises(ValueError):
        Switches.from_note(note)


class Log(AbstractEpochLog):
    """A log in a dictionary that several books share."""

    def __init__(self, epochs):
        self.epochs = epochs
        self.before_append = lambda: None
        self.error = None

    async def open(self): ...

    async def close(self): ...

    async def read(self):
        if self.error:
            raise self.error
        return tuple(self.epochs[number] for number in sorted(self.epochs))

    async def append(self, epoch):
        await asyncio.sleep(0)
        self.before_append()
        return self.epochs.setdefault(epoch.number, epoch) is epoch


async def make(epoch):
    await asyncio.sleep(0)
    if epoch.settings.get("k") == "impossible":
        raise ValueError("no such predictor")
    return ProgramEpoch(
        number=epoch.number, settings=epoch.settings, config_hash=epoch.config_hash, parameters=dict(epoch.settings),
        identity={}, encoder=ResultEncoder(config_hash=epoch.config_hash),
    )  # fmt: skip


def book(log, **options):
    return EpochBook(log, make, **options)


def settings(value):
    return {"k": value}, f"hash{value}", f"hash{value}"


async def test_the_first_replica_proposes_and_the_others_obey():
    epochs = {}
    first, second = book(Log(epochs), instance="a"), book(Log(epochs), instance="b")
    await asyncio.gather(first.open(*settings(1)), second.open(*settings(1)))
    assert [epoch.number for epoch in epochs.values()] == [1]
    assert first.current.settings == second.current.settings == {"k": 1}


async def test_who_is_slower_takes_the_next_number():
    epochs = {}
    first, second = book(Log(epochs)), book(Log(epochs))
    await first.open(*settings(1))
    await second.open(*settings(1))
    await asyncio.gather(first.propose(*settings(2), reason="a"), second.propose(*settings(3), reason="b"))
    assert sorted(epochs) == [1, 2, 3]
    assert {epochs[2].config_hash, epochs[3].config_hash} == {"hash2", "hash3"}
    await first.adopt_newest()
    await second.adopt_newest()
    assert first.current.config_hash == second.current.config_hash == epochs[3].config_hash


async def test_the_same_proposal_by_all_replicas_is_one_epoch():
    epochs = {}
    books = [book(Log(epochs)) for _ in range(4)]
    for each in books:
        await each.open(*settings(1))
    await asyncio.gather(*(each.propose(*settings(2), reason="file") for each in books))
    assert sorted(epochs) == [1, 2]


@pytest.mark.parametrize(
    ("has_changed", "start_with", "current"),
    [
        (None, 1, 2),  # an old file: epoch 2 has replaced it
        (None, 3, 3),  # never seen
        (False, 3, 2),  # another replica's history, and this file stands as it stood
        (True, 1, 1),  # edited back while this replica was down
        (True, 2, 2),
    ],
)
async def test_what_a_file_does_at_the_start(has_changed, start_with, current):
    epochs = {}
    before = book(Log(epochs))
    await before.open(*settings(1))
    await before.propose(*settings(2), reason="file")
    later = book(Log(epochs))
    assert (await later.open(*settings(start_with), has_changed=has_changed)).settings == {"k": current}


async def test_an_epoch_that_cannot_be_built_leaves_the_former_one_in_force():
    epochs = {}
    one = book(Log(epochs))
    await one.open(*settings(1))
    await one.propose(*settings("impossible"), reason="file")
    with pytest.raises(EpochError, match="epoch 2: no such predictor"):
        await one.adopt_newest()
    assert one.current.number == 1
    await one.propose(*settings(3), reason="file")
    await one.adopt_newest()
    assert one.current.number == 3


async def test_an_epoch_that_is_long_in_the_making_does_not_replace_a_later_one():
    epochs, adopted, compiled = {}, [], asyncio.Event()

    async def slowly(epoch):
        if epoch.settings["k"] == 2:
            await compiled.wait()
        return await make(epoch)

    one = EpochBook(Log(epochs), slowly, adopted_fn=lambda epoch: adopted.append(epoch.number))
    await one.open(*settings(1))
    await one.propose(*settings(2), reason="another replica")
    waiting = asyncio.create_task(one.adopt_newest())
    await asyncio.sleep(0.01)
    await one.propose(*settings(3), reason="file")
    assert await one.adopt_newest()
    compiled.set()
    assert not await waiting
    assert one.current.number == 3
    assert adopted == [1, 3]


async def test_an_epoch_that_two_wait_for_is_adopted_once():
    adopted = []
    one = book(Log({}), adopted_fn=lambda epoch: adopted.append(epoch.number))
    await one.open(*settings(1))
    await one.propose(*settings(2), reason="file")
    assert sorted(await asyncio.gather(one.adopt_newest(), one.adopt_newest())) == [False, True]
    assert adopted == [1, 2]


async def test_following_survives_a_log_that_is_away():
    epochs, adopted = {}, []
    log = Log(epochs)
    one = book(log, adopted_fn=lambda epoch: adopted.append(epoch.number))
    await one.open(*settings(1))
    following = asyncio.create_task(one.follow(0.001))
    log.error = EpochLogError("away")
    await asyncio.sleep(0.02)
    log.error = None
    epochs[2] = dataclasses.replace(epochs[1], number=2, settings={"k": 2}, config_hash="hash2")
    async with asyncio.timeout(5.0):
        while one.current.number != 2:
            await asyncio.sleep(0.001)
    following.cancel()
    assert adopted == [1, 2]


async def test_an_epoch_that_the_log_does_not_have_is_an_error():
    one = book(Log({}))
    await one.open(*settings(1))
    assert (await one.get(1)).settings == {"k": 1}
    with pytest.raises(EpochError, match="epoch 7 is not in the log"):
        await one.get(7)


def test_a_record_of_the_log_has_all_that_a_predictor_needs():
    assert {field.name for field in dataclasses.fields(Epoch)} >= {"number", "settings", "config_hash", "base_hash"}
