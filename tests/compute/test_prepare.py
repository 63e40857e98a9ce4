"""A structure is compiled by another process and loaded beside the worker; what cannot be, is compiled here."""

import asyncio
import dataclasses
import os
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

from usp_daemon.compute import StateKey, Worker, _prepare
from usp_daemon.core import PredictorConfig

from .fake_program import FAKE_PROGRAM, batch
from .prepared_program import program

OTHER = dataclasses.replace(PredictorConfig(), log_sig_depth=4)
TINY = {"device": "cpu", "tile_width": 16, "refresh_width": 16}
FLAGS = ("compilation_cache_dir", "persistent_cache_min_compile_time_secs", "persistent_cache_min_entry_size_bytes")


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch):
    """The worker points jax at a cache of its own; whatever comes after finds the usual one."""
    before = {name: getattr(jax.config, f"jax_{name}") for name in FLAGS}
    compilation_cache.reset_cache()
    tests = str(Path(__file__).resolve().parents[1])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([tests, os.environ.get("PYTHONPATH", "")]))
    yield
    for name, value in before.items():
        jax.config.update(f"jax_{name}", value)
    compilation_cache.reset_cache()


@pytest.fixture
def spawned(monkeypatch):
    """Every process that is started meanwhile."""
    processes = []
    create = asyncio.create_subprocess_exec

    async def remember(*arguments, **options):
        process = await create(*arguments, **options)
        processes.append(process)
        return process

    monkeypatch.setattr(_prepare.asyncio, "create_subprocess_exec", remember)
    return processes


@pytest.fixture
async def worker(tmp_path):
    worker = Worker(PredictorConfig(), program=program(), cache_directory=tmp_path, **TINY)
    await worker.start()
    yield worker
    await worker.close()


async def test_another_process_compiles_and_this_one_loads(worker, tmp_path, spawned, compile_events):
    await worker.step(*batch(["a", "b"]))
    report = await worker.prepare(OTHER)
    assert report.note == ""
    assert report.elsewhere
    assert not report.was_ready
    assert report.num_compilations == 6
    assert report.compile_seconds > 0.0
    assert [process.returncode for process in spawned] == [0]
    kept = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    compile_events.clear()
    result = await worker.step(*batch(["a", "b"]), parameters=OTHER)
    assert result.columns["sequence"].tolist() == [2, 2]
    assert compile_events == []
    # all that was loaded came from the other process's cache
    assert {path.name for path in tmp_path.rglob("*") if path.is_file()} == kept
    again = await worker.prepare(OTHER)
    assert again.was_ready
    assert again.num_compilations == 0
    assert len(spawned) == 1


async def test_two_who_ask_at_once_compile_once(worker, spawned):
    reports = await asyncio.gather(worker.prepare(OTHER), worker.prepare(OTHER))
    assert [report.was_ready for report in reports] == [False, True]
    assert len(spawned) == 1


async def test_if_the_process_fails_it_is_compiled_here(worker, monkeypatch, spawned):
    monkeypatch.setenv("BROKEN_PROGRAM", "1")
    report = await worker.prepare(OTHER)
    assert not report.elsewhere
    assert "this program is broken" in report.note
    assert report.num_compilations == 6
    assert spawned[0].returncode == 1
    assert (await worker.step(*batch(["a"]), parameters=OTHER)).columns["sequence"].tolist() == [1]


async def test_cancelling_ends_the_process(worker, spawned):
    preparing = asyncio.create_task(worker.prepare(OTHER))
    async with asyncio.timeout(300.0):
        while not spawned:
            await asyncio.sleep(0)
        # Ctrl-C in a terminal goes to all of a session: the service ends it in its own order
        assert os.getsid(spawned[0].pid) != os.getsid(0)
        preparing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await preparing
    assert spawned[0].returncode == -9
    await worker.step(*batch(["a"]))
    assert (await worker.prepare(OTHER)).elsewhere  # nothing is left locked


@pytest.mark.parametrize("answer", ["", "no json", '{"seconds": 1.0}'])
async def test_an_answer_that_is_none(worker, monkeypatch, answer):
    monkeypatch.setattr(_prepare, "MODULE", "compute.silent_process")
    monkeypatch.setenv("SILENT_ANSWER", answer)
    report = await worker.prepare(OTHER)
    assert "gave no answer" in report.note


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ('{"seconds": 1.0, "folder": "/elsewhere", "digest": "fake"}', "/elsewhere"),
        ('{"seconds": 1.0, "folder": "/elsewhere", "digest": "newer"}', "sources"),
    ],
)
async def test_another_cache_or_another_version_is_no_use(worker, monkeypatch, answer, words):
    monkeypatch.setattr(_prepare, "MODULE", "compute.silent_process")
    monkeypatch.setenv("SILENT_ANSWER", answer)
    report = await worker.prepare(OTHER)
    assert words in report.note
    assert not report.elsewhere


async def test_without_a_cache_it_is_compiled_here(tmp_path, spawned):
    occupied = tmp_path / "file"
    occupied.write_text("no folder")
    worker = Worker(PredictorConfig(), program=program(), cache_directory=occupied, **TINY)
    await worker.start()
    report = await worker.prepare(OTHER)
    assert "no cache" in report.note
    assert spawned == []
    await worker.close()


async def test_a_program_without_an_origin_is_compiled_here(tmp_path, spawned):
    worker = Worker(PredictorConfig(), program=FAKE_PROGRAM, cache_directory=tmp_path, **TINY)
    await worker.start()
    report = await worker.prepare(OTHER)
    assert "no origin" in report.note
    assert spawned == []
    assert (await worker.step(*batch(["a"]), parameters=OTHER)).columns["sequence"].tolist() == [1]
    await worker.close()


async def test_the_process_ends_with_its_parent(worker, spawned):
    preparing = asyncio.create_task(worker.prepare(OTHER))
    async with asyncio.timeout(300.0):
        while not spawned:
            await asyncio.sleep(0)
        while spawned[0].stdin is None or spawned[0].stdin.transport.get_write_buffer_size():
            await asyncio.sleep(0)
        spawned[0].stdin.close()
        report = await preparing
    assert spawned[0].returncode == 3
    assert "status 3" in report.note


@pytest.mark.slow
@pytest.mark.long
async def test_the_predictor_itself(spawned):
    worker = Worker(PredictorConfig(), device="cpu")
    await worker.start()
    rng = np.random.default_rng(2)

    def ticks(number):
        keys = [StateKey("ticks", 0, f"symbol {i}") for i in range(20)]
        stamps = np.full(20, 1_700_000_000_000_000_000 + number * 1_000_000_000, np.int64)
        return keys, rng.normal(size=20), stamps, stamps

    for number in range(60):
        await worker.step(*ticks(number))
    preparing = asyncio.create_task(worker.prepare(OTHER))
    number = 60
    while not preparing.done():
        await worker.step(*ticks(number))
        number += 1
    report = await preparing
    assert report.note == ""
    assert number > 61
    result = await worker.step(*ticks(number), parameters=OTHER)
    assert np.isfinite(result.columns["predicted_next"]).all()
    assert (await worker.export_states("ticks", 0)).arrays["model/kernels/3/ridge/coefficients"].shape == (20, 32)
    await worker.close()
