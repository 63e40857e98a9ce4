"""The unit: right by systemd's own check, and in step with exit codes, times and paths of the daemon."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from usp_daemon.app import ExitCode
from usp_daemon.config import SPECS

UNIT = Path(__file__).resolve().parents[2] / "deploy" / "systemd" / "usp-daemon.service"
TEXT = UNIT.read_text("utf-8")
LAST_RESORT_S = 5.0


def values(key: str) -> list[str]:
    return re.findall(rf"^{key}=(.*)$", TEXT, re.MULTILINE)


def needs(tool: str) -> str:
    found = shutil.which(tool)
    if found is None:
        pytest.skip(f"no {tool} here")
    return found


def test_systemd_finds_nothing_wrong(tmp_path: Path) -> None:
    program = tmp_path / "usp-daemon"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    copy = tmp_path / "usp-daemon.service"
    copy.write_text(TEXT.replace("/opt/usp-daemon/bin/usp-daemon", str(program)))
    done = subprocess.run([needs("systemd-analyze"), "verify", copy], capture_output=True, text=True, timeout=60)
    said = [line for line in (done.stdout + done.stderr).splitlines() if "usp-daemon" in line]
    assert said == []
    assert done.returncode == 0


def test_exposure_stays_low() -> None:
    line = [needs("systemd-analyze"), "security", "--offline=yes", "--threshold=20", str(UNIT)]
    done = subprocess.run(line, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout[-1500:] + done.stderr


def test_it_is_started_again_after_every_code_but_that_of_wrong_settings() -> None:
    assert values("Restart") == ["on-failure"]
    assert values("RestartPreventExitStatus") == [str(int(ExitCode.USAGE))]
    assert values("SuccessExitStatus") == []
    for code in (ExitCode.FAILURE, ExitCode.BROKER, ExitCode.UNFINISHED):
        assert f" {int(code)}: " in TEXT, "the comment names every code that leads to a restart"


def test_signals_and_times_are_the_daemons() -> None:
    assert values("ExecReload") == ["/bin/kill -HUP $MAINPID"]
    assert values("KillSignal") == ["SIGTERM"]
    assert values("KillMode") == ["mixed"]
    assert float(values("TimeoutStopSec")[0]) >= SPECS["service.shutdown_timeout_s"].default + LAST_RESORT_S + 5.0


def test_paths_fit_together() -> None:
    environment = dict(line.split("=", 1) for line in values("Environment"))
    assert values("WorkingDirectory") == [f"/var/lib/{values('StateDirectory')[0]}"]
    assert environment["USP_CACHE_DIR"] == f"/var/cache/{values('CacheDirectory')[0]}"
    assert environment["USP_CONFIG"] == f"/etc/{values('ConfigurationDirectory')[0]}/config.toml"
    assert values("ExecStart")[0].endswith(f"run --config {environment['USP_CONFIG']}")


def test_what_the_daemon_needs_is_not_taken_away() -> None:
    # compiled code is written and run; /proc/cpuinfo and the boot's id are read; the tuner lowers its priority
    assert values("MemoryDenyWriteExecute") == ["no"]
    assert values("ProcSubset") == []
    assert "~@resources" not in TEXT
    assert values("NoNewPrivileges") == ["yes"]
    assert values("ProtectSystem") == ["strict"]
