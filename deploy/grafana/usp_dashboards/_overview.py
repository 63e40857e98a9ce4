"""Is it up, does it keep up, what comes out."""

from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.models.dashboard import Panel

from ._parts import Query, above, bad_above, bad_below, graph, single
from ._queries import chosen, increase, quantile, rate, share, summed

_FAILED = chosen("usp_partition_state", extra='state="FAILED"')
_RUNNING = chosen("usp_partition_state", extra='state="RUNNING"')
_CONSUMED = summed(rate("usp_records_consumed_total"))
_PUBLISHED = summed(rate("usp_predictions_published_total"))


def rows() -> dict[str, list[Builder[Panel]]]:
    """Panels by row."""
    return {
        "At a glance": [
            single(
                "Replicas up",
                "Replicas that Prometheus could scrape last time.",
                "short",
                Query(summed('up{job=~"$job",instance=~"$instance"}')),
                levels=bad_below(1),
                width=3,
            ),
            single(
                "Replicas ready",
                "Replicas whose /readyz says that they do their work; runbook UspNotReady.",
                "short",
                Query(summed(chosen("usp_ready"))),
                levels=bad_below(1),
                width=3,
            ),
            single(
                "Partitions running",
                "Partitions whose records are answered now.",
                "short",
                Query(summed(_RUNNING)),
                levels=bad_below(1),
                width=3,
            ),
            single(
                "Partitions failed",
                "Partitions that wait for a decision; runbook UspPartitionFailed.",
                "short",
                Query(summed(_FAILED)),
                levels=bad_above(1),
                width=3,
            ),
            single(
                "Greatest lag",
                "Age of the oldest unanswered record of all partitions.",
                "s",
                Query(f"max({chosen('usp_consumer_lag_seconds')})"),
                levels=above(60, 300),
            ),
            single("Predictions", "Predictions whose commit is confirmed.", "ops", Query(_PUBLISHED)),
            single(
                "Firing alerts",
                "Alerts of this project that fire now, silenced ones included. Needs the rules of deploy/prometheus.",
                "short",
                Query('count(ALERTS{alertname=~"Usp.*",alertstate="firing",job=~"$job"}) or vector(0)'),
                levels=bad_above(1),
            ),
        ],
        "Flow": [
            graph(
                "Records in, results out",
                "Records read, predictions and dead letters confirmed. Out stays below in only while lag grows.",
                "ops",
                Query(_CONSUMED, "read"),
                Query(_PUBLISHED, "predictions"),
                Query(summed(rate("usp_dead_letters_published_total")), "dead letters"),
                least=0,
            ),
            graph(
                "Lag",
                "Age of the oldest unanswered record of each replica.",
                "s",
                Query(f"max by (instance) ({chosen('usp_consumer_lag_seconds')})", "{{instance}}"),
                levels=above(60, 300),
                least=0,
            ),
            graph(
                "Latency, record to confirmed result",
                "From a record's own timestamp to the commit of its result; a producer's wrong clock shows too.",
                "s",
                Query(quantile(0.5, "usp_end_to_end_latency_seconds"), "p50"),
                Query(quantile(0.95, "usp_end_to_end_latency_seconds"), "p95"),
                Query(quantile(0.99, "usp_end_to_end_latency_seconds"), "p99"),
                least=0,
            ),
            graph(
                "Alarms by kind",
                "Regime alarms that were published, in each point of the graph.",
                "short",
                Query(summed(increase("usp_alarms_published_total"), "kind") + " > 0 or vector(0)", "{{kind}}"),
                stacked=True,
                least=0,
            ),
        ],
        "Input": [
            graph(
                "Dead letters",
                "Share of all records that got no forecast, by reason.",
                "percentunit",
                Query(
                    f"{summed(rate('usp_dead_letters_published_total'), 'reason')} / scalar({_CONSUMED} > 0)",
                    "{{reason}}",
                ),
                levels=above(0.01),
                stacked=True,
                least=0,
            ),
            graph(
                "Refused ticks",
                "Share of ticks that the gate refused and answered with the standing forecast, by reason.",
                "percentunit",
                Query(f"{summed(rate('usp_ticks_refused_total'), 'reason')} / scalar({_PUBLISHED} > 0)", "{{reason}}"),
                levels=above(0.05),
                stacked=True,
                least=0,
            ),
        ],
        "Process": [
            graph(
                "Processor",
                "Cores in use by each replica.",
                "short",
                Query(rate("process_cpu_seconds_total"), "{{instance}}"),
                width=8,
                least=0,
            ),
            graph(
                "Memory",
                "Resident memory of each replica.",
                "bytes",
                Query(chosen("process_resident_memory_bytes"), "{{instance}}"),
                width=8,
                least=0,
            ),
            graph(
                "Open files",
                "Share of the file descriptors that the process may have.",
                "percentunit",
                Query(
                    share(chosen("process_open_fds"), chosen("process_max_fds")),
                    "{{instance}}",
                ),
                width=8,
                levels=above(0.8),
                least=0,
            ),
            single(
                "Running for",
                "Time since the replica that started last.",
                "s",
                Query(f"time() - max({chosen('process_start_time_seconds')})"),
                width=6,
            ),
            single(
                "Version",
                "Versions that run; more than one during a rolling restart only.",
                "short",
                Query(f"count by (version) ({chosen('usp_build_info')})", "{{version}}"),
                width=6,
                as_text=True,
            ),
            single(
                "Device",
                "Where the predictor computes, and in which precision.",
                "short",
                Query(f"count by (device, precision) ({chosen('usp_build_info')})", "{{device}} {{precision}}"),
                width=6,
                as_text=True,
            ),
            single(
                "Symbols",
                "Symbols whose state is held, over all replicas.",
                "short",
                Query(summed(chosen("usp_symbols"))),
                width=6,
            ),
        ],
    }
