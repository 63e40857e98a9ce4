"""The parser of all commands."""

import argparse
import pathlib
from collections.abc import Callable
from typing import Any

from . import _kinds as kinds
from ._completion import SHELLS
from ._parser import Parser
from ._texts import COMMANDS, EXIT_CODES, FIRST_STEPS

# What a shell completes an argument with, by its metavariable (shtab's names).
_PATHS = {"FILE": "file", "DIR": "directory", "FILE|DIR": "file"}


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands. The namespace has ``command``, of some ``action``, and an attribute per option."""
    parser = Parser(
        prog="usp-daemon",
        description="Online probabilistic forecasts and regime alarms for streams of many symbols.",
        epilog="\n".join([FIRST_STEPS, "exit codes:", *(f"  {code:<4} {text}" for code, text in EXIT_CODES.items())])
        + "\n",
    )
    parser.add_argument(
        "--log-level", choices=("debug", "info", "warning", "error"), default="warning", help="(warning)"
    )
    parser.add_argument("--log-json", action="store_true", help="log lines as JSON")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=Parser)
    for name, add_fn in _COMMANDS.items():
        text = COMMANDS[name]
        add_fn(
            commands.add_parser(
                name, help=text.summary, description=f"{text.summary}\n\n{text.more}", epilog=text.epilog
            )
        )
    return parser


def _argument(parser: Any, *names: str, **options: Any) -> None:
    """Add an argument; a path also says how a shell is to complete it."""
    action = parser.add_argument(*names, **options)
    if options.get("metavar") in _PATHS:
        import shtab  # small, but only who asks for completion should have to have it

        action.complete = {"file": shtab.FILE, "directory": shtab.DIRECTORY}[_PATHS[options["metavar"]]]


def _config(parser: Any) -> None:
    _argument(
        parser, "--config", type=pathlib.Path, metavar="FILE", help="settings (config/config.toml if it is there)"
    )


def _json(parser: Any, text: str = "as JSON, for scripts") -> None:
    _argument(parser, "--json", action="store_true", help=text)


def _time_unit(parser: Any, what: str = "how times are written (settings: ns)") -> None:
    _argument(parser, "--time-unit", choices=("ns", "us", "ms", "s", "iso8601"), help=what)


def _actions(parser: Parser) -> Callable[[str, str], Parser]:
    """Adds an action with a sentence about it."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION", parser_class=Parser)
    return lambda name, text: actions.add_parser(name, help=text, description=text)


def _demo(parser: Parser) -> None:
    _argument(parser, "--out", type=pathlib.Path, default=pathlib.Path("out/demo"), metavar="DIR", help="(out/demo)")
    _argument(parser, "--open", action="store_true", help="show the report in a browser at the end")
    _argument(parser, "--serve", action="store_true", help="slowly, with the status page, which stays until Ctrl-C")
    _argument(
        parser, "--port", type=kinds.natural, metavar="N", help="port of the page, 0 for a free one (settings: 9108)"
    )


def _replay(parser: Parser) -> None:
    _argument(
        parser,
        "files",
        nargs="+",
        type=pathlib.Path,
        metavar="FILE",
        help="CSV with a header, or JSON Lines; gzip is fine",
    )
    _config(parser)
    _argument(
        parser, "--out", type=pathlib.Path, default=pathlib.Path("out"), metavar="DIR", help="where results go (out)"
    )
    _argument(
        parser,
        "--speed",
        type=kinds.speed,
        default=None,
        metavar="N|max",
        help="multiple of the original pace; max (default)",
    )
    _argument(
        parser,
        "--format",
        choices=("auto", "csv", "jsonl"),
        default="auto",
        help="(auto: by suffix, else by content)",
    )
    _time_unit(parser)
    for what, default in (("symbol", "symbol"), ("time", "ts"), ("value", "value")):
        _argument(
            parser,
            f"--{what}-field",
            type=kinds.name,
            metavar="NAME",
            help=f"column or member with the {what} ({default})",
        )
    _argument(
        parser, "--symbol", type=kinds.name, metavar="NAME", help="symbol of records without one (the file's stem)"
    )
    _argument(parser, "--device", metavar="DEVICE", help="auto, cpu or cuda:N (settings: auto)")
    _argument(parser, "--precision", choices=("auto", "float32", "float64"), help="(settings: auto)")
    _argument(
        parser, "--max-symbols", type=kinds.positive, metavar="N", help="symbols admitted; others are dead letters"
    )
    _argument(parser, "--quantiles", action="store_true", help="add the quantile grid to every prediction")
    _argument(parser, "--report", action="store_true", help="also write report.html")


def _feed(parser: Parser) -> None:
    _argument(
        parser,
        "files",
        nargs="*",
        type=pathlib.Path,
        metavar="FILE",
        help="CSV or JSON Lines, as for replay (bundled series)",
    )
    _config(parser)
    _argument(
        parser,
        "--rate",
        type=kinds.speed,
        default=200.0,
        metavar="N|max",
        help="ticks a second, all symbols (200)",
    )
    _argument(
        parser, "--symbols", type=kinds.positive, metavar="N", help="make N series up, without end, in place of files"
    )
    _argument(parser, "--seed", type=int, metavar="S", help="what the made-up series depend on (0)")
    _argument(parser, "--count", type=kinds.positive, metavar="N", help="end after N ticks")
    _time_unit(parser, "how times are written in FILE (settings: ns)")
    _argument(parser, "--original-times", action="store_true", help="keep the times of FILE; else ticks are of now")
    _argument(parser, "--print", action="store_true", help="print every tick that is sent")


def _tail(parser: Parser) -> None:
    _config(parser)
    _argument(
        parser,
        "--topic",
        choices=("predictions", "alarms", "dead-letters", "all"),
        default="all",
        help="which results to show (all)",
    )
    _argument(
        parser,
        "--from",
        dest="start",
        choices=("earliest", "latest"),
        default="latest",
        help="where to begin (latest)",
    )
    _argument(parser, "--symbol", type=kinds.name, metavar="NAME", help="only records with this key")
    _argument(parser, "--count", type=kinds.positive, metavar="N", help="end after N records")
    _argument(
        parser,
        "--no-wait",
        dest="wait",
        action="store_false",
        help="end with 69 where a topic is not there yet, in place of waiting for it",
    )
    _json(parser, "the records as they are")


def _tune(parser: Parser) -> None:
    _argument(
        parser,
        "files",
        nargs="+",
        type=pathlib.Path,
        metavar="FILE",
        help="ticks, CSV or JSON Lines, as for replay",
    )
    _config(parser)
    _argument(parser, "--trials", type=kinds.positive, metavar="N", help="trials of the whole campaign (settings: 50)")
    tiers = parser.add_mutually_exclusive_group()
    _argument(
        tiers,
        "--tier",
        choices=("fast", "sensitive", "deep", "wide"),
        help="search 6 parameters, the 9 that move forecasts most, 23, or 30 (settings: sensitive)",
    )
    _argument(tiers, "--deep", action="store_const", const="deep", dest="tier", help="the same as --tier deep")
    _argument(parser, "--out", type=pathlib.Path, metavar="DIR", help="where campaigns are kept (settings: io/tuning)")
    _argument(parser, "--name", type=kinds.name, metavar="NAME", help="the campaign's name (usp-TIER)")
    _argument(parser, "--seed", type=kinds.natural, metavar="S", help="what the draws depend on (settings: 42)")
    _argument(
        parser,
        "--time-limit",
        type=kinds.seconds,
        metavar="SECONDS",
        help="begin no batch after that time (settings: 7 days)",
    )
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--resume", action="store_true", help="continue a campaign, refuse to begin one")
    how.add_argument("--fresh", action="store_true", help="put the campaign that is there away and begin anew")
    _argument(
        parser,
        "--worker",
        type=kinds.name,
        metavar="NAME",
        help="this machine's name in a shared campaign (its own)",
    )
    _argument(parser, "--format", choices=("auto", "csv", "jsonl"), default="auto", help="(auto: by suffix or content)")
    _time_unit(parser)
    _propose(parser)


def _propose(parser: Parser) -> None:
    _argument(parser, "--propose", action="store_true", help="print only the best values, as settings")


def _report(parser: Parser) -> None:
    _argument(
        parser,
        "campaign",
        nargs="?",
        metavar="CAMPAIGN",
        help="a journal, a saved study, or a name (the only one there is)",
    )
    _config(parser)
    _argument(parser, "--html", type=pathlib.Path, metavar="FILE", help="also write a page with drawings")
    _json(parser, "as JSON, with every trial")
    _argument(parser, "--audit", type=pathlib.Path, metavar="FILE", help="a log of what was applied and rolled back")
    _propose(parser)


def _check_config(parser: Parser) -> None:
    # Both forms name the same: the option is what the other commands have.
    which = parser.add_mutually_exclusive_group()
    _argument(
        which,
        "config",
        nargs="?",
        type=pathlib.Path,
        metavar="FILE",
        help="(config/config.toml if it is there)",
    )
    _argument(which, "--config", dest="config_option", type=pathlib.Path, metavar="FILE", help="the same, as an option")
    _json(parser)


def _snapshot(parser: Parser) -> None:
    action = _actions(parser)
    listing = action("list", "List all snapshots of a store, without reading their bodies.")
    where = listing.add_mutually_exclusive_group()
    _argument(where, "--config", type=pathlib.Path, metavar="FILE", help="settings, for io.snapshot_path")
    _argument(where, "--path", type=pathlib.Path, metavar="DIR", help="the directory itself")
    inspection = action("inspect", "Show what a snapshot says about itself.")
    _argument(inspection, "file", type=pathlib.Path, metavar="FILE", help="a snapshot")
    verification = action(
        "verify", "Read snapshots to their last bit: exit code 0 if all are whole, 3 if one is not or there is none."
    )
    _argument(
        verification,
        "paths",
        nargs="+",
        type=pathlib.Path,
        metavar="FILE|DIR",
        help="snapshots, or directories to look for them in",
    )
    for parser_of_action in (listing, inspection, verification):
        _json(parser_of_action)


def _audit(parser: Parser) -> None:
    action = _actions(parser)
    verification = action("verify", "Read the log to its last bit: exit code 0 if it is what was written, 3 if not.")
    showing = action("show", "Print what was changed, refused, rolled back and kept.")
    _argument(showing, "--last", type=kinds.positive, metavar="N", help="only the last N lines")
    for parser_of_action in (verification, showing):
        _json(parser_of_action)
        _argument(
            parser_of_action, "--config", type=pathlib.Path, metavar="FILE", help="settings, for io.mutations_log"
        )


def _rollback(parser: Parser) -> None:
    _argument(parser, "--to", type=kinds.name, metavar="HASH|EPOCH", help="a former configuration (the last change)")
    _config(parser)
    _json(parser)


def _reload(parser: Parser) -> None:
    _argument(parser, "--wait", type=kinds.wait, default=30.0, metavar="S", help="seconds to wait for its answer (30)")
    _config(parser)
    _json(parser)


def _top(parser: Parser) -> None:
    _argument(parser, "--url", metavar="URL", help="the service's address (the one of the settings)")
    _config(parser)
    _argument(parser, "--once", action="store_true", help="show it once, also where there is no terminal")
    _json(parser, "the document as it is, once")
    _argument(parser, "--interval", type=kinds.seconds, default=1.0, metavar="S", help="seconds between two looks (1)")
    _argument(parser, "--sort", choices=("symbol", "alarm", "mode", "seq"), default="symbol", help="(symbol)")
    _argument(parser, "--filter", default="", metavar="TEXT", help="only symbols with TEXT in their name")


def _completion(parser: Parser) -> None:
    _argument(parser, "shell", choices=SHELLS, help="the shell to write it for")


# In the order in which the help lists them.
_COMMANDS: dict[str, Callable[[Parser], None]] = {
    "demo": _demo,
    "replay": _replay,
    "run": _config,
    "feed": _feed,
    "tail": _tail,
    "tune": _tune,
    "report": _report,
    "check-config": _check_config,
    "snapshot": _snapshot,
    "audit": _audit,
    "rollback": _rollback,
    "reload": _reload,
    "top": _top,
    "completion": _completion,
    "version": _json,
}
