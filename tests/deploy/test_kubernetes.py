"""The manifests: rendered by kustomize, strict against the schemas of Kubernetes, in step with settings and image."""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from usp_daemon.config import load_settings, parse_settings

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "deploy" / "kubernetes"
BASE = FOLDER / "base"
TOOLS = Path(sys.executable).parent
LAST_RESORT_S = 5.0
VERSIONS = ("1.29.0", "1.32.0")


def one(name: str) -> dict:
    return yaml.safe_load((BASE / f"{name}.yaml").read_text("utf-8"))


STATEFUL_SET = one("statefulset")
POD = STATEFUL_SET["spec"]["template"]["spec"]
(CONTAINER,) = POD["containers"]
SETTINGS = parse_settings(tomllib.loads((BASE / "config.toml").read_text("utf-8")))


def rendered(folder: Path) -> list[dict]:
    kubectl, kustomize = shutil.which("kubectl"), shutil.which("kustomize")
    if kubectl is None and kustomize is None:
        pytest.skip("neither kubectl nor kustomize is here")
    line = [kubectl, "kustomize", folder] if kubectl else [kustomize, "build", folder]
    done = subprocess.run(list(map(str, line)), capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    assert not done.stderr, done.stderr
    return list(yaml.safe_load_all(done.stdout))


def validated(path: Path, version: str) -> None:
    line = [TOOLS / "kubernetes-validate", "--strict", "-k", version, path]
    done = subprocess.run(list(map(str, line)), capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("version", VERSIONS)
def test_rendered_base_fits_the_schemas(tmp_path: Path, version: str) -> None:
    path = tmp_path / "base.yaml"
    path.write_text(yaml.safe_dump_all(rendered(BASE)))
    validated(path, version)


@pytest.mark.parametrize("name", ["serviceaccount", "service", "statefulset", "poddisruptionbudget", "networkpolicy"])
def test_sources_fit_the_schemas_once_labels_are_there(tmp_path: Path, name: str) -> None:
    # what kustomize adds, so that this needs no kubectl
    document = one(name)
    labels = {"app.kubernetes.io/name": "usp-daemon"}
    if name == "statefulset":
        document["spec"]["selector"] = {"matchLabels": labels}
        document["spec"]["template"]["metadata"] = {"labels": labels}
    path = tmp_path / "one.yaml"
    path.write_text(yaml.safe_dump(document))
    validated(path, VERSIONS[-1])


def test_autoscaler_fits_its_schema() -> None:
    validated(FOLDER / "components" / "scaling-hpa" / "horizontalpodautoscaler.yaml", VERSIONS[-1])


def test_scaled_overlay() -> None:
    documents = {document["kind"]: document for document in rendered(FOLDER / "overlays" / "scaled")}
    spec = documents["StatefulSet"]["spec"]
    # the scaler's number is not set back by the next apply
    assert "replicas" not in spec
    scaled = documents["ScaledObject"]["spec"]
    assert scaled["scaleTargetRef"] == {"apiVersion": "apps/v1", "kind": "StatefulSet", "name": "usp-daemon"}
    trigger = scaled["triggers"][0]["metadata"]
    assert trigger["bootstrapServers"] == SETTINGS.kafka.bootstrap_servers
    assert trigger["consumerGroup"] == SETTINGS.kafka.group
    assert trigger["topic"] == SETTINGS.kafka.input_topic
    assert scaled["maxReplicaCount"] <= SETTINGS.kafka.num_partitions
    (container,) = spec["template"]["spec"]["containers"]
    environment = {each["name"]: each["value"] for each in container["env"]}
    settings = load_settings(BASE / "config.toml", environment)
    (mount,) = [each for each in container["volumeMounts"] if each["name"] == "kafka"]
    for path in (settings.kafka.sasl_password_file, settings.kafka.ssl_ca_file):
        assert Path(path).parent == Path(mount["mountPath"])
    assert not settings.kafka.sasl_password
    # the other mounts are still there
    assert {each["name"] for each in container["volumeMounts"]} == {"config", "data", "tmp", "kafka"}


def test_budget_and_policy_concern_these_pods_only() -> None:
    documents = {document["kind"]: document for document in rendered(BASE)}
    labels = documents["StatefulSet"]["spec"]["template"]["metadata"]["labels"]
    for selector in (
        documents["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"],
        documents["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"],
        documents["StatefulSet"]["spec"]["selector"]["matchLabels"],
    ):
        assert selector
        assert selector.items() <= labels.items()
    assert documents["ConfigMap"]["metadata"]["name"] == "usp-daemon"  # no suffix: a change is followed in place
    assert documents["PodDisruptionBudget"]["spec"]["maxUnavailable"] == 1


def test_time_to_end_is_longer_than_the_daemons() -> None:
    assert POD["terminationGracePeriodSeconds"] >= SETTINGS.service.shutdown_timeout_s + LAST_RESORT_S + 5.0


def test_probes_and_ports_are_the_daemons() -> None:
    (port,) = CONTAINER["ports"]
    assert port["containerPort"] == SETTINGS.http.port
    assert SETTINGS.http.host == "0.0.0.0"
    assert {name: CONTAINER[f"{name}Probe"]["httpGet"] for name in ("startup", "liveness", "readiness")} == {
        "startup": {"path": "/livez", "port": port["name"]},
        "liveness": {"path": "/livez", "port": port["name"]},
        "readiness": {"path": "/readyz", "port": port["name"]},
    }
    assert one("service")["spec"]["ports"][0]["port"] == SETTINGS.http.port
    assert one("networkpolicy")["spec"]["ingress"][0]["ports"] == [{"port": SETTINGS.http.port, "protocol": "TCP"}]
    # the broker's port is among those that may be reached
    allowed = {port["port"] for rule in one("networkpolicy")["spec"]["egress"] for port in rule["ports"]}
    assert int(SETTINGS.kafka.bootstrap_servers.rpartition(":")[2]) in allowed


def test_pod_may_do_little() -> None:
    assert POD["automountServiceAccountToken"] is False
    assert one("serviceaccount")["automountServiceAccountToken"] is False
    pod = POD["securityContext"]
    assert pod["runAsNonRoot"] is True
    assert pod["runAsUser"] == pod["runAsGroup"] == pod["fsGroup"] == 10001
    assert f"\nUSER {pod['runAsUser']}:{pod['runAsGroup']}\n" in (ROOT / "Dockerfile").read_text("utf-8")
    assert pod["seccompProfile"] == {"type": "RuntimeDefault"}
    assert CONTAINER["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "privileged": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert CONTAINER["resources"]["limits"].keys() >= {"cpu", "memory"}


def test_service_variables_do_not_become_settings() -> None:
    from usp_daemon.config import ConfigError

    with pytest.raises(ConfigError, match="USP_DAEMON_SERVICE_HOST"):
        load_settings(BASE / "config.toml", {"USP_DAEMON_SERVICE_HOST": "10.0.0.1"})
    assert POD["enableServiceLinks"] is False


def test_state_survives_a_pod_and_may_move_between_them() -> None:
    # a partition may be taken over by a pod that has another disk
    assert SETTINGS.io.snapshot_store == "topic"
    assert SETTINGS.kafka.group_instance_id == "auto"
    mounts = {each["mountPath"]: each["name"] for each in CONTAINER["volumeMounts"]}
    dockerfile = (ROOT / "Dockerfile").read_text("utf-8")
    for path in re.findall(r'"(/var/[^"]+)"', re.findall(r"^VOLUME (.*)$", dockerfile, re.MULTILINE)[0]):
        assert mounts[path] == STATEFUL_SET["spec"]["volumeClaimTemplates"][0]["metadata"]["name"]
    (config,) = [each for each in CONTAINER["volumeMounts"] if each["name"] == "config"]
    assert "subPath" not in config  # such a mount would never change
    assert f"USP_CONFIG={config['mountPath']}/config.toml" in dockerfile
