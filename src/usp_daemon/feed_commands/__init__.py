"""``usp-daemon feed`` and ``usp-daemon tail``: ticks into the service's input topic, and what comes out of the others.

Both stand outside the service, on the broker alone, as any producer and any consumer would. They end at the first
SIGINT or SIGTERM, which is how they are meant to end; a second one does not wait for acknowledgements any more.
"""

from ._feed import FeedOptions, FeedSummary, feed, print_feed_summary
from ._lines import TOPICS
from ._tail import TailOptions, tail

__all__ = [
    "TOPICS",
    "FeedOptions",
    "FeedSummary",
    "TailOptions",
    "feed",
    "print_feed_summary",
    "tail",
]
