"""What the daemon says about itself: log lines, metrics, health, and the HTTP server that shows them."""

from ._activity import Activity, grown
from ._declare import MetricSpec
from ._endpoints import telemetry_routes
from ._health import Health, Verdict, beat_event_loop
from ._histogram import ArrayHistogram, HistogramSeries
from ._http import HttpHandler, HttpResponse, HttpServer, HttpServerError
from ._http_request import HttpRequest
from ._library_logs import LibraryLogHandler, route_library_logs
from ._logs import configure_logging, get_logger
from ._metrics import RebalanceKind, ResetReason, ServiceMetrics, Stage, TransactionOutcome, new_registry
from ._reference import metrics_page
from ._states import PartitionState

__all__ = [
    "Activity",
    "ArrayHistogram",
    "Health",
    "HistogramSeries",
    "HttpHandler",
    "HttpRequest",
    "HttpResponse",
    "HttpServer",
    "HttpServerError",
    "LibraryLogHandler",
    "MetricSpec",
    "PartitionState",
    "RebalanceKind",
    "ResetReason",
    "ServiceMetrics",
    "Stage",
    "TransactionOutcome",
    "Verdict",
    "beat_event_loop",
    "configure_logging",
    "get_logger",
    "grown",
    "metrics_page",
    "new_registry",
    "route_library_logs",
    "telemetry_routes",
]
