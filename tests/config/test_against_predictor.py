"""The schema and the code that acts on it name the same parameters, with the same defaults and classes."""

import dataclasses

import pytest

from usp_daemon.config import SPECS, ParameterClass, Reader, Settings, parse_settings
from usp_daemon.core import _parameters as parameters
from usp_daemon.wire import TickFormat, TimeUnit

FIELDS = {field.name: field for field in dataclasses.fields(parameters.PredictorConfig)}
PREDICTOR_KEYS = [spec for spec in SPECS.values() if spec.key.reader is Reader.PREDICTOR]


def test_each_field_has_exactly_one_key() -> None:
    names = [spec.name for spec in PREDICTOR_KEYS]
    assert sorted(names) == sorted(FIELDS)


@pytest.mark.parametrize("name", FIELDS)
def test_default_and_class_agree(name: str) -> None:
    (spec,) = (spec for spec in PREDICTOR_KEYS if spec.name == name)
    default = FIELDS[name].default
    # "auto" is resolved on the way to the predictor, which needs a number of its own
    if spec.default == "auto":
        assert spec.fit(default) == default
    else:
        assert spec.default == default
        assert isinstance(default, spec.kind)
    is_static = FIELDS[name].metadata.get("static", False)
    assert spec.key.parameter_class is (ParameterClass.STRUCTURAL if is_static else ParameterClass.TRACED)


def test_predictor_fields_make_a_predictor_config() -> None:
    settings = parse_settings({"orchestration": {"cusum_h": 9.0, "cusum_k": 0.25}})
    config = parameters.PredictorConfig(**settings.predictor_fields())
    assert (config.cusum_h, config.cusum_k) == (9.0, 0.25)


@pytest.mark.parametrize(
    ("path", "capacity"),
    [
        ("kernels.warmup_signal_length", parameters.HISTORY_CAPACITY),
        ("orchestration.reference_fit_ticks", parameters.HISTORY_CAPACITY),
        ("orchestration.residual_window_size", parameters.RESIDUAL_CAPACITY),
        ("kernels.dgm_entropy_num_bins", parameters.ENTROPY_BINS_CAPACITY),
        ("kernels.wtmm_buffer_size", parameters.WTMM_CAPACITY),
    ],
)
def test_traced_lengths_fit_their_buffers(path: str, capacity: int) -> None:
    high = SPECS[path].key.high
    assert high is not None
    assert high <= capacity


def test_search_ranges_lie_in_the_ranges_of_what_they_search() -> None:
    by_name = {spec.name: spec for spec in PREDICTOR_KEYS}
    ends = [
        spec for spec in SPECS.values() if spec.section == "meta_optimization" and spec.name.endswith(("_min", "_max"))
    ]
    assert len(ends) == 2 * 30
    for end in ends:
        target = by_name[end.name[:-4]]
        assert (end.key.low, end.key.high, end.kind) == (target.key.low, target.key.high, target.kind), end.path
        target.fit(end.default)


def test_the_wire_section_is_the_tick_format() -> None:
    keys = {spec.name: spec.default for spec in SPECS.values() if spec.section == "wire"}
    assert keys == dataclasses.asdict(TickFormat())
    assert set(SPECS["wire.time_unit"].key.choices) == {unit.value for unit in TimeUnit}
    assert TickFormat(**dataclasses.asdict(Settings().wire)) == TickFormat()
