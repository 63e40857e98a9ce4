#!/usr/bin/env python3
"""A real Apache Kafka broker on 127.0.0.1 for development. Needs Python, Java 17 and Maven, and no virtual environment.

python3 scripts/kafka.py start --foreground       until Ctrl-C; `make kafka` does the same
python3 scripts/kafka.py start; ... status; ... stop
"""

import argparse
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from kafka_broker import VERSIONS, Broker, BrokerFailed, BrokerUnavailable, fetch  # noqa: E402 - the line above finds it

SECURITY = ("plaintext", "ssl", "mtls", "sasl_plaintext", "sasl_ssl")
CHECK_EVERY_S = 1


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    try:
        return options.run(options)
    except (BrokerFailed, BrokerUnavailable) as error:
        print(f"kafka: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    fetching = commands.add_parser("fetch", help="download the broker's jars, once")
    fetching.add_argument(
        "--version", action="append", choices=VERSIONS, help=f"default {VERSIONS[0]}; may be repeated"
    )
    fetching.set_defaults(run=run_fetch)

    starting = commands.add_parser("start", help="start a broker, or three")
    starting.add_argument("--version", choices=VERSIONS, default=VERSIONS[0], help="default %(default)s")
    starting.add_argument("--nodes", type=int, choices=(1, 3), default=1, help="default %(default)s")
    starting.add_argument(
        "--port",
        type=int,
        default=9092,
        help="of the first node; the next nodes take the ports after it; default %(default)s",
    )
    starting.add_argument(
        "--security",
        choices=SECURITY,
        default=SECURITY[0],
        help="the listener on --port; with any but plaintext, all of them listen, the others on ports of their own",
    )
    starting.add_argument(
        "--foreground", action="store_true", help="stay until Ctrl-C or SIGTERM, then stop the broker"
    )
    starting.set_defaults(run=run_start)

    stopping = commands.add_parser("stop", help="stop every broker of the directory; its data stay")
    stopping.set_defaults(run=run_stop)
    showing = commands.add_parser("status", help="list the brokers of the directory; exit status 1 if none runs")
    showing.set_defaults(run=run_status)
    for command in (starting, stopping, showing):
        command.add_argument(
            "--directory",
            type=Path,
            default=ROOT / ".cache" / "kafka" / "data",
            help="holds one folder for each form of broker; default .cache/kafka/data",
        )
    return top


def run_fetch(options: argparse.Namespace) -> int:
    for version in options.version or VERSIONS[:1]:
        print(fetch(version))
    return 0


def run_start(options: argparse.Namespace) -> int:
    fetch(options.version)
    secured = options.security != SECURITY[0]
    # Storage of one form is of no use to another, so each has its own.
    name = f"{options.version}-nodes-{options.nodes}" + ("-secured" if secured else "")
    broker = Broker(
        options.directory / name,
        options.nodes,
        options.version,
        secured,
        port=options.port,
        port_listener=options.security.upper(),
        long_lived=True,
    )
    if broker.running == broker.nodes:
        # with the ports it was started with, whatever was asked for now
        describe(Broker.at(broker.directory))
        print("kafka: already running", file=sys.stderr)
        return 1 if options.foreground else 0
    if not options.foreground:
        broker.start()
        describe(broker)
        return 0
    with _end_signals() as pending:
        try:
            broker.start()
            describe(broker)
            print("Ctrl-C stops it", flush=True)
            return wait(broker, pending)
        finally:
            broker.stop()
            print("\nstopped", flush=True)


def wait(broker: Broker, ends: set[signal.Signals]) -> int:
    """Until one of the blocked signals ``ends`` comes (0) or a node ends by itself (1)."""
    while signal.sigtimedwait(ends, CHECK_EVERY_S) is None:
        for node in set(broker.nodes) - set(broker.running):
            print(f"kafka: node {node} ended, see {broker.log(node)}", file=sys.stderr)
            return 1
    return 0


def run_stop(options: argparse.Namespace) -> int:
    for broker in brokers(options.directory):
        if broker.running:
            broker.stop()
            print(f"stopped {broker.directory}")
    return 0


def run_status(options: argparse.Namespace) -> int:
    found = [broker for broker in brokers(options.directory) if broker.running]
    for broker in found:
        describe(broker)
    if not found:
        print(f"no broker of {options.directory} runs")
    return 0 if found else 1


def brokers(directory: Path) -> list[Broker]:
    return [Broker.at(file.parent) for file in sorted(directory.glob("*/broker.json"))]


def describe(broker: Broker) -> None:
    running = [
        f"node {node} (process {broker.daemon(node).pid}, {broker.daemon(node).resident_bytes / 1e6:.0f} MB)"
        for node in broker.running
    ]
    print(f"Kafka {broker.version}: {', '.join(running)}")
    for name, servers in broker.listeners.items():
        print(f"  {name:<15} {servers}")
    if broker.credentials:
        user = broker.credentials.user
        print(f"  user {user.name}, password {user.password}; certificates in {broker.credentials.authority.parent}")
    print(f"  data and logs in {broker.directory}", flush=True)


@contextmanager
def _end_signals() -> Iterator[set[signal.Signals]]:
    """Blocks SIGINT and SIGTERM, to be waited for, and takes the terminal's Ctrl-C for this process alone.

    make dies of a Ctrl-C whatever its recipe returns. In a process group of its own in the terminal's foreground, this
    process gets the signal and make does not. Ctrl-Z is ignored meanwhile: the shell would not see it.
    """
    ends = {signal.SIGINT, signal.SIGTERM}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ends)
    terminal = sys.stdin.fileno() if sys.stdin is not None and sys.stdin.isatty() else None
    group = os.getpgrp()
    if terminal is not None and os.tcgetpgrp(terminal) == group and group != os.getpid():
        signal.signal(signal.SIGTTOU, signal.SIG_IGN)
        signal.signal(signal.SIGTSTP, signal.SIG_IGN)
        os.setpgid(0, 0)
        os.tcsetpgrp(terminal, os.getpid())
    else:
        terminal = None
    try:
        yield ends
    finally:
        if terminal is not None:
            os.tcsetpgrp(terminal, group)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


if __name__ == "__main__":
    sys.exit(main())
