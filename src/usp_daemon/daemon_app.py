"""The composition root of the service: builds one replica from settings, runs it, and says how it ended."""

import asyncio
import contextlib
import functools
import importlib.metadata
import os
import pathlib
import signal
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
from typing import Any

import usp_daemon
from usp_daemon.app import ExitCode, build_worker, give_back_freed_memory
from usp_daemon.compute import StartReport, StateKey, Worker, predictor_config
from usp_daemon.config import (
    SPECS,
    ConfigError,
    ConfigMutator,
    ConfigSource,
    LoadedConfig,
    ReloadOutcome,
    ReloadReport,
    RunningDaemon,
    SeenBase,
    Settings,
    document_of,
    parse_settings,
)
from usp_daemon.daemon_status import StatusFacts, StatusObserver
from usp_daemon.early_signals import EndAtOnce, put_back
from usp_daemon.persistence import AbstractEpochLog, AbstractSnapshotStore, DirectoryEpochLog, DirectoryStore, Epoch
from usp_daemon.service import (
    Daemon,
    DaemonOptions,
    EpochBook,
    EpochMarks,
    Observer,
    Observers,
    Outcome,
    ProgramEpoch,
    RecoveryPolicy,
    Reloader,
    StopRequest,
    Tap,
    TelemetryObserver,
)
from usp_daemon.status import Board, Tuner, status_routes
from usp_daemon.telemetry import (
    Health,
    HttpHandler,
    HttpServer,
    ServiceMetrics,
    configure_logging,
    get_logger,
    new_registry,
    route_library_logs,
    telemetry_routes,
)
from usp_daemon.transport import tick_format_of
from usp_daemon.transport.kafka import KafkaTransport, TopicEpochLog, TopicSnapshotStore
from usp_daemon.wire import AbstractTransport, ResultEncoder, TickDecoder

_log = get_logger(__name__)

CRASH_VARIABLE = "USP_CRASH_AT"
STOP_VARIABLE = "USP_STOP_AT"
_LAST_RESORT_S = 5.0


async def run_daemon(config: pathlib.Path | None, outside: EndAtOnce) -> ExitCode:
    """Run one replica until a signal ends it; ``outside`` answers signals before and afterwards.

    Raises ``ConfigError``, ``DeviceUnavailableError``, ``HttpServerError``, and, possibly in an exception group,
    ``TransportError`` when the broker cannot be reached at start or refuses for good, and ``ComputeError``.
    """
    source = ConfigSource(config)
    loaded = source.load()
    settings = loaded.settings
    configure_logging(
        settings.log.level,
        log_format=settings.log.format,
        fields={"group": settings.kafka.group, "instance": instance_name(settings)},
    )
    undo_logs = route_library_logs(settings.log.level)
    stop = StopRequest()
    reload_asked, campaign_asked = asyncio.Event(), asyncio.Event()
    try:
        with _signals(stop, settings, reload_asked, campaign_asked):
            outside.code = ExitCode.UNFINISHED
            outside.code = await _serve(source, loaded, stop, reload_asked, campaign_asked)
            return outside.code
    finally:
        undo_logs()


def instance_name(settings: Settings) -> str:
    """What this replica is called in logs and locks."""
    name = settings.kafka.group_instance_id
    return os.uname().nodename if name in ("auto", "") else name


async def _serve(
    source: ConfigSource,
    loaded: LoadedConfig,
    stop: StopRequest,
    reload_asked: asyncio.Event,
    campaign_asked: asyncio.Event,
) -> ExitCode:
    settings = loaded.settings
    registry = new_registry()
    named = [symbol for part in settings.telemetry.symbols.split(",") if (symbol := part.strip())]
    metrics = ServiceMetrics(registry, symbols=named, top_symbols=settings.telemetry.top_symbols)
    health = Health(stall_timeout_s=settings.service.stall_timeout_s)
    metrics.show_readiness(lambda: health.readyz().ok)
    crash_fn = crash_points(os.environ)
    async with contextlib.AsyncExitStack() as stack:
        board = Board(settings.http.status_symbols)
        facts = StatusFacts(settings, health, instance=instance_name(settings))
        page = status_routes(board, facts.facts, hosts=settings.http.status_hosts.split(","))
        routes = telemetry_routes(
            registry=registry, health=health, version=usp_daemon.__version__, extra=page if settings.http.status else {}
        )
        port = await stack.enter_async_context(_http(settings, routes, health))
        state_path = pathlib.Path(settings.io.state_path)
        stack.enter_context(_announced(state_path, port or 0, loaded.source))
        shown = (StatusObserver(board), facts) if settings.http.status else ()
        observer = Observers(TelemetryObserver(metrics, health), *shown)
        worker = build_worker(settings, on_migration=observer.migrated)
        stack.push_async_callback(_closed_within, worker, settings.service.shutdown_timeout_s)
        # Compiled before the group is joined: a member that compiles would miss its heartbeats.
        report = await _unless_stopped(worker.start(), stop)
        if report is None:
            return ExitCode.OK
        give_back_freed_memory()
        _report_start(metrics, report)
        facts.service.device = f"{report.identity.device_kind}, {report.identity.precision}"
        transport = KafkaTransport(
            settings.kafka,
            guarantee=settings.delivery.guarantee,
            commit_interval_ms=settings.delivery.commit_interval_ms,
            min_retention_s=settings.recovery.min_retention_s,
            start_timeout_s=settings.service.start_timeout_s,
            crash_fn=crash_fn,
        )
        stack.push_async_callback(transport.close)
        warnings = await _unless_stopped(transport.prepare(), stop)
        if warnings is None:
            return ExitCode.OK
        for warning in warnings:
            _log.warning("topics_warning", text=warning)
        marks = EpochMarks(ConfigMutator(source, settings=settings, who=instance_name(settings)).mark_epoch)

        def adopted(epoch: ProgramEpoch) -> None:
            observer.epoch_adopted(epoch)
            marks.adopted(epoch)

        epochs = EpochBook(
            _epoch_log(settings),
            functools.partial(make_epoch, worker, observer),
            instance=instance_name(settings),
            now_ns_fn=time.time_ns,
            adopted_fn=adopted,
        )
        stack.push_async_callback(epochs.close)
        seen = SeenBase(state_path)
        has_changed = seen.has_changed(loaded.base_hash)
        first = epochs.open(
            settings.predictor_values(), settings.predictor_hash(), loaded.base_hash, has_changed=has_changed
        )
        if await _unless_stopped(first, stop) is None:
            return ExitCode.OK
        seen.remember(loaded.base_hash)
        marks.accepted(loaded)

        def reported(report: ReloadReport, now: LoadedConfig | None) -> None:
            observer.reloaded(report.outcome.value, report.seconds)
            facts.record_reload(report)
            try:
                report.write(state_path)
            except OSError as error:
                _log.warning("state_not_written", path=str(state_path), error=str(error))
            if now is not None and report.outcome in (ReloadOutcome.APPLIED, ReloadOutcome.UNCHANGED):
                seen.remember(now.base_hash)
                marks.accepted(now)

        reloader = Reloader(
            source=source,
            started=loaded,
            epochs=epochs,
            check_fn=predictor_config,
            reported_fn=reported,
            asked=reload_asked,
        )
        tuning = None
        if settings.tuning.mode != "off":
            # Only here: the optimizer's library takes time and memory.
            from usp_daemon.live_tuning import LiveTuning

            tuning = LiveTuning(
                settings,
                source,
                epochs=epochs,
                predictor=worker,
                key_fn=StateKey,
                metrics=metrics,
                reload_fn=reload_asked.set,
                who=instance_name(settings),
            )
        daemon = build_daemon(
            settings,
            transport=transport,
            store=_store(settings, crash_fn),
            worker=worker,
            epochs=epochs,
            observer=observer,
            crash_fn=crash_fn,
            companions={
                "daemon.reload": functools.partial(reloader.run, poll_interval_s=settings.io.config_poll_interval_s),
                "daemon.marks": marks.run,
                "tuner.asked": functools.partial(_pass_on, campaign_asked, None if tuning is None else tuning.ask),
                **({} if tuning is None else tuning.companions),
            },
            tap=None if tuning is None else tuning.tap,
        )
        if tuning is not None:
            tuning.attach(daemon)
            facts.tuner_fn = lambda: Tuner(mode=settings.tuning.mode, **tuning.status())
        health.set_ready()
        outcome = await daemon.run(stop)
        health.set_not_ready("the service has ended")
    _log.info("shutdown_complete", outcome=outcome.value)
    return ExitCode.OK if outcome is Outcome.DRAINED else ExitCode.UNFINISHED


def build_daemon(
    settings: Settings,
    *,
    transport: AbstractTransport,
    store: AbstractSnapshotStore,
    worker: Worker,
    epochs: EpochBook,
    observer: Observer,
    crash_fn: Callable[[str], None],
    companions: Mapping[str, Callable[[], Coroutine[Any, Any, None]]],
    tap: Tap | None = None,
) -> Daemon:
    """The service over a transport, a store, a started worker and an open book of epochs."""
    delivery, service, recovery = settings.delivery, settings.service, settings.recovery
    return Daemon(
        transport=transport,
        predictor=worker,
        store=store,
        decoder=TickDecoder(tick_format_of(settings)),
        epochs=epochs,
        key_fn=StateKey,
        policy=RecoveryPolicy(
            on_state_missing=recovery.on_state_missing,
            on_input_missing=recovery.on_input_missing,
            on_state_incompatible=recovery.on_state_incompatible,
            require_exact=recovery.require_exact,
            initial_offset=settings.kafka.initial_offset,
        ),
        options=DaemonOptions(
            group=settings.kafka.group,
            commit_interval_s=delivery.commit_interval_ms / 1e3,
            commit_max_records=delivery.commit_max_records,
            max_batch=delivery.max_batch,
            max_queued_records=delivery.max_queued_records,
            snapshot_interval_s=settings.io.snapshot_interval_s,
            shutdown_timeout_s=service.shutdown_timeout_s,
            handover_timeout_s=0.5 * settings.kafka.rebalance_timeout_ms / 1e3,
            stall_timeout_s=service.stall_timeout_s,
            retry_backoff_s=service.retry_backoff_s,
        ),
        observer=observer,
        crash_fn=crash_fn,
        companions=companions,
        tap=tap,
    )


async def _pass_on(asked: asyncio.Event, ask_fn: Callable[[], None] | None) -> None:
    """Has a campaign begun whenever the operator asks for one."""
    while True:
        await asked.wait()
        asked.clear()
        if ask_fn is None:
            _log.warning("campaign_refused", reason='tuning.mode is "off"')
        else:
            ask_fn()


@contextlib.contextmanager
def _announced(state_path: pathlib.Path, port: int, config: str) -> Iterator[None]:
    """Say where this daemon is to be found, for ``usp-daemon reload``; a disk that refuses keeps nobody from work."""
    try:
        RunningDaemon.write(state_path, http_port=port, started_ns=time.time_ns(), config=config)
    except OSError as error:
        _log.warning("state_not_written", path=str(state_path), error=str(error))
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            RunningDaemon.remove(state_path)


async def make_epoch(worker: Worker, observer: Observer, epoch: Epoch) -> ProgramEpoch:
    """An epoch ready for use: its program is compiled aside if its structure is new to ``worker``.

    Raises ``ValueError`` when this version cannot build a predictor from its settings.
    """
    # a path that is unknown is a key of another version
    known = {path: value for path, value in epoch.settings.items() if path in SPECS}
    try:
        parameters = predictor_config(parse_settings(document_of(known), source=f"epoch {epoch.number}"))
    except ConfigError as error:
        raise ValueError(str(error)) from error
    prepared = await worker.prepare(parameters)
    if not prepared.was_ready:
        observer.compiled(prepared.num_compilations, prepared.compile_seconds)
    identity = await worker.identity_of(parameters)
    return ProgramEpoch(
        number=epoch.number,
        settings=epoch.settings,
        config_hash=epoch.config_hash,
        parameters=parameters,
        identity=identity.as_dict(),
        encoder=ResultEncoder(config_hash=epoch.config_hash),
    )


def crash_points(environ: Mapping[str, str]) -> Callable[[str], None]:
    """Ends the process with SIGKILL at the point that ``USP_CRASH_AT`` names, and suspends it with SIGSTOP at that of
    ``USP_STOP_AT``: ``point``, or ``point:n`` for the n-th time. For tests of recovery; does nothing otherwise.
    """
    left: dict[tuple[str, signal.Signals], int] = {}
    for variable, number in ((CRASH_VARIABLE, signal.SIGKILL), (STOP_VARIABLE, signal.SIGSTOP)):
        wanted, _, count = environ.get(variable, "").partition(":")
        if wanted:
            left[wanted, number] = int(count or 1)

    def at(point: str) -> None:
        for (wanted, number), count in left.items():
            if wanted == point:
                left[wanted, number] = count - 1
                if count == 1:
                    os.kill(os.getpid(), number)

    return at if left else lambda point: None


def _store(settings: Settings, crash_fn: Callable[[str], None]) -> AbstractSnapshotStore:
    io = settings.io
    compression = "gzip" if io.snapshot_compression == "gzip" else "none"
    if io.snapshot_store == "topic":
        return TopicSnapshotStore(
            settings.kafka,
            io.snapshot_topic,
            keep=io.snapshot_keep,
            compression=compression,
            instance=instance_name(settings),
            start_timeout_s=settings.service.start_timeout_s,
            crash_fn=crash_fn,
        )
    return DirectoryStore(
        io.snapshot_path,
        group=settings.kafka.group,
        keep=io.snapshot_keep,
        fsync=io.snapshot_atomic_fsync,
        compression=compression,
        instance=instance_name(settings),
        crash_fn=crash_fn,
    )


def _epoch_log(settings: Settings) -> AbstractEpochLog:
    io = settings.io
    if io.snapshot_store == "topic":
        return TopicEpochLog(
            settings.kafka,
            io.snapshot_topic,
            instance=instance_name(settings),
            start_timeout_s=settings.service.start_timeout_s,
        )
    return DirectoryEpochLog(io.snapshot_path, group=settings.kafka.group)


@contextlib.asynccontextmanager
async def _http(settings: Settings, routes: Mapping[str, HttpHandler], health: Health) -> AsyncIterator[int | None]:
    if not settings.http.enabled:
        yield None
        return
    server = HttpServer(host=settings.http.host, port=settings.http.port, routes=routes)
    await server.open()
    # Before the service has a watchdog of its own to say that the loop turns.
    beating = asyncio.create_task(_beat(health), name="http.heartbeat")
    _log.info("http_listening", host=settings.http.host, port=server.port)
    try:
        yield server.port
    finally:
        beating.cancel()
        await server.close()


async def _beat(health: Health) -> None:
    while True:
        health.beat_loop()
        await asyncio.sleep(1.0)


def _report_start(metrics: ServiceMetrics, report: StartReport) -> None:
    metrics.record_build(
        version=usp_daemon.__version__,
        jax=importlib.metadata.version("jax"),
        device=report.identity.device_kind,
        precision=report.identity.precision,
    )
    metrics.record_compilations(report.num_compilations, report.compile_seconds)
    _log.info(
        "predictor_ready",
        device=report.device,
        compile_s=round(report.compile_seconds, 2),
        bytes_per_symbol=report.bytes_per_symbol,
    )


async def _unless_stopped(coroutine: Any, stop: StopRequest) -> Any:
    """What ``coroutine`` returns, or None, with the coroutine cancelled, when the end is asked for first."""
    task = asyncio.ensure_future(coroutine)
    stopped = asyncio.create_task(stop.requested.wait(), name="run.stop")
    try:
        await asyncio.wait({task, stopped}, return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() else None
    finally:
        stopped.cancel()
        task.cancel()


async def _closed_within(worker: Worker, budget_s: float) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(0.1 * budget_s):
            await worker.close()


@contextlib.contextmanager
def _signals(
    stop: StopRequest, settings: Settings, reload_asked: asyncio.Event, campaign_asked: asyncio.Event
) -> Iterator[None]:
    """SIGTERM and SIGINT end in order, a second one hurries; SIGHUP has the configuration read again, SIGUSR1 a
    campaign begun.
    """
    loop = asyncio.get_running_loop()
    last_resort: list[threading.Timer] = []

    def end() -> None:
        if not last_resort:
            # What hangs in a thread or a library cannot be waited for; recovery makes up for it.
            limit_s = settings.service.shutdown_timeout_s + _LAST_RESORT_S
            timer = threading.Timer(limit_s, os._exit, (int(ExitCode.UNFINISHED),))
            timer.daemon = True
            timer.start()
            last_resort.append(timer)
        _log.info("stop_requested", hurried=stop.requested.is_set())
        stop.stop()

    handlers = {
        signal.SIGTERM: end,
        signal.SIGINT: end,
        signal.SIGHUP: reload_asked.set,
        signal.SIGUSR1: campaign_asked.set,
    }
    former = {number: signal.getsignal(number) for number in handlers}
    for number, handler in handlers.items():
        loop.add_signal_handler(number, handler)
    try:
        yield
    finally:
        for number in handlers:
            loop.remove_signal_handler(number)
        put_back(former)
        for timer in last_resort:
            timer.cancel()
