"""The campaign's process, as the daemon holds it: at low priority, within a budget of CPU, suspended while lag is high.

The process is suspended (SIGSTOP) when it has used up what ``cpu_share`` has given it so far, and goes on (SIGCONT)
when there is budget again: nothing that it runs, compilers included, can take more on average. What is not used is
kept for a few seconds only.
"""

import asyncio
import contextlib
import os
import pathlib
import signal
import sys
import time
from collections.abc import Callable, Sequence

import msgspec

from usp_daemon.telemetry import get_logger

from ._request import CampaignFailedError, CampaignMessage, CampaignProgress, CampaignRequest
from ._state import Decision

_log = get_logger(__name__)

MODULE = "usp_daemon.campaign_process"
_LOOK_S = 0.1
_SAVED_S = 2.0  # of the share that may be saved up
_LAST_WORDS = 600
_LINE_BYTES = 16 << 20


class CpuBudget:
    """How long a process must be suspended so that it takes ``share`` of a core on average.

    ``share`` of the time is earned while it is not suspended for another reason; at most ``saved_s`` of it is saved.
    """

    def __init__(self, share: float, *, saved_s: float = _SAVED_S) -> None:
        self._share = share
        self._most = saved_s * share
        self._left = self._most
        self._used: float | None = None
        self._at: float | None = None

    def may_run(self, now: float, used_s: float, *, is_held: bool) -> bool:
        """Whether it may go on, having used ``used_s`` of CPU so far; ``is_held`` earns nothing, and may not."""
        if self._at is not None and self._used is not None:
            earned = 0.0 if is_held else self._share * (now - self._at)
            self._left = min(self._most, self._left + earned) - (used_s - self._used)
        self._at, self._used = now, used_s
        return not is_held and self._left > 0.0


def cpu_seconds(pid: int) -> float:
    """CPU that a process has used, all its threads together. Raises ``OSError`` where there is none such."""
    text = pathlib.Path(f"/proc/{pid}/stat").read_text("ascii", "replace")
    fields = text[text.rindex(")") + 2 :].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class CampaignProcess:
    """Runs campaigns in a process of their own, one at a time. ``lag_fn`` says how far behind the service is, in s."""

    def __init__(
        self,
        *,
        cpu_share: float,
        max_lag_s: float,
        lag_fn: Callable[[], float],
        command: Sequence[str] = (sys.executable, "-m", MODULE),
    ) -> None:
        self._cpu_share = cpu_share
        self._max_lag_s = max_lag_s
        self._lag_fn = lag_fn
        self._command = command
        self.is_held = False

    async def run(self, request: CampaignRequest, progress_fn: Callable[[CampaignProgress], None]) -> Decision:
        """The campaign's decision. The process ends with the cancellation of this call.

        Raises :class:`CampaignFailedError`.
        """
        pipe = asyncio.subprocess.PIPE
        try:
            # A session of its own: Ctrl-C in the daemon's terminal is for the daemon, which ends it in its own order.
            process = await asyncio.create_subprocess_exec(
                *self._command,
                stdin=pipe,
                stdout=pipe,
                stderr=pipe,
                env=_environment(),
                limit=_LINE_BYTES,
                start_new_session=True,
            )
        except OSError as error:
            raise CampaignFailedError(f"no process could be started: {error}") from error
        assert process.stdin is not None and process.stderr is not None
        ready = asyncio.Event()
        governing = asyncio.create_task(self._govern(process, ready), name="tuner.governor")
        errors = asyncio.create_task(_last_words(process.stderr), name="tuner.errors")
        try:
            process.stdin.write(msgspec.json.encode(request) + b"\n")
            with contextlib.suppress(ConnectionError):
                await process.stdin.drain()
            decision = await self._listen(process, ready, progress_fn)
            status = await process.wait()
            if decision is None:
                words = (await errors).decode(errors="replace").strip()
                raise CampaignFailedError(f"the process ended with status {status} and no decision: {words}")
            return decision
        finally:
            governing.cancel()
            errors.cancel()
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()  # also one that is suspended
                await process.wait()
            process.stdin.close()

    async def _listen(
        self, process: asyncio.subprocess.Process, ready: asyncio.Event, progress_fn: Callable[[CampaignProgress], None]
    ) -> Decision | None:
        assert process.stdout is not None
        decision = None
        while line := await process.stdout.readline():
            try:
                message = msgspec.json.decode(line, type=CampaignMessage)
            except msgspec.MsgspecError as error:
                raise CampaignFailedError(f"the process said something else than expected: {line[:200]!r}") from error
            if message.is_ready:
                ready.set()
            if message.error:
                raise CampaignFailedError(message.error)
            if message.progress is not None:
                progress_fn(message.progress)
            decision = message.decision or decision
        return decision

    async def _govern(self, process: asyncio.subprocess.Process, ready: asyncio.Event) -> None:
        await ready.wait()  # one that is suspended before that would outlive a daemon that is killed
        budget, is_running = CpuBudget(self._cpu_share), True
        while True:
            await asyncio.sleep(_LOOK_S)
            lag_s = self._lag_fn()
            is_held = lag_s > self._max_lag_s
            if is_held != self.is_held:
                self.is_held = is_held
                _log.info("tuner_held" if is_held else "tuner_resumed", lag_s=round(lag_s, 3))
            try:
                may_run = budget.may_run(time.monotonic(), cpu_seconds(process.pid), is_held=is_held)
                if may_run != is_running:
                    process.send_signal(signal.SIGCONT if may_run else signal.SIGSTOP)
                    is_running = may_run
            except (OSError, ValueError):
                return  # it has ended


async def _last_words(stream: asyncio.StreamReader) -> bytes:
    """The end of what it says, all of which is read, so that it never waits for a reader."""
    words = b""
    while part := await stream.read(1 << 16):
        words = (words + part)[-_LAST_WORDS:]
    return words


def _environment() -> dict[str, str]:
    """This process's environment with this package on the path; the device is the service's alone."""
    package = str(pathlib.Path(__file__).resolve().parents[2])
    path = os.pathsep.join([package, *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": path, "JAX_PLATFORMS": "cpu"}
