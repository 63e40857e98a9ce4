"""Combinations of values that make no sense together although each is in range."""

import dataclasses
from collections.abc import Callable, Mapping

from ._key import Value
from ._settings import SPECS


@dataclasses.dataclass(frozen=True, slots=True)
class CrossFieldRule:
    """``holds`` takes the values under ``paths``, in that order; ``expectation`` says what must be true of them."""

    paths: tuple[str, ...]
    holds: Callable[..., bool]
    expectation: str

    def is_broken_by(self, values: Mapping[str, Value]) -> bool:
        """Whether the rule fails. A value that was refused already is absent, and the rule then says nothing."""
        arguments = [values.get(path) for path in self.paths]
        return None not in arguments and "auto" not in arguments and not self.holds(*arguments)


def _at_most(smaller: str, larger: str) -> CrossFieldRule:
    return CrossFieldRule((smaller, larger), lambda a, b: a <= b, f"at most {larger}")


def _below(smaller: str, larger: str) -> CrossFieldRule:
    return CrossFieldRule((smaller, larger), lambda a, b: a < b, f"less than {larger}")


def _search_ranges() -> tuple[CrossFieldRule, ...]:
    prefix = "meta_optimization."
    names = [path.removesuffix("_min") for path in SPECS if path.startswith(prefix) and path.endswith("_min")]
    # sinkhorn_epsilon_min is itself a target: its range is ..._min_min to ..._min_max
    return tuple(_at_most(f"{name}_min", f"{name}_max") for name in names if f"{name}_max" in SPECS)


RULES: tuple[CrossFieldRule, ...] = (
    _at_most("orchestration.sinkhorn_epsilon_min", "orchestration.sinkhorn_epsilon_0"),
    _at_most("orchestration.entropy_gamma_min", "orchestration.entropy_gamma_default"),
    _at_most("orchestration.entropy_gamma_default", "orchestration.entropy_gamma_max"),
    _at_most("orchestration.jko_window_min", "orchestration.jko_window_max"),
    _below("kernels.stiffness_low", "kernels.stiffness_high"),
    _at_most("kernels.stiffness_c1", "kernels.stiffness_c2"),
    _below("validation.validation_holder_exponent_min", "validation.validation_holder_exponent_max"),
    CrossFieldRule(
        (
            "orchestration.holder_threshold",
            "orchestration.holder_hysteresis",
            "validation.validation_holder_exponent_max",
        ),
        lambda threshold, hysteresis, greatest: threshold + hysteresis < greatest,
        "less than validation.validation_holder_exponent_max - orchestration.holder_hysteresis: else emergency stays",
    ),
    CrossFieldRule(
        ("wire.symbol_field", "wire.time_field", "wire.value_field"),
        lambda *names: len(set(names)) == len(names),
        "another name than wire.time_field and wire.value_field, and those two different",
    ),
    _at_most("meta_optimization.n_startup_trials", "meta_optimization.n_trials"),
    _at_most("tuning.probation_min_ticks", "tuning.probation_max_ticks"),
    CrossFieldRule(
        ("kafka.heartbeat_interval_ms", "kafka.session_timeout_ms"),
        lambda heartbeat, session: 3 * heartbeat <= session,
        "at most a third of kafka.session_timeout_ms",
    ),
    _below("delivery.commit_interval_ms", "kafka.transaction_timeout_ms"),
    CrossFieldRule(
        ("kafka.input_topic", "kafka.predictions_topic", "kafka.alarms_topic", "kafka.dead_letters_topic"),
        lambda *names: len(set(names)) == len(names),
        "another topic than the three for results, and those different from each other",
    ),
    CrossFieldRule(
        ("kafka.ssl_certificate_file", "kafka.ssl_key_file"),
        lambda certificate, key: bool(certificate) == bool(key),
        "set together with kafka.ssl_key_file or not at all",
    ),
    CrossFieldRule(
        ("kafka.sasl_password", "kafka.sasl_password_file"),
        lambda password, file: not (password and file),
        "not set together with kafka.sasl_password_file",
    ),
    CrossFieldRule(
        ("kafka.ssl_key_password", "kafka.ssl_key_password_file"),
        lambda password, file: not (password and file),
        "not set together with kafka.ssl_key_password_file",
    ),
    CrossFieldRule(
        ("telemetry.symbols", "telemetry.top_symbols"),
        lambda symbols, _: len(symbols.split(",")) <= 500,
        "of at most 500 symbols",
    ),
    *_search_ranges(),
)
