"""The committed offset, asked for so that a transaction in doubt is waited for (KIP-447).

aiokafka speaks versions of OffsetFetch in which the broker answers with the offset from before such a transaction.
"""

import asyncio
from typing import Any

from aiokafka import AIOKafkaConsumer
from aiokafka import errors as kafka_errors
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.types import Boolean, CompactArray, CompactString, Int16, Int32, Int64, Schema, TaggedFields
from aiokafka.structs import TopicPartition as KafkaPartition

from usp_daemon.wire import CommittedOffset

UNSTABLE_OFFSET_COMMIT = 88
NO_OFFSET = -1
UNSTABLE_PAUSE_S = 0.02
RETRIED = (
    kafka_errors.GroupLoadInProgressError,
    kafka_errors.GroupCoordinatorNotAvailableError,
    kafka_errors.NotCoordinatorForGroupError,
)


class _OffsetFetchResponse(Response):
    API_KEY = 9  # pyright: ignore[reportAssignmentType]  # as aiokafka's own classes do it
    API_VERSION = 7  # pyright: ignore[reportAssignmentType]
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        (
            "topics",
            CompactArray(
                ("name", CompactString("utf-8")),
                (
                    "partitions",
                    CompactArray(
                        ("partition", Int32),
                        ("offset", Int64),
                        ("leader_epoch", Int32),
                        ("metadata", CompactString("utf-8")),
                        ("error_code", Int16),
                        ("tags", TaggedFields),
                    ),
                ),
                ("tags", TaggedFields),
            ),
        ),
        ("error_code", Int16),
        ("tags", TaggedFields),
    )


class _OffsetFetchRequestStruct(RequestStruct):
    FLEXIBLE_VERSION = True
    API_KEY = 9
    API_VERSION = 7
    RESPONSE_TYPE = _OffsetFetchResponse
    SCHEMA = Schema(
        ("group", CompactString("utf-8")),
        (
            "topics",
            CompactArray(
                ("name", CompactString("utf-8")),
                ("partitions", CompactArray(Int32)),
                ("tags", TaggedFields),
            ),
        ),
        ("require_stable", Boolean),
        ("tags", TaggedFields),
    )


class _OffsetFetchRequest(Request[_OffsetFetchRequestStruct]):
    API_KEY = 9

    def __init__(self, group: str, partition: KafkaPartition) -> None:
        self._group = group
        self._partition = partition

    def build(self, request_struct_class: type[_OffsetFetchRequestStruct]) -> _OffsetFetchRequestStruct:
        topics = [(self._partition.topic, [self._partition.partition], {})]
        return request_struct_class(self._group, topics, True, {})


async def fetch_stable_offset(
    consumer: AIOKafkaConsumer, group: str, partition: KafkaPartition
) -> CommittedOffset | None:
    """The committed offset and its note, or None. Waits without limit for what is in doubt: give it a deadline."""
    coordinator: Any = consumer._coordinator
    while True:
        await coordinator.ensure_coordinator_known()
        try:
            response = await coordinator._send_req(_OffsetFetchRequest(group, partition))
        except (NotImplementedError, kafka_errors.IncompatibleBrokerVersion):
            found = (await coordinator.fetch_committed_offsets([partition])).get(partition)  # a broker before 2.5
            if found is None or found.offset == NO_OFFSET:
                return None
            return CommittedOffset(found.offset, found.metadata or "")
        except kafka_errors.KafkaError as error:
            if not error.retriable:
                raise
            await asyncio.sleep(UNSTABLE_PAUSE_S)
            continue
        standing, code = _answer(response)
        if code == 0:
            return None if standing.offset == NO_OFFSET else standing
        if code != UNSTABLE_OFFSET_COMMIT:
            error_type = kafka_errors.for_code(code)
            if error_type is kafka_errors.GroupAuthorizationFailedError:
                raise error_type(group)
            if not issubclass(error_type, RETRIED):
                raise error_type(f"committed offset of {partition}")
            if error_type is not kafka_errors.GroupLoadInProgressError:
                coordinator.coordinator_dead()
        await asyncio.sleep(UNSTABLE_PAUSE_S)


def _answer(response: Any) -> tuple[CommittedOffset, int]:
    nothing = CommittedOffset(NO_OFFSET, "")
    if response.error_code:
        return nothing, response.error_code
    for _, partitions, _ in response.topics:
        for _, offset, _, metadata, code, _ in partitions:
            return CommittedOffset(offset, metadata or ""), code
    return nothing, 0
