"""Everything a producer can send ends as a tick or as a dead letter."""

import json
import math

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from usp_daemon.wire import CsvLayout, DeadLetterReason, Fault, RawBatch, TickDecoder, TickFormat, TimeUnit

CSV = CsvLayout(time_column=0, value_column=1, symbol_column=2, num_columns=3)


def raw(*values, **changes):
    given = {
        "topic": "t",
        "partition": 3,
        "source": "t",
        "offsets": range(10, 10 + len(values)),
        "values": list(values),
    }
    return RawBatch(**(given | changes))


def only_reason(batch):
    assert len(batch) == 0
    (entry,) = batch.dead_letters
    return entry.reason


def test_a_tick_is_decoded_and_unknown_members_are_ignored():
    batch = TickDecoder().decode(
        raw(b'{"symbol":"BTC-USD","ts":1700000000000000001,"value":64123.5,"venue":{"a":[1]}}')
    )
    assert list(batch.symbols) == ["BTC-USD"]
    assert batch.timestamps_ns.tolist() == [1_700_000_000_000_000_001]
    assert batch.values.tolist() == [64123.5]
    assert batch.values.dtype == np.float64
    assert batch.timestamps_ns.dtype == np.int64
    assert batch.record_timestamps_ns.tolist() == batch.timestamps_ns.tolist()


@pytest.mark.parametrize("value", [b"null", b"NaN", b"Infinity", b"-Infinity", b"1e400", b"-1" + b"0" * 400])
def test_values_that_are_not_finite_reach_the_gate(value):
    batch = TickDecoder().decode(raw(b'{"symbol":"a","ts":1,"value":' + value + b"}"))
    assert len(batch) == 1
    assert not math.isfinite(batch.values[0])


@pytest.mark.parametrize("value", [b"", b" ", b"nan", b"NaN", b"inf", b"-Infinity", b"1e999"])
def test_csv_cells_that_are_not_finite_reach_the_gate(value):
    batch = TickDecoder().decode(raw(b"1," + value + b",a", layout=CSV))
    assert len(batch) == 1
    assert not math.isfinite(batch.values[0])


R = DeadLetterReason


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (b"", R.EMPTY_RECORD),
        (None, R.EMPTY_RECORD),
        (b"not json", R.NOT_JSON),
        (b'{"symbol":"a","ts":1,"value":1', R.NOT_JSON),
        (b'{"symbol":"a","ts":1,"value":1}x', R.NOT_JSON),
        (b"[" * 100_000, R.NOT_JSON),
        (b'{"x":' * 60_000 + b"1" + b"}" * 60_000, R.NOT_JSON),
        (b'{"symbol":"\xff","ts":1,"value":1}', R.NOT_UTF8),
        (b"\xff\xfe\x00", R.NOT_UTF8),
        (b"[1,2]", R.NOT_AN_OBJECT),
        (b"3", R.NOT_AN_OBJECT),
        (b"null", R.NOT_AN_OBJECT),
        (b'{"ts":1,"value":1}', R.MISSING_FIELD),
        (b'{"symbol":"a","value":1}', R.MISSING_FIELD),
        (b'{"symbol":"a","ts":1}', R.MISSING_FIELD),
        (b'{"symbol":5,"ts":1,"value":1}', R.SYMBOL_INVALID),
        (b'{"symbol":"","ts":1,"value":1}', R.SYMBOL_INVALID),
        (b'{"symbol":" a","ts":1,"value":1}', R.SYMBOL_INVALID),
        (b'{"symbol":"a\\u0000b","ts":1,"value":1}', R.SYMBOL_INVALID),
        (b'{"symbol":"a\\nb","ts":1,"value":1}', R.SYMBOL_INVALID),
        (b'{"symbol":"\\ud800","ts":1,"value":1}', R.SYMBOL_INVALID),
        (b'{"symbol":"' + b"a" * 129 + b'","ts":1,"value":1}', R.SYMBOL_INVALID),
        (b'{"symbol":"a","ts":"1","value":1}', R.TIMESTAMP_INVALID),
        (b'{"symbol":"a","ts":null,"value":1}', R.TIMESTAMP_INVALID),
        (b'{"symbol":"a","ts":true,"value":1}', R.TIMESTAMP_INVALID),
        (b'{"symbol":"a","ts":NaN,"value":1}', R.TIMESTAMP_INVALID),
        (b'{"symbol":"a","ts":-1,"value":1}', R.TIMESTAMP_NEGATIVE),
        (b'{"symbol":"a","ts":9223372036854775808,"value":1}', R.TIMESTAMP_OUT_OF_RANGE),
        (b'{"symbol":"a","ts":1' + b"0" * 4000 + b',"value":1}', R.TIMESTAMP_OUT_OF_RANGE),
        (b'{"symbol":"a","ts":1e300,"value":1}', R.TIMESTAMP_OUT_OF_RANGE),
        (b'{"symbol":"a","ts":1,"value":"1.5"}', R.VALUE_NOT_A_NUMBER),
        (b'{"symbol":"a","ts":1,"value":"NaN"}', R.VALUE_NOT_A_NUMBER),
        (b'{"symbol":"a","ts":1,"value":true}', R.VALUE_NOT_A_NUMBER),
        (b'{"symbol":"a","ts":1,"value":{}}', R.VALUE_NOT_A_NUMBER),
        (b'{"symbol":"a","ts":1,"value":[1]}', R.VALUE_NOT_A_NUMBER),
        (b'{"symbol":"a","ts":1,"value":1,"x":"' + b"y" * 2**20 + b'"}', R.RECORD_TOO_LARGE),
    ],
)
def test_bad_json_becomes_a_dead_letter_with_its_reason(record, reason):
    batch = TickDecoder().decode(raw(record))
    assert only_reason(batch) == reason
    (entry,) = batch.dead_letters
    assert entry.message
    assert entry.original == (record or b"")
    assert (entry.source, entry.partition, entry.offset) == ("t", 3, 10)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"1,2", R.WRONG_NUMBER_OF_COLUMNS),
        (b"1,2,a,b", R.WRONG_NUMBER_OF_COLUMNS),
        (b'1,2,"a', R.WRONG_NUMBER_OF_COLUMNS),
        (b"x,2,a", R.TIMESTAMP_INVALID),
        (b",2,a", R.TIMESTAMP_INVALID),
        (b"1_0,2,a", R.TIMESTAMP_INVALID),
        (b"-5,2,a", R.TIMESTAMP_NEGATIVE),
        (b"99999999999999999999,2,a", R.TIMESTAMP_OUT_OF_RANGE),
        (b"1e999,2,a", R.TIMESTAMP_OUT_OF_RANGE),
        (b"1,two,a", R.VALUE_NOT_A_NUMBER),
        (b"1,1_000,a", R.VALUE_NOT_A_NUMBER),
        ("1,٣,a".encode(), R.VALUE_NOT_A_NUMBER),
        (b"1,0x10,a", R.VALUE_NOT_A_NUMBER),
        (b"1,2,", R.SYMBOL_INVALID),
        (b"1,2,\xe9", R.NOT_UTF8),
    ],
)
def test_bad_csv_becomes_a_dead_letter_with_its_reason(line, reason):
    assert only_reason(TickDecoder().decode(raw(line, layout=CSV))) == reason


def test_quoted_csv_cells_are_understood():
    batch = TickDecoder().decode(raw(b'1,"2.5","a,b"', layout=CSV))
    assert list(batch.symbols) == ["a,b"]
    assert batch.values.tolist() == [2.5]


def test_good_and_bad_records_keep_their_places():
    good = b'{"symbol":"a","ts":%d,"value":1}'
    batch = TickDecoder().decode(raw(good % 1, b"junk", good % 2, b"", good % 3))
    assert list(batch.positions) == [0, 2, 4]
    assert [entry.offset for entry in batch.dead_letters] == [11, 13]
    assert batch.next_offset == 15


def test_the_sources_own_findings_stand():
    fault = Fault(R.RECORD_TOO_LARGE, "10 MB", 10_000_000)
    batch = TickDecoder().decode(raw(b'{"symbol":"a","ts":1,"value":1}', faults={0: fault}))
    assert only_reason(batch) == R.RECORD_TOO_LARGE
    assert batch.dead_letters[0].original_size_bytes == 10_000_000


@pytest.mark.parametrize(
    ("unit", "text", "expected"),
    [
        ("ns", "1700000000123456789", 1_700_000_000_123_456_789),
        ("us", "1700000000123456.789", 1_700_000_000_123_456_789),
        ("ms", "1700000000123", 1_700_000_000_123_000_000),
        ("s", "1700000000.123456789", 1_700_000_000_123_456_789),
        ("s", "0.08", 80_000_000),
        ("s", "1.7e9", 1_700_000_000_000_000_000),
        ("iso8601", "2023-11-14T22:13:20Z", 1_700_000_000_000_000_000),
        ("iso8601", "2023-11-14 22:13:20.123456789", 1_700_000_000_123_456_789),
        ("iso8601", "2023-11-15T00:13:20.5+02:00", 1_700_000_000_500_000_000),
        ("iso8601", "2023-11-14", 1_699_920_000_000_000_000),
    ],
)
def test_times_are_exact_in_every_unit(unit, text, expected):
    decoder = TickDecoder(TickFormat(time_unit=TimeUnit(unit)))
    batch = decoder.decode(raw(f"{text},1,a".encode(), layout=CSV))
    assert batch.timestamps_ns.tolist() == [expected]
    if unit == "iso8601":
        assert (
            decoder.decode(raw(json.dumps({"symbol": "a", "ts": text, "value": 1}).encode())).timestamps_ns == expected
        )


@hypothesis.given(st.decimals(min_value=0, max_value=9_000_000_000, places=9, allow_nan=False))
def test_seconds_agree_with_decimal_arithmetic(seconds):
    batch = TickDecoder(TickFormat(time_unit=TimeUnit.SECONDS)).decode(raw(f"{seconds:f},1,a".encode(), layout=CSV))
    assert batch.timestamps_ns.tolist() == [int(seconds * 10**9)]


def test_fields_go_by_their_configured_names():
    decoder = TickDecoder(
        TickFormat(symbol_field="s", time_field="T", value_field="p", time_unit=TimeUnit.MILLISECONDS)
    )
    batch = decoder.decode(raw(b'{"s":"a","T":1.5,"p":2}'))
    assert batch.timestamps_ns.tolist() == [1_500_000]


def test_the_key_can_name_the_symbol():
    decoder = TickDecoder(TickFormat(key_is_symbol=True))
    batch = decoder.decode(raw(*[b'{"ts":1,"value":2}'] * 3, keys=[b"a", None, b"\xff"]))
    assert list(batch.symbols) == ["a"]
    assert [entry.reason for entry in batch.dead_letters] == [R.MISSING_FIELD, R.SYMBOL_INVALID]


def test_records_without_a_time_of_their_own_show_no_skew():
    batch = TickDecoder().decode(raw(*[b'{"symbol":"a","ts":5,"value":2}'] * 2, record_timestamps_ns=[-1, 9]))
    assert batch.record_timestamps_ns.tolist() == [5, 9]


@hypothesis.given(st.lists(st.binary(max_size=200), min_size=1, max_size=5), st.booleans())
def test_any_bytes_at_all_are_accounted_for(values, as_csv):
    batch = TickDecoder().decode(raw(*values, layout=CSV if as_csv else None))
    assert len(batch) + len(batch.dead_letters) == len(values)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=5), children, max_size=3),
    max_leaves=8,
)


@hypothesis.given(json_values, json_values, json_values)
def test_any_json_in_the_fields_is_accounted_for(symbol, ts, value):
    record = json.dumps({"symbol": symbol, "ts": ts, "value": value}).encode()
    batch = TickDecoder().decode(raw(record))
    assert len(batch) + len(batch.dead_letters) == 1
    if len(batch):
        assert isinstance(symbol, str)
        assert value is None or isinstance(value, int | float)
        assert batch.timestamps_ns[0] >= 0


def test_a_format_needs_three_names():
    with pytest.raises(ValueError, match="three different names"):
        TickFormat(time_field="value")
