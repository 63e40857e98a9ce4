"""Dockerfile and compose.yaml: right by their linters, and in step with the daemon's settings."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from usp_daemon.config import SPECS

ROOT = Path(__file__).resolve().parents[2]
TOOLS = Path(sys.executable).parent
DOCKERFILE = (ROOT / "Dockerfile").read_text("utf-8")
COMPOSE = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text("utf-8"))
SERVICES = COMPOSE["services"]
DAEMON = SERVICES["usp-daemon"]
LAST_RESORT_S = 5.0


def run(*line: object) -> None:
    done = subprocess.run(list(map(str, line)), cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


def test_dockerfile_passes_its_linter() -> None:
    run(TOOLS / "hadolint", "--failure-threshold", "style", "Dockerfile")


def test_compose_file_fits_its_schema() -> None:
    run(TOOLS / "check-jsonschema", "--builtin-schema", "vendor.compose-spec", "deploy/compose.yaml")


def test_every_yaml_file_of_deploy_is_clean() -> None:
    run(TOOLS / "yamllint", "--strict", "deploy")


def test_prometheus_takes_its_settings() -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("no promtool here")
    run(promtool, "check", "config", "deploy/compose/prometheus.yml")


def test_scripts_parse() -> None:
    for script in (ROOT / "deploy" / "verify").glob("*.sh"):
        run("bash", "-n", script)


def test_everything_is_installed_from_hashes() -> None:
    installs = re.findall(r"-m pip (?:--python \S+ )?(install|wheel) ([^\n\\]*)", DOCKERFILE)
    assert len(installs) >= 5
    for command, arguments in installs:
        # the package itself has no hash: it is built here, from what was copied, and brings nothing along
        assert "--require-hashes" in arguments or "--no-deps" in arguments, (command, arguments)


def test_no_registry_address_and_no_secret_in_the_files() -> None:
    for path in [ROOT / "Dockerfile", ROOT / ".dockerignore", *(ROOT / "deploy").rglob("*")]:
        if path.is_file() and path.suffix in ("", ".yaml", ".yml", ".sh", ".toml", ".service", ".conf"):
            text = path.read_text("utf-8")
            assert not re.search(r"\b(docker\.io|ghcr\.io|quay\.io|gcr\.io|pypi\.org|registry\.[a-z]+)\b", text), path
            assert "PRIVATE KEY" not in text


def test_the_build_sees_what_it_copies_and_nothing_else() -> None:
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text("utf-8").splitlines() if line.startswith("!")}
    copied = set()
    for words in re.findall(r"^COPY (?!--from)(.*)$", DOCKERFILE, re.MULTILINE):
        copied |= set(words.split()[:-1])
    assert copied == allowed
    assert all((ROOT / name).exists() for name in allowed)


def test_user_is_not_root_and_the_same_everywhere() -> None:
    assert re.findall(r"^USER (.*)$", DOCKERFILE, re.MULTILINE) == ["10001:10001"]
    last = DOCKERFILE.split("\nFROM ")[-1]
    assert last.strip() == "cpu"
    assert "user" not in DAEMON


def test_port_paths_and_signal_are_the_daemons() -> None:
    assert f"\nEXPOSE {SPECS['http.port'].default}\n" in DOCKERFILE
    assert "\nSTOPSIGNAL SIGTERM\n" in DOCKERFILE
    (volumes,) = re.findall(r"^VOLUME (.*)$", DOCKERFILE, re.MULTILINE)
    workdirs = re.findall(r"^WORKDIR (.*)$", DOCKERFILE, re.MULTILINE)
    # what the daemon writes lies below the working directory of what runs, which is a volume
    assert f'"{workdirs[-1]}"' in volumes
    for key in ("io.snapshot_path", "io.state_path", "io.mutations_log", "tuning.record_path"):
        assert str(SPECS[key].default).startswith("io/"), key
    (cache,) = re.findall(r"USP_CACHE_DIR=(\S+)", DOCKERFILE)
    assert f'"{cache}"' in volumes
    (config,) = re.findall(r"USP_CONFIG=(\S+)", DOCKERFILE)
    assert f"COPY config/config.toml {config}\n" in DOCKERFILE


@pytest.mark.parametrize("name", SERVICES)
def test_ports_are_published_on_the_loopback_address_only(name: str) -> None:
    for port in SERVICES[name].get("ports", ()):
        assert re.fullmatch(r"127\.0\.0\.1:(\d+):\1", port), port
    assert SERVICES[name].get("network_mode") != "host"


@pytest.mark.parametrize("name", [name for name in SERVICES if name not in ("kafka", "topics")])
def test_containers_may_do_little(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert not service.get("privileged")


def test_daemon_of_the_compose_file() -> None:
    environment = DAEMON["environment"]
    port = int(environment["USP_HTTP__PORT"])
    assert DAEMON["ports"] == [f"127.0.0.1:{port}:{port}"]
    scraped = yaml.safe_load((ROOT / "deploy" / "compose" / "prometheus.yml").read_text("utf-8"))["scrape_configs"]
    assert scraped[0]["static_configs"][0]["targets"] == [f"usp-daemon:{port}"]
    mounted = {text.split(":")[1] for text in DAEMON["volumes"]}
    assert mounted == {"/var/lib/usp-daemon", "/var/cache/usp-daemon", "/etc/usp-daemon"}
    grace_s = float(DAEMON["stop_grace_period"].removesuffix("s"))
    assert grace_s > SPECS["service.shutdown_timeout_s"].default + LAST_RESORT_S
    assert DAEMON["healthcheck"]["test"][-2:] == ["usp_daemon.probe", "readyz"]


@pytest.mark.parametrize("name", ["usp-daemon", "feed"])
def test_settings_in_the_environment_are_settings(name: str) -> None:
    from usp_daemon.config import load_settings

    environment = SERVICES[name]["environment"]
    settings = load_settings(None, environment | {"USP_CONFIG": str(ROOT / "config" / "config.toml")})
    assert settings.kafka.bootstrap_servers == "kafka:19092"
    advertised = SERVICES["kafka"]["environment"]["KAFKA_ADVERTISED_LISTENERS"]
    assert f"://{settings.kafka.bootstrap_servers}" in advertised


def test_topics_are_the_daemons() -> None:
    script = SERVICES["topics"]["command"][0]
    created = re.findall(r"^\s*create ([a-z-]+)", script, re.MULTILINE)
    names = ("input", "predictions", "alarms", "dead_letters")
    assert created == [SPECS[f"kafka.{name}_topic"].default for name in names]
    # as many as the daemon itself would make
    assert f"--partitions {SPECS['kafka.num_partitions'].default} " in script
