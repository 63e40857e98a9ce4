"""What the daemon says about itself."""

from ._logs import configure_logging, get_logger

__all__ = ["configure_logging", "get_logger"]
