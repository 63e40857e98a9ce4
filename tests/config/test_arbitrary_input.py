"""Whatever stands in a file or a variable, loading ends with settings or with a ``ConfigError``."""

import json
import math
import pathlib
import tempfile
from typing import Any

import hypothesis
import hypothesis.strategies as st
import tomlkit

from mutation_worlds import World
from usp_daemon.config import (
    MUTABLE,
    SECTIONS,
    SPECS,
    ConfigError,
    ConfigMutationError,
    ConfigSource,
    Settings,
    load_settings,
    parse_settings,
)

SCALARS = st.one_of(
    st.booleans(),
    st.integers(),
    st.integers(min_value=10**300, max_value=10**5000),
    st.floats(),
    st.text(max_size=20),
    st.dates(),
    st.datetimes(),
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3)
)
NAMES = st.sampled_from([spec.name for spec in SPECS.values()]) | st.text(max_size=10)
DOCUMENTS = st.dictionaries(
    st.sampled_from(list(SECTIONS)) | st.text(max_size=10),
    st.dictionaries(NAMES, VALUES, max_size=6) | VALUES,
    max_size=6,
)
VARIABLES = st.dictionaries(
    st.sampled_from([spec.variable for spec in SPECS.values()]) | st.text(max_size=10).map(lambda text: f"USP_{text}"),
    st.text(max_size=20) | st.floats().map(str) | st.integers(-(10**400), 10**400).map(str),
    max_size=4,
)


@hypothesis.given(document=DOCUMENTS, environ=VARIABLES)
def test_any_document(document: dict[str, Any], environ: dict[str, str]) -> None:
    try:
        settings = parse_settings(document, environ)
    except ConfigError as error:
        assert error.problems
        assert str(error).count("\n") == len(error.problems), "one line for each problem"
    else:
        assert_sound(settings)


@hypothesis.given(
    content=st.binary(max_size=200) | st.text(max_size=200).map(lambda text: text.encode("utf-8", "replace"))
)
@hypothesis.settings(suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture])
def test_any_file(tmp_path: Any, content: bytes) -> None:
    path = tmp_path / "any.toml"
    path.write_bytes(content)
    try:
        assert_sound(load_settings(path, {}))
    except ConfigError as error:
        assert error.problems


JSON = st.none() | st.booleans() | st.integers(-(10**30), 10**30) | st.floats() | st.text(max_size=10)
ENTRIES = st.dictionaries(
    st.sampled_from([*SPECS, "orchestration.cusum_k", "kernels.log_sig_depth"]) | st.text(max_size=10),
    st.fixed_dictionaries({}, optional={"value": JSON, "base": JSON, "mutation": st.text()}) | JSON,
    max_size=4,
)
OVERLAYS = st.binary(max_size=60) | st.builds(
    lambda version, entries: json.dumps({"version": version, "entries": entries}, default=str).encode(),
    st.sampled_from([1, 1, 1, "1"]),
    ENTRIES,
)


@hypothesis.given(content=st.binary(max_size=60) | st.just(b"[orchestration]\ncusum_k = 0.25\n"), overlay=OVERLAYS)
def test_any_overlay_beside_any_file(content: bytes, overlay: bytes) -> None:
    try:
        loaded = ConfigSource("any.toml", {}).judge(content, overlay)
    except ConfigError as error:
        assert error.problems
    else:
        assert_sound(loaded.settings)
        assert all(loaded.settings[entry.path] == entry.value for entry in loaded.overlay_applied)


CHANGES = st.dictionaries(
    st.sampled_from([*MUTABLE, *MUTABLE, *SPECS]) | st.text(max_size=10), VALUES | st.floats(0.0, 2.0), max_size=4
)


@hypothesis.given(changes=CHANGES, evidence=st.dictionaries(st.text(max_size=5), VALUES, max_size=3))
@hypothesis.settings(suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture], max_examples=60)
def test_any_change(tmp_path: Any, changes: dict[str, Any], evidence: dict[str, Any]) -> None:
    """It is made wholly or refused, and the log has a line of it either way."""
    with tempfile.TemporaryDirectory(dir=tmp_path) as directory:
        world = World(pathlib.Path(directory), "[orchestration]\ncusum_k = 0.5\n")
        before = dict(world.settings().items())
        try:
            mutation = world.mutator().apply(changes, trigger="test", evidence=evidence)
        except ConfigMutationError:
            assert dict(world.settings().items()) == before
            assert world.events() == ["MUTATION_REJECTED"]
        else:
            after = {path: new for path, (_, new) in mutation.delta.items()}
            assert dict(world.settings().items()) == {**before, **after}
            assert len(world.events()) == bool(after)
        assert world.is_whole() is True


@st.composite
def valid_values(draw: st.DrawFn) -> dict[str, Any]:
    """Some keys, each with a value in its own range."""
    chosen = draw(st.lists(st.sampled_from(list(SPECS)), unique=True, max_size=12))
    return {path: draw(value_in_range(path)) for path in chosen}


def value_in_range(path: str) -> st.SearchStrategy[Any]:
    spec = SPECS[path]
    key = spec.key
    if spec.kind is bool:
        return st.booleans()
    if spec.kind is str:
        return st.sampled_from(key.choices) if key.choices else st.just(spec.default)
    if key.power_of_two:
        return st.sampled_from([2**i for i in range(20) if key.low <= 2**i <= key.high])
    if spec.kind is int:
        step = key.multiple_of or 1
        return st.integers(math.ceil(key.low / step), int(key.high) // step).map(lambda i: i * step)
    return st.floats(key.low, key.high, exclude_min=key.above_low)


@hypothesis.given(values=valid_values())
def test_values_in_range_survive_a_trip_through_toml(values: dict[str, Any]) -> None:
    document: dict[str, dict[str, Any]] = {}
    for path, value in values.items():
        section, _, name = path.partition(".")
        document.setdefault(section, {})[name] = value
    try:
        settings = parse_settings(document)
    except ConfigError as error:
        # alone each value is right; only a combination may be wrong, and then it names its members
        assert all(" = " in problem.got for problem in error.problems)
        return
    assert all(settings[path] == value for path, value in values.items())
    again = parse_settings(tomlkit.parse(tomlkit.dumps(document)).unwrap())
    assert again == settings
    assert again.content_hash() == settings.content_hash()


def assert_sound(settings: Settings) -> None:
    for path, value in settings.items():
        assert SPECS[path].fit(value) == value
    assert len(settings.content_hash()) == 64
