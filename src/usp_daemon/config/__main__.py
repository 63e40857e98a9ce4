"""``python -m usp_daemon.config ROOT`` rewrites the files under ROOT that are generated from the schema."""

import sys
from pathlib import Path

from ._reference import configuration_page, default_toml, errata_page

GENERATED = {
    "config/config.toml": default_toml,
    "docs/configuration.md": configuration_page,
    "docs/errata/configuration.md": errata_page,
}


def main(root: Path) -> None:
    """Writes every generated file."""
    for name, text_of in GENERATED.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text_of(), "utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "."))
