"""Commands as a user runs them: what they print, what they leave behind, and the exit code."""

import dataclasses
import gzip
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import orjson
import pytest

import fake_predictor
from usp_daemon import app, cli
from usp_daemon.service.report import score_predictions

FAKE = str(Path(__file__).resolve().parent / "replay_with_fake.py")


def command(*arguments, behaviour=None):
    return [sys.executable, FAKE, json.dumps(behaviour or {}), *map(str, arguments)]


@dataclasses.dataclass
class Done:
    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def run(monkeypatch, capsys):
    """Run a command in this process, with the fake predictor in place of the worker."""
    original = app.replay

    def run_command(*arguments, cwd, behaviour=None):
        async def replay(options, out, err):
            factory = fake_predictor.factory(**(behaviour or {}))
            return await original(options, out, err, predictor_factory=factory)

        monkeypatch.setattr(app, "replay", replay)
        monkeypatch.chdir(cwd)
        capsys.readouterr()
        code = cli.run_command([str(argument) for argument in arguments])
        return Done(code, *capsys.readouterr())

    return run_command


def records(directory, name="predictions"):
    return [orjson.loads(line) for line in (directory / f"{name}.jsonl").read_bytes().splitlines()]


def write(path, content):
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_the_exit_codes_are_the_same_everywhere(repository_root, capsys):
    repeated = {name.removeprefix("EXIT_"): code for name, code in vars(cli).items() if name.startswith("EXIT_")}
    assert len(repeated) >= 6
    assert repeated == {name: app.ExitCode[name].value for name in repeated}
    with pytest.raises(SystemExit) as caught:
        cli.run_command(["--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    documentation = (repository_root / "docs" / "quickstart.md").read_text()
    for code in app.ExitCode:
        line = f"  {code.value:<4} {code.meaning}"
        assert line in text
        assert f"| {code.value} | {code.meaning} |" in documentation


@pytest.mark.parametrize(
    "arguments",
    [[], ["fly"], ["replay"], ["replay", "a", "--speed", "0"], ["replay", "a", "--speed", "nan"],
     ["replay", "a", "--speed", "fast"], ["replay", "a", "--max-symbols", "0"], ["replay", "a", "--time-unit", "h"],
     ["replay", "a", "--time-field", " "]],
)  # fmt: skip
def test_wrong_usage_exits_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.run_command(arguments)
    assert caught.value.code == 2
    assert "usage:" in capsys.readouterr().err


def test_version_names_the_numerical_libraries(capsys):
    assert cli.run_command(["version"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("usp-daemon 0.")
    assert "\njax " in text


def test_help_version_and_check_config_do_not_load_jax(tmp_path):
    code = "import sys; from usp_daemon import cli; cli.run_command([{!r}]); assert 'jax' not in sys.modules"
    for name in ("version", "check-config"):
        subprocess.run(
            [sys.executable, "-c", code.format(name)], check=True, capture_output=True, cwd=tmp_path, timeout=60
        )


def test_check_config_lists_every_problem(tmp_path, capsys):
    assert cli.run_command(["check-config", str(write(tmp_path / "a.toml", ""))]) == 0
    assert ": ok" in capsys.readouterr().out
    bad = write(tmp_path / "b.toml", "[orchestration]\nsinkhorn_alpha = 'x'\n[wire]\ntime_unit = 'h'\nnope = 1\n")
    assert cli.run_command(["check-config", str(bad)]) == 2
    text = capsys.readouterr().err
    for path in ("orchestration.sinkhorn_alpha", "wire.time_unit", "wire.nope"):
        assert path in text
    assert cli.run_command(["check-config", str(tmp_path / "gone.toml")]) == 2


def test_a_replay_answers_every_line(tmp_path, run):
    lines = ["ts,value,symbol"] + [f"{i},{i % 7},s{i % 5}" for i in range(1000)]
    lines[4], lines[9] = "x,1,s1", "9,,s2"
    path = write(tmp_path / "a.csv", "\n".join(lines))
    done = run("replay", path, "--out", tmp_path / "out", "--report", cwd=tmp_path, behaviour={"alarm_every": 50})
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    predictions, dead = records(tmp_path / "out"), records(tmp_path / "out", "dead_letters")
    assert len(predictions) == 999
    assert [(d["reason"], d["offset"], d["source"]) for d in dead] == [("timestamp_invalid", 5, str(path))]
    assert predictions[7]["value"] is None
    assert len(records(tmp_path / "out", "alarms")) == 19  # every 50th tick of five symbols, one of them short
    assert "1,000 records of 5 symbols" in done.stdout
    assert "1 dead letters: timestamp_invalid" in done.stdout
    assert not list((tmp_path / "out").glob("*.partial"))
    report = (tmp_path / "out" / "report.html").read_text()
    assert "@@" not in report
    assert "http://" not in report.replace("http://www.w3.org", "")
    assert "src=" not in report


def test_replaying_twice_gives_the_same_bytes(tmp_path, run):
    path = write(tmp_path / "a.jsonl", "".join(f'{{"symbol":"s{i % 3}","ts":{i},"value":{i}}}\n' for i in range(5000)))
    for name in ("one", "two"):
        assert run("replay", path, "--out", tmp_path / name, cwd=tmp_path).returncode == 0
    assert (tmp_path / "one/predictions.jsonl").read_bytes() == (tmp_path / "two/predictions.jsonl").read_bytes()


def test_unusable_files_are_all_named_before_anything_is_started(tmp_path, run):
    (tmp_path / "out").mkdir()
    old = write(tmp_path / "out/predictions.jsonl", "old\n")
    good = write(tmp_path / "good.csv", "ts,value\n1,2\n")
    empty, headless = write(tmp_path / "empty.csv", ""), write(tmp_path / "headless.csv", "1,2\n3,4\n")
    done = run("replay", good, tmp_path / "gone.csv", empty, headless, cwd=tmp_path)
    assert done.returncode == 3
    for words in ("gone.csv: no such file", "empty.csv: is empty", "headless.csv: has no header"):
        assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert old.read_text() == "old\n"


def test_a_file_that_breaks_off_is_answered_as_far_as_it_goes(tmp_path, run):
    content = gzip.compress(b"ts,value\n" + b"".join(b"%d,%d\n" % (i, i * 7919 % 1000) for i in range(20_000)))
    path = write(tmp_path / "a.csv.gz", content[: len(content) // 2])
    done = run("replay", path, cwd=tmp_path)
    assert done.returncode == 3
    assert "breaks off after line" in done.stderr
    assert len(records(tmp_path / "out")) > 1000


def test_a_bad_configuration_exits_with_2(tmp_path, run):
    path = write(tmp_path / "a.csv", "ts,value\n1,2\n")
    bad = write(tmp_path / "b.toml", "[wire]\nnope = 1\n")
    done = run("replay", path, "--config", bad, cwd=tmp_path)
    assert done.returncode == 2
    assert "wire.nope" in done.stderr


def test_a_failing_device_exits_with_1_and_keeps_what_was_done(tmp_path, run):
    path = write(tmp_path / "a.csv", "ts,value\n" + "".join(f"{i},{i}\n" for i in range(30_000)))
    done = run("replay", path, cwd=tmp_path, behaviour={"fail_after": 3, "delay_s": 0.1})
    assert done.returncode == 1
    assert "the device is gone" in done.stderr
    assert 0 < len(records(tmp_path / "out")) < 30_000


def test_an_output_directory_that_cannot_be_made_exits_with_1(tmp_path, run):
    path = write(tmp_path / "a.csv", "ts,value\n1,2\n")
    done = run("replay", path, "--out", path / "out", cwd=tmp_path)
    assert done.returncode == 1
    assert "cannot write to" in done.stderr


def test_a_wrong_unit_is_suspected_aloud(tmp_path, run):
    path = write(tmp_path / "a.csv", "ts,value\n1404172800,2\n1404172801,3\n")
    done = run("replay", path, cwd=tmp_path)
    assert done.returncode == 0
    assert "look like s, not ns" in done.stderr.replace("\n", " ")
    assert run("replay", path, "--time-unit", "s", cwd=tmp_path).stderr == ""
    assert records(tmp_path / "out")[0]["ts"] == 1_404_172_800 * 10**9


def test_mixed_units_are_warned_about_and_dead_letters(tmp_path, run):
    stamps = [1_404_172_800_000 + i for i in range(50)]
    stamps[25] //= 1000
    path = write(tmp_path / "a.csv", "ts,value\n" + "".join(f"{s},1\n" for s in stamps))
    done = run("replay", path, "--time-unit", "ms", cwd=tmp_path)
    assert done.returncode == 0
    assert "time_unit_mismatch" in done.stderr
    (dead,) = records(tmp_path / "out", "dead_letters")
    assert (dead["reason"], dead["offset"]) == ("time_unit_mismatch", 27)


def test_symbols_beyond_the_limit_are_dead_letters(tmp_path, run):
    path = write(tmp_path / "a.csv", "ts,value,symbol\n" + "".join(f"{i},1,s{i}\n" for i in range(20_000)))
    done = run("replay", path, "--max-symbols", 50, cwd=tmp_path)
    assert done.returncode == 0
    assert len(records(tmp_path / "out")) == 50
    dead = records(tmp_path / "out", "dead_letters")
    assert len(dead) == 19_950
    assert {d["reason"] for d in dead} == {"symbol_capacity"}


@pytest.mark.parametrize(("number", "paced"), [(signal.SIGINT, False), (signal.SIGTERM, True)])
def test_an_interrupted_replay_ends_cleanly_with_what_was_done(tmp_path, number, paced):
    path = write(tmp_path / "a.csv", "ts,value\n" + "".join(f"{i * 10**7},{i}\n" for i in range(300_000)))
    arguments = command("replay", path, *(["--speed", "1"] if paced else []), behaviour={"delay_s": 0.05})
    process = subprocess.Popen(arguments, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    partial = tmp_path / "out" / "predictions.jsonl.partial"
    deadline = time.monotonic() + 60
    while not (partial.exists() and partial.stat().st_size) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(process.pid, number)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130, err
    done = records(tmp_path / "out")
    assert 0 < len(done) < 300_000
    assert [r["value"] for r in done] == list(range(len(done)))
    assert f"{len(done):,} records" in out
    assert "interrupted" in err
    assert not partial.exists()


def test_the_scores_are_what_they_are_said_to_be(tmp_path, run):
    path = write(tmp_path / "a.csv", "ts,value\n" + "".join(f"{i},{(i % 4) * 0.75}\n" for i in range(1000)))
    assert run("replay", path, cwd=tmp_path).returncode == 0
    (score,) = score_predictions(tmp_path / "out/predictions.jsonl", tmp_path / "out/alarms.jsonl")
    # The fake forecasts the last value with bands of 1 and 2; the series climbs by 0.75 three times and falls by 2.25.
    assert (score.num_ticks, score.num_scored) == (1000, 800)
    assert score.mae == pytest.approx((3 * 0.75 + 2.25) / 4)
    assert score.relative_mae == pytest.approx(1.0)
    assert score.coverage_80 == pytest.approx(0.75)
    assert score.coverage_95 == pytest.approx(0.75)
