"""From files and variables to settings: what is accepted, what takes precedence, where a file is looked for."""

from pathlib import Path

import pytest

from usp_daemon.config import SPECS, ConfigError, Settings, find_config, load_settings, parse_settings


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, "utf-8")
    return path


def test_without_a_file_the_defaults_stand(elsewhere: Path) -> None:
    assert load_settings(None, {}) == Settings()


def test_what_a_file_leaves_out_stands_at_its_default(elsewhere: Path) -> None:
    path = write(elsewhere / "a.toml", "[orchestration]\ncusum_k = 0.25\n")
    settings = load_settings(path, {})
    assert settings.orchestration.cusum_k == 0.25
    assert dict(settings.items()) == {**dict(Settings().items()), "orchestration.cusum_k": 0.25}


def test_search_order(elsewhere: Path) -> None:
    named, by_variable = Path("named.toml"), {"USP_CONFIG": "variable.toml"}
    assert find_config(None, {}) is None
    write(elsewhere / "config/config.toml", "")
    assert find_config(None, {}) == Path("config/config.toml")
    assert find_config(None, by_variable) == Path("variable.toml")
    assert find_config(named, by_variable) == named


def test_whole_numbers_serve_as_reals(elsewhere: Path) -> None:
    settings = load_settings(write(elsewhere / "a.toml", "[orchestration]\ncusum_h = 8\nsigma_bound = 10\n"), {})
    assert (settings.orchestration.cusum_h, settings.orchestration.sigma_bound) == (8.0, 10.0)
    assert isinstance(settings.orchestration.cusum_h, float)


def test_auto_is_a_word_only_where_it_is_offered() -> None:
    assert parse_settings({"orchestration": {"cusum_h": "auto"}}).orchestration.cusum_h == "auto"
    assert parse_settings({}, {"USP_COMPUTE__TILE_WIDTH": "auto"}).compute.tile_width == "auto"
    with pytest.raises(ConfigError, match=r"orchestration.cusum_k: expected a number from 0.05 to 2, got 'auto'"):
        parse_settings({"orchestration": {"cusum_k": "auto"}})


def test_byte_order_mark_is_tolerated(elsewhere: Path) -> None:
    path = elsewhere / "bom.toml"
    path.write_bytes(b"\xef\xbb\xbf[orchestration]\ncusum_k = 0.25\n")
    assert load_settings(path, {}).orchestration.cusum_k == 0.25


def test_variables_override_the_file_in_the_types_of_the_schema(elsewhere: Path) -> None:
    path = write(elsewhere / "a.toml", "[orchestration]\ncusum_k = 0.25\ngrace_period_steps = 7\n")
    environ = {
        "USP_ORCHESTRATION__CUSUM_K": "0.75",
        "USP_KERNELS__WTMM_BUFFER_SIZE": "256",
        "USP_IO__SNAPSHOT_ATOMIC_FSYNC": "False",
        "USP_COMPUTE__DEVICE": "cuda:1",
        "USP_ORCHESTRATION__CUSUM_H": "12",
        "USP_CONFIG": "ignored.toml",
        "USP_REQUIRE_KAFKA": "1",
        "USP_REQUIRE_BROWSER": "1",
        "USP_CACHE_DIR": "/somewhere",
        "UNRELATED": "x",
    }
    settings = load_settings(path, environ)
    assert settings.orchestration.cusum_k == 0.75
    assert settings.orchestration.grace_period_steps == 7
    assert settings.kernels.wtmm_buffer_size == 256
    assert settings.io.snapshot_atomic_fsync is False
    assert settings.compute.device == "cuda:1"
    assert settings.orchestration.cusum_h == 12.0


def test_the_process_environment_is_the_default(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("USP_ORCHESTRATION__CUSUM_K", "0.75")
    assert load_settings().orchestration.cusum_k == 0.75
    assert parse_settings({}).orchestration.cusum_k == 0.5


@pytest.mark.parametrize("path", SPECS)
def test_every_key_can_be_set_from_both_sides(path: str) -> None:
    spec = SPECS[path]
    text = str(spec.default).lower() if isinstance(spec.default, bool) else str(spec.default)
    assert parse_settings({spec.section: {spec.name: spec.default}})[path] == spec.default
    assert parse_settings({}, {spec.variable: text})[path] == spec.default


@pytest.mark.parametrize("path", [path for path, spec in SPECS.items() if spec.key.low is not None])
def test_both_ends_of_a_range_are_where_it_says(path: str) -> None:
    spec = SPECS[path]
    low, high = spec.kind(spec.key.low), spec.kind(spec.key.high)
    assert spec.fit(high) == high
    beyond = [low - 1, high + 1] if spec.kind is int else [low - 1e-9 - abs(low) * 1e-9, high * (1 + 1e-9)]
    if spec.key.above_low:
        beyond.append(low)
    else:
        assert spec.fit(low) == low
    for value in beyond:
        with pytest.raises(ConfigError, match=rf"{path}: expected "):
            parse_settings({spec.section: {spec.name: value}})


def test_unknown_path_is_no_value() -> None:
    with pytest.raises(KeyError):
        Settings()["orchestration.nothing"]
