"""What the daemon offers to whoever is near: where it listens, what it runs of what it reads."""

import ast
import asyncio
import io
import os
import re
import time
from pathlib import Path

import pytest
import structlog
from service_process import ServiceProcess

import usp_daemon
from usp_daemon.telemetry import configure_logging, get_logger

PACKAGE = Path(usp_daemon.__file__).parent
SOURCES = sorted(PACKAGE.rglob("*.py"))
LISTEN = "0A"
LOOPBACK = {"0100007F", "00000000000000000000000001000000"}


def listening(pid: int) -> set[tuple[str, int]]:
    """Address, in the kernel's hexadecimal, and port of every TCP socket on which the process listens."""
    mine = set()
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        try:
            mine |= set(re.findall(r"socket:\[(\d+)\]", os.readlink(descriptor)))
        except FileNotFoundError:
            continue
    found = set()
    for table in ("tcp", "tcp6"):
        path = Path(f"/proc/{pid}/net/{table}")
        for line in path.read_text("ascii").splitlines()[1:] if path.exists() else ():
            fields = line.split()
            if fields[3] == LISTEN and fields[9] in mine:
                address, _, port = fields[1].partition(":")
                found.add((address, int(port, 16)))
    return found


async def test_by_default_it_listens_on_the_loopback_address_and_nowhere_else(tmp_path: Path) -> None:
    daemon = ServiceProcess(tmp_path, "127.0.0.1:1", group="surface", prefix="surface")
    assert not [name for name in daemon.environment if name == "USP_HTTP__HOST"]
    try:
        daemon.start()
        deadline = time.monotonic() + 60.0
        while (await asyncio.to_thread(daemon.http, "/livez")) is None:
            assert daemon.alive and time.monotonic() < deadline, daemon.tail()
            await asyncio.sleep(0.05)
        found = listening(daemon.process.pid)
    finally:
        daemon.discard()
    assert {port for _, port in found} == {daemon.port}
    assert {address for address, _ in found} <= LOOPBACK


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nothing_that_is_read_is_run(path: Path) -> None:
    """No format that carries code, no evaluation of text, no shell."""
    tree = ast.parse(path.read_text("utf-8"))
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [node.module or ""]
        roots = {name.partition(".")[0] for name in names}
        assert not roots & {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib", "yaml"}
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in {"eval", "exec", "compile", "os.system", "os.popen", "pickle.loads"}, called
            for keyword in node.keywords:
                shown = ast.unparse(keyword.value)
                assert (keyword.arg, shown) not in {("shell", "True"), ("allow_pickle", "True")}, called
            if called in ("np.load", "numpy.load"):
                assert ("allow_pickle", "False") in {(each.arg, ast.unparse(each.value)) for each in node.keywords}


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_a_name_cannot_forge_a_line_of_the_log_or_give_orders_to_a_terminal(log_format: str) -> None:
    stream = io.StringIO()
    try:
        configure_logging(log_format=log_format, stream=stream)
        get_logger("m").warning("event", symbol='a\n{"event": "forged"}\r\x1b[31m\x9b\u2028b')
    finally:
        structlog.reset_defaults()
    (line,) = stream.getvalue().rstrip("\n").splitlines()
    assert line.isprintable()
