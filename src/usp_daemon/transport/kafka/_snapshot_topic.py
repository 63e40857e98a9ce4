"""Snapshots in a compacted topic, so that any replica can take a partition over without a shared volume.

A snapshot is cut into chunks and written in one transaction, the manifest last:

    begin | chunks 0..n-1 | tombstones of what is given up | manifest | commit
    ------------------------------------------------------------------|-----------------
      a crash here leaves the former ones, whole; the next owner's    |  a crash here
      start aborts the rest, and neither readers nor compaction see it|  leaves the new one

The keys name one of ``io.snapshot_keep`` slots, which are used in turn: compaction then keeps the last snapshots and
nothing else. Snapshots of input partition n are in partition n of the topic.
"""

import asyncio
import contextlib
import dataclasses
import secrets
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from typing import Any, TypeVar

import msgspec
from aiokafka import errors as kafka_errors

from usp_daemon.config import Kafka
from usp_daemon.persistence import (
    AbstractSnapshotStore,
    Compression,
    DamagedSnapshotError,
    Encoding,
    PartitionNotHeldError,
    PersistenceError,
    Snapshot,
    SnapshotContentError,
    SnapshotEvent,
    SnapshotEventKind,
    SnapshotInfo,
    SnapshotStoreError,
    SnapshotVersionError,
    SnapshotWriteError,
    decode_snapshot,
    log_event,
)
from usp_daemon.wire import TransportError

from ._errors import FENCED_ERRORS, REFUSED_ERRORS, cause_of, permanent
from ._prepared import prepared
from ._producer import PartitionProducer
from ._shutdown import FORCED_S
from ._snapshot_reader import SnapshotReader
from ._snapshot_records import (
    FRAME_BYTES,
    MANIFEST_VERSION,
    Claim,
    Entry,
    Keys,
    Manifest,
    PartitionIndex,
    chunk_header,
    cut,
)

_T = TypeVar("_T")

CLOSE_TIMEOUT_S = 3.0
# Chunks on their way at a time: one is sent while the next is made.
IN_FLIGHT = 2

# In the order in which a save passes them.
TOPIC_CRASH_POINTS = (
    "snapshot.begun",
    "snapshot.half_written",
    "snapshot.before_manifest",
    "snapshot.before_commit",
    "snapshot.after",
)


class TopicSnapshotStore(AbstractSnapshotStore):
    """Keeps the last ``keep`` snapshots of each partition of ``kafka.group`` in the topic ``topic``.

    :meth:`acquire` and :meth:`release` are no locks. Who owns a partition the consumer group decides; acquiring opens a
    transactional producer of the partition's own, ``{group}-{topic}-{partition}-snapshots``, and writes a claim with
    it. That fences every former owner: its save that comes late fails with :class:`PartitionNotHeldError`, and nothing
    of it is seen by readers or by compaction. :class:`PartitionLockedError` is never raised.

    A replica that was merely cut off must not fence its heir when it comes back. So a producer that was lost is opened
    anew only while the claim in the log is still this store's, and one that was fenced without a new claim is taken
    back. After a new claim only :meth:`acquire` helps.

    ``instance`` is the name that the claim shows. ``observe_fn`` gets every event, in the event loop; it must neither
    raise nor wait. ``start_timeout_s`` is what :meth:`open` may take to reach a broker, ``close_timeout_s`` what
    finishing and closing may take each before they end by force. ``crash_fn`` is for tests; it is called at every name
    in ``TOPIC_CRASH_POINTS``.
    """

    def __init__(
        self,
        kafka: Kafka,
        topic: str,
        *,
        keep: int = 5,
        compression: Compression = "none",
        instance: str = "",
        start_timeout_s: float = 60.0,
        close_timeout_s: float = CLOSE_TIMEOUT_S,
        observe_fn: Callable[[SnapshotEvent], None] = log_event,
        crash_fn: Callable[[str], None] = lambda point: None,
    ) -> None:
        if keep < 1:
            raise ValueError(f"keep: expected at least 1, got {keep}")
        # States hardly compress; what should be tried is io.snapshot_compression, once for the whole.
        self._kafka = dataclasses.replace(kafka, compression="none")
        self._topic = topic
        self._keep = keep
        self._compression: Compression = compression
        self._instance = instance
        self._start_timeout_s = start_timeout_s
        self._close_timeout_s = close_timeout_s
        self._observe = observe_fn
        self._crash = crash_fn
        self._options: dict[str, Any] | None = None
        self._partitions: dict[tuple[str, int], _Partition] = {}
        self._saves: set[asyncio.Task[Any]] = set()

    def __str__(self) -> str:
        return f"the topic {self._topic!r}"

    # -- life

    async def open(self) -> None:
        """Check the topic, or create it. Raises :class:`SnapshotStoreError` when that is not possible."""
        if self._options is not None:
            return
        try:
            self._options = await prepared(
                self._kafka,
                self._topic,
                start_timeout_s=self._start_timeout_s,
                close_timeout_s=self._close_timeout_s,
            )
        except TransportError as error:
            raise SnapshotStoreError(f"snapshots cannot be kept in topic {self._topic!r}: {error}") from error

    async def close(self) -> None:
        """Finish what was begun and close every producer, within a time even when the broker is away."""
        self._options = None
        if self._saves:
            _, late = await asyncio.wait(self._saves, timeout=self._close_timeout_s)
            for task in late:
                task.cancel()
            if late:
                await asyncio.wait(late, timeout=FORCED_S)
        partitions, self._partitions = self._partitions, {}
        await asyncio.gather(*(partition.drop(self._close_timeout_s) for partition in partitions.values()))

    # -- ownership

    async def acquire(self, topic: str, partition: int) -> None:
        """Fence every former owner and claim the partition; harmless when already so."""
        known = self._partition(topic, partition)
        async with known.busy:
            if known.claim is not None and not known.is_fenced:
                return
            await known.drop()
            known.is_fenced, known.claim = False, None
            claim = Claim(id=secrets.token_hex(16), instance=self._instance, since_ns=time.time_ns())
            try:
                producer = await self._opened(known)
                # Only now: what a former owner had begun is decided.
                await self._scan(known)
                await self._transaction(known, producer, self._claim(known, producer, claim))
            except BaseException as error:
                await known.drop()
                if (told := self._told(known, error, "it cannot be acquired now")) is None:
                    raise
                raise told from error
            known.claim = known.index.claim = claim.id

    async def release(self, topic: str, partition: int) -> None:
        """Close the partition's producer, once what was begun is finished; harmless when not held."""
        known = self._partitions.get((topic, partition))
        if known is None:
            return
        async with known.busy:
            known.claim = None
            await known.drop(self._close_timeout_s)

    # -- snapshots

    async def save(self, snapshot: Snapshot) -> SnapshotInfo:
        """Write one snapshot in the place of the oldest.

        Raises :class:`PartitionNotHeldError` when another replica has taken the partition over.
        """
        known = self._partition(snapshot.topic, snapshot.partition)
        if snapshot.group != self._kafka.group:
            raise SnapshotContentError(
                f"group: expected {self._kafka.group!r}, which this store serves, got {snapshot.group!r}"
            )
        task = asyncio.create_task(self._save(known, snapshot), name=f"snapshot of {known.keys.name}")
        self._saves.add(task)
        task.add_done_callback(self._saves.discard)
        task.add_done_callback(lambda task: task.cancelled() or task.exception())  # its caller may have gone
        return await asyncio.shield(task)

    async def list(self, topic: str, partition: int) -> tuple[SnapshotInfo, ...]:
        """What the manifests say, highest offset first."""
        known = self._partition(topic, partition)
        async with known.busy:
            await self._scan(known)
            return tuple(self._info(known, entry) for entry in known.index.newest_first())

    async def newest(self, topic: str, partition: int, not_above: int) -> Snapshot | None:
        """The newest whole one. A damaged one is reported, stays where it is, and is the next to be replaced."""
        known = self._partition(topic, partition)
        async with known.busy, self._reader(known) as reader:
            await reader.scan(known.index)
            self._report_unreadable(known)
            passed_over: set[Entry] = set()
            while True:
                left = (e for e in known.index.newest_first() if not e.damage and e not in passed_over)
                entry = next((e for e in left if _offset(e) <= not_above), None)
                if entry is None:
                    return None
                try:
                    if entry.manifest is not None and entry.manifest.version > MANIFEST_VERSION:
                        raise SnapshotVersionError("its manifest is newer than this program", entry.manifest.version)
                    data = await reader.load(known.index, entry)
                    return await asyncio.to_thread(self._decoded, known, entry, data)
                except SnapshotVersionError as error:
                    passed_over.add(entry)
                    self._report(known, SnapshotEventKind.NEWER_VERSION, entry, str(error))
                except DamagedSnapshotError as error:
                    # Its owner may have replaced it while it was read; then there is a newer one.
                    await reader.scan(known.index)
                    if known.index.entries.get(entry.slot) is entry:
                        entry.damage = str(error)
                        self._report(known, SnapshotEventKind.DAMAGED, entry, str(error))

    def _decoded(self, known: "_Partition", entry: Entry, data: bytearray) -> Snapshot:
        snapshot = decode_snapshot(data)
        found = (snapshot.group, snapshot.topic, snapshot.partition, snapshot.offset)
        if found != (self._kafka.group, known.topic, known.partition, _offset(entry)):
            raise DamagedSnapshotError(f"it belongs to group {found[0]!r}, {found[1]}/{found[2]} at offset {found[3]}")
        return snapshot

    # -- writing

    async def _save(self, known: "_Partition", snapshot: Snapshot) -> SnapshotInfo:
        async with known.busy:
            if known.claim is None or known.is_fenced:
                raise _not_held(known)
            encoding = await asyncio.to_thread(Encoding, snapshot, self._compression)
            for attempt in (1, 2):
                try:
                    producer = known.producer or await self._reopened(known)
                    plan = known.index.plan(snapshot.offset, self._keep)
                    entry = await self._transaction(
                        known, producer, self._written(known, producer, snapshot, encoding, plan.slot, plan.dropped)
                    )
                    break
                except BaseException as error:
                    is_fenced = known.was_fenced(error)
                    await known.drop()
                    if is_fenced and attempt == 1:
                        continue  # by an heir, or by somebody who has no claim: reopening finds out
                    if (told := self._told(known, error, "the snapshot could not be written")) is None:
                        raise
                    raise told from error
            known.index.entries = {
                slot: kept for slot, kept in known.index.entries.items() if kept not in plan.dropped
            } | {entry.slot: entry}
            known.index.position = max(known.index.position, entry.log_offset + 1)
            self._crash("snapshot.after")
            for beyond in plan.superseded:
                reason = (
                    f"beyond offset {snapshot.offset}, which was saved after it: the offsets were set back; removed"
                )
                self._report(known, SnapshotEventKind.SUPERSEDED, beyond, reason)
            return self._info(known, entry)

    async def _opened(self, known: "_Partition") -> PartitionProducer:
        """A producer that has the partition's transactional id for itself, and nothing of former owners in doubt."""
        name = f"{self._kafka.group}-{known.topic}-{known.partition}-snapshots"
        producer = known.producer = PartitionProducer(self._kafka, self._known_options(), name)
        async with asyncio.timeout(self._kafka.request_timeout_ms / 1e3):
            await producer.start()
        return producer

    async def _reopened(self, known: "_Partition") -> PartitionProducer:
        """The same after one was lost, unless somebody else has claimed the partition meanwhile."""
        await self._scan(known)
        self._check_claim(known)
        producer = await self._opened(known)
        # Again: an heir may have come in between. It has been fenced then, and takes that back, for it has the claim.
        await self._scan(known)
        self._check_claim(known)
        return producer

    def _check_claim(self, known: "_Partition") -> None:
        if known.index.claim != known.claim:
            known.is_fenced = True
            raise _not_held(known)

    async def _transaction(self, known: "_Partition", producer: PartitionProducer, fill: Coroutine[Any, Any, _T]) -> _T:
        """All that ``fill`` sends, or nothing. Whatever goes wrong, the caller drops the producer."""
        client = producer.client
        producer.watch.reset()
        try:
            await producer.guarded(
                client.begin_transaction(), "beginning a transaction", self._kafka.request_timeout_ms / 1e3
            )
        except BaseException:
            fill.close()
            raise
        limit_s = self._kafka.transaction_timeout_ms / 1e3
        result = await producer.guarded(fill, "writing within kafka.transaction_timeout_ms", limit_s)
        await producer.guarded(
            client.commit_transaction(), "committing the transaction", self._kafka.request_timeout_ms / 1e3
        )
        if producer.watch.failure.done():
            # As in _writers: a late copy of a request that was repeated could end a later transaction.
            await known.drop()
        return result

    async def _claim(self, known: "_Partition", producer: PartitionProducer, claim: Claim) -> None:
        await self._send(known, producer, [(known.keys.owner, msgspec.json.encode(claim), [])])

    async def _written(
        self,
        known: "_Partition",
        producer: PartitionProducer,
        snapshot: Snapshot,
        encoding: Encoding,
        slot: int,
        dropped: Sequence[Entry],
    ) -> Entry:
        """Send chunks, tombstones and manifest; returns what the index then has of it."""
        keys, snapshot_id = known.keys, secrets.token_hex(16)
        chunk_bytes = self._kafka.max_request_bytes - FRAME_BYTES - len(keys.manifest(slot))
        # Compressed, nobody knows beforehand how many there will be.
        foreseen = -(-encoding.size_bytes // chunk_bytes) if self._compression == "none" else 0
        chunks = cut(encoding.chunks(), chunk_bytes)
        waiting: list[Awaitable[Any]] = []
        first: int | None = None
        count = size = 0
        ending = b""
        self._crash("snapshot.begun")
        while (chunk := await asyncio.to_thread(next, chunks, None)) is not None:
            header = chunk_header(snapshot_id, max(0, foreseen - count - 1))
            batch = await asyncio.to_thread(self._batch, producer, [(keys.chunk(slot, count), chunk, header)])
            waiting.append(await producer.begin(batch, self._topic, known.partition))
            count, size, ending = count + 1, size + len(chunk), (ending + chunk)[-32:]
            while len(waiting) >= IN_FLIGHT:
                sent = await waiting.pop(0)
                first = sent.offset if first is None else first
            if count == max(1, foreseen // 2):
                self._crash("snapshot.half_written")
        for future in waiting:
            sent = await future
            first = sent.offset if first is None else first
        await self._send(known, producer, _tombstones(keys, slot, count, dropped))
        self._crash("snapshot.before_manifest")
        assert first is not None
        manifest = Manifest(
            id=snapshot_id,
            offset=snapshot.offset,
            created_ns=snapshot.created_ns,
            num_chunks=count,
            chunk_bytes=chunk_bytes,
            size_bytes=size,
            first=first,
            sha256=ending.hex(),
        )
        last = await self._send(known, producer, [(keys.manifest(slot), msgspec.json.encode(manifest), [])])
        self._crash("snapshot.before_commit")
        return Entry(slot, last, manifest)

    async def _send(self, known: "_Partition", producer: PartitionProducer, records: Sequence["_Record"]) -> int:
        """Send records and wait for them; returns the log offset of the last batch's first, -1 without any."""
        offset = -1
        first = 0
        while first < len(records):
            batch = await asyncio.to_thread(self._batch, producer, records[first:])
            first += batch.record_count()
            sent = await producer.begin(batch, self._topic, known.partition)
            offset = (await sent).offset
        return offset

    def _batch(self, producer: PartitionProducer, records: Sequence["_Record"]) -> Any:
        """A batch of as many of the records as fit into a request, at least one."""
        batch = producer.client.create_batch()
        for key, value, headers in records:
            if batch.append(timestamp=None, key=key, value=value, headers=headers) is None:
                break
        batch.close()
        return batch

    # -- reading

    def _reader(self, known: "_Partition") -> SnapshotReader:
        return SnapshotReader(
            self._kafka, self._known_options(), self._topic, known.partition, close_timeout_s=self._close_timeout_s
        )

    async def _scan(self, known: "_Partition") -> None:
        async with self._reader(known) as reader:
            await reader.scan(known.index)
        self._report_unreadable(known)

    def _report_unreadable(self, known: "_Partition") -> None:
        for entry in known.index.entries.values():
            if entry.manifest is None and entry.log_offset not in known.reported:
                known.reported.add(entry.log_offset)
                self._report(known, SnapshotEventKind.DAMAGED, entry, entry.damage)

    # -- telling

    def _known_options(self) -> dict[str, Any]:
        if self._options is None:
            raise SnapshotStoreError("the snapshot store is not open")
        return self._options

    def _partition(self, topic: str, partition: int) -> "_Partition":
        self._known_options()
        known = self._partitions.get((topic, partition))
        if known is None:
            known = self._partitions[topic, partition] = _Partition(self._kafka.group, topic, partition)
        return known

    def _told(self, known: "_Partition", error: BaseException, what: str) -> SnapshotWriteError | None:
        """``error`` as this store's callers know it; None where it is so already, or is a defect."""
        if isinstance(error, PersistenceError):
            return None
        cause = cause_of(error)
        if isinstance(cause, REFUSED_ERRORS):
            reason = (
                f"the topic refuses a chunk ({type(cause).__name__}): raise its max.message.bytes, or lower "
                "kafka.max_request_bytes"
            )
        elif isinstance(cause, FENCED_ERRORS):
            reason = (
                f"it took longer than kafka.transaction_timeout_ms = {self._kafka.transaction_timeout_ms}, or somebody "
                f"uses the same transactional id without a claim: {cause!r}"
            )
        elif isinstance(cause, kafka_errors.KafkaError | TransportError | OSError | TimeoutError):
            reason = str(permanent(cause, self._kafka) or repr(cause))
        else:
            return None
        return SnapshotWriteError(f"{self._topic}, {known.keys.name}: {what}: {reason}; the former ones are untouched")

    def _info(self, known: "_Partition", entry: Entry) -> SnapshotInfo:
        assert entry.manifest is not None
        return SnapshotInfo(
            name=f"{known.keys.name}/{entry.slot}",
            topic=known.topic,
            partition=known.partition,
            offset=entry.manifest.offset,
            size_bytes=entry.manifest.size_bytes,
            created_ns=entry.manifest.created_ns,
            locator=self._locator(known, entry),
        )

    def _locator(self, known: "_Partition", entry: Entry) -> str:
        return f"{self._topic}/{known.partition}/{entry.log_offset}"

    def _report(self, known: "_Partition", kind: SnapshotEventKind, entry: Entry, reason: str) -> None:
        self._observe(
            SnapshotEvent(
                kind=kind,
                topic=known.topic,
                partition=known.partition,
                locator=self._locator(known, entry),
                reason=reason,
                offset=None if entry.manifest is None else entry.manifest.offset,
            )
        )


_Record = tuple[bytes, bytes | None, list[tuple[str, bytes]]]


class _Partition:
    """What this store knows and holds of one input partition. ``claim`` is None while it is not acquired."""

    def __init__(self, group: str, topic: str, partition: int) -> None:
        self.topic = topic
        self.partition = partition
        self.keys = Keys(group, topic, partition)
        self.index = PartitionIndex(self.keys)
        self.busy = asyncio.Lock()
        self.producer: PartitionProducer | None = None
        self.claim: str | None = None
        self.is_fenced = False
        self.reported: set[int] = set()

    def was_fenced(self, error: BaseException) -> bool:
        """Whether ``error`` says that another producer has the transactional id now."""
        return isinstance(cause_of(error), FENCED_ERRORS) or (self.producer is not None and self.producer.watch.fenced)

    async def drop(self, timeout_s: float = 0.0) -> None:
        """Close the producer; at once unless it is given time to end in order."""
        producer, self.producer = self.producer, None
        if producer is not None:
            with contextlib.suppress(kafka_errors.KafkaError):
                await producer.close(timeout_s)


def _tombstones(keys: Keys, slot: int, num_chunks: int, dropped: Sequence[Entry]) -> list[_Record]:
    """For every key of ``dropped`` that the new snapshot, of ``num_chunks`` in ``slot``, does not use itself."""

    def gone() -> Iterator[bytes]:
        for entry in dropped:
            is_replaced = entry.slot == slot
            if not is_replaced:
                yield keys.manifest(entry.slot)
            if entry.manifest is not None:
                for chunk in range(num_chunks if is_replaced else 0, entry.manifest.num_chunks):
                    yield keys.chunk(entry.slot, chunk)

    return [(key, None, []) for key in gone()]


def _offset(entry: Entry) -> int:
    return -1 if entry.manifest is None else entry.manifest.offset


def _not_held(known: _Partition) -> PartitionNotHeldError:
    if known.is_fenced:
        return PartitionNotHeldError(f"{known.keys.name}: another replica has taken it over and saves its snapshots")
    return PartitionNotHeldError(f"{known.keys.name} must be acquired before its snapshots are saved")
