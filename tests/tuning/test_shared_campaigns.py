"""A campaign in a database: one worker is as exact as over a file, several share the trials."""

import os
import pathlib
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

import pytest

from tuning_landscapes import FoldedBowl, essence, settings_for
from usp_daemon.config import Settings
from usp_daemon.tuning import (
    BayesianMetaOptimizer,
    StopReason,
    StorageError,
    campaign_names,
    put_away,
    read_stored,
)

TESTS = pathlib.Path(__file__).resolve().parent.parent
PROGRAM = """
import pathlib, sys
from tuning_landscapes import FoldedBowl, settings_for
from usp_daemon.config import Settings
from usp_daemon.tuning import BayesianMetaOptimizer
url, worker, total = sys.argv[1:]
config = settings_for(pathlib.Path("unused"), storage_url=url)
BayesianMetaOptimizer(FoldedBowl(), config, Settings(), worker=worker).optimize(total_trials=int(total))
"""


def postgres_missing() -> str:
    """Why there can be no PostgreSQL here, or ""."""
    try:
        import psycopg  # type: ignore[import-not-found]  # noqa: F401
    except ImportError:
        return "psycopg is not installed"
    if postgres_programs() is None:
        return "no PostgreSQL server in /usr/lib/postgresql"
    return ""


def postgres_programs() -> pathlib.Path | None:
    found = sorted(pathlib.Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    return found[-1].parent if found else None


@pytest.fixture(scope="module")
def postgres_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    missing = postgres_missing()
    if missing:
        if os.environ.get("USP_REQUIRE_POSTGRES") == "1":
            pytest.fail(missing)
        pytest.skip(missing)
    programs = postgres_programs()
    assert programs is not None
    directory = pathlib.Path(tmp_path_factory.mktemp("postgres"))
    as_owner: list[str] = []
    if os.geteuid() == 0:  # the server refuses to run as root
        for parent in (directory, *directory.parents):  # and it must be able to walk down to its data
            if parent.stat().st_uid == 0 and parent.is_relative_to(tempfile.gettempdir()):
                parent.chmod(parent.stat().st_mode | 0o011)
        shutil.chown(directory, "postgres")
        as_owner = ["runuser", "-u", "postgres", "--"]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    data = directory / "data"
    initdb = [*as_owner, str(programs / "initdb"), "-D", str(data), "-U", "usp", "-A", "trust", "-E", "UTF8", "-N"]
    subprocess.run(initdb, check=True, capture_output=True, timeout=120)
    options = f"-p {port} -k {directory} -c listen_addresses=127.0.0.1 -c fsync=off"
    control = [*as_owner, str(programs / "pg_ctl"), "-D", str(data), "-w"]
    subprocess.run(
        [*control, "-l", str(directory / "log"), "-o", options, "start"],
        check=True,
        timeout=120,
        stdout=subprocess.DEVNULL,
    )
    try:
        yield f"postgresql+psycopg://usp@127.0.0.1:{port}/postgres"
    finally:
        subprocess.run([*control, "-m", "immediate", "stop"], check=True, timeout=60, stdout=subprocess.DEVNULL)


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: pathlib.Path) -> Any:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'campaigns.db'}"
    return request.getfixturevalue("postgres_url")


def optimizer_at(url: str, name: str, worker: str = "one", evaluator: Any = None, **options: Any) -> Any:
    config = settings_for(pathlib.Path("unused"), storage_url=url)
    return BayesianMetaOptimizer(
        evaluator or FoldedBowl(), config, Settings(), study_name=name, worker=worker, **options
    )


@pytest.mark.slow
def test_one_worker_is_exact(url: str, tmp_path: pathlib.Path) -> None:
    """Broken off twice, over a database, it has the trials that it has over a file in one go."""
    reference = BayesianMetaOptimizer(FoldedBowl(), settings_for(tmp_path / "file"), Settings(), worker="x")
    reference.optimize(30)

    class Broken(Exception):
        pass

    class Failing(FoldedBowl):
        def evaluate_batch(self, candidates: Any, *, prune_fn: Any = None) -> Any:
            if len(self.batches) == 2:
                raise Broken
            return super().evaluate_batch(candidates, prune_fn=prune_fn)

    for _ in range(2):
        with pytest.raises(Broken):
            optimizer_at(url, "exact", evaluator=Failing()).optimize(total_trials=30)
    last = optimizer_at(url, "exact")
    last.optimize(total_trials=30)
    assert essence(last.records) == essence(reference.records)
    assert last.study.best_trial.number == last._result(StopReason.TRIALS).best_number


@pytest.mark.slow
def test_workers_share_a_campaign(url: str) -> None:
    """Two processes at once: every trial once, both had a part, none tried what the other did."""
    optimizer_at(url, "usp-fast", worker="alpha").open()  # the tables are made by one of them
    processes = [
        subprocess.Popen([sys.executable, "-c", PROGRAM, url, worker, "40"], cwd=TESTS, stderr=subprocess.PIPE)
        for worker in ("alpha", "beta")
    ]
    for process in processes:
        _, errors = process.communicate(timeout=180)
        assert process.returncode == 0, errors.decode()
    _, records, _ = read_stored(settings_for(pathlib.Path("unused"), storage_url=url), "usp-fast")
    assert [record.number for record in records] == list(range(len(records)))
    assert 40 <= len(records) <= 48  # both may have begun a last batch
    assert all(record.is_finished for record in records)
    assert {record.worker for record in records} == {"alpha", "beta"}
    # Workers that begin in the same moment may both evaluate the settings at the start; nothing else is tried twice.
    tried = [str(sorted(record.params.items())) for record in records]
    others = [params for params in tried if params != tried[0]]
    assert len(set(others)) == len(others) >= len(records) - 2


def test_trials_of_a_dead_worker_are_taken_over(url: str) -> None:
    class Broken(Exception):
        pass

    class Failing(FoldedBowl):
        def evaluate_batch(self, candidates: Any, *, prune_fn: Any = None) -> Any:
            raise Broken

    with pytest.raises(Broken):
        optimizer_at(url, "left", worker="dead", evaluator=Failing()).optimize(total_trials=8)
    waiting = optimizer_at(url, "left", worker="alive").optimize(total_trials=8)
    assert (waiting.n_trials, waiting.stop_reason) == (0, StopReason.ELSEWHERE)
    taken = optimizer_at(url, "left", worker="alive", lease_s=0.0).optimize(total_trials=8)
    assert (taken.n_trials, taken.stop_reason) == (8, StopReason.TRIALS)


def test_reading_and_naming(url: str) -> None:
    optimizer_at(url, "named").optimize(2)
    config = settings_for(pathlib.Path("unused"), storage_url=url)
    assert "named" in campaign_names(config)
    campaign, records, _ = read_stored(config, "named")
    assert (campaign.name, len(records)) == ("named", 2)
    with pytest.raises(StorageError, match="no campaign 'other'"):
        read_stored(config, "other")
    with pytest.raises(StorageError, match="another name"):
        put_away(config, "named")


@pytest.mark.parametrize("url", ["postgresql+psycopg://tuner:hunter2@127.0.0.1:1/x", "nonsense://tuner:hunter2@h/x"])
def test_password_is_not_told(url: str) -> None:
    with pytest.raises(StorageError) as caught:
        optimizer_at(url, "x").open()
    assert "storage_url" in str(caught.value) and "hunter2" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_a_study_that_is_no_campaign_is_refused(tmp_path: pathlib.Path) -> None:
    import optuna

    url = f"sqlite:///{tmp_path / 'other.db'}"
    study = optuna.create_study(storage=url, study_name="mine")
    study.add_trial(optuna.trial.create_trial(value=1.0))
    with pytest.raises(StorageError, match="no campaign of usp-daemon"):
        optimizer_at(url, "mine").open()
