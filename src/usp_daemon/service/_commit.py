"""The commit of one partition, as a numbered protocol.

What is published is always a batch [s, e): the answers to the records from offset s up to e, with e as the new
committed offset. One rule carries the guarantee: **a batch is published only by a writer that, after it was opened, has
seen s as the committed offset, or committed s itself.** Opening fences everybody who opened before, so between that
look and the commit nobody else can move the offset.

====  ============================================================  ==================================================
step  what happens                                                  what a crash after it costs
====  ============================================================  ==================================================
1     the writer is opened: earlier owners are fenced, what they    nothing: the next owner opens its own
      left open is aborted
2     the committed offset is read, and the note beside it          nothing
3     the newest snapshot at or below it is loaded                  the time to load it again
4     the input from there to the committed offset is stepped in    the time to replay it again
      silence
5     records are stepped, their answers encoded and kept           they are stepped again: same state, same bytes
6     the answers and the offset are published in one transaction   before its commit: as 5. In doubt: 1 and 2 by the
                                                                    next owner say which
7     the answers are let go                                        nothing
8     a snapshot at an offset that is committed is written beside   it is ignored; the one before stands, and more is
      the last ones                                                 replayed
====  ============================================================  ==================================================

When the outcome of 6 is unknown, the same replica goes back to 1 and 2 with the encoded bytes still in hand: the
committed offset is then e (they were published: let them go), s (they were not: publish the same bytes) or anything
else (somebody else owned the partition in between: it is lost). When it is fenced it goes back to nothing: whoever
fenced it is the owner now, and opening another writer would take the partition back from them.
"""

import asyncio
import dataclasses
import time
from collections.abc import Awaitable, Callable, Sequence

from usp_daemon.telemetry import ResetReason, TransactionOutcome, get_logger
from usp_daemon.wire import (
    AbstractGroupConsumer,
    AbstractTransport,
    CommittedOffset,
    EncodedRecords,
    FencedError,
    OutcomeUnknownError,
    OutputBatch,
    RecordTooLargeError,
    TopicPartition,
    TransportError,
    shorten_dead_letter,
)

from ._observer import Observer
from ._partition import OwnedPartition
from ._results import Answer, merge

_log = get_logger(__name__)


class Committer:
    """Publishes the pending answers of a partition; see the module's text.

    ``interval_s`` is how long answers are gathered (0 publishes at once), ``max_records`` how many at most;
    ``backoff_s`` the first pause between attempts, which doubles up to thirty times itself.
    """

    def __init__(
        self,
        *,
        transport: AbstractTransport,
        consumer: AbstractGroupConsumer,
        observer: Observer,
        interval_s: float,
        max_records: int,
        backoff_s: float,
        committed_fn: Callable[[OwnedPartition], None] = lambda owner: None,
        crash_fn: Callable[[str], None] = lambda point: None,
    ) -> None:
        self._transport = transport
        self._consumer = consumer
        self._observer = observer
        self._interval_s = interval_s
        self._max_records = max_records
        self._backoff_s = backoff_s
        self._committed_fn = committed_fn
        self._crash_fn = crash_fn

    async def take_over(self, owner: OwnedPartition) -> CommittedOffset | None:
        """Steps 1 and 2: fences earlier owners, then reads the committed offset (None when there never was one)."""

        async def attempt() -> CommittedOffset | None:
            if owner.writer is not None:
                await owner.writer.close()
            owner.writer = self._transport.writer(owner.partition)
            await owner.writer.open()
            self._crash_fn("takeover.fenced")
            return await self._consumer.committed_with_note(owner.partition)

        return await self._persist(owner, attempt)

    async def run(self, owner: OwnedPartition) -> None:
        """Steps 6 and 7, again and again, until the partition is drained or lost; raises :class:`FencedError` then."""
        loop = asyncio.get_running_loop()
        while True:
            owner.wake.clear()
            if not owner.pending:
                if owner.draining and owner.num_in_stages == 0:
                    owner.drained.set()
                    return
                await owner.wake.wait()
                continue
            assert owner.pending_since is not None
            wait_s = owner.pending_since + self._interval_s - loop.time()
            if wait_s > 0.0 and owner.num_pending < self._max_records and not owner.draining:
                try:
                    async with asyncio.timeout(wait_s):
                        await owner.wake.wait()
                except TimeoutError:
                    pass
                continue
            await self._commit(owner, owner.take_pending())

    async def _commit(self, owner: OwnedPartition, answers: Sequence[Answer]) -> None:
        batch = merge([answer.output for answer in answers])
        batch = dataclasses.replace(batch, note=owner.switches.note(below=batch.positions[owner.partition]))
        started = time.perf_counter()
        await self.publish(owner, batch)
        seconds = time.perf_counter() - started
        self._observer.stage("publish", seconds, len(batch))
        self._observer.answered(owner.partition, answers)
        self._committed_fn(owner)

    async def publish(self, owner: OwnedPartition, batch: OutputBatch) -> None:
        """Publish ``batch``, which starts at the committed offset, and see it through whatever the broker does."""
        start, end = owner.committed, batch.positions[owner.partition]
        loop = asyncio.get_running_loop()
        while True:
            assert owner.writer is not None
            try:
                self._crash_fn("commit.before")
                await owner.writer.publish(batch)
            except FencedError:
                self._observer.commit(owner.partition, TransactionOutcome.FENCED)
                raise
            except RecordTooLargeError as error:
                self._observer.commit(owner.partition, TransactionOutcome.ABORTED)
                batch = _with_shorter_dead_letter(batch, error)
                continue
            except OutcomeUnknownError as error:
                self._observer.commit(owner.partition, TransactionOutcome.UNKNOWN)
                _log.warning("commit_in_doubt", partition=str(owner.partition), start=start, end=end, error=str(error))
                self._observer.writer_reset(owner.partition, ResetReason.OUTCOME_UNKNOWN)
                standing = await self.take_over(owner)
                found = None if standing is None else standing.offset
                if found == start or not self._transport.is_transactional:
                    continue
                if found != end:
                    raise FencedError(
                        f"{owner.partition}: expected the committed offset to be {start} or {end}, found {found}: "
                        "another replica has answered in between"
                    ) from error
            self._crash_fn("commit.after")
            self._observer.commit(owner.partition, TransactionOutcome.COMMITTED)
            owner.committed = end
            owner.progress_at = loop.time()
            owner.moved.set()
            return

    async def _persist(
        self, owner: OwnedPartition, attempt: Callable[[], Awaitable[CommittedOffset | None]]
    ) -> CommittedOffset | None:
        """Try until it works; a broker that is away for an hour costs an hour. Fencing is no matter of patience."""
        pause_s = self._backoff_s
        while True:
            try:
                return await attempt()
            except FencedError:
                raise
            except TransportError as error:
                _log.warning("takeover_failed", partition=str(owner.partition), error=str(error), retry_in_s=pause_s)
                self._observer.broker_away(str(error))
            await asyncio.sleep(pause_s)
            pause_s = min(2.0 * pause_s, 30.0 * self._backoff_s)


def _with_shorter_dead_letter(batch: OutputBatch, error: RecordTooLargeError) -> OutputBatch:
    """The batch with less of the original in the dead letter that the broker takes not as it is."""
    letters = batch.dead_letters
    shorter = shorten_dead_letter(letters.values[error.index]) if error.output == "dead_letters" else None
    if shorter is None:
        raise error
    _log.warning("dead_letter_shortened", origin=error.origin, from_bytes=len(letters.values[error.index]))
    values = [*letters.values[: error.index], shorter, *letters.values[error.index + 1 :]]
    return dataclasses.replace(batch, dead_letters=dataclasses.replace(letters, values=values))


def nothing_but(partition: TopicPartition, offset: int, note: str) -> OutputBatch:
    """A batch without answers that moves the offset: it pins where a group without committed offsets began."""
    nothing = EncodedRecords((), (), ())
    return OutputBatch(nothing, nothing, nothing, {partition: offset}, note=note)
