"""A broker in memory, shared by the transports of one event loop: for embedding the service, and for its tests.

It keeps what the service relies on: partition logs with transaction markers, a last stable offset, producer epochs,
groups that rebalance eagerly. Time is the running loop's, and nothing happens but through calls, so that a loop with
virtual time gives the same history every run.
"""

import asyncio
import dataclasses
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import NamedTuple

from usp_daemon.wire import (
    CommittedOffset,
    FencedError,
    OffsetBounds,
    OffsetOutOfRangeError,
    TopicPartition,
    TransportError,
)

Headers = Sequence[tuple[str, bytes]]


class MemoryRecord(NamedTuple):
    """One record of a log."""

    offset: int
    key: bytes | None
    value: bytes | None
    timestamp_ms: int
    headers: Headers = ()


class UnknownMemberError(Exception):
    """The group does not know this member, or not in this generation: it must join anew."""


@dataclasses.dataclass(eq=False, slots=True)
class _Transaction:
    """What one producer has written since it began. ``decision``: None while open, then commit or abort."""

    deadline: float
    first_offsets: dict["_Log", int] = dataclasses.field(default_factory=dict)
    offsets: dict[tuple[str, TopicPartition], CommittedOffset] = dataclasses.field(default_factory=dict)
    decision: bool | None = None
    completes_at: float = 0.0


@dataclasses.dataclass(slots=True)
class _Entry:
    """A record, or a marker where ``record`` is None; ``transaction`` is None for what was written outside one."""

    record: MemoryRecord | None
    transaction: _Transaction | None


@dataclasses.dataclass(eq=False, slots=True)
class _Log:
    entries: list[_Entry] = dataclasses.field(default_factory=list)
    beginning: int = 0
    open_transactions: dict[_Transaction, int] = dataclasses.field(default_factory=dict)

    @property
    def end(self) -> int:
        return self.beginning + len(self.entries)

    @property
    def last_stable_offset(self) -> int:
        """Readers of committed records see nothing from here on: the first record of a transaction in doubt."""
        return min(self.open_transactions.values(), default=self.end)

    def append(self, record: MemoryRecord | None, transaction: _Transaction | None) -> None:
        self.entries.append(_Entry(record, transaction))

    def read(self, start: int, max_records: int) -> tuple[list[MemoryRecord], int]:
        """Committed records from ``start`` on, and the offset after them and after what readers skip."""
        records, position = [], start
        while position < self.last_stable_offset and len(records) < max_records:
            entry = self.entries[position - self.beginning]
            if entry.record is not None and (entry.transaction is None or entry.transaction.decision):
                records.append(entry.record)
            position += 1
        return records, position


@dataclasses.dataclass(slots=True)
class _Producer:
    epoch: int = -1
    transaction: _Transaction | None = None


@dataclasses.dataclass(slots=True)
class _Member:
    instance_id: str
    session_timeout_s: float
    rebalance_timeout_s: float
    deadline: float
    topic: str
    joined: bool = True


@dataclasses.dataclass(slots=True)
class _Group:
    members: dict[str, _Member] = dataclasses.field(default_factory=dict)
    generation: int = 0
    rebalancing_until: float | None = None
    assignment: dict[str, tuple[TopicPartition, ...]] = dataclasses.field(default_factory=dict)
    committed: dict[TopicPartition, CommittedOffset] = dataclasses.field(default_factory=dict)


class Membership(NamedTuple):
    """What joining gave: who this is, in which generation, and its partitions."""

    member_id: str
    generation: int
    partitions: tuple[TopicPartition, ...]


class MemoryBroker:
    """Topics, groups and transactions.

    ``marker_delay_s`` is the time between the decision to commit and its becoming visible: in it the transaction is in
    doubt for everybody but its coordinator, as in Kafka.
    """

    def __init__(self, *, marker_delay_s: float = 0.0) -> None:
        self.marker_delay_s = marker_delay_s
        self._topics: dict[str, list[_Log]] = {}
        self._groups: dict[str, _Group] = {}
        self._producers: dict[str, _Producer] = {}
        self._num_member_ids = 0
        self._waiters: list[asyncio.Future[None]] = []

    # -- topics

    def create_topic(self, topic: str, num_partitions: int) -> None:
        """A topic, unless it is there already."""
        self._topics.setdefault(topic, [_Log() for _ in range(num_partitions)])

    def num_partitions(self, topic: str) -> int | None:
        """How many partitions ``topic`` has; None when there is no such topic."""
        logs = self._topics.get(topic)
        return None if logs is None else len(logs)

    def produce(
        self,
        topic: str,
        partition: int,
        key: bytes | None,
        value: bytes | None,
        timestamp_ms: int = 0,
        headers: Headers = (),
    ) -> int:
        """Append one record outside any transaction; returns its offset."""
        log = self._log(TopicPartition(topic, partition))
        offset = log.end
        log.append(MemoryRecord(offset, key, value, timestamp_ms, tuple(headers)), None)
        self.wake()
        return offset

    def read_committed(self, topic: str, partition: int) -> list[MemoryRecord]:
        """Every record that a reader of committed records sees now."""
        self._advance()
        log = self._log(TopicPartition(topic, partition))
        return log.read(log.beginning, len(log.entries))[0]

    def read_uncommitted(self, topic: str, partition: int) -> list[MemoryRecord]:
        """Every record there is, also those of transactions that are open or were aborted."""
        self._advance()
        return [entry.record for entry in self._log(TopicPartition(topic, partition)).entries if entry.record]

    def delete_before(self, topic: str, partition: int, offset: int) -> None:
        """What retention does: nothing below ``offset`` can be read any more."""
        log = self._log(TopicPartition(topic, partition))
        offset = min(offset, log.end)
        if offset > log.beginning:
            del log.entries[: offset - log.beginning]
            log.beginning = offset
        self.wake()

    def bounds(self, partition: TopicPartition) -> OffsetBounds:
        """The oldest record's offset, and where readers of committed records come to a stop."""
        self._advance()
        log = self._log(partition)
        return OffsetBounds(log.beginning, max(log.last_stable_offset, log.beginning))

    def fetch(self, partition: TopicPartition, position: int, max_records: int) -> tuple[list[MemoryRecord], int]:
        """Committed records from ``position`` on and the offset that comes next."""
        self._advance()
        log = self._log(partition)
        if not log.beginning <= position <= log.end:
            raise OffsetOutOfRangeError(
                f"{partition} holds offsets {log.beginning} to {log.end}, not {position}", partition, position
            )
        return log.read(position, max_records)

    def _log(self, partition: TopicPartition) -> _Log:
        logs = self._topics.get(partition.topic)
        if logs is None or not 0 <= partition.partition < len(logs):
            raise TransportError(f"there is no partition {partition}; create the topic")
        return logs[partition.partition]

    # -- transactions

    async def init_producer(self, transactional_id: str) -> int:
        """A new epoch: whoever held an earlier one is fenced, and what it left open is aborted or completed."""
        producer = self._producers.setdefault(transactional_id, _Producer())
        producer.epoch += 1
        epoch = producer.epoch
        if producer.transaction is not None and producer.transaction.decision is None:
            self._end(producer.transaction, commit=False)
        await self.until(lambda: producer.transaction is None)
        if producer.epoch != epoch:
            raise FencedError(f"the producer {transactional_id} was opened again by somebody else")
        return epoch

    def begin(self, transactional_id: str, epoch: int, timeout_s: float) -> None:
        """Begin a transaction, which the broker aborts after ``timeout_s``."""
        producer = self._current(transactional_id, epoch)
        if producer.transaction is not None:
            raise TransportError(f"the producer {transactional_id} is in a transaction already")
        producer.transaction = _Transaction(self._now() + timeout_s)

    def add_records(
        self, transactional_id: str, epoch: int, partition: TopicPartition, records: Iterable[MemoryRecord]
    ) -> None:
        """Append ``records``, whose offsets are replaced, to the transaction."""
        transaction = self._transaction(transactional_id, epoch)
        log = self._log(partition)
        log.open_transactions.setdefault(transaction, log.end)
        transaction.first_offsets.setdefault(log, log.end)
        for record in records:
            log.append(record._replace(offset=log.end), transaction)
        self.wake()

    def add_offset(
        self, transactional_id: str, epoch: int, group: str, partition: TopicPartition, standing: CommittedOffset
    ) -> None:
        """Commit ``standing`` with the transaction."""
        self._transaction(transactional_id, epoch).offsets[group, partition] = standing

    async def end(self, transactional_id: str, epoch: int, *, commit: bool) -> None:
        """Decide the transaction and wait until that is visible."""
        transaction = self._transaction(transactional_id, epoch)
        self._end(transaction, commit=commit)
        producer = self._producers[transactional_id]
        await self.until(lambda: producer.transaction is not transaction)

    def _current(self, transactional_id: str, epoch: int) -> _Producer:
        self._advance()
        producer = self._producers.get(transactional_id)
        if producer is None or producer.epoch != epoch:
            raise FencedError(f"somebody else has opened the producer {transactional_id}, or its transaction timed out")
        return producer

    def _transaction(self, transactional_id: str, epoch: int) -> _Transaction:
        transaction = self._current(transactional_id, epoch).transaction
        if transaction is None or transaction.decision is not None:
            raise TransportError(f"the producer {transactional_id} is in no transaction")
        return transaction

    def _end(self, transaction: _Transaction, *, commit: bool) -> None:
        transaction.decision = commit
        transaction.completes_at = self._now() + self.marker_delay_s
        self._advance()
        self.wake()

    def _complete(self, producer: _Producer, transaction: _Transaction) -> None:
        for log in transaction.first_offsets:
            log.append(None, transaction)
            del log.open_transactions[transaction]
        if transaction.decision:
            for (group, partition), standing in transaction.offsets.items():
                self._group(group).committed[partition] = standing
        producer.transaction = None

    # -- groups

    def _group(self, group: str) -> _Group:
        return self._groups.setdefault(group, _Group())

    async def join(
        self,
        group: str,
        topic: str,
        member_id: str,
        *,
        instance_id: str,
        session_timeout_s: float,
        rebalance_timeout_s: float,
    ) -> Membership:
        """Join, or join again with the ``member_id`` from before; waits until the group has divided its partitions.

        A static member that comes back while nothing else has changed takes its old place without a rebalance; whoever
        held it is unknown from then on.
        """
        self._advance()
        state = self._group(group)
        namesakes = [m for m, member in state.members.items() if instance_id and member.instance_id == instance_id]
        if member_id not in state.members:
            self._num_member_ids += 1
            member_id = f"{instance_id or 'member'}-{self._num_member_ids}"
        deadline = self._now() + session_timeout_s
        member = _Member(instance_id, session_timeout_s, rebalance_timeout_s, deadline, topic)
        for replaced in namesakes:
            if replaced != member_id:
                del state.members[replaced]
                if state.rebalancing_until is None:
                    state.members[member_id] = member
                    state.assignment[member_id] = state.assignment.pop(replaced)
                    self.wake()
                    return Membership(member_id, state.generation, state.assignment[member_id])
        state.members[member_id] = member
        generation = state.generation
        self._rebalance(state)
        member.joined = True
        self._divide_if_all_joined(state)
        # Whoever wakes late may find the next rebalance under way already; its first heartbeat says so.
        await self.until(lambda: state.generation > generation or state.members.get(member_id) is not member)
        if state.members.get(member_id) is not member:
            raise UnknownMemberError(member_id)
        return Membership(member_id, state.generation, state.assignment[member_id])

    def heartbeat(self, group: str, member_id: str, generation: int) -> bool:
        """Keep the membership alive; returns whether the group rebalances, so that this member must join again."""
        self._advance()
        state = self._group(group)
        member = state.members.get(member_id)
        if member is None or (state.rebalancing_until is None and generation != state.generation):
            raise UnknownMemberError(member_id)
        member.deadline = self._now() + member.session_timeout_s
        return state.rebalancing_until is not None

    def leave(self, group: str, member_id: str) -> None:
        """Leave; the others divide what was held."""
        self._advance()
        state = self._group(group)
        if state.members.pop(member_id, None) is not None:
            self._rebalance(state)
            self._divide_if_all_joined(state)

    def commit(
        self, group: str, member_id: str, generation: int, offsets: Collection[tuple[TopicPartition, CommittedOffset]]
    ) -> None:
        """Commit outside any transaction, as a member of the group. Raises :class:`UnknownMemberError`."""
        self._advance()
        state = self._group(group)
        if member_id not in state.members or generation != state.generation:
            raise UnknownMemberError(member_id)
        for partition, standing in offsets:
            state.committed[partition] = standing
        self.wake()

    async def committed(self, group: str, partition: TopicPartition) -> int | None:
        """The committed offset without its note."""
        standing = await self.committed_with_note(group, partition)
        return None if standing is None else standing.offset

    async def committed_with_note(self, group: str, partition: TopicPartition) -> CommittedOffset | None:
        """The committed offset and its note, once no transaction that would move it is in doubt."""
        key = (group, partition)
        await self.until(
            lambda: all(
                producer.transaction is None or key not in producer.transaction.offsets
                for producer in self._producers.values()
            )
        )
        return self._group(group).committed.get(partition)

    def _rebalance(self, state: _Group) -> None:
        if state.rebalancing_until is None and state.members:
            patience = max(member.rebalance_timeout_s for member in state.members.values())
            state.rebalancing_until = self._now() + patience
            for member in state.members.values():
                member.joined = False
        self.wake()

    def _divide_if_all_joined(self, state: _Group) -> None:
        if state.rebalancing_until is not None and all(member.joined for member in state.members.values()):
            state.rebalancing_until = None
            state.generation += 1
            state.assignment = self._divided(state)
            for member in state.members.values():
                member.deadline = self._now() + member.session_timeout_s
            self.wake()

    def _divided(self, state: _Group) -> dict[str, tuple[TopicPartition, ...]]:
        """Contiguous ranges in the order of the members' names, the first ones one partition longer."""
        shares: dict[str, list[TopicPartition]] = {member_id: [] for member_id in state.members}
        for topic in sorted({member.topic for member in state.members.values()}):
            readers = sorted(
                (member_id for member_id, member in state.members.items() if member.topic == topic),
                key=lambda member_id: (state.members[member_id].instance_id, member_id),
            )
            each, rest = divmod(self.num_partitions(topic) or 0, len(readers))
            first = 0
            for index, member_id in enumerate(readers):
                count = each + (index < rest)
                shares[member_id] += [TopicPartition(topic, number) for number in range(first, first + count)]
                first += count
        return {member_id: tuple(partitions) for member_id, partitions in shares.items()}

    # -- time

    def _now(self) -> float:
        try:
            return asyncio.get_running_loop().time()
        except RuntimeError:  # a record produced or read before the loop runs
            return float("-inf")

    def _advance(self) -> None:
        """Let everything happen that was due by now."""
        now = self._now()
        for producer in self._producers.values():
            transaction = producer.transaction
            if transaction is not None and transaction.decision is None and transaction.deadline <= now:
                producer.epoch += 1
                transaction.decision, transaction.completes_at = False, now + self.marker_delay_s
                self.wake()
            if transaction is not None and transaction.decision is not None and transaction.completes_at <= now:
                self._complete(producer, transaction)
                self.wake()
        for state in self._groups.values():
            until = state.rebalancing_until
            # A member that waits in its join needs no heartbeat; one that has not joined in time is out.
            silent = [
                member_id
                for member_id, member in state.members.items()
                if (until is None or not member.joined) and min(member.deadline, until or member.deadline) <= now
            ]
            for member_id in silent:
                del state.members[member_id]
            if silent:
                self._rebalance(state)
                self._divide_if_all_joined(state)

    def _next_due(self) -> float:
        due = []
        for producer in self._producers.values():
            transaction = producer.transaction
            if transaction is not None:
                due.append(transaction.deadline if transaction.decision is None else transaction.completes_at)
        for state in self._groups.values():
            due += [member.deadline for member in state.members.values() if member.deadline > self._now()]
            if state.rebalancing_until is not None:
                due.append(state.rebalancing_until)
        return min(due, default=float("inf"))

    def wake(self) -> None:
        """Let everybody who waits look again."""
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    async def changed(self, deadline: float) -> None:
        """Wait until something has happened, at most until ``deadline`` in the loop's time."""
        loop = asyncio.get_running_loop()
        waiter = loop.create_future()
        self._waiters.append(waiter)
        until = min(deadline, self._next_due())
        handle = loop.call_at(until, _wake_one, waiter) if until != float("inf") else None
        try:
            await waiter
        finally:
            if handle is not None:
                handle.cancel()
        self._advance()

    async def until(self, condition_fn: Callable[[], bool]) -> None:
        """Wait, without limit, until ``condition_fn`` holds."""
        self._advance()
        while not condition_fn():
            await self.changed(float("inf"))


def _wake_one(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)
