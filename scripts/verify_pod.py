#!/usr/bin/env python3
"""Runs the pod of deploy/kubernetes/base with `podman kube play` beside a real broker, and says what held.

    .venv/bin/python scripts/verify_pod.py [--port 19240] [--image NAME]

Needs kubectl, PyYAML and what scripts/verify_container.py needs, which builds the image. What podman 4 cannot do is
taken out before: ports (with the host's network), probes over HTTP, sub-paths and claims, which become volumes.
"""

import argparse
import copy
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml
from verify_container import HERE, ROOT, CheckFailedError, broker, call, expect, passed, wait_for

POD = "usp-verify-pod"


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--port", type=int, default=19240)
    options.add_argument("--image", default="localhost/usp-daemon:check")
    chosen = options.parse_args()
    os.environ.setdefault("CONTAINERS_CONF", str(HERE / "containers.conf"))
    rendered = list(yaml.safe_load_all(call("kubectl", "kustomize", str(ROOT / "deploy" / "kubernetes" / "base"))))
    try:
        with tempfile.TemporaryDirectory() as directory, broker(chosen.port) as servers:
            path = Path(directory) / "pod.yaml"
            path.write_text(yaml.safe_dump_all(playable(rendered, chosen.image, servers, chosen.port + 1)))
            try:
                lives(path)
            finally:
                subprocess.run(["podman", "kube", "down", path], capture_output=True, check=False)
                # what the ConfigMap became, and what would be found again at the next run
                subprocess.run(["podman", "volume", "rm", "--force", "usp-daemon"], capture_output=True, check=False)
    except CheckFailedError as error:
        print(f"FAILED: {error}", file=sys.stderr)
        return 1
    return 0


def playable(rendered: list[dict[str, Any]], image: str, servers: str, port: int) -> list[dict[str, Any]]:
    """The ConfigMap and a Pod of the StatefulSet's template, for this broker and port."""
    kinds = {document["kind"]: copy.deepcopy(document) for document in rendered}
    settings = kinds["ConfigMap"]
    text = settings["data"]["config.toml"]
    for before, after in (
        ('"kafka.kafka.svc:9092"', f'"{servers}"'),
        ("create_topics = false", "create_topics = true"),
        ('host = "0.0.0.0"', 'host = "127.0.0.1"'),
        ("port = 9108", f"port = {port}"),
    ):
        if before not in text:
            raise CheckFailedError(f"no {before} in the settings of the base")
        text = text.replace(before, after)
    settings["data"]["config.toml"] = text
    template = kinds["StatefulSet"]["spec"]["template"]
    spec = template["spec"] | {"hostNetwork": True}
    (container,) = spec["containers"]
    container["image"] = image
    for name in ("ports", "startupProbe", "livenessProbe", "readinessProbe"):
        del container[name]
    for mount in container["volumeMounts"]:
        place = mount.pop("subPath", None)
        if place is not None:
            mount["name"] = place
            spec["volumes"].append({"name": place, "emptyDir": {}})
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": POD, "labels": template["metadata"]["labels"]}}
    return [settings, pod | {"spec": spec}]


def lives(path: Path) -> None:
    """Started, ready, hardened, ended in order."""
    name = f"{POD}-usp-daemon"
    call("podman", "kube", "play", str(path))
    probe = ["podman", "exec", name, "python", "-m", "usp_daemon.probe", "readyz"]
    wait_for("readiness", lambda: subprocess.run(probe, capture_output=True, check=False).returncode == 0)
    passed("pod", "ready, with the settings of the ConfigMap and snapshots in the topic")
    status = call("podman", "exec", name, "cat", "/proc/1/status")
    held = {line.partition(":")[0]: line.partition(":")[2].split() for line in status.splitlines()}
    expect("user", held["Uid"], ["10001"] * 4)
    expect("capabilities", [held[f"Cap{one}"] for one in ("Eff", "Prm", "Bnd")], [["0" * 16]] * 3)
    expect("no new privileges, filtered system calls", (held["NoNewPrivs"], held["Seccomp"]), (["1"], ["2"]))
    if not subprocess.run(["podman", "exec", name, "touch", "/opt/x"], capture_output=True, check=False).returncode:
        raise CheckFailedError("the root file system can be written")
    passed("hardened", "uid 10001, no capability, seccomp, read-only root")
    call("podman", "pod", "stop", "--time", "40", POD)
    expect("exit code", call("podman", "inspect", "--format", "{{.State.ExitCode}}", name).strip(), "0")
    passed("ended", "exit code 0")


if __name__ == "__main__":
    sys.exit(main())
