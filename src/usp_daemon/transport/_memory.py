"""A source and a sink that live in memory: for embedding the pipeline, and for its tests."""

from collections.abc import AsyncIterator, Iterable

from usp_daemon.wire import AbstractSink, AbstractSource, OutputBatch, RawBatch


class MemorySource(AbstractSource):
    """Hands out the batches it was given."""

    def __init__(self, batches: Iterable[RawBatch]) -> None:
        self._batches = iter(batches)
        self._stopped = False

    async def open(self) -> None:
        """Nothing to acquire."""

    async def close(self) -> None:
        """Give everything back."""
        self._stopped = True

    def stop(self) -> None:
        """End the intake after the batch in hand."""
        self._stopped = True

    async def batches(self) -> AsyncIterator[RawBatch]:
        """The batches, in order."""
        for batch in self._batches:
            if self._stopped:
                return
            if len(batch):
                yield batch


class MemorySink(AbstractSink):
    """Keeps every batch it was given, in order, in ``batches``."""

    def __init__(self) -> None:
        self.batches: list[OutputBatch] = []
        self.closed = False

    async def open(self) -> None:
        """Acquire what is needed."""
        self.closed = False

    async def close(self) -> None:
        """Give everything back."""
        self.closed = True

    async def publish(self, batch: OutputBatch) -> None:
        """Write one batch, in order."""
        self.batches.append(batch)

    @property
    def predictions(self) -> list[bytes]:
        """Every prediction published so far."""
        return [record for batch in self.batches for record in batch.predictions.values]

    @property
    def alarms(self) -> list[bytes]:
        """Every alarm published so far."""
        return [record for batch in self.batches for record in batch.alarms.values]

    @property
    def dead_letters(self) -> list[bytes]:
        """Every dead letter published so far."""
        return [record for batch in self.batches for record in batch.dead_letters.values]
