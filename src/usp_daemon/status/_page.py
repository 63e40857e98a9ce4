"""The page: one file put together from its three parts, and the policy under which a browser shows it.

Styles and script stand inside and are allowed by their hashes; nothing else is: no other script, no other address than
the page's own, no frame around it. Text from outside (names of symbols above all) reaches the document as text only,
and "trusted types" has the browser refuse any other way.
"""

import base64
import functools
import hashlib
import importlib.resources
from collections.abc import Mapping

FAVICON = (
    b'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32"><rect width="32" height="32" rx="7" fill="#0b5cad"/>'
    b'<path d="M4 22C9 22 9 9 14 9s5 10 9 10 3-4 5-5" fill="none" stroke="#fff" stroke-width="3" '
    b'stroke-linecap="round"/></svg>'
)
# Of every answer of these routes: nothing of it may be framed, sent on, or taken into another site's page.
COMMON_HEADERS: Mapping[str, str] = {
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}


@functools.cache
def page() -> tuple[bytes, str]:
    """The page and its Content-Security-Policy."""
    style, script = _part("page.css"), _part("page.js")
    text = (
        _part("page.html")
        .replace("@@FAVICON@@", "data:image/svg+xml;base64," + base64.b64encode(FAVICON).decode())
        .replace("@@STYLE@@", style)
        .replace("@@SCRIPT@@", script)
    )
    policy = "; ".join(
        (
            "default-src 'none'",
            f"style-src {_hash_of(style)}",
            f"script-src {_hash_of(script)}",
            "connect-src 'self'",
            "img-src data:",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
            "require-trusted-types-for 'script'",
            "trusted-types 'none'",
        )
    )
    return text.encode(), policy


def _part(name: str) -> str:
    return importlib.resources.files(__package__ or "usp_daemon.status").joinpath(name).read_text(encoding="utf-8")


def _hash_of(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
