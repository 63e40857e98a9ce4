"""The paths that are served, asked over a real connection by the standard library's client."""

import asyncio
import http.client
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parsed_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parsed_text

from usp_daemon.telemetry import (
    Health,
    HttpRequest,
    HttpResponse,
    HttpServer,
    PartitionState,
    ServiceMetrics,
    telemetry_routes,
)
from usp_daemon.wire import TopicPartition

Clock = Any  # the fixture of conftest.py
TICKS = TopicPartition("ticks", 0)


@pytest.fixture
def health(clock: Clock) -> Health:
    return Health(stall_timeout_s=120.0, clock_fn=clock)


@pytest.fixture
async def server(registry: CollectorRegistry, health: Health) -> AsyncIterator[HttpServer]:
    async def status_page(request: HttpRequest) -> HttpResponse:
        return HttpResponse(200, request.query.encode())

    routes = telemetry_routes(registry=registry, health=health, version="1.2.3", extra={"/statusz": status_page})
    async with asyncio.timeout(60.0):
        server = HttpServer(host="127.0.0.1", port=0, routes=routes)
        await server.open()
        yield server
        await server.close()


async def get(server: HttpServer, path: str, headers: dict[str, str] | None = None) -> tuple[int, str, bytes]:
    def ask() -> tuple[int, str, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20.0)
        try:
            connection.request("GET", path, headers=headers or {})
            answer = connection.getresponse()
            return answer.status, answer.headers["Content-Type"], answer.read()
        finally:
            connection.close()

    return await asyncio.to_thread(ask)


async def test_metrics_as_text(server: HttpServer, registry: CollectorRegistry) -> None:
    ServiceMetrics(registry).record_fenced()
    status, content_type, body = await get(server, "/metrics")
    assert status == 200
    assert content_type == "text/plain; version=0.0.4; charset=utf-8"
    values = {sample.name: sample.value for family in parsed_text(body.decode()) for sample in family.samples}
    assert values["usp_fenced_total"] == 1.0


async def test_metrics_as_openmetrics(server: HttpServer, registry: CollectorRegistry) -> None:
    ServiceMetrics(registry).record_fenced()
    accept = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5"
    _, content_type, body = await get(server, "/metrics", {"Accept": accept})
    assert content_type.startswith("application/openmetrics-text; version=1.0.0")
    values = {sample.name: sample.value for family in parsed_openmetrics(body.decode()) for sample in family.samples}
    assert values["usp_fenced_total"] == 1.0


async def test_liveness_and_readiness(server: HttpServer, health: Health, clock: Clock) -> None:
    status, content_type, body = await get(server, "/readyz")
    assert (status, content_type) == (503, "application/json")
    assert json.loads(body) == {"ok": False, "reasons": ["the service is starting"]}
    health.set_ready()
    health.record_state(TICKS, PartitionState.RUNNING)
    assert (await get(server, "/readyz"))[0] == 200
    assert json.loads((await get(server, "/livez"))[2]) == {"ok": True, "reasons": []}
    clock.now += 60.0
    status, _, body = await get(server, "/livez")
    assert (status, json.loads(body)["reasons"]) == (503, ["the event loop has not turned for 60.0 s"])


async def test_index_names_version_and_every_path(server: HttpServer) -> None:
    status, content_type, body = await get(server, "/")
    assert (status, content_type) == (200, "text/html; charset=utf-8")
    assert b"usp-daemon 1.2.3" in body
    for path in (b"/metrics", b"/livez", b"/readyz", b"/statusz"):
        assert b'<a href="' + path + b'">' in body


async def test_further_routes_are_served(server: HttpServer) -> None:
    assert await get(server, "/statusz?of=me") == (200, "text/plain; charset=utf-8", b"of=me")
