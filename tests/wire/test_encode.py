"""What is published: golden records, their schemas, and no number that is not finite."""

import base64

import hypothesis
import hypothesis.strategies as st
import jsonschema
import msgspec
import numpy as np
import orjson
import pytest

from usp_daemon import wire
from usp_daemon.core import _types as core_types
from usp_daemon.wire import (
    DeadLetterEntry,
    DeadLetterReason,
    ResultEncoder,
    encode_dead_letters,
    schemas,
    shorten_dead_letter,
)
from usp_daemon.wire._encode import ALARM_COLUMNS, FLOAT_COLUMNS

TIMES = np.array([1_700_000_000_000_000_000, 1_700_000_000_000_000_001], np.int64)


def validate(name, record):
    jsonschema.validate(orjson.loads(record), schemas.json_schema(name), cls=jsonschema.Draft202012Validator)


def test_the_words_on_the_wire_are_those_of_the_predictor():
    def labels(enumeration):
        return tuple(member.name.lower() for member in enumeration if member.value)

    assert wire.KERNEL_NAMES == core_types.KERNEL_NAMES
    assert tuple(mode.label for mode in core_types.OperatingMode) == wire.MODE_LABELS
    assert labels(core_types.GateReason) == wire.GATE_REASON_LABELS
    assert labels(core_types.AlarmKind) == wire.ALARM_KIND_LABELS
    assert labels(core_types.ResultCode) == wire.RESULT_CODE_LABELS


def test_a_prediction_reads_as_documented(make_columns):
    columns = make_columns(2)
    for offset, name in enumerate(FLOAT_COLUMNS):
        columns[name] = np.array([offset, offset + 0.5])
    columns["weights"] = np.array([[0.1, 0.2, 0.3, 0.4]] * 2)
    columns["kernel_predictions"] = np.array([[1.0, 2.0, 3.0, 4.0]] * 2)
    columns["gate_reasons"] = np.array([0, core_types.GateReason.OUTLIER | core_types.GateReason.STALE])
    columns["accepted"] = np.array([True, False])
    columns["mode"] = np.array([0, 1])
    columns["result_code"] = np.array([16, 1 << 20])
    columns["degraded_inference_mode"] = np.array([False, True])
    columns["reference_ready"] = np.array([True, True])
    first, second = ResultEncoder(config_hash="c0ffee").predictions(
        ["a", "b\u2028"], TIMES, np.array([7.25, np.nan]), columns
    )
    assert first == (
        b'{"schema_version":1,"symbol":"a","ts":1700000000000000000,"seq":1,"value":7.25,"accepted":true,'
        b'"prediction":0.0,"scale":1.0,"intervals":{"80":[2.0,3.0],"95":[4.0,5.0]},'
        b'"weights":{"rkhs":0.1,"deep_galerkin":0.2,"levy_sde":0.3,"signature":0.4},'
        b'"kernel_predictions":{"rkhs":1.0,"deep_galerkin":2.0,"levy_sde":3.0,"signature":4.0},'
        b'"epsilon":6.0,"h_t":7.0,"cusum_up":8.0,"cusum_down":9.0,"grace_counter":0,"kurtosis":10.0,'
        b'"holder_exponent":11.0,"dgm_entropy":12.0,"free_energy":13.0,"ema_variance":14.0,"forecast_error":15.0,'
        b'"season_length":0,"missed_periods":0,"mode":"Standard","flags":["reference_ready"],"gate_reasons":[],'
        b'"result_codes":["sinkhorn_not_converged"],"config_hash":"c0ffee"}'
    )
    content = orjson.loads(second)
    assert content["value"] is None
    assert content["accepted"] is False
    assert content["gate_reasons"] == ["outlier", "stale"]
    assert content["mode"] == "Robust"
    assert content["flags"] == ["degraded", "reference_ready"]
    assert content["result_codes"] == ["bit_20"]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("quantiles", [False, True])
def test_predictions_satisfy_their_schema_and_their_class(make_columns, dtype, quantiles):
    columns = {
        name: column.astype(dtype) if column.dtype.kind == "f" else column for name, column in make_columns(2).items()
    }
    encoder = ResultEncoder(config_hash="x", include_quantiles=quantiles)
    for record in encoder.predictions(["a", "b"], TIMES, np.array([1.0, np.inf]), columns):
        validate("prediction", record)
        decoded = msgspec.json.decode(record, type=wire.Prediction)
        assert (decoded.quantiles is not None) == quantiles
        known = {field.encode_name for field in msgspec.structs.fields(wire.Prediction)}
        assert set(orjson.loads(record)) <= known


def test_an_alarm_reads_as_documented(make_columns):
    columns = make_columns(2)
    columns["alarm_kind"] = np.array([0, core_types.AlarmKind.LEVEL_DOWN | core_types.AlarmKind.SCALE_UP])
    columns["alarm_statistic"], columns["alarm_threshold"] = np.array([0.0, 20.5]), np.array([0.0, 18.25])
    columns["kurtosis"] = np.array([3.0, 3.5])
    columns["alarm_start_ticks_ago"] = np.array([0, 12])
    columns["sequence"] = np.array([1, 400])
    columns["grace_counter"] = np.array([0, 20])
    rows, records = ResultEncoder(config_hash="x").alarms(["a", "b"], TIMES, np.array([1.0, 2.0]), columns)
    assert rows == [1]
    assert records == [
        b'{"schema_version":1,"symbol":"b","ts":1700000000000000001,"seq":400,"kind":"level_down",'
        b'"kinds":["level_down","scale_up"],"value":2.0,"statistic":20.5,"threshold":18.25,"kurtosis":3.5,'
        b'"start_ticks_ago":12,"start_seq":388,"grace_steps":20,"config_hash":"x"}'
    ]
    validate("alarm", records[0])
    msgspec.json.decode(records[0], type=wire.Alarm)


@pytest.mark.parametrize("name", [*FLOAT_COLUMNS, *ALARM_COLUMNS, "weights", "kernel_predictions"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_row_that_is_not_finite_is_found(make_columns, name, bad):
    columns = make_columns(3)
    columns[name][1, ...] = bad
    assert wire.rows_with_finite_output(columns).tolist() == [True, False, True]


def entry(original, **changes):
    given = {
        "reason": DeadLetterReason.NOT_JSON,
        "message": "expected JSON",
        "source": "ticks.jsonl",
        "partition": 0,
        "offset": 17,
        "original": original,
        "original_size_bytes": len(original),
    }
    return DeadLetterEntry(**(given | changes))


def test_a_dead_letter_reads_as_documented():
    records = encode_dead_letters([entry(b'{"a"', key=b"k", headers=[("h", b"\x00")])])
    assert records.values == [
        b'{"schema_version":1,"reason":"not_json","message":"expected JSON","source":"ticks.jsonl","partition":0,'
        b'"offset":17,"encoding":"utf-8","original":"{\\"a\\"","original_size_bytes":4,"truncated":false,'
        b'"key":"aw==","headers":[{"name":"h","value":"AA=="}]}'
    ]
    assert records.origins == [("ticks.jsonl", 0, 17)]
    validate("dead_letter", records.values[0])


@hypothesis.given(st.binary(max_size=300), st.text(max_size=30), st.text(max_size=30))
def test_a_dead_letter_keeps_the_original_to_the_byte(original, message, source):
    (record,) = encode_dead_letters([entry(original, message=message, source=source)]).values
    validate("dead_letter", record)
    content = msgspec.json.decode(record, type=wire.DeadLetter)
    kept = content.original.encode() if content.encoding == "utf-8" else base64.b64decode(content.original)
    assert kept == original


def test_messages_with_half_a_surrogate_pair_can_be_written():
    (record,) = encode_dead_letters([entry(b"x", message="bad \ud800", source="\udcff.csv")]).values
    validate("dead_letter", record)


@pytest.mark.parametrize("name", schemas.RECORDS)
def test_the_schema_files_are_up_to_date(repository_root, name):
    path = repository_root / "docs" / "schemas" / f"{name}.schema.json"
    assert path.read_bytes() == schemas.schema_bytes(name), "run: python -m usp_daemon.wire.schemas docs/schemas"


@pytest.mark.parametrize("name", schemas.RECORDS)
def test_the_schemas_are_schemas_and_can_refuse(name):
    schema = schemas.json_schema(name)
    jsonschema.Draft202012Validator.check_schema(schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"symbol": 3}, schema)


@pytest.mark.parametrize("original", [b"x" * 1000, b"\xff" * 1000])
def test_a_dead_letter_can_be_shortened_to_nothing_and_stays_readable(original):
    entry = DeadLetterEntry(
        reason=DeadLetterReason.NOT_JSON, message="m", source="t", partition=0, offset=7, original=original,
        original_size_bytes=len(original), key=b"k",
    )  # fmt: skip
    (record,) = encode_dead_letters([entry]).values
    lengths = []
    while (shorter := shorten_dead_letter(record)) is not None:
        record = shorter
        content = orjson.loads(record)
        assert content["truncated"] is True
        assert content["original_size_bytes"] == 1000
        kept = content["original"].encode()
        kept = base64.b64decode(kept, validate=True) if content["encoding"] == "base64" else kept
        assert original.startswith(kept)
        lengths.append(len(kept))
    assert lengths == sorted(lengths, reverse=True)
    assert lengths[-1] == 0


def test_a_dead_letter_carries_its_reason_and_the_originals_headers_outside():
    given = [("trace", b"t"), ("usp-source", b"somebody else's"), ("empty", b"")]
    records = encode_dead_letters([entry(b"x", headers=given), entry(b"y")])
    assert records.headers == [
        [("usp-reason", b"not_json"), ("trace", b"t"), ("empty", b"")],
        [("usp-reason", b"not_json")],
    ]
    large = [("a", bytes(4_000)), ("b", bytes(94)), ("usp-c", bytes(9_000))]
    assert len(encode_dead_letters([entry(b"x", headers=large)]).headers[0]) == 3, "4096 bytes with their names"
    (headers,) = encode_dead_letters([entry(b"x", headers=[*large, ("d", b"")])]).headers
    assert headers == [("usp-reason", b"not_json")]
