"""File, overlay, environment: what stands above what, what yields, and that a wrong one is refused as a whole."""

import hashlib
import json
from pathlib import Path

import pytest

from usp_daemon.config import SPECS, ConfigError, ConfigSource, Settings, load_settings


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A working directory with a file and, when asked for, an overlay."""
    monkeypatch.chdir(tmp_path)
    return Place(tmp_path)


class Place:
    def __init__(self, root):
        self.root, self.file, self.state = root, root / "config.toml", root / "io" / "state"

    def write(self, text):
        self.file.write_text(text)
        return self

    def overlay(self, version=1, **entries):
        """``path__in__sections = (value, base)``."""
        self.state.mkdir(parents=True, exist_ok=True)
        document = {
            "version": version,
            "entries": {
                name.replace("__", "."): {"value": value, "base": base, "mutation": "m1"}
                for name, (value, base) in entries.items()
            },
        }
        (self.state / "overlay.json").write_text(json.dumps(document))
        return self

    def source(self, **environ):
        return ConfigSource(self.file, environ)


def test_without_overlay_it_is_what_load_settings_gives(repository_root):
    path = repository_root / "config" / "config.toml"
    loaded = ConfigSource(path, {"USP_ORCHESTRATION__CUSUM_K": "0.75"}).load()
    assert loaded.settings == load_settings(path, {"USP_ORCHESTRATION__CUSUM_K": "0.75"})
    assert loaded.content_hash == loaded.settings.content_hash()
    assert loaded.base_hash == loaded.settings.predictor_hash()
    assert loaded.file_hash == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (loaded.overlay_applied, loaded.overlay_yielded) == ((), ())


def test_without_a_file_the_defaults_stand(place):
    loaded = ConfigSource(None, {}).load()
    assert (loaded.settings, loaded.file_hash, loaded.source) == (Settings(), "", "built-in defaults")


def test_precedence_is_file_overlay_environment(place):
    place.write("[orchestration]\ncusum_k = 0.4\nvolatility_alpha = 0.2\nlearning_rate = 0.02\n")
    place.overlay(orchestration__cusum_k=(0.6, 0.4), orchestration__volatility_alpha=(0.15, 0.2))
    loaded = place.source(USP_ORCHESTRATION__VOLATILITY_ALPHA="0.25").load()
    orchestration = loaded.settings.orchestration
    assert (orchestration.cusum_k, orchestration.volatility_alpha, orchestration.learning_rate) == (0.6, 0.25, 0.02)
    assert [entry.path for entry in loaded.overlay_applied] == ["orchestration.cusum_k"]
    (yielded,) = loaded.overlay_yielded
    assert yielded.entry.path == "orchestration.volatility_alpha"
    assert "USP_ORCHESTRATION__VOLATILITY_ALPHA" in yielded.reason
    assert not yielded.is_for_good
    # the base is what would stand without the overlay
    assert (
        loaded.base_hash == load_settings(place.file, {"USP_ORCHESTRATION__VOLATILITY_ALPHA": "0.25"}).predictor_hash()
    )
    assert loaded.base_hash != loaded.settings.predictor_hash()


def test_overlay_yields_when_the_operator_changes_what_it_replaced(place):
    place.write("[orchestration]\ncusum_k = 0.4\n").overlay(orchestration__cusum_k=(0.6, 0.4))
    source = place.source()
    assert source.load().settings.orchestration.cusum_k == 0.6
    place.write("# a comment is no change\n[orchestration]\ncusum_k = 0.40\n")
    assert source.load().settings.orchestration.cusum_k == 0.6
    place.write("[orchestration]\ncusum_k = 0.41\n")
    loaded = source.load()
    assert loaded.settings.orchestration.cusum_k == 0.41
    assert loaded.overlay_yielded[0].is_for_good
    assert loaded.overlay_yielded[0].reason == "the file was changed from 0.4 to 0.41"


def test_what_the_file_leaves_out_counts_as_its_default(place):
    place.write("").overlay(orchestration__cusum_k=(0.6, SPECS["orchestration.cusum_k"].default))
    assert place.source().load().settings.orchestration.cusum_k == 0.6


def test_overlay_yields_where_it_does_not_fit_what_the_operator_wrote(place):
    place.write("[kernels]\nstiffness_low = 100.0\nstiffness_high = 1000.0\n")
    place.overlay(kernels__stiffness_low=(140.0, 100.0), orchestration__cusum_k=(0.6, 0.5))
    source = place.source()
    assert source.load().settings.kernels.stiffness_low == 140.0
    place.write("[kernels]\nstiffness_low = 100.0\nstiffness_high = 120.0\n")
    loaded = source.load()
    assert (loaded.settings.kernels.stiffness_low, loaded.settings.orchestration.cusum_k) == (100.0, 0.6)
    assert "less than kernels.stiffness_high" in loaded.overlay_yielded[0].reason


def test_every_problem_of_file_environment_and_overlay_comes_at_once(place):
    place.write("[orchestration]\ncusum_k = 9.0\nsinkhorn_epsilon_min = 0.5\n[nothing]\n")
    place.overlay(orchestration__cusum_h=(1.0, "auto"), kafka__group=("x", "y"), orchestration__no_such=(1, 2))
    with pytest.raises(ConfigError) as caught:
        place.source(USP_KERNELS__SDE_DT="fast").load()
    paths = [problem.path for problem in caught.value.problems]
    for expected in ("orchestration.cusum_k", "nothing", "kernels.sde_dt", "orchestration.sinkhorn_epsilon_min"):
        assert expected in paths
    for expected in ("orchestration.cusum_h", "kafka.group", "orchestration.no_such"):
        assert any(path.endswith(f"overlay.json: {expected}") for path in paths), expected


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"\xff\x00", b'{"version": 2, "entries": {}}', b'{"version": 1, "entries": []}',
     b'{"version": 1, "entries": {"orchestration.cusum_k": 0.5}}', b'{"version": 1}', b"[" * 100_000,
     b'{"version": 1, "entries": {"orchestration.cusum_k": {"value": NaN, "base": 0.5, "mutation": "m"}}}'],
)  # fmt: skip
def test_an_overlay_that_is_none_is_a_problem_and_no_crash(place, content):
    place.write("").overlay()
    (place.state / "overlay.json").write_bytes(content)
    with pytest.raises(ConfigError, match="overlay"):
        place.source().load()


def test_state_path_is_found_in_the_file_itself(place):
    place.overlay(orchestration__cusum_k=(0.6, 0.5))
    place.state.rename(place.root / "elsewhere")
    place.write('[io]\nstate_path = "elsewhere"\n')
    source = place.source()
    assert source.load().settings.orchestration.cusum_k == 0.6
    assert source.watched_paths == (place.file, Path("elsewhere/overlay.json"))


def test_environment_is_the_one_of_the_start(place):
    place.write("")
    environ = {"USP_ORCHESTRATION__CUSUM_K": "0.75"}
    source = ConfigSource(place.file, environ)
    environ.clear()
    for _ in range(2):  # and survives every reload
        assert source.load().settings.orchestration.cusum_k == 0.75


@pytest.mark.parametrize("kind", ["directory", "pipe", "missing", "loop"])
def test_what_is_no_file_is_refused_without_waiting(place, kind):
    import os

    make = {
        "directory": lambda: place.file.mkdir(),
        "pipe": lambda: os.mkfifo(place.file),
        "missing": lambda: None,
        "loop": lambda: place.file.symlink_to(place.file),
    }
    make[kind]()
    with pytest.raises(ConfigError):
        place.source().load()


def test_hashes_tell_apart_what_they_should(place):
    first = place.write("[orchestration]\ncusum_k = 0.4\n").source().load()
    commented = place.write("[orchestration]\ncusum_k = 0.4 # x\n").source().load()
    port = place.write("[orchestration]\ncusum_k = 0.4\n[http]\nport = 1\n").source().load()
    assert first.content_hash == commented.content_hash != port.content_hash
    assert first.file_hash != commented.file_hash
    assert first.base_hash == commented.base_hash == port.base_hash
    secret = place.write('[orchestration]\ncusum_k = 0.4\n[kafka]\nsasl_password = "x"\n').source().load()
    assert secret.content_hash == first.content_hash
