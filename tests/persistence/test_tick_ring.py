"""The recorder: what it keeps, what a crash or a bad disk leaves, and that it never gets in the way."""

import errno
import itertools
import os
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from usp_daemon.persistence import TickRing, TickRingError, TickRingEventKind, choose_symbols, read_ticks
from usp_daemon.persistence._tick_segments import decode_segment, segment_name, segment_numbers

START = 1_700_000_000_000_000_000
SECOND = 1_000_000_000


def columns(symbols, first=0, offsets=None):
    """Columns of ``append``; the value says at which second it was."""
    seconds = np.arange(first, first + len(symbols)) if offsets is None else np.asarray(offsets)
    times = START + SECOND * seconds.astype(np.int64)
    return list(symbols), times, seconds.astype(float), times + 7


def ring(directory, **options):
    events = []
    options = {"flush_interval_s": 0.0, "min_free_bytes": 0, "observe_fn": events.append, **options}
    return TickRing(directory, **options), events


def record(directory, batches, **options):
    """A ring's whole life; returns the ring and its events."""
    one, events = ring(directory, **options)
    one.open()
    for batch in batches:
        one.append(*batch)
    assert one.close(30)
    return one, events


def seconds_of(ticks):
    return ((ticks.timestamps_ns - START) // SECOND).tolist()


def test_what_is_recorded_is_read(tmp_path):
    one, events = record(tmp_path, [columns(["a", "b", "a"]), columns(["b", "a", "c"], 3)])
    found = read_ticks(tmp_path)
    assert list(found) == ["a", "b", "c"]
    assert {symbol: seconds_of(ticks) for symbol, ticks in found.items()} == {"a": [0, 2, 4], "b": [1, 3], "c": [5]}
    assert found["a"].values.tolist() == [0.0, 2.0, 4.0]
    assert (found["a"].record_timestamps_ns - found["a"].timestamps_ns).tolist() == [7, 7, 7]
    assert [array.dtype for array in (found["a"].timestamps_ns, found["a"].values)] == [np.int64, np.float64]
    assert (one.num_recorded, one.num_dropped, events) == (6, 0, [])
    assert list(read_ticks(tmp_path, min_ticks=2)) == ["a", "b"]


def test_what_the_gate_refused_is_not_recorded(tmp_path):
    one, _ = ring(tmp_path)
    one.open()
    one.append(*columns(["a"] * 4), accepted=np.array([True, False, False, True]))
    one.close(30)
    assert seconds_of(one.read()["a"]) == [0, 3]


def test_the_callers_arrays_may_change_afterwards(tmp_path):
    one, _ = ring(tmp_path)
    symbols, times, values, record_times = columns(["a"] * 3)
    one.append(symbols, times, values, record_times)
    for array in (times, values, record_times):
        array[:] = 0
    one.open()
    one.close(30)
    assert read_ticks(tmp_path)["a"].values.tolist() == [0.0, 1.0, 2.0]


def test_of_many_symbols_the_same_few_are_kept(tmp_path):
    names = [f"symbol-{number}" for number in range(50)]
    kept = set()
    for order in (names, names[::-1]):
        directory = tmp_path / order[0]
        # a second round, since one that comes late may take another's place
        record(directory, [columns(order), columns(order, 100)], max_symbols=7, ticks_per_symbol=10)
        found = read_ticks(directory, min_ticks=2)
        kept.add(tuple(found))
    assert kept == {tuple(sorted(choose_symbols(names, 7, "recorder")))}


def test_bytes_bound_the_number_of_symbols(tmp_path):
    one, _ = ring(tmp_path, ticks_per_symbol=100, max_symbols=64, max_bytes=5 * 2 * 28 * 100)
    assert one.num_symbols == 5
    with pytest.raises(ValueError, match="max_bytes"):
        ring(tmp_path, ticks_per_symbol=100, max_bytes=1_000)


@pytest.mark.parametrize("segment_bytes", [28 * 3, 28 * 40, None])
def test_fast_and_slow_symbols_both_keep_their_whole_history(tmp_path, segment_bytes):
    """One symbol ticks a thousand times as often as another; each has its last 50 ticks, without a hole."""
    rng = np.random.default_rng(0)
    wanted, total = 50, 12_000
    symbols = rng.choice(["fast", "middle", "slow"], total, p=[0.889, 0.11, 0.001 + 1e-15])
    slow_rows = np.flatnonzero(symbols == "slow")
    cuts = [0, *np.sort(rng.choice(np.arange(1, total), 80, replace=False)).tolist(), total]
    batches = [columns(symbols[a:b], a) for a, b in itertools.pairwise(cuts)]
    options = {"ticks_per_symbol": wanted, "max_symbols": 3, "segment_bytes": segment_bytes}
    # in three lives
    for first, last in ((0, 20), (20, 50), (50, 81)):
        record(tmp_path, batches[first:last], **options)
    found = read_ticks(tmp_path)
    for symbol in ("fast", "middle", "slow"):
        expected = np.flatnonzero(symbols == symbol)[-wanted:].tolist()
        assert seconds_of(found[symbol])[-len(expected) :] == expected, symbol
    assert slow_rows.size < wanted  # nothing of it was ever given up
    size = sum(path.stat().st_size for path in tmp_path.iterdir())
    # twice the wanted rows and a segment, each row with the frames around it at the worst
    assert size < (2 * 3 * wanted + 1_200) * (28 + 12 + 60)
    assert sum(map(len, found.values())) < 3 * wanted * 2 + 1_200


@given(
    ticks=st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(0, 400)), max_size=400),
    wanted=st.integers(1, 12),
    num_symbols=st.integers(1, 6),
    lives=st.integers(1, 3),
)
def test_against_a_plain_model(tmp_path_factory, ticks, wanted, num_symbols, lives):
    """At the end each kept symbol has at least its last ``wanted`` ticks, counting those later than all before."""
    directory = tmp_path_factory.mktemp("ring")
    seen: dict[str, list[int]] = {}
    chosen = choose_symbols({symbol for symbol, _ in ticks}, num_symbols, "recorder")
    for symbol, second in ticks:
        if symbol in chosen and second > max(seen.get(symbol, [-1])):
            seen.setdefault(symbol, []).append(second)
    for part in np.array_split(np.arange(len(ticks)), lives):
        these = [ticks[row] for row in part.tolist()]
        batch = columns([symbol for symbol, _ in these], offsets=[second for _, second in these])
        record(directory, [batch], ticks_per_symbol=wanted, max_symbols=num_symbols, segment_bytes=28 * 4)
    found = read_ticks(directory)
    for symbol, expected in seen.items():
        got = seconds_of(found[symbol])
        assert got[-min(wanted, len(expected)) :] == expected[-wanted:]
        assert set(got) <= set(expected)


def test_ticks_that_come_again_after_a_restart_are_recorded_once(tmp_path):
    record(tmp_path, [columns(["a", "b"] * 10)])
    record(tmp_path, [columns(["a", "b"] * 15, 0)])
    found = read_ticks(tmp_path)
    assert seconds_of(found["a"]) == list(range(0, 30, 2))
    total = sum(len(part) for number in segment_numbers(tmp_path) for _, part in frames(tmp_path, number))
    assert total == 30


def frames(directory, number):
    return list(decode_segment((directory / segment_name(number)).read_bytes()))


def test_rows_that_stand_twice_on_the_disk_are_read_once(tmp_path):
    """As after a crash between the copy of what is wanted and the removal of the segment that had it."""
    record(tmp_path, [columns(["a"] * 5)])
    (tmp_path / segment_name(1)).write_bytes((tmp_path / segment_name(0)).read_bytes())
    assert seconds_of(read_ticks(tmp_path)["a"]) == [0, 1, 2, 3, 4]


def test_a_torn_end_is_ignored_wherever_it_tears(tmp_path):
    record(tmp_path, [columns(["a"] * 3)])
    whole = (tmp_path / segment_name(0)).read_bytes()
    one, _ = ring(tmp_path)
    one.open()
    one.append(*columns(["a", "b"], 3))
    one.close(30)
    second = (tmp_path / segment_name(1)).read_bytes()
    for length in range(len(second)):
        (tmp_path / segment_name(1)).write_bytes(second[:length])
        assert {symbol: seconds_of(ticks) for symbol, ticks in read_ticks(tmp_path).items()} == {"a": [0, 1, 2]}
    assert (tmp_path / segment_name(0)).read_bytes() == whole
    # and goes on in another segment
    record(tmp_path, [columns(["a"], 9)])
    assert seconds_of(read_ticks(tmp_path)["a"]) == [0, 1, 2, 9]


def test_a_flipped_bit_ends_its_segment_and_no_other(tmp_path):
    for life in range(3):
        record(tmp_path, [columns(["a"] * 4, 4 * life)])
    path = tmp_path / segment_name(1)
    whole = path.read_bytes()
    for position in range(12, len(whole)):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << (position % 8)
        path.write_bytes(damaged)
        assert seconds_of(read_ticks(tmp_path)["a"]) == [0, 1, 2, 3, 8, 9, 10, 11], position


def test_foreign_and_newer_files_are_left_alone(tmp_path):
    record(tmp_path, [columns(["a"])])
    (tmp_path / segment_name(5)).write_bytes(b"something else entirely")
    newer = bytearray((tmp_path / segment_name(0)).read_bytes())
    newer[8] = 9
    (tmp_path / segment_name(6)).write_bytes(newer)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(TickRingError, match="format"):
        list(decode_segment(bytes(newer)))
    record(tmp_path, [columns(["a"], 1)])
    assert seconds_of(read_ticks(tmp_path)["a"]) == [0, 1]
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_nothing_there_is_nothing_read(tmp_path):
    assert read_ticks(tmp_path / "never made") == {}


def test_what_cannot_be_read_says_so(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(TickRingError, match="cannot be read"):
        read_ticks(tmp_path / "file")


class Disk:
    """Writes, until it is told to be full: then half of what it is given, and the error."""

    def __init__(self):
        self.is_full = False
        self.now = 0.0
        self.half = False

    def write(self, fd, data):
        if self.is_full and not self.half:
            self.half = True
            return os.write(fd, data[: len(data) // 2])
        if self.is_full:
            self.half = False
            raise OSError(errno.ENOSPC, "No space left on device")
        return os.write(fd, data)


class Steps:
    """A ring whose writer is waited for, batch by batch."""

    def __init__(self, directory, **options):
        self.ring, self.events = ring(directory, **options)
        self.ring.open()
        self._sum = 0

    def append(self, batch):
        before = self.ring.num_recorded + self.ring.num_dropped
        self.ring.append(*batch)
        deadline = threading.Event()
        while self.ring.num_recorded + self.ring.num_dropped < before + len(batch[0]):
            deadline.wait(0.001)


def test_a_full_disk_stops_the_recording_and_is_tried_again_later(tmp_path):
    disk = Disk()
    steps = Steps(tmp_path, write_fn=disk.write, clock_fn=lambda: disk.now, retry_interval_s=30.0)
    steps.append(columns(["a"] * 3, 0))
    disk.is_full = True
    steps.append(columns(["a"] * 3, 3))
    assert [event.kind for event in steps.events] == [TickRingEventKind.STOPPED]
    assert "No space left" in steps.events[0].reason
    assert steps.events[0].num_dropped == 3
    disk.is_full = False
    disk.now = 29.0
    steps.append(columns(["a"] * 3, 6))  # not tried yet
    disk.now = 31.0
    steps.append(columns(["a"] * 3, 9))
    steps.ring.close(30)
    assert [event.kind for event in steps.events] == [TickRingEventKind.STOPPED, TickRingEventKind.RESUMED]
    assert (steps.ring.num_recorded, steps.ring.num_dropped) == (6, 6)
    assert seconds_of(read_ticks(tmp_path)["a"]) == [0, 1, 2, 9, 10, 11]


def test_attempts_on_a_full_disk_leave_no_files_behind(tmp_path):
    disk = Disk()
    disk.is_full = True
    steps = Steps(tmp_path, write_fn=disk.write, clock_fn=lambda: disk.now)
    for attempt in range(5):
        disk.now = 100.0 * attempt
        steps.append(columns(["a"], attempt))
    steps.ring.close(30)
    assert segment_numbers(tmp_path) == []
    assert [event.kind for event in steps.events] == [TickRingEventKind.STOPPED]


def test_a_defect_is_told_and_does_not_end_the_writer(tmp_path):
    now, writes = [0.0], []

    def write(fd, data):
        writes.append(len(data))
        if len(writes) == 1:
            raise KeyError("a defect")
        return os.write(fd, data)

    steps = Steps(tmp_path, write_fn=write, clock_fn=lambda: now[0])
    steps.append(columns(["a"]))
    now[0] = 100.0
    steps.append(columns(["a"], 1))
    steps.ring.close(30)
    assert [event.kind for event in steps.events] == [TickRingEventKind.STOPPED, TickRingEventKind.RESUMED]
    assert "KeyError" in steps.events[0].reason
    assert seconds_of(read_ticks(tmp_path)["a"]) == [1]


def test_space_is_left_to_others(tmp_path):
    steps = Steps(tmp_path, min_free_bytes=1_000_000, free_bytes_fn=lambda path: 1_000_000)
    steps.append(columns(["a"]))
    steps.ring.close(30)
    assert [event.kind for event in steps.events] == [TickRingEventKind.STOPPED]
    assert "1,000,000 bytes are free" in steps.events[0].reason


def test_a_directory_that_cannot_be_made_is_no_exception(tmp_path):
    (tmp_path / "file").write_text("")
    steps = Steps(tmp_path / "file" / "ticks")
    steps.append(columns(["a"]))
    assert steps.ring.close(30)
    assert [event.kind for event in steps.events] == [TickRingEventKind.STOPPED]
    assert steps.ring.num_dropped == 1


def test_a_directory_that_is_taken_away_is_made_again(tmp_path):
    now = [0.0]
    steps = Steps(tmp_path / "ticks", clock_fn=lambda: now[0], ticks_per_symbol=8, max_symbols=1)
    steps.append(columns(["a"] * 2, 0))
    for path in (tmp_path / "ticks").iterdir():
        path.unlink()
    (tmp_path / "ticks").rmdir()
    for attempt in range(6):
        now[0] += 100.0
        steps.append(columns(["a"] * 4, 10 + 4 * attempt))
    steps.ring.close(30)
    assert seconds_of(read_ticks(tmp_path / "ticks")["a"])[-4:] == [30, 31, 32, 33]


def test_one_directory_has_one_recorder(tmp_path):
    now = [0.0]
    first = Steps(tmp_path)
    first.append(columns(["a"]))
    second = Steps(tmp_path, clock_fn=lambda: now[0])
    second.append(columns(["a"], 1))
    assert [event.kind for event in second.events] == [TickRingEventKind.STOPPED]
    assert "another process" in second.events[0].reason
    first.ring.close(30)
    now[0] = 100.0
    second.append(columns(["a"], 2))
    second.ring.close(30)
    assert [event.kind for event in second.events][1:] == [TickRingEventKind.RESUMED]
    assert seconds_of(read_ticks(tmp_path)["a"]) == [0, 2]


def test_when_the_writer_is_behind_ticks_are_dropped_and_counted(tmp_path):
    may_write = threading.Event()

    def write(fd, data):
        may_write.wait(30)
        return os.write(fd, data)

    one, events = ring(tmp_path, write_fn=write, max_queued_ticks=10)
    one.open()
    for second in range(100):
        one.append(*columns(["a"], second))  # returns, although nothing is written
    assert 80 <= one.num_dropped <= 90
    may_write.set()
    assert one.close(30)
    assert TickRingEventKind.DROPPED in {event.kind for event in events}
    assert one.num_recorded + one.num_dropped == 100
    assert len(read_ticks(tmp_path)["a"]) == one.num_recorded


def test_a_symbol_that_is_silent_for_days_makes_room(tmp_path):
    low, high = choose_symbols(["a", "b"], 2, "recorder")
    steps = Steps(tmp_path, max_symbols=1, forget_after_s=1_000.0)
    steps.append(columns([low], 0))
    steps.ring.append(*columns([high], 1))
    assert steps.ring.symbols == (low,)
    steps.append(columns([low], 10))
    # who is turned away is not looked at, so no time has been seen to pass: a silent feed makes nobody go
    steps.ring.append(*columns([high], 5_000))
    assert steps.ring.symbols == (low,)
    steps.ring.close(30)
    again = Steps(tmp_path, max_symbols=2, forget_after_s=1_000.0)
    again.append(columns([low], 20))
    again.append(columns([high], 30))
    again.append(columns([high], 5_000))
    third = next(name for name in map(str, range(100)) if choose_symbols([low, high, name], 3, "recorder")[2] == name)
    again.ring.append(*columns([third], 5_001))  # turned away: there is no room
    again.append(columns([high], 5_500))
    again.append(columns([third], 5_501))
    again.ring.close(30)
    assert set(again.ring.symbols) == {high, third}
    assert seconds_of(read_ticks(tmp_path)[third]) == [5_501]


def test_reading_while_the_ring_turns(tmp_path):
    """Segments vanish under the reader, and still every history has no hole."""
    wanted = 60
    one, _ = ring(tmp_path, ticks_per_symbol=wanted, max_symbols=2, segment_bytes=28 * 20)
    one.open()
    stop = threading.Event()

    def write():
        for second in range(4_000):
            one.append(*columns(["a", "b"], 2 * second))
        stop.set()

    writer = threading.Thread(target=write)
    writer.start()
    reads = 0
    while not stop.is_set() or reads == 0:
        for ticks in read_ticks(tmp_path).values():
            reads += 1
            assert set(np.diff(seconds_of(ticks)[-wanted:]).tolist()) <= {2}
    writer.join()
    assert one.close(30)
    assert one.num_dropped == 0
    assert seconds_of(read_ticks(tmp_path)["a"])[-wanted:] == list(range(8_000 - 2 * wanted, 8_000, 2))


_KILLED = """
import sys, time; sys.path[:0] = {path!r}
import numpy as np
from usp_daemon.persistence import TickRing
ring = TickRing({directory!r}, ticks_per_symbol=100, max_symbols=2, segment_bytes=28 * 30, flush_interval_s=0.0,
                min_free_bytes=0)
ring.open()
second = {first}
while True:
    times = np.array([second, second + 1]) * 1_000_000_000 + {start}
    ring.append(["a", "b"], times, times.astype(float), times)
    second += 2
    while ring.num_recorded < second - {first} - 500:
        time.sleep(0.0005)
    if second % 2_000 == 0:
        print(second, flush=True)
"""


def test_killed_at_any_moment_what_was_written_is_there(tmp_path):
    first = 0
    for _ in range(3):
        program = _KILLED.format(path=sys.path, directory=str(tmp_path), first=first, start=START)
        process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
        try:
            assert process.stdout is not None
            for _ in range(3):
                first = int(process.stdout.readline())
        finally:
            process.send_signal(signal.SIGKILL)
            process.communicate(timeout=30)
        found = read_ticks(tmp_path)
        for symbol, ticks in found.items():
            seconds = np.asarray(seconds_of(ticks))[-100:]
            assert len(seconds) == 100, symbol
            # no hole but where a life began, whose predecessor's queue died with it
            holes = np.flatnonzero(np.diff(seconds) != 2)
            assert len(holes) <= 1, symbol


def test_closing_what_was_not_opened_and_opening_twice(tmp_path):
    one, _ = ring(tmp_path)
    assert one.close()
    one.open()
    with pytest.raises(RuntimeError, match="once"):
        one.open()
    assert one.close(30)
