"""A configuration in a directory of its own, with clocks that a test sets."""

import json

from usp_daemon.config import ConfigMutator, ConfigSource
from usp_daemon.config._clock import Clock
from usp_daemon.config._disk import Disk

HOUR_NS = 3_600_000_000_000


class Clocks:
    """A wall clock that may be set, and the time since the machine was started, which only goes on."""

    def __init__(self):
        self.wall_ns = 1_700_000_000_000_000_000
        self.since_boot_ns = 1_000_000_000_000
        self.boot = "first boot"

    def go_on(self, seconds):
        self.wall_ns += int(seconds * 1e9)
        self.since_boot_ns += int(seconds * 1e9)

    def restart_machine(self):
        self.boot, self.since_boot_ns = f"after {self.boot}", 1_000_000_000

    def clock(self):
        return Clock(lambda: self.wall_ns, lambda: self.since_boot_ns, self.boot)


class Quick(Disk):
    """Flushes nothing: no test cuts the real power."""

    def fsync(self, fd):
        del fd

    def fsync_directory(self, path):
        del path


class World:
    """``root`` holds etc/config.toml, io/state and io/mutations.log."""

    def __init__(self, root, text="", **environ):
        self.root, self.environ, self.clocks = root, environ, Clocks()
        self.file = root / "etc" / "config.toml"
        self.state, self.log = root / "io" / "state", root / "io" / "mutations.log"
        self.file.parent.mkdir(parents=True, exist_ok=True)
        places = f'state_path = "{self.state}"\nmutations_log = "{self.log}"\n'
        head, mark, tail = text.partition("[io]\n")
        self.file.write_text(head + "[io]\n" + places + (tail if mark else ""))
        self.first = self.file.read_bytes()

    def source(self):
        return ConfigSource(self.file, self.environ)

    def settings(self):
        return self.source().load().settings

    def mutator(self, **options):
        return ConfigMutator(
            self.source(), **{"who": "tester", "clock": self.clocks.clock(), "disk": Quick(), **options}
        )

    def lines(self):
        return [json.loads(line) for line in self.log.read_bytes().splitlines()] if self.log.exists() else []

    def events(self):
        return [line["event"] for line in self.lines()]

    def is_whole(self):
        report = self.mutator().audit.verify()
        return report.is_whole or report.problems

    def changes_and_undoes(self):
        """Rests of temporary files, of which there must be none."""
        return sorted(path.name for path in self.root.rglob("*") if path.name.endswith(".usp-tmp"))
