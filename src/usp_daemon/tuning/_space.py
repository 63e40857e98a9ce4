"""The search space: 23 parameters, their levels, and from a candidate to the predictor's parameters.

A candidate is a mapping from bare parameter names to plain numbers; what it does not name stays as in the base
settings. Structures (combinations of structural parameters) are few and are chosen before anything else is tuned,
since each costs a compilation: see ``choose_structures``.
"""

import dataclasses
import enum
import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from usp_daemon.compute import predictor_config
from usp_daemon.config import (
    SPECS,
    KeySpec,
    MetaOptimization,
    ParameterClass,
    Settings,
    Value,
    document_of,
    parse_settings,
)
from usp_daemon.core import DGM_TIERS, PredictorConfig

# Names under which the specification knows a key of ours.
ALIASES = {"cusum_grace_period_steps": "grace_period_steps"}
MAX_STRUCTURES = 8


class Tier(enum.StrEnum):
    """How much is searched: fast is a part of deep."""

    FAST = "fast"
    DEEP = "deep"


class Kind(enum.StrEnum):
    """What values a parameter takes."""

    REAL = "real"
    WHOLE = "whole"
    LEVELS = "levels"  # one of ``Parameter.levels``, in their order


@dataclasses.dataclass(frozen=True)
class Parameter:
    """One searched parameter: ``low`` to ``high`` in the schema's unit."""

    name: str
    path: str
    tier: Tier  # the smallest tier that searches it
    kind: Kind
    low: float
    high: float
    logarithmic: bool
    levels: tuple[int, ...]
    structural: bool

    def at(self, place: float) -> int | float:
        """The value at ``place`` in [0, 1] of the range, on the parameter's own scale."""
        if self.kind is Kind.LEVELS:
            return self.levels[min(int(place * len(self.levels)), len(self.levels) - 1)]
        if self.logarithmic:
            value = self.low * (self.high / self.low) ** place
        else:
            value = self.low + place * (self.high - self.low)
        value = min(max(value, self.low), self.high)
        return round(value) if self.kind is Kind.WHOLE else value

    @property
    def range_text(self) -> str:
        """The values in words, for the documentation."""
        if self.kind is Kind.LEVELS:
            return ", ".join(str(level) for level in self.levels)
        return f"{self.low:g} to {self.high:g}"


# In the specification's order; (name, tier, logarithmic).
_DECLARED: tuple[tuple[str, Tier, bool], ...] = (
    ("log_sig_depth", Tier.FAST, False),
    ("wtmm_buffer_size", Tier.FAST, False),
    ("besov_cone_c", Tier.FAST, False),
    ("cusum_k", Tier.FAST, False),
    ("sinkhorn_alpha", Tier.FAST, False),
    ("volatility_alpha", Tier.FAST, False),
    ("dgm_width_size", Tier.DEEP, False),
    ("dgm_depth", Tier.DEEP, False),
    ("dgm_entropy_num_bins", Tier.DEEP, False),
    ("stiffness_low", Tier.DEEP, False),
    ("stiffness_high", Tier.DEEP, False),
    ("sde_dt", Tier.DEEP, True),
    ("sde_numel_integrations", Tier.DEEP, False),
    ("sde_diffusion_sigma", Tier.DEEP, False),
    ("kernel_ridge_lambda", Tier.DEEP, True),
    ("cusum_h", Tier.DEEP, False),
    ("grace_period_steps", Tier.DEEP, False),
    ("sinkhorn_epsilon_min", Tier.DEEP, True),
    ("sinkhorn_epsilon_0", Tier.DEEP, False),
    ("learning_rate", Tier.DEEP, True),
    ("entropy_window", Tier.DEEP, False),
    ("entropy_threshold", Tier.DEEP, False),
    ("holder_threshold", Tier.DEEP, False),
)
_TARGETS: dict[str, KeySpec] = {
    spec.name: spec for spec in SPECS.values() if spec.section in ("orchestration", "kernels")
}


class UnknownParameterError(ValueError):
    """A candidate names something that cannot be tuned, or gives a value that the key cannot have."""


@dataclasses.dataclass(frozen=True)
class SearchSpace:
    """The parameters of one tier, in the specification's order."""

    tier: Tier
    parameters: tuple[Parameter, ...]

    @classmethod
    def from_settings(cls, settings: Settings | MetaOptimization, tier: Tier | str = Tier.DEEP) -> "SearchSpace":
        """The space between the ends that ``[meta_optimization]`` gives."""
        ranges = settings.meta_optimization if isinstance(settings, Settings) else settings
        chosen = Tier(tier)
        every = tuple(_parameter(ranges, *declared) for declared in _DECLARED)
        return cls(chosen, tuple(one for one in every if chosen is Tier.DEEP or one.tier is Tier.FAST))

    def __getitem__(self, name: str) -> Parameter:
        for one in self.parameters:
            if one.name == name:
                return one
        raise KeyError(name)

    @property
    def names(self) -> tuple[str, ...]:
        """All parameters' names."""
        return tuple(one.name for one in self.parameters)

    @property
    def traced(self) -> tuple[Parameter, ...]:
        """Those whose change compiles nothing."""
        return tuple(one for one in self.parameters if not one.structural)

    @property
    def structural(self) -> tuple[Parameter, ...]:
        """Those whose change needs another program."""
        return tuple(one for one in self.parameters if one.structural)

    def random_candidate(
        self, generator: np.random.Generator, structure: Mapping[str, Value] | None = None
    ) -> dict[str, Value]:
        """A point drawn evenly on each traced parameter's scale, with the structure given (None: the base's)."""
        candidate: dict[str, Value] = dict(structure or {})
        for one in self.traced:
            candidate[one.name] = one.at(float(generator.random()))
        for smaller, larger in (("sinkhorn_epsilon_min", "sinkhorn_epsilon_0"), ("stiffness_low", "stiffness_high")):
            if smaller in candidate and float(candidate[smaller]) >= float(candidate[larger]):
                candidate[larger] = self[larger].high
        return candidate


def _parameter(ranges: MetaOptimization, name: str, tier: Tier, logarithmic: bool) -> Parameter:
    spec = _TARGETS[name]
    low, high = getattr(ranges, f"{name}_min"), getattr(ranges, f"{name}_max")
    levels: tuple[int, ...] = ()
    structural = spec.key.parameter_class is ParameterClass.STRUCTURAL
    if spec.key.power_of_two:
        levels = tuple(1 << power for power in range(31) if low <= 1 << power <= high)
    elif structural:
        levels = tuple(range(int(low), int(high) + 1))
    kind = Kind.LEVELS if levels else Kind.WHOLE if spec.kind is int else Kind.REAL
    return Parameter(name, spec.path, tier, kind, float(low), float(high), logarithmic, levels, structural)


def canonical(candidate: Mapping[str, Value]) -> dict[str, Value]:
    """The candidate by dotted path, in the keys' own types. Raises ``UnknownParameterError``."""
    by_path: dict[str, Value] = {}
    for name, value in candidate.items():
        spec = _TARGETS.get(ALIASES.get(name, name))
        if spec is None or spec.key.parameter_class is ParameterClass.LOCKED:
            raise UnknownParameterError(f"{name} is no parameter of the predictor that can be tuned")
        plain = value.item() if isinstance(value, np.generic) else value
        if spec.kind is int and isinstance(plain, float) and plain.is_integer():
            plain = int(plain)
        try:
            by_path[spec.path] = spec.fit(plain)
        except Exception as error:
            raise UnknownParameterError(f"{spec.path}: expected {spec.expectation}, got {value!r}") from error
    return by_path


def candidate_settings(base: Settings, candidate: Mapping[str, Value]) -> Settings:
    """The base settings with the candidate's values. Raises ``UnknownParameterError``, or ``ConfigError`` for values
    that are in range but make no sense together.
    """
    return parse_settings(document_of({**dict(base.items()), **canonical(candidate)}), source="candidate")


def candidate_config(base: Settings, candidate: Mapping[str, Value]) -> PredictorConfig:
    """The predictor's parameters under the candidate; ``cusum_h`` stays "auto" unless the candidate sets it.

    Raises as ``candidate_settings`` does.
    """
    return predictor_config(candidate_settings(base, candidate))


def network_levels(space: SearchSpace) -> tuple[tuple[int, int], ...]:
    """Pairs (``dgm_width_size``, ``dgm_depth``) in the ranges, one for each shipped network that any pair resolves to.

    The network's own width and depth where the ranges have them, else the pair that is nearest in capacity.
    """
    widths, depths = space["dgm_width_size"].levels, space["dgm_depth"].levels
    best: dict[int, tuple[float, tuple[int, int]]] = {}
    for width in widths:
        for depth in depths:
            distances = [abs(math.log(width * depth / (w * d))) for w, d in DGM_TIERS]
            tier = int(np.argmin(distances))
            own = (width, depth) == DGM_TIERS[tier]
            rank = (-1.0 if own else distances[tier], (width, depth))
            best[tier] = min(best.get(tier, rank), rank)
    return tuple(best[tier][1] for tier in sorted(best))


def choose_structures(
    space: SearchSpace, base: PredictorConfig, *, limit: int = MAX_STRUCTURES
) -> list[dict[str, Value]]:
    """The structures that a campaign visits: the base's own first, then each that is one choice away from it.

    One choice is another signature depth or another of the shipped networks, nearest ones first, the two kinds by
    turns. Traced parameters are tuned within each.

    Args:
      space: the tier's parameters; a structural parameter that it does not search stays as it is.
      base: the parameters that are in force.
      limit: most structures, at least 1.

    Returns:
      At most ``limit`` different mappings of structural parameters to values, the first being ``base``'s.
    """
    own: dict[str, Value] = {one.name: getattr(base, one.name) for one in space.structural}
    moves: list[Sequence[dict[str, Value]]] = []
    if "log_sig_depth" in own:
        depths = sorted(space["log_sig_depth"].levels, key=lambda level: (abs(level - base.log_sig_depth), level))
        moves.append([{"log_sig_depth": depth} for depth in depths])
    if "dgm_width_size" in own:
        capacity = base.dgm_width_size * base.dgm_depth
        pairs = sorted(network_levels(space), key=lambda pair: (abs(math.log(pair[0] * pair[1] / capacity)), pair))
        moves.append([{"dgm_width_size": width, "dgm_depth": depth} for width, depth in pairs])
    chosen = [own]
    for step in range(max((len(one) for one in moves), default=0)):
        for kind in moves:
            if step < len(kind) and {**own, **kind[step]} not in chosen:
                chosen.append({**own, **kind[step]})
    return chosen[: max(1, limit)]


def space_table(parameters: Iterable[Parameter]) -> str:
    """The space as a Markdown table, for docs/numerics/tuning.md."""
    rows = ["| parameter | key | tier | values | scale | a change costs |", "|---|---|---|---|---|---|"]
    for one in parameters:
        scale = "levels" if one.kind is Kind.LEVELS else "logarithmic" if one.logarithmic else "linear"
        if one.kind is Kind.WHOLE:
            scale += ", whole"
        cost = "a compilation" if one.structural else "nothing"
        rows.append(f"| {one.name} | `{one.path}` | {one.tier} | {one.range_text} | {scale} | {cost} |")
    return "\n".join(rows)
