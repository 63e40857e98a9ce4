"""Records that the step returns: plain arrays, one per quantity, batched by ``vmap``."""

from typing import Any

import equinox as eqx
import numpy as np
from jaxtyping import Array, Float

from ._types import Count, Flag, Scalar, Weights


class ProcessState(eqx.Module):
    """One tick as the step sees it.

    ``magnitude`` is the observed value in the symbol's own units, ``reference`` the realised value that scores the
    stored forecast (the magnitude itself in one-step forecasting), ``timestamp_ns`` the event time and
    ``record_timestamp_ns`` the time of the record that carried it; the latter two are Unix nanoseconds, and their
    difference is the clock skew.
    """

    magnitude: Scalar
    reference: Scalar
    timestamp_ns: Count
    record_timestamp_ns: Count


class KernelOutput(eqx.Module):
    """One expert's forecast: ``prediction``, its ``confidence`` (a precision: larger is better) and what else it
    knows.
    """

    prediction: Scalar
    confidence: Scalar
    metadata: Any


class SinkhornResult(eqx.Module):
    """An entropic transport plan with its cost, the regularisation used and how far its marginals are off."""

    transport_matrix: Float[Array, "kernels kernels"]
    reg_ot_cost: Scalar
    converged: Flag
    epsilon: Scalar
    max_err: Scalar
    iterations: Count
    log_domain: Flag


class FusionResult(eqx.Module):
    """The weights after one fusion step and the forecast made with exactly those weights."""

    fused_prediction: Scalar
    updated_weights: Weights
    free_energy: Scalar
    sinkhorn_converged: Flag
    sinkhorn_epsilon: Scalar
    sinkhorn_transport: Float[Array, "kernels kernels"]
    sinkhorn_max_err: Scalar
    sinkhorn_iterations: Count
    sinkhorn_log_domain: Flag


class PredictionResult(eqx.Module):
    """Everything the step says after one tick. Values are in the symbol's own units unless the field says otherwise."""

    predicted_next: Scalar
    scale: Scalar  # robust standard deviation of the forecast error
    lower_80: Scalar
    upper_80: Scalar
    lower_95: Scalar
    upper_95: Scalar
    quantiles: Float[Array, " levels"]  # on QUANTILE_LEVELS
    kernel_predictions: Float[Array, " kernels"]
    kernel_confidences: Float[Array, " kernels"]
    weights: Weights
    innovation: Scalar  # standardised; what the detector's held reference did not explain
    forecast_error: Scalar  # last forecast's error in units of its scale
    holder_exponent: Scalar
    cusum_drift: Scalar  # G+, kept under the specification's name
    cusum_drift_down: Scalar  # G-
    scale_statistic_up: Scalar
    scale_statistic_down: Scalar
    distance_to_collapse: Scalar
    adaptive_threshold: Scalar
    free_energy: Scalar
    kurtosis: Scalar
    ema_variance: Scalar  # dimensionless
    dgm_entropy: Scalar  # nats
    dgm_entropy_fraction: Scalar  # of ln(bins)
    entropy_ratio: Scalar
    dgm_tier: Count
    stiffness: Scalar
    solver_scheme: Count  # 0 explicit, 1 mixed, 2 implicit
    entropy_window: Scalar  # adaptive, ticks
    learning_rate: Scalar  # adaptive
    sinkhorn_epsilon: Scalar
    sinkhorn_converged: Flag
    sinkhorn_iterations: Count
    sinkhorn_max_err: Scalar
    season_length: Count  # ticks; 0 when none was found
    sequence: Count  # accepted ticks so far
    grace_counter: Count
    missed_periods: Count
    gate_reasons: Count  # GateReason bits
    result_code: Count  # ResultCode bits
    mode: Count  # OperatingMode
    accepted: Flag
    degraded_inference_mode: Flag
    emergency_mode: Flag
    regime_change_detected: Flag
    mode_collapse_warning: Flag
    warming_up: Flag
    reference_ready: Flag
    refresh_due: Flag
    alarm_kind: Count  # AlarmKind bits
    alarm_statistic: Scalar
    alarm_threshold: Scalar
    alarm_start_ticks_ago: Count

    @staticmethod
    def validate_simplex(weights: Any, atol: float) -> None:
        """Host-side check that ``weights`` (last axis) are finite, non-negative and sum to one within ``atol``.

        Raises ``ValueError`` that names the worst offender. Inside the step weights are renormalised instead.
        """
        values = np.asarray(weights, dtype=np.float64)
        if not np.isfinite(values).all():
            raise ValueError(f"weights must be finite, got {values.tolist()}")
        lowest = float(values.min(initial=0.0))
        gap = float(np.max(np.abs(values.sum(axis=-1) - 1.0), initial=0.0))
        if lowest < -atol or gap > atol:
            raise ValueError(f"weights must lie on the simplex within {atol:g}: lowest {lowest:g}, sum off by {gap:g}")


class OrchestrationResult(eqx.Module):
    """One step as an observer sees it; the next state travels beside it, not inside."""

    prediction: PredictionResult
    kernel_outputs: tuple[KernelOutput, KernelOutput, KernelOutput, KernelOutput]
    fusion: FusionResult


__all__ = [
    "FusionResult",
    "KernelOutput",
    "OrchestrationResult",
    "PredictionResult",
    "ProcessState",
    "SinkhornResult",
]
