"""The help teaches, mistakes are answered with what was meant, shells complete, scripts get JSON, files no colours."""

import contextlib
import json
import os
import pty
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from usp_daemon import app, cli
from usp_daemon.arguments import COMMANDS, EXIT_CODES, SHELLS, build_parser, commands_page
from usp_daemon.hints import hint_for

CODES = {int(code) for code in app.ExitCode}


def fails(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.run_command(arguments)
    assert caught.value.code == 2
    return capsys.readouterr().err


def subparsers(parser):
    return next((dict(a.choices) for a in parser._actions if a.dest in ("command", "action")), {})


def test_every_command_has_texts_and_no_other():
    assert list(subparsers(build_parser())) == list(COMMANDS)


def test_the_meanings_of_exit_codes_are_those_of_the_service():
    assert {int(code): code.meaning for code in app.ExitCode} == EXIT_CODES


@pytest.mark.parametrize("name", COMMANDS)
def test_help_says_purpose_examples_and_exit_codes(name, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.run_command([name, "--help"])
    assert caught.value.code == 0
    text, command = capsys.readouterr().out, COMMANDS[name]
    assert command.summary in text
    assert 1 <= len(command.examples) <= 3
    assert set(command.codes) <= CODES
    assert 0 in command.codes
    for line, purpose in command.examples:
        assert f"  {line}\n      {purpose}" in text
    for code, meaning in command.codes.items():
        assert f"  {code:<4} {meaning}\n" in text
    for action in subparsers(build_parser())[name]._actions:
        assert action.help or action.dest == "action", action


@pytest.mark.parametrize(
    "words", [line.split() for command in COMMANDS.values() for line, _ in command.examples], ids=" ".join
)
def test_examples_are_right_usage(words):
    words = words[next(i for i, word in enumerate(words) if word == "usp-daemon") + 1 :]
    end = next((i for i, word in enumerate(words) if word in (">", "|")), len(words))
    parsed = build_parser().parse_args(words[:end])
    assert parsed.command == words[0]


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["repaly", "a.csv"], "did you mean `usp-daemon replay`?"),
        (["versoin"], "did you mean `usp-daemon version`?"),
        (["qqqqq"], "`usp-daemon --help` lists all"),
        (["snapshot", "lst"], "did you mean `usp-daemon snapshot list`?"),
        (["replay", "a.csv", "--tme-unit", "s"], "did you mean --time-unit?"),
        (["replay", "a.csv", "--tme-unit=s"], "did you mean --time-unit?"),
        (["snapshot", "list", "--pth", "x"], "did you mean --path?"),
        (["tail", "--topic", "prediction"], "did you mean predictions?"),
        (["completion", "bsh"], "did you mean bash?"),
    ],
)
def test_a_mistake_is_answered_with_what_was_meant(arguments, hint, capsys):
    assert hint in fails(arguments, capsys)


def test_what_is_like_nothing_gets_no_suggestion(capsys):
    assert "did you mean" not in fails(["replay", "a.csv", "--xxxxxxxx"], capsys)


@pytest.mark.parametrize("shell", SHELLS)
def test_completion_names_every_command_and_option(shell, capsys):
    assert cli.run_command(["completion", shell]) == 0
    script = capsys.readouterr().out
    for name, subparser in subparsers(build_parser()).items():
        assert name in script
        for action in subparser._actions:
            for option in action.option_strings:
                assert option.lstrip("-") in script, option
    if shutil.which(shell):
        subprocess.run([shell, "-n"], input=script, text=True, check=True, timeout=20)


def completed(script, words):
    """What bash offers for the last of ``words``."""
    program = (
        f"{script}\nCOMP_WORDS=({' '.join(words)} ''); COMP_CWORD={len(words)}; COMPREPLY=()\n"
        '$(complete -p usp-daemon | sed "s/.*-F \\([^ ]*\\) .*/\\1/") && printf "%s\\n" "${COMPREPLY[@]}"\n'
    )
    done = subprocess.run(["bash", "-c", program], capture_output=True, text=True, timeout=20)
    return done.stdout.split()


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash here")
def test_bash_completes_commands_actions_and_choices(capsys):
    cli.run_command(["completion", "bash"])
    script = capsys.readouterr().out
    assert set(COMMANDS) <= set(completed(script, ["usp-daemon"]))
    assert {"list", "inspect", "verify"} <= set(completed(script, ["usp-daemon", "snapshot"]))
    assert {"earliest", "latest"} <= set(completed(script, ["usp-daemon", "tail", "--from"]))


def test_versions_as_json(capsys):
    assert cli.run_command(["version", "--json"]) == 0
    versions = json.loads(capsys.readouterr().out)
    assert re.match(r"\d+\.\d+", versions["jax"])
    cli.run_command(["version"])
    assert capsys.readouterr().out.splitlines() == [f"{name} {value}" for name, value in versions.items()]


def test_the_status_page_names_the_versions_that_the_command_prints(capsys, monkeypatch):
    from usp_daemon import versions as module
    from usp_daemon.config import load_settings
    from usp_daemon.daemon_status import StatusFacts
    from usp_daemon.telemetry import Health

    monkeypatch.setattr(module, "_PACKAGES", ("numpy", "not-installed"))
    cli.run_command(["version", "--json"])
    printed = json.loads(capsys.readouterr().out)
    assert printed.pop("usp-daemon") and printed.pop("not-installed") is None
    facts = StatusFacts(load_settings(None, environ={}), Health(stall_timeout_s=1.0), instance="i")
    assert facts.service.versions == printed
    cli.run_command(["version"])
    assert "not-installed is missing" in capsys.readouterr().out


def test_check_config_as_json(tmp_path, capsys):
    good, bad = tmp_path / "good.toml", tmp_path / "bad.toml"
    good.write_text("[orchestration]\ncusum_k = 0.7\n")
    bad.write_text("[orchestration]\ncusum_kk = 0.7\n")
    assert cli.run_command(["check-config", "--json", "--config", str(good)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["ok"], found["problems"]) == (True, [])
    assert found["changed"]["orchestration.cusum_k"] == {"value": 0.7, "default": 0.5, "class": "traced"}
    assert cli.run_command(["check-config", "--json", str(bad)]) == 2
    found = json.loads(capsys.readouterr().out)
    assert (found["ok"], found["hash"]) == (False, None)
    assert found["problems"] == [
        {
            "path": "orchestration.cusum_kk",
            "expected": "a known key",
            "got": "an unknown one",
            "hint": "did you mean cusum_k?",
        }
    ]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["tail", "--count", "1"], "make kafka"),
        (["report"], "usp-daemon tune FILE"),
        (["snapshot", "list"], "usp-daemon run"),
        (["reload"], "is `usp-daemon run` running here"),
        (["rollback"], "usp-daemon audit show"),
        (["report", "--config", "gone.toml"], "no such file or directory (name it with --config or USP_CONFIG)"),
    ],
)
def test_an_error_says_what_to_do_next(arguments, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("USP_KAFKA__BOOTSTRAP_SERVERS", "127.0.0.1:1")
    assert cli.run_command(arguments) != 0
    assert words in capsys.readouterr().err


def test_an_error_without_advice_gets_none():
    assert hint_for(ValueError("anything")) is None


def on_a_terminal(arguments, cwd, **variables):
    """What a command writes to a terminal, which standard output and error both are."""
    controller, terminal = pty.openpty()
    environ = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR", "CI")}
    command = [sys.executable, "-m", "usp_daemon.cli", *arguments]
    process = subprocess.Popen(
        command, cwd=cwd, stdin=terminal, stdout=terminal, stderr=terminal, env=environ | {"TERM": "xterm"} | variables
    )
    os.close(terminal)
    written = b""
    with contextlib.suppress(OSError):  # how Linux tells that nobody has the other end open any more
        while chunk := os.read(controller, 65536):
            written += chunk
    process.wait(timeout=60)
    os.close(controller)
    return written


def test_colours_are_for_terminals_that_want_them(tmp_path):
    arguments = ["snapshot", "list", "--path", str(tmp_path / "gone")]
    assert b"\x1b[31m" in on_a_terminal(arguments, tmp_path)
    assert b"\x1b[" not in on_a_terminal(arguments, tmp_path, NO_COLOR="1")
    command = [sys.executable, "-m", "usp_daemon.cli", *arguments]
    piped = subprocess.run(command, cwd=tmp_path, capture_output=True, timeout=60)
    assert b"\x1b" not in piped.stderr + piped.stdout
    assert piped.returncode == 3


def test_the_committed_reference_is_the_generated_one(repository_root: Path):
    committed = (repository_root / "docs" / "commands.md").read_text("utf-8")
    assert committed == commands_page(), "run python -m usp_daemon.arguments docs/commands.md"


def test_every_option_is_in_the_reference():
    page = commands_page()
    for name, subparser in subparsers(build_parser()).items():
        section = page.partition(f"\n## usp-daemon {name}\n")[2].partition("\n## ")[0]
        for parser in [subparser, *subparsers(subparser).values()]:
            for action in parser._actions:
                for option in action.option_strings:
                    assert option in ("-h", "--help") or f"`{option}" in section, (name, option)
