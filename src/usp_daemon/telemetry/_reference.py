"""``docs/metrics.md``, from the declarations."""

import itertools

from prometheus_client import CollectorRegistry

from ._declare import MetricSpec
from ._metrics import ServiceMetrics

_HEAD = """\
# Metrics and health

<!-- Generated from the declarations by `python -m usp_daemon.telemetry docs/metrics.md`. Do not edit. -->

`usp-daemon run` listens on `http.host` and `http.port`:

| path | answer |
|---|---|
| `/metrics` | the metrics below, as Prometheus text or OpenMetrics, whichever is asked for |
| `/livez` | 200, or 503 when a restart would help: the event loop or the worker hangs, or a partition is stuck |
| `/readyz` | 200, or 503 while starting, stopping, without a broker, or while a partition is not `RUNNING` |
| `/` | links to these |

`/livez` and `/readyz` answer `{"ok": ..., "reasons": [...]}`, with a sentence for each thing that is wrong. A partition
is stuck when it has input and makes no progress for `service.stall_timeout_s`; while the broker is away none is.

Units are seconds, bytes and records. Only the metrics under "Chosen symbols" name symbols: those of
`telemetry.symbols` and the `telemetry.top_symbols` that had most ticks lately, so that ten thousand symbols do not
flood Prometheus; everything else is a total or a distribution over all symbols. In OpenMetrics form an alarm's counter
carries an exemplar with symbol, partition and offset of the last such tick; the alarms topic has the alarm itself.
Prometheus keeps exemplars only where it is started with `--enable-feature=exemplar-storage`.

Shares are ratios of rates. How many values lay in the 80 % intervals, and the error relative to that of the forecast
that nothing changes:

    sum(rate(usp_forecasts_covered_total{level="80"}[1h])) / sum(rate(usp_forecasts_scored_total[1h]))
    sum(rate(usp_forecast_scaled_error_total[1h])) / sum(rate(usp_no_change_scaled_error_total[1h]))

A series of one partition is there from its assignment until it is given up, so a sum over replicas counts each
partition once; its counters begin at zero each time. Beside these there are `process_*`, `python_gc_*` and
`python_info` of prometheus_client.
"""


def metrics_page() -> str:
    """The reference of all metrics in Markdown."""
    specs = ServiceMetrics(CollectorRegistry()).specs
    parts = [_HEAD]
    for section, members in itertools.groupby(specs, key=lambda spec: spec.section):
        parts.append(f"\n## {section}\n\n| metric | type | labels | meaning |\n|---|---|---|---|\n")
        parts.extend(f"| `{spec.name}` | {spec.kind} | {_labels(spec)} | {spec.meaning} |\n" for spec in members)
    values = {}
    for spec in specs:
        for label, known in spec.label_values.items():
            values[f"`{label}` of `{spec.name}`"] = known
    parts.append("\n## Values of labels\n\n| label | values |\n|---|---|\n")
    parts.extend(f"| {label} | {', '.join(f'`{value}`' for value in known)} |\n" for label, known in values.items())
    return "".join(parts)


def _labels(spec: MetricSpec) -> str:
    return ", ".join(f"`{label}`" for label in spec.labels)
