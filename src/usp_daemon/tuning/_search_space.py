"""What is searched, derived from the ranges in ``[meta_optimization]`` and the schema of the targets."""

from collections.abc import Mapping

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from usp_daemon.config import SPECS, KeySpec, MetaOptimization, ParameterClass, Settings, Value

from ._errors import TuningError

FAST = ("log_sig_depth", "wtmm_buffer_size", "besov_cone_c", "cusum_k", "sinkhorn_alpha", "volatility_alpha")
DEEP = (
    *FAST, "dgm_width_size", "dgm_depth", "dgm_entropy_num_bins", "stiffness_low", "stiffness_high", "sde_dt",
    "sde_numel_integrations", "sde_diffusion_sigma", "kernel_ridge_lambda", "cusum_h", "grace_period_steps",
    "sinkhorn_epsilon_min", "sinkhorn_epsilon_0", "learning_rate", "entropy_window", "entropy_threshold",
    "holder_threshold",
)  # fmt: skip
TIERS = {"fast": FAST, "deep": DEEP}
# Those that the specification searches on a logarithmic scale.
_LOGARITHMIC = {"sde_dt", "kernel_ridge_lambda", "sinkhorn_epsilon_min", "learning_rate"}
# (smaller, larger, whether they must differ): the schema's rules between two parameters of the space.
_ORDERED = (("sinkhorn_epsilon_min", "sinkhorn_epsilon_0", False), ("stiffness_low", "stiffness_high", True))
_APART = 1e-6

_TARGETS: dict[str, KeySpec] = {
    spec.name: spec for spec in SPECS.values() if spec.section in ("orchestration", "kernels") and spec.name in DEEP
}


def path_of(name: str) -> str:
    """The dotted path of a parameter's key."""
    return _TARGETS[name].path


def search_space(meta_config: MetaOptimization, tier: str) -> dict[str, BaseDistribution]:
    """The distribution of every parameter of ``tier``, "fast" or "deep", by the parameter's name."""
    if tier not in TIERS:
        raise TuningError(f"expected the tier fast or deep, got {tier!r}")
    return {name: _distribution(meta_config, name) for name in TIERS[tier]}


def _distribution(meta_config: MetaOptimization, name: str) -> BaseDistribution:
    low, high = getattr(meta_config, f"{name}_min"), getattr(meta_config, f"{name}_max")
    target = _TARGETS[name]
    if target.key.power_of_two:
        return CategoricalDistribution([1 << k for k in range(31) if low <= 1 << k <= high])
    if target.kind is int:
        return IntDistribution(low, high)
    return FloatDistribution(low, high, log=name in _LOGARITHMIC)


def structural_names(space: Mapping[str, BaseDistribution]) -> tuple[str, ...]:
    """The parameters of the space whose change needs another compiled program."""
    return tuple(name for name in space if _is_structural(name))


def _is_structural(name: str) -> bool:
    target = _TARGETS.get(name)
    return target is not None and target.key.parameter_class is ParameterClass.STRUCTURAL


def base_candidate(settings: Settings, space: Mapping[str, BaseDistribution]) -> dict[str, Value]:
    """The values that ``settings`` give the parameters of the space, "auto" resolved; they may lie outside of it."""
    values: dict[str, Value] = {}
    for name in space:
        value = settings[path_of(name)]
        if value == "auto":
            # Only here: a report needs no numerical library, and its import takes seconds.
            from usp_daemon.compute import predictor_config

            value = float(getattr(predictor_config(settings), name))
        values[name] = value
    return values


def into_space(values: Mapping[str, Value], space: Mapping[str, BaseDistribution]) -> dict[str, Value]:
    """The point of the space nearest to ``values``."""
    return {name: _nearest(values[name], distribution) for name, distribution in space.items()}


def _nearest(value: Value, distribution: BaseDistribution) -> Value:
    if isinstance(distribution, CategoricalDistribution):
        if value in distribution.choices or not isinstance(value, int | float):
            return value if value in distribution.choices else distribution.choices[0]  # type: ignore[return-value]
        return min(distribution.choices, key=lambda choice: abs(float(choice) - float(value)))  # type: ignore
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    assert isinstance(value, int | float)
    return type(distribution.low)(min(max(value, distribution.low), distribution.high))


def repaired(values: Mapping[str, Value], space: Mapping[str, BaseDistribution]) -> dict[str, Value]:
    """``values`` moved as little as the schema's order between parameters asks: the smaller one is brought down to
    the larger, or, where its range does not reach so low, the larger one up.
    """
    result = dict(values)
    for smaller, larger, strictly in _ORDERED:
        if smaller not in result or larger not in result:
            continue
        margin = 1.0 + _APART if strictly else 1.0
        low, high = float(result[smaller]), float(result[larger])
        if low * margin <= high:
            continue
        least, most = space[smaller], space[larger]
        assert isinstance(least, FloatDistribution) and isinstance(most, FloatDistribution)
        if high / margin >= least.low:
            result[smaller] = high / margin
        elif least.low * margin <= most.high:
            result[smaller], result[larger] = least.low, least.low * margin
        else:
            raise TuningError(
                f"meta_optimization: no value of {smaller} is small enough for any of {larger}; change their ranges"
            )
    return result
