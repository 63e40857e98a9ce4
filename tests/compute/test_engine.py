"""The engine: order, capacity, pages, parameters, and states in and out."""

import dataclasses
import threading

import jax
import numpy as np
import pytest

from usp_daemon.compute import (
    CapacityError,
    Engine,
    EngineFailedError,
    PartitionInUseError,
    PartitionStates,
    StateFormatError,
    StructuralChangeError,
    WrongThreadError,
)
from usp_daemon.core import PredictorConfig

from .fake_program import FAKE_PROGRAM, REFRESH_EVERY, batch, fake_choice, fake_engine, key, same_bits


@pytest.fixture
def engine() -> Engine:
    return fake_engine()


def test_several_ticks_of_a_symbol_run_in_order(engine):
    result = engine.step(*batch(["a", "b", "a", "c", "a", "b"]))
    assert result.admitted.all()
    assert result.columns["sequence"].tolist() == [1, 1, 2, 1, 3, 2]
    assert result.columns["timestamp_ns"].tolist() == list(range(1_000, 1_006))
    assert (result.columns["skew_ns"] == 7).all()


def test_an_empty_batch_gives_empty_columns_of_the_right_shape(engine):
    result = engine.step(*batch([]))
    assert result.admitted.shape == (0,)
    assert result.columns["weights"].shape == (0, 4)
    assert result.columns["refresh_due"].dtype == np.bool_


def test_ten_thousand_ticks_of_one_symbol(engine):
    result = engine.step(*batch(["a"] * 10_000))
    assert result.columns["sequence"].tolist() == list(range(1, 10_001))
    assert np.isfinite(result.columns["forecast"]).all()


def test_refresh_runs_before_the_next_tick_of_its_symbol(engine):
    count = 3 * REFRESH_EVERY + 1
    result = engine.step(*batch(["a", "b"] * count))
    expected = np.repeat(np.arange(count) // REFRESH_EVERY, 2)
    assert result.columns["refreshed"].tolist() == expected.tolist()
    # also when that next tick comes in a later batch
    assert fake_engine_one_by_one(count) == (np.arange(count) // REFRESH_EVERY).tolist()


def fake_engine_one_by_one(count):
    engine = fake_engine()
    return [int(engine.step(*batch(["a"], [0.1 * i])).columns["refreshed"][0]) for i in range(count)]


def test_more_symbols_due_than_a_refresh_tile_holds(engine):
    symbols = [str(i) for i in range(50)] * (REFRESH_EVERY + 1)
    result = engine.step(*batch(symbols))
    assert (result.columns["refreshed"][-50:] == 1).all()
    assert (result.columns["refreshed"][:-50] == 0).all()


def test_symbols_beyond_the_cap_are_not_admitted_and_leave_the_others_alone():
    engine = fake_engine(max_symbols=3)
    result = engine.step(*batch(["a", "b", "c", "d", "a", "d"]))
    assert result.admitted.tolist() == [True, True, True, False, True, False]
    assert engine.num_symbols == 3
    for column in result.columns.values():
        assert not column[~result.admitted].any()
    free = fake_engine().step(*batch(["a", "b", "c", "a"], np.sin(np.array([0, 1, 2, 4]) * 0.7)))
    assert same_bits(result.columns["forecast"][result.admitted], free.columns["forecast"])
    # room that a partition gives back is used again
    engine.release("ticks", 0)
    assert engine.step(*batch(["d"])).admitted.all()


def test_symbols_of_two_partitions_are_apart(engine):
    result = engine.step(*batch([key("a", 0), key("a", 1), key("a", 0), key("a", 0, "other")]))
    assert result.columns["sequence"].tolist() == [1, 1, 2, 1]
    assert engine.num_pages == 3


def test_growth_adds_pages_and_compiles_nothing(engine, compile_events):
    engine.step(*batch(["0"]))
    before = engine.num_compilations
    compile_events.clear()
    for size in (1, 2, 17, 33, 400):
        engine.step(*batch([str(i) for i in range(size)] * 2))
    engine.export_states("ticks", 0)
    engine.release("ticks", 0)
    engine.step(*batch(["0"]))
    assert engine.num_compilations == before == 6
    assert compile_events == []


def test_release_frees_pages_and_forgets_symbols(engine):
    engine.step(*batch([key(i, partition) for partition in (0, 1) for i in range(20)]))
    assert (engine.num_symbols, engine.num_pages) == (40, 4)
    assert engine.release("ticks", 0) == 20
    assert (engine.num_symbols, engine.num_pages) == (20, 2)
    assert engine.release("ticks", 0) == 0
    result = engine.step(*batch([key(3, 0), key(3, 1)]))
    assert result.columns["sequence"].tolist() == [1, 2]


def test_traced_parameters_are_swapped_without_compiling(engine, compile_events):
    engine.step(*batch(["a"]))
    twin = fake_engine()
    twin.step(*batch(["a"]))
    compile_events.clear()
    default = PredictorConfig()
    for i in range(3):
        engine.set_parameters(dataclasses.replace(default, volatility_alpha=0.2 + 0.1 * i, cusum_h=5.0 + i))
    changed = engine.step(*batch(["a"], [0.5])).columns["forecast"]
    assert compile_events == []
    assert engine.num_compilations == 6
    assert not same_bits(changed, twin.step(*batch(["a"], [0.5])).columns["forecast"])


def test_a_symbol_starts_from_the_parameters_in_force_when_it_is_admitted(engine):
    changed = dataclasses.replace(PredictorConfig(), volatility_alpha=0.5)
    engine.step(*batch(["early"]))
    engine.set_parameters(changed)
    late = engine.step(*batch(["late"]))  # shares a page that was initialised under the former parameters
    assert same_bits(late.columns["forecast"], fake_engine(changed).step(*batch(["late"])).columns["forecast"])


def test_structural_parameters_are_refused_by_name_and_change_nothing(engine):
    engine.step(*batch(["a"]))
    with pytest.raises(StructuralChangeError, match="log_sig_depth"):
        engine.set_parameters(dataclasses.replace(PredictorConfig(), log_sig_depth=4, volatility_alpha=0.9))
    twin = fake_engine()
    twin.step(*batch(["a"]))
    assert same_bits(engine.step(*batch(["a"])).columns["forecast"], twin.step(*batch(["a"])).columns["forecast"])


def test_states_survive_export_and_import_bit_for_bit(engine):
    symbols = [str(i) for i in range(37)]
    engine.step(*batch(symbols * 7))
    exported = engine.export_states("ticks", 0)
    assert exported.symbols == tuple(symbols)
    assert exported.arrays["root"].shape == (37, 12, 12)
    assert exported.arrays["seen"].dtype == np.bool_
    other = fake_engine()
    other.step(*batch([key("elsewhere", 5)]))
    other.import_states("ticks", 0, exported)
    again = other.export_states("ticks", 0)
    assert again.symbols == exported.symbols
    assert all(same_bits(again.arrays[path], array) for path, array in exported.arrays.items())
    for repeat in range(20):
        ticks = batch(symbols[repeat::2] * 3 + ["new"], first_ns=10_000 * (repeat + 1))
        left, right = engine.step(*ticks), other.step(*ticks)
        assert all(same_bits(left.columns[name], right.columns[name]) for name in left.columns)


def test_an_export_is_not_touched_by_later_steps(engine):
    engine.step(*batch(["a"]))
    exported = engine.export_states("ticks", 0)
    copy = {path: array.copy() for path, array in exported.arrays.items()}
    engine.step(*batch(["a"] * 9))
    assert all(same_bits(exported.arrays[path], array) for path, array in copy.items())


def test_an_import_that_does_not_fit_is_refused_and_changes_nothing(engine):
    engine.step(*batch(["a", "b"]))
    good = engine.export_states("ticks", 0)
    with pytest.raises(PartitionInUseError):
        engine.import_states("ticks", 0, good)
    small = fake_engine(max_symbols=1)
    with pytest.raises(CapacityError, match="max_symbols = 1"):
        small.import_states("ticks", 0, good)
    roomy = fake_engine()
    for broken, message in (
        ({**good.arrays, "mean": good.arrays["mean"].astype(np.float32)}, "'mean': expected float64"),
        ({**good.arrays, "root": good.arrays["root"][:, :3]}, "'root'"),
        ({**good.arrays, "more": good.arrays["mean"]}, "'more': expected nothing"),
        ({path: array for path, array in good.arrays.items() if path != "count"}, "'count'.*got nothing"),
    ):
        with pytest.raises(StateFormatError, match=message):
            roomy.import_states("ticks", 0, PartitionStates(good.symbols, broken))
    with pytest.raises(StateFormatError, match="twice"):
        roomy.import_states("ticks", 0, PartitionStates(("a", "a"), good.arrays))
    assert [small.num_symbols, small.num_pages, roomy.num_symbols, roomy.num_pages] == [0, 0, 0, 0]


def test_garbage_values_reach_the_program_and_harm_nobody_else(engine):
    twin = fake_engine()
    wild = [np.nan, np.inf, -np.inf, 1e308, 5e-324, 0.0]
    result = engine.step(*batch(["bad"] * 6 + ["good"], [*wild, 1.0]))
    assert same_bits(result.columns["forecast"][-1:], twin.step(*batch(["good"], [1.0])).columns["forecast"])


def test_values_beyond_float32_do_not_warn():
    engine = fake_engine(choice=fake_choice("float32"))
    assert engine.step(*batch(["a"], [1e300])).columns["forecast"].dtype == np.float32


@pytest.mark.parametrize("which", [1, 2, 3])
def test_arrays_of_another_length_are_refused_and_harm_nothing(engine, which):
    ticks = list(batch(["a", "b"]))
    ticks[which] = ticks[which][:1]
    with pytest.raises(ValueError, match=r"must have shape \(2,\)"):
        engine.step(*ticks)
    assert engine.step(*batch(["a", "b"])).columns["sequence"].tolist() == [1, 1]


def test_a_device_failure_poisons_the_engine(engine, monkeypatch):
    engine.step(*batch(["a"]))

    def broken(*_):
        raise jax.errors.JaxRuntimeError("device lost")

    monkeypatch.setattr(engine, "_programs", dataclasses.replace(engine._programs, advance=broken))
    with pytest.raises(EngineFailedError, match="device lost"):
        engine.step(*batch(["a"]))
    with pytest.raises(EngineFailedError, match="earlier"):
        engine.export_states("ticks", 0)


def test_another_thread_may_not_call_it(engine):
    caught = []

    def intrude():
        try:
            engine.step(*batch(["a"]))
        except WrongThreadError as error:
            caught.append(error)

    thread = threading.Thread(target=intrude)
    thread.start()
    thread.join()
    assert len(caught) == 1


def test_identity_names_what_decides_the_bits():
    identity = fake_engine().program_identity()
    other_numbers = dataclasses.replace(PredictorConfig(), cusum_h=3.0)
    assert identity == Engine(other_numbers, fake_choice(), program=FAKE_PROGRAM).program_identity()
    assert identity.digest != fake_engine(choice=fake_choice("float32")).program_identity().digest
    assert identity.program_hash != fake_engine(choice=fake_choice(tile_width=32)).program_identity().program_hash

    def other_refresh(state, config):
        return dataclasses.replace(FAKE_PROGRAM.refresh(state, config), refreshed=state.refreshed + 2)

    other = Engine(PredictorConfig(), fake_choice(), program=dataclasses.replace(FAKE_PROGRAM, refresh=other_refresh))
    assert identity.program_hash != other.program_identity().program_hash


def test_a_program_without_the_refresh_flag_is_refused():
    program = dataclasses.replace(FAKE_PROGRAM, columns=lambda result: {"forecast": result["forecast"]})
    with pytest.raises(ValueError, match="refresh_due"):
        Engine(PredictorConfig(), fake_choice(), program=program)


def test_parameters_of_one_batch_stand_for_that_batch_only() -> None:
    usual, other = PredictorConfig(volatility_alpha=0.1), PredictorConfig(volatility_alpha=0.3)
    mixed, plain = fake_engine(usual), fake_engine(other)
    arguments = batch(["a", "b", "new"])
    under_other = mixed.step(*arguments, parameters=other)
    expected = plain.step(*arguments)
    assert all(same_bits(under_other.columns[name], expected.columns[name]) for name in expected.columns)
    plain.set_parameters(usual)
    following = batch(["a", "b", "newer"], first_ns=2_000)
    after, expected = mixed.step(*following), plain.step(*following)
    assert all(same_bits(after.columns[name], expected.columns[name]) for name in expected.columns)


def test_a_partitions_room_does_not_depend_on_its_neighbours() -> None:
    full, alone = fake_engine(max_symbols=10), fake_engine(max_symbols=10)
    for engine in (full, alone):
        engine.limit_partitions(4)
    full.step(*batch([key(i, partition=1) for i in range(10)]))
    symbols = batch([key(i, partition=0) for i in range(5)])
    admitted = full.step(*symbols).admitted
    assert admitted.tolist() == alone.step(*symbols).admitted.tolist() == [True, True, True, False, False]
