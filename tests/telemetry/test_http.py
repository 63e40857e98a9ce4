"""The HTTP server against clients that are right, wrong, slow and malicious."""

import asyncio
import contextlib
import random
import socket
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import structlog

from usp_daemon.telemetry import HttpRequest, HttpResponse, HttpServer, HttpServerError
from usp_daemon.telemetry._http import MAX_CONNECTIONS, MAX_HEAD_BYTES
from usp_daemon.telemetry._http_request import MAX_HEADERS

BODY = b"hello\n"
GET = b"GET /hello HTTP/1.1\r\nHost: h\r\n\r\n"
GET_AND_CLOSE = b"GET /hello HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"
BIG = b"x" * 20_000_000


async def hello(request: HttpRequest) -> HttpResponse:
    del request
    return HttpResponse(200, BODY)


async def echo(request: HttpRequest) -> HttpResponse:
    return HttpResponse(200, repr((request.path, request.query, dict(request.headers))).encode())


async def failing(request: HttpRequest) -> HttpResponse:
    raise RuntimeError(request.path)


async def hanging(request: HttpRequest) -> HttpResponse:
    del request
    await asyncio.Event().wait()
    raise AssertionError


async def wrong(request: HttpRequest) -> HttpResponse:
    del request
    return None  # type: ignore[return-value]


async def strange(request: HttpRequest) -> HttpResponse:
    del request
    return HttpResponse(1234, b"")


async def big(request: HttpRequest) -> HttpResponse:
    del request
    return HttpResponse(200, BIG)


ROUTES = {
    "/hello": hello,
    "/echo": echo,
    "/failing": failing,
    "/hanging": hanging,
    "/wrong": wrong,
    "/strange": strange,
    "/big": big,
}


@pytest.fixture(autouse=True)
def events() -> Iterator[list[Any]]:
    with structlog.testing.capture_logs() as captured:
        yield captured


@pytest.fixture(autouse=True)
async def _nothing_escapes() -> AsyncIterator[None]:
    """Nothing a client does reaches the event loop's handler of exceptions."""
    escaped: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: escaped.append(context))
    yield
    await asyncio.sleep(0)
    assert escaped == []


@pytest.fixture
async def server() -> AsyncIterator[HttpServer]:
    server = HttpServer(host="127.0.0.1", port=0, routes=ROUTES, timeout_s=5.0)
    await server.open()
    yield server
    await server.close()


@pytest.fixture
async def hasty_server() -> AsyncIterator[HttpServer]:
    server = HttpServer(host="127.0.0.1", port=0, routes=ROUTES, timeout_s=0.3)
    await server.open()
    yield server
    await server.close()


async def exchange(server: HttpServer, sent: bytes, *, end: bool = True) -> bytes:
    """All that comes back for ``sent`` until the server closes; ``end`` says that no more will be sent."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    try:
        writer.write(sent)
        if end:
            writer.write_eof()
        return await asyncio.wait_for(reader.read(), 20.0)
    finally:
        writer.transport.abort()


async def test_answer_is_not_lost_to_a_client_that_is_still_sending(server: HttpServer) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    for _ in range(100):
        writer.write(b"a" * 100_000)
        await writer.drain()
    writer.write_eof()
    assert status_of(await asyncio.wait_for(reader.read(), 20.0)) == 431
    writer.transport.abort()


def status_of(answer: bytes) -> int:
    version, status, _ = answer.split(b" ", 2)
    assert version == b"HTTP/1.1"
    return int(status)


def parts_of(answer: bytes) -> tuple[int, dict[str, str], bytes]:
    head, _, body = answer.partition(b"\r\n\r\n")
    headers = dict(line.split(": ", 1) for line in head.decode().split("\r\n")[1:])
    return status_of(answer), headers, body


async def test_get(server: HttpServer) -> None:
    status, headers, body = parts_of(await exchange(server, GET_AND_CLOSE))
    assert (status, body) == (200, BODY)
    assert headers["Content-Length"] == "6"
    assert headers["Connection"] == "close"
    assert headers["Content-Type"] == "text/plain; charset=utf-8"
    assert headers["Date"].endswith("GMT")


async def test_head_is_get_without_its_body(server: HttpServer) -> None:
    status, headers, body = parts_of(await exchange(server, GET_AND_CLOSE.replace(b"GET", b"HEAD")))
    assert (status, headers["Content-Length"], body) == (200, "6", b"")


async def test_request_reaches_the_handler(server: HttpServer) -> None:
    sent = b"GET /echo?a=1&b HTTP/1.1\r\nHost: h\r\nX-Two: one\r\nx-two:\t two \r\nEmpty:\r\n\r\n"
    _, _, body = parts_of(await exchange(server, sent))
    assert eval(body) == ("/echo", "a=1&b", {"host": "h", "x-two": "one, two", "empty": ""})


async def test_absolute_form_of_the_target(server: HttpServer) -> None:
    assert status_of(await exchange(server, b"GET http://h:1/hello HTTP/1.1\r\nHost: h\r\n\r\n")) == 200


async def test_connection_is_kept_and_pipelined_requests_are_answered_in_order(server: HttpServer) -> None:
    answer = await exchange(
        server, GET + b"HEAD /hello HTTP/1.1\r\n\r\n" + GET.replace(b"hello", b"none") + GET_AND_CLOSE
    )
    assert [int(part[:3]) for part in answer.split(b"HTTP/1.1 ")[1:]] == [200, 200, 404, 200]
    assert answer.count(BODY) == 2


async def test_nothing_is_answered_after_close(server: HttpServer) -> None:
    answer = await exchange(server, GET_AND_CLOSE + GET)
    assert answer.count(b"HTTP/1.1 ") == 1


async def test_http_1_0_is_answered_and_closed(server: HttpServer) -> None:
    status, headers, body = parts_of(await exchange(server, b"GET /hello HTTP/1.0\r\n\r\n", end=False))
    assert (status, body, headers["Connection"]) == (200, BODY, "close")


async def test_unknown_path(server: HttpServer) -> None:
    assert status_of(await exchange(server, GET.replace(b"/hello", b"/hello/"))) == 404


@pytest.mark.parametrize("method", [b"POST", b"PUT", b"DELETE", b"OPTIONS", b"get", b"NONSENSE"])
async def test_other_methods(server: HttpServer, method: bytes) -> None:
    status, headers, _ = parts_of(await exchange(server, GET.replace(b"GET", method), end=False))
    assert (status, headers["Allow"], headers["Connection"]) == (405, "GET, HEAD", "close")


@pytest.mark.parametrize("header", [b"Content-Length: 34", b"Transfer-Encoding: chunked", b"Content-Length: nonsense"])
async def test_a_body_is_not_taken_for_a_request(server: HttpServer, header: bytes) -> None:
    answer = await exchange(server, b"GET /hello HTTP/1.1\r\n" + header + b"\r\n\r\n" + GET)
    assert answer.count(b"HTTP/1.1 ") == 1
    assert parts_of(answer)[1]["Connection"] == "close"


@pytest.mark.parametrize(
    "sent",
    [
        b"\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET /hello\r\n\r\n",
        b"GET /hello HTTP/2.0\r\n\r\n",
        b"GET  /hello HTTP/1.1\r\n\r\n",
        b"GET /hello HTTP/1.1 \r\n\r\n",
        b"GET /hello HTTP/1.1\nHost: h\r\n\r\n",
        b"GET /hello HTTP/1.1\r\nno colon\r\n\r\n",
        b"GET /hello HTTP/1.1\r\nSpace : before\r\n\r\n",
        b"GET /hello HTTP/1.1\r\nHost: h\r\n folded\r\n\r\n",
        b"GET http://[ HTTP/1.1\r\nHost: h\r\n\r\n",
        b"GET /hello HTTP/1.1\r\nHost: h\r\nA: b\nC: d\r\n\r\n",
        b"GET /hello HTTP/1.1\r\nA: b\rC: d\r\n\r\n",
        b"GET /hello HTTP/1.1\r\nA: \x00\r\n\r\n",
        b"GET /hello HTTP/1.1\r\nA:" + b" " * 8000 + b"\n\r\n\r\n",  # hard on a regular expression that backtracks
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    ],
)
async def test_what_is_no_request(server: HttpServer, sent: bytes) -> None:
    assert status_of(await exchange(server, sent, end=False)) == 400


async def test_headers_are_bounded_in_size(server: HttpServer) -> None:
    sent = b"GET /hello HTTP/1.1\r\nX: " + b"a" * (10 * MAX_HEAD_BYTES)
    assert status_of(await exchange(server, sent + b"\r\n\r\n", end=False)) == 431
    assert status_of(await exchange(server, sent, end=False)) == 431


async def test_headers_are_bounded_in_number(server: HttpServer) -> None:
    def request(number: int) -> bytes:
        return b"GET /hello HTTP/1.1\r\n" + b"A: b\r\n" * number + b"\r\n"

    assert status_of(await exchange(server, request(MAX_HEADERS))) == 200
    assert status_of(await exchange(server, request(MAX_HEADERS + 1))) == 431


@pytest.mark.parametrize("sent", [b"", b"GET /hel", GET[:-1], GET + b"GET"])
async def test_client_that_leaves_in_the_middle(server: HttpServer, sent: bytes) -> None:
    answer = await exchange(server, sent)
    assert answer.count(b"HTTP/1.1 ") == sent.count(b"\r\n\r\n")
    assert status_of(await exchange(server, GET)) == 200


async def test_slow_client_is_given_up(hasty_server: HttpServer) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", hasty_server.port)

    async def drip() -> None:
        while True:
            writer.write(b"X")
            await asyncio.sleep(0.01)

    dripping = asyncio.create_task(drip())
    answer = await asyncio.wait_for(reader.read(), 20.0)
    dripping.cancel()
    writer.transport.abort()
    assert status_of(answer) == 408


async def test_idle_connection_is_closed_without_a_word(hasty_server: HttpServer) -> None:
    answer = await exchange(hasty_server, GET, end=False)
    assert (status_of(answer), answer.count(b"HTTP/1.1 ")) == (200, 1)


async def test_client_that_takes_no_answer_is_given_up(hasty_server: HttpServer) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", hasty_server.port, limit=1024)
    writer.write(GET.replace(b"/hello", b"/big"))
    while not hasty_server._connections:
        await asyncio.sleep(0)
    while hasty_server._connections:
        await asyncio.sleep(0.01)
    received = b""
    with contextlib.suppress(ConnectionResetError):
        received = await asyncio.wait_for(reader.read(), 20.0)
    assert len(received) < len(BIG)
    writer.transport.abort()


async def test_big_answer_arrives_whole(server: HttpServer) -> None:
    _, _, body = parts_of(await exchange(server, GET.replace(b"/hello", b"/big")))
    assert body == BIG


async def test_connections_are_bounded(server: HttpServer) -> None:
    idle = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(MAX_CONNECTIONS)]
    while len(server._connections) < MAX_CONNECTIONS:
        await asyncio.sleep(0)
    assert status_of(await exchange(server, b"", end=False)) == 503
    for _, writer in idle:
        writer.transport.abort()
    while server._connections:
        await asyncio.sleep(0)
    assert status_of(await exchange(server, GET)) == 200


@pytest.mark.parametrize("path", [b"/failing", b"/wrong", b"/strange"])
async def test_handler_that_fails(server: HttpServer, events: list[Any], path: bytes) -> None:
    answer = await exchange(server, GET.replace(b"/hello", path) + GET)
    assert [int(part[:3]) for part in answer.split(b"HTTP/1.1 ")[1:]] == [500, 200]
    assert [(event["event"], event["path"]) for event in events] == [("http_handler_failed", path.decode())]


async def test_handler_that_hangs(hasty_server: HttpServer) -> None:
    assert status_of(await exchange(hasty_server, GET.replace(b"/hello", b"/hanging"))) == 503


async def test_port_in_use() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        server = HttpServer(host="127.0.0.1", port=port, routes={})
        with pytest.raises(HttpServerError, match=rf"cannot listen on 127\.0\.0\.1:{port} .*in use.*http\.port"):
            await server.open()
        await server.close()


async def test_host_that_is_none() -> None:
    with pytest.raises(HttpServerError, match=r"cannot listen on host\.invalid:0"):
        await HttpServer(host="host.invalid", port=0, routes={}).open()


async def test_close_ends_connections_and_frees_the_port(server: HttpServer) -> None:
    idle_reader, idle_writer = await asyncio.open_connection("127.0.0.1", server.port)
    busy_reader, busy_writer = await asyncio.open_connection("127.0.0.1", server.port)
    busy_writer.write(GET.replace(b"/hello", b"/hanging"))
    while len(server._connections) < 2:
        await asyncio.sleep(0)
    await asyncio.wait_for(server.close(), 5.0)
    await server.close()
    for reader, writer in ((idle_reader, idle_writer), (busy_reader, busy_writer)):
        with contextlib.suppress(ConnectionResetError):
            assert await asyncio.wait_for(reader.read(), 5.0) == b""
        writer.transport.abort()
    with pytest.raises(OSError):
        await asyncio.open_connection("127.0.0.1", server.port)
    again = HttpServer(host="127.0.0.1", port=server.port, routes=ROUTES)
    await again.open()
    assert status_of(await exchange(again, GET)) == 200
    await again.close()


@pytest.mark.parametrize("seed", range(8))
async def test_garbage_is_answered_or_closed_and_harms_nobody(seed: int) -> None:
    rng = random.Random(seed)
    server = HttpServer(host="127.0.0.1", port=0, routes=ROUTES, timeout_s=1.0)
    await server.open()

    def garbage() -> bytes:
        kind = rng.randrange(3)
        if kind == 0:
            return rng.randbytes(rng.randrange(3 * MAX_HEAD_BYTES))
        if kind == 1:  # requests with some bytes changed, added or lost
            data = bytearray(GET * rng.randrange(1, 4))
            for _ in range(rng.randrange(1, 8)):
                place = rng.randrange(len(data))
                data[place : place + rng.randrange(2)] = rng.randbytes(rng.randrange(3))
            return bytes(data)
        words = [
            b"GET",
            b"HEAD",
            b" ",
            b"/hello",
            b"HTTP/1.1",
            b"HTTP/1.0",
            b"\r\n",
            b"\n",
            b":",
            b"A: b",
            b"\x00",
            b"%",
        ]
        return b"".join(rng.choices(words, k=rng.randrange(40))) + b"\r\n\r\n"

    async def attack() -> None:
        try:
            answer = await exchange(server, garbage(), end=rng.random() < 0.98)
        except (ConnectionResetError, BrokenPipeError):
            return
        assert answer == b"" or status_of(answer) in (200, 400, 404, 405, 408, 431)

    for _ in range(10):
        await asyncio.gather(*(attack() for _ in range(5)))
        assert status_of(await exchange(server, GET)) == 200
    while server._connections:
        await asyncio.sleep(0.01)
    await server.close()
