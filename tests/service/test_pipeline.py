"""The pipeline answers every record exactly once, in order, whatever the batches, the queues and the failures."""

import asyncio
import time

import hypothesis
import hypothesis.strategies as st
import numpy as np
import orjson
import pytest

from fake_predictor import FakePredictor
from usp_daemon.service import Pacer, Pipeline, TimeUnitGuard
from usp_daemon.transport import MemorySink, MemorySource
from usp_daemon.wire import RawBatch, ResultEncoder, TickDecoder


def tick(symbol, ts, value="1"):
    return f'{{"symbol":"{symbol}","ts":{ts},"value":{value}}}'.encode()


def raw(values, *, offset=0, partition=0, **changes):
    given = {"topic": "t", "partition": partition, "source": "t", "offsets": range(offset, offset + len(values))}
    return RawBatch(**(given | {"values": values} | changes))


def pipeline(batches, predictor=None, **options):
    sink = MemorySink()
    built = Pipeline(
        source=MemorySource(batches),
        sink=sink,
        predictor=predictor or FakePredictor(),
        decoder=TickDecoder(),
        encoder=ResultEncoder(config_hash="x"),
        key_fn=lambda *key: key,
        **options,
    )
    return built, sink


def decoded(records):
    return [orjson.loads(record) for record in records]


async def test_every_record_gets_one_answer_in_order():
    records = [tick("ab"[i % 2], i, i) for i in range(50)]
    records[7], records[20], records[21] = b"junk", b"", tick("a", -1)
    run, sink = pipeline([raw(records[i : i + 10], offset=i) for i in range(0, 50, 10)])
    stats = await run.run()
    predictions, dead = decoded(sink.predictions), decoded(sink.dead_letters)
    assert [p["ts"] for p in predictions] == [i for i in range(50) if i not in (7, 20, 21)]
    assert [d["offset"] for d in dead] == [7, 20, 21]
    assert stats.records == 50 == stats.predictions + stats.dead_letters
    assert stats.dead_letters_by_reason == {"not_json": 1, "empty_record": 1, "timestamp_negative": 1}
    assert stats.symbols == {"a", "b"}


async def test_origins_and_positions_say_what_is_answered():
    batches = [raw([tick("a", 1), b"x"], offset=5), raw([tick("a", 2)], offset=90, partition=1)]
    run, sink = pipeline(batches)
    await run.run()
    origins = [origin for batch in sink.batches for origin in batch.predictions.origins]
    assert origins == [("t", 0, 5), ("t", 1, 90)]
    positions = {}
    for batch in sink.batches:
        positions.update(batch.positions)
    assert positions == {("t", 0): 7, ("t", 1): 91}
    assert [key for batch in sink.batches for key in batch.predictions.keys] == [b"a", b"a"]


async def test_a_batch_of_dead_letters_alone_needs_no_predictor():
    predictor = FakePredictor()
    run, sink = pipeline([raw([b"x", b"y"])], predictor)
    await run.run()
    assert predictor.batch_sizes == []
    assert len(sink.dead_letters) == 2
    assert sink.batches[0].positions == {("t", 0): 2}


async def test_symbols_beyond_capacity_are_dead_letters_with_their_bytes():
    records = [tick(f"s{i}", i) for i in range(100)]
    run, sink = pipeline([raw(records)], FakePredictor(max_symbols=30))
    stats = await run.run()
    assert (stats.predictions, stats.dead_letters) == (30, 70)
    dead = decoded(sink.dead_letters)
    assert {d["reason"] for d in dead} == {"symbol_capacity"}
    assert [d["original"].encode() for d in dead] == records[30:]


async def test_an_answer_that_is_not_finite_never_leaves():
    run, sink = pipeline([raw([tick("a", i, i) for i in range(5)])], FakePredictor(poison={3.0}))
    stats = await run.run()
    assert [p["value"] for p in decoded(sink.predictions)] == [0.0, 1.0, 2.0, 4.0]
    assert stats.dead_letters_by_reason == {"non_finite_output": 1}


async def test_values_that_are_not_finite_are_answered_with_the_standing_forecast():
    run, sink = pipeline([raw([tick("a", 1, 5), tick("a", 2, "null"), tick("a", 3, "NaN")])])
    stats = await run.run()
    predictions = decoded(sink.predictions)
    assert [p["prediction"] for p in predictions] == [5.0, 5.0, 5.0]
    assert [p["value"] for p in predictions] == [5.0, None, None]
    assert [p["gate_reasons"] for p in predictions] == [[], ["not_finite"], ["not_finite"]]
    assert stats.rejected == 2


async def test_what_waits_is_stepped_together():
    predictor = FakePredictor(delay_s=0.02)
    run, _ = pipeline([raw([tick("a", i)], offset=i) for i in range(64)], predictor, max_batch=16, queue_batches=8)
    stats = await run.run()
    assert stats.predictions == 64
    assert 1 < max(predictor.batch_sizes) <= 16
    assert sum(predictor.batch_sizes) == 64


async def test_a_slow_predictor_holds_the_source_back():
    handed_out = 0

    def endless():
        nonlocal handed_out
        while True:
            handed_out += 1
            yield raw([tick("a", handed_out)], offset=handed_out)

    run, _ = pipeline(endless(), FakePredictor(delay_s=3600.0), queue_batches=2, max_batch=1)
    task = asyncio.create_task(run.run())
    await asyncio.sleep(0.2)
    assert handed_out <= 10  # two queues of two, and one in each stage's hands
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_stopping_drains_what_was_taken_in():
    def endless():
        offset = 0
        while True:
            yield raw([tick("a", offset)], offset=offset)
            offset += 1

    run, sink = pipeline(endless())
    task = asyncio.create_task(run.run())
    await asyncio.sleep(0.05)
    run.stop()
    stats = await asyncio.wait_for(task, 10)
    assert stats.records == stats.predictions == len(sink.predictions) > 0
    assert [p["ts"] for p in decoded(sink.predictions)] == list(range(stats.records))


@pytest.mark.parametrize("fail_after", [0, 3])
async def test_a_failing_predictor_ends_the_run_and_says_why(fail_after):
    run, sink = pipeline(
        [raw([tick("a", i)], offset=i) for i in range(100)], FakePredictor(fail_after=fail_after), max_batch=1
    )
    with pytest.raises(ExceptionGroup) as caught:
        await asyncio.wait_for(run.run(), 10)
    assert caught.group_contains(RuntimeError, match="the device is gone")
    assert len(sink.predictions) <= fail_after


async def test_a_failing_sink_ends_the_run_and_says_why():
    run, sink = pipeline([raw([tick("a", i)], offset=i) for i in range(100)])

    async def publish(batch):
        raise OSError("no space left")

    sink.publish = publish
    with pytest.raises(ExceptionGroup) as caught:
        await asyncio.wait_for(run.run(), 10)
    assert caught.group_contains(OSError, match="no space left")


async def test_tasks_have_names():
    run, _ = pipeline([raw([tick("a", 1)])], FakePredictor(delay_s=0.05))
    task = asyncio.create_task(run.run())
    await asyncio.sleep(0.02)
    names = {running.get_name() for running in asyncio.all_tasks()}
    await task
    assert {"pipeline.step", "pipeline.publish"} <= names


@hypothesis.given(
    st.lists(
        st.lists(st.sampled_from([tick("a", 1), tick("b", 2, "null"), b"junk", tick("c", -1)]), min_size=1), max_size=9
    ),
    st.integers(1, 9),
    st.integers(1, 3),
)
def test_how_records_are_batched_does_not_matter(batches, max_batch, queue_batches):
    def run_with(given, **options):
        run, sink = pipeline(given, **options)
        asyncio.run(run.run())
        return sink.predictions, sink.dead_letters

    flat = [record for batch in batches for record in batch]
    parts, offset = [], 0
    for batch in batches:
        parts.append(raw(batch, offset=offset))
        offset += len(batch)
    together = run_with([raw(flat)] if flat else [])
    assert run_with(parts, max_batch=max_batch, queue_batches=queue_batches) == together


class VirtualTime:
    def __init__(self):
        self.now = 100.0

    def clock(self):
        return self.now

    async def wait(self, seconds):
        assert seconds > 0.0
        self.now += seconds


async def released(pacer, time_, *batches):
    decoder = TickDecoder()
    return [
        (round(time_.now - 100.0, 6), part.timestamps_ns.tolist())
        for batch in batches
        async for part in pacer.release(decoder.decode(batch))
    ]


SECOND = 10**9


async def test_paced_ticks_come_when_they_are_due():
    time_ = VirtualTime()
    pacer = Pacer(2.0, clock_fn=time_.clock, wait_fn=time_.wait)
    stamps = [0, 4 * SECOND, 2 * SECOND, 10 * SECOND]
    parts = await released(pacer, time_, raw([tick("a", s) for s in stamps]))
    assert parts == [(0.0, stamps[:1]), (2.0, stamps[1:3]), (5.0, stamps[3:])]


async def test_pacing_goes_on_over_batches_and_starts_anew_with_each_source():
    time_ = VirtualTime()
    pacer = Pacer(1.0, clock_fn=time_.clock, wait_fn=time_.wait)
    first, second = raw([tick("a", 5 * SECOND)]), raw([b"junk", tick("a", 8 * SECOND)])
    other = raw([tick("a", SECOND)], source="other")
    assert await released(pacer, time_, first, second, other) == [
        (0.0, [5 * SECOND]),
        (3.0, [8 * SECOND]),
        (3.0, [SECOND]),
    ]


async def test_a_stopped_pacer_lets_go_at_once_and_the_counts_stay_true():
    records = [tick("a", 0), tick("a", 3600 * SECOND)]
    run, sink = pipeline([raw(records)], pacer=Pacer(1.0))
    task = asyncio.create_task(run.run())
    while not sink.predictions:
        await asyncio.sleep(0.01)
    started = time.monotonic()
    run.stop()
    stats = await task
    assert time.monotonic() - started < 5.0
    assert stats.records == stats.predictions == 1
    assert sink.batches[-1].positions == {("t", 0): 1}


YEAR_2023_NS = 1_700_000_000 * SECOND


@pytest.mark.parametrize("factor", [10**3, 10**6, 10**9])
def test_a_tick_in_another_unit_is_taken_out(factor):
    good = [YEAR_2023_NS + i * SECOND for i in range(100)]
    stamps = [*good[:50], good[50] // factor, *good[51:]]
    batch = TimeUnitGuard()(TickDecoder().decode(raw([tick("a", s) for s in stamps])))
    assert batch.timestamps_ns.tolist() == good[:50] + good[51:]
    (entry,) = batch.dead_letters
    assert (entry.reason, entry.offset) == ("time_unit_mismatch", 50)


def test_a_file_that_begins_in_the_wrong_unit_recovers():
    stamps = [1_700_000_000_000_000 + i for i in range(3)] + [YEAR_2023_NS + i for i in range(40)]
    batch = TimeUnitGuard()(TickDecoder().decode(raw([tick("a", s) for s in stamps])))
    assert batch.timestamps_ns.tolist()[3:] == stamps[18:]
    assert len(batch.dead_letters) == 15


def test_a_file_that_changes_its_unit_for_good_is_refused_from_there_on():
    stamps = [YEAR_2023_NS + i for i in range(40)] + [1_700_000_000_000 + i for i in range(60)]
    guard = TimeUnitGuard()
    batches = [guard(TickDecoder().decode(raw([tick("a", s)], offset=i))) for i, s in enumerate(stamps)]
    assert [len(batch) for batch in batches] == [1] * 40 + [0] * 60


@pytest.mark.parametrize("stamps", [[0, 1, 10**6, 5, 10**14], [10**17, 10**18], list(range(0, 10**9, 10**8))])
def test_indices_and_ordinary_gaps_are_no_change_of_unit(stamps):
    batch = TickDecoder().decode(raw([tick("a", s) for s in stamps]))
    assert TimeUnitGuard()(batch) is batch


def test_parts_of_a_batch_carry_dead_letters_once():
    batch = TickDecoder().decode(raw([tick("a", 1), b"junk", tick("a", 2), b"junk"]))
    first, last = batch.part(0, 1, with_dead_letters=True), batch.part(1, 2, with_dead_letters=False)
    assert (len(first.dead_letters), len(last.dead_letters)) == (2, 0)
    assert (first.next_offset, last.next_offset) == (1, 4)
    np.testing.assert_array_equal(np.concatenate([first.values, last.values]), batch.values)
