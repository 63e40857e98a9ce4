"""The topic of snapshots and epochs at start, waited for until a broker answers."""

import asyncio
import logging
from collections.abc import Sequence
from typing import Any

from aiokafka import errors as kafka_errors
from aiokafka.admin import AIOKafkaAdminClient

from usp_daemon.config import Kafka
from usp_daemon.wire import TransportError

from ._client import UnreachableError, check_reachable, client_options
from ._errors import permanent
from ._shutdown import stop_within
from ._topics import prepare_snapshot_topic
from ._watch import ClientWatch

_log = logging.getLogger(__name__)

ATTEMPT_PAUSE_S = 0.5


async def prepared(kafka: Kafka, topic: str, *, start_timeout_s: float, close_timeout_s: float) -> dict[str, Any]:
    """Check ``topic``, or create it; returns the options of clients, and logs warnings.

    Raises :class:`TransportError` when that is not possible within ``start_timeout_s``.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + start_timeout_s
    while True:
        try:
            options = client_options(kafka)
            async with asyncio.timeout_at(deadline):
                await check_reachable(options)
                warnings = await _prepare(kafka, options, topic, close_timeout_s)
            break
        except (TransportError, kafka_errors.KafkaError, OSError, TimeoutError) as error:
            told = error if isinstance(error, TransportError) else permanent(error, kafka)
            final = told is not None and not (isinstance(told, UnreachableError) and told.may_pass)
            if final or loop.time() + ATTEMPT_PAUSE_S >= deadline:
                raise told or TransportError(repr(error)) from error
            await asyncio.sleep(ATTEMPT_PAUSE_S)
    for warning in warnings:
        _log.warning("topics_warning: %s", warning)
    return options


async def _prepare(kafka: Kafka, options: dict[str, Any], topic: str, close_timeout_s: float) -> Sequence[str]:
    admin = AIOKafkaAdminClient(**options)
    watch = ClientWatch(admin._client)
    try:
        await admin.start()
        return await prepare_snapshot_topic(admin, kafka, topic)
    finally:
        await stop_within(close_timeout_s, admin.close, watch, (admin, admin._client))
