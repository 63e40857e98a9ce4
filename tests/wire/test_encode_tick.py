"""Ticks that are written and read again are the ticks they were."""

import itertools
import math

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from usp_daemon.wire import RawBatch, TickDecoder, TickEncoder, TickFormat, TimeUnit

NAMES = st.text(st.characters(codec="utf-8"), min_size=1, max_size=20).filter(
    lambda text: text.isprintable() and text == text.strip()
)


def decoded(tick_format, key, value):
    raw = RawBatch(topic="t", partition=0, source="t", offsets=[0], values=[value], keys=[key])
    batch = TickDecoder(tick_format).decode(raw)
    assert not batch.dead_letters
    return batch.symbols[0], int(batch.timestamps_ns[0]), float(batch.values[0])


@given(
    symbol=NAMES,
    time_ns=st.integers(0, 2**63 - 1),
    value=st.floats(),
    unit=st.sampled_from((TimeUnit.NANOSECONDS, TimeUnit.ISO8601)),
    key_is_symbol=st.booleans(),
)
def test_round_trip(symbol, time_ns, value, unit, key_is_symbol):
    tick_format = TickFormat(time_unit=unit, key_is_symbol=key_is_symbol)
    key, record = TickEncoder(tick_format).encode(symbol, time_ns, value)
    assert key == symbol.encode()
    found = decoded(tick_format, key, record)
    assert found[:2] == (symbol, time_ns)
    assert found[2] == value or (math.isnan(found[2]) and not math.isfinite(value))


@pytest.mark.parametrize(("unit", "text"), [("us", b"1700000000123456.789"), ("ms", b"1700000000123.456789"),
                                            ("s", b"1700000000.123456789")])  # fmt: skip
def test_other_units_are_written_to_the_nanosecond(unit, text):
    _, record = TickEncoder(TickFormat(time_unit=TimeUnit(unit))).encode("a", 1_700_000_000_123_456_789, 1.5)
    assert record == b'{"symbol":"a","ts":%b,"value":1.5}' % text
    _, record = TickEncoder(TickFormat(time_unit=TimeUnit(unit))).encode("a", 5 * 10**9, 1.5)
    assert b"." not in record.split(b",")[1]


@pytest.mark.parametrize("unit", TimeUnit)
def test_ticks_a_microsecond_apart_stay_in_order(unit):
    # A JSON number is read as a double, which holds today's seconds to a quarter of a microsecond.
    tick_format = TickFormat(time_unit=unit)
    encoder = TickEncoder(tick_format)
    times = [1_790_000_000_000_000_123 + 1_000 * i for i in range(200)]
    found = [decoded(tick_format, *encoder.encode("a", time, 0.0))[1] for time in times]
    assert all(earlier < later for earlier, later in itertools.pairwise(found))
    assert max(abs(a - b) for a, b in zip(times, found, strict=True)) < 500


def test_names_of_the_settings_are_used():
    tick_format = TickFormat(symbol_field='s"y', time_field="t", value_field="v")
    _, record = TickEncoder(tick_format).encode("Ä", 7, float("nan"))
    assert orjson.loads(record) == {'s"y': "Ä", "t": 7, "v": None}
