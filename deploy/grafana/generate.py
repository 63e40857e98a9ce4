"""Write ``dashboards/*.json`` from the code beside this file: ``python deploy/grafana/generate.py [FOLDER]``."""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

from usp_dashboards import DASHBOARDS, render


def main() -> None:
    """Write one file for each dashboard."""
    folder = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else pathlib.Path(__file__).resolve().parent / "dashboards")
    folder.mkdir(parents=True, exist_ok=True)
    for name in DASHBOARDS:
        (folder / f"usp-{name}.json").write_text(render(name), "utf-8")


if __name__ == "__main__":
    main()
