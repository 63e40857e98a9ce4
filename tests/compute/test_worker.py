"""The worker: one thread, requests in order, and an answer for everybody who waits."""

import asyncio
import dataclasses
import threading
import weakref

import numpy as np
import pytest

from usp_daemon.compute import (
    DeviceUnavailableError,
    StateFormatError,
    StructuralChangeError,
    Worker,
    WorkerStoppedError,
)
from usp_daemon.core import PredictorConfig

from .fake_program import FAKE_PROGRAM, batch, fake_engine, same_bits


class ScriptedEngine:
    """Stands where an engine would, waits for ``gate`` and does what the first key's symbol says."""

    def __init__(self, config, choice, *, max_symbols, program, folder):
        self.threads = {threading.get_ident()}
        self.gate = threading.Event()
        self.gate.set()
        self.done = []
        self.compile_seconds, self.num_compilations, self.bytes_per_symbol = 0.0, 0, 0
        ScriptedEngine.last = self

    def program_identity(self):
        return None

    def step(self, keys, *_):
        self.threads.add(threading.get_ident())
        self.gate.wait(10.0)
        word = keys[0]
        if word == "raise":
            raise ArithmeticError("no")
        if word == "die":
            raise SystemExit("thread killed")
        self.done.append(word)
        return word


def scripted(**options):
    return Worker(PredictorConfig(), device="cpu", engine_factory=ScriptedEngine, **options)


async def settle():
    for _ in range(10):
        await asyncio.sleep(0)


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setattr("usp_daemon.compute._worker.enable_compilation_cache", lambda choice, directory: None)


async def test_results_are_those_of_an_engine():
    worker = Worker(PredictorConfig(), device="cpu", tile_width=16, refresh_width=16, program=FAKE_PROGRAM)
    report = await worker.start()
    assert worker.is_alive
    assert report.num_compilations == 6
    assert "cpu:0" in report.device
    engine = fake_engine()
    ticks = batch(["a", "b", "a"] * 9)
    result = await worker.step(*ticks)
    expected = engine.step(*ticks)
    assert all(same_bits(result.columns[name], expected.columns[name]) for name in expected.columns)
    changed = dataclasses.replace(PredictorConfig(), volatility_alpha=0.7)
    await worker.set_parameters(changed)
    engine.set_parameters(changed)
    result, expected = await worker.step(*ticks), engine.step(*ticks)
    assert all(same_bits(result.columns[name], expected.columns[name]) for name in expected.columns)
    exported = await worker.export_states("ticks", 0)
    assert await worker.release("ticks", 0) == 2
    await worker.import_states("ticks", 0, exported)
    with pytest.raises(StructuralChangeError):
        await worker.set_parameters(dataclasses.replace(changed, log_sig_depth=4))
    with pytest.raises(StateFormatError):
        await worker.import_states("ticks", 1, dataclasses.replace(exported, arrays={}))
    with pytest.raises(ValueError, match="shape"):
        await worker.step(ticks[0], np.zeros(1), *ticks[2:])
    assert (await worker.step(*batch(["a"]))).columns["sequence"].tolist() == [37]
    await worker.close()


async def test_the_event_loop_never_computes_and_there_is_one_owner():
    worker = scripted()
    await worker.start()
    await asyncio.gather(*(worker.step([word], None, None, None) for word in "abcdef"))
    engine = ScriptedEngine.last
    assert engine.done == list("abcdef")
    assert len(engine.threads) == 1
    assert threading.get_ident() not in engine.threads
    await worker.close()


async def test_an_exception_reaches_its_waiter_and_the_worker_goes_on():
    worker = scripted()
    await worker.start()
    results = await asyncio.gather(
        *(worker.step([word], None, None, None) for word in ("a", "raise", "b")), return_exceptions=True
    )
    assert results[0] == "a"
    assert isinstance(results[1], ArithmeticError)
    assert results[2] == "b"
    await worker.close()


async def test_when_the_thread_dies_everybody_is_told():
    worker = scripted(max_pending=3)
    await worker.start()
    ScriptedEngine.last.gate.clear()
    words = ("die", "a", "b", "c", "d", "e")
    waiting = [asyncio.create_task(worker.step([word], None, None, None)) for word in words]
    await settle()
    ScriptedEngine.last.gate.set()
    async with asyncio.timeout(10.0):
        results = await asyncio.gather(*waiting, return_exceptions=True)
        assert all(isinstance(result, WorkerStoppedError) for result in results)
        assert all("thread killed" in str(result) for result in results)
        assert ScriptedEngine.last.done == []
        assert not worker.is_alive
        with pytest.raises(WorkerStoppedError, match="thread killed") as caught:
            await worker.step(["a"], None, None, None)
        assert isinstance(caught.value.__cause__, SystemExit)
        await worker.close()


async def test_the_queue_is_bounded():
    worker = scripted(max_pending=2)
    await worker.start()
    ScriptedEngine.last.gate.clear()
    waiting = [asyncio.create_task(worker.step([word], None, None, None)) for word in "abcdef"]
    await settle()
    assert worker._requests.qsize() <= 2
    ScriptedEngine.last.gate.set()
    assert await asyncio.gather(*waiting) == list("abcdef")
    await worker.close()


async def test_a_request_given_up_before_it_began_never_happens():
    worker = scripted()
    await worker.start()
    engine = ScriptedEngine.last
    engine.gate.clear()
    first, second, third = (asyncio.create_task(worker.step([w], None, None, None)) for w in "abc")
    await settle()
    second.cancel()
    await settle()
    engine.gate.set()
    assert [await first, await third] == ["a", "c"]
    assert engine.done == ["a", "c"]
    with pytest.raises(asyncio.CancelledError):
        await second
    await worker.close()


async def test_close_finishes_what_was_asked_for_and_may_be_repeated():
    worker = scripted()
    await worker.start()
    ScriptedEngine.last.gate.clear()
    waiting = [asyncio.create_task(worker.step([word], None, None, None)) for word in "abc"]
    await settle()
    closing = asyncio.create_task(worker.close())
    await settle()
    assert not closing.done()
    with pytest.raises(WorkerStoppedError, match="closed"):
        await worker.step(["late"], None, None, None)
    ScriptedEngine.last.gate.set()
    async with asyncio.timeout(10.0):
        await closing
        await worker.close()
    assert await asyncio.gather(*waiting) == list("abc")
    assert not worker.is_alive


async def test_nothing_is_left_of_the_engine_when_it_is_closed():
    engines = []

    def build(*arguments, **options):
        engine = ScriptedEngine(*arguments, **options)
        del ScriptedEngine.last
        engines.append(weakref.ref(engine))
        return engine

    worker = Worker(PredictorConfig(), device="cpu", engine_factory=build)
    await worker.start()
    await worker.step(["a"], None, None, None)
    assert engines[0]() is not None
    await worker.close()
    assert engines[0]() is None


async def test_before_the_start():
    worker = scripted()
    with pytest.raises(WorkerStoppedError, match="not started"):
        await worker.step(["a"], None, None, None)
    await worker.close()


async def test_a_worker_starts_once():
    worker = scripted()
    await worker.start()
    with pytest.raises(RuntimeError, match="once"):
        await worker.start()
    await worker.close()


async def test_a_start_that_fails_says_why_and_leaves_nothing_behind():
    worker = Worker(PredictorConfig(), device="cuda:99", program=FAKE_PROGRAM)
    async with asyncio.timeout(10.0):
        with pytest.raises(DeviceUnavailableError, match="cuda:99"):
            await worker.start()
        with pytest.raises(WorkerStoppedError, match="cuda:99"):
            await worker.step(*batch(["a"]))
        await worker.close()


def test_a_queue_without_places_is_refused():
    with pytest.raises(ValueError, match="max_pending"):
        scripted(max_pending=0)
