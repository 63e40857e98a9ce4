"""T-60: an engine that goes on from a snapshot gives the bits that it would have given anyway."""

import numpy as np
import pytest

from usp_daemon.compute import PartitionStates
from usp_daemon.persistence import DirectoryStore, Snapshot

from ..compute.fake_program import batch, fake_engine, same_bits


@pytest.mark.parametrize("compression", ["none", "gzip"])
async def test_an_engine_goes_on_from_a_snapshot_bit_for_bit(compression, tmp_path):
    generator = np.random.default_rng(3)
    engine = fake_engine()
    engine.step(*batch([str(i) for i in range(37)] * 7))
    states = engine.export_states("ticks", 0)
    snapshot = Snapshot(
        topic="ticks",
        partition=0,
        offset=259,
        group="g",
        symbols=states.symbols,
        arrays=states.arrays,
        identity=engine.program_identity().as_dict(),
        settings={},
        config_hash="",
        config_epoch=0,
        num_input_partitions=1,
        created_ns=1,
    )
    async with DirectoryStore(tmp_path, group="g", compression=compression) as store:
        await store.acquire("ticks", 0)
        await store.save(snapshot)
        found = await store.newest("ticks", 0, 259)
    assert found is not None
    assert found.identity == engine.program_identity().as_dict()
    restored = fake_engine()
    restored.import_states("ticks", 0, PartitionStates(found.symbols, found.arrays))
    for repeat in range(100):
        # company differs, so does the number of ticks of a symbol; both engines admit the same new symbols
        ticks = batch([str(i) for i in generator.integers(0, 40, 30)], first_ns=10_000 * (repeat + 1))
        left, right = engine.step(*ticks), restored.step(*ticks)
        assert all(same_bits(left.columns[name], right.columns[name]) for name in left.columns)
