"""A TCP proxy on loopback that misbehaves on request."""

import asyncio
import enum
import socket
import struct
from collections.abc import Iterable
from types import TracebackType

CHUNK_BYTES = 64 * 1024


class Fault(enum.Enum):
    """What happens to bytes on their way.

    ========  ==========================================================================
    NONE      passed on
    STALL     kept until the fault ends, then passed on; new connections are accepted
    DROP      read and thrown away, so each side sees a peer that never answers
    REFUSE    new connections are closed at once; open ones go on
    ========  ==========================================================================
    """

    NONE = enum.auto()
    STALL = enum.auto()
    DROP = enum.auto()
    REFUSE = enum.auto()


class Proxy:
    """Forwards ports of 127.0.0.1, an async context manager. ``routes``: a port to listen on, one to forward to.

    ``delay_s`` holds each chunk up on its way. After ``DROP`` a connection has lost bytes in its middle: ``cut`` or
    ``reset`` it before the fault ends.
    """

    def __init__(self, routes: Iterable[tuple[int, int]]) -> None:
        self._routes = list(routes)
        self._servers: list[asyncio.Server] = []
        self._connections: dict[asyncio.Task[None], list[asyncio.StreamWriter]] = {}
        self._fault = Fault.NONE
        self._flows = asyncio.Event()
        self._flows.set()
        self.delay_s = 0.0
        self.num_accepted = 0
        self.num_forwarded_bytes = 0

    @property
    def fault(self) -> Fault:
        """The fault in force; assign another to change it at once, for open connections too."""
        return self._fault

    @fault.setter
    def fault(self, fault: Fault) -> None:
        self._fault = fault
        if fault is Fault.STALL:
            self._flows.clear()
        else:
            self._flows.set()

    @property
    def num_connections(self) -> int:
        """Open connections."""
        return len(self._connections)

    async def __aenter__(self) -> "Proxy":
        for listened, upstream in self._routes:

            def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, upstream: int = upstream) -> None:
                task = asyncio.create_task(self._connection(reader, writer, upstream), name=f"proxy to {upstream}")
                self._connections[task] = [writer]
                task.add_done_callback(lambda task: self._connections.pop(task))

            self._servers.append(await asyncio.start_server(serve, "127.0.0.1", listened))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for server in self._servers:
            server.close()
        await self.cut()
        for server in self._servers:
            await server.wait_closed()

    async def cut(self) -> None:
        """Closes every open connection in order (FIN), both ways."""
        tasks = list(self._connections)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def reset(self) -> None:
        """Breaks every open connection (RST), both ways."""
        for writers in self._connections.values():
            for writer in writers:
                # lingering for zero seconds turns the close into a reset
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        await self.cut()

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, upstream: int) -> None:
        writers = self._connections[asyncio.current_task()]  # type: ignore[index]
        self.num_accepted += 1
        try:
            if self._fault is Fault.REFUSE:
                return
            try:
                far_reader, far_writer = await asyncio.open_connection("127.0.0.1", upstream)
            except OSError:
                return
            writers.append(far_writer)
            pumps = [
                asyncio.create_task(self._pump(reader, far_writer)),
                asyncio.create_task(self._pump(far_reader, writer)),
            ]
            try:
                # A broker or client that ends one direction is done with the connection.
                await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for pump in pumps:
                    pump.cancel()
                await asyncio.gather(*pumps, return_exceptions=True)
        finally:
            for one in writers:
                # abort, not close: bytes that a stalled peer does not take would hold a close up for ever
                _close(one)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while chunk := await reader.read(CHUNK_BYTES):
            if self.delay_s > 0.0:
                await asyncio.sleep(self.delay_s)
            await self._flows.wait()
            if self._fault is Fault.DROP:
                continue
            writer.write(chunk)
            await writer.drain()
            self.num_forwarded_bytes += len(chunk)


def _close(writer: asyncio.StreamWriter) -> None:
    writer.transport.abort()
