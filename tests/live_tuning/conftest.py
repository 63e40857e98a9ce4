"""The simulated service's pieces stand in a folder beside this one."""

import sys
from pathlib import Path

for folder in (Path(__file__).parent, Path(__file__).parent.parent, Path(__file__).parent.parent / "simulation"):
    sys.path.insert(0, str(folder.resolve()))
