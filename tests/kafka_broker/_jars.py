"""The broker's jars: which versions, fetched by Maven, checked once."""

import fcntl
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
CACHE = HERE.parent.parent / ".cache" / "kafka"
VERSIONS = ("4.1.1", "3.9.1")
JAVA_AT_LEAST = 17
# The version a Maven would take by itself differs between Mavens.
COPY = "org.apache.maven.plugins:maven-dependency-plugin:3.6.1:copy-dependencies"


class BrokerUnavailable(RuntimeError):
    """No broker can run here: a tool is missing, or its jars cannot be had. The message says what to do."""


def java() -> str:
    """Path of a Java 17 or newer, of ``JAVA_HOME`` if set, else the first on the path; or ``BrokerUnavailable``."""
    home = os.environ.get("JAVA_HOME")
    found = str(Path(home) / "bin" / "java") if home else shutil.which("java")
    if found is None or not Path(found).is_file():
        raise BrokerUnavailable(f"no java at {found or 'any place of PATH'}; {_advice('a Java 17 runtime')}")
    said = subprocess.run([found, "-version"], capture_output=True, text=True, check=False).stderr
    version = re.search(r'version "(\d+)(?:\.(\d+))?', said)
    # Java 8 calls itself 1.8
    number = int(version[2] or 0 if version[1] == "1" else version[1]) if version else 0
    if number < JAVA_AT_LEAST:
        raise BrokerUnavailable(
            f"{found} is Java {number}, the broker needs 17 or newer; {_advice('a Java 17 runtime')}"
        )
    return found


def jars(version: str) -> list[Path]:
    """The jars of ``version`` in the order of the class path; or ``BrokerUnavailable`` if they were not fetched."""
    if not _is_complete(version):
        raise BrokerUnavailable(
            f"the jars of Kafka {version} are not in {CACHE}; fetch them: python3 scripts/kafka.py fetch"
        )
    return sorted(_libraries(version).glob("*.jar"))


def fetch(version: str = VERSIONS[0], verbose: bool = True) -> Path:
    """Downloads the jars of ``version`` (45 MB) unless they are there, and returns their folder.

    Two processes may call it at once. Progress goes to standard error if ``verbose``. Raises ``BrokerUnavailable``,
    also where there is no Java to run them.
    """
    if version not in VERSIONS:
        raise BrokerUnavailable(f"Kafka {version} is not pinned here; one of {', '.join(VERSIONS)}")
    java()
    libraries = _libraries(version)
    if _is_complete(version):
        return libraries
    maven = shutil.which("mvn")
    if maven is None:
        raise BrokerUnavailable(f"no mvn on the path; {_advice('Maven')}")
    libraries.parent.mkdir(parents=True, exist_ok=True)
    with (libraries.parent / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not _is_complete(version):
            _download(maven, version, libraries, verbose)
    return libraries


def _download(maven: str, version: str, libraries: Path, verbose: bool) -> None:
    def say(text: str) -> None:
        if verbose:
            print(text, file=sys.stderr, flush=True)

    say(f"Kafka {version}: fetching its jars with Maven")
    with tempfile.TemporaryDirectory(dir=libraries.parent) as folder:
        # The runtime scope matters: most of Kafka's own modules are runtime dependencies of its core.
        command = [maven, "--batch-mode", "--strict-checksums", "--file", str(_pom(version)), COPY]
        command += ["-DincludeScope=runtime", f"-DoutputDirectory={folder}"]
        said = []
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
            assert process.stdout is not None
            for line in process.stdout:
                said.append(line)
                jar = re.search(r"Downloaded from .*/([^/ ]+\.jar) \(([^)]*)\)", line)
                if jar:
                    say(f"  {jar[1]} ({jar[2]})")
        if process.returncode:
            raise BrokerUnavailable(f"Maven could not fetch Kafka {version}:\n{''.join(said[-15:])}")
        shutil.rmtree(libraries, ignore_errors=True)
        Path(folder).chmod(0o755)
        shutil.copytree(folder, libraries)
    _stamp(version).write_text(_pom(version).read_text("utf-8"), "utf-8")
    found = list(libraries.glob("*.jar"))
    say(f"Kafka {version}: {len(found)} jars, {sum(jar.stat().st_size for jar in found) / 1e6:.0f} MB in {libraries}")


def _is_complete(version: str) -> bool:
    """The stamp is a copy of the POM, so that a changed POM is fetched again."""
    stamp = _stamp(version)
    return version in VERSIONS and stamp.is_file() and stamp.read_text("utf-8") == _pom(version).read_text("utf-8")


def _pom(version: str) -> Path:
    return HERE / f"pom-{version}.xml"


def _libraries(version: str) -> Path:
    return CACHE / version / "libs"


def _stamp(version: str) -> Path:
    return CACHE / version / "fetched.xml"


def _advice(what: str) -> str:
    return f"install {what}, on Debian 12 or newer with: apt-get install default-jre-headless maven"
