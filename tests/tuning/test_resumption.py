"""A campaign that was interrupted anywhere ends as if it had not been."""

import pathlib
import signal
import subprocess
import sys
from typing import Any

import optuna
import pytest

from tuning_landscapes import FoldedBowl, bowl, essence, settings_for
from usp_daemon.config import Settings
from usp_daemon.tuning import BayesianMetaOptimizer, CampaignInUseError, CampaignMismatchError, StorageError, _journal

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
WRITES_BEFORE_TRIALS = 2  # the study and what it depends on
WRITES_PER_TRIAL = 4  # begun, outcome, constraint, state


def optimizer_in(directory: pathlib.Path, evaluator: Any = None, **changes: Any) -> BayesianMetaOptimizer:
    return BayesianMetaOptimizer(
        evaluator or FoldedBowl(), settings_for(directory, **changes), Settings(), worker="here"
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Any, ...]]:
    """Fifty trials without an interruption."""
    optimizer = optimizer_in(tmp_path_factory.mktemp("whole"))
    optimizer.optimize(50)
    return essence(optimizer.records)


def test_there_is_something_to_compare(whole: list[tuple[Any, ...]]) -> None:
    states = [entry[1] for entry in whole]
    assert len(whole) == 50
    assert states.count("complete") > 20
    assert states.count("pruned") > 3
    assert any(entry[5] is not None and entry[5] > 0.0 for entry in whole), "no trial was infeasible"
    assert len({str(entry[2]) for entry in whole}) == 50, "two trials tried the same"


def test_same_campaign_twice(tmp_path: pathlib.Path, whole: list[tuple[Any, ...]]) -> None:
    optimizer = optimizer_in(tmp_path)
    optimizer.optimize(50)
    assert essence(optimizer.records) == whole


@pytest.mark.parametrize("seed", [1, 43])
def test_another_seed_is_another_campaign(tmp_path: pathlib.Path, whole: list[tuple[Any, ...]], seed: int) -> None:
    optimizer = optimizer_in(tmp_path, seed=seed)
    optimizer.optimize(12)
    assert all(one[2] != other[2] for one, other in zip(essence(optimizer.records)[1:], whole[1:], strict=False))


@pytest.mark.parametrize("parts", [(25, 25), (1, 49), (24, 26), (9, 1, 1, 39)])
def test_parts_make_the_whole(tmp_path: pathlib.Path, whole: list[tuple[Any, ...]], parts: tuple[int, ...]) -> None:
    for part in parts:
        optimizer_in(tmp_path).optimize(part)
    assert essence(optimizer_in(tmp_path).open().records()) == whole


def test_the_machines_name_does_not_matter_to_a_file(tmp_path: pathlib.Path, whole: list[tuple[Any, ...]]) -> None:
    """A container comes back under another name."""
    for worker, part in (("one", 12), ("two", 13)):
        optimizer = BayesianMetaOptimizer(FoldedBowl(), settings_for(tmp_path), Settings(), worker=worker)
        optimizer.optimize(part)
    assert essence(optimizer.records) == whole[:25]


class Crash(BaseException):
    """The process is gone."""


@pytest.mark.slow
@pytest.mark.parametrize("manner", ["before", "after", "torn"])
def test_crash_at_every_write(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, manner: str) -> None:
    """Small batches, so that startup, model, pruning and the batch's end are all among the places."""
    changes: dict[str, Any] = {"batch_size": 4, "n_startup_trials": 6}
    reference = optimizer_in(tmp_path / "reference", **changes)
    reference.optimize(14)
    expected = essence(reference.records)
    append_logs = _journal.JournalFile.append_logs
    left = 0

    def append(journal: _journal.JournalFile, logs: list[dict[str, Any]]) -> None:
        nonlocal left
        left -= 1
        if left != 0:
            return append_logs(journal, logs)
        if manner != "before":
            append_logs(journal, logs)
        if manner == "torn":
            content = journal._path.read_bytes()
            last = content.splitlines(keepends=True)[-1]
            journal._path.write_bytes(content[: len(content) - len(last) // 2])
        raise Crash

    monkeypatch.setattr(_journal.JournalFile, "append_logs", append)
    assert len((tmp_path / "reference" / "usp-fast.journal").read_bytes().splitlines()) >= 2 + 4 * 14 - 1
    num_writes = WRITES_BEFORE_TRIALS + WRITES_PER_TRIAL * 14
    for write in range(1, num_writes + 1, 2 if manner == "after" else 3):
        directory = tmp_path / f"{write}"
        left = write
        with pytest.raises(Crash):
            optimizer_in(directory, **changes).optimize(total_trials=14)
        left = -1
        continued = optimizer_in(directory, **changes)
        continued.optimize(total_trials=14)
        assert essence(continued.records) == expected, f"crash at write {write}"


@pytest.mark.slow
def test_killed_processes(tmp_path: pathlib.Path, whole: list[tuple[Any, ...]]) -> None:
    """One campaign, killed by SIGKILL over and over: while drawing, evaluating, between the writes of a tell."""

    def run(*arguments: str) -> int:
        command = [sys.executable, str(ROOT / "tests" / "tuning_campaign.py"), str(tmp_path), "50", *arguments]
        done = subprocess.run(command, cwd=ROOT / "tests", timeout=120, capture_output=True, text=True)
        assert done.returncode in (0, -signal.SIGKILL), done.stderr
        return done.returncode

    for write, manner in [
        (1, "torn"), (2, "before"), (2, "after"), (5, "after"), (7, "torn"), (17, "before"), (13, "after"),
        (19, "torn"), (22, "after"), (31, "torn"), (44, "before"),
    ]:  # fmt: skip
        assert run(str(write), manner) == -signal.SIGKILL
    assert run() == 0
    assert essence(optimizer_in(tmp_path).open().records()) == whole


def test_interrupted_trials_keep_number_and_parameters(tmp_path: pathlib.Path) -> None:
    class Broken(Exception):
        pass

    class FailingOnce(FoldedBowl):
        failures = 1

        def evaluate_batch(self, candidates: Any, *, prune_fn: Any = None) -> Any:
            if len(self.batches) == 3 and self.failures:
                self.failures -= 1
                raise Broken
            return super().evaluate_batch(candidates, prune_fn=prune_fn)

    optimizer = optimizer_in(tmp_path, FailingOnce())
    with pytest.raises(Broken):
        optimizer.optimize(20)
    unfinished = {record.number: record.params for record in optimizer.records if not record.is_finished}
    assert unfinished
    continued = optimizer_in(tmp_path)
    continued.optimize(total_trials=20)
    assert {number: continued.records[number].params for number in unfinished} == unfinished
    assert all(record.is_finished for record in continued.records)
    assert len(continued.records) == 20


def test_outcome_that_was_written_is_not_evaluated_again(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between the outcome and the state of trial 0: the next run makes up for the state alone."""
    append_logs = _journal.JournalFile.append_logs
    operations: list[int] = []

    def append(journal: _journal.JournalFile, logs: list[dict[str, Any]]) -> None:
        append_logs(journal, logs)
        operations.extend(log["op_code"] for log in logs)
        if optuna.storages.journal._storage.JournalOperation.SET_TRIAL_USER_ATTR in operations:
            raise Crash

    with monkeypatch.context() as patched:
        patched.setattr(_journal.JournalFile, "append_logs", append)
        with pytest.raises(Crash):
            optimizer_in(tmp_path).optimize(8)
    evaluator = FoldedBowl()
    optimizer_in(tmp_path, evaluator).optimize(total_trials=8)
    assert sum(len(batch) for batch in evaluator.batches) == 7


def test_batches_do_not_see_into_themselves(tmp_path: pathlib.Path) -> None:
    """What a batch draws does not depend on the outcomes within it, only on those of the batches before."""
    one, other = optimizer_in(tmp_path / "one"), optimizer_in(tmp_path / "other")
    one.optimize(24)
    inverted = FoldedBowl(value_fn=lambda candidate: 3.0 - bowl(candidate))
    first_two = optimizer_in(tmp_path / "other")
    first_two.optimize(16)
    other = optimizer_in(tmp_path / "other", inverted)
    other.optimize(8)
    assert [record.params for record in one.records] == [record.params for record in other.records]
    assert [record.value for record in one.records[16:]] != [record.value for record in other.records[16:]]


def test_continues_a_campaign_only_with_its_own_settings(tmp_path: pathlib.Path) -> None:
    optimizer_in(tmp_path).optimize(4)
    for changes in (
        {"seed": 7}, {"batch_size": 4}, {"cusum_k_max": 0.9}, {"n_startup_trials": 12}, {"max_structures": 3},
        {"train_ratio": 0.6}, {"n_folds": 3}, {"embargo_ticks": 10}, {"multivariate": False}, {"pruning": False},
    ):  # fmt: skip
        with pytest.raises(CampaignMismatchError, match="begun with other settings"):
            optimizer_in(tmp_path, **changes).open()
    with pytest.raises(CampaignMismatchError, match="evaluator"):
        optimizer_in(tmp_path, FoldedBowl(fingerprint="other data")).open()
    # what only says when to end may change
    for changes in ({"n_trials": 60}, {"patience_trials": 10}, {"time_limit_s": 5.0}, {"min_improvement": 0.1}):
        optimizer_in(tmp_path, **changes).open()


def test_one_process_at_a_time(tmp_path: pathlib.Path) -> None:
    class Nosy(FoldedBowl):
        def evaluate_batch(self, candidates: Any, *, prune_fn: Any = None) -> Any:
            with pytest.raises(CampaignInUseError, match=r"another process \(pid \d+\)"):
                optimizer_in(tmp_path).optimize(1)
            return super().evaluate_batch(candidates, prune_fn=prune_fn)

    optimizer_in(tmp_path, Nosy()).optimize(2)
    optimizer_in(tmp_path).optimize(1)


def test_journal_may_be_read_while_it_is_written(tmp_path: pathlib.Path) -> None:
    optimizer_in(tmp_path).optimize(3)
    path = tmp_path / "usp-fast.journal"
    content = path.read_bytes()
    for cut in range(len(content) - 1, len(content) - 200, -7):
        path.write_bytes(content[:cut])
        operations = list(_journal.JournalFile(path).read_logs(0))
        assert len(operations) == content[:cut].count(b"\n")
    path.write_bytes(content)


def test_damaged_journal_is_refused(tmp_path: pathlib.Path) -> None:
    optimizer_in(tmp_path).optimize(3)
    path = tmp_path / "usp-fast.journal"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:4], b"\0" * 20 + b"\n", *lines[5:]]))
    with pytest.raises(StorageError, match="line 5 is damaged"):
        optimizer_in(tmp_path).open()
