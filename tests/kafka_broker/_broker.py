"""One broker, or a cluster of three, on 127.0.0.1: start, stop, kill, pause and find it again."""

import base64
import json
import shutil
import signal
import socket
import subprocess
import time
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path

from kafka_broker import _jars, _probe, _security
from kafka_broker._ports import free_port
from kafka_broker._process import POLL_S, Daemon
from kafka_broker._properties import CONTROLLER, PLAINTEXT, PROXIED, SECURED, Ports, properties, scram_users

# Small heap, one thread for collection, and nothing of the JVM's outside the node's folder.
JAVA_OPTIONS = ("-Xms64m", "-Xmx384m", "-XX:+UseSerialGC", "-XX:-UsePerfData", "-XX:+ExitOnOutOfMemoryError")
# The first compiler only: halves the time to start, at the cost of peak throughput.
QUICK_OPTIONS = ("-XX:TieredStopAtLevel=1",)
# Two seconds where the cores are free; this is for a machine that does much else.
READY_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 10.0


class BrokerFailed(RuntimeError):
    """The broker did not do what was asked; the message has the end of its log."""


class Broker:
    """A cluster in ``directory``, whose data, ports and processes survive this object.

    ``nodes`` is 1 or 3; each node is broker and controller. ``security`` adds the listeners SSL, MTLS, SASL_PLAINTEXT
    and SASL_SSL beside PLAINTEXT. ``proxied`` adds one whose advertised port is left for a ``Proxy``. ``port`` is the
    first node's for ``port_listener``, the next nodes follow it; without it free ports are taken and kept with the
    directory. ``long_lived`` lets the JVM compile for throughput instead of for a quick start. ``settings`` are further
    lines of ``server.properties``.

    Methods act on all nodes, or on the one whose number (from 1) is given.
    """

    def __init__(
        self,
        directory: Path,
        nodes: int = 1,
        version: str = _jars.VERSIONS[0],
        security: bool = False,
        *,
        proxied: bool = False,
        port: int | None = None,
        port_listener: str = PLAINTEXT,
        long_lived: bool = False,
        settings: Mapping[str, object] | None = None,
    ) -> None:
        if nodes not in (1, 3):
            raise ValueError(f"1 or 3 nodes, not {nodes}")
        self.directory = Path(directory).resolve()
        self.version = version
        self.nodes = tuple(range(1, nodes + 1))
        self._java_options = JAVA_OPTIONS + (() if long_lived else QUICK_OPTIONS)
        form = {
            "version": version,
            "nodes": nodes,
            "security": security,
            "proxied": proxied,
            "settings": dict(settings or {}),
        }
        stored = _stored(self.directory)
        if stored is not None and stored["form"] != form:
            raise BrokerFailed(
                f"{self.directory} holds a broker of the form {stored['form']}, not {form}: take another directory"
            )
        self._form = form
        self._cluster_id: str = stored["cluster_id"] if stored else _new_cluster_id()
        self._ports = (
            [Ports(**one) for one in stored["ports"]]
            if stored
            else [_choose_ports(security, proxied) for _ in self.nodes]
        )
        if port is not None:
            self._ports = [
                _with_port(one, port_listener, port + number - 1)
                for one, number in zip(self._ports, self.nodes, strict=True)
            ]
        self.credentials = _security.create(self.directory / "certificates") if security else None

    @classmethod
    def at(cls, directory: Path) -> "Broker":
        """The broker that was started in ``directory``; raises ``BrokerFailed`` if none ever was."""
        stored = _stored(Path(directory).resolve())
        if stored is None:
            raise BrokerFailed(f"no broker was started in {directory}")
        return cls(directory, **stored["form"])

    @property
    def bootstrap_servers(self) -> str:
        """Every node's plaintext listener."""
        return self.listeners[PLAINTEXT]

    @property
    def listeners(self) -> dict[str, str]:
        """Listener name to the servers a client bootstraps from."""
        names = [name for name in self._ports[0].advertised if name != CONTROLLER]
        return {name: ",".join(f"127.0.0.1:{one.advertised[name]}" for one in self._ports) for name in names}

    @property
    def proxy_routes(self) -> list[tuple[int, int]]:
        """For each node the port a proxy must listen on and the port it must forward to. Empty unless ``proxied``."""
        return [(one.advertised[PROXIED], one.bound[PROXIED]) for one in self._ports if PROXIED in one.bound]

    @property
    def running(self) -> tuple[int, ...]:
        """Numbers of the nodes whose process exists, paused ones included."""
        return tuple(node for node in self.nodes if self.daemon(node).pid is not None)

    def daemon(self, node: int = 1) -> Daemon:
        """A node's process."""
        return Daemon(self._folder(node) / "pid")

    def log(self, node: int = 1) -> Path:
        """A node's log file; restarts append to it."""
        return self._folder(node) / "broker.log"

    def start(self, node: int | None = None, *, wait: bool = True) -> None:
        """Starts what does not run and, if ``wait``, returns once every running node serves and knows the others.

        Raises ``BrokerUnavailable`` without Java or jars, ``BrokerFailed`` if it does not come up in two minutes.
        """
        java = _jars.java()
        class_path = ":".join(map(str, _jars.jars(self.version)))
        chosen = [number for number in self._chosen(node) if self.daemon(number).pid is None]
        self._store()
        for number in chosen:
            self._write_settings(number)
        self._format(
            java, class_path, [number for number in chosen if not (self._data(number) / "meta.properties").is_file()]
        )
        for number in chosen:
            self._check_ports(number)
            self._launch(java, class_path, number)
        if wait:
            self.wait_until_ready()

    def wait_until_ready(self, timeout_s: float = READY_TIMEOUT_S) -> None:
        """Returns once each running node answers ApiVersions and lists all running nodes; raises ``BrokerFailed``."""
        expected = self.running
        deadline = time.monotonic() + timeout_s
        while not all(self._serves(number, expected) for number in expected):
            dead = set(expected) - set(self.running)
            if dead or time.monotonic() > deadline:
                number = min(dead or expected)
                what = f"node {number} ended" if dead else f"not ready after {timeout_s:.0f} s"
                raise BrokerFailed(f"Kafka {self.version}: {what}\n{self._log_end(number)}")
            time.sleep(POLL_S)
        if not expected:
            raise BrokerFailed(f"Kafka {self.version}: no node runs\n{self._log_end(self.nodes[0])}")

    def stop(self, node: int | None = None, timeout_s: float = STOP_TIMEOUT_S) -> None:
        """Orderly shutdown; what still runs after ``timeout_s`` is killed.

        Nodes of a cluster end together, so the last ones may have no quorum to tell of it and would wait for minutes.
        """
        chosen = self._chosen(node)
        self.resume(node)
        for number in chosen:
            self.daemon(number).signal(signal.SIGTERM)
        deadline = time.monotonic() + timeout_s
        late = [number for number in chosen if not self.daemon(number).has_ended(max(deadline - time.monotonic(), 0.0))]
        for number in late:
            self.kill(number)

    def kill(self, node: int | None = None) -> None:
        """SIGKILL, as by the kernel out of memory; returns when the processes are gone."""
        for number in self._chosen(node):
            self.daemon(number).signal(signal.SIGKILL)
        for number in self._chosen(node):
            if not self.daemon(number).has_ended(STOP_TIMEOUT_S):
                raise BrokerFailed(f"node {number} (process {self.daemon(number).pid}) outlives SIGKILL")

    def pause(self, node: int | None = None) -> None:
        """SIGSTOP: connections stay open, nothing answers from the moment on at which this returns."""
        for number in self._chosen(node):
            self.daemon(number).signal(signal.SIGSTOP)
        for number in self._chosen(node):
            if not self.daemon(number).has_stopped(STOP_TIMEOUT_S):
                raise BrokerFailed(f"node {number} (process {self.daemon(number).pid}) goes on after SIGSTOP")

    def resume(self, node: int | None = None) -> None:
        """SIGCONT."""
        for number in self._chosen(node):
            self.daemon(number).signal(signal.SIGCONT)

    def _chosen(self, node: int | None) -> tuple[int, ...]:
        if node is None:
            return self.nodes
        if node not in self.nodes:
            raise ValueError(f"no node {node}, there are {len(self.nodes)}")
        return (node,)

    def _folder(self, node: int) -> Path:
        return self.directory / f"node-{node}"

    def _data(self, node: int) -> Path:
        return self._folder(node) / "data"

    def _store(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        state = {"form": self._form, "cluster_id": self._cluster_id, "ports": [asdict(one) for one in self._ports]}
        (self.directory / "broker.json").write_text(json.dumps(state, indent=1) + "\n", "utf-8")

    def _write_settings(self, node: int) -> None:
        self._folder(node).mkdir(exist_ok=True)
        credentials = self.credentials
        text = properties(
            node,
            self._ports,
            self._data(node),
            certificates=credentials.authority.parent if credentials else None,
            user=credentials.user if credentials else None,
            overrides=self._form["settings"],
        )
        (self._folder(node) / "server.properties").write_text(text, "utf-8")

    def _format(self, java: str, class_path: str, fresh: Iterable[int]) -> None:
        """Writes the cluster's identity and its users into empty storage, all nodes at once."""
        command = [java, *JAVA_OPTIONS, *QUICK_OPTIONS, "-cp", class_path, "kafka.tools.StorageTool", "format"]
        command += ["--cluster-id", self._cluster_id]
        command += scram_users(self.credentials.user) if self.credentials else []
        running = {}
        for number in fresh:
            options = ["--config", str(self._folder(number) / "server.properties")]
            running[number] = subprocess.Popen(
                [*command, *options], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )
        said = {number: process.communicate()[0] for number, process in running.items()}
        for number, process in running.items():
            if process.returncode:
                shutil.rmtree(self._data(number), ignore_errors=True)
                raise BrokerFailed(f"Kafka {self.version}: formatting node {number}'s storage failed:\n{said[number]}")

    def _check_ports(self, node: int) -> None:
        for name, port in self._ports[node - 1].bound.items():
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    probe.bind(("127.0.0.1", port))
                except OSError as error:
                    raise BrokerFailed(f"port {port} for {name} of node {node}: {error.strerror}") from error

    def _launch(self, java: str, class_path: str, node: int) -> None:
        # Kafka's compression codecs unpack native code into it, and a killed JVM leaves it there.
        temporary = self._folder(node) / "tmp"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        self.daemon(node).start(
            [
                java,
                *self._java_options,
                f"-Djava.io.tmpdir={temporary}",
                f"-Dlog4j2.configurationFile={_jars.HERE / 'log4j2.properties'}",
                f"-Dlog4j.configuration=file:{_jars.HERE / 'log4j.properties'}",
                *("-cp", class_path),
                *("kafka.Kafka", str(self._folder(node) / "server.properties")),
            ],
            self.log(node),
        )

    def _serves(self, node: int, expected: Iterable[int]) -> bool:
        port = self._ports[node - 1].bound[PLAINTEXT]
        return _probe.answers(port) and set(expected) <= _probe.brokers(port).keys()

    def _log_end(self, node: int) -> str:
        log = self.log(node)
        lines = log.read_text("utf-8", "replace").splitlines() if log.is_file() else []
        return "\n".join([f"the end of {log}:", *lines[-20:]])


def _stored(directory: Path) -> dict | None:
    file = directory / "broker.json"
    return json.loads(file.read_text("utf-8")) if file.is_file() else None


def _new_cluster_id() -> str:
    """22 characters of URL-safe base 64, not starting with a dash, which StorageTool would take for an option."""
    first, *others = uuid.uuid4().bytes
    return base64.urlsafe_b64encode(bytes([first & 0x7F, *others])).decode("ascii").rstrip("=")


def _with_port(ports: Ports, listener: str, port: int) -> Ports:
    """The same ports, but ``port`` for ``listener``; a listener that had it gets another."""
    moved = {name: free_port() for name, taken in ports.bound.items() if taken == port and name != listener}
    moved[listener] = port
    return Ports(
        bound=dict(ports.bound) | moved,
        advertised=dict(ports.advertised) | {name: at for name, at in moved.items() if name in ports.advertised},
    )


def _choose_ports(security: bool, proxied: bool) -> Ports:
    names = [CONTROLLER, PLAINTEXT, *(SECURED if security else ()), *([PROXIED] if proxied else ())]
    bound = {name: free_port() for name in names}
    advertised = {name: port for name, port in bound.items() if name != CONTROLLER}
    if proxied:
        advertised[PROXIED] = free_port()
    return Ports(bound=bound, advertised=advertised)
