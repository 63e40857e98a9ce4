"""Dashboards are what their code makes, keep to the rules of the house, and every query in them finds something."""

import asyncio
import copy
import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import promql_parser
import pytest
import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard
from prometheus_client import CollectorRegistry, start_http_server

from fake_predictor import COUNTS, FLAGS, WIDE
from usp_daemon.core import PredictionResult
from usp_daemon.telemetry import (
    PartitionState,
    RebalanceKind,
    ResetReason,
    ServiceMetrics,
    Stage,
    TransactionOutcome,
)
from usp_daemon.wire import TopicPartition

from .promql import FOREIGN, declared, filled, metric_names

NAMES = ("overview", "forecasts", "symbol", "pipeline", "recovery", "tuner")
VARIABLES = {"datasource", "job", "instance", "topic", "partition", "symbol"}


@pytest.fixture(scope="session")
def dashboards(repository_root):
    folder = repository_root / "deploy/grafana/dashboards"
    return {path.stem: json.loads(path.read_text("utf-8")) for path in sorted(folder.glob("*.json"))}


def panels(dashboard):
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def queries(dashboard):
    """Panel's title and expression."""
    return [(panel["title"], target["expr"]) for panel in panels(dashboard) for target in panel["targets"]]


def test_committed_files_are_the_generated_ones(repository_root, tmp_path, dashboards):
    subprocess.run([sys.executable, repository_root / "deploy/grafana/generate.py", tmp_path], check=True)
    assert {path.stem for path in tmp_path.iterdir()} == set(dashboards) == {f"usp-{name}" for name in NAMES}
    for path in tmp_path.iterdir():
        committed = repository_root / "deploy/grafana/dashboards" / path.name
        assert path.read_bytes() == committed.read_bytes(), "run python deploy/grafana/generate.py"


@pytest.mark.parametrize("name", NAMES)
def test_grafanas_own_model_keeps_all_of_it(dashboards, name):
    """What the model does not know would be dropped or fail; the annotations' wording is left open by the schema."""
    given = dashboards[f"usp-{name}"]
    for annotation in given["annotations"]["list"]:
        for extra in ("titleFormat", "tagKeys", "step"):
            del annotation[extra]
    assert json.loads(JSONEncoder(sort_keys=True).encode(Dashboard.from_json(given))) == given


@pytest.mark.parametrize("name", NAMES)
def test_head(dashboards, name):
    given = dashboards[f"usp-{name}"]
    assert given["uid"] == f"usp-{name}" and not given.get("id")
    assert given["title"] and given["description"] and "usp-daemon" in given["tags"]
    variables = [variable["name"] for variable in given["templating"]["list"]]
    assert variables[:3] == ["datasource", "job", "instance"]
    assert set(variables) <= VARIABLES
    (link,) = given["links"]
    assert link["tags"] == ["usp-daemon"] and link["includeVars"] and link["keepTime"]
    assert {a["name"] for a in given["annotations"]["list"]} == {
        "Regime alarms", "Configuration epochs", "Firing alerts",
    }  # fmt: skip


def defects(given):
    """What keeps a document from being a dashboard that Grafana 11 imports and shows as it is, in words."""
    found = [
        f"no {key}" for key in ("uid", "title", "schemaVersion", "time", "templating", "panels") if not given.get(key)
    ]
    if not isinstance(given.get("schemaVersion"), int) or given["schemaVersion"] < 36:
        found.append("a schema that Grafana 11 would have to migrate")
    numbers, taken = set(), {}
    for panel in given.get("panels", ()):
        title = panel.get("title", "a panel")
        found += [f"{title}: no {key}" for key in ("id", "type", "title", "gridPos") if not panel.get(key)]
        if panel.get("id") in numbers:
            found.append(f"{title}: its id is another's")
        numbers.add(panel.get("id"))
        if panel.get("type") == "row":
            if panel.get("collapsed") or panel.get("panels"):
                found.append(f"{title}: a folded row hides its panels from these tests")
        else:
            found += [f"{title}: no {key}" for key in ("datasource", "targets") if not panel.get(key)]
            names = [target.get("refId") for target in panel.get("targets", ())]
            if len(set(names)) != len(names) or None in names:
                found.append(f"{title}: refIds {names}")
            found += [f"{title}: a query without text" for target in panel.get("targets", ()) if not target.get("expr")]
        place = panel.get("gridPos", {})
        if set(place) >= set("xywh"):
            if not (
                place["x"] >= 0 and place["x"] + place["w"] <= 24 and place["y"] >= 0 and place["w"] * place["h"] > 0
            ):
                found.append(f"{title}: {place} is not on the grid")
            for x in range(place["x"], place["x"] + place["w"]):
                for y in range(place["y"], place["y"] + place["h"]):
                    if taken.setdefault((x, y), title) != title:
                        found.append(f"{title}: lies over {taken[x, y]}")
        else:
            found.append(f"{title}: gridPos {place}")
    variables = [variable["name"] for variable in given.get("templating", {}).get("list", ())]
    if len(set(variables)) != len(variables):
        found.append(f"variables {variables}")
    used = set(re.findall(r"\$\{?([A-Za-z_]\w*)", json.dumps({**given, "links": []})))
    built_in = {name for name in used if name.startswith("__")}
    if built_in - {"__rate_interval"}:
        found.append(f"built-in variables {built_in}")
    found += [f"no variable {name}" for name in sorted(used - built_in - set(variables))]
    return found


@pytest.mark.parametrize("name", NAMES)
def test_grafana_finds_every_key_that_it_needs(dashboards, name):
    assert defects(dashboards[f"usp-{name}"]) == []


@pytest.mark.parametrize(
    ("break_fn", "words"),
    [
        (lambda given: given.pop("uid"), "no uid"),
        (lambda given: given.pop("schemaVersion"), "no schemaVersion"),
        (lambda given: given["panels"][1].pop("gridPos"), "no gridPos"),
        (lambda given: given["panels"][1].pop("targets"), "no targets"),
        (lambda given: given["panels"][1].pop("datasource"), "no datasource"),
        (lambda given: given["panels"][2].update(id=given["panels"][1]["id"]), "its id is another's"),
        (lambda given: given["panels"][2].update(gridPos=given["panels"][1]["gridPos"]), "lies over"),
        (lambda given: given["panels"][1]["gridPos"].update(x=23), "is not on the grid"),
        (lambda given: given["templating"]["list"].pop(1), "no variable job"),
        (lambda given: given["panels"][1]["targets"][0].update(expr="up{a='$nowhere'}"), "no variable nowhere"),
    ],
)
def test_a_defect_is_found(dashboards, break_fn, words):
    given = copy.deepcopy(dashboards["usp-overview"])
    break_fn(given)
    assert any(words in defect for defect in defects(given))


@pytest.mark.parametrize("name", NAMES)
def test_panels_are_complete_and_do_not_overlap(dashboards, name):
    given = dashboards[f"usp-{name}"]
    numbers = [panel["id"] for panel in given["panels"]]
    assert len(set(numbers)) == len(numbers)
    taken = {}
    for panel in panels(given):
        title = panel["title"]
        assert title and panel["description"].endswith("."), title
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}, title
        axis = panel["options"]["yAxis"] if panel["type"] == "heatmap" else panel["fieldConfig"]["defaults"]
        assert axis["unit"], title
        position = panel["gridPos"]
        assert position["x"] + position["w"] <= 24, title
        for x in range(position["x"], position["x"] + position["w"]):
            for y in range(position["y"], position["y"] + position["h"]):
                assert taken.setdefault((x, y), title) == title, f"{title} lies over {taken[x, y]}"
    assert len({panel["title"] for panel in panels(given)}) == len(panels(given))


@pytest.mark.parametrize("name", NAMES)
def test_queries_parse_and_name_what_the_daemon_exposes(dashboards, name):
    given = dashboards[f"usp-{name}"]
    expressions = [expr for _, expr in queries(given)] + [a["expr"] for a in given["annotations"]["list"]]
    known, variables = declared(), {variable["name"] for variable in given["templating"]["list"]}
    for expression in expressions:
        plain = filled(expression, dict.fromkeys(VARIABLES, ".+"))
        promql_parser.parse(plain)
        assert metric_names(plain) <= set(known) | FOREIGN, expression
        assert set(re.findall(r"\$\{?(\w+)", expression)) <= variables | {"__rate_interval"}, expression
        for function in re.findall(r"\b(?:rate|irate|increase|changes)\(([^()]*)\)", expression):
            assert function.endswith("[$__rate_interval]"), expression
        for metric, matchers in re.findall(r"(usp_\w+)\{([^}]*)\}", expression):
            labels = set(re.findall(r'(\w+)[!=~]+"', matchers)) - {"job", "instance"}
            assert labels <= known[metric], expression
        for series in re.findall(r"usp_\w+(.?)", expression):
            assert series == "{", f"no selection of job and replica: {expression}"


def test_every_declared_metric_is_on_a_dashboard_or_left_out_for_a_reason(dashboards):
    shown = set()
    for given in dashboards.values():
        for _, expression in queries(given):
            shown |= metric_names(filled(expression, dict.fromkeys(VARIABLES, ".+")))
    left_out = {
        "usp_device_memory_bytes",  # a CPU has none: the panel would be empty for most; an alert watches it
        "usp_states_migrated_total",  # once per change of structure; the log says more
    }
    for spec_name in {name.removesuffix("_bucket") for name in declared() if not name.endswith(("_sum", "_count"))}:
        assert (spec_name in left_out) != bool({spec_name, spec_name + "_bucket"} & shown), spec_name


def test_provisioning_files_fit_the_dashboards(repository_root):
    folder = repository_root / "deploy/grafana/provisioning"
    (source,) = yaml.safe_load((folder / "datasources/prometheus.yaml").read_text("utf-8"))["datasources"]
    (provider,) = yaml.safe_load((folder / "dashboards/usp-daemon.yaml").read_text("utf-8"))["providers"]
    scrape = yaml.safe_load((repository_root / "deploy/prometheus/prometheus.yml").read_text("utf-8"))["global"]
    assert source["type"] == "prometheus"
    assert source["jsonData"]["timeInterval"] == scrape["scrape_interval"]
    assert provider["type"] == "file" and provider["options"]["path"].startswith("/")


# --- on a real Prometheus


def assert_all_find_something(prometheus, dashboards, began):
    """Every variable, query and annotation of every dashboard, over all time since ``began``."""
    failures, ended = [], time.time() + 1
    for name, given in dashboards.items():
        variables = {}
        for variable in given["templating"]["list"]:
            if variable["type"] != "query":
                continue
            found = re.fullmatch(r"label_values\((.+), (\w+)\)", filled(variable["query"], variables))
            assert found, variable["query"]
            values = prometheus.api(f"label/{found[2]}/values", **{"match[]": found[1]})
            if not values:
                failures.append(f"{name}: variable {variable['name']}")
            variables[variable["name"]] = "|".join(re.escape(value).replace("\\", "\\\\") for value in values) or ".+"
        asked = queries(given) + [(a["name"], a["expr"]) for a in given["annotations"]["list"]]
        for title, expression in asked:
            query = filled(expression, variables)
            result = prometheus.api("query_range", query=query, start=began, end=ended, step=1)["result"]
            numbers = sum(value != "NaN" for series in result for _, value in series["values"])
            if not numbers:
                failures.append(f"{name}: {title}: {query}")
    assert not failures, "\n".join(failures)


class Rows:
    """Predictions of four symbols as the service reports them, with numbers of no meaning that move with ``turn``."""

    def __init__(self, turn):
        self.symbols = ["a", "b", "c", "d"]
        self.values = np.array([1.0, 2.0, 3.0, 4.0]) + 0.01 * turn

    def column(self, name):
        assert name in {field.name for field in dataclasses.fields(PredictionResult)}, name
        if name in COUNTS:
            return np.ones(4, np.int32)
        if name in FLAGS:
            return np.full(4, name != "warming_up")
        if name.startswith(("lower", "upper")):
            return self.values + (1.0 if name.startswith("upper") else -1.0)
        return np.full((4, WIDE[name]) if name in WIDE else 4, 0.25)


SOURCE = {"symbol": "a", "partition": "0", "offset": "17"}


class Exposed:
    """The service's metrics, driven through every hook from a thread as a busy replica would, and served."""

    def __init__(self):
        self.registry = CollectorRegistry()
        self.metrics = ServiceMetrics(self.registry, top_symbols=5)
        self.server, _ = start_http_server(0, addr="127.0.0.1", registry=self.registry)
        self.port = self.server.server_port
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._drive)
        self._thread.start()

    def _drive(self):
        metrics, partitions = self.metrics, [TopicPartition("ticks", number) for number in (0, 1)]
        metrics.record_build(version="1", jax="2", device="cpu", precision="float64")
        turn = 0
        while not self._ended.wait(0.2):
            turn += 1
            now_ns = time.time_ns()
            for partition in partitions:
                if turn == 1:
                    metrics.record_assigned(partition)
                    metrics.record_rebalance(RebalanceKind.ASSIGNED)
                states = list(PartitionState)
                metrics.record_state(partition, states[min(turn // 5, states.index(PartitionState.RUNNING))])
                metrics.record_replayed(partition, 10, max(100 - turn, 0))
                metrics.record_restored(partition, 1.5)
                metrics.record_queue(partition, turn % 7, is_paused=turn % 5 == 0)
                metrics.record_lag(partition, turn % 7, now_ns - 10**9)
                metrics.record_symbols(partition, 50)
                metrics.record_snapshot(partition, 0.1, 10**6)
                metrics.record_commit(
                    partition, num_predictions=20, record_timestamps_ns=[now_ns - 10**8] * 20, alarm_kinds=[1, 2],
                    refused_reasons=[1], dead_letters={"not_json": 1}, rows=[Rows(turn)], alarm_sources=[SOURCE] * 2,
                )  # fmt: skip
            metrics.record_poll(0.05, dict.fromkeys(partitions, 20))
            for stage in Stage:
                metrics.record_stage(stage, 0.01)
            metrics.record_step(0.02, 20)
            metrics.record_transaction(TransactionOutcome.COMMITTED)
            metrics.record_producer_reset(ResetReason.TRANSPORT_ERROR)
            metrics.record_event_loop_lag(0.001)
            metrics.record_compilations(1, 0.01)
            metrics.record_epoch(1 + turn // 25, f"hash{turn // 25}")
            metrics.record_reload("applied", 0.1)
            metrics.record_tuner_state("campaign" if turn % 20 < 10 else "idle")
            metrics.record_tuner_trials(1, 0.9)
            metrics.record_drift(1.1, 1)

    def unreachable(self):
        self.server.shutdown()
        self.server.server_close()

    def close(self):
        self._ended.set()
        self._thread.join()
        self.unreachable()


@pytest.mark.slow
def test_every_query_finds_something_and_an_alert_comes_and_goes(make_prometheus, dashboards):
    exposed, began = Exposed(), time.time()
    try:
        prometheus = make_prometheus(f"127.0.0.1:{exposed.port}", UspDaemonDown="1s")
        prometheus.until(lambda: (prometheus.value("max(usp_config_epoch)") or 0) >= 3, "two changes of the epoch")
        assert "UspDaemonDown" not in prometheus.firing()
        exposed.unreachable()
        alert = prometheus.until(lambda: prometheus.firing().get("UspDaemonDown"), "UspDaemonDown fires")
        assert alert["annotations"]["summary"] == f"usp-daemon 127.0.0.1:{exposed.port} cannot be scraped"
        exposed.server, _ = start_http_server(exposed.port, addr="127.0.0.1", registry=exposed.registry)
        prometheus.until(lambda: "UspDaemonDown" not in prometheus.firing(), "UspDaemonDown clears")
        assert_all_find_something(prometheus, dashboards, began)
        kept = prometheus.api("query_exemplars", query="usp_alarms_published_total", start=began, end=time.time())
        assert kept and all(one["labels"] == SOURCE for series in kept for one in series["exemplars"])
        unhealthy = [r for g in prometheus.api("rules")["groups"] for r in g["rules"] if r["health"] != "ok"]
        assert not unhealthy
    finally:
        exposed.close()


NUM_BUNDLED = 9_000  # of six series, past the first changes of regime in some


@pytest.mark.long
@pytest.mark.kafka
async def test_the_daemon_itself_fills_the_dashboards_and_is_missed(
    make_prometheus, dashboards, kafka_bootstrap_servers, topic_name, tmp_path
):
    """``usp-daemon run`` on a real broker with the bundled series and some rubbish, snapshots, a change of settings;
    then it is killed.
    """
    from chaos import service_process as chaos

    prefix, began = topic_name(), time.time()
    await chaos.create_topics(kafka_bootstrap_servers, prefix, ["g"])
    replica = chaos.ServiceProcess(tmp_path / "replica", kafka_bootstrap_servers, group="g", prefix=prefix)
    config = replica.directory / "config" / "config.toml"
    config.parent.mkdir()
    config.write_text("[orchestration]\n", "utf-8")
    prometheus = make_prometheus(f"127.0.0.1:{replica.port}", UspDaemonDown="1s")
    try:
        assert await replica.start().wait_ready(holding=chaos.NUM_PARTITIONS), replica.tail()
        feeding = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "usp_daemon.cli", "feed", "--rate", "400", "--count", str(NUM_BUNDLED)),
            cwd=tmp_path, env=os.environ | replica.environment, stderr=subprocess.PIPE,
        )  # fmt: skip
        rubbish = [(number % 4, b"x", value, None) for number, value in enumerate(chaos.RUBBISH)]
        await chaos.produce(kafka_bootstrap_servers, f"{prefix}.ticks", rubbish)
        prometheus.until(
            lambda: (prometheus.value("sum(usp_predictions_published_total)") or 0) > NUM_BUNDLED / 3,
            "a third is answered",
        )
        config.write_text("[orchestration]\ncusum_k = 0.4\n", "utf-8")
        os.kill(replica.process.pid, signal.SIGHUP)
        _, said = await feeding.communicate()
        assert (feeding.returncode, b"of 6 symbols" in said) == (0, True), said
        await chaos.wait_answered(kafka_bootstrap_servers, replica)
        prometheus.until(lambda: prometheus.value("sum(usp_dead_letters_published_total)"), "dead letters are scraped")
        assert prometheus.value("sum(usp_alarms_published_total)") > 0
        assert "UspDaemonDown" not in prometheus.firing()
        replica.kill()
        prometheus.until(lambda: prometheus.firing().get("UspDaemonDown"), "UspDaemonDown fires")
        prometheus.until(lambda: prometheus.value("count(ALERTS)"), "the alert is a series too")
        assert_all_find_something(prometheus, dashboards, began)
        assert await replica.start().wait_ready(holding=chaos.NUM_PARTITIONS), replica.tail()
        prometheus.until(lambda: "UspDaemonDown" not in prometheus.firing(), "UspDaemonDown clears")
    finally:
        replica.discard()
