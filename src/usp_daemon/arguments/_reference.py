"""docs/commands.md, out of the parser."""

import argparse

from ._commands import build_parser
from ._texts import COMMANDS, EXIT_CODES


def commands_page() -> str:
    """The page: every command with its purpose, usage, options, examples and exit codes."""
    parser = build_parser()
    lines = [
        "# Commands",
        "",
        "<!-- Generated from the parser by `python -m usp_daemon.arguments docs/commands.md`. Do not edit. -->",
        "<!-- blocks not run: usage, and examples that other pages have in full -->",
        "",
        "`usp-daemon COMMAND --help` says the same. An option may be shortened as far as it stays unique. Defaults are",
        "in parentheses; `settings` means a key of [the configuration](configuration.md).",
        "",
        "| command | |",
        "|---|---|",
        *(f"| [`{name}`](#usp-daemon-{name}) | {command.summary} |" for name, command in COMMANDS.items()),
        "",
        "Before the command may stand:",
        "",
        *_options(parser),
        "Colours and bars that show progress are for terminals only; `NO_COLOR` turns the colours off there too. What",
        "was asked for goes to standard output, everything else to standard error.",
        "",
    ]
    for name, subparser in _children(parser).items():
        command = COMMANDS[name]
        lines += [f"## usp-daemon {name}", "", command.summary, "", command.more.replace("\n", " "), ""]
        actions = _children(subparser)
        for action_name, action_parser in actions.items():
            lines += [f"### usp-daemon {name} {action_name}", "", _escaped(action_parser.description or ""), ""]
            lines += _options(action_parser)
        lines += [] if actions else _options(subparser)
        lines += ["```console", *(f"$ {line}" for line, _ in command.examples), "```", ""]
        lines += [*(f"- `{line}`: {purpose}" for line, purpose in command.examples), ""]
        lines += ["| code | |", "|---|---|", *(f"| {code} | {text} |" for code, text in command.codes.items()), ""]
    lines += ["## Exit codes", "", "| code | meaning |", "|---|---|"]
    lines += [f"| {code} | {text} |" for code, text in EXIT_CODES.items()]
    return "\n".join(lines) + "\n"


def _children(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """Parsers of the commands or actions of ``parser`` by name."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    return {}


def _options(parser: argparse.ArgumentParser) -> list[str]:
    """A table of the arguments of ``parser``, and an empty line; nothing where there are none."""
    rows = []
    for action in parser._actions:
        if isinstance(action, argparse._HelpAction | argparse._SubParsersAction):
            continue
        values = "|".join(map(str, action.choices)) if action.choices else action.metavar or ""
        value = "" if action.nargs == 0 else str(values)
        names = [f"{name} {value}".strip() for name in action.option_strings] or [_positional(action, value)]
        rows.append(f"| {', '.join(f'`{_escaped(name)}`' for name in names)} | {_escaped(action.help or '')} |")
    return ["| argument | meaning |", "|---|---|", *rows, ""] if rows else []


def _positional(action: argparse.Action, value: str) -> str:
    return {"+": f"{value}...", "*": f"[{value}...]", "?": f"[{value}]"}.get(str(action.nargs), value)


def _escaped(text: str) -> str:
    return text.replace("|", "\\|")
