"""The fake predictor stands beside these folders, because the command line's tests run it in processes of their own."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
