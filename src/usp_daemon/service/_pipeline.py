"""The pipeline: poll, decode, step, encode, publish; four tasks with bounded queues between them.

    source --raw--> decode --ticks--> step --results--> publish --> sink
      |     queue     |      queue     |      queue        |
    its thread   codec thread    worker's thread      codec thread

Order is kept: each stage is one task and each queue is first in, first out. A full queue holds its producer back,
back to the source. Nothing that computes runs on the event loop.
"""

import asyncio
import collections
import concurrent.futures
import dataclasses
import time
from collections.abc import AsyncIterator, Callable, Hashable, Sequence

from usp_daemon.wire import (
    AbstractSink,
    AbstractSource,
    OutputBatch,
    RawBatch,
    ResultEncoder,
    TickBatch,
    TickDecoder,
)

from ._pacing import AbstractPacer
from ._results import Answer, StepResult, encode_step, merge
from ._stepping import Predictor, StateKeys, step_together


@dataclasses.dataclass
class PipelineStats:
    """Counts since the start; once all is drained ``records`` equals ``predictions`` plus ``dead_letters``."""

    records: int = 0
    predictions: int = 0
    rejected: int = 0
    alarms: int = 0
    dead_letters: int = 0
    dead_letters_by_reason: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    symbols: set[str] = dataclasses.field(default_factory=set)
    stepping_s: float = 0.0


@dataclasses.dataclass(frozen=True, slots=True)
class _Stepped:
    batches: Sequence[TickBatch]
    result: StepResult | None


class _End:
    """Follows the last item through the queues."""


_END = _End()


class Pipeline:
    """Runs records from ``source`` through ``predictor`` to ``sink`` until the source ends or :meth:`stop` is called.

    ``key_fn(topic, partition, symbol)`` makes the key of a symbol's state. ``max_batch`` bounds the ticks of one step;
    ``queue_batches`` the batches between two stages. ``refine_fn`` sees every decoded batch, ``pacer`` holds ticks
    back; both are for replay. ``answered_fn`` is told, on the event loop, what was published. Source and sink are
    opened and closed by the caller.
    """

    def __init__(
        self,
        *,
        source: AbstractSource,
        sink: AbstractSink,
        predictor: Predictor,
        decoder: TickDecoder,
        encoder: ResultEncoder,
        key_fn: Callable[[str, int, str], Hashable],
        max_batch: int = 4096,
        queue_batches: int = 4,
        refine_fn: Callable[[TickBatch], TickBatch] | None = None,
        pacer: AbstractPacer | None = None,
        answered_fn: Callable[[Sequence[Answer]], None] | None = None,
    ) -> None:
        self.stats = PipelineStats()
        self._source = source
        self._sink = sink
        self._predictor = predictor
        self._decoder = decoder
        self._encoder = encoder
        self._keys = StateKeys(key_fn)
        self._max_batch = max_batch
        self._refine_fn = refine_fn
        self._pacer = pacer
        self._answered_fn = answered_fn
        self._raw: asyncio.Queue[RawBatch | _End] = asyncio.Queue(queue_batches)
        self._ticks: asyncio.Queue[TickBatch | _End] = asyncio.Queue(queue_batches)
        self._results: asyncio.Queue[_Stepped | _End] = asyncio.Queue(queue_batches)

    def stop(self) -> None:
        """End the intake; what has been taken in is still answered, except ticks that a pacer holds back."""
        self._source.stop()
        if self._pacer is not None:
            self._pacer.stop()

    async def run(self) -> PipelineStats:
        """Run to the end and return the counts. One stage's failure ends all, as an exception group."""
        # One thread for decoding and one for encoding: the interpreter lock lets no more of them work anyway.
        with concurrent.futures.ThreadPoolExecutor(2, thread_name_prefix="usp-codec") as codec:
            async with asyncio.TaskGroup() as stages:
                stages.create_task(self._read(), name="pipeline.read")
                stages.create_task(self._decode(codec), name="pipeline.decode")
                stages.create_task(self._step(), name="pipeline.step")
                stages.create_task(self._publish(codec), name="pipeline.publish")
        return self.stats

    async def _read(self) -> None:
        async for batch in self._source.batches():
            self.stats.records += len(batch)
            await self._raw.put(batch)
        await self._raw.put(_END)

    async def _decode(self, codec: concurrent.futures.Executor) -> None:
        loop = asyncio.get_running_loop()
        while not isinstance(raw := await self._raw.get(), _End):
            batch = await loop.run_in_executor(codec, self._decode_one, raw)
            async for part in self._paced(batch):
                await self._ticks.put(part)
        await self._ticks.put(_END)

    def _decode_one(self, raw: RawBatch) -> TickBatch:
        batch = self._decoder.decode(raw)
        return batch if self._refine_fn is None else self._refine_fn(batch)

    async def _paced(self, batch: TickBatch) -> AsyncIterator[TickBatch]:
        if self._pacer is None:
            yield batch
            return
        released = 0
        async for part in self._pacer.release(batch):
            released += len(part) + len(part.dead_letters)
            yield part
        # Ticks that a stopped pacer kept were never taken in as far as anybody can see.
        self.stats.records -= len(batch) + len(batch.dead_letters) - released

    async def _step(self) -> None:
        ended = False
        while not ended:
            first = await self._ticks.get()
            if isinstance(first, _End):
                break
            batches = [first]
            num_ticks = len(first)
            # Whatever is waiting is stepped together: small batches leave most lanes of a tile empty.
            while num_ticks < self._max_batch and not self._ticks.empty():
                following = self._ticks.get_nowait()
                if isinstance(following, _End):
                    ended = True
                    break
                batches.append(following)
                num_ticks += len(following)
            started = time.perf_counter()
            result = await step_together(self._predictor, self._keys, batches)
            self.stats.stepping_s += time.perf_counter() - started
            await self._results.put(_Stepped(batches, result))
        await self._results.put(_END)

    async def _publish(self, codec: concurrent.futures.Executor) -> None:
        loop = asyncio.get_running_loop()
        while not isinstance(stepped := await self._results.get(), _End):
            answers, output = await loop.run_in_executor(codec, self._encode, stepped)
            await self._sink.publish(output)
            stats = self.stats
            stats.predictions += len(output.predictions)
            stats.rejected += output.num_rejected
            stats.alarms += len(output.alarms)
            stats.dead_letters += len(output.dead_letters)
            if self._answered_fn is not None:
                self._answered_fn(answers)
            for answer in answers:
                stats.dead_letters_by_reason.update(answer.reasons)
                stats.symbols.update(key.decode() for key in set(answer.output.predictions.keys) if key is not None)

    def _encode(self, stepped: _Stepped) -> tuple[list[Answer], OutputBatch]:
        """Everything there is to say about some batches, as bytes. Runs in the codec's thread."""
        answers = encode_step(stepped.batches, stepped.result, self._encoder)
        return answers, merge([answer.output for answer in answers])
