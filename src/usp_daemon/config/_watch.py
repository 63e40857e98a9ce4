"""Tells when the content of the configuration changes, by the system's notifications and by looking now and then.

One thread does everything that may block: waiting, reading, hashing, parsing. What it finds goes to the event loop.

    noticed:   a notification in one of the directories, or poll_interval_s without one
    compared:  the bytes of every file with those reported last; a mere touch is no change, older bytes put back are one
    settled:   the bytes stand still for settle_s
    doubted:   what cannot be read or is not accepted, and what looks cut off, is looked at again until patience_s is
               over, since editors and copies write in several steps
    reported:  as loaded configuration or as the error that it is

The *directories* are watched, not the files: editors put a new file in place of the old one, Kubernetes turns a
symbolic link over. Notifications do not reach over network and overlay file systems, and a queue may overflow; hence
the poll.
"""

import asyncio
import contextlib
import dataclasses
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from ._load import ConfigError, read_content
from ._source import ConfigSource, LoadedConfig

_STEP_MS = 50  # how often the waiting thread looks whether it shall end
_RETRY_S = 30.0  # until notifications are asked for again where there were none


@dataclasses.dataclass(frozen=True, slots=True)
class ConfigEvent:
    """The content has changed: ``loaded`` is the configuration as it is now, or ``error`` what is wrong with it."""

    loaded: LoadedConfig | None
    error: ConfigError | None


class Notifier(Protocol):
    """What is needed of ``watchfiles``' interface to the operating system."""

    def watch(self, debounce_ms: int, step_ms: int, timeout_ms: int, stop_event: threading.Event) -> object:
        """Waits for a change and returns a set, or "timeout", "stop" or "signal"."""

    def close(self) -> None:
        """Ends the watching."""


def notify_about(directories: list[str]) -> Notifier:
    """Notifications about what happens directly in ``directories``. Raises ``OSError`` and ``RuntimeError``."""
    # imported late: most commands read a configuration once and watch nothing
    from watchfiles._rust_notify import RustNotify

    return RustNotify(directories, False, False, 0, False, True)  # type: ignore[return-value]


class ConfigWatcher:
    """``async with ConfigWatcher(...) as watcher: async for event in watcher``: an event for each change of content.

    What the files are when the context is entered is the first known content, unless ``known`` is a configuration that
    was loaded before: then a change since is reported. It never raises for a file that is missing or wrong. Leaving the
    context, also by cancellation, ends the thread before it returns.

    ``settle_s`` and ``patience_s`` are as above; ``notify_fn`` is for tests.
    """

    def __init__(
        self,
        source: ConfigSource,
        *,
        poll_interval_s: float,
        known: LoadedConfig | None = None,
        settle_s: float = 0.1,
        patience_s: float = 1.0,
        notify_fn: Callable[[list[str]], Notifier] = notify_about,
    ) -> None:
        self._source = source
        self._poll_interval_s = poll_interval_s
        self._settle_s = settle_s
        self._patience_s = patience_s
        self._notify_fn = notify_fn
        self._known = None if known is None else _contents_of(source, known)
        self._stop = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._events: asyncio.Queue[ConfigEvent | None] = asyncio.Queue()
        self._ended = asyncio.Event()
        self._thread: threading.Thread | None = None
        self._failure: Exception | None = None

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        if self._known is None:
            self._known = _read_all(self._source)
        self._thread = threading.Thread(target=self._run, name="config-watch", daemon=True)
        self._thread.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop.set()
        thread, self._thread = self._thread, None
        if thread is not None:
            try:
                await self._ended.wait()
            finally:
                thread.join()  # a second cancellation does not leave it behind either; it ends within _STEP_MS

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> ConfigEvent:
        event = await self._events.get()
        if event is not None:
            return event
        self._events.put_nowait(None)  # for whoever asks again
        if self._failure is not None:
            raise self._failure
        raise StopAsyncIteration

    def forget(self) -> None:
        """Take nothing for known: what stands at the next look is reported, whether it has changed or not.

        For whoever has read by himself, between two looks, what the watcher may never get to see.
        """
        self._known = None

    # Everything below runs in the watcher's thread.

    def _run(self) -> None:
        try:
            for _ in self._wake_ups():
                event = self._look()
                if event is not None:
                    self._post(self._events.put_nowait, event)
        except Exception as error:  # a defect: whoever waits for events is told
            self._failure = error
        finally:
            self._post(self._events.put_nowait, None)
            self._post(self._ended.set)

    def _post(self, function: Callable[..., object], *arguments: object) -> None:
        assert self._loop is not None
        with contextlib.suppress(RuntimeError):  # the loop was closed over our heads
            self._loop.call_soon_threadsafe(function, *arguments)

    def _wake_ups(self) -> Iterator[None]:
        """Once at the start, whenever the system tells of a change, and after ``poll_interval_s`` without one."""
        while not self._stop.is_set():
            directories = _directories_of(self._source.watched_paths)
            try:
                notifier = self._notify_fn([path for path, identity in directories.items() if identity is not None])
            except (OSError, RuntimeError):  # no directory, no more watches, no such system: only look now and then
                yield
                yield from self._polls(directories)
                continue
            try:
                yield  # what happened before the notifications began
                timeout_ms = max(1, int(self._poll_interval_s * 1e3))
                # another directory under the same name, or a link that leads elsewhere, needs other notifications
                while _directories_of(self._source.watched_paths) == directories:
                    try:
                        answer = notifier.watch(100, _STEP_MS, timeout_ms, self._stop)
                    except RuntimeError:
                        yield from self._polls(directories)
                        break
                    if answer == "stop" or self._stop.is_set():
                        return
                    yield
            finally:
                notifier.close()

    def _polls(self, directories: dict[str, tuple[int, int] | None]) -> Iterator[None]:
        until = time.monotonic() + _RETRY_S
        while time.monotonic() < until and _directories_of(self._source.watched_paths) == directories:
            if self._stop.wait(self._poll_interval_s):
                return
            yield

    def _look(self) -> ConfigEvent | None:
        """The event of a change since the last, None if there is none."""
        before = self._known
        now = _read_all(self._source)
        if now == before:
            return None
        began = still_since = time.monotonic()
        event = _judged(self._source, now)
        while True:
            doubtful = event.error is not None or _looks_cut_off(before, now)
            moment = time.monotonic()
            if moment - still_since >= (self._patience_s if doubtful else self._settle_s):
                break
            if moment - began >= 10 * self._patience_s:
                break  # it changes all the time; better a late word than none
            if self._stop.wait(min(self._settle_s, 0.1)):
                return None
            again = _read_all(self._source)
            if again != now:
                now, still_since = again, time.monotonic()
                if now == before:
                    return None
                event = _judged(self._source, now)
        self._known = now
        return event


_Contents = dict[Path, bytes | str]


def _read_all(source: ConfigSource) -> _Contents:
    """The bytes of every watched file, or why there are none."""
    contents: _Contents = {}
    for path in source.watched_paths:
        try:
            contents[path] = read_content(path)
        except ConfigError as error:
            contents[path] = str(error)
    return contents


def _contents_of(source: ConfigSource, loaded: LoadedConfig) -> _Contents:
    contents = _read_all(source)
    if source.path is not None:
        contents[source.path] = loaded.content
    if loaded.overlay_content is not None:
        contents[source.overlay_path] = loaded.overlay_content
    return contents


def _judged(source: ConfigSource, contents: _Contents) -> ConfigEvent:
    content = b"" if source.path is None else contents[source.path]
    overlay = contents.get(source.overlay_path)
    try:
        if isinstance(content, str):
            return ConfigEvent(source.load(), None)  # that it cannot be read is what this says
        return ConfigEvent(source.judge(content, overlay if isinstance(overlay, bytes) else None), None)
    except ConfigError as error:
        return ConfigEvent(None, error)


def _looks_cut_off(before: _Contents | None, now: _Contents) -> bool:
    """Whether a file that was longer now ends early. Half a TOML file is often a right one with half the keys."""
    for path, content in now.items():
        former = (before or {}).get(path)
        if isinstance(content, bytes) and (
            not content.strip() or (isinstance(former, bytes) and _begins(former, content))
        ):
            return True
    return False


def _begins(longer: bytes, shorter: bytes) -> bool:
    return len(shorter) < len(longer) and longer.startswith(shorter)


def _directories_of(paths: tuple[Path, ...]) -> dict[str, tuple[int, int] | None]:
    """The directories in which a change of these files shows, with the identity of each; None where it is not there.

    Beside the file's own these are those of every link on the way to its content, and the one above the file's own, in
    which it shows that the whole directory is put in place of another.
    """
    directories: dict[str, tuple[int, int] | None] = {}
    for path in paths:
        own = Path(os.path.abspath(path)).parent
        for directory in (own, own.parent, *_directories_of_links(path)):
            directories.setdefault(str(directory), _identity_of(directory))
    return directories


def _directories_of_links(path: Path) -> Iterator[Path]:
    current = Path(os.path.abspath(path))
    for _ in range(40):  # as many as the system follows
        try:
            target = os.readlink(current)
        except OSError:
            break
        current = Path(os.path.normpath(current.parent / target))
        yield current.parent
    with contextlib.suppress(OSError):
        yield Path(os.path.realpath(path)).parent


def _identity_of(directory: Path) -> tuple[int, int] | None:
    try:
        status = os.stat(directory)
    except OSError:
        return None
    return status.st_dev, status.st_ino
