"""Where time goes between a record and its result."""

from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.models.dashboard import Panel

from ._parts import Query, above, graph, heat, partition_query
from ._queries import PARTITION, increase, quantile, rate, summed


def rows() -> dict[str, list[Builder[Panel]]]:
    """Panels by row."""
    return {
        "Partitions": [
            graph(
                "Records read",
                "By partition; an uneven spread means uneven keys.",
                "ops",
                Query(summed(rate("usp_records_consumed_total", PARTITION), "topic", "partition"), "{{partition}}"),
                width=8,
                least=0,
            ),
            graph(
                "Lag in records",
                "Records of the input that are not answered yet.",
                "short",
                partition_query("usp_consumer_lag_records"),
                width=8,
                least=0,
            ),
            graph(
                "Lag in seconds",
                "Age of the oldest unanswered record.",
                "s",
                partition_query("usp_consumer_lag_seconds"),
                width=8,
                levels=above(60, 300),
                least=0,
            ),
            graph(
                "Queued",
                "Records that are read and not yet answered; delivery.max_queued_records bounds it.",
                "short",
                partition_query("usp_queued_records"),
                width=8,
                least=0,
            ),
            graph(
                "Paused",
                "1 while a partition is not read because too many of its records wait: the replica is behind.",
                "short",
                partition_query("usp_partition_paused"),
                width=8,
                least=0,
                most=1,
                steps=True,
            ),
            graph(
                "Symbols",
                "Symbols whose state the partition holds.",
                "short",
                partition_query("usp_symbols"),
                width=8,
                least=0,
            ),
        ],
        "Stages": [
            graph(
                "Stage, p95",
                "Time of one batch in each stage; poll includes waiting for records.",
                "s",
                Query(quantile(0.95, "usp_stage_duration_seconds", "stage"), "{{stage}}"),
                logarithmic=True,
            ),
            graph(
                "Time spent",
                "Seconds a second in each stage. A replica whose step comes near 1 is at its ceiling.",
                "percentunit",
                Query(
                    summed(rate("usp_stage_duration_seconds_sum", extra='stage!="poll"'), "instance", "stage"),
                    "{{instance}} {{stage}}",
                ),
                levels=above(0.8),
                least=0,
            ),
            graph(
                "Batch size",
                "Records that are stepped together; large batches are a backlog.",
                "short",
                Query(quantile(0.5, "usp_batch_size_records"), "p50"),
                Query(quantile(0.95, "usp_batch_size_records"), "p95"),
                least=0,
            ),
            heat(
                "Latency, record to confirmed result",
                "How latencies are spread; two bands are two kinds of partitions, or a wrong clock.",
                "s",
                "usp_end_to_end_latency_seconds",
            ),
        ],
        "Kafka": [
            graph(
                "Transactions",
                "By how they ended. unknown is settled by itself; fenced: another replica owns the partition.",
                "ops",
                Query(summed(rate("usp_transactions_total"), "outcome"), "{{outcome}}"),
                least=0,
            ),
            graph(
                "Producers opened anew",
                "By reason, in each point of the graph.",
                "short",
                Query(summed(increase("usp_producer_resets_total"), "reason"), "{{reason}}"),
                least=0,
            ),
            graph(
                "Rebalances",
                "Changes of the assignment that reached a replica.",
                "short",
                Query(summed(increase("usp_rebalances_total"), "instance", "kind"), "{{instance}} {{kind}}"),
                width=8,
                least=0,
            ),
            graph(
                "Fenced",
                "Partitions given up because another replica owns them; again and again: two replicas of one name.",
                "short",
                Query(summed(increase("usp_fenced_total"), "instance"), "{{instance}}"),
                width=8,
                least=0,
            ),
            graph(
                "Symbols in two partitions",
                "Their producers do not agree on the partition of a key.",
                "short",
                Query(summed(increase("usp_symbol_partition_conflicts_total"), "instance"), "{{instance}}"),
                width=8,
                least=0,
            ),
            graph(
                "Event loop lag",
                "Delay of the event loop; beyond the session timeout the group takes partitions away.",
                "s",
                Query(quantile(0.99, "usp_event_loop_lag_seconds", "instance"), "{{instance}} p99"),
                width=24,
                levels=above(1),
                least=0,
            ),
        ],
    }
