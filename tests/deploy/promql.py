"""Queries of dashboards and rules: their variables filled in, and the metrics that they name."""

import re

import promql_parser
from prometheus_client import CollectorRegistry

from usp_daemon.telemetry import ServiceMetrics

INTERVALS = {"__rate_interval": "10s", "__interval": "1s", "__range": "60s"}
# Of prometheus_client on Linux, and of Prometheus itself.
FOREIGN = {
    "up", "ALERTS", "process_cpu_seconds_total", "process_resident_memory_bytes", "process_start_time_seconds",
    "process_open_fds", "process_max_fds",
}  # fmt: skip

WRAPPERS = (
    promql_parser.AggregateExpr, promql_parser.ParenExpr, promql_parser.UnaryExpr, promql_parser.SubqueryExpr,
)  # fmt: skip


def filled(expression, variables=None):
    """``expression`` with ``$name`` replaced; what has no value stays as it is."""
    values = INTERVALS | (variables or {})
    return re.sub(r"\$\{?(\w+)(?::\w+)?\}?", lambda found: values.get(found[1], found[0]), expression)


def metric_names(expression):
    """The metrics that a query selects, from its syntax tree."""
    names = set()

    def walk(node):
        if isinstance(node, promql_parser.VectorSelector):
            names.add(node.name)
        elif isinstance(node, promql_parser.MatrixSelector):
            walk(node.vector_selector)
        elif isinstance(node, promql_parser.BinaryExpr):
            walk(node.lhs)
            walk(node.rhs)
        elif isinstance(node, promql_parser.Call):
            for argument in node.args:
                walk(argument)
        elif isinstance(node, WRAPPERS):
            walk(node.expr)
        else:
            assert isinstance(node, (promql_parser.NumberLiteral, promql_parser.StringLiteral)), type(node)

    walk(promql_parser.parse(expression))
    return names


def declared():
    """Every name that the daemon exposes, histograms by their three series, with its labels."""
    names = {}
    for spec in ServiceMetrics(CollectorRegistry()).specs:
        if spec.kind == "histogram":
            names |= {spec.name + "_bucket": {*spec.labels, "le"}}
            names |= {spec.name + end: set(spec.labels) for end in ("_sum", "_count")}
        else:
            names[spec.name] = set(spec.labels)
    return names
