"""``usp-daemon demo --serve`` with the fake predictor: the page while it runs, the same results at the end."""

import asyncio
import io
import json
import os
import re
import signal
import urllib.request

import numpy as np
import pytest
from rich.console import Console
from test_document import check

import fake_predictor
from usp_daemon import app, demo_status
from usp_daemon.app import ExitCode
from usp_daemon.service import RatePacer
from usp_daemon.telemetry import HttpServerError
from usp_daemon.wire import RawBatch, TickBatch


def console():
    return Console(file=io.StringIO(), width=200)


async def get(url):
    def ask():
        with urllib.request.urlopen(url, timeout=20) as answer:
            return answer.read()

    return await asyncio.to_thread(ask)


@pytest.fixture(autouse=True)
def few_ticks(monkeypatch, tmp_path):
    """Two short series in place of the bundled ones."""
    for name in ("one", "two"):
        lines = [f"{1_700_000_000 + i},{i % 7}" for i in range(80)]
        (tmp_path / f"{name}.csv").write_text("time,value\n" + "\n".join(lines) + "\n")

    monkeypatch.setattr(app, "demo_files", lambda: [tmp_path / "one.csv", tmp_path / "two.csv"])
    monkeypatch.chdir(tmp_path)


async def test_page_shows_the_replay_and_stays_until_a_signal(tmp_path):
    err = console()
    task = asyncio.create_task(
        demo_status.serve_demo(
            tmp_path / "out", console(), err, port=0, ticks_per_s=10_000.0,
            predictor_factory=fake_predictor.factory(alarm_every=40),
        )
    )  # fmt: skip
    async with asyncio.timeout(60):
        while "stays at" not in err.file.getvalue():
            assert not task.done(), task.result()
            await asyncio.sleep(0.01)
        url = re.search(r"status page: (\S+)", err.file.getvalue())[1]
        assert b"<title>usp-daemon</title>" in await get(url)
        document = json.loads(await get(f"{url}.json"))
        check(document)
        assert (document["service"]["kind"], document["totals"]["predictions"]) == ("demo", 160)
        assert (document["totals"]["symbols"], document["totals"]["alarms"]) == (2, 4)
        assert document["health"]["ready"] and [each["state"] for each in document["partitions"]] == ["RUNNING"]
        assert b'href="/status"' in await get(url.removesuffix("status"))
        os.kill(os.getpid(), signal.SIGINT)
        summary = await task
    assert summary.exit_code is ExitCode.OK
    with pytest.raises(OSError):
        await get(url)


async def test_results_are_those_of_the_plain_demonstration(tmp_path):
    factory = fake_predictor.factory(alarm_every=40)
    await app.demo(tmp_path / "plain", console(), console(), predictor_factory=factory)
    await demo_status.serve_demo(
        tmp_path / "served", console(), console(), port=0, ticks_per_s=1e6, stay=False, predictor_factory=factory
    )
    for name in ("predictions.jsonl", "alarms.jsonl", "dead_letters.jsonl"):
        plain, served = ((tmp_path / folder / name).read_bytes().splitlines() for folder in ("plain", "served"))
        assert sorted(plain) == sorted(served)
    assert (tmp_path / "served" / "report.html").is_file()


def batch(size):
    raw = RawBatch(topic="t", partition=0, source="f", offsets=list(range(size)), values=[b""] * size)
    return TickBatch(
        raw=raw,
        positions=range(size),
        symbols=["a"] * size,
        values=np.zeros(size),
        timestamps_ns=np.zeros(size, np.int64),
        record_timestamps_ns=np.zeros(size, np.int64),
        dead_letters=[],
    )


async def test_ticks_pass_at_the_rate():
    now, passed = [100.0], []

    async def wait(seconds):
        now[0] += seconds

    pacer = RatePacer(50.0, num_at_once=10, clock_fn=lambda: now[0], wait_fn=wait)
    for _ in range(20):
        async for part in pacer.release(batch(5)):
            passed.append((round(now[0] - 100.0, 6), len(part)))
    assert passed[:3] == [(0.0, 5)] * 3  # ten at once, and the first that counts
    assert passed[3:] == [(round(0.1 * (k + 1), 6), 5) for k in range(17)]
    now[0] += 60.0  # held up: no burst of six hundred batches
    before = now[0]
    for _ in range(30):
        async for _ in pacer.release(batch(5)):
            pass
    assert 1.5 < now[0] - before < 3.0
    pacer.stop()
    assert [part async for part in pacer.release(batch(5))] == []


def test_a_rate_is_positive():
    for rate in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="rate"):
            RatePacer(rate)


async def test_what_is_no_port_is_said_to_be_none(tmp_path):
    with pytest.raises(HttpServerError, match=r"cannot listen on 127\.0\.0\.1:70000"):
        await demo_status.serve_demo(tmp_path, console(), console(), port=70_000)
