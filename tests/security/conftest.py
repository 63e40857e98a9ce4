"""Processes of the daemon come from the helpers of tests/chaos."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "chaos"))
