"""Hashes and differences of settings."""

import subprocess
import sys

import pytest

from usp_daemon.config import SPECS, ConfigError, ParameterClass, Settings, Value, diff_settings, parse_settings
from usp_daemon.config._settings import build_settings


def test_hash_is_of_the_content() -> None:
    written_out = parse_settings({"orchestration": {"cusum_k": 0.5, "sigma_bound": 20}})
    assert written_out.content_hash() == Settings().content_hash()
    assert (
        parse_settings({"orchestration": {"cusum_k": 0.5000000000000001}}).content_hash() != Settings().content_hash()
    )


def test_hash_has_no_negative_zero() -> None:
    plus, minus = (parse_settings({"orchestration": {"confidence_power": zero}}) for zero in (0.0, -0.0))
    assert plus.content_hash() == minus.content_hash()


def test_hash_is_the_same_in_every_process() -> None:
    program = "from usp_daemon.config import Settings; print(Settings().content_hash())"
    other = {"PYTHONHASHSEED": "12345"}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True, env=other
    )
    assert done.stdout.strip() == Settings().content_hash()


def test_each_key_but_the_secrets_enters_the_hash() -> None:
    open_keys = {path: spec for path, spec in SPECS.items() if not spec.key.secret}
    secrets = SPECS.keys() - open_keys.keys()
    hashes = {build_settings({path: another(spec.default)}).content_hash() for path, spec in open_keys.items()}
    assert len(hashes) == len(open_keys)
    assert Settings().content_hash() not in hashes
    assert secrets
    assert all(build_settings({path: "x"}).content_hash() == Settings().content_hash() for path in secrets)


def test_the_predictors_hash_follows_what_answers_depend_on() -> None:
    usual = Settings().predictor_hash()
    for path, spec in SPECS.items():
        depends = spec.key.parameter_class is not ParameterClass.LOCKED
        assert (build_settings({path: another(spec.default)}).predictor_hash() != usual) == depends, path


def test_a_secret_is_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = parse_settings({"kafka": {"sasl_password": "hunter2"}})
    assert "hunter2" not in repr(settings)
    with pytest.raises(ConfigError) as refused:
        parse_settings(
            {
                "kafka": {
                    "sasl_password": "hunter2",
                    "sasl_password_file": "/run/secret",
                    "ssl_key_password": "hunter2\n",
                }
            }
        )
    assert len(refused.value.problems) == 2
    assert "hunter2" not in str(refused.value)


def another(value: Value) -> Value:
    if isinstance(value, bool):
        return not value
    return value + "x" if isinstance(value, str) else value + 1


def test_no_difference() -> None:
    diff = diff_settings(Settings(), Settings())
    assert diff.changes == ()
    assert not diff.needs_restart
    assert not diff.needs_compilation


def test_differences_by_class() -> None:
    new = parse_settings(
        {
            "orchestration": {"cusum_k": 0.25, "fusion_method": "jko"},
            "kernels": {"log_sig_depth": 4, "wtmm_buffer_size": 256},
            "compute": {"device": "cpu"},
        }
    )
    diff = diff_settings(Settings(), new)
    assert [(c.path, c.old, c.new) for c in diff.traced] == [
        ("orchestration.cusum_k", 0.5, 0.25),
        ("kernels.wtmm_buffer_size", 128, 256),
    ]
    assert [c.path for c in diff.structural] == ["orchestration.fusion_method", "kernels.log_sig_depth"]
    assert [c.path for c in diff.locked] == ["compute.device"]
    assert diff.needs_restart
    assert diff.needs_compilation
    assert {c.parameter_class for c in diff.changes} == set(ParameterClass)


def test_settings_cannot_be_changed_in_place() -> None:
    settings = Settings()
    for record, name in ((settings, "orchestration"), (settings.orchestration, "cusum_k")):
        try:
            setattr(record, name, None)
        except AttributeError:
            continue
        raise AssertionError(f"{name} could be set")
