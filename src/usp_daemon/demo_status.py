"""``usp-daemon demo --serve``: the bundled series at a pace that can be followed, on the status page."""

import asyncio
import contextlib
import pathlib
import signal
import time
from collections.abc import Sequence

from rich.console import Console

import usp_daemon
from usp_daemon.app import ExitCode, PredictorFactory, ReplaySummary, Watching, demo, started_worker
from usp_daemon.config import Settings, load_settings
from usp_daemon.daemon_status import changes_to_defaults, health_facts
from usp_daemon.demo import DEMO_SERIES
from usp_daemon.service import Answer, RatePacer
from usp_daemon.status import PAGE_PATH, Board, Config, Facts, Service, status_routes
from usp_daemon.telemetry import Health, HttpServer, PartitionState, new_registry, telemetry_routes
from usp_daemon.versions import present_versions
from usp_daemon.wire import TopicPartition

TICKS_PER_S = 120.0
# Enough for every symbol to be past its warm-up when the first visitor comes.
NUM_AT_ONCE = 400 * len(DEMO_SERIES)
_PARTITION = TopicPartition("demo", 0)


async def serve_demo(
    out_directory: pathlib.Path,
    out: Console,
    err: Console,
    *,
    port: int | None = None,
    ticks_per_s: float = TICKS_PER_S,
    stay: bool = True,
    predictor_factory: PredictorFactory = started_worker,
) -> ReplaySummary:
    """Run the demonstration at ``ticks_per_s`` and show it; with ``stay`` the page stays when all ticks are answered,
    until a signal. ``port`` is that of the settings by default, 0 a free one.

    Raises ``HttpServerError`` when the port cannot be listened on, and what :func:`usp_daemon.app.demo` does.
    """
    settings = load_settings(None)
    board = Board(settings.http.status_symbols)
    shown = _Shown(settings, board)
    routes = telemetry_routes(
        registry=new_registry(),
        health=shown.health,
        version=usp_daemon.__version__,
        extra=status_routes(board, shown.facts, hosts=settings.http.status_hosts.split(",")),
    )
    server = HttpServer(host=settings.http.host, port=settings.http.port if port is None else port, routes=routes)
    await server.open()
    beating = asyncio.create_task(_beat(shown.health), name="demo.heartbeat")
    try:
        url = f"http://{settings.http.host}:{server.port}{PAGE_PATH}"
        err.print(f"status page: {url}", highlight=False, markup=False, soft_wrap=True)
        watching = Watching(answered_fn=shown.answered, pacer=RatePacer(ticks_per_s, num_at_once=NUM_AT_ONCE))
        summary = await demo(out_directory, out, err, predictor_factory=predictor_factory, watching=watching)
        if stay and summary.exit_code is ExitCode.OK:
            err.print(f"all ticks are answered; the page stays at {url} until Ctrl-C", highlight=False, soft_wrap=True)
            await _signalled()
        return summary
    finally:
        beating.cancel()
        await server.close()


class _Shown:
    """What the page says of a demonstration."""

    def __init__(self, settings: Settings, board: Board) -> None:
        self.health = Health(stall_timeout_s=settings.service.stall_timeout_s)
        self._board = board
        self._symbols: set[str] = set()
        self._started_s = time.time()
        self._service = Service(
            kind="demo",
            instance="demo",
            group="",
            version=usp_daemon.__version__,
            versions=present_versions(),
            started_ns=int(self._started_s * 1e9),
        )
        self._config = Config(
            epoch=0,
            config_hash=settings.predictor_hash(),
            adopted_ns=self._service.started_ns,
            changes_to_defaults=changes_to_defaults(settings, settings.predictor_values()),
            changes_to_last_epoch=[],
        )

    def answered(self, answers: Sequence[Answer]) -> None:
        """These answers are written."""
        if not self._symbols:
            self.health.set_ready()
            self._board.partition_state(_PARTITION, PartitionState.RUNNING.value)
        for answer in answers:
            self._symbols.update(answer.rows.symbols)
        self._board.update(_PARTITION, symbols=len(self._symbols))
        self._board.answered(_PARTITION, answers)

    def facts(self) -> Facts:
        """As they are now."""
        self._service.uptime_s = time.time() - self._started_s
        return Facts(
            service=self._service,
            health=health_facts(self.health.livez(), self.health.readyz()),
            config=self._config,
        )


async def _beat(health: Health) -> None:
    while True:
        health.beat_loop()
        await asyncio.sleep(1.0)


async def _signalled() -> None:
    """Until SIGINT or SIGTERM comes."""
    loop, came = asyncio.get_running_loop(), asyncio.Event()
    with contextlib.ExitStack() as stack:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, came.set)
            stack.callback(loop.remove_signal_handler, number)
        await came.wait()
