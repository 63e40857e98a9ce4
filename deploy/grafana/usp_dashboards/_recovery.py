"""Snapshots, replay and the life of partitions."""

from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.models.dashboard import Panel

from ._parts import BAD, GOOD, MUTED, PLAIN, WARNING, Query, above, graph, partition_query, single, timeline
from ._queries import PARTITION, chosen, increase, quantile, rate, summed

# In the order of a partition's life; the value is the place in it.
_STATES = {
    "ASSIGNED": MUTED,
    "RESTORING": PLAIN,
    "REPLAYING": WARNING,
    "RUNNING": GOOD,
    "REVOKING": MUTED,
    "LOST": WARNING,
    "FAILED": BAD,
}


def _in_state(state: str) -> str:
    matcher = f'state="{state}"'
    return f"max by (topic, partition) ({chosen('usp_partition_state', PARTITION, matcher)})"


_STATE = " + ".join(f"{number} * {_in_state(state)}" for number, state in enumerate(_STATES, start=1))


def _restored(q: float) -> Query:
    buckets = summed(chosen("usp_restore_duration_seconds_bucket"), "le")
    return Query(f"histogram_quantile({q:g}, {buckets}) >= 0", f"p{100 * q:g}")


def rows() -> dict[str, list[Builder[Panel]]]:
    """Panels by row."""
    return {
        "Partitions": [
            timeline(
                "State of each partition",
                "From assignment to RUNNING; a gap is a partition that no replica holds.",
                Query(_STATE, "{{topic}}/{{partition}}"),
                names={str(number): (state, _STATES[state]) for number, state in enumerate(_STATES, start=1)},
            ),
            graph(
                "Records left to replay",
                "Before the partition runs; it must fall.",
                "short",
                partition_query("usp_restore_remaining_records"),
                width=8,
                least=0,
            ),
            graph(
                "Records replayed",
                "Stepped again in silence.",
                "ops",
                Query(summed(rate("usp_replayed_records_total", PARTITION), "topic", "partition"), "{{partition}}"),
                width=8,
                least=0,
            ),
            graph(
                "From assignment to RUNNING",
                "How long partitions took since each replica started: a restore is over before a rate could see it.",
                "s",
                _restored(0.5),
                _restored(0.95),
                width=8,
                least=0,
            ),
            graph(
                "Since the last progress",
                "Since the last confirmed commit or replayed batch; long is right only where no records come.",
                "s",
                Query(
                    f"time() - max by (topic, partition) ({chosen('usp_last_progress_timestamp_seconds', PARTITION)})",
                    "{{topic}}/{{partition}}",
                ),
                width=24,
                least=0,
            ),
        ],
        "Snapshots": [
            graph(
                "Age of the last snapshot",
                "About what a crash would have to replay; io.snapshot_interval_s while records come.",
                "s",
                Query(
                    f"time() - max by (topic, partition) ({chosen('usp_snapshot_last_timestamp_seconds', PARTITION)})",
                    "{{topic}}/{{partition}}",
                ),
                levels=above(900),
                least=0,
            ),
            graph(
                "Written and failed",
                "In each point of the graph; a failed one is tried again.",
                "short",
                Query(summed(increase("usp_snapshots_written_total")), "written"),
                Query(summed(increase("usp_snapshots_failed_total")), "failed"),
                least=0,
            ),
            graph(
                "Size",
                "Of the last snapshot of each partition.",
                "bytes",
                partition_query("usp_snapshot_bytes"),
                least=0,
            ),
            graph(
                "Time to write one",
                "Longer than io.snapshot_interval_s: the disk does not keep up.",
                "s",
                Query(quantile(0.5, "usp_snapshot_duration_seconds"), "p50"),
                Query(quantile(0.95, "usp_snapshot_duration_seconds"), "p95"),
                least=0,
            ),
        ],
        "Start": [
            single(
                "Last start",
                "Of the replica that started last.",
                "dateTimeFromNow",
                Query(f"1000 * max({chosen('process_start_time_seconds')})"),
                width=8,
            ),
            graph(
                "Programs compiled",
                "In each point of the graph. After the start only new structures compile.",
                "short",
                Query(summed(increase("usp_compilations_total"), "instance"), "{{instance}}"),
                width=8,
                least=0,
            ),
            graph(
                "Time spent on compiling",
                "Seconds a second; steadily above zero means that the service compiles instead of answering.",
                "percentunit",
                Query(summed(rate("usp_compile_seconds_total"), "instance"), "{{instance}}"),
                width=8,
                levels=above(0.3),
                least=0,
            ),
        ],
    }
