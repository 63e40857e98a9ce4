"""A symbol's numbers depend on its own ticks alone, to the last bit."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from .fake_program import fake_choice, fake_engine, key, same_bits

PRECISIONS = ("float32", "float64")


def stream(symbols, seed=0):
    """Keys, values and stamps for a sequence of symbol numbers; each symbol's values are its own random walk."""
    walks = {s: np.cumsum(np.random.default_rng([seed, s]).normal(size=symbols.count(s))) for s in set(symbols)}
    seen = dict.fromkeys(walks, 0)
    values = []
    for s in symbols:
        values.append(walks[s][seen[s]])
        seen[s] += 1
    return [key(s, s % 3) for s in symbols], np.array(values), 1_000 + np.arange(len(symbols), dtype=np.int64)


def run(engine, keys, values, stamps, cuts=()):
    """All columns of a stream that is cut into batches at ``cuts``."""
    edges = [0, *sorted(set(cuts)), len(keys)]
    parts = [
        engine.step(keys[a:b], values[a:b], stamps[a:b], stamps[a:b]).columns for a, b in itertools.pairwise(edges)
    ]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def assert_same_bits(left, right, rows=slice(None)):
    for name in left:
        assert same_bits(left[name][rows] if rows != slice(None) else left[name], right[name]), name


@pytest.mark.parametrize("precision", PRECISIONS)
@settings(max_examples=25)
@given(data=st.data())
def test_however_a_stream_is_cut_into_batches(precision, data):
    symbols = data.draw(st.lists(st.integers(0, 40), min_size=1, max_size=200))
    cuts = data.draw(st.lists(st.integers(1, len(symbols) - 1), max_size=6)) if len(symbols) > 1 else []
    fraction = data.draw(st.sampled_from([1e-6, 0.3, 1.0]))
    choice = fake_choice(precision)
    ticks = stream(symbols)
    whole = run(fake_engine(choice=choice), *ticks)
    pieces = run(fake_engine(choice=choice, direct_fraction=fraction), *ticks, cuts)
    assert_same_bits(whole, pieces)


@pytest.mark.parametrize("precision", PRECISIONS)
@settings(max_examples=15)
@given(
    before=st.integers(0, 60),
    company=st.lists(st.integers(1, 60), max_size=150),
    wild=st.floats(allow_nan=True, allow_infinity=True),
)
def test_whatever_the_lane_the_page_and_the_company(precision, before, company, wild):
    choice = fake_choice(precision)
    count = 23
    _, values, stamps = stream([0] * count)
    alone = run(fake_engine(choice=choice), [key(0)] * count, values, stamps)
    engine = fake_engine(choice=choice)
    if before:  # moves the symbol into another lane or page
        others = [key(f"before {i}") for i in range(before)]
        engine.step(others, np.full(before, wild), np.zeros(before, np.int64), np.zeros(before, np.int64))
    mixed_keys, mixed_values, mixed_stamps, rows = [], [], [], []
    for i in range(count):
        for other in company[i::count]:
            mixed_keys.append(key(other, other % 2))
            mixed_values.append(wild)
            mixed_stamps.append(other)
        rows.append(len(mixed_keys))
        mixed_keys.append(key(0))
        mixed_values.append(values[i])
        mixed_stamps.append(stamps[i])
    together = run(engine, mixed_keys, np.array(mixed_values), np.array(mixed_stamps))
    for name, column in alone.items():
        if name != "skew_ns":
            assert same_bits(together[name][rows], column), name


def test_states_are_the_same_bits_too():
    symbols = [int(s) for s in np.random.default_rng(3).integers(0, 50, 600)]
    keys, values, stamps = stream(symbols)
    whole, pieces = fake_engine(), fake_engine(direct_fraction=1.0)
    run(whole, keys, values, stamps)
    run(pieces, keys, values, stamps, range(7, 600, 31))
    for partition in range(3):
        left, right = whole.export_states("ticks", partition), pieces.export_states("ticks", partition)
        row = {symbol: i for i, symbol in enumerate(right.symbols)}
        order = [row[symbol] for symbol in left.symbols]
        for path, array in left.arrays.items():
            assert same_bits(array, right.arrays[path][order]), path


def test_prefixes_of_a_stream_agree():
    symbols = [int(s) for s in np.random.default_rng(4).integers(0, 20, 300)]
    keys, values, stamps = stream(symbols)
    whole = run(fake_engine(), keys, values, stamps)
    prefix = run(fake_engine(), keys[:170], values[:170], stamps[:170])
    for name, column in prefix.items():
        assert same_bits(whole[name][:170], column), name
