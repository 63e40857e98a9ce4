"""The interface between the pipeline and whatever carries records: files, memory or a message broker."""

import abc
import types
from collections.abc import AsyncIterator
from typing import Self

from ._batches import OutputBatch, RawBatch


class AbstractTransportEnd(abc.ABC):
    """Something that is opened before use and closed after it, once each; ``async with`` does both."""

    @abc.abstractmethod
    async def open(self) -> None:
        """Acquire what is needed. Raises :class:`TransportError` when that cannot be had."""

    @abc.abstractmethod
    async def close(self) -> None:
        """Give everything back and make what was published durable; harmless when repeated."""

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: types.TracebackType | None,
    ) -> None:
        await self.close()


class AbstractSource(AbstractTransportEnd):
    """Where records come from."""

    @abc.abstractmethod
    def batches(self) -> AsyncIterator[RawBatch]:
        """Batches in order, none of them empty, until the input ends or :meth:`stop` was called.

        Every record is handed out exactly once, an unreadable one as a fault; reading never blocks the event loop.
        """

    @abc.abstractmethod
    def stop(self) -> None:
        """End :meth:`batches` after the batch in hand. May be called at any time, also before and after iteration."""


class AbstractSink(AbstractTransportEnd):
    """Where results go."""

    @abc.abstractmethod
    async def publish(self, batch: OutputBatch) -> None:
        """Write one batch, in order; it returns once the batch is accepted, which may be before it is durable."""


class TransportError(Exception):
    """A source or a sink cannot do its work; the text says which one, what was expected and what to do."""
