"""What the help and docs/commands.md say about each command: its purpose, examples and exit codes."""

import dataclasses
from collections.abc import Mapping
from typing import TypeAlias

ExitText: TypeAlias = Mapping[int, str]
OK, FAILURE, USAGE, INPUT, BROKER, UNFINISHED, INTERRUPTED = 0, 1, 2, 3, 69, 75, 130

# The same as usp_daemon.app.ExitCode.meaning, whose import would bring the numerical libraries with it.
EXIT_CODES: ExitText = {
    OK: "all input was read and answered (dead letters included); a service drained and stopped",
    FAILURE: "something broke while running: the device, the disk, a defect",
    USAGE: "wrong usage or configuration, or the device asked for is not there",
    INPUT: "an input file is unusable, or broke off; what could be read was answered",
    BROKER: "the broker cannot be reached at start, or refuses: no rights, topics that do not fit",
    UNFINISHED: "the service ended before all was done (out of time, or stalled); start it again, recovery makes up "
    "for it",
    INTERRUPTED: "interrupted (SIGINT or SIGTERM); what was done until then is in the output",
}


@dataclasses.dataclass(frozen=True, slots=True)
class Command:
    """What the help says: a line for lists, more about it, examples (command line and what it is for), exit codes.

    A command with actions has its examples and codes; its actions have a line each.
    """

    summary: str
    more: str
    examples: tuple[tuple[str, str], ...]
    codes: ExitText

    @property
    def epilog(self) -> str:
        """Examples and exit codes, as they stand below the options."""
        lines = ["examples:"]
        for line, purpose in self.examples:
            lines += [f"  {line}", f"      {purpose}"]
        lines += ["", "exit codes:", *(f"  {code:<4} {text}" for code, text in self.codes.items())]
        return "\n".join(lines) + "\n"


def _codes(*codes: int, **texts: str) -> ExitText:
    """The usual texts of ``codes``; others by name."""
    own = {globals()[name]: text for name, text in texts.items()}
    return dict(sorted(({code: EXIT_CODES[code] for code in codes} | own).items()))


_CONFIG_USAGE = "wrong usage or configuration"

COMMANDS: Mapping[str, Command] = {
    "demo": Command(
        "Replay the bundled real series; print a table of scores and write an HTML report.",
        "Needs neither a broker nor data of yours. The first run compiles the predictor, which takes a minute or two.",
        (
            ("usp-daemon demo --open", "the table, and the report in a browser"),
            ("usp-daemon demo --serve", "live on the status page"),
            ("usp-daemon demo --out /tmp/demo", "results into another directory"),
        ),
        _codes(OK, FAILURE, USAGE, INPUT, INTERRUPTED),
    ),
    "replay": Command(
        "Stream CSV or JSON Lines files through the predictor.",
        "Files go through the very pipeline that serves a live feed, and every record is answered by one prediction\n"
        "or one dead letter: predictions.jsonl, alarms.jsonl and dead_letters.jsonl in the output directory.",
        (
            ("usp-daemon replay ticks.csv --time-unit s", "times are Unix seconds; results go to out/"),
            ("usp-daemon replay day1.csv.gz day2.csv.gz --report", "one stream out of two files, and report.html"),
            ("usp-daemon replay ticks.jsonl --value-field price --speed 60", "an hour a minute, values from `price`"),
        ),
        _codes(OK, FAILURE, USAGE, INPUT, INTERRUPTED),
    ),
    "run": Command(
        "Run the service: ticks in from Kafka, predictions and alarms out to it.",
        "Ends in order at Ctrl-C or SIGTERM; started again, it goes on where it stopped. SIGHUP reads the\n"
        "configuration again, SIGUSR1 asks for a campaign. http://127.0.0.1:9108/readyz says how it does.",
        (
            ("usp-daemon run", "with config/config.toml, or the defaults"),
            ("USP_KAFKA__BOOTSTRAP_SERVERS=kafka:9092 usp-daemon run", "one key from the environment"),
        ),
        _codes(OK, FAILURE, USAGE, BROKER, UNFINISHED),
    ),
    "feed": Command(
        "Send ticks to the service's input topic: the bundled series, files, or made-up ones; Ctrl-C ends it.",
        "Missing topics are created as by the service. At the end everything sent is acknowledged.",
        (
            ("usp-daemon feed", "the bundled series, as if they came now"),
            ("usp-daemon feed ticks.csv --time-unit s --rate max", "a file, as fast as the broker takes it"),
            ("usp-daemon feed --symbols 1000 --rate 5000", "made-up series with changes of regime, without end"),
        ),
        _codes(
            USAGE,
            INPUT,
            OK="everything sent is acknowledged, also after Ctrl-C",
            BROKER="the broker cannot be reached or refuses, or did not acknowledge everything",
        ),
    ),
    "tail": Command(
        "Print what the service publishes, a line each, as it is committed; Ctrl-C ends it.",
        "Belongs to no group and commits nothing. Topics that are not there yet are waited for. Alarms are\n"
        "red and dead letters yellow on a terminal, unless NO_COLOR is set.",
        (
            ("usp-daemon tail --topic alarms --from earliest", "all alarms there are, then new ones"),
            ("usp-daemon tail --symbol BTC-USD --count 1 --json", "one record of one symbol, as it is"),
        ),
        _codes(
            OK="ended by --count, by Ctrl-C, or because its reader has gone",
            USAGE=_CONFIG_USAGE,
            BROKER="the broker cannot be reached or refuses, or with --no-wait a topic is not there",
        ),
    ),
    "tune": Command(
        "Search for better settings on recorded ticks; interrupted, the same command continues.",
        "Changes nothing: what it finds is a proposal. Every finished trial is kept on disk at once.",
        (
            ("usp-daemon tune ticks.csv.gz --time-unit ms", "the 9 parameters that move forecasts most, 50 trials"),
            ("usp-daemon tune ticks.csv.gz --deep --time-limit 3600", "23 parameters, an hour at the most"),
            ("usp-daemon tune ticks.csv.gz --propose", "print only the best values, as settings"),
        ),
        _codes(
            OK="the campaign came to its end, by trials, patience or time",
            FAILURE="the storage of campaigns cannot be used, or is in use",
            USAGE="wrong usage or configuration, or the campaign that is there was begun with other settings or data",
            INPUT="the files hold no ticks that can be tuned on",
            INTERRUPTED="interrupted; every finished trial is kept, the same command continues",
        ),
    ),
    "report": Command(
        "Say what came of a tuning campaign: best values, importance, convergence.",
        "May be run while the campaign runs.",
        (
            ("usp-daemon report --html report.html", "the only campaign there is, also as a page"),
            ("usp-daemon report usp-fast --json", "with every trial, as data"),
            ("usp-daemon report --propose", "the best values as a piece of config.toml"),
        ),
        _codes(
            OK="printed",
            FAILURE="there is no such campaign, or it cannot be read",
            USAGE=_CONFIG_USAGE,
        ),
    ),
    "check-config": Command(
        "Say whether a configuration is right, or everything that is wrong with it.",
        "Prints the values that differ from the defaults, or each problem: its path, what was expected, what came.",
        (
            ("usp-daemon check-config config/config.toml", "before a start, or before an edit is copied over"),
            ("usp-daemon check-config --json | jq .problems", "for a script"),
        ),
        _codes(OK="it is right: the daemon would start with it", USAGE="it is wrong; the problems are printed"),
    ),
    "snapshot": Command(
        "List, inspect or verify the snapshots of a daemon's state.",
        "Takes no lock and changes nothing, so all of it may run beside a daemon. For snapshots in a directory.",
        (
            ("usp-daemon snapshot list", "what lies in io.snapshot_path, newest offsets last"),
            ("usp-daemon snapshot verify /backup/snapshots", "whether a copy is whole, to its last bit"),
        ),
        _codes(
            OK="done; of verify: all are whole",
            USAGE=_CONFIG_USAGE,
            INPUT="it cannot be read; of verify: one is not whole, or there is none",
        ),
    ),
    "audit": Command(
        "Show or verify the log of changes that were made to the configuration.",
        "Every change that the service or `usp-daemon rollback` has made, refused, kept or taken back stands there.",
        (
            ("usp-daemon audit show --last 20", "the last twenty lines"),
            ("usp-daemon audit verify", "whether anybody has changed the log"),
        ),
        _codes(
            OK="printed; of verify: each line is as it was written",
            FAILURE="the log cannot be read",
            USAGE=_CONFIG_USAGE,
            INPUT="of verify: the log was changed, cut or torn",
        ),
    ),
    "rollback": Command(
        "Take the last change of the configuration back, or go back to a former one.",
        "The running service follows by itself. Former configurations and their hashes: `usp-daemon audit show`; "
        "epochs: `usp_config_epoch`, and `epoch_adopted` in the service's log.",
        (
            ("usp-daemon rollback", "takes the last change that stands back"),
            ("usp-daemon rollback --to 3f2a9c01", "the configuration under a hash of `audit show`, to the last byte"),
            ("usp-daemon rollback --to 4", "the configuration that led to epoch 4"),
        ),
        _codes(
            OK="it is back, or was there already",
            FAILURE="it could not be written, or somebody else holds the lock",
            USAGE="there is nothing to take back, or no such configuration",
        ),
    ),
    "reload": Command(
        "Have the running service read its configuration now, and say what came of it.",
        "The service on this host that has the same io.state_path is sent SIGHUP, and its answer is printed.",
        (
            ("usp-daemon reload", "after an edit"),
            ("usp-daemon reload --wait 120 --json | jq -r .outcome", "applied, unchanged, refused or failed"),
        ),
        _codes(
            OK="applied, or unchanged",
            FAILURE="it was right and could not be put in force, or no answer came within --wait",
            USAGE="refused; the reasons are printed",
            INPUT="no daemon runs on this host",
        ),
    ),
    "top": Command(
        "Show what a running service does, again and again; Ctrl-C ends it.",
        "Reads /status.json of the service that the settings name, or of --url.",
        (
            ("usp-daemon top", "the service of config/config.toml"),
            ("usp-daemon top --once --sort alarm", "printed once, the latest alarms first"),
        ),
        _codes(OK="shown", USAGE="wrong usage or address", INPUT="no service answers there"),
    ),
    "completion": Command(
        "Print a script that has a shell complete commands, options and paths.",
        "The script goes where the shell looks for such, or is evaluated by its start-up file.",
        (
            ("usp-daemon completion bash > ~/.local/share/bash-completion/completions/usp-daemon", "bash"),
            ("usp-daemon completion zsh > ~/.zfunc/_usp-daemon", "zsh, with ~/.zfunc in fpath before compinit"),
            ("usp-daemon completion tcsh > ~/.usp-daemon.tcsh", "tcsh, with `source ~/.usp-daemon.tcsh` in ~/.tcshrc"),
        ),
        _codes(OK="printed", USAGE="wrong usage"),
    ),
    "version": Command(
        "Print the versions of usp-daemon and of what it computes with.",
        "What a report of a defect should say.",
        (("usp-daemon version", "one a line"), ("usp-daemon version --json", "as JSON")),
        _codes(OK="printed"),
    ),
}

FIRST_STEPS = """first steps:
  usp-daemon demo                            real series through the predictor, and a report
  usp-daemon replay FILE...                  the same with your own
  usp-daemon check-config                    whether the configuration is right
  usp-daemon run                             the service beside a Kafka feed; feed and tail stand beside it
  usp-daemon COMMAND --help                  options, examples and exit codes of a command
"""
