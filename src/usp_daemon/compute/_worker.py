"""The one thread that owns the device, as seen from an event loop.

    event loop                          worker thread
    start()   ----------------------->  builds the engine, compiles
    step(...) --> bounded queue ----->  one request after the other, in order
              <-- future <------------  result or exception
    prepare() --> another process compiles, a side thread loads; then a request like any other hands it over
    close()   --> last in the queue ->  ends

Whoever waits always gets an answer: the result, the exception, or :class:`WorkerStoppedError` if the thread is gone.
"""

import asyncio
import collections
import functools
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from ._cache import default_cache_directory, enable_compilation_cache
from ._device import DeviceBackend, DeviceChoice, choose_device
from ._engine import BatchResult, Engine, PartitionStates, StateKey
from ._errors import WorkerStoppedError
from ._pool import EnginePool, PartitionMigration
from ._prepare import CompileRequest, NotElsewhereError, compile_elsewhere
from ._program import ProgramIdentity, StepProgram, compile_programs, core_program

_T = TypeVar("_T")


@dataclass(frozen=True)
class StartReport:
    """What the worker got at its start: the device in words, how long compilation took, and what must be equal for
    another run to give the same bits.
    """

    device: str
    compile_seconds: float
    num_compilations: int
    bytes_per_symbol: int
    cache_directory: Path | None
    identity: ProgramIdentity


@dataclass(frozen=True)
class PrepareReport:
    """How a structure was made ready: seconds of tracing and compiling, and of loading what came of it.

    ``elsewhere`` says that another process did the compiling; if not, ``note`` says why, and steps may have been held
    up meanwhile.
    """

    compile_seconds: float
    was_ready: bool
    num_compilations: int
    load_seconds: float = 0.0
    elsewhere: bool = False
    note: str = ""


@dataclass(frozen=True)
class _Request:
    function: Callable[[EnginePool], Any]
    future: "Future[Any]"


class Worker:
    """Runs an :class:`EnginePool` in its own thread; every method is to be awaited on one event loop."""

    def __init__(
        self,
        config: Any,
        *,
        device: str = "auto",
        precision: str = "auto",
        tile_width: int | None = None,
        refresh_width: int | None = None,
        max_symbols: int = 100_000,
        max_pending: int = 4,
        cache_directory: Path | None = None,
        program: StepProgram | None = None,
        backend: DeviceBackend | None = None,
        engine_factory: Callable[..., Engine] = Engine,
        on_migration: Callable[[PartitionMigration], None] | None = None,
    ) -> None:
        """Stores what to build; nothing happens before :meth:`start`.

        ``device``, ``precision`` and the widths are as in :func:`choose_device`, ``max_symbols`` and ``program`` as in
        :class:`Engine`. ``max_pending`` (at least 1) requests may wait in the queue; further ones wait in their caller.
        ``cache_directory`` is where compiled programs are kept, by default the user's cache folder. ``on_migration`` is
        called on the event loop, before the request that brought the migration about is answered.
        """
        if max_pending < 1:
            raise ValueError(f"max_pending must be at least 1, got {max_pending}")
        self._config = config
        self._choose = functools.partial(choose_device, device, precision, tile_width, refresh_width, backend)
        self._build = functools.partial(
            EnginePool, max_symbols=max_symbols, program=program, engine_factory=engine_factory
        )
        self._program = program
        self._has_own_backend = backend is not None
        self._cache_directory = cache_directory
        self._on_migration = on_migration
        self._migrations: collections.deque[PartitionMigration] = collections.deque()
        self._choice: DeviceChoice | None = None
        self._folder: Path | None = None
        self._preparing = asyncio.Lock()
        self._requests: queue.Queue[_Request | None] = queue.Queue()
        # Bounds the queue from the side of the callers, who can wait without blocking the event loop.
        self._places = asyncio.Semaphore(max_pending)
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._accepts = False
        self._cause: BaseException | None = None
        self._ended: Future[None] = Future()

    @property
    def is_alive(self) -> bool:
        """Whether the thread is running and takes requests."""
        return self._accepts

    async def start(self) -> StartReport:
        """Starts the thread, which picks the device and compiles; returns what it got.

        Raises :class:`DeviceUnavailableError` if the device is not there, ``ValueError`` for settings that make no
        sense, ``RuntimeError`` if called twice.
        """
        if self._thread is not None:
            raise RuntimeError("a worker can be started once; build another one")
        started: Future[StartReport] = Future()
        self._accepts = True
        self._thread = threading.Thread(target=self._main, args=(started,), name="usp-device", daemon=True)
        self._thread.start()
        return await asyncio.wrap_future(started)

    async def step(
        self,
        keys: Sequence[StateKey],
        values: Any,
        timestamps_ns: Any,
        record_timestamps_ns: Any,
        parameters: Any = None,
    ) -> BatchResult:
        """:meth:`EnginePool.step` in the worker thread: under ``parameters`` of any structure.

        The arrays must not be changed until it returns.
        """
        return await self._submit(lambda pool: pool.step(keys, values, timestamps_ns, record_timestamps_ns, parameters))

    async def set_parameters(self, config: Any) -> None:
        """:meth:`EnginePool.set_parameters`, effective for every step asked for after this call."""
        await self._submit(lambda pool: pool.set_parameters(config))

    async def identity_of(self, config: Any) -> ProgramIdentity:
        """:meth:`EnginePool.identity_of`; compiles a structure that was not prepared, which holds up steps."""
        return await self._submit(lambda pool: pool.identity_of(config))

    async def prepare(self, config: Any) -> PrepareReport:
        """Compiles ``config``'s structure, so that a step under it need not; steps go on meanwhile.

        The work is done by a process of low priority, which leaves it in the cache on disk, from where a thread beside
        the worker's loads it. Where that cannot be, the thread compiles, and the report says why. Cancelling ends the
        process. Raises what :func:`compile_programs` raises, and :class:`WorkerStoppedError`.
        """
        async with self._preparing:
            if await self._submit(lambda pool: pool.is_ready(config)):
                return PrepareReport(0.0, True, 0)
            choice, folder = self._choice, self._folder
            assert choice is not None  # the worker has answered, so it has started
            program = self._program or core_program()
            seconds, note = 0.0, ""
            try:
                request = self._compile_request(config, program, choice)
                seconds = await compile_elsewhere(request, folder)
            except NotElsewhereError as error:
                note = f"compiled in this process: {error}"
            started = time.perf_counter()
            programs = await _in_side_thread(
                functools.partial(
                    compile_programs,
                    program,
                    config.as_arrays(choice.dtype),
                    choice,
                    folder,
                    **({} if note else {"num_threads": 1}),
                )
            )
            loading = time.perf_counter() - started
            await self._submit(lambda pool: pool.adopt(config, programs))
            return PrepareReport(
                compile_seconds=loading if note else seconds,
                was_ready=False,
                num_compilations=programs.num_compilations,
                load_seconds=0.0 if note else loading,
                elsewhere=not note,
                note=note,
            )

    async def export_states(self, topic: str, partition: int, parameters: Any = None) -> PartitionStates:
        """:meth:`EnginePool.export_states`."""
        return await self._submit(lambda pool: pool.export_states(topic, partition, parameters))

    async def import_states(self, topic: str, partition: int, states: PartitionStates, parameters: Any = None) -> None:
        """:meth:`EnginePool.import_states`."""
        await self._submit(lambda pool: pool.import_states(topic, partition, states, parameters))

    async def release(self, topic: str, partition: int) -> int:
        """:meth:`EnginePool.release`."""
        return await self._submit(lambda pool: pool.release(topic, partition))

    async def limit_partitions(self, num_partitions: int) -> None:
        """:meth:`EnginePool.limit_partitions`."""
        await self._submit(lambda pool: pool.limit_partitions(num_partitions))

    async def close(self) -> None:
        """Lets what was asked for finish, then ends the thread. May be called again, and before :meth:`start`.

        Cancelling it (a time limit) leaves the thread to end on its own; it cannot keep the process alive.
        """
        with self._lock:
            if self._accepts:
                self._accepts = False
                self._requests.put(None)
        if self._thread is not None:
            await asyncio.shield(asyncio.wrap_future(self._ended))
            self._thread.join()  # its last act was to say so

    async def _submit(self, function: Callable[[EnginePool], _T]) -> _T:
        async with self._places:
            request = _Request(function, Future())
            with self._lock:
                if not self._accepts:
                    raise self._stopped()
                self._requests.put(request)
            try:
                return await asyncio.wrap_future(request.future)
            finally:
                self._tell_migrations()

    def _tell_migrations(self) -> None:
        while self._migrations:
            migration = self._migrations.popleft()
            if self._on_migration is not None:
                self._on_migration(migration)

    def _compile_request(self, config: Any, program: StepProgram, choice: DeviceChoice) -> CompileRequest:
        if self._has_own_backend:
            raise NotElsewhereError("the device was picked by a backend that another process does not have")
        return CompileRequest.of(config, program, choice, self._cache_directory or default_cache_directory())

    def _stopped(self) -> WorkerStoppedError:
        if self._thread is None:
            return WorkerStoppedError("the worker was not started")
        if self._cause is None:
            return WorkerStoppedError("the worker is closed")
        error = WorkerStoppedError(f"the worker's thread died: {self._cause!r}")
        error.__cause__ = self._cause
        return error

    # In the worker thread

    def _main(self, started: "Future[StartReport]") -> None:
        try:
            self._run(started)
        except BaseException as error:  # the thread's last words: those who wait must hear of it
            self._cause = error
        finally:
            self._end()

    def _run(self, started: "Future[StartReport]") -> None:
        """Everything that holds device arrays: they are let go of here, not while the interpreter shuts down."""
        pool = self._start_pool(started)
        if pool is not None:
            self._serve(pool)

    def _start_pool(self, started: "Future[StartReport]") -> EnginePool | None:
        try:
            choice = self._choose()
            folder = enable_compilation_cache(choice, self._cache_directory)
            pool = self._build(self._config, choice, folder=folder, on_migration=self._migrations.append)
            engine = pool.engine
            self._choice, self._folder = choice, folder
            report = StartReport(
                device=choice.describe(),
                compile_seconds=engine.compile_seconds,
                num_compilations=engine.num_compilations,
                bytes_per_symbol=engine.bytes_per_symbol,
                cache_directory=folder,
                identity=engine.program_identity(),
            )
        except BaseException as error:
            self._cause = error
            _answer(started, error=error)
            return None
        _answer(started, result=report)
        return pool

    def _serve(self, pool: EnginePool) -> None:
        while (request := self._requests.get()) is not None:
            if not request.future.set_running_or_notify_cancel():
                continue  # given up before it began, so it must not happen either
            try:
                result = request.function(pool)
            except Exception as error:
                _answer(request.future, error=error)
            except BaseException as error:
                _answer(request.future, error=error)
                raise
            else:
                _answer(request.future, result=result)

    def _end(self) -> None:
        with self._lock:
            self._accepts = False
        while True:
            try:
                request = self._requests.get_nowait()
            except queue.Empty:
                break
            if request is not None and request.future.set_running_or_notify_cancel():
                _answer(request.future, error=self._stopped())
        self._ended.set_result(None)


def _answer(future: "Future[Any]", *, result: Any = None, error: BaseException | None = None) -> None:
    """Fulfils ``future``; what kills the thread reaches its waiter as an ordinary error."""
    if error is None:
        future.set_result(result)
    elif isinstance(error, Exception):
        future.set_exception(error)
    else:
        stopped = WorkerStoppedError(f"the worker's thread died: {error!r}")
        stopped.__cause__ = error
        future.set_exception(stopped)


async def _in_side_thread(function: Callable[[], _T]) -> _T:
    """``function`` in a thread that cannot keep the process alive; when cancelled, its result is dropped."""
    future: Future[_T] = Future()

    def run() -> None:
        if not future.set_running_or_notify_cancel():
            return
        try:
            result = function()
        except BaseException as error:
            _answer(future, error=error)
        else:
            _answer(future, result=result)

    threading.Thread(target=run, name="usp-prepare", daemon=True).start()
    return await asyncio.shield(asyncio.wrap_future(future))
