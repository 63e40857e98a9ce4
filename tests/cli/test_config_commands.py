"""``usp-daemon audit``, ``rollback`` and ``reload``: what they print, and the exit codes a script can go by."""

import json
import os
import subprocess
import sys
import time

import pytest

from mutation_worlds import World
from usp_daemon import cli
from usp_daemon.config import ReloadOutcome, ReloadReport, ReloadTrigger, RunningDaemon, this_process

K = "orchestration.cusum_k"
DAEMON = """
import signal, sys, time
from pathlib import Path
from usp_daemon.config import ReloadOutcome, ReloadReport, ReloadTrigger, RunningDaemon
state, outcome = Path(sys.argv[1]), sys.argv[2]

def reload(*_):
    if outcome == "silent":
        return
    if outcome == "dies":
        raise SystemExit
    for trigger in (ReloadTrigger.FILE, ReloadTrigger.SIGNAL):  # another reload comes first
        problems = ("http.port: it is locked",) if outcome == "refused" else ()
        changed = {"traced": ("orchestration.cusum_k",)}
        ReloadReport(
            time.time_ns(), trigger, ReloadOutcome(outcome), 7, "ab" * 32, changed, problems, 0.25
        ).write(state)
        time.sleep(0.1)

signal.signal(signal.SIGHUP, reload)
RunningDaemon.write(state, http_port=9108, started_ns=time.time_ns(), config="config.toml")
print("ready", flush=True)
while True:
    signal.pause()
"""


@pytest.fixture
def world(tmp_path):
    return World(tmp_path, "# kept\n[orchestration]\ncusum_k = 0.5\n")


@pytest.fixture
def run(capsys, world):
    def run_command(*arguments):
        capsys.readouterr()
        code = cli.run_command([*map(str, arguments), "--config", str(world.file)])
        return code, *capsys.readouterr()

    return run_command


def test_audit_of_nothing_yet(run):
    code, out, _ = run("audit", "verify")
    assert (code, "0 lines" in out) == (0, True)
    code, out, _ = run("audit", "show")
    assert (code, "no change yet" in out) == (0, True)


def test_audit_show_and_verify(run, world):
    world.mutator().apply({K: 0.6}, trigger="by the test", evidence={"ratio": 0.9})
    world.mutator().rollback(reason="it was worse")
    code, out, err = run("audit", "show")
    assert (code, err) == (0, "")
    for text in (
        "MUTATION_APPLIED",
        "MUTATION_ROLLED_BACK",
        f"{K}: 0.5 -> 0.6",
        "by the test",
        "it was worse",
        "tester",
    ):
        assert text in out
    code, out, _ = run("audit", "show", "--json", "--last", "1")
    (record,) = json.loads(out)
    assert record["event"] == "MUTATION_ROLLED_BACK"
    code, out, _ = run("audit", "verify")
    assert (code, "2 lines, each as it was written" in out) == (0, True)
    world.log.write_bytes(world.log.read_bytes().replace(b"0.6", b"0.7", 1))
    code, out, _ = run("audit", "verify")
    assert (code, "line 1: its content does not fit its hash" in out) == (3, True)


def test_rollback_of_the_last_change_and_to_a_hash(run, world):
    first = world.mutator().apply({K: 0.6}, trigger="test")
    world.mutator().apply({K: 0.7}, trigger="test")
    code, out, err = run("rollback")
    assert (code, err, f"{K}: 0.7 -> 0.6" in out) == (0, "", True)
    code, out, _ = run("rollback", "--to", first.backup[:16])
    assert (code, world.file.read_bytes() == world.first) == (0, True)
    code, out, _ = run("rollback", "--to", first.backup[:16])
    assert (code, "nothing to do" in out) == (0, True)
    code, _, err = run("rollback", "--to", "0123456789")
    assert (code, "no configuration under" in err) == (2, True)
    code, _, err = run("rollback")
    assert (code, "no change that still stands" in err) == (2, True)
    assert world.lines()[-1]["trigger"] == "usp-daemon rollback"


def test_rollback_to_an_epoch_of_a_broken_file(run, world):
    world.mutator().mark_epoch(12)
    world.file.write_bytes(world.first + b"[nonsense")
    code, _, _ = run("rollback", "--to", "12")
    assert (code, world.file.read_bytes() == world.first) == (0, True)


@pytest.fixture
def daemon(world):
    processes = []

    def start(outcome):
        process = subprocess.Popen(
            [sys.executable, "-c", DAEMON, str(world.state), outcome], stdout=subprocess.PIPE, text=True
        )
        processes.append(process)
        assert process.stdout.readline() == "ready\n"
        return process

    yield start
    for process in processes:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.mark.parametrize(("outcome", "expected"), [("applied", 0), ("unchanged", 0), ("refused", 2), ("failed", 1)])
def test_reload_waits_for_the_answer(run, daemon, outcome, expected):
    daemon(outcome)
    code, out, err = run("reload", "--wait", "20")
    assert (code, err) == (expected, "")
    assert out.startswith(f"{outcome}: abababababab, epoch 7, in 0.250 s\n")
    assert "traced: orchestration.cusum_k" in out
    assert ("http.port: it is locked" in out) == (outcome == "refused")


def test_reload_of_a_daemon_that_does_not_answer(run, daemon):
    daemon("silent")
    code, _, err = run("reload", "--wait", "0.2")
    assert (code, "has not said within 0.2 s" in err) == (1, True)


def test_reload_of_a_daemon_that_ends(run, daemon):
    daemon("dies")
    code, _, err = run("reload", "--wait", "20")
    assert (code, "has ended meanwhile" in err) == (3, True)


def test_reload_where_no_daemon_runs(run, daemon, world):
    code, _, err = run("reload")
    assert (code, "io.state_path" in err) == (3, True)
    process = daemon("applied")
    process.kill()
    process.wait()
    code, _, err = run("reload")
    assert (code, f"process {process.pid}" in err) == (3, True)
    # its number was given to another process, which must not be sent anything: this one
    path = world.state / "daemon.json"
    document = json.loads(path.read_text())
    document["process"]["pid"] = os.getpid()
    path.write_text(json.dumps(document))
    assert run("reload")[0] == 3
    document["process"]["host"] = "elsewhere"
    path.write_text(json.dumps(document))
    code, _, err = run("reload")
    assert (code, "on elsewhere: ask it there" in err) == (3, True)


def test_what_the_daemon_leaves_is_read_back_as_it_was_written(tmp_path):
    daemon = RunningDaemon.write(tmp_path / "state", http_port=1, started_ns=2, config="c")
    assert RunningDaemon.read(tmp_path / "state") == daemon
    assert daemon.process == this_process()
    assert daemon.is_alive
    report = ReloadReport(
        time.time_ns(), ReloadTrigger.FILE, ReloadOutcome.REFUSED, None, "ab", {"locked": ("http.port",)}, ("no",), 0.5
    )
    report.write(tmp_path / "state")
    assert ReloadReport.read(tmp_path / "state") == report
    for name in ("daemon.json", "last_reload.json"):
        for content in (b"", b"\xff", b"[]", b"{}", b'{"process": 1}'):
            (tmp_path / "state" / name).write_bytes(content)
            assert RunningDaemon.read(tmp_path / "state") is None or name != "daemon.json"
            assert ReloadReport.read(tmp_path / "state") is None or name != "last_reload.json"
    RunningDaemon.write(tmp_path / "state", http_port=1, started_ns=2, config="c")
    RunningDaemon.remove(tmp_path / "state")
    assert RunningDaemon.read(tmp_path / "state") is None


def test_answers_as_json(run, world, daemon):
    world.mutator().apply({K: 0.6}, trigger="test")
    code, out, _ = run("audit", "verify", "--json")
    assert (code, json.loads(out)) == (
        0,
        {"file": str(world.log), "is_whole": True, "lines": 1, "problems": []},
    )
    code, out, _ = run("rollback", "--json")
    done = json.loads(out)
    assert (code, done["outcome"], done["changed"]) == (0, "rolled_back", {K: {"from": 0.6, "to": 0.5}})
    daemon("refused")
    code, out, _ = run("reload", "--wait", "20", "--json")
    report = json.loads(out)
    assert (code, report["outcome"], report["problems"]) == (2, "refused", ["http.port: it is locked"])
