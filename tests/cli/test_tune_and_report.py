"""``usp-daemon tune`` and ``report``, over an evaluator that costs nothing."""

import json
import os
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tuning_landscapes import FoldedBowl
from usp_daemon import cli, tune_commands
from usp_daemon.config import Settings, parse_settings

CSV = "symbol,ts,value\n" + "".join(f"{'ab'[n % 2]},{1_700_000_000 + n},{n * 0.5}\n" for n in range(40)) + "a,x,1\n"


@pytest.fixture
def ticks(tmp_path: Path) -> Path:
    path = tmp_path / "ticks.csv"
    path.write_text(CSV)
    return path


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Run a command; what the evaluator was built from is in ``run.built``."""
    tune = tune_commands.tune
    built: list[Any] = []

    def factory(arrays: Any, settings: Settings, config: Any) -> Any:
        built.append((arrays, settings, config))
        return FoldedBowl()

    monkeypatch.setattr(
        tune_commands, "tune", lambda options, out, err: tune(options, out, err, evaluator_factory=factory)
    )
    monkeypatch.chdir(tmp_path)

    def run_command(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = cli.run_command([str(argument) for argument in arguments])
        return (code, *capsys.readouterr())

    run_command.built = built  # type: ignore[attr-defined]
    return run_command


def test_campaign_from_files_to_report(run: Any, ticks: Path, tmp_path: Path) -> None:
    code, out, err = run("tune", ticks, "--tier", "fast", "--time-unit", "s", "--out", tmp_path / "c", "--trials", 24)
    assert code == 0
    assert "Total Trials: 24" in out
    assert "1 lines are no ticks" in err and "24/24 trials, best" in err
    arrays, _, config = run.built[0]
    assert set(arrays) == {"a", "b"}
    times, values = arrays["a"]
    assert times.dtype == np.int64 and times[:2].tolist() == [1_700_000_000 * 10**9, 1_700_000_002 * 10**9]
    assert values.tolist() == [n * 0.5 for n in range(0, 40, 2)]
    assert config.checkpoint_path == str(tmp_path / "c")

    code, out, _ = run("report", tmp_path / "c" / "usp-fast.journal", "--html", tmp_path / "page.html")
    assert code == 0 and "Total Trials: 24" in out and "Convergence:" in out
    assert "<svg" in (tmp_path / "page.html").read_text("utf-8")
    code, out, _ = run("report", tmp_path / "c" / "usp-fast.journal", "--json")
    content = json.loads(out)
    assert code == 0 and len(content["trials"]) == 24 and content["summary"]["tier"] == "fast"


def test_same_command_continues(run: Any, ticks: Path, tmp_path: Path) -> None:
    command = ("tune", ticks, "--tier", "fast", "--time-unit", "s", "--out", tmp_path / "c")
    assert run(*command, "--trials", 10)[0] == 0
    code, _, err = run(*command, "--trials", 20, "--resume")
    assert code == 0 and "continuing usp-fast after 10 trials" in err
    whole = run("tune", ticks, "--tier", "fast", "--time-unit", "s", "--out", tmp_path / "d", "--trials", 20)[1]
    assert run("report", tmp_path / "c" / "usp-fast.journal")[1].splitlines()[:22] == whole.splitlines()[:22]


def test_fresh_puts_the_old_one_away(run: Any, ticks: Path, tmp_path: Path) -> None:
    command = ("tune", ticks, "--tier", "fast", "--time-unit", "s", "--out", tmp_path / "c", "--trials", 4)
    run(*command)
    code, _, err = run(*command, "--seed", 9)
    assert code == 2 and "begun with other settings or data: seed (42 then, 9 now)" in err
    code, out, err = run(*command, "--seed", 9, "--fresh")
    assert code == 0 and "Total Trials: 4" in out and ".journal.old" in err
    assert len(list((tmp_path / "c").glob("*.journal.old"))) == 1


def test_resume_insists_on_a_campaign(run: Any, ticks: Path, tmp_path: Path) -> None:
    code, _, err = run("tune", ticks, "--tier", "fast", "--time-unit", "s", "--out", tmp_path / "c", "--resume")
    assert code == 1 and "no campaign 'usp-fast'" in err
    with pytest.raises(SystemExit):
        run("tune", ticks, "--resume", "--fresh")


def test_proposal_is_a_configuration(run: Any, ticks: Path, tmp_path: Path) -> None:
    command = ("tune", ticks, "--tier", "fast", "--time-unit", "s", "--out", tmp_path / "c", "--trials", 16)
    code, out, _ = run(*command, "--propose")
    assert code == 0
    changed = parse_settings(tomllib.loads(out))
    assert changed.content_hash() != Settings().content_hash()
    assert run("report", tmp_path / "c" / "usp-fast.journal", "--propose")[1] == out


def test_deep_campaign(run: Any, ticks: Path, tmp_path: Path) -> None:
    code, out, _ = run("tune", ticks, "--time-unit", "s", "--out", tmp_path / "c", "--deep", "--trials", 3)
    assert code == 0 and "Tier: deep_tuning" in out and "dgm_depth" in out
    assert (tmp_path / "c" / "usp-deep.journal").exists()


def test_settings_of_the_file_hold(run: Any, ticks: Path, tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text(
        '[meta_optimization]\ncheckpoint_path = "kept"\nn_trials = 12\ndefault_tier = "fast"\nembargo_ticks = 9\n'
        '[wire]\ntime_unit = "s"\n'
    )
    code, out, _ = run("tune", ticks, "--config", config)
    assert code == 0 and "Total Trials: 12" in out
    assert run.built[0][2].embargo_ticks == 9
    code, out, _ = run("report", "--config", config)  # the only one there is
    assert code == 0 and "Total Trials: 12" in out
    assert run("report", "usp-fast", "--config", config)[1] == out
    audit = tmp_path / "mutations.log"
    audit.write_text('{"event": "MUTATION_APPLIED", "delta": {"orchestration.cusum_k": [0.5, 0.6]}}\nnot json\n')
    assert "cusum_k: 0.5 -> 0.6" in run("report", "--config", config, "--audit", audit)[1]


def test_what_cannot_be_read_is_named(run: Any, ticks: Path, tmp_path: Path) -> None:
    code, _, err = run("tune", tmp_path / "none.csv", tmp_path / "nor.csv")
    assert code == 3 and "none.csv: no such file" in err and "nor.csv" in err
    bad = tmp_path / "bad.csv"
    bad.write_text("symbol,ts,value\na,b,c\n")
    assert run("tune", bad)[0] == 3
    (tmp_path / "broken.toml").write_text("[meta_optimization]\nn_trials = 0\n")
    code, _, err = run("tune", ticks, "--config", tmp_path / "broken.toml")
    assert code == 2 and "meta_optimization.n_trials" in err
    for arguments in (("report",), ("report", "nothing"), ("report", ticks)):
        code, _, err = run(*arguments)
        assert code == 1 and err.startswith("error: ")
    assert not (tmp_path / "io").exists(), "a report has written something"


def test_saved_study_is_reported_too(run: Any, tmp_path: Path) -> None:
    from tuning_landscapes import settings_for
    from usp_daemon.tuning import BayesianMetaOptimizer

    optimizer = BayesianMetaOptimizer(FoldedBowl(), settings_for(tmp_path / "c"), Settings())
    optimizer.optimize(3)
    optimizer.save_study(tmp_path / "study.json")
    assert "Total Trials: 3" in run("report", tmp_path / "study.json")[1]
    (tmp_path / "study.json.sha256").write_text("0")
    code, _, err = run("report", tmp_path / "study.json")
    assert code == 1 and "SHA-256 mismatch" in err


SLOW = """
import sys, time
from tuning_landscapes import FoldedBowl
from usp_daemon import cli, tune_commands
class Slow(FoldedBowl):
    def evaluate_batch(self, candidates, *, prune_fn=None):
        print("evaluating", flush=True)
        time.sleep(float(sys.argv[1]))
        return super().evaluate_batch(candidates, prune_fn=prune_fn)
tune = tune_commands.tune
tune_commands.tune = lambda options, out, err: tune(options, out, err, evaluator_factory=lambda *_: Slow())
sys.exit(cli.run_command(sys.argv[2:]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("times", [1, 2])
def test_signal_ends_it_after_the_batch_and_a_second_at_once(
    run: Any, ticks: Path, tmp_path: Path, number: signal.Signals, times: int
) -> None:
    """The batch takes a second to finish after the first signal, or a minute that the second does not wait for."""
    directory = tmp_path / "c"
    command = ["tune", str(ticks), "--tier", "fast", "--time-unit", "s", "--out", str(directory), "--trials", "40"]
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW, "0.3" if times == 1 else "60", *command],
        cwd=Path(__file__).resolve().parent.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    assert process.stdout is not None and process.stderr is not None
    assert process.stdout.readline() == "evaluating\n"
    process.send_signal(number)
    while "finishing the batch" not in process.stderr.readline():
        pass
    begun = time.monotonic()
    if times == 2:
        process.send_signal(number)
    _, errors = process.communicate(timeout=50)
    assert process.returncode == 130, errors
    assert time.monotonic() - begun < 45.0
    assert "the same command continues the campaign" in errors
    code, out, _ = run(*command[:-1], 24)
    assert code == 0 and "Total Trials: 24 (" in out and "running" not in out
