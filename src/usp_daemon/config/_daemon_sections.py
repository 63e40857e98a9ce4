"""The sections around the predictor: [meta], [io], [security], [compute] and [wire]."""

import dataclasses
from typing import Annotated, Literal

from ._key import Reader, locked, traced


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Meta:
    """The file itself."""

    schema_version: Annotated[
        str, locked("Version of this file's keys; a file of another version is refused.", choices=("1.0",))
    ] = "1.0"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Io:
    """What comes in and what is kept."""

    # the feed
    frozen_signal_min_steps: Annotated[
        int,
        traced("Fewest equal values in a row that make a signal frozen.", "ticks", 5, 10_000),
    ] = 5
    frozen_signal_recovery_ratio: Annotated[
        float, traced("Share of its usual variance at which a frozen signal counts as moving again.", "", 1e-6, 1.0)
    ] = 0.1
    frozen_signal_recovery_steps: Annotated[
        int, traced("Clean ticks in a row that end degraded mode.", "ticks", 1, 1000)
    ] = 2
    frozen_false_alarm_probability: Annotated[
        float,
        traced("How improbable a run of equal values must be, at the symbol's own rate of repetition.", "", 1e-15, 0.1),
    ] = 1e-6
    data_feed_timeout: Annotated[
        float, locked("Silence of the feed after which it counts as lost.", "s", 0.1, 86_400.0, reader=Reader.SERVICE)
    ] = 30.0
    data_feed_max_retries: Annotated[
        int, locked("Attempts to reach the feed again before giving up.", "attempts", 0, 1000, reader=Reader.SERVICE)
    ] = 3

    # snapshots
    snapshot_path: Annotated[str, locked("Directory of the snapshots.", "path", reader=Reader.SERVICE)] = "io/snapshots"
    snapshot_store: Annotated[
        str,
        locked(
            'Where snapshots are kept: "directory" below snapshot_path, or "topic", a compacted Kafka topic from which '
            "any replica can take a partition over.",
            reader=Reader.SERVICE,
            choices=("directory", "topic"),
        ),
    ] = "directory"
    snapshot_topic: Annotated[
        str, locked('Compacted topic of the snapshots, where snapshot_store is "topic".', reader=Reader.SERVICE)
    ] = "usp-snapshots"
    snapshot_interval_s: Annotated[
        float,
        locked(
            "Time between two snapshots of one partition: what a crash costs is the replay of that much input.",
            "s",
            0.1,
            86_400.0,
            reader=Reader.SERVICE,
        ),
    ] = 30.0
    snapshot_keep: Annotated[
        int, locked("Snapshots of a partition that are kept.", "snapshots", 1, 1000, reader=Reader.SERVICE)
    ] = 5
    snapshot_atomic_fsync: Annotated[
        bool, locked("Flush a snapshot to the disk before it takes the place of the last.", reader=Reader.SERVICE)
    ] = True
    snapshot_compression: Annotated[
        str, locked("Compression of a snapshot's body.", reader=Reader.SERVICE, choices=("none", "gzip"))
    ] = "none"
    snapshot_format: Annotated[str, locked("Encoding of a snapshot.", reader=Reader.SERVICE, choices=("msgpack",))] = (
        "msgpack"
    )
    snapshot_hash_algorithm: Annotated[
        str, locked("Checksum that a snapshot carries.", reader=Reader.SERVICE, choices=("sha256",))
    ] = "sha256"

    # telemetry
    telemetry_hash_interval_steps: Annotated[
        int, locked("Ticks between two telemetry records.", "ticks", 1, 1_000_000, reader=Reader.SERVICE)
    ] = 1
    telemetry_buffer_capacity: Annotated[
        int,
        locked("Telemetry records held before the oldest is dropped.", "records", 1, 1_000_000, reader=Reader.SERVICE),
    ] = 1024

    # changes of the configuration while the service runs
    state_path: Annotated[
        str,
        locked(
            "Directory of what the service remembers about its own configuration: the lock, the overlay, backups, "
            "what was tried and when. One for each replica.",
            "path",
            reader=Reader.SERVICE,
        ),
    ] = "io/state"
    mutations_log: Annotated[
        str,
        locked(
            "File of all changes that the service made, or was refused, hash-chained.", "path", reader=Reader.SERVICE
        ),
    ] = "io/mutations.log"
    config_poll_interval_s: Annotated[
        float,
        locked(
            "Longest time after which the file is looked at again; where the system tells of changes, they are seen "
            "at once.",
            "s",
            0.1,
            3600.0,
            reader=Reader.SERVICE,
        ),
    ] = 5.0
    config_backups_keep: Annotated[
        int,
        locked("Former configurations that are kept for going back.", "backups", 1, 10_000, reader=Reader.SERVICE),
    ] = 50


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Security:
    """Limits on what the daemon may do to itself."""

    allowed_mutation_rate_per_hour: Annotated[
        int, locked("Changes of configuration that the tuner may make.", "1/h", 0, 3600, reader=Reader.TUNER)
    ] = 10
    min_ticks_between_mutations: Annotated[
        int,
        locked("Ticks between two changes that the tuner makes.", "ticks", 0, 1_000_000_000, reader=Reader.TUNER),
    ] = 1000
    max_relative_change: Annotated[
        float,
        locked(
            "Most that one change may move a number, relative to what it was; depths, powers of two and network "
            "sizes move by one level.",
            "",
            0.01,
            1.0,
            reader=Reader.TUNER,
        ),
    ] = 0.5
    tabu_hours: Annotated[
        float,
        locked(
            "Time for which values that were tried and rolled back are not tried again.",
            "h",
            0.0,
            8760.0,
            reader=Reader.TUNER,
        ),
    ] = 24.0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Compute:
    """Where and how the arithmetic runs."""

    device: Annotated[
        str,
        locked(
            'The device: "auto" takes a CUDA device if there is one. A CUDA device that is asked for and is not there '
            "is an error.",
            pattern=r"auto|cpu|cuda:[0-9]{1,3}",
            pattern_meaning='"auto", "cpu" or "cuda:N"',
        ),
    ] = "auto"
    precision: Annotated[
        str,
        locked(
            'Floating-point type of the arithmetic: "auto" is float64 on a CPU and float32 on a GPU. Timestamps are '
            "64-bit whole numbers either way.",
            choices=("auto", "float32", "float64"),
        ),
    ] = "auto"
    tile_width: Annotated[
        int | Literal["auto"],
        locked(
            "Symbols that are stepped together. Results do not depend on who shares a tile; its width may move the "
            "last bits.",
            "symbols",
            16,
            65_536,
            multiple_of=16,
            auto=True,
        ),
    ] = "auto"
    refresh_width: Annotated[
        int | Literal["auto"],
        locked("Symbols whose heavy, rare work is done together.", "symbols", 16, 65_536, multiple_of=16, auto=True),
    ] = "auto"
    max_symbols: Annotated[
        int, locked("Symbols that are admitted; ticks of further ones become dead letters.", "symbols", 1, 10_000_000)
    ] = 10_000
    compilation_cache: Annotated[
        str,
        locked(
            "Directory in which compiled programs are kept; empty means $USP_CACHE_DIR or the user's cache folder.",
            "path",
            may_be_empty=True,
        ),
    ] = ""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Wire:
    """How a tick is read from a record."""

    symbol_field: Annotated[str, locked("Field that holds the symbol.")] = "symbol"
    time_field: Annotated[str, locked("Field that holds the time of the tick.")] = "ts"
    value_field: Annotated[str, locked("Field that holds the value.")] = "value"
    time_unit: Annotated[
        str,
        locked(
            "How the time is written: a count since the Unix epoch in this unit, or an ISO 8601 date and time.",
            choices=("ns", "us", "ms", "s", "iso8601"),
        ),
    ] = "ns"
    key_is_symbol: Annotated[
        bool, locked("Whether the record's key names the symbol, so that the record itself need not.")
    ] = False
    max_record_bytes: Annotated[
        int, locked("Size above which a record becomes a dead letter.", "bytes", 64, 67_108_864)
    ] = 1_048_576
    max_symbol_length: Annotated[
        int, locked("Length above which a symbol's name is refused.", "characters", 1, 1024)
    ] = 128
