"""The choice of symbols: the same whatever the order, even, and independent for different purposes."""

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from usp_daemon.persistence import choose_symbols, symbol_hash
from usp_daemon.persistence._symbol_sample import SymbolSample

NAMES = [f"symbol-{number}" for number in range(2_000)]


@given(st.permutations(NAMES[:40]), st.integers(1, 50))
def test_offered_in_any_order_the_lowest_hashes_stay(order, count):
    sample = SymbolSample(count, "test")
    inside = set()
    for symbol in order:
        kept, removed = sample.offer(symbol)
        inside |= {symbol} if kept else set()
        inside -= {removed}
    assert sample.symbols == choose_symbols(NAMES[:40], count, "test")
    assert inside == set(sample.symbols)
    assert len(sample) == min(count, 40)
    assert all((symbol in sample) == (symbol in inside) for symbol in order)


def test_hash_is_the_same_in_every_process():
    program = "from usp_daemon.persistence import symbol_hash; print(symbol_hash('BTC-USD', 'test'))"
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = {sys.path!r}; {program}"],
        capture_output=True, text=True, timeout=60, check=True, env={"PYTHONHASHSEED": "77"},
    )  # fmt: skip
    assert int(done.stdout) == symbol_hash("BTC-USD", "test")


def test_hashes_are_spread_evenly_and_purposes_choose_independently():
    first, second = (set(choose_symbols(NAMES, 400, purpose)) for purpose in ("one", "two"))
    assert 50 < len(first & second) < 110  # 80 expected
    low = sum(symbol_hash(name, "one") < 1 << 63 for name in NAMES)
    assert 900 < low < 1_100


def test_names_that_no_text_file_could_hold():
    assert symbol_hash("\ud800", "test") != symbol_hash("\ud801", "test")


def test_one_that_is_removed_makes_room():
    sample = SymbolSample(2, "test")
    low, middle, high = choose_symbols(["a", "b", "c"], 3, "test")
    for symbol in (low, middle):
        sample.offer(symbol)
    assert sample.offer(high) == (False, None)
    sample.remove(low)
    sample.remove("never there")
    assert sample.offer(high) == (True, None)
    assert sample.offer(low) == (True, high)


def test_room_for_nobody_is_refused():
    with pytest.raises(ValueError, match="at least 1"):
        SymbolSample(0, "test")
