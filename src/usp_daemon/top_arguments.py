"""The command line of ``usp-daemon top``; needs nothing but argparse until the command runs."""

import argparse
import pathlib
from collections.abc import Callable


def add_top_arguments(parser: argparse.ArgumentParser, *, seconds_fn: Callable[[str], float]) -> None:
    """The options; ``seconds_fn`` reads a positive number of seconds."""
    parser.add_argument("--url", metavar="URL", help="the service's address (the one of the settings)")
    parser.add_argument(
        "--config", type=pathlib.Path, metavar="FILE", help="settings (config/config.toml if it is there)"
    )
    parser.add_argument("--once", action="store_true", help="show it once, also where there is no terminal")
    parser.add_argument("--json", action="store_true", help="the document as it is, once")
    parser.add_argument("--interval", type=seconds_fn, default=1.0, metavar="S", help="seconds between two looks (1)")
    parser.add_argument("--sort", choices=("symbol", "alarm", "mode", "seq"), default="symbol", help="(symbol)")
    parser.add_argument("--filter", default="", metavar="TEXT", help="only symbols with TEXT in their name")


def run_parsed(parsed: argparse.Namespace) -> int:
    """Run the command and return its exit code."""
    from usp_daemon.top_command import TopOptions, run_top

    options = TopOptions(
        url=parsed.url,
        config=parsed.config,
        once=parsed.once,
        as_json=parsed.json,
        interval_s=parsed.interval,
        sort=parsed.sort,
        filter=parsed.filter,
    )
    return run_top(options)
