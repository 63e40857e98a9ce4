"""From inbox to pending answers, for all partitions of a replica together.

    inboxes --collect--> decode --ticks--> step --results--> encode --> pending answers
                       codec thread  queue  worker   queue  codec thread

Partitions share the steps, because small batches leave most lanes of a tile empty; each keeps its own order. Requests
for a partition's states travel through the same queue as its ticks, so what they find is the state exactly after all
ticks before them.
"""

import asyncio
import concurrent.futures
import dataclasses
import time
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Protocol

from usp_daemon.telemetry import PartitionState
from usp_daemon.wire import RawBatch, TickBatch, TickDecoder, TopicPartition

from ._epochs import ProgramEpoch
from ._observer import Observer
from ._partition import OwnedPartition
from ._results import Answer, StepResult, encode_step
from ._stepping import Predictor, StateKeys, joined
from ._tap import LiveStep, Tap


class StatefulPredictor(Predictor, Protocol):
    """The part of the worker that the service uses."""

    async def export_states(self, topic: str, partition: int, parameters: Any = None) -> Any:
        """The partition's states, with ``symbols`` and ``arrays``, in the structure of ``parameters``."""
        ...

    async def import_states(self, topic: str, partition: int, states: Any, parameters: Any = None) -> None:
        """The reverse, into a partition that holds none; the states have the structure of ``parameters``."""
        ...

    async def release(self, topic: str, partition: int) -> int:
        """Forget the partition's states."""
        ...

    async def limit_partitions(self, num_partitions: int) -> None:
        """Give every partition an equal share of the room for symbols, so that whether one is admitted does not depend
        on what else this replica holds.
        """
        ...


@dataclasses.dataclass(frozen=True, slots=True)
class _Item:
    owner: OwnedPartition
    raw: RawBatch
    silent: bool
    epoch: ProgramEpoch


@dataclasses.dataclass(frozen=True, slots=True)
class _Decoded:
    items: Sequence[_Item]
    batches: Sequence[TickBatch]


@dataclasses.dataclass(frozen=True, slots=True)
class _Stepped:
    items: Sequence[_Item]
    batches: Sequence[TickBatch]
    result: StepResult | None


@dataclasses.dataclass(frozen=True, slots=True)
class _Export:
    owner: OwnedPartition
    future: "asyncio.Future[Exported]"
    then_fn: "Callable[[Exported], None]"


@dataclasses.dataclass(frozen=True, slots=True)
class Exported:
    """A partition's states, the offset they stand at, and the epoch of the last record below it."""

    offset: int
    states: Any
    epoch: ProgramEpoch


class Stages:
    """Runs the stages until cancelled; one stage's failure ends all of them.

    ``max_batch`` bounds the records of one step, ``max_pending`` the answers of one partition that wait for their
    commit before it is stepped no further. ``current_fn`` says which epoch live records are answered under;
    ``taken_fn`` is called after records left a partition's inbox, ``tap`` after every live step.
    """

    def __init__(
        self,
        *,
        predictor: StatefulPredictor,
        decoder: TickDecoder,
        current_fn: Callable[[], ProgramEpoch],
        key_fn: Callable[[str, int, str], Hashable],
        observer: Observer,
        max_batch: int,
        max_pending: int,
        taken_fn: Callable[[OwnedPartition], None],
        executor: concurrent.futures.Executor | None = None,
        depth: int = 2,
        tap: Tap | None = None,
    ) -> None:
        self._predictor = predictor
        self._decoder = decoder
        self._current_fn = current_fn
        self._keys = StateKeys(key_fn, self._look_for_conflict)
        self._observer = observer
        self._max_batch = max_batch
        self._max_pending = max_pending
        self._taken_fn = taken_fn
        self._executor = executor
        self._tap = tap
        self._partitions: list[OwnedPartition] = []
        self._next = 0
        self._work = asyncio.Event()
        self._ticks: asyncio.Queue[_Decoded | _Export] = asyncio.Queue(depth)
        self._results: asyncio.Queue[_Stepped] = asyncio.Queue(depth)
        self._home: dict[str, TopicPartition] = {}
        self.stepping_since: float | None = None

    def num_symbols(self, partition: TopicPartition) -> int:
        """Symbols seen in a partition."""
        return self._keys.num_symbols(partition)

    def symbols(self, partition: TopicPartition) -> dict[str, Hashable]:
        """The symbols seen in a partition, with the keys of their states."""
        return self._keys.known(partition)

    def add(self, owner: OwnedPartition) -> None:
        """Step this partition's records from now on."""
        self._partitions.append(owner)
        self.notify()

    def remove(self, owner: OwnedPartition) -> None:
        """Take no more of this partition's records; those under way still come out."""
        if owner in self._partitions:
            self._partitions.remove(owner)
        for symbol in self._keys.forget(owner.partition):
            if self._home.get(symbol) == owner.partition:
                del self._home[symbol]
        if self._tap is not None:
            self._tap.removed(owner.partition)

    def notify(self) -> None:
        """There may be something to do: records came, answers were committed, a partition changed its state."""
        self._work.set()

    async def export(
        self, owner: OwnedPartition, then_fn: Callable[[Exported], None] = lambda exported: None
    ) -> Exported:
        """The partition's states after all of its ticks that are ahead in the queue.

        ``then_fn`` is called before anything further is stepped; it must neither wait nor raise.
        """
        future: asyncio.Future[Exported] = asyncio.get_running_loop().create_future()
        await self._ticks.put(_Export(owner, future, then_fn))
        return await future

    async def run(self) -> None:
        """Turn until cancelled."""
        own = None
        if self._executor is None:
            # One thread for decoding and one for encoding: the interpreter lock lets no more of them work anyway.
            own = self._executor = concurrent.futures.ThreadPoolExecutor(2, thread_name_prefix="usp-codec")
        try:
            async with asyncio.TaskGroup() as stages:
                stages.create_task(self._decode(), name="stages.decode")
                stages.create_task(self._step(), name="stages.step")
                stages.create_task(self._encode(), name="stages.encode")
        finally:
            if own is not None:
                own.shutdown(wait=False, cancel_futures=True)

    # Decode

    async def _decode(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            items = self._collect()
            if not items:
                self._work.clear()
                await self._work.wait()
                continue
            started = time.perf_counter()
            batches = await loop.run_in_executor(self._executor, self._decode_all, items)
            self._observer.stage("decode", time.perf_counter() - started, sum(len(item.raw) for item in items))
            await self._ticks.put(_Decoded(items, batches))

    def _collect(self) -> list[_Item]:
        """Records from all partitions that may be stepped, an equal share of each first."""
        ready = [owner for owner in self._partitions if self._may_step(owner)]
        if not ready:
            return []
        # Who is first changes, so that a full batch does not always leave out the same ones.
        self._next = (self._next + 1) % len(ready)
        ready = ready[self._next :] + ready[: self._next]
        room = self._max_batch
        items: list[_Item] = []
        for share in (max(1, room // len(ready)), room):
            for owner in ready:
                left = share
                while room > 0 and left > 0 and (taken := owner.take(min(left, room), self._current_fn)) is not None:
                    items.append(_Item(owner, taken.raw, taken.silent, taken.epoch))
                    room -= len(taken.raw)
                    left -= len(taken.raw)
                    owner.num_in_stages += 1
                    owner.idle.clear()
        for owner in ready:
            self._taken_fn(owner)
        return items

    def _may_step(self, owner: OwnedPartition) -> bool:
        return owner.receives and bool(owner.inbox) and owner.num_pending < self._max_pending

    def _decode_all(self, items: Sequence[_Item]) -> list[TickBatch]:
        return [self._decoder.decode(item.raw) for item in items]

    # Step

    async def _step(self) -> None:
        while True:
            work = await self._ticks.get()
            if isinstance(work, _Export):
                await self._export(work)
                continue
            for items, batches in _in_groups(work):
                self.stepping_since = time.monotonic()
                self._observer.stepping(True)
                started = time.perf_counter()
                ticks, result = joined(self._keys, batches), None
                if ticks is not None:
                    result = await self._predictor.step(*ticks, parameters=items[0].epoch.parameters)
                self.stepping_since = None
                self._observer.stepping(False)
                self._observer.stage("step", time.perf_counter() - started, sum(len(batch) for batch in batches))
                for item in items:
                    item.owner.stepped_in_engine = item.raw.offsets[-1] + 1
                    item.owner.epoch = item.epoch
                if self._tap is not None and ticks is not None and result is not None and not items[0].silent:
                    symbols = [symbol for batch in batches for symbol in batch.symbols]
                    self._tap.stepped(LiveStep(symbols, *ticks, result, items[0].epoch))
                await self._results.put(_Stepped(items, batches, result))

    async def _export(self, request: _Export) -> None:
        epoch = request.owner.epoch
        try:
            # In the structure of the epoch that has begun, even if no tick has been stepped under it yet.
            assert epoch is not None, "a partition is stepped under an epoch from its restore on"
            states = await self._predictor.export_states(*request.owner.partition, epoch.parameters)
        except Exception as error:
            if not request.future.done():
                request.future.set_exception(error)
            raise
        if not request.future.done():
            exported = Exported(request.owner.stepped_in_engine, states, epoch)
            request.then_fn(exported)
            request.future.set_result(exported)

    def _look_for_conflict(self, partition: TopicPartition, symbol: str) -> None:
        home = self._home.setdefault(symbol, partition)
        if home != partition:
            self._observer.symbol_conflict(symbol, home, partition)

    # Encode

    async def _encode(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            stepped = await self._results.get()
            answers: Sequence[Answer | None]
            if stepped.items[0].silent:
                answers = [None] * len(stepped.items)
            else:
                started = time.perf_counter()
                answers = await loop.run_in_executor(
                    self._executor, encode_step, stepped.batches, stepped.result, stepped.items[0].epoch.encoder
                )
                self._observer.stage("encode", time.perf_counter() - started, sum(map(len, stepped.batches)))
            for item, answer in zip(stepped.items, answers, strict=True):
                self._deliver(item, answer, loop.time())

    def _deliver(self, item: _Item, answer: Answer | None, now: float) -> None:
        owner = item.owner
        if owner.state in (PartitionState.REPLAYING, PartitionState.RUNNING, PartitionState.REVOKING):
            if answer is None:
                left = max(owner.silent_below - item.raw.offsets[-1] - 1, 0)
                self._observer.replayed(owner.partition, len(item.raw), left)
                owner.wake.set()
            else:
                owner.deliver(answer, now)
        owner.moved.set()
        owner.num_in_stages -= 1
        if owner.num_in_stages == 0:
            owner.idle.set()
            owner.wake.set()


def _in_groups(work: _Decoded) -> list[tuple[Sequence[_Item], Sequence[TickBatch]]]:
    """What may be stepped together: records under one epoch, all silent or all live.

    In a partition silent records come before live ones, and epochs ascend, so the groups go in that order.
    """
    groups: dict[tuple[bool, int, str], tuple[list[_Item], list[TickBatch]]] = {}
    for item, batch in zip(work.items, work.batches, strict=True):
        items, batches = groups.setdefault((not item.silent, item.epoch.number, item.epoch.config_hash), ([], []))
        items.append(item)
        batches.append(batch)
    return [groups[key] for key in sorted(groups)]
