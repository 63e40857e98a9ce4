"""What is served over HTTP: ``/metrics``, ``/livez``, ``/readyz`` and an index."""

import asyncio
import html
import json
from collections.abc import Callable, Mapping

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from ._health import Health, Verdict
from ._http import HttpHandler, HttpResponse
from ._http_request import HttpRequest

_INDEX = """\
<!doctype html><meta charset="utf-8"><title>usp-daemon</title>
<h1>usp-daemon {version}</h1>
<ul>
{links}
</ul>
"""


def telemetry_routes(
    *,
    registry: CollectorRegistry,
    health: Health,
    version: str,
    extra: Mapping[str, HttpHandler] | None = None,
) -> dict[str, HttpHandler]:
    """Handlers by path; ``extra`` ones are served beside these, and all but images listed."""
    routes: dict[str, HttpHandler] = {
        "/metrics": _metrics_handler(registry),
        "/livez": _verdict_handler(health.livez),
        "/readyz": _verdict_handler(health.readyz),
        **(extra or {}),
    }
    links = "\n".join(
        f'<li><a href="{html.escape(path)}">{html.escape(path)}</a></li>'
        for path in sorted(routes)
        if not path.endswith(".ico")
    )
    page = _INDEX.format(version=html.escape(version), links=links).encode()

    async def index(request: HttpRequest) -> HttpResponse:
        del request
        return HttpResponse(200, page, "text/html; charset=utf-8")

    return {"/": index, **routes}


def _metrics_handler(registry: CollectorRegistry) -> HttpHandler:
    async def metrics(request: HttpRequest) -> HttpResponse:
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        # Some milliseconds of text for many partitions: not on the event loop.
        return HttpResponse(200, await asyncio.to_thread(encode, registry), content_type)

    return metrics


def _verdict_handler(verdict_fn: Callable[[], Verdict]) -> HttpHandler:
    async def verdict(request: HttpRequest) -> HttpResponse:
        del request
        ok, reasons = verdict_fn()
        body = json.dumps({"ok": ok, "reasons": reasons}).encode() + b"\n"
        return HttpResponse(200 if ok else 503, body, "application/json")

    return verdict
