"""The proxy's faults, on an echo server and between aiokafka and a broker."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from kafka_broker import Broker, Fault, Proxy, free_port
from kafka_broker.clients import admin, consume, create_topic, producer

SHORT_S = 0.1


@asynccontextmanager
async def echo() -> AsyncIterator[int]:
    """A server that sends back what it gets; yields its port."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while chunk := await reader.read(1000):
                writer.write(chunk)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", free_port())
    async with server:
        yield server.sockets[0].getsockname()[1]


@asynccontextmanager
async def through_proxy() -> AsyncIterator[tuple[Proxy, asyncio.StreamReader, asyncio.StreamWriter, int]]:
    """A proxy before an echo server, a connection through it that worked once, and the proxy's port."""
    async with echo() as upstream:
        port = free_port()
        async with Proxy([(port, upstream)]) as proxy:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                writer.write(b"hello")
                assert await reader.readexactly(5) == b"hello"
                yield proxy, reader, writer, port
            finally:
                writer.transport.abort()


async def is_silent(reader: asyncio.StreamReader) -> bool:
    try:
        await asyncio.wait_for(reader.read(1), SHORT_S)
    except TimeoutError:
        return True
    return False


async def test_passes_bytes_on() -> None:
    async with through_proxy() as (proxy, reader, writer, _):
        big = bytes(range(256)) * 4000
        writer.write(big)
        assert await reader.readexactly(len(big)) == big
        assert proxy.num_accepted == proxy.num_connections == 1
        assert proxy.num_forwarded_bytes == 2 * (5 + len(big))


async def test_delays() -> None:
    async with through_proxy() as (proxy, reader, writer, _):
        proxy.delay_s = SHORT_S
        loop = asyncio.get_running_loop()
        before = loop.time()
        writer.write(b"late")
        assert await reader.readexactly(4) == b"late"
        # once on the way there and once on the way back
        assert loop.time() - before >= 2 * SHORT_S


async def test_stalls_and_goes_on() -> None:
    async with through_proxy() as (proxy, reader, writer, _):
        proxy.fault = Fault.STALL
        writer.write(b"kept")
        assert await is_silent(reader)
        proxy.fault = Fault.NONE
        assert await reader.readexactly(4) == b"kept"


async def test_drops() -> None:
    async with through_proxy() as (proxy, reader, writer, _):
        proxy.fault = Fault.DROP
        writer.write(b"lost")
        assert await is_silent(reader)
        proxy.fault = Fault.NONE
        writer.write(b"seen")
        assert await reader.readexactly(4) == b"seen"


async def test_refuses_new_connections_only() -> None:
    async with through_proxy() as (proxy, reader, writer, port):
        proxy.fault = Fault.REFUSE
        other, other_writer = await asyncio.open_connection("127.0.0.1", port)
        with contextlib.suppress(ConnectionResetError):
            assert await other.read() == b""
        other_writer.transport.abort()
        writer.write(b"open")
        assert await reader.readexactly(4) == b"open"


async def test_cuts_in_order() -> None:
    async with through_proxy() as (proxy, reader, _, _):
        await proxy.cut()
        assert await reader.read() == b""
        assert proxy.num_connections == 0


async def test_resets() -> None:
    async with through_proxy() as (proxy, reader, _, _):
        await proxy.reset()
        with pytest.raises(ConnectionResetError):
            await reader.read()
        assert proxy.num_connections == 0


async def test_closes_what_is_upstream_of_a_dead_port() -> None:
    port = free_port()
    async with Proxy([(port, free_port())]):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        with contextlib.suppress(ConnectionResetError):
            assert await reader.read() == b""
        writer.transport.abort()


@pytest.mark.kafka
async def test_every_connection_of_a_client_goes_through_it(own_broker: Broker, topic_name: Callable[..., str]) -> None:
    """Also those to the address that the broker advertises; a client gets over a reset, and a stall holds it up."""
    topic = topic_name()
    servers = own_broker.listeners["PROXIED"]
    async with Proxy(own_broker.proxy_routes) as proxy:
        await create_topic(servers, topic)
        async with producer(servers, retry_backoff_ms=50, enable_idempotence=True) as client:
            await client.send_and_wait(topic, b"before")
            accepted = proxy.num_accepted
            await proxy.reset()
            await client.send_and_wait(topic, b"after")
            assert proxy.num_accepted > accepted
            proxy.fault = Fault.STALL
            waiting = await client.send(topic, b"stalled")
            done, _ = await asyncio.wait([waiting], timeout=5 * SHORT_S)
            assert not done
            proxy.fault = Fault.NONE
            await waiting
        assert await consume(servers, topic) == [b"before", b"after", b"stalled"]
        proxy.fault = Fault.REFUSE
        with pytest.raises(Exception, match=r"(?i)bootstrap|connect"):
            async with admin(servers, request_timeout_ms=500):
                pass
