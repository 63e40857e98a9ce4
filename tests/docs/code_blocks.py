"""Code blocks of the documentation, what their markers say, and a shell to run them in.

The line before a block says what is done with it, as an HTML comment, which no reader sees:

    run                    its commands are run, and what is printed below them is compared
    run: slow              the same; it needs the real predictor
    run: kafka             the same; it needs a broker as well
    run: kafka, terminals  its commands are started side by side (`make kafka` is the test's own broker), forecasts must
                           come out, and each must end with 0 at SIGINT
    run: kafka, background it is started, and ended with SIGINT at the end of the page; it must end with 0
    file: NAME             it is written to NAME, beside which later commands run
    check                  TOML is loaded as a configuration, JSON parsed, Python compiled
    not run: WHY           nothing

A block of the language ``text`` is a drawing and needs none. ``blocks not run: WHY`` on a line of its own stands for
all blocks of its page that have no marker.
"""

import dataclasses
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# Pages with blocks that only their own set-up can run; each has tests of its own for them.
FOLDERS_NOT_RUN = {
    "docs/runbooks/": "an alert must be firing; their queries are parsed by the tests of the rules",
    "docs/deployment.md": "needs a container engine, a cluster or systemd; scripts/verify_container.py runs it",
    "docs/dashboards.md": "needs Prometheus and Grafana",
    "docs/security.md": "needs credentials",
    "docs/status.md": "needs a browser",
    "docs/licences.md": "needs the network",
}
_TOPICS = ("input", "predictions", "alarms", "dead_letters")
_FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
_MARKER = re.compile(r"<!-- (run(?:: [a-z, ]+)?|file: \S+|check|not run: .+?) -->\n\s*$")
_PAGE_MARKER = re.compile(r"^<!-- blocks not run: (.+?) -->$", re.MULTILINE)


@dataclasses.dataclass(frozen=True, slots=True)
class Block:
    """One fenced block: its page, line, language, text, and its marker ("" where it has none)."""

    page: str
    line: int
    language: str
    text: str
    marker: str

    @property
    def why_not(self) -> str:
        """Why it is not run; "" if it is, or is checked."""
        return self.marker.removeprefix("not run: ") if self.marker.startswith("not run: ") else ""

    @property
    def needs(self) -> set[str]:
        """What running it takes: out of slow, kafka, background."""
        return set(filter(None, re.split(r"[:, ]+", self.marker)[1:])) if self.marker.startswith("run") else set()

    @property
    def file(self) -> str:
        """The file it is written to, or ""."""
        return self.marker.removeprefix("file: ") if self.marker.startswith("file: ") else ""

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def pages() -> list[Path]:
    """Every page of the documentation."""
    top = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "benchmarks" / "README.md"]
    return top + sorted((ROOT / "docs").rglob("*.md"))


def blocks_of(path: Path) -> list[Block]:
    """The blocks of a page in order."""
    text, name = path.read_text("utf-8"), path.relative_to(ROOT).as_posix()
    page_marker = _PAGE_MARKER.search(text)
    default = f"not run: {page_marker[1]}" if page_marker else ""
    for prefix, why in FOLDERS_NOT_RUN.items():
        default = default or (f"not run: {why}" if name.startswith(prefix) else "")
    found = []
    for match in _FENCE.finditer(text):
        marker = _MARKER.search(text, 0, match.start())
        line = text.count("\n", 0, match.start()) + 1
        if match[2] != "text":
            found.append(Block(name, line, match[2], match[3], marker[1] if marker else default))
    return found


def commands(block: Block) -> Iterator[tuple[str, str]]:
    """The commands of a console block, each with the output that the page shows ("" for none)."""
    command: list[str] = []
    shown: list[str] = []
    for line in block.text.splitlines():
        if line.startswith("$ "):
            if command:
                yield "\n".join(command), "\n".join(shown)
            command, shown = [line[2:]], []
        elif command and command[-1].endswith("\\"):
            command.append(line)
        else:
            shown.append(line)
    if command:
        yield "\n".join(command), "\n".join(shown)


def pattern_of(shown: str) -> re.Pattern[str]:
    """What the shown output stands for: ``...`` is any text within a line, alone on a line any number of lines."""
    lines = []
    for line in shown.splitlines():
        if line == "...":
            lines.append(r"(?:.*\n)*?")
        else:
            lines.append(r".*?".join(map(re.escape, re.split(r"\.\.\.", line.rstrip()))) + r" *\n")
    return re.compile("".join(lines))


class Shell:
    """Runs blocks in a directory of their own, with ``usp-daemon`` and ``python`` of this checkout."""

    def __init__(self, directory: Path, *, servers: str = "127.0.0.1:1", port: int = 0, group: str = "docs") -> None:
        self._directory = directory
        topics = {f"KAFKA__{name.upper()}_TOPIC": f"{group}-{name}" for name in _TOPICS}
        self._replaced = {
            ".venv/bin/": "",
            "127.0.0.1:9092": servers,
            "127.0.0.1:9108": f"127.0.0.1:{port}",
            '"ticks"': f'"{group}-input"',
        }
        self._background: list[tuple[str, subprocess.Popen[str]]] = []
        programs = directory.parent / "programs"
        programs.mkdir()
        for name, command in (("usp-daemon", f"{sys.executable} -m usp_daemon.cli"), ("python", sys.executable)):
            (programs / name).write_text(f'#!/bin/sh\nexec {command} "$@"\n')
            (programs / name).chmod(0o755)
        self._environ = os.environ | {
            "PATH": f"{programs}:{os.environ['PATH']}",
            "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}",
            "NO_COLOR": "1",
            "USP_KAFKA__BOOTSTRAP_SERVERS": servers,
            "USP_KAFKA__GROUP": group,
            "USP_HTTP__PORT": str(port),
            **{f"USP_{name}": topic for name, topic in topics.items()},
        }

    def run(self, block: Block) -> None:
        """Run a block, or write its file. Fails with what was printed where that is not what the page shows."""
        if block.file:
            (self._directory / block.file).write_text(self._here(block.text))
            return
        assert block.language == "console", block
        for command, shown in commands(block):
            if "terminals" in block.needs and command.startswith("make kafka"):
                continue
            if block.needs & {"background", "terminals"}:
                # exec: the signal at the end is for the program, not for a shell before it
                with (self._directory / "background.log").open("a") as log:
                    process = subprocess.Popen(
                        ["bash", "-c", f"exec {self._here(command)}"],
                        cwd=self._directory, env=self._environ, stdout=log, stderr=log, text=True,
                    )  # fmt: skip
                self._background.append((command, process))
                if "terminals" in block.needs and "usp-daemon run" in command:
                    self.wait_for("partition_running")  # as the pages say
                continue
            done = subprocess.run(
                ["bash", "-o", "pipefail", "-c", self._here(command)],
                cwd=self._directory, env=self._environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                text=True, timeout=400,
            )  # fmt: skip
            assert done.returncode == 0, f"{block}: {command}\n{done.stdout}{self._log()}"
            text = done.stdout if done.stdout.endswith("\n") or not done.stdout else f"{done.stdout}\n"
            assert pattern_of(self._here(shown)).search(text), f"{block}: {command}\n{text}\nis not\n{shown}"

    def wait_for(self, words: str, *, seconds: float = 300.0) -> None:
        """Wait until what runs in the background has printed ``words``."""
        until = time.monotonic() + seconds
        while words not in self._log():
            assert time.monotonic() < until, f"no {words!r} in {seconds} s\n{self._log()}"
            assert all(process.poll() is None for _, process in self._background), self._log()
            time.sleep(0.2)

    def close(self) -> None:
        """End what runs in the background, as Ctrl-C would; fails where something does not end with 0."""
        for _, process in self._background:
            process.send_signal(signal.SIGINT)
        codes = {command: self._ended(process) for command, process in self._background}
        assert set(codes.values()) <= {0}, f"{codes}\n{self._log()}"

    def _ended(self, process: "subprocess.Popen[str]") -> int:
        until = time.monotonic() + 60
        try:
            return process.wait(timeout=max(0.1, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()

    def _here(self, text: str) -> str:
        for there, here in self._replaced.items():
            text = text.replace(there, here)
        return text

    def _log(self) -> str:
        log = self._directory / "background.log"
        return log.read_text("utf-8", "replace")[-4000:] if log.exists() else ""
