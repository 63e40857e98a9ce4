"""The sections of the long-running service: [kafka], [delivery], [recovery], [service], [http], [telemetry], [log]."""

import dataclasses
from typing import Annotated

from ._key import Reader, locked, secret

_SERVICE = Reader.SERVICE


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Kafka:
    """The broker, the topics and the consumer group."""

    bootstrap_servers: Annotated[
        str, locked("Brokers to ask first, as host:port with commas between.", reader=_SERVICE)
    ] = "127.0.0.1:9092"
    group: Annotated[
        str, locked("Consumer group; replicas of one group divide the partitions among them.", reader=_SERVICE)
    ] = "usp-daemon"
    group_instance_id: Annotated[
        str,
        locked(
            "Name of this replica for static membership, unique in the group: a restart within session_timeout_ms then "
            'moves no partition. "auto" is the host\'s name; empty is dynamic membership.',
            reader=_SERVICE,
            may_be_empty=True,
        ),
    ] = "auto"
    client_id: Annotated[str, locked("Name under which the broker logs this client.", reader=_SERVICE)] = "usp-daemon"

    # topics
    input_topic: Annotated[str, locked("Topic of the ticks.", reader=_SERVICE)] = "ticks"
    predictions_topic: Annotated[str, locked("Topic of the predictions.", reader=_SERVICE)] = "predictions"
    alarms_topic: Annotated[str, locked("Topic of the regime alarms.", reader=_SERVICE)] = "alarms"
    dead_letters_topic: Annotated[str, locked("Topic of the records that get no forecast.", reader=_SERVICE)] = (
        "dead-letters"
    )
    create_topics: Annotated[
        bool, locked("Whether missing topics are created at start; otherwise they are an error.", reader=_SERVICE)
    ] = True
    num_partitions: Annotated[
        int,
        locked(
            "Partitions of an input topic that is created; the other topics get as many as the input has.",
            "partitions",
            1,
            10_000,
            reader=_SERVICE,
        ),
    ] = 4
    replication_factor: Annotated[
        int,
        locked("Replicas of topics that are created; -1 is the broker's default.", "replicas", -1, 9, reader=_SERVICE),
    ] = -1
    initial_offset: Annotated[
        str,
        locked("Where a group without committed offsets begins.", reader=_SERVICE, choices=("earliest", "latest")),
    ] = "earliest"

    # timing
    session_timeout_ms: Annotated[
        int,
        locked(
            "Silence after which the group takes this replica's partitions away.",
            "ms",
            1_000,
            1_800_000,
            reader=_SERVICE,
        ),
    ] = 45_000
    heartbeat_interval_ms: Annotated[
        int, locked("Time between two heartbeats.", "ms", 100, 600_000, reader=_SERVICE)
    ] = 3_000
    rebalance_timeout_ms: Annotated[
        int,
        locked(
            "Time that a rebalance waits for replicas to hand their partitions over.",
            "ms",
            1_000,
            1_800_000,
            reader=_SERVICE,
        ),
    ] = 60_000
    request_timeout_ms: Annotated[
        int, locked("Time that the broker has for one answer.", "ms", 1_000, 600_000, reader=_SERVICE)
    ] = 20_000
    transaction_timeout_ms: Annotated[
        int,
        locked(
            "Time after which the broker aborts a transaction that nobody ends.", "ms", 1_000, 900_000, reader=_SERVICE
        ),
    ] = 30_000

    # fetching and sending
    fetch_max_wait_ms: Annotated[
        int,
        locked("Time that the broker waits for further records before it answers.", "ms", 1, 30_000, reader=_SERVICE),
    ] = 20
    max_partition_fetch_bytes: Annotated[
        int, locked("Bytes of one partition in one answer.", "bytes", 1_024, 1_073_741_824, reader=_SERVICE)
    ] = 1_048_576
    max_request_bytes: Annotated[
        int,
        locked(
            "Bytes of one batch of results; at most what the broker and the topics take (max.message.bytes).",
            "bytes",
            16_384,
            104_857_600,
            reader=_SERVICE,
        ),
    ] = 1_000_000
    compression: Annotated[
        str,
        locked("Compression of what is published.", reader=_SERVICE, choices=("none", "gzip", "snappy", "lz4", "zstd")),
    ] = "none"

    # security
    security_protocol: Annotated[
        str,
        locked(
            "How the broker is reached.",
            reader=_SERVICE,
            choices=("PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"),
        ),
    ] = "PLAINTEXT"
    ssl_ca_file: Annotated[
        str,
        locked(
            "PEM file of the authorities that are trusted; empty trusts the system's.",
            "path",
            reader=_SERVICE,
            may_be_empty=True,
        ),
    ] = ""
    ssl_certificate_file: Annotated[
        str,
        locked(
            "PEM file of this client's certificate chain, for mutual TLS.", "path", reader=_SERVICE, may_be_empty=True
        ),
    ] = ""
    ssl_key_file: Annotated[
        str, locked("PEM file of this client's private key.", "path", reader=_SERVICE, may_be_empty=True)
    ] = ""
    ssl_key_password: Annotated[str, secret("Password of the private key.", reader=_SERVICE)] = dataclasses.field(
        default="", repr=False
    )
    ssl_key_password_file: Annotated[
        str,
        locked(
            "File whose first line is the password of the private key, read at start; in place of ssl_key_password.",
            "path",
            reader=_SERVICE,
            may_be_empty=True,
        ),
    ] = ""
    ssl_check_hostname: Annotated[
        bool, locked("Whether the broker's certificate must name the host that was asked for.", reader=_SERVICE)
    ] = True
    sasl_mechanism: Annotated[
        str,
        locked(
            "How this client proves who it is, where security_protocol has SASL.",
            reader=_SERVICE,
            choices=("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER"),
        ),
    ] = "SCRAM-SHA-512"
    sasl_username: Annotated[str, locked("User of PLAIN and SCRAM.", reader=_SERVICE, may_be_empty=True)] = ""
    sasl_password: Annotated[str, secret("Password of PLAIN and SCRAM.", reader=_SERVICE)] = dataclasses.field(
        default="", repr=False
    )
    sasl_password_file: Annotated[
        str,
        locked(
            "File whose first line is the password of PLAIN and SCRAM, read at start; in place of sasl_password.",
            "path",
            reader=_SERVICE,
            may_be_empty=True,
        ),
    ] = ""
    sasl_oauth_token_provider: Annotated[
        str,
        locked(
            'What gives the tokens of OAUTHBEARER, as "module:factory"; the factory takes nothing and returns an '
            "object with a coroutine token().",
            reader=_SERVICE,
            may_be_empty=True,
        ),
    ] = ""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """How results are published and offsets committed."""

    guarantee: Annotated[
        str,
        locked(
            "What readers may rely on: exactly_once publishes results and offset in one transaction per partition and "
            "commit_interval_ms; at_least_once publishes at once, and repeats after a crash what it had published "
            "since the last commit.",
            reader=_SERVICE,
            choices=("exactly_once", "at_least_once"),
        ),
    ] = "exactly_once"
    commit_interval_ms: Annotated[
        int,
        locked("Time between two commits of one partition.", "ms", 1, 60_000, reader=_SERVICE),
    ] = 100
    commit_max_records: Annotated[
        int,
        locked(
            "Records of one partition that are answered before its commit comes early.",
            "records",
            1,
            1_000_000,
            reader=_SERVICE,
        ),
    ] = 20_000
    max_batch: Annotated[int, locked("Ticks that are stepped together.", "ticks", 1, 1_000_000, reader=_SERVICE)] = (
        4_096
    )
    max_queued_records: Annotated[
        int,
        locked(
            "Records of one partition that may wait; beyond it the partition is paused until half of them are done.",
            "records",
            1,
            10_000_000,
            reader=_SERVICE,
        ),
    ] = 8_192


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Recovery:
    """What happens when state and input do not fit together."""

    on_state_missing: Annotated[
        str,
        locked(
            "A committed offset but no usable snapshot at or below it: fail stops, reset-state starts cold from the "
            "committed offset.",
            reader=_SERVICE,
            choices=("fail", "reset-state"),
        ),
    ] = "fail"
    on_input_missing: Annotated[
        str,
        locked(
            "Input deleted by retention before it was replayed or read: fail stops; reset-state starts cold from the "
            "first record that is there and not answered; skip keeps the state and goes on from there.",
            reader=_SERVICE,
            choices=("fail", "reset-state", "skip"),
        ),
    ] = "fail"
    on_state_incompatible: Annotated[
        str,
        locked(
            "A snapshot made under other structural parameters: fail stops and says which; reset-state starts cold.",
            reader=_SERVICE,
            choices=("fail", "reset-state"),
        ),
    ] = "fail"
    require_exact: Annotated[
        bool,
        locked(
            "Whether a replay with another program than the one that wrote the snapshot (version, device, instruction "
            "set, precision) is refused, because its last bits may differ, instead of reported.",
            reader=_SERVICE,
        ),
    ] = False
    min_retention_s: Annotated[
        float,
        locked(
            "Retention of the input topic below which start-up warns: it must cover the time between snapshots and the "
            "longest outage.",
            "s",
            0.0,
            31_536_000.0,
            reader=_SERVICE,
        ),
    ] = 86_400.0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """The life of the process."""

    shutdown_timeout_s: Annotated[
        float,
        locked(
            "Time that an orderly end may take; what is not done by then is left to recovery.",
            "s",
            1.0,
            600.0,
            reader=_SERVICE,
        ),
    ] = 25.0
    start_timeout_s: Annotated[
        float, locked("Time that reaching the broker may take at start.", "s", 1.0, 3600.0, reader=_SERVICE)
    ] = 60.0
    stall_timeout_s: Annotated[
        float,
        locked(
            "Time without progress, while there is input, after which a part is restarted and then the process ends.",
            "s",
            1.0,
            3600.0,
            reader=_SERVICE,
        ),
    ] = 120.0
    retry_backoff_s: Annotated[
        float, locked("Time before a second attempt; it doubles up to 30 times this.", "s", 0.01, 60.0, reader=_SERVICE)
    ] = 0.2


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Http:
    """Health, metrics and the status page over HTTP."""

    host: Annotated[str, locked("Address to listen on; 0.0.0.0 opens it to the network.", reader=_SERVICE)] = (
        "127.0.0.1"
    )
    port: Annotated[int, locked("Port to listen on; 0 takes a free one.", "", 0, 65_535, reader=_SERVICE)] = 9108
    enabled: Annotated[bool, locked("Whether to listen at all.", reader=_SERVICE)] = True
    status: Annotated[bool, locked("Whether /status and /status.json are served.", reader=_SERVICE)] = True
    status_symbols: Annotated[
        int,
        locked(
            "Symbols of which the status page shows details: those that alarmed lately and the busiest. Each takes "
            "about 5 kB; 0 leaves the counts over all symbols.",
            "symbols",
            0,
            1_000,
            reader=_SERVICE,
        ),
    ] = 200
    status_hosts: Annotated[
        str,
        locked(
            "Names, with commas between, under which browsers may ask for the status page, beside localhost and "
            'addresses; "*" is any. Other names are refused: a stranger may have pointed them here.',
            reader=_SERVICE,
            may_be_empty=True,
        ),
    ] = ""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Telemetry:
    """Which symbols have metrics of their own; all others are in the totals and distributions only."""

    symbols: Annotated[
        str,
        locked(
            "Symbols that have series of their own, with commas between; at most 500.",
            reader=_SERVICE,
            may_be_empty=True,
        ),
    ] = ""
    top_symbols: Annotated[
        int,
        locked("So many of the busiest symbols have series of their own besides.", "symbols", 0, 500, reader=_SERVICE),
    ] = 10


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Log:
    """Log lines, on standard error."""

    level: Annotated[
        str, locked("Least severity that is written.", reader=_SERVICE, choices=("debug", "info", "warning", "error"))
    ] = "info"
    format: Annotated[
        str,
        locked(
            'Form of a line: "json" for machines, "console" for people; "auto" is console on a terminal.',
            reader=_SERVICE,
            choices=("auto", "json", "console"),
        ),
    ] = "auto"
