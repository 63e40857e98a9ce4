"""docs/metrics.md has every metric, and the names keep to Prometheus' conventions."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from prediction_rows import random_rows
from usp_daemon.telemetry import MetricSpec, PartitionState, ServiceMetrics, metrics_page
from usp_daemon.wire import TopicPartition

SPECS = ServiceMetrics(CollectorRegistry()).specs
FEW_VALUES = {
    *("topic", "partition", "state", "stage", "reason", "kind", "outcome"),
    *("level", "mode", "flag", "tier", "scheme", "kernel", "statistic", "end"),
    *("config_hash", "predictor_hash", "version", "jax", "device", "precision"),  # of series with the value 1
}
# What a number counts when it has no base unit.
COUNTED = ("_epoch", "_success", "_ready", "_records", "_symbols", "_paused", "_state", "_ratio", "_ticks", "_nats")
# Quantities of the predictor without a unit, by their names in the field.
QUANTITIES = (
    *("_epsilon", "_iterations", "_error", "_threshold", "_kurtosis", "_exponent", "_energy", "_stiffness", "_rate"),
    *("_statistic", "_weight", "_value", "_prediction", "_scale", "_interval", "_mode", "_sequence", "_alarms"),
)


@pytest.fixture
def text() -> str:
    registry = CollectorRegistry()
    metrics = ServiceMetrics(registry, symbols=["a"])
    partition = TopicPartition("ticks", 0)
    metrics.record_assigned(partition)
    metrics.record_state(partition, PartitionState.RUNNING)
    metrics.record_snapshot(partition, 0.5, 1000)
    metrics.record_commit(partition, num_predictions=2, record_timestamps_ns=(), rows=[random_rows(["a", "b"])])
    metrics.record_device_memory(1, 2)
    metrics.record_epoch(3, "bb")
    metrics.record_migration(5)
    metrics.record_reload("refused", 0.01)
    metrics.record_build(version="1", jax="2", device="cpu", precision="float64")
    return generate_latest(registry).decode()


def test_committed_page_is_the_generated_one(repository_root: Path) -> None:
    committed = (repository_root / "docs/metrics.md").read_text("utf-8")
    assert committed == metrics_page(), "run python -m usp_daemon.telemetry docs/metrics.md"


def test_page_is_written_where_asked(tmp_path: Path) -> None:
    path = tmp_path / "page.md"
    subprocess.run([sys.executable, "-m", "usp_daemon.telemetry", str(path)], check=True)
    assert path.read_text("utf-8") == metrics_page()


def test_page_says_what_is_exposed(repository_root: Path, text: str) -> None:
    """Name, type, labels and meaning, read from the page and from what a scraper gets, not from the declarations."""
    page = (repository_root / "docs/metrics.md").read_text("utf-8")
    documented = {}
    for name, kind, labels, meaning in re.findall(
        r"^\| `(usp_\w+)` \| (\w+) \| (.*?) ?\| (.*) \|$", page, re.MULTILINE
    ):
        documented[name] = (kind, set(re.findall(r"`(\w+)`", labels)), meaning)
    exposed = {}
    for family in text_string_to_metric_families(text):
        if family.name.startswith("usp_"):
            name = f"{family.name}_total" if family.type == "counter" else family.name
            labels = {label for sample in family.samples for label in sample.labels} - {"le"}
            exposed[name] = (family.type, labels, family.documentation)
    assert exposed == documented


def test_page_names_the_values_of_labels() -> None:
    page = metrics_page()
    for spec in SPECS:
        for label, values in spec.label_values.items():
            row = next(line for line in page.splitlines() if line.startswith(f"| `{label}` of `{spec.name}` |"))
            assert set(re.findall(r"`(\w+)`", row.split("|")[2])) == set(values)


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_name_keeps_to_the_conventions(spec: MetricSpec) -> None:
    assert re.fullmatch(r"usp_[a-z][a-z_]*[a-z]", spec.name)
    assert spec.name.endswith("_total") == (spec.kind == "counter")
    if spec.kind != "counter" and not spec.name.endswith("_info"):
        assert spec.name.endswith(("_seconds", "_bytes", *COUNTED, *QUANTITIES))
    assert not re.search(r"(milli|micro|nano|minutes|hours|kilo|mega|_ms|_ns|_kb|_mb|percent)", spec.name)
    assert set(spec.labels) - {"symbol"} <= FEW_VALUES
    assert ("symbol" in spec.labels) == (spec.section == "Chosen symbols")
    assert (spec.meaning.endswith(".") and spec.meaning[0].isupper()) or spec.meaning.startswith("1 ")
    assert "|" not in spec.meaning


def test_names_are_different() -> None:
    assert len({spec.name for spec in SPECS}) == len(SPECS)


def test_promtool_finds_nothing_to_say(text: str) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        assert os.environ.get("USP_REQUIRE_PROMETHEUS") != "1"
        pytest.skip("promtool (Debian package prometheus) is not installed")
    checked = subprocess.run([promtool, "check", "metrics"], input=text, capture_output=True, text=True)
    complaints = checked.stdout + checked.stderr
    assert checked.returncode == 0, complaints
    assert complaints == ""
