"""The board against a slow computation tick by tick, and its bounds."""

import collections
import math
import sys

import numpy as np
import pytest
from status_answers import answer

from usp_daemon.status import Board, Facts, Health, Service, build_status
from usp_daemon.status._board import MAX_RECENT_ALARMS
from usp_daemon.status._memory import DEPTH
from usp_daemon.status._watch import ALARM_KEPT_S, REVIEW_S, WatchList
from usp_daemon.wire import ALARM_KIND_LABELS, GATE_REASON_LABELS, TopicPartition, labels_of_bits

ONE, TWO = TopicPartition("ticks", 0), TopicPartition("ticks", 1)
FACTS = Facts(
    service=Service(kind="run", instance="a", group="g", version="1", versions={}),
    health=Health(live=True, ready=True, reasons=[]),
)


def status_of(board, history=None):
    return build_status(board.view(), FACTS, history=history)


def random_answers(rng, names, num_answers, most):
    """Answers with every shown column filled, and the ticks that they hold, one by one."""
    sequences = collections.Counter()
    ts = 1_000
    answers, ticks = [], []
    for _ in range(num_answers):
        n = int(rng.integers(0, most))
        symbols = [names[i] for i in rng.integers(0, len(names), n)]
        accepted = rng.random(n) > 0.05
        for symbol, good in zip(symbols, accepted, strict=True):
            sequences[symbol] += int(good)
            ticks.append({"symbol": symbol})
        batch = ticks[len(ticks) - n :]
        running = collections.Counter({s: sequences[s] for s in names})
        for tick, good in zip(reversed(batch), accepted[::-1], strict=True):  # back from the end: the sequence at each
            tick["sequence"] = running[tick["symbol"]]
            running[tick["symbol"]] -= int(good)
        columns = {
            name: rng.normal(size=n)
            for name in ("predicted_next", "lower_80", "upper_80", "lower_95", "upper_95", "scale", "kurtosis",
                         "adaptive_threshold", "sinkhorn_epsilon", "cusum_drift", "cusum_drift_down", "holder_exponent",
                         "forecast_error", "alarm_statistic", "alarm_threshold")
        } | {
            "grace_counter": rng.integers(0, 20, n), "mode": rng.integers(0, 3, n),
            "season_length": rng.integers(0, 9, n), "gate_reasons": np.where(accepted, 0, 1 << rng.integers(0, 7, n)),
            "alarm_kind": np.where(rng.random(n) < 0.03, rng.integers(1, 64, n), 0),
            "alarm_start_ticks_ago": rng.integers(0, 30, n), "accepted": accepted,
            "sequence": [tick["sequence"] for tick in batch], "weights": rng.dirichlet(np.ones(4), n),
            "warming_up": rng.random(n) < 0.5, "emergency_mode": rng.random(n) < 0.5,
        }  # fmt: skip
        values = np.where(rng.random(n) < 0.02, np.nan, rng.normal(size=n) * 100.0)
        for row, tick in enumerate(batch):
            tick.update({name: np.asarray(column)[row] for name, column in columns.items()})
            tick["ts"], tick["value"] = ts + row, values[row]
        answers.append(answer(symbols, np.arange(ts, ts + n), values, **columns))
        ts += n
    return answers, ticks


def same(a, b):
    return (a is None or math.isnan(a)) if isinstance(b, float) and math.isnan(b) else a == b


@pytest.mark.parametrize("most", [3, 40, 900])
def test_board_is_what_a_tick_by_tick_computation_says(clock, most):
    rng = np.random.default_rng(most)
    names = [f"s{i}" for i in range(9)]
    board = Board(20, clock_fn=clock)
    board.partition_state(ONE, "RUNNING")
    answers, ticks = random_answers(rng, names, 25, most)
    for first in range(0, len(answers), 3):
        board.answered(ONE, answers[first : first + 3])
    status = status_of(board)

    by_symbol = collections.defaultdict(list)
    for tick in ticks:
        by_symbol[tick["symbol"]].append(tick)
    assert {each.symbol for each in status.symbols} == set(by_symbol)
    for each in status.symbols:
        mine = by_symbol[each.symbol]
        last, kept = mine[-1], mine[-DEPTH:]
        assert (each.ts, each.seq, each.seen) == (last["ts"], last["sequence"], len(mine))
        assert same(each.value, float(last["value"]))
        assert each.prediction == last["predicted_next"]
        assert each.interval_95 == (last["lower_95"], last["upper_95"])
        assert (each.scale, each.h_t, each.epsilon) == (
            last["scale"], last["adaptive_threshold"], last["sinkhorn_epsilon"],
        )  # fmt: skip
        assert each.weights == last["weights"].tolist()
        assert each.mode == ("Standard", "Robust", "Emergency")[last["mode"]]
        assert ("warming_up" in each.flags, "emergency" in each.flags) == (last["warming_up"], last["emergency_mode"])
        assert each.gate_reasons == labels_of_bits(int(last["gate_reasons"]), GATE_REASON_LABELS)
        assert each.history.ts == [tick["ts"] for tick in kept]
        assert each.history.alarm == [tick["alarm_kind"] for tick in kept]
        for name, column in (("value", "value"), ("prediction", "predicted_next"), ("upper_80", "upper_80")):
            wanted = np.array([tick[column] for tick in kept], float)
            spread = max(np.nanmax([tick["value"] for tick in kept]) - np.nanmin([t["value"] for t in kept]), 1e-9)
            np.testing.assert_allclose(np.array(getattr(each.history, name), float), wanted, atol=1e-5 * spread)
        alarms = [tick for tick in mine if tick["alarm_kind"]]
        assert each.alarms == len(alarms)
        if alarms:
            alarm = alarms[-1]
            start = max(alarm["sequence"] - alarm["alarm_start_ticks_ago"], 0)
            assert (each.last_alarm.ts, each.last_alarm.seq, each.last_alarm.start_seq) == (
                alarm["ts"], alarm["sequence"], start,
            )  # fmt: skip
            assert each.last_alarm.statistic == alarm["alarm_statistic"]
            if each.last_alarm.start_ts is not None:
                assert each.last_alarm.start_ts == next(tick["ts"] for tick in mine if tick["sequence"] == start)
        else:
            assert each.last_alarm is None
    totals = status.totals
    assert totals.predictions == len(ticks)
    assert totals.rejected == sum(not tick["accepted"] for tick in ticks)
    assert totals.alarms == sum(tick["alarm_kind"] != 0 for tick in ticks)
    assert totals.alarms_by_kind == {
        label: n
        for bit, label in enumerate(ALARM_KIND_LABELS)
        if (n := sum(int(t["alarm_kind"]) >> bit & 1 for t in ticks))
    }
    wanted = [tick["ts"] for tick in ticks if tick["alarm_kind"]][-MAX_RECENT_ALARMS:]
    assert [event.ts for event in status.recent_alarms] == wanted[::-1]


def test_ten_thousand_symbols_are_bounded(clock):
    board = Board(50, clock_fn=clock)
    board.partition_state(ONE, "RUNNING")
    board.update(ONE, symbols=10_000)
    names = [f"symbol-{i}" for i in range(10_000)]
    rng = np.random.default_rng(0)
    for step in range(120):
        symbols = [names[i] for i in rng.integers(0, 10_000, 2_000)]
        kinds = np.where(rng.random(2_000) < 0.01, 1, 0)
        board.answered(ONE, [answer(symbols, np.full(2_000, step), np.ones(2_000), alarm_kind=kinds)])
        clock.now += 1.0
    status = status_of(board)
    assert len(status.symbols) == status.totals.watched == 50
    assert (status.totals.symbols, status.totals.predictions) == (10_000, 240_000)
    assert len(status.recent_alarms) == MAX_RECENT_ALARMS
    watch = board._watch
    assert np.count_nonzero(watch._slots[ONE] >= 0) == len(watch) == 50
    assert len(board._pending) < 65
    arrays = [*board._memory.rings.values(), *board._memory.last.values()]
    assert sum(array.nbytes for array in arrays) < 50 * 6_000
    assert sys.getsizeof(status) < 1_000_000


def test_equally_busy_symbols_do_not_drive_each_other_out(clock):
    board = Board(10, clock_fn=clock)
    names = [f"s{i}" for i in range(40)]
    for _ in range(200):
        board.answered(ONE, [answer(names, np.zeros(40), np.zeros(40))])
        clock.now += 0.5
    assert {each.symbol for each in status_of(board).symbols} == set(names[:10])


def test_a_busier_symbol_takes_the_place_of_a_quiet_one(clock):
    board = Board(4, clock_fn=clock)
    board.answered(ONE, [answer(list("abcd"), np.zeros(4), np.zeros(4))])
    for _ in range(100):
        board.answered(ONE, [answer(["busy", "a"] * 50, np.zeros(100), np.zeros(100))])
        clock.now += 2 * REVIEW_S / 50
    names = {each.symbol for each in status_of(board).symbols}
    assert {"busy", "a"} <= names and len(names) == 4


def test_a_symbol_that_alarms_is_watched_and_stays_until_the_alarm_is_old(clock):
    board = Board(3, clock_fn=clock)
    board.answered(ONE, [answer(list("abc"), np.zeros(3), np.zeros(3))])
    board.answered(ONE, [answer(["quiet"], [7], [1.5], alarm_kind=[4], sequence=[9], alarm_start_ticks_ago=[2])])
    (found,) = [each for each in status_of(board).symbols if each.symbol == "quiet"]
    assert (found.last_alarm.kinds, found.last_alarm.start_seq, found.history.alarm) == (["scale_up"], 7, [4])

    def crowd():
        for _ in range(40):
            board.answered(ONE, [answer(["x", "y", "z", "w"] * 20, np.zeros(80), np.zeros(80))])
            clock.now += 1.0
        return {each.symbol for each in status_of(board).symbols}

    assert "quiet" in crowd()
    clock.now += ALARM_KEPT_S
    assert "quiet" not in crowd()


def test_a_symbol_that_was_counted_and_then_alarmed_has_one_slot():
    watch, none = WatchList(2), np.zeros(0, np.intp)

    def admit(symbols, now, alarmed=none):
        watch.admit(ONE, watch.rows_of(ONE, symbols), np.asarray(alarmed, np.intp), now)

    admit(["a", "b"], 0.0)
    admit(["y"], 0.0)  # the first review, from which the next is counted
    admit(["x"] * 200, 1.0)
    admit(["x"], 2.0, alarmed=[0])
    admit(["z"], 1.0 + REVIEW_S)
    assert sorted(watch.names).count("x") == 1
    slots = watch.slots_of(ONE, watch.rows_of(ONE, watch.names))
    assert slots.tolist() == watch.taken == [0, 1]


def test_of_alarms_only_the_newest_keep_their_place(clock):
    board = Board(2, clock_fn=clock)
    for number, name in enumerate("abcd"):
        board.answered(ONE, [answer([name], [number], [0.0], alarm_kind=[1])])
        board.view()
        clock.now += 1.0
    assert {each.symbol for each in status_of(board).symbols} == {"c", "d"}


def test_one_symbol_in_two_partitions_is_two_and_a_partition_that_goes_takes_its_own(clock):
    board = Board(4, clock_fn=clock)
    for partition, value in ((ONE, 1.0), (TWO, 2.0)):
        board.partition_state(partition, "RUNNING")
        board.answered(partition, [answer(["a"], [1], [value])])
    assert {(each.partition, each.value) for each in status_of(board).symbols} == {(0, 1.0), (1, 2.0)}
    board.partition_state(ONE, None)
    status = status_of(board)
    assert [(each.partition, each.value) for each in status.symbols] == [(1, 2.0)]
    assert [each.partition for each in status.partitions] == [1]
    board.partition_state(ONE, "RUNNING")
    board.answered(ONE, [answer(["a"], [2], [3.0])])
    assert sorted((each.value, each.seen) for each in status_of(board).symbols) == [(2.0, 1), (3.0, 1)]


def test_no_symbol_is_watched_where_none_is_to_be(clock):
    board = Board(0, clock_fn=clock)
    board.answered(ONE, [answer(["a", "b"], [1, 2], [1.0, 2.0], alarm_kind=[1, 0])])
    status = status_of(board)
    assert (status.symbols, status.totals.predictions, status.totals.alarms) == ([], 2, 1)


def test_ticks_by_second(clock):
    board = Board(2, clock_fn=clock)
    for size in (3, 0, 5):
        board.answered(ONE, [answer(["a"] * size, np.zeros(size), np.zeros(size))])
        clock.now += 1.0
    assert status_of(board).totals.ticks_by_second[-4:] == [0, 3, 0, 5]
    assert status_of(board).totals.ticks_per_s == 0.8
    clock.now += 100.0
    assert status_of(board).totals.ticks_by_second == [0] * 60
    clock.now -= 50.0  # a clock that was set back
    board.answered(ONE, [answer(["a"], [0], [0.0])])
    assert sum(status_of(board).totals.ticks_by_second) == 0


def test_a_view_does_not_change_any_more(clock):
    board = Board(2, clock_fn=clock)
    board.answered(ONE, [answer(["a"], [1], [1.0])])
    view = board.view()
    board.answered(ONE, [answer(["a"], [2], [2.0])])
    board.view()
    assert build_status(view, FACTS).symbols[0].value == 1.0


def test_partitions(clock):
    board = Board(2, clock_fn=clock)
    board.update(ONE, queued=3)  # not held: nothing
    board.partition_state(ONE, "REPLAYING")
    board.update(ONE, replay_left=9, queued=4, paused=True)
    board.snapshot_saved(ONE, 0.5, 1234)
    clock.now += 5.0
    board.partition_state(ONE, "RUNNING")
    board.update(ONE, snapshot_error="SnapshotWriteError")
    (found,) = status_of(board).partitions
    assert (found.state, found.replay_left, found.queued, found.paused) == ("RUNNING", 0, 4, True)
    assert found.since_ns - found.snapshot.time_ns == 5_000_000_000
    assert (found.snapshot.size_bytes, found.snapshot_error) == (1234, "SnapshotWriteError")
