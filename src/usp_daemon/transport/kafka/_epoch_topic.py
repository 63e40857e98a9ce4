"""The log of epochs in the topic of the snapshots.

======================================  ==========================================================================
key (UTF-8)                             value
======================================  ==========================================================================
{group}/{input topic}/epochs/{number}   the epoch, as in a file of the directory form; eight digits. The header
                                        ``usp-instance`` says which replica wrote it
======================================  ==========================================================================

All are in partition 0. No key of a snapshot ends like these, so that neither disturbs the other's readers; compaction
keeps every epoch until it is given up.

Whoever appends opens the transactional producer ``{group}-{input topic}-epochs``. That fences everybody who is
appending, and decides what they have begun. What is committed then is read, and the epoch is written only if its number
is free: the next one to open sees it, and whoever was fenced has written nothing.
"""

import asyncio
import contextlib
import dataclasses
import random
import re
from collections.abc import Callable, Iterable
from typing import Any

from aiokafka import errors as kafka_errors

from usp_daemon.config import Kafka
from usp_daemon.persistence import (
    KEEP_EPOCHS,
    AbstractEpochLog,
    Epoch,
    EpochLogError,
    SnapshotReadError,
    decode_epoch,
    encode_epoch,
    in_order,
    is_free,
)
from usp_daemon.wire import TransportError

from ._errors import FENCED_ERRORS, cause_of, permanent
from ._prepared import prepared
from ._producer import PartitionProducer
from ._snapshot_reader import SnapshotReader

PARTITION = 0
INSTANCE_HEADER = "usp-instance"
CLOSE_TIMEOUT_S = 3.0
# Two that fence each other wait for times that differ, so that one of them comes through.
RETRY_PAUSES_S = (0.1, 1.0)

# In the order in which an append passes them.
TOPIC_EPOCH_CRASH_POINTS = ("epoch.opened", "epoch.begun", "epoch.before_commit", "epoch.appended")


class TopicEpochLog(AbstractEpochLog):
    """Epochs of ``kafka.group`` on ``kafka.input_topic``, in partition 0 of ``topic``; the last ``keep`` are kept.

    ``instance`` names this replica in the topic. ``start_timeout_s`` is what :meth:`open` may take to reach a broker,
    ``close_timeout_s`` what closing a client may take before it ends by force. ``crash_fn`` is for tests; it is called
    at every name in ``TOPIC_EPOCH_CRASH_POINTS``.

    Reading goes over all that was written to partition 0 since the last time, the chunks of snapshots among it. Its
    client is kept from one time to the next, and asks the broker anew each time where the log ends; that of an append
    is opened for it.
    """

    def __init__(
        self,
        kafka: Kafka,
        topic: str,
        *,
        instance: str = "",
        keep: int = KEEP_EPOCHS,
        start_timeout_s: float = 60.0,
        close_timeout_s: float = CLOSE_TIMEOUT_S,
        crash_fn: Callable[[str], None] = lambda point: None,
    ) -> None:
        self._kafka = dataclasses.replace(kafka, compression="none")
        self._topic = topic
        self._instance = instance
        self._keep = keep
        self._start_timeout_s = start_timeout_s
        self._close_timeout_s = close_timeout_s
        self._crash = crash_fn
        self._options: dict[str, Any] | None = None
        self._index = EpochIndex(kafka.group, kafka.input_topic, f"topic {topic!r}, partition {PARTITION}")
        self._busy = asyncio.Lock()
        self._reader: SnapshotReader | None = None

    def __str__(self) -> str:
        return f"the topic {self._topic!r}"

    async def open(self) -> None:
        """Check the topic, or create it."""
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
            raise EpochLogError(f"epochs cannot be kept in topic {self._topic!r}: {error}") from error

    async def close(self) -> None:
        """Disconnect."""
        self._options = None
        reader, self._reader = self._reader, None
        if reader is not None:
            await reader.close()

    async def read(self) -> tuple[Epoch, ...]:
        """See :class:`AbstractEpochLog`. What somebody's open transaction holds back is waited for."""
        async with self._busy:
            try:
                return await self._read_kept()
            except SnapshotReadError as error:
                raise EpochLogError(str(error)) from error

    async def append(self, epoch: Epoch) -> bool:
        """See :class:`AbstractEpochLog`."""
        loop = asyncio.get_running_loop()
        async with self._busy:
            deadline = loop.time() + 2 * self._kafka.request_timeout_ms / 1e3
            is_in_doubt = False
            while True:
                producer = PartitionProducer(
                    self._kafka,
                    self._known_options(),
                    f"{self._kafka.group}-{self._kafka.input_topic}-epochs",
                )
                try:
                    async with asyncio.timeout(self._kafka.request_timeout_ms / 1e3):
                        await producer.start()
                    self._crash("epoch.opened")
                    # Only now: what others had begun is decided.
                    epochs = await self._read_anew()
                    if not is_free(epoch, epochs[-1].number if epochs else None, str(self)):
                        return is_in_doubt and any(_are_one(epoch, other) for other in epochs)
                    is_in_doubt = True
                    await self._write(producer, epoch)
                    self._crash("epoch.appended")
                    return True
                except (kafka_errors.KafkaError, TransportError, TimeoutError, OSError) as error:
                    told = self._final(producer, error)
                    if told is not None or loop.time() >= deadline:
                        what = "it is not known whether it was" if is_in_doubt else "it could not be"
                        raise EpochLogError(
                            f"{self}: epoch {epoch.number}: {what} appended: {told or repr(cause_of(error))}"
                        ) from error
                finally:
                    with contextlib.suppress(kafka_errors.KafkaError):
                        await producer.close(0.0)
                await asyncio.sleep(random.uniform(*RETRY_PAUSES_S))

    def _final(self, producer: PartitionProducer, error: BaseException) -> TransportError | None:
        """What to tell of an error that will not pass; None where another attempt finds out what has become of it."""
        if producer.watch.fenced or isinstance(cause_of(error), FENCED_ERRORS):
            return None
        return permanent(error, self._kafka)

    async def _write(self, producer: PartitionProducer, epoch: Epoch) -> None:
        client = producer.client
        index = self._index

        async def fill() -> None:
            await client.begin_transaction()
            batch = client.create_batch()
            headers = [(INSTANCE_HEADER, self._instance.encode("utf-8", "replace"))]
            value = encode_epoch(epoch)
            if batch.append(timestamp=None, key=index.key(epoch.number), value=value, headers=headers) is None:
                raise EpochLogError(
                    f"epoch {epoch.number} takes {len(value)} bytes, more than kafka.max_request_bytes = "
                    f"{self._kafka.max_request_bytes}"
                )
            for number in sorted(index.epochs):
                if number <= epoch.number - self._keep:
                    batch.append(timestamp=None, key=index.key(number), value=None, headers=[])
            batch.close()
            self._crash("epoch.begun")
            await (await producer.begin(batch, self._topic, PARTITION))

        await producer.guarded(fill(), "writing the epoch", self._kafka.transaction_timeout_ms / 1e3)
        self._crash("epoch.before_commit")
        await producer.guarded(
            client.commit_transaction(), "committing the epoch", self._kafka.request_timeout_ms / 1e3
        )

    async def _read_kept(self) -> tuple[Epoch, ...]:
        """By the client that is kept; one that has failed is given up, and the next time opens another."""
        options = self._known_options()
        if self._reader is None:
            reader = self._new_reader(options)
            await reader.open()
            self._reader = reader
        reader = self._reader
        try:
            await reader.scan(self._index)
        except BaseException:
            if self._reader is reader:
                self._reader = None
            await reader.close(by_force=True)
            raise
        return self._index.in_order()

    async def _read_anew(self) -> tuple[Epoch, ...]:
        """By a client of its own, which has asked who leads the partition only now."""
        try:
            async with self._new_reader(self._known_options()) as reader:
                await reader.scan(self._index)
        except SnapshotReadError as error:
            raise EpochLogError(str(error)) from error
        return self._index.in_order()

    def _new_reader(self, options: dict[str, Any]) -> SnapshotReader:
        return SnapshotReader(self._kafka, options, self._topic, PARTITION, close_timeout_s=self._close_timeout_s)

    def _known_options(self) -> dict[str, Any]:
        if self._options is None:
            raise EpochLogError(f"the log of epochs in {self} is not open")
        return self._options


class EpochIndex:
    """The epochs of one group and input topic in a log that was read up to ``position``."""

    def __init__(self, group: str, topic: str, place: str) -> None:
        self._prefix = f"{group}/{topic}/epochs/".encode("utf-8", "surrogatepass")
        self._ending = re.compile(rb"[0-9]{8,18}")
        self._place = place
        self.reset()

    def key(self, number: int) -> bytes:
        """Key of an epoch."""
        return self._prefix + b"%08d" % number

    def reset(self) -> None:
        """Know nothing: the log is another one."""
        self.position = 0
        self.epochs: dict[int, Epoch] = {}
        self._problems: dict[int, EpochLogError] = {}

    def take(
        self, log_offset: int, key: bytes | None, value: bytes | None, headers: Iterable[tuple[str, bytes]]
    ) -> int:
        """Note one record. Nothing can be skipped: an epoch may stand between the chunks of a snapshot."""
        if key is not None and key.startswith(self._prefix) and self._ending.fullmatch(key, len(self._prefix)):
            self._note(int(key[len(self._prefix) :]), value, f"{self._place}, offset {log_offset}")
        return log_offset + 1

    def _note(self, number: int, value: bytes | None, locator: str) -> None:
        self._problems.pop(number, None)
        if value is None:
            self.epochs.pop(number, None)
            return
        try:
            epoch = decode_epoch(value, locator)
            if epoch.number != number:
                raise EpochLogError(f"{locator} holds epoch {epoch.number} under the key of epoch {number}")
            if (known := self.epochs.get(number)) is not None and known != epoch:
                raise EpochLogError(f"{locator} holds another epoch {number} than before. An epoch never changes")
            self.epochs[number] = epoch
        except EpochLogError as error:
            self._problems[number] = error

    def in_order(self) -> tuple[Epoch, ...]:
        """All epochs, ascending. Raises :class:`EpochLogError` for one that is damaged, changed or missing."""
        if self._problems:
            raise self._problems[min(self._problems)]
        return in_order(self.epochs, self._place)


def _are_one(epoch: Epoch, other: Epoch) -> bool:
    """Whether ``other`` is what this replica has appended as ``epoch``, without having been told so."""
    return (epoch.number, epoch.proposed_by, epoch.config_hash) == (other.number, other.proposed_by, other.config_hash)
