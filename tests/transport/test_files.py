"""Files as people have them: missing, empty, cut off, in other encodings, with lines of ten megabytes."""

import gzip
import os

import pytest

from usp_daemon.transport import FileSource, InputError, inspect_file
from usp_daemon.wire import DeadLetterReason, TickDecoder, TickFormat, TimeUnit


def write(path, content):
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def refusal(path, **options):
    with pytest.raises(InputError) as caught:
        inspect_file(path, TickFormat(), **options)
    text = str(caught.value)
    assert str(path) in text
    return text


async def read(*paths, tick_format=None, **options):
    tick_format = tick_format or TickFormat()
    source = FileSource([inspect_file(path, tick_format) for path in paths], **options)
    decoder = TickDecoder(tick_format)
    async with source:
        return [decoder.decode(batch) async for batch in source.batches()], source


def test_a_missing_file_is_named(tmp_path):
    assert "no such file" in refusal(tmp_path / "gone.csv")


@pytest.mark.parametrize("content", [b"", b"\n\r\n  \n", gzip.compress(b"", mtime=0)])
def test_an_empty_file_is_refused(tmp_path, content):
    assert "is empty" in refusal(write(tmp_path / "a.csv", content))


def test_a_header_alone_is_refused(tmp_path):
    assert "no ticks" in refusal(write(tmp_path / "a.csv", "ts,value\n\n"))


def test_a_directory_and_a_pipe_are_refused(tmp_path):
    assert "directory" in refusal(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    assert "not a regular file" in refusal(tmp_path / "pipe")


def test_utf16_is_recognised(tmp_path):
    assert "UTF-16" in refusal(write(tmp_path / "a.csv", "ts,value\n1,2\n".encode("utf-16")))


def test_a_header_that_is_no_text_is_refused(tmp_path):
    assert "not UTF-8" in refusal(write(tmp_path / "a.csv", b"ts,v\xe9\n1,2\n"))


def test_a_damaged_archive_is_refused(tmp_path):
    assert "cannot be read" in refusal(write(tmp_path / "a.csv.gz", b"\x1f\x8b" + b"\x00" * 50))


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("a,b\n1,2\n", "no column 'ts' for the time"),
        ("ts,b\n1,2\n", "no column 'value' for the value"),
        ("1404172800,10844\n1404174600,8127\n", "has no header"),
        ("ts,value,value\n1,2,3\n", "twice"),
        ('"ts,value\n1,2\n', "header cannot be read"),
    ],
)
def test_a_bad_header_is_explained(tmp_path, header, expected):
    assert expected in refusal(write(tmp_path / "a.csv", header))


def test_a_column_asked_for_by_name_is_not_replaced_by_an_alias(tmp_path):
    path = write(tmp_path / "a.csv", "time,price\n1,2\n")
    layout = inspect_file(path, TickFormat()).layout
    assert layout is not None
    assert (layout.time_column, layout.value_column) == (0, 1)
    with pytest.raises(InputError, match="'stamp'"):
        inspect_file(path, TickFormat(time_field="stamp"))


@pytest.mark.parametrize(
    ("name", "content", "is_csv"),
    [
        ("a.csv", "ts,value\n1,2\n", True),
        ("a.tsv", "ts\tvalue\n1\t2\n", True),
        ("a.txt", "value;ts\n1;2\n", True),
        ("a.jsonl", '{"symbol":"s","ts":1,"value":2}\n', False),
        ("a", '{"symbol":"s","ts":1,"value":2}\n', False),
    ],
)
async def test_the_kind_of_file_is_found(tmp_path, name, content, is_csv):
    path = write(tmp_path / name, content)
    assert (inspect_file(path, TickFormat()).layout is not None) == is_csv
    batches, _ = await read(path)
    assert sum(map(len, batches)) == 1


async def test_a_file_without_symbols_is_one_series_named_like_it(tmp_path):
    content = "\ufeffts,value\r\n1,2\r\n\r\n2,3\r\n"
    batches, _ = await read(
        write(tmp_path / "taxi.csv", content), write(tmp_path / "zip.csv.gz", gzip.compress(content.encode()))
    )
    assert [symbol for batch in batches for symbol in batch.symbols] == ["taxi", "taxi", "zip", "zip"]
    assert [offset for batch in batches for offset in batch.raw.offsets] == [2, 4, 2, 4]


async def test_lines_that_are_not_utf8_are_dead_letters_with_their_numbers(tmp_path):
    path = write(tmp_path / "a.csv", b"ts,value,symbol\n1,2,a\n2,3,\xe9\n3,4,a\n")
    (batch,), _ = await read(path)
    assert len(batch) == 2
    (entry,) = batch.dead_letters
    assert (entry.reason, entry.offset, entry.original) == (DeadLetterReason.NOT_UTF8, 3, b"2,3,\xe9")


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b""])
async def test_a_line_of_ten_megabytes_is_skipped_without_being_kept(tmp_path, end):
    size = 10_000_000
    tail = b"2,3,a\n" if end else b""
    path = write(tmp_path / "a.csv", b"ts,value,symbol\n1,2,a\n" + b"x" * size + end + tail)
    (batch,), _ = await read(path)
    assert len(batch) == (2 if end else 1)
    (entry,) = batch.dead_letters
    assert entry.reason == DeadLetterReason.RECORD_TOO_LARGE
    assert (entry.offset, entry.original_size_bytes) == (3, size)
    assert len(entry.original) == 1024


@pytest.mark.parametrize("length", [99, 100, 101])
@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
async def test_the_limit_on_a_line_is_exact(tmp_path, length, end):
    line = b"1,2," + b"a" * (length - 4)
    path = write(tmp_path / "a.csv", b"ts,value,symbol" + end + line + end + b"2,3,a" + end)
    batches, _ = await read(path, tick_format=TickFormat(max_record_bytes=100), max_record_bytes=100)
    assert sum(map(len, batches)) == (2 if length <= 100 else 1)


async def test_a_truncated_archive_gives_what_is_left_and_says_so(tmp_path):
    lines = b"".join(b"%d,%d.25,a\n" % (i, i * 7919 % 1000) for i in range(20_000))
    content = gzip.compress(b"ts,value,symbol\n" + lines)
    whole = write(tmp_path / "whole.csv", b"ts,value,symbol\n1,2,a\n")
    batches, source = await read(write(tmp_path / "cut.csv.gz", content[: len(content) // 2]), whole)
    num_ticks = sum(map(len, batches))
    assert 1000 < num_ticks < 20_001
    assert batches[-1].raw.source == str(whole)
    (problem,) = source.problems
    assert "breaks off" in problem.message
    assert problem.line == num_ticks  # the header, the cut file's ticks; less the one of the whole file


async def test_files_side_by_side_take_turns_and_lose_nothing(tmp_path):
    sizes = {"a": 500, "b": 10, "c": 300}
    paths = [
        write(tmp_path / f"{name}.csv", "ts,value\n" + "".join(f"{i},{i}\n" for i in range(size)))
        for name, size in sizes.items()
    ]
    batches, source = await read(*paths, side_by_side=True, batch_records=192)
    assert [batch.raw.source[-5] for batch in batches][:4] == ["a", "b", "c", "a"]
    for name, size in sizes.items():
        times = [t for batch in batches for t, s in zip(batch.timestamps_ns, batch.symbols, strict=True) if s == name]
        assert times == list(range(size))
    assert source.bytes_read == source.bytes_total


def test_the_first_time_is_shown_for_the_check_of_units(tmp_path):
    seconds = TickFormat(time_unit=TimeUnit.SECONDS)
    assert inspect_file(write(tmp_path / "a.csv", "ts,value\n1404172800,2\n"), seconds).first_time == "1404172800"
    assert inspect_file(write(tmp_path / "b.jsonl", '{"ts":17,"value":2}\n'), seconds).first_time == "17"
    assert inspect_file(write(tmp_path / "c.jsonl", "junk\n"), seconds).first_time is None
