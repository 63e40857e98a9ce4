"""One suite over every source and every sink."""

import asyncio
import gzip

import pytest

from usp_daemon.transport import FileSource, JsonLinesSink, MemorySink, MemorySource, inspect_file
from usp_daemon.wire import EncodedRecords, OutputBatch, RawBatch, TickFormat, TransportError

NUM_RECORDS = 25


def csv_line(i):
    return b"%d,%d.5,s%d" % (i, i, i % 3)


def json_line(i):
    return b'{"symbol":"s%d","ts":%d,"value":%d.5}' % (i % 3, i, i)


def memory_source(directory):
    del directory
    batches = [
        RawBatch(
            topic="t", partition=0, source="m", offsets=range(i, i + 5), values=[json_line(j) for j in range(i, i + 5)]
        )
        for i in range(0, NUM_RECORDS, 5)
    ]
    return MemorySource(batches), [json_line(i) for i in range(NUM_RECORDS)]


def file_source(directory, name, header, line_fn, *, compress=False, files=1):
    paths, lines = [], [line_fn(i) for i in range(NUM_RECORDS)]
    share = NUM_RECORDS // files
    for number in range(files):
        path = directory / f"{number}{name}"
        content = b"\n".join([*header, *lines[number * share : (number + 1) * share]]) + b"\n"
        path.write_bytes(gzip.compress(content) if compress else content)
        paths.append(inspect_file(path, TickFormat()))
    return FileSource(paths, batch_records=7), lines


SOURCES = {
    "memory": memory_source,
    "csv": lambda d: file_source(d, "a.csv", [b"ts,value,symbol"], csv_line),
    "csv_gzip": lambda d: file_source(d, "a.csv.gz", [b"ts,value,symbol"], csv_line, compress=True),
    "jsonl": lambda d: file_source(d, "a.jsonl", [], json_line),
    "several_files": lambda d: file_source(d, "a.jsonl", [], json_line, files=5),
}


@pytest.fixture(params=SOURCES)
def source_and_records(request, tmp_path):
    return SOURCES[request.param](tmp_path)


async def collect(source):
    return [batch async for batch in source.batches()]


async def test_every_record_is_handed_out_once_and_in_order(source_and_records):
    source, records = source_and_records
    async with source:
        batches = await collect(source)
    assert all(len(batch) for batch in batches)
    assert [value for batch in batches for value in batch.values] == records
    for batch in batches:
        offsets = list(batch.offsets)
        assert offsets == sorted(set(offsets))
        assert len(offsets) == len(batch)


async def test_a_stopped_source_ends_after_the_batch_in_hand(source_and_records):
    source, records = source_and_records
    seen = []
    async with source:
        async for batch in source.batches():
            seen += batch.values
            source.stop()
    assert 0 < len(seen) < len(records)
    assert seen == records[: len(seen)]


async def test_a_source_stopped_before_it_began_hands_out_nothing(source_and_records):
    source, _ = source_and_records
    source.stop()
    async with source:
        assert await collect(source) == []


async def test_closing_a_source_twice_is_harmless(source_and_records):
    source, _ = source_and_records
    await source.open()
    await source.close()
    await source.close()


async def test_a_source_does_not_keep_the_loop_busy(source_and_records):
    source, _ = source_and_records
    async with source, asyncio.timeout(10):
        others = asyncio.create_task(asyncio.sleep(0))
        await collect(source)
        await others


def output(name):
    records = EncodedRecords([b"k"] * 2, [b'{"n":"%s1"}' % name, b'{"n":"%s2"}' % name], [("t", 0, 1), ("t", 0, 2)])
    return OutputBatch(records, EncodedRecords((), (), ()), records, {("t", 0): 3})


SINKS = {"memory": lambda d: MemorySink(), "json_lines": lambda d: JsonLinesSink(d / "deep" / "out")}


def published(sink, directory):
    if isinstance(sink, MemorySink):
        return sink.predictions, sink.alarms, sink.dead_letters
    names = ("predictions", "alarms", "dead_letters")
    return tuple((directory / "deep" / "out" / f"{name}.jsonl").read_bytes().splitlines() for name in names)


@pytest.fixture(params=SINKS)
def sink(request, tmp_path):
    return SINKS[request.param](tmp_path)


async def test_what_is_published_is_there_in_order_after_closing(sink, tmp_path):
    async with sink:
        await sink.publish(output(b"a"))
        await sink.publish(output(b"b"))
    expected = [b'{"n":"a1"}', b'{"n":"a2"}', b'{"n":"b1"}', b'{"n":"b2"}']
    predictions, alarms, dead_letters = published(sink, tmp_path)
    assert list(predictions) == list(dead_letters) == expected
    assert list(alarms) == []


async def test_closing_a_sink_twice_is_harmless(sink):
    await sink.open()
    await sink.close()
    await sink.close()


async def test_what_was_published_survives_a_failure_of_the_body(sink, tmp_path):
    with pytest.raises(RuntimeError, match="broke"):
        async with sink:
            await sink.publish(output(b"a"))
            raise RuntimeError("broke")
    assert len(published(sink, tmp_path)[0]) == 2


async def test_results_of_an_earlier_run_stay_until_the_next_one_has_ended(tmp_path):
    path = tmp_path / "predictions.jsonl"
    path.write_bytes(b"old\n")
    sink = JsonLinesSink(tmp_path)
    await sink.open()
    await sink.publish(output(b"a"))
    assert path.read_bytes() == b"old\n"
    await sink.close()
    assert path.read_bytes() == b'{"n":"a1"}\n{"n":"a2"}\n'
    assert not list(tmp_path.glob("*.partial"))


async def test_a_directory_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(TransportError, match="file"):
        await JsonLinesSink(tmp_path / "file" / "out").open()
