"""A bad configuration is refused whole, with everything that is wrong with it in one message."""

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from usp_daemon.config import ConfigError, Problem, check_config, load_settings, parse_settings


def problems_of(document: dict[str, Any], environ: dict[str, str] | None = None) -> list[Problem]:
    with pytest.raises(ConfigError) as caught:
        parse_settings(document, environ)
    return list(caught.value.problems)


def only_problem(document: dict[str, Any], environ: dict[str, str] | None = None) -> str:
    (problem,) = problems_of(document, environ)
    return str(problem)


def test_everything_wrong_is_named_at_once() -> None:
    document = {
        "orchestraton": {},
        "orchestration": {
            "cusum_kk": 1.0,
            "cusum_k": -1,
            "grace_period_steps": True,
            "learning_rate": float("nan"),
            "sinkhorn_epsilon_min": 0.5,
        },
        "kernels": {"wtmm_buffer_size": 100, "stiffness_low": 900.0, "stiffness_high": 800.0},
        "stray": 3,
    }
    environ = {"USP_ORCHESTRATION__SIGMA_BOUND": "wide", "USP_KERNELS__LOG_SIG_DETPH": "3"}
    with pytest.raises(ConfigError) as caught:
        parse_settings(document, environ, source="a.toml")
    assert [problem.path for problem in caught.value.problems] == [
        "orchestraton",
        "orchestration.cusum_kk",
        "orchestration.cusum_k",
        "orchestration.grace_period_steps",
        "orchestration.learning_rate",
        "kernels.wtmm_buffer_size",
        "stray",
        "USP_KERNELS__LOG_SIG_DETPH",
        "orchestration.sigma_bound",
        "orchestration.sinkhorn_epsilon_min",
        "kernels.stiffness_low",
    ]
    text = str(caught.value)
    assert text.startswith("a.toml: 11 problems\n")
    assert all(str(problem) in text for problem in caught.value.problems)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("orchestration.cusum_k", "0.5", "expected a number from 0.05 to 2, got '0.5'"),
        ("orchestration.cusum_k", True, "expected a number from 0.05 to 2, got true"),
        ("orchestration.cusum_k", float("inf"), "expected a number from 0.05 to 2, got inf"),
        ("orchestration.cusum_k", 10**400, "expected a number from 0.05 to 2, got a whole number of 1329 bits"),
        ("orchestration.cusum_k", [0.5], "expected a number from 0.05 to 2, got an array"),
        ("orchestration.cusum_h", "automatic", "expected \"auto\" or a number from 2 to 40, got 'automatic'"),
        ("orchestration.sinkhorn_alpha", 0.0, "expected a number above 0 and at most 1, got 0.0"),
        ("orchestration.grace_period_steps", 20.0, "expected a whole number from 0 to 1000, got 20.0"),
        ("orchestration.grace_period_steps", {}, "expected a whole number from 0 to 1000, got a table"),
        (
            "kernels.wtmm_buffer_size",
            192,
            "expected a whole number from 64 to 512 that is a power of two, got 192",
        ),
        (
            "compute.tile_width",
            50,
            'expected "auto" or a whole number from 16 to 65536 that is a multiple of 16, got 50',
        ),
        ("io.snapshot_atomic_fsync", 1, "expected true or false, got 1"),
        ("io.snapshot_compression", "brotli", 'expected one of "none", "gzip", got \'brotli\''),
        ("compute.device", "cuda", 'expected "auto", "cpu" or "cuda:N", got \'cuda\''),
        ("wire.value_field", "", "expected any printable text, got ''"),
        ("io.snapshot_path", "a\x00b", "expected any printable text, got 'a\\x00b'"),
        ("meta.schema_version", "2.0", "expected one of \"1.0\", got '2.0'"),
        ("orchestration", 3, "expected a section [orchestration], got 3"),
    ],
)
def test_unfit_value(path: str, value: Any, message: str) -> None:
    section, _, name = path.partition(".")
    document = {section: {name: value}} if name else {section: value}
    assert only_problem(document) == f"{path}: {message}"


@pytest.mark.parametrize(
    ("document", "hint"),
    [
        ({"orchestration": {"cusum_kk": 1}}, "did you mean cusum_k?"),
        ({"orchestration": {"stiffness_low": 1}}, "it belongs in [kernels]"),
        ({"orchestration": {"wtmm_bufer_size": 1}}, "did you mean kernels.wtmm_buffer_size?"),
        ({"kernels": {"kernel_d_depth": 1}}, "the same number as kernels.log_sig_depth"),
        ({"kernel": {}}, "did you mean [kernels]?"),
        ({"cusum_k": 0.5}, "it belongs in [orchestration]"),
        ({"qqqq": {}}, "sections: meta, core, orchestration, kernels, validation, io, security, compute, wire, "),
    ],
)
def test_hint(document: dict[str, Any], hint: str) -> None:
    assert f"({hint}" in only_problem(document)


def test_a_key_unlike_any_other_gets_no_hint() -> None:
    assert only_problem({"kernels": {"zzzzzz": 1}}) == "kernels.zzzzzz: expected a known key, got an unknown one"


@pytest.mark.parametrize(
    ("values", "path"),
    [
        ({"orchestration.sinkhorn_epsilon_min": 0.2}, "orchestration.sinkhorn_epsilon_min"),
        ({"orchestration.entropy_gamma_min": 0.9}, "orchestration.entropy_gamma_min"),
        ({"orchestration.entropy_gamma_max": 0.7}, "orchestration.entropy_gamma_default"),
        ({"orchestration.jko_window_min": 600}, "orchestration.jko_window_min"),
        ({"kernels.stiffness_low": 1000.0}, "kernels.stiffness_low"),
        ({"kernels.stiffness_c1": 300.0}, "kernels.stiffness_c1"),
        ({"validation.validation_holder_exponent_min": 1.0}, "validation.validation_holder_exponent_min"),
        ({"orchestration.holder_threshold": 0.96}, "orchestration.holder_threshold"),
        ({"wire.symbol_field": "value"}, "wire.symbol_field"),
        ({"meta_optimization.n_startup_trials": 60}, "meta_optimization.n_startup_trials"),
        ({"meta_optimization.cusum_k_min": 1.5}, "meta_optimization.cusum_k_min"),
        ({"meta_optimization.sinkhorn_epsilon_min_min": 0.5}, "meta_optimization.sinkhorn_epsilon_min_min"),
        ({"meta_optimization.wtmm_buffer_size_max": 64, "meta_optimization.wtmm_buffer_size_min": 128},
         "meta_optimization.wtmm_buffer_size_min"),
    ],
)  # fmt: skip
def test_combination_that_makes_no_sense(values: dict[str, Any], path: str) -> None:
    document: dict[str, dict[str, Any]] = {}
    for each, value in values.items():
        section, _, name = each.partition(".")
        document.setdefault(section, {})[name] = value
    (problem,) = problems_of(document)
    assert problem.path == path
    assert all(f"{each} = " in problem.got for each in values), "the message shows the values that clash"


def test_a_rule_says_nothing_of_a_value_that_is_refused_already() -> None:
    assert only_problem({"kernels": {"stiffness_high": -5.0, "stiffness_low": 200.0}}).startswith(
        "kernels.stiffness_high"
    )
    environ = {"USP_KERNELS__STIFFNESS_HIGH": "nan"}
    assert only_problem({"kernels": {"stiffness_low": 1500.0}}, environ).startswith("kernels.stiffness_high")


def test_an_override_takes_part_in_the_rules() -> None:
    environ = {"USP_KERNELS__STIFFNESS_LOW": "1500"}
    assert only_problem({}, environ).startswith("kernels.stiffness_low: expected less than kernels.stiffness_high")
    environ["USP_KERNELS__STIFFNESS_HIGH"] = "2000"
    assert parse_settings({}, environ).kernels.stiffness_low == 1500.0


@pytest.mark.parametrize(
    ("variable", "text", "message"),
    [
        ("USP_ORCHESTRATION__CUSUM_K", "0,5", "orchestration.cusum_k: expected a number from 0.05 to 2, got '0,5'"),
        ("USP_ORCHESTRATION__CUSUM_K", "nan", "orchestration.cusum_k: expected a number from 0.05 to 2, got 'nan'"),
        ("USP_ORCHESTRATION__CUSUM_K", "", "orchestration.cusum_k: expected a number from 0.05 to 2, got ''"),
        ("USP_KERNELS__LOG_SIG_DEPTH", "3.0", "kernels.log_sig_depth: expected a whole number from 1 to 5, got '3.0'"),
        (
            "USP_KERNELS__LOG_SIG_DEPTH",
            "9" * 5000,
            "kernels.log_sig_depth: expected a whole number from 1 to 5, got '99",
        ),
        ("USP_IO__SNAPSHOT_ATOMIC_FSYNC", "yes", "io.snapshot_atomic_fsync: expected true or false, got 'yes'"),
        ("USP_IO__SNAPSHOT_PATH", "a\udcff", "io.snapshot_path: expected any printable text, got "),
    ],
)
def test_unfit_variable(variable: str, text: str, message: str) -> None:
    problem = only_problem({}, {variable: text})
    assert problem.startswith(message)
    assert problem.endswith(f"(from {variable})")


def test_unknown_variable() -> None:
    message = "USP_ORCHESTRATION__CUSUM_KK: expected USP_SECTION__KEY of a known key, got an unknown one"
    hint = "(did you mean USP_ORCHESTRATION__CUSUM_K?)"
    assert only_problem({}, {"USP_ORCHESTRATION__CUSUM_KK": "1"}) == f"{message} {hint}"
    assert only_problem({}, {"USP_NOTHING_LIKE_IT": "1"}).startswith("USP_NOTHING_LIKE_IT: ")


@pytest.mark.parametrize(
    ("content", "expected", "got"),
    [
        (b"[orchestration]\ncusum_k = = 1\n", "valid TOML", "line 2"),
        (b"[kernels]\nx = 1\nx = 2\n", "valid TOML", "line 3"),
        (b"[kernels]\n[kernels]\n", "valid TOML", "line 2"),
        ("[orchestration]\n# Hölder\n".encode("latin-1"), "UTF-8 text", "byte 0xf6 at line 2"),
        ("[orchestration]\n".encode("utf-16"), "UTF-8 text", "byte 0xff at line 1"),
        (b"x = " + b"[" * 100_000, "valid TOML", ""),
        (b"[kernels]\nlog_sig_depth = " + b"9" * 10_000, "valid TOML", ""),
        (b"[kernels]\nlog_sig_depth = 0x" + b"f" * 10_000, "a whole number from 1 to 5", "40000 bits"),
        (b"#" * ((1 << 20) + 1), "at most 1048576 bytes", "a larger file"),
        (b"\x00", "valid TOML", "line 1"),
    ],
)
def test_file_that_cannot_be_understood(tmp_path: Path, content: bytes, expected: str, got: str) -> None:
    path = tmp_path / "bad.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load_settings(path, {})
    (problem,) = caught.value.problems
    assert expected in problem.expected
    assert got in problem.got
    assert caught.value.source == str(path)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("name", ["missing.toml", ".", "a\x00b", "x/" * 3000])
def test_file_that_cannot_be_read(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_settings(f"{tmp_path}/{name}", {})
    assert caught.value.problems[0].expected == "a readable file"


def test_a_named_file_that_is_missing_is_no_reason_for_the_defaults(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file or directory"):
        load_settings(None, {"USP_CONFIG": str(tmp_path / "missing.toml")})


def test_file_without_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(ConfigError, match="expected a readable file, got permission denied"):
        load_settings(tmp_path / "secret.toml", {})


def test_check_reports_instead_of_raising(tmp_path: Path) -> None:
    good, bad = tmp_path / "good.toml", tmp_path / "bad.toml"
    good.write_text("[orchestration]\ncusum_k = 0.25\n", "utf-8")
    bad.write_text("[orchestration]\ncusum_k = -1\ngrace_period_steps = 1.5\n", "utf-8")

    report = check_config(good, {"USP_KERNELS__LOG_SIG_DEPTH": "4"})
    assert report.is_ok
    assert report.settings == load_settings(good, {"USP_KERNELS__LOG_SIG_DEPTH": "4"})
    assert str(report).splitlines() == [
        f"{good}: ok",
        f"  hash {report.settings.content_hash()}",
        "  overridden by USP_KERNELS__LOG_SIG_DEPTH",
        "  orchestration.cusum_k = 0.25 (default 0.5, traced)",
        "  kernels.log_sig_depth = 4 (default 3, structural)",
    ]

    report = check_config(bad, {})
    assert not report.is_ok
    assert report.settings is None
    assert [problem.path for problem in report.problems] == [
        "orchestration.cusum_k",
        "orchestration.grace_period_steps",
    ]
    assert str(report).startswith(f"{bad}: 2 problems\n")
