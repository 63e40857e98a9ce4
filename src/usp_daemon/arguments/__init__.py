"""What can be written on the command line, and what ``--help``, completion and docs/commands.md say about it.

Nothing here runs a command, and nothing here needs more than the standard library: the help answers at once.
"""

from ._commands import build_parser
from ._completion import SHELLS, completion_script
from ._reference import commands_page
from ._texts import COMMANDS, EXIT_CODES, Command, ExitText

__all__ = [
    "COMMANDS",
    "EXIT_CODES",
    "SHELLS",
    "Command",
    "ExitText",
    "build_parser",
    "commands_page",
    "completion_script",
]
