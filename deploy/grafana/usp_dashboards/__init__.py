"""The project's Grafana dashboards as code."""

from ._build import DASHBOARDS, render

__all__ = ["DASHBOARDS", "render"]
