"""Which text of the configuration led to which epoch, for ``usp-daemon rollback --to EPOCH``."""

import asyncio
import collections
from collections.abc import Callable

from usp_daemon.config import ConfigError, ConfigMutationError, LoadedConfig
from usp_daemon.telemetry import get_logger

from ._epochs import ProgramEpoch

_log = get_logger(__name__)

# Epochs come minutes apart; what waits here does so behind the lock of the configuration.
_MAX_WAITING = 64


class EpochMarks:
    """Has an epoch marked as soon as it is in force and this replica's own configuration is the one that makes it.

    An epoch that another replica has proposed is in force here before the same text has come here, and the other way
    round, so that both are kept until they agree. ``mark_fn`` blocks, on a lock and the disk, and is called in a
    thread; what it cannot do is said, and keeps nobody from work.
    """

    def __init__(self, mark_fn: Callable[[int, LoadedConfig], None]) -> None:
        self._mark_fn = mark_fn
        self._epoch: ProgramEpoch | None = None
        self._loaded: LoadedConfig | None = None
        self._waiting: collections.deque[tuple[int, LoadedConfig]] = collections.deque(maxlen=_MAX_WAITING)
        self._last: tuple[int, str, bytes | None] | None = None
        self._is_due = asyncio.Event()

    def adopted(self, epoch: ProgramEpoch) -> None:
        """``epoch`` is in force."""
        self._epoch = epoch
        self._compare()

    def accepted(self, loaded: LoadedConfig) -> None:
        """``loaded`` is what this replica's file, overlay and environment say, and was not refused."""
        self._loaded = loaded
        self._compare()

    async def run(self) -> None:
        """Mark, one after the other, until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            await self._is_due.wait()
            self._is_due.clear()
            while self._waiting:
                number, loaded = self._waiting.popleft()
                try:
                    await loop.run_in_executor(None, self._mark_fn, number, loaded)
                except (ConfigError, ConfigMutationError, OSError) as error:
                    _log.warning("epoch_not_marked", epoch=number, error=str(error))

    def _compare(self) -> None:
        epoch, loaded = self._epoch, self._loaded
        if epoch is None or loaded is None or loaded.settings.predictor_hash() != epoch.config_hash:
            return
        mark = (epoch.number, loaded.file_hash, loaded.overlay_content)
        if mark != self._last:
            self._last = mark
            self._waiting.append((epoch.number, loaded))
            self._is_due.set()
