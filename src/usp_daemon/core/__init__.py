"""The predictor's mathematics, as pure JAX: one step, its state, its parameters and its results."""

from ._adaptive import (
    compute_adaptive_jko_params,
    compute_adaptive_stiffness_thresholds,
    compute_entropy_ratio,
    scale_dgm_architecture,
)
from ._change_point import update_cusum_statistics
from ._fusion import fuse_kernel_outputs
from ._migration import MigratedArrays, migrate_arrays
from ._orchestrator import advance, atomic_state_update, orchestrate_step, orchestrate_step_batch, refresh
from ._parameters import (
    DGM_TIERS,
    QUANTILE_LEVELS,
    STRUCTURAL_FIELDS,
    TRACED_FIELDS,
    PredictorConfig,
    nearest_dgm_tier,
)
from ._regularity import RegularityResult, estimate_regularity
from ._results import (
    FusionResult,
    KernelOutput,
    OrchestrationResult,
    PredictionResult,
    ProcessState,
    SinkhornResult,
)
from ._sinkhorn import compute_cost_matrix, compute_sinkhorn_epsilon, volatility_coupled_sinkhorn
from ._state import InternalState, initialize_batched_states, initialize_state
from ._thresholds import resolve_thresholds
from ._types import (
    KERNEL_NAMES,
    REJECTING_REASONS,
    AlarmKind,
    GateReason,
    KernelType,
    OperatingMode,
    ResultCode,
)

__all__ = [
    "DGM_TIERS",
    "KERNEL_NAMES",
    "QUANTILE_LEVELS",
    "REJECTING_REASONS",
    "STRUCTURAL_FIELDS",
    "TRACED_FIELDS",
    "AlarmKind",
    "FusionResult",
    "GateReason",
    "InternalState",
    "KernelOutput",
    "KernelType",
    "MigratedArrays",
    "OperatingMode",
    "OrchestrationResult",
    "PredictionResult",
    "PredictorConfig",
    "ProcessState",
    "RegularityResult",
    "ResultCode",
    "SinkhornResult",
    "advance",
    "atomic_state_update",
    "compute_adaptive_jko_params",
    "compute_adaptive_stiffness_thresholds",
    "compute_cost_matrix",
    "compute_entropy_ratio",
    "compute_sinkhorn_epsilon",
    "estimate_regularity",
    "fuse_kernel_outputs",
    "initialize_batched_states",
    "initialize_state",
    "migrate_arrays",
    "nearest_dgm_tier",
    "orchestrate_step",
    "orchestrate_step_batch",
    "refresh",
    "resolve_thresholds",
    "scale_dgm_architecture",
    "update_cusum_statistics",
    "volatility_coupled_sinkhorn",
]
