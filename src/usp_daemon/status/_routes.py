"""``/status``, ``/status.json`` and the icon.

The server has no log-in, so a page of another site must not read what it says through a visitor's browser. Browsers
keep other origins out by themselves, except where a hostile name is made to point at this address ("DNS rebinding").
Then the Host header bears that name: only addresses, localhost, and names that the operator listed are answered.
"""

import asyncio
import ipaddress
import urllib.parse
from collections.abc import Callable, Collection

from usp_daemon.telemetry import HttpHandler, HttpRequest, HttpResponse

from ._board import Board
from ._build import Facts, build_status, encode_status
from ._page import COMMON_HEADERS, FAVICON, page

PAGE_PATH = "/status"
JSON_PATH = "/status.json"
ICON_PATH = "/favicon.ico"
_MAX_NAMED = 1_000


def status_routes(
    board: Board, facts_fn: Callable[[], Facts], *, hosts: Collection[str] = ()
) -> dict[str, HttpHandler]:
    """Handlers by path. ``facts_fn`` is called on the event loop and must be cheap; ``hosts`` are names beside
    localhost under which the page may be asked for, "*" for any.
    """
    names = frozenset(host.strip().lower().rstrip(".") for host in hosts if host.strip())
    # Several viewers do not make several documents at once.
    one_at_a_time = asyncio.Lock()

    async def status_page(request: HttpRequest) -> HttpResponse:
        if not is_host_known(request.headers.get("host"), names):
            return _misdirected()
        body, policy = page()
        headers = {**COMMON_HEADERS, "Content-Security-Policy": policy}
        return HttpResponse(200, body, "text/html; charset=utf-8", headers)

    async def status_json(request: HttpRequest) -> HttpResponse:
        if not is_host_known(request.headers.get("host"), names):
            return _misdirected()
        try:
            history = history_asked(request.query)
        except ValueError as error:
            return HttpResponse(400, f"{error}\n".encode(), headers=COMMON_HEADERS)
        async with one_at_a_time:
            view, facts = board.view(), facts_fn()
            # Some milliseconds for many symbols: not on the event loop.
            body = await asyncio.to_thread(lambda: encode_status(build_status(view, facts, history=history)))
        return HttpResponse(200, body, "application/json", COMMON_HEADERS)

    async def icon(request: HttpRequest) -> HttpResponse:
        del request
        return HttpResponse(200, FAVICON, "image/svg+xml", COMMON_HEADERS)

    return {PAGE_PATH: status_page, JSON_PATH: status_json, ICON_PATH: icon}


def history_asked(query: str) -> frozenset[int] | None:
    """The ids after ``history=``: "all" (None) if it is not there, "none", or numbers with commas between.

    Raises ``ValueError`` for anything else; other parameters are ignored.
    """
    values = urllib.parse.parse_qs(query, keep_blank_values=True).get("history", ["all"])
    if values == ["all"]:
        return None
    if values == ["none"]:
        return frozenset()
    words = values[-1].split(",")
    if len(words) > _MAX_NAMED or not all(word.isascii() and word.isdigit() and len(word) < 8 for word in words):
        raise ValueError("history= takes all, none, or ids of symbols with commas between")
    return frozenset(map(int, words))


def is_host_known(header: str | None, names: Collection[str]) -> bool:
    """Whether a Host header is one that no stranger's name can have led here."""
    if "*" in names:
        return True
    if header is None:  # HTTP/1.0, which no browser speaks
        return True
    name = header.strip().lower()
    name = name[1:].partition("]")[0] if name.startswith("[") else name.partition(":")[0]
    name = name.rstrip(".")
    if name == "localhost" or name.endswith(".localhost") or name in names:
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _misdirected() -> HttpResponse:
    text = "This page is not served under that name. If it should be, add the name to http.status_hosts.\n"
    return HttpResponse(421, text.encode(), headers=COMMON_HEADERS)
