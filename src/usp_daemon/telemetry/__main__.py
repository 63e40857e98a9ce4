"""``python -m usp_daemon.telemetry FILE`` writes the reference of the metrics."""

import sys
from pathlib import Path

from ._reference import metrics_page

if __name__ == "__main__":
    Path(sys.argv[1] if len(sys.argv) > 1 else "docs/metrics.md").write_text(metrics_page(), "utf-8")
