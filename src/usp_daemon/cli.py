"""The command line: parses, delegates, and turns what happened into an exit code.

Imports inside functions have a reason: ``--help``, ``version`` and ``check-config`` answer without waiting for the
numerical libraries.
"""

import argparse
import asyncio
import importlib.metadata
import math
import os
import pathlib
import sys
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING

import usp_daemon
from usp_daemon.top_arguments import add_top_arguments, run_parsed

if TYPE_CHECKING:
    from rich.console import Console

    from usp_daemon.app import ReplaySummary

# The same as usp_daemon.app.ExitCode, whose import would bring the numerical libraries with it.
EXIT_OK, EXIT_FAILURE, EXIT_USAGE, EXIT_INPUT, EXIT_BROKER, EXIT_INTERRUPTED = 0, 1, 2, 3, 69, 130
_EXIT_CODES = """exit codes:
  0    all input was read and answered (dead letters included); a service drained and stopped
  1    something broke while running: the device, the disk, a defect
  2    wrong usage or configuration, or the device asked for is not there
  3    an input file is unusable, or broke off; what could be read was answered
  69   the broker cannot be reached at start, or refuses: no rights, topics that do not fit
  75   the service ended before all was done (out of time, or stalled); start it again, recovery makes up for it
  130  interrupted (SIGINT or SIGTERM); what was done until then is in the output
"""
_PACKAGES = ("jax", "jaxlib", "equinox", "diffrax", "numpy", "aiokafka", "optuna")


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="usp-daemon",
        description="Online probabilistic forecasts and regime alarms for streams of many symbols.",
        epilog=_EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--log-level", choices=("debug", "info", "warning", "error"), default="warning", help="(warning)"
    )
    parser.add_argument("--log-json", action="store_true", help="log lines as JSON")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, text: str) -> argparse.ArgumentParser:
        return commands.add_parser(
            name, help=text, description=text, epilog=_EXIT_CODES, formatter_class=argparse.RawDescriptionHelpFormatter
        )

    demo = command("demo", "Replay the bundled real series; print a table of scores and write an HTML report.")
    demo.add_argument("--out", type=pathlib.Path, default=pathlib.Path("out/demo"), metavar="DIR", help="(out/demo)")
    demo.add_argument("--open", action="store_true", help="show the report in a browser at the end")
    demo.add_argument("--serve", action="store_true", help="slowly, with the status page, which stays until Ctrl-C")
    demo.add_argument("--port", type=_natural, metavar="N", help="port of the page, 0 for a free one (settings: 9108)")

    replay = command("replay", "Stream CSV or JSON Lines files through the predictor.")
    replay.add_argument(
        "files", nargs="+", type=pathlib.Path, metavar="FILE", help="CSV with a header, or JSON Lines; gzip is fine"
    )
    replay.add_argument(
        "--config", type=pathlib.Path, metavar="FILE", help="settings (config/config.toml if it is there)"
    )
    replay.add_argument(
        "--out", type=pathlib.Path, default=pathlib.Path("out"), metavar="DIR", help="where results go (out)"
    )
    replay.add_argument(
        "--speed",
        type=_speed,
        default=None,
        metavar="N|max",
        help="multiple of the original pace; max (default)",
    )
    replay.add_argument(
        "--format", choices=("auto", "csv", "jsonl"), default="auto", help="(auto: by suffix, else by content)"
    )
    replay.add_argument(
        "--time-unit", choices=("ns", "us", "ms", "s", "iso8601"), help="how times are written (settings: ns)"
    )
    replay.add_argument("--symbol-field", type=_name, metavar="NAME", help="column or member with the symbol (symbol)")
    replay.add_argument("--time-field", type=_name, metavar="NAME", help="column or member with the time (ts)")
    replay.add_argument("--value-field", type=_name, metavar="NAME", help="column or member with the value (value)")
    replay.add_argument("--symbol", type=_name, metavar="NAME", help="symbol of records without one (the file's stem)")
    replay.add_argument("--device", metavar="DEVICE", help="auto, cpu or cuda:N (settings: auto)")
    replay.add_argument("--precision", choices=("auto", "float32", "float64"), help="(settings: auto)")
    replay.add_argument("--max-symbols", type=_positive, metavar="N", help="symbols admitted; others are dead letters")
    replay.add_argument("--quantiles", action="store_true", help="add the quantile grid to every prediction")
    replay.add_argument("--report", action="store_true", help="also write report.html")

    run = command("run", "Run the service: ticks in from Kafka, predictions and alarms out to it.")
    run.add_argument("--config", type=pathlib.Path, metavar="FILE", help="settings (config/config.toml if it is there)")

    feed = command(
        "feed", "Send ticks to the service's input topic: the bundled series, files, or made-up ones; Ctrl-C ends it."
    )
    feed.add_argument(
        "files", nargs="*", type=pathlib.Path, metavar="FILE", help="CSV or JSON Lines, as for replay (bundled series)"
    )
    feed.add_argument(
        "--config", type=pathlib.Path, metavar="FILE", help="settings (config/config.toml if it is there)"
    )
    feed.add_argument("--rate", type=_speed, default=200.0, metavar="N|max", help="ticks a second, all symbols (200)")
    feed.add_argument("--symbols", type=_positive, metavar="N", help="make N series up, without end, in place of files")
    feed.add_argument("--seed", type=int, metavar="S", help="what the made-up series depend on (0)")
    feed.add_argument("--count", type=_positive, metavar="N", help="end after N ticks")
    feed.add_argument(
        "--time-unit", choices=("ns", "us", "ms", "s", "iso8601"), help="how times are written in FILE (settings: ns)"
    )
    feed.add_argument("--original-times", action="store_true", help="keep the times of FILE; else ticks are of now")
    feed.add_argument("--print", action="store_true", help="print every tick that is sent")

    tail = command("tail", "Print what the service publishes, a line each, as it is committed; Ctrl-C ends it.")
    tail.add_argument(
        "--config", type=pathlib.Path, metavar="FILE", help="settings (config/config.toml if it is there)"
    )
    tail.add_argument("--topic", choices=("predictions", "alarms", "dead-letters", "all"), default="all", help="(all)")
    tail.add_argument(
        "--from", dest="start", choices=("earliest", "latest"), default="latest", help="where to begin (latest)"
    )
    tail.add_argument("--symbol", type=_name, metavar="NAME", help="only records with this key")
    tail.add_argument("--count", type=_positive, metavar="N", help="end after N records")
    tail.add_argument("--json", action="store_true", help="the records as they are")

    _add_tuning_commands(
        command("tune", "Search for better settings on recorded ticks; interrupted, the same command continues."),
        command("report", "Say what came of a tuning campaign: best values, importance, convergence."),
    )

    check = command("check-config", "Say whether a configuration is right, or everything that is wrong with it.")
    check.add_argument(
        "config", nargs="?", type=pathlib.Path, metavar="FILE", help="(config/config.toml if it is there)"
    )

    _add_snapshot_commands(command("snapshot", "List, inspect or verify the snapshots of a daemon's state."))

    _add_audit_commands(command("audit", "Show or verify the log of changes that were made to the configuration."))

    rollback = command("rollback", "Take the last change of the configuration back, or go back to a former one.")
    rollback.add_argument("--to", type=_name, metavar="HASH|EPOCH", help="a former configuration (the last change)")
    reload = command("reload", "Have the running service read its configuration now, and say what came of it.")
    reload.add_argument("--wait", type=_wait, default=30.0, metavar="S", help="seconds to wait for its answer (30)")
    for subparser in (rollback, reload):
        subparser.add_argument(
            "--config", type=pathlib.Path, metavar="FILE", help="settings (config/config.toml if it is there)"
        )

    text = "Show what a running service does, again and again; Ctrl-C ends it."
    add_top_arguments(command("top", text), seconds_fn=_seconds)

    command("version", "Print the versions of usp-daemon and of what it computes with.")
    return parser


def run_command(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code. Wrong usage raises ``SystemExit(2)``, as argparse does."""
    parser = build_parser()
    parsed = parser.parse_args(arguments)
    if parsed.command in ("feed", "tail"):
        if parsed.command == "feed" and (problem := _problem_of_feed(parsed)):
            parser.error(problem)
        return _feed_or_tail(parsed)
    if parsed.command == "version":
        return _version()
    if parsed.command == "top":
        return run_parsed(parsed)
    if parsed.command == "check-config":
        return _check_config(parsed.config)
    if parsed.command == "snapshot":
        return _snapshot(parsed)
    if parsed.command in ("audit", "rollback", "reload"):
        return _of_config(parsed)
    if parsed.command in ("tune", "report"):
        return _tune_or_report(parsed)
    return _run(parsed)


def main() -> None:
    """The console script: leaves at once even when a thread is still busy (a compilation cannot be interrupted).

    No thread may outlive the interpreter, daemon threads neither: one that is still freeing the device's buffers when
    the interpreter ends aborts the process, which would then report SIGABRT for an orderly end.
    """
    code = run_command()
    sys.stdout.flush()
    sys.stderr.flush()
    if any(thread is not threading.main_thread() for thread in threading.enumerate()):
        os._exit(code)
    sys.exit(code)


def _version() -> int:
    print(f"usp-daemon {usp_daemon.__version__}")
    print(f"python {sys.version.split()[0]}")
    for package in _PACKAGES:
        try:
            print(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            print(f"{package} is missing")
    return EXIT_OK


def _check_config(path: pathlib.Path | None) -> int:
    from usp_daemon.config import check_config

    report = check_config(path)
    print(report, file=sys.stdout if report.is_ok else sys.stderr)
    return EXIT_OK if report.is_ok else EXIT_USAGE


def _add_snapshot_commands(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    text = "List all snapshots of a store, without reading their bodies."
    listing = actions.add_parser("list", help=text, description=text)
    where = listing.add_mutually_exclusive_group()
    where.add_argument("--config", type=pathlib.Path, metavar="FILE", help="settings, for io.snapshot_path")
    where.add_argument("--path", type=pathlib.Path, metavar="DIR", help="the directory itself")
    text = "Show what a snapshot says about itself."
    inspection = actions.add_parser("inspect", help=text, description=text)
    inspection.add_argument("file", type=pathlib.Path, metavar="FILE")
    for subparser in (listing, inspection):
        subparser.add_argument("--json", action="store_true", help="as JSON")
    text = "Read snapshots to their last bit: exit code 0 if all are whole, 3 if one is not or there is none."
    verification = actions.add_parser("verify", help=text, description=text)
    verification.add_argument("paths", nargs="+", type=pathlib.Path, metavar="FILE|DIR")


def _snapshot(parsed: argparse.Namespace) -> int:
    from rich.console import Console

    from usp_daemon import snapshot_commands
    from usp_daemon.config import ConfigError

    out = Console(width=None if sys.stdout.isatty() else 160)
    try:
        if parsed.action == "list":
            snapshot_commands.list_snapshots(out, config=parsed.config, directory=parsed.path, as_json=parsed.json)
        elif parsed.action == "inspect":
            snapshot_commands.inspect_snapshot(out, parsed.file, as_json=parsed.json)
        elif not snapshot_commands.verify_snapshots(out, parsed.paths):
            return EXIT_INPUT
    except (ConfigError, snapshot_commands.SnapshotCommandError) as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USAGE if isinstance(error, ConfigError) else EXIT_INPUT
    return EXIT_OK


def _add_audit_commands(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    text = "Read the log to its last bit: exit code 0 if it is what was written, 3 if not."
    verification = actions.add_parser("verify", help=text, description=text)
    text = "Print what was changed, refused, rolled back and kept."
    showing = actions.add_parser("show", help=text, description=text)
    showing.add_argument("--json", action="store_true", help="as JSON")
    showing.add_argument("--last", type=_positive, metavar="N", help="only the last N lines")
    for subparser in (verification, showing):
        subparser.add_argument("--config", type=pathlib.Path, metavar="FILE", help="settings, for io.mutations_log")


def _of_config(parsed: argparse.Namespace) -> int:
    from rich.console import Console

    from usp_daemon import config_commands
    from usp_daemon.config import (
        ConfigMutationError,
        MutationFailedError,
        MutationLockedError,
        ReloadOutcome,
    )

    out = Console(width=None if sys.stdout.isatty() else 200)
    try:
        if parsed.command == "rollback":
            config_commands.roll_back(out, config=parsed.config, to=parsed.to)
        elif parsed.command == "reload":
            report = config_commands.reload(out, config=parsed.config, wait_s=parsed.wait)
            codes = {ReloadOutcome.REFUSED: EXIT_USAGE, ReloadOutcome.FAILED: EXIT_FAILURE}
            return codes.get(report.outcome, EXIT_OK)
        elif parsed.action == "show":
            config_commands.show_audit(out, config=parsed.config, last=parsed.last, as_json=parsed.json)
        elif not config_commands.verify_audit(out, config=parsed.config):
            return EXIT_INPUT
    except (ConfigMutationError, config_commands.NoDaemonError, config_commands.NoAnswerError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        codes = (
            (config_commands.NoDaemonError, EXIT_INPUT),
            (MutationFailedError, EXIT_FAILURE),
            (MutationLockedError, EXIT_FAILURE),
            (ConfigMutationError, EXIT_USAGE),
        )
        return next((code for kind, code in codes if isinstance(error, kind)), EXIT_FAILURE)
    return EXIT_OK


def _add_tuning_commands(tune: argparse.ArgumentParser, report: argparse.ArgumentParser) -> None:
    tune.add_argument(
        "files", nargs="+", type=pathlib.Path, metavar="FILE", help="ticks, CSV or JSON Lines, as for replay"
    )
    for parser in (tune, report):
        parser.add_argument(
            "--config", type=pathlib.Path, metavar="FILE", help="settings (config/config.toml if it is there)"
        )
    tune.add_argument("--trials", type=_positive, metavar="N", help="trials of the whole campaign (settings: 50)")
    tiers = tune.add_mutually_exclusive_group()
    tiers.add_argument(
        "--tier",
        choices=("fast", "sensitive", "deep", "wide"),
        help="search 6 parameters, the 9 that move forecasts most, 23, or 30 (settings: sensitive)",
    )
    tiers.add_argument("--deep", action="store_const", const="deep", dest="tier", help="the same as --tier deep")
    tune.add_argument("--out", type=pathlib.Path, metavar="DIR", help="where campaigns are kept (settings: io/tuning)")
    tune.add_argument("--name", type=_name, metavar="NAME", help="the campaign's name (usp-TIER)")
    tune.add_argument("--seed", type=_natural, metavar="S", help="what the draws depend on (settings: 42)")
    tune.add_argument(
        "--time-limit", type=_seconds, metavar="SECONDS", help="begin no batch after that time (settings: 7 days)"
    )
    how = tune.add_mutually_exclusive_group()
    how.add_argument("--resume", action="store_true", help="continue a campaign, refuse to begin one")
    how.add_argument("--fresh", action="store_true", help="put the campaign that is there away and begin anew")
    tune.add_argument("--worker", type=_name, metavar="NAME", help="this machine's name in a shared campaign (its own)")
    tune.add_argument("--format", choices=("auto", "csv", "jsonl"), default="auto", help="(auto: by suffix or content)")
    tune.add_argument(
        "--time-unit", choices=("ns", "us", "ms", "s", "iso8601"), help="how times are written (settings: ns)"
    )
    report.add_argument(
        "campaign", nargs="?", metavar="CAMPAIGN", help="a journal, a saved study, or a name (the only one there is)"
    )
    report.add_argument("--html", type=pathlib.Path, metavar="FILE", help="also write a page with drawings")
    report.add_argument("--json", action="store_true", help="as JSON, with every trial")
    report.add_argument("--audit", type=pathlib.Path, metavar="FILE", help="a log of what was applied and rolled back")
    for parser in (tune, report):
        parser.add_argument("--propose", action="store_true", help="print only the best values, as settings")


def _tune_or_report(parsed: argparse.Namespace) -> int:
    from rich.console import Console

    from usp_daemon import tune_commands
    from usp_daemon.config import ConfigError
    from usp_daemon.telemetry import configure_logging
    from usp_daemon.transport import InputError
    from usp_daemon.tuning import CampaignMismatchError, TuningError

    configure_logging(parsed.log_level, log_format="json" if parsed.log_json else "console")
    out, err = Console(width=None if sys.stdout.isatty() else 110), Console(stderr=True)
    try:
        if parsed.command == "report":
            reporting = tune_commands.ReportOptions(
                campaign=parsed.campaign,
                config=parsed.config,
                html=parsed.html,
                as_json=parsed.json,
                propose=parsed.propose,
                audit=parsed.audit,
            )
            tune_commands.report(reporting, out)
            return EXIT_OK
        tuning = tune_commands.TuneOptions(
            files=parsed.files,
            config=parsed.config,
            out=parsed.out,
            name=parsed.name,
            trials=parsed.trials,
            tier=parsed.tier,
            resume=parsed.resume,
            fresh=parsed.fresh,
            time_limit_s=parsed.time_limit,
            seed=parsed.seed,
            worker=parsed.worker,
            propose=parsed.propose,
            file_format=parsed.format,
            time_unit=parsed.time_unit,
        )
        return EXIT_OK if tune_commands.tune(tuning, out, err) else EXIT_INTERRUPTED
    except (ConfigError, InputError, TuningError) as error:
        print(f"error: {error}", file=sys.stderr)
        codes = ((ConfigError, EXIT_USAGE), (CampaignMismatchError, EXIT_USAGE), (InputError, EXIT_INPUT))
        return next((code for kind, code in codes if isinstance(error, kind)), EXIT_FAILURE)
    except KeyboardInterrupt:
        print("interrupted: every finished trial is kept; the same command continues the campaign", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_OK


def _problem_of_feed(parsed: argparse.Namespace) -> str | None:
    if parsed.symbols is not None and (parsed.files or parsed.original_times):
        return "feed: --symbols makes series up, so it goes with neither FILE nor --original-times"
    if parsed.symbols is None and parsed.seed is not None:
        return "feed: --seed is for --symbols"
    if parsed.time_unit is not None and not parsed.files:
        return "feed: --time-unit is for FILE"
    return None


def _feed_or_tail(parsed: argparse.Namespace) -> int:
    from rich.console import Console

    from usp_daemon import feed_commands
    from usp_daemon.config import ConfigError
    from usp_daemon.telemetry import configure_logging, route_library_logs
    from usp_daemon.transport import InputError
    from usp_daemon.wire import TransportError

    configure_logging(parsed.log_level, log_format="json" if parsed.log_json else "console")
    undo_logs = route_library_logs(parsed.log_level)
    err = Console(stderr=True)

    def write(lines: bytes) -> None:
        sys.stdout.buffer.write(lines)
        sys.stdout.buffer.flush()

    try:
        if parsed.command == "tail":
            options = feed_commands.TailOptions(
                topics=feed_commands.TOPICS if parsed.topic == "all" else (parsed.topic,),
                config=parsed.config,
                from_beginning=parsed.start == "earliest",
                symbol=parsed.symbol,
                count=parsed.count,
                as_json=parsed.json,
                colours=sys.stdout.isatty() and not os.environ.get("NO_COLOR"),
            )
            asyncio.run(feed_commands.tail(options, write))
            return EXIT_OK
        feeding = feed_commands.FeedOptions(
            files=parsed.files,
            config=parsed.config,
            rate=parsed.rate,
            symbols=parsed.symbols,
            seed=parsed.seed or 0,
            count=parsed.count,
            time_unit=parsed.time_unit,
            original_times=parsed.original_times,
            print_ticks=parsed.print,
        )
        summary = asyncio.run(feed_commands.feed(feeding, write, err))
        feed_commands.print_feed_summary(summary, err)
        if summary.acknowledged < summary.sent:
            return EXIT_BROKER
        return EXIT_INPUT if summary.problems else EXIT_OK
    except (ConfigError, TransportError) as error:
        print(f"error: {error}", file=sys.stderr)
        codes = ((ConfigError, EXIT_USAGE), (InputError, EXIT_INPUT), (TransportError, EXIT_BROKER))
        return next(code for kind, code in codes if isinstance(error, kind))
    except BrokenPipeError:
        # Whoever read standard output has seen enough; what Python would still flush there goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_OK
    except KeyboardInterrupt:  # before the signals were taken over: nothing was begun
        return EXIT_OK
    finally:
        undo_logs()


def _run(parsed: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.text import Text

    from usp_daemon.compute import ComputeError, DeviceUnavailableError
    from usp_daemon.config import ConfigError
    from usp_daemon.persistence import PersistenceError
    from usp_daemon.telemetry import HttpServerError, configure_logging, get_logger
    from usp_daemon.transport import InputError
    from usp_daemon.wire import TransportError

    configure_logging(parsed.log_level, log_format="json" if parsed.log_json else "console")
    # Rich takes 80 columns where there is no terminal; a table in a log may be wider.
    out, err = Console(width=None if sys.stdout.isatty() else 110), Console(stderr=True)

    def fail(error: object, code: int) -> int:
        err.print(Text(f"error: {error}", style="red"), soft_wrap=True)
        return code

    try:
        ended = asyncio.run(_command(parsed, out, err))
    except* ConfigError as group:
        return_code = fail(_only(group), EXIT_USAGE)
    except* DeviceUnavailableError as group:
        return_code = fail(_only(group), EXIT_USAGE)
    except* InputError as group:
        return_code = fail(_only(group), EXIT_INPUT)
    except* HttpServerError as group:
        return_code = fail(_only(group), EXIT_USAGE)
    except* TransportError as group:
        return_code = fail(_only(group), EXIT_BROKER if parsed.command == "run" else EXIT_FAILURE)
    except* (ComputeError, PersistenceError) as group:
        return_code = fail(_only(group), EXIT_FAILURE)
    except* KeyboardInterrupt:
        return_code = EXIT_INTERRUPTED
    except* Exception as group:
        # The one broad handler: whatever comes here is a defect, and its traceback is what is needed to mend it.
        get_logger(__name__).error("command_failed", command=parsed.command, exc_info=group)
        return_code = fail(_only(group), EXIT_FAILURE)
    else:
        if isinstance(ended, int):
            return int(ended)
        return_code = int(ended.exit_code)
        if parsed.command == "demo" and parsed.open and ended.stats.predictions:
            _open_report(parsed.out)
    return return_code


async def _command(parsed: argparse.Namespace, out: "Console", err: "Console") -> "ReplaySummary | int":
    from usp_daemon import app

    if parsed.command == "run":
        from usp_daemon.daemon_app import run_daemon

        return await run_daemon(parsed.config)
    if parsed.command == "demo" and parsed.serve:
        from usp_daemon.demo_status import serve_demo

        return await serve_demo(parsed.out, out, err, port=parsed.port)
    if parsed.command == "demo":
        return await app.demo(parsed.out, out, err)
    options = app.ReplayOptions(
        files=parsed.files,
        out=parsed.out,
        config=parsed.config,
        speed=parsed.speed,
        file_format=parsed.format,
        time_unit=parsed.time_unit,
        symbol_field=parsed.symbol_field,
        time_field=parsed.time_field,
        value_field=parsed.value_field,
        symbol=parsed.symbol,
        device=parsed.device,
        precision=parsed.precision,
        max_symbols=parsed.max_symbols,
        quantiles=parsed.quantiles,
        report=parsed.report,
    )
    return await app.replay(options, out, err)


def _open_report(directory: pathlib.Path) -> None:
    import webbrowser

    webbrowser.open((directory / "report.html").resolve().as_uri())


def _only(group: BaseExceptionGroup) -> BaseException:
    """The first single exception in a group; a failed stage takes the others with it, so there is rarely a second."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _speed(text: str) -> float | None:
    if text == "max":
        return None
    speed = float(text)
    if not (speed > 0.0 and math.isfinite(speed)):
        raise argparse.ArgumentTypeError(f"expected a positive number or max, got {text}")
    return speed


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected at least 1, got {text}")
    return number


def _wait(text: str) -> float:
    seconds = float(text)
    if not (seconds >= 0.0 and math.isfinite(seconds)):
        raise argparse.ArgumentTypeError(f"expected seconds, 0 or more, got {text}")
    return seconds


def _natural(text: str) -> int:
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"expected at least 0, got {text}")
    return number


def _seconds(text: str) -> float:
    seconds = float(text)
    if not (seconds > 0.0 and math.isfinite(seconds)):
        raise argparse.ArgumentTypeError(f"expected a positive number of seconds, got {text}")
    return seconds


def _name(text: str) -> str:
    if not text.strip():
        raise argparse.ArgumentTypeError("expected a name")
    return text


if __name__ == "__main__":
    main()
