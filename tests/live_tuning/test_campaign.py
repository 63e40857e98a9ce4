"""Campaigns from recorded ticks to a decision, and the process that they run in."""

import asyncio
import functools
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from quick_campaign import BEST, Evaluator

from usp_daemon.config import SPECS, ParameterClass, Settings, parse_settings
from usp_daemon.live_tuning import (
    CampaignFailedError,
    CampaignProcess,
    CampaignRequest,
    CpuBudget,
    classes_of,
    run_campaign,
)
from usp_daemon.live_tuning._campaign import cpu_seconds
from usp_daemon.live_tuning._search import _short
from usp_daemon.persistence import TickRing
from usp_daemon.tuning import FoldPlan, HistoryError

KEY = "orchestration.cusum_k"
SCRIPT = pathlib.Path(__file__).with_name("quick_campaign.py")


def record(directory, count=1_000, symbols=("a", "b")):
    ring = TickRing(directory, flush_interval_s=0.0)
    ring.open()
    for symbol in symbols:
        times = np.arange(1, count + 1, dtype=np.int64) * 1_000_000_000
        ring.append([symbol] * count, times, np.sin(times / 7e9), times)
    assert ring.close()
    return str(directory)


def request_for(tmp_path, *, applies=("traced",), proposes=("structural",), **sections):
    section = {"checkpoint_path": str(tmp_path / "campaigns"), "n_trials": 40, "default_tier": "fast"}
    document = {"meta_optimization": section}
    for section, values in sections.items():
        document[section] = {**document.get(section, {}), **values}
    values = dict(parse_settings(document, source="test").items())
    secrets = {"kafka.sasl_password", "meta_optimization.storage_url", "kafka.ssl_key_password"}
    return CampaignRequest(
        name="live-test-1", seed=3, values={path: value for path, value in values.items() if path not in secrets},
        ticks=str(tmp_path / "ticks"), history=str(tmp_path / "state" / "h.npz"), applies=applies, proposes=proposes,
    )  # fmt: skip


def run(request, seen=None, **options):
    progress = []
    decision = run_campaign(
        request, progress_fn=progress.append, evaluator_fn=functools.partial(Evaluator, seen=seen, **options)
    )
    return decision, progress


def test_the_best_is_approached_within_the_trust_region_and_judged_on_unseen_ticks(tmp_path):
    record(tmp_path / "ticks")
    seen = []
    decision, progress = run(request_for(tmp_path), seen)
    (judge,) = seen
    # Of 1,000 ticks of two symbols a quarter is left for the judgement.
    assert judge.history.num_ticks == 2_000 and judge.plan == FoldPlan()
    # 0.5 may become 0.75 at once, wherever above that the search found its best.
    assert set(decision.apply) and decision.apply[KEY] == pytest.approx(0.75, rel=0.08)
    assert decision.apply[KEY] <= 0.75 and len(str(decision.apply[KEY])) <= 8
    assert all(path.startswith(("orchestration.", "kernels.")) for path in decision.apply)
    classes = {SPECS[path].key.parameter_class for path in decision.apply}
    assert classes == {ParameterClass.TRACED}
    value = decision.evidence["values_on_holdout"]["apply traced"]
    assert value == pytest.approx(1.0 - (0.3 - abs(decision.apply[KEY] - BEST)), abs=1e-9)
    assert decision.num_trials == 40
    assert progress[-1].num_trials == 40 and progress[-1].best_value <= 1.0
    assert not (tmp_path / "state" / "h.npz").exists()


def test_what_does_not_hold_on_unseen_ticks_is_left(tmp_path):
    record(tmp_path / "ticks")
    decision, _ = run(request_for(tmp_path), is_false=True)
    assert not decision.apply and not decision.propose and "had not seen" in decision.reason


def test_a_gain_below_what_is_asked_for_is_none(tmp_path):
    record(tmp_path / "ticks")
    decision, _ = run(request_for(tmp_path, meta_optimization={"min_gain": 0.5}))
    assert not decision.apply and not decision.propose


def test_structural_changes_are_proposed_in_full_beside_the_step_that_is_applied(tmp_path):
    record(tmp_path / "ticks")
    decision, _ = run(request_for(tmp_path), depth_gain=0.4)
    assert decision.propose["kernels.log_sig_depth"] == 4
    assert decision.apply and "kernels.log_sig_depth" not in decision.apply


def test_structural_changes_are_applied_where_that_is_asked_for(tmp_path):
    record(tmp_path / "ticks")
    decision, _ = run(request_for(tmp_path, applies=("traced", "structural"), proposes=()), depth_gain=0.4)
    assert decision.apply["kernels.log_sig_depth"] == 4 and not decision.propose


def test_propose_only_applies_nothing(tmp_path):
    record(tmp_path / "ticks")
    decision, _ = run(request_for(tmp_path, applies=(), proposes=("traced", "structural")))
    assert not decision.apply and decision.propose[KEY] == pytest.approx(BEST, abs=0.1)


def test_no_structure_is_searched_where_nothing_may_come_of_it(tmp_path):
    record(tmp_path / "ticks")
    seen = []
    decision, _ = run(request_for(tmp_path, proposes=()), seen, depth_gain=0.4)
    assert seen[0].asked and {each.get("log_sig_depth", 3) for each in seen[0].asked} == {3}
    assert decision.apply and not decision.propose


def test_too_few_ticks(tmp_path):
    request = request_for(tmp_path)
    with pytest.raises(CampaignFailedError, match="no ticks are recorded"):
        run(request)

    def refuse(history, settings, plan):
        raise HistoryError("a: 5 ticks are too few")

    record(tmp_path / "ticks", count=5)
    with pytest.raises(CampaignFailedError, match="too few"):
        run_campaign(request, progress_fn=lambda progress: None, evaluator_fn=refuse)


class Interrupted(BaseException):
    """The process ends here."""


def test_an_interrupted_campaign_goes_on_with_the_same_ticks(tmp_path):
    record(tmp_path / "ticks")
    request = request_for(tmp_path)
    calls = []

    def progress(each):
        calls.append(each)
        if len(calls) == 2:
            raise Interrupted

    first, second = [], []
    with pytest.raises(Interrupted):
        run_campaign(request, progress_fn=progress, evaluator_fn=functools.partial(Evaluator, seen=first))
    record(tmp_path / "ticks", count=3_000, symbols=("c",))  # what is recorded meanwhile
    decision, _ = run(request, second)
    assert second[0].history.names == first[0].history.names == ("a", "b")
    num_judged = len(decision.evidence["verdicts"])
    assert len(first[0].asked) + len(second[0].asked) == 40 + num_judged, "finished trials were evaluated again"
    whole = request_for(tmp_path / "other")
    record(tmp_path / "other" / "ticks")
    assert run(whole)[0].apply == decision.apply


@pytest.mark.parametrize(
    ("mode", "structural", "applies", "proposes"),
    [
        ("autonomous", "autonomous", {"traced", "structural"}, set()),
        ("autonomous", "propose", {"traced"}, {"structural"}),
        ("autonomous", "off", {"traced"}, set()),
        ("propose", "autonomous", set(), {"traced", "structural"}),
        ("propose", "off", set(), {"traced"}),
    ],
)
def test_modes(mode, structural, applies, proposes):
    found = classes_of(mode, structural)
    assert (set(found[0]), set(found[1])) == (applies, proposes)


def test_the_default_is_autonomous_for_traced_and_propose_for_structural_parameters():
    tuning = Settings().tuning
    assert classes_of(tuning.mode, tuning.structural_mode) == (("traced",), ("structural",))


@pytest.mark.parametrize("value", [0.7500000000000004, 0.123456789, -3.98765432e-7, 98765.4321])
@pytest.mark.parametrize("toward", [0.0, 1e6])
def test_short_values_are_never_further_away(value, toward):
    short = _short(value, toward)
    assert abs(short - toward) <= abs(value - toward)
    assert short == pytest.approx(value, rel=2e-5)


# The process


def test_the_budget_is_kept_on_average_and_not_saved_up():
    budget, now, used, ran = CpuBudget(0.25, saved_s=2.0), 0.0, 0.0, True
    for _ in range(10_000):
        now += 0.1
        used += 0.1 if ran else 0.0
        ran = budget.may_run(now, used, is_held=False)
    assert used == pytest.approx(0.25 * now, rel=0.01)
    for _ in range(1000):  # nothing to do for a long time
        now += 0.1
        budget.may_run(now, used, is_held=False)
    began = used
    for _ in range(100):
        now += 0.1
        used += 0.1 if ran else 0.0
        ran = budget.may_run(now, used, is_held=False)
    assert used - began <= 0.25 * (10.0 + 2.0) + 0.2


def test_while_it_is_held_nothing_is_earned():
    budget = CpuBudget(0.5)
    assert budget.may_run(0.0, 0.0, is_held=False)
    assert not budget.may_run(1.0, 5.0, is_held=True)
    assert not budget.may_run(100.0, 5.0, is_held=True)
    assert not budget.may_run(100.1, 5.0, is_held=False)
    assert budget.may_run(120.0, 5.0, is_held=False)


def process(*, how="work", seconds=0.0, share=4.0, lag_fn=lambda: 0.0):
    command = (sys.executable, str(SCRIPT), how, str(seconds))
    return CampaignProcess(cpu_share=share, max_lag_s=5.0, lag_fn=lag_fn, command=command)


async def test_the_process_says_the_same_as_the_function(tmp_path):
    record(tmp_path / "ticks")
    progress = []
    decision = await process().run(request_for(tmp_path), progress.append)
    record(tmp_path / "other" / "ticks")
    assert decision.apply == run(request_for(tmp_path / "other"))[0].apply
    assert [each.num_trials for each in progress][-1] == 40


@pytest.mark.parametrize(("how", "match"), [("crash", "out of memory, say"), ("babble", "something else")])
async def test_a_process_that_breaks_is_a_failed_campaign(tmp_path, how, match):
    with pytest.raises(CampaignFailedError, match=match):
        await process(how=how).run(request_for(tmp_path), lambda progress: None)


async def test_no_ticks_come_back_as_words(tmp_path):
    with pytest.raises(CampaignFailedError, match="no ticks are recorded"):
        await process().run(request_for(tmp_path), lambda progress: None)


def children():
    task = pathlib.Path(f"/proc/{os.getpid()}/task")
    return {int(pid) for each in task.iterdir() for pid in (each / "children").read_text().split()}


def state_of(pid):
    try:
        text = pathlib.Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return "gone"
    return text[text.rindex(")") + 2]


async def until(condition, timeout_s=60.0):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)


async def started(tmp_path, **options):
    record(tmp_path / "ticks")
    before, progress = children(), []
    running = asyncio.create_task(process(**options).run(request_for(tmp_path), progress.append))
    await until(lambda: children() - before)
    (pid,) = children() - before
    return running, pid, progress


async def test_it_stands_still_while_lag_is_high_at_low_priority_and_ends_with_the_call(tmp_path):
    lag = [0.0]
    running, pid, progress = await started(tmp_path, seconds=0.3, lag_fn=lambda: lag[0])
    await until(lambda: progress)
    assert os.getpriority(os.PRIO_PROCESS, pid) == 19
    assert os.getsid(pid) != os.getsid(0)  # Ctrl-C in the daemon's terminal does not reach it
    lag[0] = 60.0
    await until(lambda: state_of(pid) == "T")
    count, used = len(progress), cpu_seconds(pid)
    await asyncio.sleep(0.5)
    assert state_of(pid) == "T" and cpu_seconds(pid) == used and len(progress) <= count + 1
    lag[0] = 0.0
    await until(lambda: state_of(pid) != "T")
    lag[0] = 60.0
    await until(lambda: state_of(pid) == "T")
    running.cancel()  # also while it is suspended
    await asyncio.gather(running, return_exceptions=True)
    assert state_of(pid) in ("gone", "Z")


async def test_it_takes_no_more_than_its_share(tmp_path):
    running, pid, _ = await started(tmp_path, seconds=30.0, share=0.2)
    await until(lambda: state_of(pid) == "T")
    began, used = time.monotonic(), cpu_seconds(pid)
    await asyncio.sleep(4.0)
    assert cpu_seconds(pid) - used <= 0.2 * (time.monotonic() - began) + 0.5
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


def test_it_dies_with_the_daemon_even_suspended(tmp_path):
    record(tmp_path / "ticks")
    program = f"""
import asyncio, sys
sys.path[:0] = [{str(SCRIPT.parent)!r}, {str(SCRIPT.parent.parent)!r}]
import msgspec, test_campaign as t
from pathlib import Path
async def main():
    running, pid, progress = await t.started(Path({str(tmp_path / "inner")!r}), seconds=30.0, share=0.01)
    await t.until(lambda: t.state_of(pid) == "T")
    print(pid, flush=True)
    await running
asyncio.run(main())
"""
    daemon = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    try:
        pid = int(daemon.stdout.readline())
        assert state_of(pid) == "T"
    finally:
        daemon.send_signal(signal.SIGKILL)
        daemon.wait()
        daemon.stdout.close()
    deadline = time.monotonic() + 10.0
    while state_of(pid) not in ("gone", "Z"):
        assert time.monotonic() < deadline
        time.sleep(0.02)
