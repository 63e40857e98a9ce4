"""What passes between aiokafka and the broker, seen from underneath.

aiokafka retries by itself and hides some answers behind general errors. Two things must be known here all the same:
that a request of a transaction met a lost connection, for then a late copy of it may still arrive; and that the broker
said "fenced" in a code that aiokafka does not know.
"""

import asyncio
import collections
import weakref
from typing import Any

from aiokafka.client import AIOKafkaClient
from aiokafka.conn import AIOKafkaConnection
from aiokafka.errors import KafkaConnectionError, KafkaError

from ._errors import FENCED_CODES


class ClientWatch:
    """Stands before ``client.send``, and ends the client's work when that must stop at once."""

    def __init__(self, client: AIOKafkaClient) -> None:
        self._client = client
        self._send = client.send
        self._closed = False
        # aiokafka forgets a connection that it has begun to close, which may never end while the other side is silent.
        self._seen: weakref.WeakSet[AIOKafkaConnection] = weakref.WeakSet()
        self.failure: asyncio.Future[KafkaError] = asyncio.get_running_loop().create_future()
        self.fenced = False
        self.codes: collections.Counter[int] = collections.Counter()
        client.send = self._watched_send  # type: ignore[method-assign]

    async def _watched_send(self, node_id: Any, request: Any, **options: Any) -> Any:
        if self._closed:
            raise KafkaConnectionError("this client is being closed")
        try:
            response = await self._send(node_id, request, **options)
        except KafkaError as error:
            if not self.failure.done():
                self.failure.set_result(error)
            raise
        finally:
            self._seen.update(self._client._conns.values())
        codes = _error_codes(response)
        self.codes.update(codes)
        if not FENCED_CODES.isdisjoint(codes):
            self.fenced = True
        return response

    def reset(self) -> None:
        """Forget failures from before."""
        if self.failure.done():
            self.failure = asyncio.get_running_loop().create_future()

    async def shut(self) -> None:
        """Close every connection now and let nothing new through."""
        self._closed = True
        self._seen.update(self._client._conns.values())
        closed = [future for connection in list(self._seen) if (future := abort(connection)) is not None]
        if closed:
            await asyncio.wait(closed, timeout=1.0)


def abort(connection: AIOKafkaConnection) -> "asyncio.Future[None] | None":
    """Close without waiting for the other side; returns what is done when that is, or None where nothing was open."""
    closed = connection.close()
    transport = getattr(connection._protocol, "_transport", None)
    if transport is None:
        return None
    transport.abort()
    return closed


def _error_codes(response: Any) -> list[int]:
    """Every code of an answer to a request of the group or of a transaction."""
    code = getattr(response, "error_code", None)
    codes = [code] if code else []
    for name in ("errors", "topics"):
        for topic in getattr(response, name, None) or ():
            if not isinstance(topic, tuple) or len(topic) != 2 or not isinstance(topic[1], list):
                continue
            # (partition, code, ...) in every answer that is asked about here; a fetch's rows begin the same way
            codes += [row[1] for row in topic[1] if isinstance(row, tuple) and len(row) > 1 and row[1]]
    return [code for code in codes if isinstance(code, int)]
