"""What the service may change in its own configuration, and how far at once.

The policy is compiled in. It does not stand in the file that it governs, so that no change of that file, and no defect
of whatever proposes changes, can widen it. Every key that is not listed is refused; the locked ones are named beside
the others so that the message can say why.
"""

import dataclasses
import enum
from typing import Final

from ._key import KeySpec, ParameterClass
from ._settings import SPECS


class Move(enum.StrEnum):
    """How the distance of one change is measured."""

    RELATIVE = "relative"  # at most a share of the present value
    LEVEL = "level"  # to a neighbour: a whole number, a power of two, a size of network


@dataclasses.dataclass(frozen=True, slots=True)
class MutableKey:
    """One key that may be changed; kind, range and powers of two are those of the schema."""

    spec: KeySpec
    move: Move


def _mutable(section: str, move: Move, *names: str) -> dict[str, MutableKey]:
    return {f"{section}.{name}": MutableKey(SPECS[f"{section}.{name}"], move) for name in names}


MUTABLE: Final[dict[str, MutableKey]] = {
    **_mutable(
        "orchestration",
        Move.RELATIVE,
        "cusum_k",
        "cusum_h",
        "grace_period_steps",
        "volatility_alpha",
        "learning_rate",
        "entropy_window",
        "entropy_threshold",
        "holder_threshold",
        "sinkhorn_alpha",
        "sinkhorn_epsilon_min",
        "sinkhorn_epsilon_0",
        "sinkhorn_max_iter",
        "anchor_threshold",
        "anchor_memory_ticks",
        "confidence_power",
        "calibration_rate",
        "scale_memory_ticks",
    ),
    **_mutable("kernels", Move.LEVEL, "log_sig_depth", "wtmm_buffer_size", "dgm_width_size", "dgm_depth"),
    **_mutable(
        "kernels",
        Move.RELATIVE,
        "besov_cone_c",
        "dgm_entropy_num_bins",
        "stiffness_low",
        "stiffness_high",
        "sde_dt",
        "sde_numel_integrations",
        "sde_diffusion_sigma",
        "kernel_ridge_lambda",
        "kernel_a_bandwidth",
        "kernel_a_memory_ticks",
    ),
}

# Named by the specification as never to be changed by the service itself, whatever else becomes mutable.
LOCKED: Final[frozenset[str]] = frozenset(
    {
        "meta.schema_version",
        "core.staleness_ttl_ns",
        "compute.device",
        "compute.precision",
        "io.snapshot_path",
        "io.snapshot_format",
        "io.snapshot_hash_algorithm",
        "io.snapshot_compression",
        "io.telemetry_hash_interval_steps",
        "io.telemetry_buffer_capacity",
        "io.state_path",
        "io.mutations_log",
        "meta_optimization.n_trials",
        "meta_optimization.n_startup_trials",
        "meta_optimization.max_deep_tuning_iterations",
        "meta_optimization.checkpoint_path",
        "meta_optimization.multivariate",
        "meta_optimization.train_ratio",
        "meta_optimization.n_folds",
        *(path for path in SPECS if path.startswith("security.")),
    }
)


def why_immutable(path: str) -> str:
    """Why the service may not change ``path``; "" if it may."""
    if path in MUTABLE:
        return ""
    if path not in SPECS:
        return "there is no such key"
    if path in LOCKED:
        return "it is locked: the service never changes it"
    if SPECS[path].key.parameter_class is ParameterClass.LOCKED:
        return "it is locked: a change needs a restart"
    return "it is left to the operator"
