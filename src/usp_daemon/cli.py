"""The command line: parses, delegates, and turns what happened into an exit code.

Imports inside functions have a reason: ``--help``, ``version`` and ``check-config`` answer without waiting for the
numerical libraries.
"""

import argparse
import asyncio
import json
import os
import pathlib
import sys
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING

import usp_daemon
from usp_daemon.arguments import build_parser, completion_script
from usp_daemon.early_signals import EndAtOnce
from usp_daemon.versions import versions

if TYPE_CHECKING:
    from rich.console import Console

    from usp_daemon.app import ReplaySummary

# The same as usp_daemon.app.ExitCode, whose import would bring the numerical libraries with it.
EXIT_OK, EXIT_FAILURE, EXIT_USAGE, EXIT_INPUT, EXIT_BROKER, EXIT_INTERRUPTED = 0, 1, 2, 3, 69, 130


def run_command(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code. Wrong usage raises ``SystemExit(2)``, as argparse does."""
    parser = build_parser()
    parsed = parser.parse_args(arguments)
    if parsed.command in ("feed", "tail"):
        if parsed.command == "feed" and (problem := _problem_of_feed(parsed)):
            parser.error(problem)
        return _feed_or_tail(parsed)
    if parsed.command == "version":
        return _version(as_json=parsed.json)
    if parsed.command == "top":
        return _top(parsed)
    if parsed.command == "completion":
        print(completion_script(parser, parsed.shell))
        return EXIT_OK
    if parsed.command == "check-config":
        return _check_config(parsed.config or parsed.config_option, as_json=parsed.json)
    if parsed.command == "snapshot":
        return _snapshot(parsed)
    if parsed.command in ("audit", "rollback", "reload"):
        return _of_config(parsed)
    if parsed.command in ("tune", "report"):
        return _tune_or_report(parsed)
    if parsed.command == "run":
        with EndAtOnce(EXIT_OK) as outside:
            return _run(parsed, outside)
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


def _version(*, as_json: bool) -> int:
    found: dict[str, str | None] = {"usp-daemon": usp_daemon.__version__, **versions()}
    if as_json:
        print(json.dumps(found, indent=2))
    else:
        print("\n".join(f"{name} {version or 'is missing'}" for name, version in found.items()))
    return EXIT_OK


def _check_config(path: pathlib.Path | None, *, as_json: bool) -> int:
    from usp_daemon.config import check_config

    report = check_config(path)
    if as_json:
        print(json.dumps(report.as_dict(), indent=2, ensure_ascii=False))
    elif report.is_ok:
        print(report)
    else:
        _say_error(report, prefix="")
    return EXIT_OK if report.is_ok else EXIT_USAGE


def _say_error(error: object, *, prefix: str = "error: ") -> None:
    """Print an error, and what to do next where that can be said, on standard error; red on a terminal."""
    from rich.console import Console
    from rich.text import Text

    from usp_daemon.hints import hint_for

    err = Console(stderr=True)
    err.print(Text(f"{prefix}{error}", style="red"), soft_wrap=True)
    if isinstance(error, BaseException) and (hint := hint_for(error)):
        err.print(Text(f"  {hint}"), soft_wrap=True, highlight=False)


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
        elif not snapshot_commands.verify_snapshots(out, parsed.paths, as_json=parsed.json, err=Console(stderr=True)):
            return EXIT_INPUT
    except (ConfigError, snapshot_commands.SnapshotCommandError) as error:
        _say_error(error)
        return EXIT_USAGE if isinstance(error, ConfigError) else EXIT_INPUT
    return EXIT_OK


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
            config_commands.roll_back(out, config=parsed.config, to=parsed.to, as_json=parsed.json)
        elif parsed.command == "reload":
            report = config_commands.reload(
                out, config=parsed.config, wait_s=parsed.wait, as_json=parsed.json, err=Console(stderr=True)
            )
            codes = {ReloadOutcome.REFUSED: EXIT_USAGE, ReloadOutcome.FAILED: EXIT_FAILURE}
            return codes.get(report.outcome, EXIT_OK)
        elif parsed.action == "show":
            config_commands.show_audit(out, config=parsed.config, last=parsed.last, as_json=parsed.json)
        elif not config_commands.verify_audit(out, config=parsed.config, as_json=parsed.json):
            return EXIT_INPUT
    except (ConfigMutationError, config_commands.NoDaemonError, config_commands.NoAnswerError, OSError) as error:
        _say_error(error)
        codes = (
            (config_commands.NoDaemonError, EXIT_INPUT),
            (MutationFailedError, EXIT_FAILURE),
            (MutationLockedError, EXIT_FAILURE),
            (ConfigMutationError, EXIT_USAGE),
        )
        return next((code for kind, code in codes if isinstance(error, kind)), EXIT_FAILURE)
    return EXIT_OK


def _top(parsed: argparse.Namespace) -> int:
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
        _say_error(error)
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
                wait=parsed.wait,
            )
            asyncio.run(feed_commands.tail(options, write, lambda text: print(text, file=sys.stderr, flush=True)))
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
        _say_error(error)
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


def _run(parsed: argparse.Namespace, outside: EndAtOnce | None = None) -> int:
    from rich.console import Console

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
        _say_error(error)
        return code

    try:
        ended = asyncio.run(_command(parsed, out, err, outside))
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


async def _command(
    parsed: argparse.Namespace, out: "Console", err: "Console", outside: EndAtOnce | None
) -> "ReplaySummary | int":
    from usp_daemon import app

    if parsed.command == "run":
        from usp_daemon.daemon_app import run_daemon

        assert outside is not None
        return await run_daemon(parsed.config, outside)
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


if __name__ == "__main__":
    main()
