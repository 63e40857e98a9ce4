"""The whole of it with the real worker: files in, calibrated records out. One compilation serves all of these tests."""

import asyncio
import contextlib
import io
import itertools

import jsonschema
import numpy as np
import orjson
import pytest
from rich.console import Console

from usp_daemon import app
from usp_daemon.compute import StateKey, Worker, predictor_config
from usp_daemon.config import Settings
from usp_daemon.wire import schemas

NUM_TICKS = 260
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def replayed(tmp_path_factory):
    """The output directory of a replay of three series with everything that a gate has to cope with."""
    directory = tmp_path_factory.mktemp("replay")
    generator = np.random.default_rng(11)
    steps = generator.normal(size=(NUM_TICKS, 2)).cumsum(axis=0)
    lines = ["ts,value,symbol"]
    for i in range(NUM_TICKS):
        stamp = 1_700_000_000 + i
        lines += [f"{stamp},{steps[i, 0]:.6f},walk", f"{stamp},{np.sin(i / 4):.6f},wave", f"{stamp},5,flat"]
    duplicate, missing = lines[3 * 100 + 1], f"{1_700_000_000 + NUM_TICKS},,walk"
    lines += [duplicate, missing, "junk,1,walk"]
    path = directory / "ticks.csv"
    path.write_text("\n".join(lines) + "\n")
    options = app.ReplayOptions(files=[path], out=directory / "out", time_unit="s", device="cpu", report=True)
    out, err = Console(file=io.StringIO(), width=110), Console(file=io.StringIO())
    with contextlib.chdir(directory):
        summary = asyncio.run(app.replay(options, out, err))
    return summary, directory / "out", out.file.getvalue()


def records(directory, name):
    return [orjson.loads(line) for line in (directory / f"{name}.jsonl").read_bytes().splitlines()]


def test_every_record_is_answered_and_satisfies_its_schema(replayed):
    summary, directory, printed = replayed
    assert summary.exit_code == app.ExitCode.OK
    assert summary.stats.records == 3 * NUM_TICKS + 3 == summary.stats.predictions + summary.stats.dead_letters
    assert "cpu" in printed
    for name, schema in (("predictions", "prediction"), ("alarms", "alarm"), ("dead_letters", "dead_letter")):
        validator = jsonschema.Draft202012Validator(schemas.json_schema(schema))
        for record in records(directory, name):
            validator.validate(record)
    assert (directory / "report.html").stat().st_size > 10_000


def test_forecasts_are_forecasts(replayed):
    _, directory, _ = replayed
    predictions = records(directory, "predictions")
    for record in predictions:
        assert abs(sum(record["weights"].values()) - 1.0) < 1e-9
        (low_80, high_80), (low_95, high_95) = record["intervals"]["80"], record["intervals"]["95"]
        assert low_95 <= low_80 <= high_80 <= high_95
    wave = [record for record in predictions if record["symbol"] == "wave"]
    errors = [abs(after["value"] - before["prediction"]) for before, after in itertools.pairwise(wave)][150:]
    naive = [abs(after["value"] - before["value"]) for before, after in itertools.pairwise(wave)][150:]
    assert np.mean(errors) < 0.5 * np.mean(naive)


def test_the_gate_speaks_through_the_records(replayed):
    _, directory, _ = replayed
    duplicate, missing = [record for record in records(directory, "predictions") if record["symbol"] == "walk"][-2:]
    assert not duplicate["accepted"]
    assert {"duplicate", "out_of_order"} & set(duplicate["gate_reasons"])
    assert "not_finite" in missing["gate_reasons"]
    assert missing["value"] is None
    assert missing["seq"] == duplicate["seq"]
    (dead,) = records(directory, "dead_letters")
    assert dead["reason"] == "timestamp_invalid"


async def test_the_worker_gives_what_the_pipeline_needs():
    """The fake predictor's columns are the worker's."""
    from fake_predictor import FakePredictor

    worker = Worker(predictor_config(Settings()), device="cpu", max_symbols=1)
    await worker.start()
    try:
        keys = [StateKey("t", 0, "a"), StateKey("t", 0, "b")]
        stamps = np.array([10**9, 10**9])
        real = await worker.step(keys, np.array([1.0, 2.0]), stamps, stamps)
    finally:
        await worker.close()
    fake = await FakePredictor(max_symbols=1).step(keys, np.array([1.0, 2.0]), stamps, stamps)
    assert real.admitted.tolist() == fake.admitted.tolist() == [True, False]
    assert set(fake.columns) <= set(real.columns)
    for name, column in fake.columns.items():
        assert real.columns[name].shape == column.shape, name
        assert real.columns[name].dtype.kind == column.dtype.kind, name
