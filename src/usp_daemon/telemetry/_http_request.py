"""One HTTP request, parsed strictly: what is not plainly a request is refused, so that nobody has to guess."""

import http
import re
import urllib.parse
from collections.abc import Mapping
from typing import NamedTuple

MAX_HEADERS = 64
_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_REQUEST_LINE = re.compile(rf"({_TOKEN}) (\S+) HTTP/1\.([01])")
_HEADER_NAME = re.compile(_TOKEN)
_BREAKS = re.compile(r"[\r\n\0]")


class HttpRequest(NamedTuple):
    """A request without its body. Names of headers are in lower case; of repeated ones the values are joined."""

    path: str
    query: str
    headers: Mapping[str, str]


class BadRequestError(Exception):
    """Not a request that is answered with a page; ``status`` says what it is answered with."""

    def __init__(self, status: http.HTTPStatus) -> None:
        super().__init__(status)
        self.status = status


def parse_head(head: bytes) -> tuple[bool, bool, HttpRequest]:
    """Whether the request is a HEAD, whether its connection may be kept, and the request.

    ``head`` ends in its empty line. Raises :class:`BadRequestError`.
    """
    first, *lines = head[:-4].decode("latin-1").split("\r\n")
    found = _REQUEST_LINE.fullmatch(first)
    if found is None:
        raise BadRequestError(http.HTTPStatus.BAD_REQUEST)
    method, target, minor = found.groups()
    if len(lines) > MAX_HEADERS:
        raise BadRequestError(http.HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
    headers: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if not (colon and _HEADER_NAME.fullmatch(name)) or _BREAKS.search(value):
            raise BadRequestError(http.HTTPStatus.BAD_REQUEST)
        name, value = name.lower(), value.strip(" \t")
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    if method not in ("GET", "HEAD"):
        raise BadRequestError(http.HTTPStatus.METHOD_NOT_ALLOWED)
    try:
        parts = urllib.parse.urlsplit(target)
    except ValueError:
        raise BadRequestError(http.HTTPStatus.BAD_REQUEST) from None
    has_body = headers.get("content-length", "0") != "0" or "transfer-encoding" in headers
    keep = minor == "1" and not has_body and "close" not in headers.get("connection", "").lower()
    return method == "HEAD", keep, HttpRequest(parts.path or "/", parts.query, headers)
