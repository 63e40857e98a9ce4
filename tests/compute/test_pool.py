"""Engines of several structures: partitions move between them, and the limits hold over all."""

import dataclasses

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import pytest

from usp_daemon.compute import (
    CapacityError,
    Engine,
    EnginePool,
    PartitionInUseError,
    StateFormatError,
    StepProgram,
    StructuralChangeError,
    Worker,
    structure_of,
)
from usp_daemon.core import PredictorConfig

from . import fake_program as fake
from .fake_program import batch, fake_choice, key, same_bits


class PooledState(eqx.Module):
    """The fake state, and a window as long as ``signature_window``."""

    fake: fake.FakeState
    window: object


def advance(state, observation, config):
    inner, columns = fake.advance(state.fake, observation, config)
    window = jnp.concatenate([state.window[1:], inner.mean[None]])
    return PooledState(inner, window), {**columns, "window": jnp.mean(window)}


PROGRAM = StepProgram(
    initialize=lambda config, dtype: PooledState(
        fake.initialize(config, dtype), jnp.full((config.signature_window,), 1.0, dtype) * config.volatility_alpha
    ),
    advance=advance,
    refresh=lambda state, config: PooledState(fake.refresh(state.fake, config), state.window),
    columns=lambda result: result,
)
SHORT, LONG, LONGER = (dataclasses.replace(PredictorConfig(), signature_window=length) for length in (4, 6, 8))
_COMPILED = {}


class Factory:
    """Builds engines, each structure's programs compiled once in a session, and remembers the latest."""

    def __init__(self):
        self.built = []

    def __call__(self, config, choice, *, programs=None, **options):
        structure = structure_of(config)
        engine = Engine(config, choice, programs=programs or _COMPILED.get(structure), **options)
        _COMPILED[structure] = engine.programs
        self.built.append(config.signature_window)
        return engine


def new_pool(config=SHORT, **options):
    factory = Factory()
    pool = EnginePool(config, fake_choice(), program=PROGRAM, engine_factory=factory, **options)
    return pool, factory


def new_engine(config=SHORT):
    return Factory()(config, fake_choice(), program=PROGRAM)


def ticks(names, partition=0, first=0):
    return batch([key(name, partition) for name in names], np.sin(np.arange(len(names)) + first), first_ns=first)


def test_without_another_structure_it_is_the_engine():
    pool, factory = new_pool()
    engine = new_engine()
    changed = dataclasses.replace(SHORT, volatility_alpha=0.7)
    for parameters in (None, changed, SHORT, changed):
        result, expected = (each.step(*ticks("abca"), parameters) for each in (pool, engine))
        for name, column in expected.columns.items():
            assert same_bits(result.columns[name], column), name
    pool.set_parameters(changed)
    engine.set_parameters(changed)
    assert same_bits(pool.step(*ticks("d")).columns["forecast"], engine.step(*ticks("d")).columns["forecast"])
    assert factory.built == [4]
    with pytest.raises(StructuralChangeError, match="signature_window"):
        pool.set_parameters(LONG)


def test_a_partition_moves_with_the_structure_of_its_batch():
    migrations = []
    pool, factory = new_pool(on_migration=migrations.append)
    names = "symbols"
    pool.step(*ticks(names))
    pool.step(*ticks(names, 1))
    before = pool.export_states("ticks", 0)
    result = pool.step(*ticks(names), LONG)
    assert factory.built == [4, 6]
    (migration,) = migrations
    assert (migration.topic, migration.partition, migration.num_symbols) == ("ticks", 0, 6)
    assert migration.report.lost == ("the state's window",)
    after = pool.export_states("ticks", 0)
    assert after.symbols == before.symbols == tuple("symbol")
    assert after.arrays["window"].shape == (6, 6)
    assert pool.export_states("ticks", 1).arrays["window"].shape == (6, 4)
    assert pool.num_symbols == 12
    # what an engine of that structure makes of the same states
    engine = new_engine(LONG)
    fresh = np.broadcast_to(engine.pristine_state()["window"], (6, 6))
    engine.import_states("ticks", 0, dataclasses.replace(before, arrays={**before.arrays, "window": fresh}))
    expected = engine.step(*ticks(names))
    assert result.columns["sequence"].tolist() == [3, 2, 2, 2, 2, 2, 4]
    for name, column in expected.columns.items():
        assert same_bits(result.columns[name], column), name
    # back again with the parameters that were there before, and no other way than by their ticks
    pool.step(*ticks(names), SHORT)
    assert pool.export_states("ticks", 0).arrays["window"].shape == (6, 4)
    assert len(migrations) == 2
    pool.step(*ticks(names))
    assert len(migrations) == 2


def test_a_batch_takes_all_its_partitions_along():
    pool, _ = new_pool()
    pool.step(*ticks("ab", 0))
    pool.step(*ticks("cd", 1), LONG)
    pool.step(*ticks("ef", 2), LONGER)
    keys = [key("b", 0), key("c", 1), key("f", 2), key("new", 3)]
    result = pool.step(*batch(keys), LONG)
    assert result.columns["sequence"].tolist() == [2, 2, 2, 1]
    assert [pool.export_states("ticks", i).arrays["window"].shape for i in range(4)] == [(2, 6)] * 3 + [(1, 6)]


def test_what_a_migration_starts_anew_follows_the_parameters_of_the_batch():
    pool, _ = new_pool()
    pool.step(*ticks("a"))
    pool.step(*ticks("z", 1), LONG)  # the structure is there, under other parameters
    louder = dataclasses.replace(LONG, volatility_alpha=0.5)
    pool.step(*ticks("a"), louder)
    assert pool.export_states("ticks", 0).arrays["window"][0, 0] == 0.5


def test_the_limit_of_symbols_holds_over_all_structures():
    pool, _ = new_pool(max_symbols=5)
    assert pool.step(*ticks("abc", 0)).admitted.all()
    assert pool.step(*ticks("def", 1), LONG).admitted.tolist() == [True, True, False]
    assert pool.step(*ticks("x", 2), LONGER).admitted.tolist() == [False]
    states = pool.export_states("ticks", 0)
    with pytest.raises(CapacityError, match="5 of max_symbols = 5"):
        pool.import_states("ticks", 7, states)
    assert pool.step(*ticks("abc", 0), LONG).admitted.all()  # moving needs no room
    assert pool.num_symbols == 5
    assert pool.release("ticks", 1) == 2
    assert pool.step(*ticks("xyz", 2), LONGER).admitted.tolist() == [True, True, False]


def test_the_share_of_a_partition_holds_in_later_structures():
    pool, _ = new_pool(max_symbols=6)
    pool.limit_partitions(3)
    assert pool.step(*ticks("abc", 0), LONG).admitted.tolist() == [True, True, False]
    pool.limit_partitions(2)
    assert pool.step(*ticks("abc", 0), LONG).admitted.all()
    assert pool.step(*ticks("abcd", 1)).admitted.tolist() == [True, True, True, False]


def test_states_are_found_wherever_they_are():
    pool, _ = new_pool()
    pool.step(*ticks("abc"), LONG)
    states = pool.export_states("ticks", 0)
    assert states.symbols == ("a", "b", "c")
    for parameters in (None, SHORT, LONG):
        with pytest.raises(PartitionInUseError):
            pool.import_states("ticks", 0, states, parameters)
    assert pool.release("ticks", 0) == 3
    assert pool.release("ticks", 0) == 0
    assert pool.export_states("ticks", 0).symbols == ()
    with pytest.raises(StateFormatError, match="window"):
        pool.import_states("ticks", 0, states)
    pool.import_states("ticks", 0, states, LONG)
    assert pool.step(*ticks("c"), LONG).columns["sequence"].tolist() == [2]


def test_an_export_may_ask_for_a_structure():
    pool, _ = new_pool()
    pool.step(*ticks("abc"))
    assert pool.export_states("ticks", 0, LONG).arrays["window"].shape == (3, 6)
    assert pool.export_states("ticks", 0).arrays["window"].shape == (3, 6)
    assert pool.export_states("ticks", 5, LONG).arrays["window"].shape == (0, 6)


def test_a_migration_that_fails_leaves_the_partition_where_it_was(monkeypatch):
    pool, _ = new_pool()
    pool.step(*ticks("abc"))
    before = pool.export_states("ticks", 0)
    pool.step(*ticks("z", 1), LONG)

    def broken(states, *_):
        return dataclasses.replace(states, arrays={}), None

    with monkeypatch.context() as patch:
        patch.setattr("usp_daemon.compute._pool.migrate_states", broken)
        with pytest.raises(StateFormatError):
            pool.step(*ticks("abc"), LONG)
    after = pool.export_states("ticks", 0)
    assert all(same_bits(after.arrays[path], array) for path, array in before.arrays.items())
    assert pool.num_symbols == 4
    assert pool.step(*ticks("abc"), LONG).columns["sequence"].tolist() == [2, 2, 2]


def test_idle_structures_are_dropped_and_those_in_use_stay():
    pool, factory = new_pool(max_engines=2)
    pool.step(*ticks("a", 1), LONG)
    pool.step(*ticks("a", 2), LONGER)
    assert pool.num_engines == 3  # all of them hold states or are the pool's own
    pool.step(*ticks("a", 2), LONG)
    other = dataclasses.replace(SHORT, signature_window=5)
    pool.identity_of(other)
    assert not pool.is_ready(LONGER)
    assert pool.is_ready(SHORT)
    assert pool.is_ready(LONG)
    assert pool.num_engines == 3
    assert factory.built == [4, 6, 8, 5]
    pool.step(*ticks("a", 2), LONGER)
    assert factory.built == [4, 6, 8, 5, 8]


def test_identities_tell_structures_apart_and_not_parameters():
    pool, _ = new_pool()
    own = pool.identity_of(dataclasses.replace(SHORT, cusum_k=0.7))
    assert own == pool.engine.program_identity()
    assert pool.identity_of(LONG).program_hash != own.program_hash


def test_programs_that_were_compiled_elsewhere_are_taken():
    pool, factory = new_pool()
    programs = new_engine(LONG).programs
    assert not pool.is_ready(LONG)
    pool.adopt(LONG, programs)
    pool.adopt(LONG, programs)
    assert pool.is_ready(LONG)
    assert factory.built == [4, 6]
    assert pool.step(*ticks("a"), LONG).columns["sequence"].tolist() == [1]


def test_a_pool_needs_room_for_an_engine():
    with pytest.raises(ValueError, match="max_engines"):
        new_pool(max_engines=0)


def test_parameters_go_to_the_device_once(monkeypatch):
    engine = new_engine()
    uploads = []
    put = engine._put
    monkeypatch.setattr(engine, "_put", lambda array: (uploads.append(array), put(array))[1])
    first, second = (dataclasses.replace(SHORT, volatility_alpha=alpha) for alpha in (0.3, 0.4))
    engine.step(*ticks("ab"), first)
    per_set = len(uploads)
    assert per_set > 0
    for _ in range(3):
        engine.step(*ticks("ab"), first)
        engine.step(*ticks("ab"), second)
        engine.step(*ticks("ab"))
    assert len(uploads) == 2 * per_set
    engine.step(*ticks("ab"), dataclasses.replace(first))  # equal, but another object
    assert len(uploads) == 2 * per_set
    for number in range(20):
        engine.step(*ticks("a"), dataclasses.replace(SHORT, volatility_alpha=0.01 * number))
    assert len(engine._uploaded) <= 8
    assert len(engine._recent) <= 8


def test_symbols_start_from_the_parameters_of_their_batch_whatever_was_before():
    first, second = (dataclasses.replace(SHORT, volatility_alpha=alpha) for alpha in (0.3, 0.4))
    engine = new_engine()
    for number, parameters in enumerate((first, second, None, first, second, None)):
        engine.step(*ticks([f"symbol {number}"]), parameters)
    expected = []
    for number, parameters in enumerate((first, second, SHORT, first, second, SHORT)):
        alone = new_engine(parameters)
        alone.step(*ticks([f"symbol {number}"]))
        expected.append(alone.export_states("ticks", 0))
    states = engine.export_states("ticks", 0)
    for path, array in states.arrays.items():
        assert same_bits(array, np.concatenate([each.arrays[path] for each in expected])), path


def test_admission_does_not_look_at_every_page(monkeypatch):
    engine = new_engine()
    engine.step(*ticks([str(i) for i in range(200)]))  # 13 pages

    class Unread(list):
        def __len__(self):
            raise AssertionError("an older page was looked at")

    for page in engine._pages_of["ticks", 0][:-1]:
        page.symbols = Unread(page.symbols)
    assert engine.step(*ticks(["another"])).admitted.all()


async def test_the_worker_tells_of_migrations_before_it_answers(monkeypatch):
    monkeypatch.setattr("usp_daemon.compute._worker.enable_compilation_cache", lambda choice, directory: None)
    told = []
    worker = Worker(
        SHORT,
        device="cpu",
        tile_width=16,
        refresh_width=16,
        program=PROGRAM,
        engine_factory=Factory(),
        on_migration=told.append,
    )
    report = await worker.start()
    await worker.step(*ticks("abc"))
    assert await worker.identity_of(SHORT) == report.identity
    assert told == []
    result = await worker.step(*ticks("abc"), parameters=LONG)
    assert result.columns["sequence"].tolist() == [2, 2, 2]
    assert [(migration.partition, migration.num_symbols) for migration in told] == [(0, 3)]
    states = await worker.export_states("ticks", 0)
    await worker.release("ticks", 0)
    await worker.import_states("ticks", 0, states, parameters=LONG)
    back = await worker.export_states("ticks", 0, parameters=SHORT)
    assert back.symbols == states.symbols
    assert len(told) == 2
    await worker.close()
