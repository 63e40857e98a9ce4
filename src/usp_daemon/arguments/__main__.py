"""``python -m usp_daemon.arguments FILE`` writes the reference of the command line."""

import pathlib
import sys

from . import commands_page

if __name__ == "__main__":
    pathlib.Path(sys.argv[1]).write_text(commands_page(), "utf-8")
