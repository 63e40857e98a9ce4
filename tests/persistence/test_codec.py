"""Bytes and back: equal to the last bit, and nothing that is not whole passes."""

import contextlib
import gzip
import itertools
import os
import zlib

import hypothesis
import msgspec
import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of

from snapshot_samples import assert_same, frame_by_hand, header_by_hand, sample
from usp_daemon.persistence import (
    FORMAT_VERSION,
    DamagedSnapshotError,
    SnapshotContentError,
    SnapshotVersionError,
    decode_snapshot,
    encode_snapshot,
    read_header,
    read_snapshot,
)

COMPRESSIONS = ("none", "gzip")
DTYPES = ["?", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", "c8", "c16"]


def tiny(**changes):
    values = {"settings": {"a.b": 1.5}, "identity": {"h": "x"}, "counters": {}, "symbols": ("a", "b")}
    values["arrays"] = {"x": np.array([1.5, -0.0]), "y": np.array([[True], [False]])}
    return sample(**(values | changes))


def with_arrays(**arrays):
    return sample(arrays=arrays, symbols=tuple(str(i) for i in range(len(next(iter(arrays.values()))))))


@pytest.fixture
def read(tmp_path):
    """Decode through a file."""

    def read_bytes(data):
        path = tmp_path / "a.usp"
        path.write_bytes(data)
        return read_snapshot(path)

    return read_bytes


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize(
    "snapshot",
    [
        sample(),
        sample(num_symbols=0),
        sample(num_symbols=300, width=700),  # arrays of more than one piece
        sample(arrays={}, symbols=()),
        sample(symbols=("", "\x00", "日本語 🙂", "a" * 5000), arrays={"": np.arange(4.0)}),
        sample(settings={"a": float("inf"), "b": -0.0, "c": 1.0, "d": 1, "e": True, "f": "ü", "g": -(2**63)}),
        with_arrays(**{kind: np.arange(6).reshape(2, 3).astype(kind) for kind in DTYPES}),
        with_arrays(f=np.asfortranarray(np.arange(6.0).reshape(2, 3)), s=np.arange(20)[::-2].reshape(2, 5)),
        with_arrays(nan=np.array([0x7FF0000000000001, 0xFFF8DEADBEEF0000], np.uint64).view(np.float64)),
    ],
    ids=("sample", "no symbols", "large", "no arrays", "names", "settings", "dtypes", "strides", "nan payloads"),
)
def test_round_trip_keeps_every_bit(snapshot, compression, read):
    data = encode_snapshot(snapshot, compression)
    for decoded in (decode_snapshot(data), read(data)):
        assert_same(snapshot, decoded)
        assert all(not array.flags.writeable for array in decoded.arrays.values())
        # 1 == 1.0 == True, so equality alone would not see a change of type
        assert [type(value) for value in decoded.settings.values()] == [type(v) for v in snapshot.settings.values()]


def test_big_endian_arrays_come_back_little_endian(read):
    decoded = read(encode_snapshot(with_arrays(x=np.array([1, 2, 3], ">i4"))))
    assert decoded.arrays["x"].dtype == np.dtype("<i4")
    assert decoded.arrays["x"].tolist() == [1, 2, 3]


def test_decoding_without_compression_copies_nothing():
    data = encode_snapshot(sample())
    whole = np.frombuffer(data, np.uint8)
    assert all(np.shares_memory(array, whole) for array in decode_snapshot(data).arrays.values() if array.size)


@st.composite
def snapshots(draw):
    text = st.text(max_size=5)
    number = st.integers(0, 2**63 - 1)
    symbols = draw(st.lists(text, unique=True, max_size=4))
    shapes = st.lists(st.integers(0, 3), max_size=3).map(lambda rest: (len(symbols), *rest))
    array = arrays_of.arrays(st.sampled_from(DTYPES).map(np.dtype), shapes)
    value = st.one_of(st.booleans(), st.integers(-(2**63), 2**64 - 1), st.floats(allow_nan=False), text)
    return sample(
        draw(number),
        topic=draw(st.text(min_size=1, max_size=5)),
        partition=draw(number),
        group=draw(text),
        symbols=tuple(symbols),
        arrays=draw(st.dictionaries(text, array, max_size=4)),
        settings=draw(st.dictionaries(text, value, max_size=4)),
        counters=draw(st.dictionaries(text, st.integers(-(2**63), 2**63 - 1), max_size=3)),
    )


@hypothesis.given(snapshots(), st.sampled_from(COMPRESSIONS))
def test_any_snapshot_survives(snapshot, compression):
    assert_same(snapshot, decode_snapshot(encode_snapshot(snapshot, compression)))


def test_the_layout_is_the_documented_one():
    snapshot = sample()
    header, body = header_by_hand(snapshot)
    assert encode_snapshot(snapshot) == frame_by_hand(FORMAT_VERSION, header, body)
    header, body = header_by_hand(snapshot, "gzip")
    assert_same(snapshot, decode_snapshot(frame_by_hand(FORMAT_VERSION, header, gzip.compress(body))))


def test_equal_snapshots_give_equal_bytes():
    for compression in COMPRESSIONS:
        assert encode_snapshot(sample(), compression) == encode_snapshot(sample(), compression)


# Versions


def test_the_present_version_is_frozen(repository_root):
    """Whoever changes a byte of the format needs a new version and a migration."""
    frozen = repository_root / "tests/persistence/fixtures/version_1.usp"
    assert frozen.read_bytes() == encode_snapshot(sample())
    assert read_header(frozen).format_version == FORMAT_VERSION == 1


def test_version_0_is_migrated(repository_root):
    frozen = repository_root / "tests/persistence/fixtures/version_0.usp"
    expected = sample(num_input_partitions=0, counters={})
    assert_same(expected, read_snapshot(frozen))
    assert_same(expected, decode_snapshot(frozen.read_bytes()))
    stored = read_header(frozen)
    assert (stored.format_version, stored.header.config_epoch) == (0, 4)
    # and it is what it claims to be: an older header, not today's
    data = frozen.read_bytes()
    old = msgspec.msgpack.decode(data[16 : 16 + int.from_bytes(data[12:16], "little")])
    assert "epoch" in old
    assert not {"config_epoch", "num_input_partitions", "counters"} & old.keys()


def test_an_old_header_that_lacks_a_member_is_damaged():
    header, body = header_by_hand(sample())
    del header["config_epoch"]  # neither "epoch" nor its new name
    with pytest.raises(DamagedSnapshotError, match="epoch"):
        decode_snapshot(frame_by_hand(0, header, body))


def test_a_newer_version_is_told_from_a_damaged_one(tmp_path):
    path = tmp_path / "a.usp"
    data = frame_by_hand(FORMAT_VERSION + 1, b"a header of the future", b"a body" * 500_000)
    path.write_bytes(data)
    for attempt in (lambda: decode_snapshot(data), lambda: read_snapshot(path), lambda: read_header(path)):
        with pytest.raises(SnapshotVersionError) as caught:
            attempt()
        assert caught.value.format_version == FORMAT_VERSION + 1
    for position in (8, 20, 1000, len(data) - 1):
        flipped = bytearray(data)
        flipped[position] ^= 1
        path.write_bytes(flipped)
        for attempt in (lambda flipped=flipped: decode_snapshot(flipped), lambda: read_snapshot(path)):
            with pytest.raises(DamagedSnapshotError):
                attempt()


def test_members_that_a_later_program_adds_are_ignored():
    header, body = header_by_hand(sample())
    assert_same(sample(), decode_snapshot(frame_by_hand(FORMAT_VERSION, header | {"weather": ["fine"]}, body)))


# Damage


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_every_flipped_bit_is_noticed(compression):
    data = encode_snapshot(tiny(), compression)
    for position, bit in itertools.product(range(len(data)), range(8)):
        flipped = bytearray(data)
        flipped[position] ^= 1 << bit
        with pytest.raises(DamagedSnapshotError):
            decode_snapshot(flipped)


def test_every_flipped_byte_of_a_file_is_noticed(read):
    data = encode_snapshot(tiny())
    for position in range(len(data)):
        flipped = bytearray(data)
        flipped[position] ^= 0xFF
        with pytest.raises(DamagedSnapshotError):
            read(flipped)


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_every_truncation_is_noticed(compression, read):
    data = encode_snapshot(tiny(), compression)
    for length in range(len(data)):
        for decode in (decode_snapshot, read):
            with pytest.raises(DamagedSnapshotError):
                decode(data[:length])
    for extra in (b"\0", data):
        with pytest.raises(DamagedSnapshotError):
            read(data + extra)


def test_zeroed_bytes_are_noticed():
    """T-63, at a place that is known not to hold zeros."""
    data = bytearray(encode_snapshot(sample()))
    assert any(data[100:104])
    data[100:104] = bytes(4)
    with pytest.raises(DamagedSnapshotError, match="checksum"):
        decode_snapshot(data)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"arrays": "x"}, "table"),
        ({"compression": "brotli"}, "table"),
        ({"dtype": "|O"}, "dtype"),
        ({"dtype": ">f8"}, "dtype"),
        ({"dtype": "<M8[ns]"}, "dtype"),
        ({"dtype": "nonsense"}, "dtype"),
        ({"shape": [2, 2]}, "expected 32 bytes at 0, got 16"),
        ({"shape": [1 << 60]}, "expected"),
        ({"shape": [-2]}, "shape"),
        ({"shape": []}, "shape"),
        ({"shape": [2] + [1] * 40}, "shape"),
        ({"offset": 64}, "expected"),
        ({"offset": -64}, "expected"),
        ({"length": 1 << 62}, "expected"),
        ({"path": "y"}, "one path"),
        ({"body_length": 1 << 62}, "body"),
        ({"symbols": ["a"]}, "one row for each"),
        ({"symbols": ["a", "a"]}, "twice"),
        ({"offset_": -1}, "offset"),
        ({"partition": 1 << 63}, "partition"),
        ({"topic": ""}, "topic"),
        ({"topic": 3}, "header"),
        ({"settings": {"a": [1]}}, "header"),
        ({"counters": {"a": 1.5}}, "header"),
    ],
)
def test_a_header_whose_parts_do_not_fit_is_refused(change, text, read):
    """The checksums are right here: this is what a defective or hostile writer could produce."""
    header, body = header_by_hand(tiny())
    for name, value in change.items():
        if name in ("dtype", "shape", "offset", "length", "path"):
            header["arrays"][0][name] = value
        else:
            header[name.removesuffix("_")] = value
    data = frame_by_hand(FORMAT_VERSION, header, body)
    for decode in (decode_snapshot, read):
        with pytest.raises(DamagedSnapshotError, match=text):
            decode(data)


def test_an_array_without_elements_cannot_have_a_monstrous_shape():
    header, body = header_by_hand(tiny(symbols=(), arrays={"x": np.zeros((0, 3))}))
    header["arrays"][0]["shape"] = [0, 1 << 62, 1 << 62]
    with pytest.raises(DamagedSnapshotError, match="shape"):
        decode_snapshot(frame_by_hand(FORMAT_VERSION, header, body))


def test_a_boolean_that_is_neither_is_refused():
    header, body = header_by_hand(tiny())
    with pytest.raises(DamagedSnapshotError, match="boolean"):
        decode_snapshot(frame_by_hand(FORMAT_VERSION, header, body[:-1] + b"\2"))


def compressed_bodies(body):
    yield "not gzip", b"x" * 40
    yield "cut off", gzip.compress(body)[:-1]
    yield "too short", gzip.compress(body[:-1])
    yield "too long", gzip.compress(body + b"\0")
    yield "a second member", gzip.compress(body) + gzip.compress(b"")
    yield "something behind", gzip.compress(body) + b"\0"
    yield "far too long", gzip.compress(body + bytes(5_000_000))
    yield "zlib", zlib.compress(body)
    yield "nothing", b""


def test_compressed_bodies_that_do_not_fit_are_refused():
    header, body = header_by_hand(sample(num_symbols=400), "gzip")
    assert_same(sample(num_symbols=400), decode_snapshot(frame_by_hand(FORMAT_VERSION, header, gzip.compress(body))))
    for what, stored in compressed_bodies(body):
        with pytest.raises(DamagedSnapshotError):
            decode_snapshot(frame_by_hand(FORMAT_VERSION, header, stored))
            pytest.fail(what)


def test_something_behind_a_body_that_ends_with_a_piece():
    """Pieces of 1 MiB are handed to zlib; here the first is the whole gzip, and what follows is in none."""
    words = np.random.default_rng(0).integers(0, 2**63, (1, 130_700))
    header, body = header_by_hand(tiny(symbols=("a",), arrays={"x": words}), "gzip")
    stored = gzip.compress(body, 1)
    # a file name in gzip's own header fills the piece
    stored = stored[:3] + b"\x08" + stored[4:10] + b"n" * ((1 << 20) - len(stored) - 1) + b"\0" + stored[10:]
    assert len(stored) == 1 << 20
    decode_snapshot(frame_by_hand(FORMAT_VERSION, header, stored))
    with pytest.raises(DamagedSnapshotError, match="decompress"):
        decode_snapshot(frame_by_hand(FORMAT_VERSION, header, stored + b"\0"))


def test_no_memory_is_taken_for_a_promise(tmp_path):
    """A header that promises 4 TiB, and a file of 16 TiB of which nothing is on the disk."""
    header, _ = header_by_hand(tiny(arrays={"x": np.zeros((2, 1))}), "gzip")
    header["arrays"][0] |= {"shape": [2, 1 << 38], "length": 1 << 42}
    header["body_length"] = 1 << 42
    with pytest.raises(DamagedSnapshotError, match="cannot be"):
        decode_snapshot(frame_by_hand(FORMAT_VERSION, header, b"x" * 100))
    path = tmp_path / "sparse.usp"
    data = encode_snapshot(tiny())
    with path.open("wb") as file:
        file.write(data)
        file.truncate(1 << 43)
    with pytest.raises(DamagedSnapshotError, match="cut off or too long"):
        read_snapshot(path)
    with path.open("r+b") as file:
        file.seek(12)
        file.write(b"\xff\xff\xff\xff")
    with pytest.raises(DamagedSnapshotError, match="header"):
        read_snapshot(path)


def test_what_is_no_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe"):
        with pytest.raises(DamagedSnapshotError, match="regular file"):
            read_snapshot(path)


# Whatever the bytes


def refuse_or_decode(data):
    with contextlib.suppress(DamagedSnapshotError, SnapshotVersionError):
        decode_snapshot(data)


@hypothesis.given(st.binary(max_size=300))
def test_arbitrary_bytes(data):
    refuse_or_decode(data)
    refuse_or_decode(b"\x89USPSNAP" + data)


@hypothesis.given(st.integers(0, 3), st.binary(max_size=200), st.binary(max_size=100))
def test_arbitrary_headers_with_the_right_checksums(version, header, body):
    refuse_or_decode(frame_by_hand(version, header, body))


NUMBER = st.one_of(st.integers(-(2**63), 2**64 - 1), st.floats())
PLAIN = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBER, st.text(max_size=3), st.binary(max_size=3)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=3), inner, max_size=3)),
    max_leaves=5,
)


@hypothesis.given(st.data(), st.integers(0, FORMAT_VERSION), st.sampled_from(COMPRESSIONS))
def test_a_header_with_one_member_replaced(data, version, compression):
    header, body = header_by_hand(tiny(), compression)
    stored = gzip.compress(body) if compression == "gzip" else body
    if version == 0:
        header["epoch"] = header.pop("config_epoch")
        del header["counters"], header["num_input_partitions"]
    name = data.draw(st.sampled_from([*header, *header["arrays"][0]]))
    target = header["arrays"][0] if name in ("path", "dtype", "shape", "length") else header
    if data.draw(st.booleans()):
        target[name] = data.draw(PLAIN)
    else:
        del target[name]
    refuse_or_decode(frame_by_hand(version, header, stored))


def test_deeply_nested_headers():
    for version in range(FORMAT_VERSION + 1):
        with pytest.raises(DamagedSnapshotError):
            decode_snapshot(frame_by_hand(version, b"\x81\xa1a" + b"\x91" * 100_000, b""))


# What cannot be written


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"offset": -1}, "offset"),
        ({"partition": -1}, "partition"),
        ({"topic": ""}, "topic"),
        ({"symbols": ("a", "a", "b")}, "twice"),
        ({"symbols": ("a", "b")}, "one row for each of 2"),
        ({"symbols": ("a", "b", "\ud800")}, "header"),
        ({"arrays": {"x": np.array([object()] * 3)}}, "dtype object"),
        ({"arrays": {"x": np.array(["a", "b", "c"])}}, "dtype <U1"),
        ({"arrays": {"x": np.zeros(3, "M8[ns]")}}, "dtype"),
        ({"arrays": {"x": np.zeros(3, [("a", "f8")])}}, "dtype"),
        ({"arrays": {"x": np.float64(1.0)}}, "one row"),
        ({"settings": {"a": [1]}}, "header"),
        ({"settings": {"a": 1 << 70}}, "header"),
        ({"settings": {"kafka.sasl_password": "hunter2"}}, "secrets are never stored, got kafka.sasl_password"),
        ({"identity": {"a": 1.5}}, "header"),
        ({"counters": {"a": "many"}}, "header"),
        ({"config_hash": 3}, "header"),
    ],
)
def test_what_could_not_be_read_back_is_not_written(change, text):
    with pytest.raises(SnapshotContentError, match=text) as caught:
        encode_snapshot(sample(**change))
    assert "hunter2" not in str(caught.value)
