"""Has another process compile a structure ahead, and leave it in the cache on disk.

Tracing a step holds the interpreter's lock for seconds, in which neither the event loop nor the worker gets on. The
other process is :mod:`._compile_ahead`; it gets the request on its standard input and ends when that is closed, so it
cannot outlive this one.
"""

import asyncio
import dataclasses
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ._device import DeviceChoice
from ._program import StepProgram

MODULE = "usp_daemon.compute._compile_ahead"
_LAST_WORDS = 400  # characters of a failed process's errors that are passed on


class NotElsewhereError(Exception):
    """The structure cannot be compiled by another process, or that process failed; the message says why."""


@dataclass(frozen=True)
class CompileRequest:
    """What another process needs to know in order to compile the same programs into the same cache."""

    parameters: Mapping[str, Any]  # fields of a PredictorConfig
    origin: str
    digest: str
    device: str
    precision: str
    tile_width: int
    refresh_width: int
    cache_directory: str

    @classmethod
    def of(cls, config: Any, program: StepProgram, choice: DeviceChoice, cache_directory: Path) -> "CompileRequest":
        """The request for ``config``'s structure; raises :class:`NotElsewhereError` if it cannot be put in words."""
        if program.origin is None or program.digest is None:
            raise NotElsewhereError("the program has no origin or digest, so no other process can compile it")
        kinds = {"cpu": "cpu", "gpu": f"cuda:{getattr(choice.device, 'id', 0)}"}
        return cls(
            parameters={field.name: _plain(getattr(config, field.name)) for field in dataclasses.fields(config)},
            origin=program.origin,
            digest=program.digest,
            device=kinds.get(choice.kind, "auto"),
            precision=choice.precision,
            tile_width=choice.tile_width,
            refresh_width=choice.refresh_width,
            cache_directory=str(cache_directory),
        )


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else value


async def compile_elsewhere(request: CompileRequest, folder: Path | None) -> float:
    """Waits until another process has compiled ``request`` into ``folder``; returns the seconds that compiling took.

    Raises :class:`NotElsewhereError` if it did not. The process ends with the cancellation of this call.
    """
    if folder is None:
        raise NotElsewhereError("there is no cache on disk")
    if not sys.executable:
        raise NotElsewhereError("the interpreter's path is unknown")
    pipe = asyncio.subprocess.PIPE
    try:
        # A session of its own: Ctrl-C in a terminal would reach it too, and have this process compile at the end.
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", MODULE),
            stdin=pipe,
            stdout=pipe,
            stderr=pipe,
            env=_environment(),
            start_new_session=True,
        )
    except OSError as error:
        raise NotElsewhereError(f"no process could be started: {error}") from error
    assert process.stdin is not None and process.stdout is not None and process.stderr is not None
    try:
        process.stdin.write(json.dumps(dataclasses.asdict(request)).encode() + b"\n")
        # Its input stays open until it has answered: closing it is how it is told to give up.
        output, errors = await asyncio.gather(process.stdout.read(), process.stderr.read())
        status = await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        process.stdin.close()
    if status != 0:
        words = errors.decode(errors="replace").strip()[-_LAST_WORDS:]
        raise NotElsewhereError(f"the compiling process ended with status {status}: {words}")
    try:
        answer = json.loads(output.splitlines()[-1])
        seconds, used, digest = float(answer["seconds"]), answer["folder"], answer["digest"]
    except (ValueError, IndexError, KeyError, TypeError) as error:
        raise NotElsewhereError(f"the compiling process gave no answer: {output[-_LAST_WORDS:]!r}") from error
    if digest != request.digest:
        raise NotElsewhereError("the sources on disk are no longer those that this process runs")
    if used != str(folder):
        raise NotElsewhereError(f"the compiling process used the cache {used}, this one uses {folder}")
    return seconds


def _environment() -> dict[str, str]:
    """This process's environment, with this package on the path; a GPU's memory is taken as needed, beside ours."""
    package = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join([package, *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": path, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
