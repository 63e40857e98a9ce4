"""Scripts that teach a shell to complete the command line."""

import argparse

SHELLS = ("bash", "zsh", "tcsh")


def completion_script(parser: argparse.ArgumentParser, shell: str) -> str:
    """The script for ``shell``, one of :data:`SHELLS`, that completes commands, options, choices and paths."""
    import shtab  # only here: nobody else waits for it

    return shtab.complete(parser, shell)
