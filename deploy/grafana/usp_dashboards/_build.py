"""Puts the pages together and gives them as JSON."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

from grafana_foundation_sdk.builders import dashboard
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import dashboard as models

from . import _forecasts, _overview, _pipeline, _recovery, _symbol, _tuner
from ._parts import TAG, annotations, links, variables


class _Page(NamedTuple):
    title: str
    description: str
    variables: tuple[str, ...]
    rows_fn: Callable[[], Mapping[str, list[Builder[models.Panel]]]]


# By name of the file and, after "usp-", by uid: links and bookmarks hold on to it, so it must not change.
DASHBOARDS: Mapping[str, _Page] = MappingProxyType(
    {
        "overview": _Page(
            "usp-daemon: overview",
            "Is the service up, does it keep up, and are its forecasts sound? Begin here.",
            (),
            _overview.rows,
        ),
        "forecasts": _Page(
            "usp-daemon: forecasts",
            "Are the forecasts of all symbols sound: scores, modes, incidents, and the predictor's quantities.",
            (),
            _forecasts.rows,
        ),
        "symbol": _Page(
            "usp-daemon: one symbol",
            "Forecast, intervals, regime and kernels of one symbol that has series of its own.",
            ("symbol",),
            _symbol.rows,
        ),
        "pipeline": _Page(
            "usp-daemon: pipeline and Kafka",
            "Where time goes between a record and its result, by partition.",
            ("topic", "partition"),
            _pipeline.rows,
        ),
        "recovery": _Page(
            "usp-daemon: recovery",
            "Snapshots, replay and the life of partitions: what a crash would cost, and what the last one did.",
            ("topic", "partition"),
            _recovery.rows,
        ),
        "tuner": _Page(
            "usp-daemon: tuner and configuration",
            "What the tuner is at, what it has changed, and which configuration is in force.",
            (),
            _tuner.rows,
        ),
    }
)


def render(name: str) -> str:
    """One dashboard as Grafana's JSON. Raises ``KeyError`` for a name that is not in ``DASHBOARDS``."""
    page = DASHBOARDS[name]
    made = (
        dashboard.Dashboard(page.title)
        .uid(f"usp-{name}")
        .description(page.description)
        .tags([TAG])
        .timezone("browser")
        .time("now-1h", "now")
        .refresh("30s")
        .tooltip(models.DashboardCursorSync.CROSSHAIR)
        .editable()
        .variables(variables(*page.variables))
        .links(links())
        .annotations(annotations())
    )
    for title, panels in page.rows_fn().items():
        made.with_row(dashboard.Row(title))
        for panel in panels:
            made.with_panel(panel)
    document = made.build()
    for number, panel in enumerate(document.panels or (), start=1):
        panel.id_val = number
    return JSONEncoder(sort_keys=True, indent=2).encode(document) + "\n"
