"""The status page: a bounded board of what the service does, the document made of it, and the page that shows it."""

from ._board import Board, BoardView
from ._build import Facts, build_status, encode_status
from ._document import (
    SCHEMA_VERSION,
    AlarmEvent,
    Change,
    Config,
    Health,
    History,
    Partition,
    Reload,
    Service,
    Snapshot,
    Status,
    SymbolStatus,
    Totals,
    Tuner,
)
from ._routes import ICON_PATH, JSON_PATH, PAGE_PATH, status_routes

__all__ = [
    "ICON_PATH",
    "JSON_PATH",
    "PAGE_PATH",
    "SCHEMA_VERSION",
    "AlarmEvent",
    "Board",
    "BoardView",
    "Change",
    "Config",
    "Facts",
    "Health",
    "History",
    "Partition",
    "Reload",
    "Service",
    "Snapshot",
    "Status",
    "SymbolStatus",
    "Totals",
    "Tuner",
    "build_status",
    "encode_status",
    "status_routes",
]
