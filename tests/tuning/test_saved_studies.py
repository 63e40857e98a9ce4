"""Saving and loading: data only, whole or not at all, continued exactly."""

import asyncio
import hashlib
import json
import os
import pathlib
import pickle
import signal
import subprocess
import sys
import threading
from typing import Any

import msgspec
import optuna
import pytest

from tuning_landscapes import FoldedBowl, essence, settings_for
from usp_daemon.config import Settings
from usp_daemon.tuning import (
    AsyncMetaOptimizer,
    BayesianMetaOptimizer,
    CampaignMismatchError,
    IntegrityError,
    MissingHashError,
    _checkpoint,
)
from usp_daemon.tuning._trials import TrialRecord, encoded


def optimizer_in(directory: pathlib.Path, **changes: Any) -> BayesianMetaOptimizer:
    return BayesianMetaOptimizer(FoldedBowl(), settings_for(directory, **changes), Settings(), worker="here")


def load(path: pathlib.Path, directory: pathlib.Path, **options: Any) -> BayesianMetaOptimizer:
    return BayesianMetaOptimizer.load_study(path, FoldedBowl(), settings_for(directory), Settings(), **options)


@pytest.fixture
def saved(tmp_path: pathlib.Path) -> pathlib.Path:
    optimizer = optimizer_in(tmp_path / "first")
    optimizer.optimize(25)
    optimizer.save_study(tmp_path / "study.json")
    return tmp_path / "study.json"


def sign(path: pathlib.Path, content: bytes) -> None:
    """Write what an attacker could: any content, with a hash file that fits."""
    path.write_bytes(content)
    path.with_name(path.name + ".sha256").write_text(hashlib.sha256(content).hexdigest() + "\n")


def test_loaded_campaign_continues_exactly(tmp_path: pathlib.Path, saved: pathlib.Path) -> None:
    """T-72: 25 trials, a restart, 25 more: the parameters and values of 50 in one go."""
    whole = optimizer_in(tmp_path / "whole")
    whole.optimize(50)
    loaded = load(saved, tmp_path / "second")
    assert len(loaded.records) == 25
    loaded.optimize(25)
    assert essence(loaded.records) == essence(whole.records)
    assert (tmp_path / "second" / "usp-fast.journal").exists(), "what was loaded is not durable"


def test_study_saved_in_the_middle_of_a_batch_continues_exactly(tmp_path: pathlib.Path) -> None:
    class Saving(FoldedBowl):
        def evaluate_batch(self, candidates: Any, *, prune_fn: Any = None) -> Any:
            if len(self.batches) == 4:
                optimizer.save_study(tmp_path / "middle.json")
            return super().evaluate_batch(candidates, prune_fn=prune_fn)

    optimizer = BayesianMetaOptimizer(Saving(), settings_for(tmp_path / "a"), Settings(), worker="here")
    optimizer.optimize(30)
    loaded = load(tmp_path / "middle.json", tmp_path / "b")
    unfinished = [record for record in loaded.records if not record.is_finished]
    assert unfinished and len(loaded.records) > len(unfinished)
    loaded.optimize(total_trials=30)
    assert essence(loaded.records) == essence(optimizer.records)


def test_loading_where_the_trials_are_already(tmp_path: pathlib.Path, saved: pathlib.Path) -> None:
    loaded = load(saved, tmp_path / "first")
    assert len(loaded.records) == 25
    other = optimizer_in(tmp_path / "third")
    other._evaluator = FoldedBowl(value_fn=lambda candidate: 2.0)  # same identity, other outcomes
    other.optimize(4)
    with pytest.raises(CampaignMismatchError, match="another trial 0"):
        load(saved, tmp_path / "third")


def test_names_and_settings_must_fit(tmp_path: pathlib.Path, saved: pathlib.Path) -> None:
    with pytest.raises(ValueError, match="usp-fast"):
        load(saved, tmp_path / "x", study_name="other")
    with pytest.raises(CampaignMismatchError, match="seed"):
        BayesianMetaOptimizer.load_study(saved, FoldedBowl(), settings_for(tmp_path / "x", seed=3), Settings())


def test_hash_beside_the_file(saved: pathlib.Path) -> None:
    sidecar = saved.with_name("study.json.sha256")
    assert sidecar.read_text().strip() == hashlib.sha256(saved.read_bytes()).hexdigest()


def test_missing_or_wrong_hash_is_refused(tmp_path: pathlib.Path, saved: pathlib.Path) -> None:
    sidecar = saved.with_name("study.json.sha256")
    original = sidecar.read_text()
    sidecar.write_text("0" * 64)
    with pytest.raises(IntegrityError, match="SHA-256 mismatch"):
        load(saved, tmp_path / "x")
    sidecar.unlink()
    with pytest.raises(MissingHashError):
        load(saved, tmp_path / "x")
    with pytest.raises(FileNotFoundError):  # as the specification has it
        load(saved, tmp_path / "x")
    sidecar.write_text(original)
    load(saved, tmp_path / "x")
    assert not (tmp_path / "y").exists()


def test_every_flipped_bit_is_found(tmp_path: pathlib.Path, saved: pathlib.Path) -> None:
    content = saved.read_bytes()
    for position in range(0, len(content), max(len(content) // 60, 1)):
        saved.write_bytes(content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :])
        with pytest.raises(IntegrityError):
            load(saved, tmp_path / "x")
    for length in (0, 1, 100, len(content) - 1):
        saved.write_bytes(content[:length])
        with pytest.raises(IntegrityError):
            load(saved, tmp_path / "x")
    assert not (tmp_path / "x").exists(), "something was stored of a study that was refused"


def test_hash_inside_the_file_counts_too(tmp_path: pathlib.Path, saved: pathlib.Path) -> None:
    content = saved.read_bytes()
    sign(saved, content.replace(b'"value":0.', b'"value":1.', 1))
    with pytest.raises(IntegrityError, match="inside"):
        load(saved, tmp_path / "x")


def test_pickle_is_never_opened(tmp_path: pathlib.Path, saved: pathlib.Path) -> None:
    """E-67: a pickle with a hash that fits ran whatever it liked."""

    class Malicious:
        def __reduce__(self) -> Any:
            return (os.system, (f"touch {tmp_path / 'ran'}",))

    sign(saved, pickle.dumps(Malicious()))
    with pytest.raises(IntegrityError):
        load(saved, tmp_path / "x")
    assert not (tmp_path / "ran").exists()


def rewritten(path: pathlib.Path, change_header: Any = None, change_trial: Any = None) -> None:
    """Sign the file anew, hashes and all, after a change to its header or to its third trial."""
    first, _, body = path.read_bytes().partition(b"\n")
    trials = body.splitlines()
    if change_trial is not None:
        record = json.loads(trials[2])
        change_trial(record)
        trials[2] = json.dumps(record).encode()
    body = b"".join(line + b"\n" for line in trials)
    header = json.loads(first)
    header["sha256"] = hashlib.sha256(body).hexdigest()
    if change_header is not None:
        change_header(header)
    sign(path, json.dumps(header).encode() + b"\n" + body)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda header: header.update(version=2), "newer"),
        (lambda header: header.update(format="something"), "not a saved study"),
        (lambda header: header.update(num_trials=24), "missing or out of order"),
        (lambda header: header.update(study_name="other"), "contradicts"),
        (lambda header: header["campaign"].update(seed="x"), "not a saved study"),
        (lambda header: header["campaign"].update(version="x"), "not a saved study"),
        (lambda header: header["campaign"]["space"].update(cusum_k="{}"), "search space"),
        (lambda header: header.pop("campaign"), "not a saved study"),
    ],
)
def test_header_that_makes_no_sense(tmp_path: pathlib.Path, saved: pathlib.Path, change: Any, words: str) -> None:
    rewritten(saved, change_header=change)
    with pytest.raises(IntegrityError, match=words):
        load(saved, tmp_path / "x")


@pytest.mark.parametrize(
    "change",
    [
        lambda record: record.update(number=7),
        lambda record: record.update(state="excellent"),
        lambda record: record.update(code="import os"),
        lambda record: record["params"].update(cusum_k=4.0),
        lambda record: record["params"].update(wtmm_buffer_size=100),
        lambda record: record["params"].update(cusum_k="0.5"),
        lambda record: record["params"].pop("cusum_k"),
        lambda record: record.update(params=[1, 2]),
        lambda record: record.update(state="complete", value=None),
    ],
)
def test_trial_that_makes_no_sense(tmp_path: pathlib.Path, saved: pathlib.Path, change: Any) -> None:
    rewritten(saved, change_trial=change)
    with pytest.raises(IntegrityError):
        load(saved, tmp_path / "x")


def test_rewriting_alone_changes_nothing(tmp_path: pathlib.Path, saved: pathlib.Path) -> None:
    rewritten(saved)
    assert len(load(saved, tmp_path / "x").records) == 25


def test_numbers_survive_bit_for_bit() -> None:
    awkward = [0.1 + 0.2, 1e-300, 5e-324, 1.7976931348623157e308, -0.0, 1 / 3, 2**53 + 2.0]
    record = TrialRecord(number=1, state="complete", params={"x": 0.1}, value=awkward[0], fold_values=tuple(awkward))
    again = msgspec.json.decode(encoded(record), type=TrialRecord)
    assert [value.hex() for value in again.fold_values] == [value.hex() for value in awkward]


def test_some_file_of_the_two_saves_is_always_loadable(tmp_path: pathlib.Path, monkeypatch: Any) -> None:
    """A save over an older one, broken off before or after each of its three replacements."""
    optimizer = optimizer_in(tmp_path / "a")
    optimizer.optimize(4)
    path = tmp_path / "study.json"
    optimizer.save_study(path)
    optimizer.optimize(4)

    class Crash(BaseException):
        pass

    replace = os.replace
    for crash_at in range(3):
        for after in (False, True):
            count = -1

            def crashing(source: Any, target: Any, crash_at: int = crash_at, after: bool = after) -> None:
                nonlocal count
                count += 1
                if count == crash_at and not after:
                    raise Crash
                replace(source, target)
                if count == crash_at:
                    raise Crash

            with monkeypatch.context() as patched, pytest.raises(Crash):
                patched.setattr(_checkpoint.os, "replace", crashing)
                optimizer.save_study(path)
            loaded = load(path, tmp_path / f"loaded-{crash_at}-{after}")
            assert len(loaded.records) in (4, 8)
    optimizer.save_study(path)
    assert len(load(path, tmp_path / "last").records) == 8
    assert sorted(file.name for file in tmp_path.glob("*study*")) == ["study.json", "study.json.sha256"]


def test_killed_save_leaves_a_loadable_study(tmp_path: pathlib.Path) -> None:
    """SIGKILL between the file's replacement and its hash's."""
    optimizer = optimizer_in(tmp_path / "a")
    optimizer.optimize(4)
    path = tmp_path / "study.json"
    optimizer.save_study(path)
    program = f"""
import os, signal, pathlib
from tuning_landscapes import FoldedBowl, settings_for
from usp_daemon.config import Settings
from usp_daemon.tuning import BayesianMetaOptimizer, _checkpoint
replace, count = os.replace, 0
def killing(source, target):
    global count
    count += 1
    replace(source, target)
    if count == 2:
        os.kill(os.getpid(), signal.SIGKILL)
config = settings_for(pathlib.Path({str(tmp_path / "a")!r}))
optimizer = BayesianMetaOptimizer(FoldedBowl(), config, Settings(), worker="here")
optimizer.optimize(4)
os.replace = killing
optimizer.save_study({str(path)!r})
"""
    tests = pathlib.Path(__file__).resolve().parent.parent
    done = subprocess.run([sys.executable, "-c", program], cwd=tests, timeout=60, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert len(load(path, tmp_path / "b").records) == 8


async def test_saves_beside_an_event_loop(tmp_path: pathlib.Path) -> None:
    with AsyncMetaOptimizer(FoldedBowl(), settings_for(tmp_path / "a"), Settings(), worker="here") as optimizer:
        optimizer.optimize(9)
        futures = [optimizer.save_study_async(tmp_path / "study.json") for _ in range(5)]
        await asyncio.gather(*(asyncio.wrap_future(future) for future in futures))
        optimizer.wait_all_saves(timeout=0.0)
    loading = AsyncMetaOptimizer.load_study_async(
        tmp_path / "study.json", FoldedBowl(), settings_for(tmp_path / "b"), Settings()
    )
    loaded = await asyncio.wrap_future(loading)
    with loaded:
        assert loaded.study is not None and len(loaded.study.trials) == 9
        assert loaded.optimize(3).n_trials == 12
        assert "Total Trials: 12" in loaded.generate_optimization_report()
    with pytest.raises(RuntimeError, match="shutdown"):
        loaded.save_study_async(tmp_path / "late.json")
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("usp-study")]


def test_newest_save_stands(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two workers, the older save held up until the newer one is done: it must not come out on top of it."""
    save = AsyncMetaOptimizer._save
    newer_is_done = threading.Event()

    def late(path: pathlib.Path, last: Any, number: int, *content: Any) -> None:
        if number == 1:
            assert newer_is_done.wait(20.0)
        save(path, last, number, *content)

    monkeypatch.setattr(AsyncMetaOptimizer, "_save", staticmethod(late))
    with AsyncMetaOptimizer(FoldedBowl(), settings_for(tmp_path / "a"), Settings(), worker="here") as optimizer:
        optimizer.optimize(4)
        older = optimizer.save_study_async(tmp_path / "study.json")
        optimizer.optimize(4)
        newer = optimizer.save_study_async(tmp_path / "study.json")
        newer.result(timeout=20.0)
        with pytest.raises(TimeoutError, match="still being written"):
            optimizer.wait_all_saves(timeout=0.0)
        newer_is_done.set()
        optimizer.wait_all_saves(timeout=20.0)
        assert older.done()
    assert len(load(tmp_path / "study.json", tmp_path / "b").records) == 8


def test_failed_save_is_told(tmp_path: pathlib.Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with AsyncMetaOptimizer(
        FoldedBowl(), settings_for(tmp_path), Settings(), storage=optuna.storages.InMemoryStorage()
    ) as optimizer:
        optimizer.optimize(2)
        optimizer.save_study_async(tmp_path / "file" / "study.json")
        with pytest.raises(OSError):
            optimizer.wait_all_saves(timeout=10.0)
        optimizer.wait_all_saves(timeout=0.0)  # told once
