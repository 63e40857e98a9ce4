"""A parser whose refusals name what was probably meant."""

import argparse
import difflib
import re
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

# As argparse words it; where it comes to word it otherwise, the nearest name is merely not given.
_INVALID_CHOICE = re.compile(r"argument (?P<argument>.+?): invalid choice: '?(?P<given>[^']*?)'? \(choose from ")


class Parser(argparse.ArgumentParser):
    """``argparse``'s own, with "did you mean"."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, formatter_class=argparse.RawDescriptionHelpFormatter, **options)

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:
        """Parse all of ``args``, by default the process's; wrong usage raises ``SystemExit(2)``."""
        parsed, rest = self.parse_known_args(args, namespace)
        if rest:
            self.used_by(parsed).error(f"unrecognized arguments: {' '.join(rest)}")
        return parsed

    def used_by(self, parsed: argparse.Namespace) -> "Parser":
        """The parser of the command, and of the action of a command, that was given."""
        parser = self
        for level in ("command", "action"):
            choices = next((a.choices for a in parser._actions if a.dest == level and a.choices), {})
            parser = choices.get(getattr(parsed, level, None), parser)  # type: ignore[union-attr]
        return parser

    def error(self, message: str) -> NoReturn:
        """Print the usage, the message, and the nearest name where one is near; raises ``SystemExit(2)``."""
        found = _INVALID_CHOICE.match(message)
        if found is not None:
            choices = {str(choice) for action in self._actions for choice in action.choices or ()}
            hint = nearest(found["given"], choices)
            if found["argument"] in ("COMMAND", "ACTION"):
                message = f"there is no {found['argument'].lower()} {found['given']!r}" + (
                    f"; did you mean `{self.prog} {hint}`?" if hint else f"; `{self.prog} --help` lists all"
                )
            elif hint:
                message = f"{message}; did you mean {hint}?"
        elif message.startswith("unrecognized arguments: "):
            options = [option for action in self._actions for option in action.option_strings]
            words = [word.partition("=")[0] for word in message.split()[2:] if word.startswith("-")]
            hints = [hint for word in words if (hint := nearest(word, options))]
            if hints:
                message = f"{message}; did you mean {' '.join(hints)}?"
        super().error(message)


def nearest(given: str, names: Iterable[str]) -> str | None:
    """The one of ``names`` that is most like ``given``, None where none is like it."""
    found = difflib.get_close_matches(given, sorted(names), n=1, cutoff=0.6)
    return found[0] if found else None
