"""What is searched: the parameters, their ranges and scales, and the structures.

Everything about a parameter but its tier and its scale is the schema's: where it stands, its kind, its class. Its ends
come from ``[meta_optimization]``.
"""

import dataclasses
import enum
from collections.abc import Iterable, Mapping

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from usp_daemon.config import SPECS, KeySpec, MetaOptimization, ParameterClass, Value
from usp_daemon.core import DGM_TIERS, nearest_dgm_tier

from ._errors import TuningError


class Tier(enum.StrEnum):
    """How much is searched. Fast is a part of deep, deep and sensitive are parts of wide."""

    FAST = "fast"
    SENSITIVE = "sensitive"
    DEEP = "deep"
    WIDE = "wide"


@dataclasses.dataclass(frozen=True)
class Parameter:
    """One searched parameter, by its bare name."""

    name: str
    tiers: frozenset[Tier]
    logarithmic: bool = False

    @property
    def spec(self) -> KeySpec:
        """Its key in the schema."""
        return _SPECS[self.name]

    @property
    def path(self) -> str:
        """The dotted path of its key."""
        return self.spec.path

    @property
    def is_structural(self) -> bool:
        """Whether a change of it needs another program."""
        return self.spec.key.parameter_class is ParameterClass.STRUCTURAL

    def distribution(self, ranges: MetaOptimization) -> BaseDistribution:
        """What is drawn: whole numbers, powers of two, or real numbers between its ends in ``ranges``."""
        low, high = getattr(ranges, f"{self.name}_min"), getattr(ranges, f"{self.name}_max")
        if self.spec.key.power_of_two:
            return CategoricalDistribution([1 << power for power in range(31) if low <= 1 << power <= high])
        if self.spec.kind is int:
            return IntDistribution(low, high)
        return FloatDistribution(low, high, log=self.logarithmic)


_SPECS: dict[str, KeySpec] = {
    spec.name: spec for spec in SPECS.values() if spec.section in ("orchestration", "kernels")
}
_FAST = frozenset({Tier.FAST, Tier.DEEP, Tier.WIDE})
_DEEP = frozenset({Tier.DEEP, Tier.WIDE})
_WIDE = frozenset({Tier.WIDE})
_SENSITIVE = frozenset({Tier.SENSITIVE})

# The specification's 23 in its order, which draws depend on; then those that matter beside them.
PARAMETERS: tuple[Parameter, ...] = (
    Parameter("log_sig_depth", _FAST),
    Parameter("wtmm_buffer_size", _FAST),
    Parameter("besov_cone_c", _FAST),
    Parameter("cusum_k", _FAST),
    Parameter("sinkhorn_alpha", _FAST),
    Parameter("volatility_alpha", _FAST),
    Parameter("dgm_width_size", _DEEP),
    Parameter("dgm_depth", _DEEP),
    Parameter("dgm_entropy_num_bins", _DEEP),
    Parameter("stiffness_low", _DEEP),
    Parameter("stiffness_high", _DEEP),
    Parameter("sde_dt", _DEEP, logarithmic=True),
    Parameter("sde_numel_integrations", _DEEP),
    Parameter("sde_diffusion_sigma", _DEEP),
    Parameter("kernel_ridge_lambda", _DEEP | _SENSITIVE, logarithmic=True),
    Parameter("cusum_h", _DEEP),
    Parameter("grace_period_steps", _DEEP),
    Parameter("sinkhorn_epsilon_min", _DEEP, logarithmic=True),
    Parameter("sinkhorn_epsilon_0", _DEEP),
    Parameter("learning_rate", _DEEP | _SENSITIVE, logarithmic=True),
    Parameter("entropy_window", _DEEP),
    Parameter("entropy_threshold", _DEEP),
    Parameter("holder_threshold", _DEEP),
    Parameter("kernel_a_memory_ticks", _WIDE | _SENSITIVE, logarithmic=True),
    Parameter("kernel_a_bandwidth", _WIDE | _SENSITIVE, logarithmic=True),
    Parameter("anchor_threshold", _WIDE | _SENSITIVE, logarithmic=True),
    Parameter("anchor_memory_ticks", _WIDE | _SENSITIVE, logarithmic=True),
    Parameter("confidence_power", _WIDE | _SENSITIVE, logarithmic=True),
    Parameter("calibration_rate", _WIDE | _SENSITIVE, logarithmic=True),
    Parameter("scale_memory_ticks", _WIDE | _SENSITIVE, logarithmic=True),
)
_BY_NAME = {one.name: one for one in PARAMETERS}
_NETWORK = ("dgm_width_size", "dgm_depth")
# (smaller, larger, whether they must differ): the schema's rules between two parameters of the space.
_ORDERED = (("sinkhorn_epsilon_min", "sinkhorn_epsilon_0", False), ("stiffness_low", "stiffness_high", True))
_APART = 1e-6


def parameters_of(tier: str) -> tuple[Parameter, ...]:
    """The parameters of a tier. Raises ``TuningError`` for a name that is no tier's."""
    if tier not in set(Tier):
        raise TuningError(f"expected the tier {', '.join(Tier)}, got {tier!r}")
    return tuple(one for one in PARAMETERS if tier in one.tiers)


def search_space(ranges: MetaOptimization, tier: str) -> dict[str, BaseDistribution]:
    """The distribution of every parameter of ``tier``, by the parameter's name."""
    return {one.name: one.distribution(ranges) for one in parameters_of(tier)}


def path_of(name: str) -> str:
    """The dotted path of a parameter's key."""
    return _BY_NAME[name].path


def structural_names(space: Mapping[str, BaseDistribution]) -> tuple[str, ...]:
    """The parameters of the space whose change needs another compiled program."""
    return tuple(name for name in space if name in _BY_NAME and _BY_NAME[name].is_structural)


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


def with_shipped_network(
    values: Mapping[str, Value], base: Mapping[str, Value], space: Mapping[str, BaseDistribution]
) -> dict[str, Value]:
    """``values`` with the one width and depth that stand for the shipped network which theirs resolve to.

    Many pairs resolve to one network; each would be a structure of its own, compiled anew and searched apart. The
    base's own pair stands for its network, then the network's own where the ranges have it, then the pair in the
    ranges that is nearest in capacity.
    """
    width, depth = (values.get(name) for name in _NETWORK)
    if not isinstance(width, int) or not isinstance(depth, int):
        return dict(values)  # a tier that leaves the network alone
    tier = nearest_dgm_tier(width, depth)
    pairs = _pairs(space)
    own = base.get(_NETWORK[0]), base.get(_NETWORK[1])
    if own in pairs and nearest_dgm_tier(*own) == tier:  # type: ignore[misc]
        pair = own
    elif DGM_TIERS[tier] in pairs:
        pair = DGM_TIERS[tier]
    else:
        capacity = DGM_TIERS[tier][0] * DGM_TIERS[tier][1]
        some = [pair for pair in pairs if nearest_dgm_tier(*pair) == tier]
        pair = min(some, key=lambda pair: (max(pair[0] * pair[1] / capacity, capacity / (pair[0] * pair[1])), pair))
    return {**values, **dict(zip(_NETWORK, pair, strict=True))}  # type: ignore[dict-item]


def _pairs(space: Mapping[str, BaseDistribution]) -> list[tuple[int, int]]:
    widths, depths = (space[name] for name in _NETWORK)
    assert isinstance(widths, CategoricalDistribution) and isinstance(depths, IntDistribution)
    return [(int(w), d) for w in widths.choices for d in range(depths.low, depths.high + 1)]  # type: ignore[arg-type]


def space_table(ranges: MetaOptimization, parameters: Iterable[Parameter] = PARAMETERS) -> str:
    """The space as a Markdown table, for docs/numerics/tuning.md."""
    rows = ["| parameter | key | tiers | values | scale | a change costs |", "|---|---|---|---|---|---|"]
    for one in parameters:
        drawn = one.distribution(ranges)
        if isinstance(drawn, CategoricalDistribution):
            values, scale = ", ".join(map(str, drawn.choices)), "powers of two"
        else:
            assert isinstance(drawn, FloatDistribution | IntDistribution)
            values, scale = f"{drawn.low:g} to {drawn.high:g}", "logarithmic" if drawn.log else "linear"
            if isinstance(drawn, IntDistribution):
                scale += ", whole"
        tiers = ", ".join(tier for tier in Tier if tier in one.tiers)
        cost = "a compilation" if one.is_structural else "nothing"
        rows.append(f"| {one.name} | `{one.path}` | {tiers} | {values} | {scale} | {cost} |")
    return "\n".join(rows)
