"""The numbers an operator may set, as one pytree.

Every field is either *traced* (an array leaf: changing it costs nothing) or *structural* (it fixes shapes: changing it
compiles a new program and migrates the state). Meaning, unit and range of each stand in the configuration schema, whose
names and defaults are the same; docs/configuration.md is generated from it.
"""

import dataclasses
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np

# The fixed buffers behind traced lengths. A traced length may be anything up to its buffer.
HISTORY_CAPACITY = 1024
RESIDUAL_CAPACITY = 256
ENTROPY_BINS_CAPACITY = 128
WTMM_CAPACITY = 512

QUANTILE_LEVELS: tuple[float, ...] = tuple(np.round(np.arange(1, 40) * 0.025, 3).tolist())

# Tiers of the shipped Deep Galerkin networks, by capacity width * depth.
DGM_TIERS: tuple[tuple[int, int], ...] = ((32, 2), (64, 4), (128, 4), (128, 6), (128, 7), (128, 8))


def structural(default: Any) -> Any:
    """A field that fixes a shape or picks a program."""
    return eqx.field(static=True, default=default)


class PredictorConfig(eqx.Module):
    """Parameters of one predictor (the specification's record of the same name; the errata list what became of each
    field).
    """

    # fusion and weights
    learning_rate: Any = 0.05
    sinkhorn_epsilon_min: Any = 0.01
    sinkhorn_epsilon_0: Any = 0.1
    sinkhorn_alpha: Any = 0.5
    sinkhorn_max_iter: Any = 200
    entropy_window: Any = 100
    entropy_threshold: Any = 0.8
    entropy_gamma_min: Any = 0.5
    entropy_gamma_max: Any = 1.0
    entropy_gamma_default: Any = 0.8
    mode_collapse_min_threshold: Any = 10
    mode_collapse_window_ratio: Any = 0.1
    volatility_alpha: Any = 0.1
    confidence_power: Any = 16.0
    anchor_threshold: Any = 1.0
    anchor_memory_ticks: Any = 300.0
    jko_domain_length: Any = 1.0
    jko_window_factor: Any = 5.0
    jko_window_min: Any = 10
    jko_window_max: Any = 500
    jko_rate_safety: Any = 0.8
    fusion_method: str = structural("jko_proximal")
    # change detection
    holder_threshold: Any = 0.4
    holder_hysteresis: Any = 0.05
    huber_delta: Any = 1.0
    jump_exponent_threshold: Any = 0.25
    cusum_h: Any = 13.197  # resolved from "auto" and alarm_mean_ticks_between_false before it gets here
    cusum_k: Any = 0.5
    grace_period_steps: Any = 20
    residual_window_size: Any = 252
    reference_fit_ticks: Any = 180
    alarm_jump_sigmas: Any = 6.0
    scale_clip: Any = 4.0
    # ratios of the other statistics' base thresholds to cusum_h; they come from the same simulation
    cusum_slow_ratio: Any = 2.1598
    scale_up_ratio: Any = 0.78662
    scale_down_ratio: Any = 0.77881
    dynamics_ratio: Any = 2.18148
    # ingestion gate
    sigma_bound: Any = 20.0
    sigma_val: Any = 1.0
    outlier_max_consecutive: Any = 20
    outlier_cluster_sigmas: Any = 8.0
    max_future_drift_ns: Any = 1_000_000_000
    max_past_drift_ns: Any = 86_400_000_000_000
    staleness_ttl_ns: Any = 500_000_000
    staleness_cadence_factor: Any = 5.0
    inference_recovery_hysteresis: Any = 0.8
    frozen_signal_min_steps: Any = 5
    frozen_signal_recovery_ratio: Any = 0.1
    frozen_signal_recovery_steps: Any = 2
    frozen_false_alarm_probability: Any = 1e-6
    besov_nyquist_interval_ns: Any = 100_000_000
    # standardisation and calibration
    scale_memory_ticks: Any = 200.0
    innovation_clip: Any = 6.0
    calibration_rate: Any = 0.02
    warmup_signal_length: Any = 100
    numerical_epsilon: Any = 1e-10
    # kernel A
    kernel_ridge_lambda: Any = 1e-6
    kernel_ridge_reference: Any = 1e6
    kernel_a_bandwidth: Any = 1.0
    kernel_a_min_variance: Any = 1e-10
    kernel_a_memory_ticks: Any = 1000.0
    season_min_correlation: Any = 0.25
    kernel_a_embedding_dim: int = structural(5)
    kernel_a_lags: int = structural(6)
    kernel_a_features: int = structural(32)
    # kernel B
    dgm_width_size: int = structural(64)
    dgm_depth: int = structural(4)
    dgm_entropy_num_bins: Any = 50
    dgm_scaling_trigger: Any = 2.0
    dgm_scaling_beta: Any = 0.7
    dgm_scaling_cap: Any = 4.0
    kernel_b_horizon: Any = 1.0
    kernel_b_drift_uncertainty: Any = 0.0
    kernel_b_memory_ticks: Any = 1000.0
    # kernel C
    stiffness_low: Any = 100.0
    stiffness_high: Any = 1000.0
    stiffness_c1: Any = 25.0
    stiffness_c2: Any = 250.0
    stiffness_scale: Any = 50.0
    sde_dt: Any = 0.01
    sde_numel_integrations: Any = 100
    sde_diffusion_sigma: Any = 0.2
    sde_prior_ticks: Any = 20.0
    kernel_c_horizon: Any = 1.0
    kernel_c_alpha: Any = 1.8
    kernel_c_alpha_gaussian_threshold: Any = 1.99
    kernel_c_memory_ticks: Any = 500.0
    # kernel D
    log_sig_depth: int = structural(3)
    signature_window: int = structural(16)
    kernel_d_memory_ticks: Any = 1000.0
    # regularity
    wtmm_buffer_size: Any = 128
    besov_cone_c: Any = 1.5
    validation_holder_exponent_min: Any = 0.0
    validation_holder_exponent_max: Any = 1.0
    validation_simplex_atol: Any = 1e-6
    refresh_interval: int = structural(50)

    def as_arrays(self, dtype: Any = jnp.float64) -> "PredictorConfig":
        """The same parameters as device scalars: reals in ``dtype``, whole numbers in int32 or, for ``*_ns``, int64."""
        changes: dict[str, Any] = {}
        for field in dataclasses.fields(self):
            if field.metadata.get("static", False):
                continue
            value = getattr(self, field.name)
            if field.name.endswith("_ns"):
                changes[field.name] = jnp.asarray(value, jnp.int64)
            elif isinstance(value, bool | np.bool_):
                changes[field.name] = jnp.asarray(value)
            elif _DEFAULT_IS_WHOLE[field.name]:
                changes[field.name] = jnp.asarray(value, jnp.int32)
            else:
                changes[field.name] = jnp.asarray(value, dtype)
        return dataclasses.replace(self, **changes)


_DEFAULT_IS_WHOLE: dict[str, bool] = {
    field.name: isinstance(field.default, int) and not isinstance(field.default, bool)
    for field in dataclasses.fields(PredictorConfig)
}

TRACED_FIELDS: tuple[str, ...] = tuple(
    field.name for field in dataclasses.fields(PredictorConfig) if not field.metadata.get("static", False)
)
STRUCTURAL_FIELDS: tuple[str, ...] = tuple(
    field.name for field in dataclasses.fields(PredictorConfig) if field.metadata.get("static", False)
)


def nearest_dgm_tier(width: int, depth: int) -> int:
    """Index of the shipped tier whose capacity width * depth is nearest in ratio; ties go to the smaller network."""
    capacity = float(width * depth)
    distances = [abs(np.log(capacity / (tier_width * tier_depth))) for tier_width, tier_depth in DGM_TIERS]
    return int(np.argmin(distances))
