"""A small HTTP/1.1 server on asyncio, for probes and scrapes: GET and HEAD, bounded in size, time and number.

Hand-written because nothing at hand fits: prometheus_client's own server gives each slow client a thread for ever, and
a web framework is six further packages for four fixed paths. It reads no bodies: a request that has one is answered and
its connection closed, so that nothing of it is ever taken for a second request.
"""

import asyncio
import email.utils
import http
import types
from collections.abc import Awaitable, Callable, Mapping
from typing import NamedTuple

from ._http_request import BadRequestError, HttpRequest, parse_head
from ._logs import get_logger

_log = get_logger(__name__)

MAX_HEAD_BYTES = 8192
MAX_CONNECTIONS = 64
_LINGER_S = 1.0


class HttpServerError(Exception):
    """The server cannot listen; the text says where, why and what to do."""


class HttpResponse(NamedTuple):
    """An answer. ``headers`` are further ones, by name; neither names nor values may come from outside."""

    status: int
    body: bytes
    content_type: str = "text/plain; charset=utf-8"
    headers: Mapping[str, str] = types.MappingProxyType({})


HttpHandler = Callable[[HttpRequest], Awaitable[HttpResponse]]


class HttpServer:
    """Serves ``routes``, handlers by exact path, from :meth:`open` until :meth:`close`.

    Port 0 takes a free one; ``port`` says which. ``timeout_s`` bounds each of: the wait for a whole request, the
    handler, and the client's taking of the answer.
    """

    def __init__(self, *, host: str, port: int, routes: Mapping[str, HttpHandler], timeout_s: float = 10.0) -> None:
        self.port = port
        self._host = host
        self._routes = dict(routes)
        self._timeout_s = timeout_s
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        """Listen. Raises :class:`HttpServerError` when that is not possible."""
        try:
            self._server = await asyncio.start_server(self._accept, self._host, self.port, limit=MAX_HEAD_BYTES)
        except (OSError, OverflowError) as error:  # the latter for what is no port
            reason = getattr(error, "strerror", None) or error
            raise HttpServerError(
                f"cannot listen on {self._host}:{self.port} for health and metrics: {reason}; "
                "choose another http.port or http.host, or set http.enabled = false"
            ) from error
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        """Stop listening and break off what is under way; harmless when repeated."""
        if self._server is not None:
            server, self._server = self._server, None
            server.close()
            for task in self._connections:
                task.cancel()
            await asyncio.gather(*self._connections, return_exceptions=True)
            await server.wait_closed()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # A task of our own: asyncio's would report its cancellation as an error.
        task = asyncio.create_task(self._serve(reader, writer), name="http.connection")
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if len(self._connections) > MAX_CONNECTIONS:
                await self._answer(writer, _plain(http.HTTPStatus.SERVICE_UNAVAILABLE))
            else:
                is_first = True
                while await self._serve_one(reader, writer, is_first=is_first):
                    is_first = False
            # To close with unread bytes would reset the connection, and the client might lose the answer.
            writer.write_eof()
            async with asyncio.timeout(_LINGER_S):
                while await reader.read(MAX_HEAD_BYTES):
                    pass
        except (OSError, TimeoutError):
            pass  # the client has gone, or does not take its answer
        finally:
            writer.transport.abort()

    async def _serve_one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, is_first: bool) -> bool:
        """Answer one request; True when another may follow on the connection."""
        is_head = keep = False
        try:
            async with asyncio.timeout(self._timeout_s):
                head = await reader.readuntil(b"\r\n\r\n")
            is_head, keep, request = parse_head(head)
        except asyncio.IncompleteReadError:
            return False  # closed by the client
        except TimeoutError:
            if not is_first:
                return False  # an answer here might be taken for that to the client's next request
            response = _plain(http.HTTPStatus.REQUEST_TIMEOUT)
        except asyncio.LimitOverrunError:
            response = _plain(http.HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
        except BadRequestError as error:
            response = _plain(error.status)
        else:
            response = await self._handle(request)
        await self._answer(writer, response, keep=keep, without_body=is_head)
        return keep

    async def _handle(self, request: HttpRequest) -> HttpResponse:
        handler = self._routes.get(request.path)
        if handler is None:
            return _plain(http.HTTPStatus.NOT_FOUND)
        try:
            async with asyncio.timeout(self._timeout_s):
                response = await handler(request)
            http.HTTPStatus(response.status)  # a handler's mistake shows here, not in the answering
            return response
        except TimeoutError:
            return _plain(http.HTTPStatus.SERVICE_UNAVAILABLE)
        except Exception:  # whatever a page does wrong, the service goes on
            _log.exception("http_handler_failed", path=request.path)
            return _plain(http.HTTPStatus.INTERNAL_SERVER_ERROR)

    async def _answer(
        self, writer: asyncio.StreamWriter, response: HttpResponse, *, keep: bool = False, without_body: bool = False
    ) -> None:
        further = "".join(f"{name}: {value}\r\n" for name, value in response.headers.items())
        head = (
            f"HTTP/1.1 {int(response.status)} {http.HTTPStatus(response.status).phrase}\r\n"
            f"Date: {email.utils.formatdate(usegmt=True)}\r\n"
            f"Content-Type: {response.content_type}\r\n"
            f"Content-Length: {len(response.body)}\r\n"
            "Allow: GET, HEAD\r\nCache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\n"
            f"{further}"
            f"Connection: {'keep-alive' if keep else 'close'}\r\n\r\n"
        )
        writer.write(head.encode("latin-1") + (b"" if without_body else response.body))
        async with asyncio.timeout(self._timeout_s):
            await writer.drain()


def _plain(status: http.HTTPStatus) -> HttpResponse:
    return HttpResponse(status, f"{status.value} {status.phrase}\n".encode())
