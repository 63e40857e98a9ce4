"""Keys of the specification that this daemon does not have, and what became of each.

The loader shows the text to whoever still sets the key; docs/errata/configuration.md lists them all.
"""

RETIRED: dict[str, str] = {
    # duplicates
    "epsilon": "superseded by orchestration.sinkhorn_epsilon_0",
    "kernel_d_depth": "the same number as kernels.log_sig_depth",
    "kernel_c_dt0": "the same number as kernels.sde_dt",
    "cusum_grace_period_steps": "the same number as orchestration.grace_period_steps",
    "cusum_grace_period_steps_min": "the same number as meta_optimization.grace_period_steps_min",
    "cusum_grace_period_steps_max": "the same number as meta_optimization.grace_period_steps_max",
    "telemetry_buffer_maxlen": "the same number as io.telemetry_buffer_capacity",
    "snapshot_integrity_hash_algorithm": "the same choice as io.snapshot_hash_algorithm",
    "jax_platforms": "superseded by compute.device",
    "jax_platform": "superseded by compute.device",
    "jax_default_dtype": "superseded by compute.precision",
    "float_precision": "superseded by compute.precision",
    "mutation_protocol_version": "covered by meta.schema_version",
    # constants that are estimated from the stream instead
    "kernel_b_r": "estimated online from the stream",
    "kernel_b_sigma": "estimated online from the stream",
    "kernel_c_mu": "estimated online from the stream",
    "kernel_c_beta": "estimated online from the stream",
    "kernel_d_alpha": "learnt online by the regression on the signature",
    "kernel_d_confidence_scale": "an expert's confidence is the precision of its running score",
    "kernel_d_confidence_base": "an expert's confidence is the precision of its running score",
    # fixed by how the thing is built
    "dgm_activation": "fixed: the shipped networks are trained with tanh",
    "kernel_b_spatial_samples": "one point suffices; the entropy's grid is kernels.dgm_entropy_num_bins",
    "kernel_b_spatial_range_factor": "the entropy's grid follows the local law at the regime's start",
    "sde_solver_type": "the stiffness picks explicit, mixed or implicit: kernels.stiffness_low and stiffness_high",
    "sde_brownian_tree_tol": "the integration is deterministic, there is no Brownian path",
    "sde_initial_dt_factor": "the first step is kernels.sde_dt",
    "sde_pid_rtol": "the step is fixed, kernels.sde_dt; there is no step size controller",
    "sde_pid_atol": "the step is fixed, kernels.sde_dt; there is no step size controller",
    "sde_pid_dtmin": "the number of steps is bounded by kernels.sde_numel_integrations",
    "sde_pid_dtmax": "the longest step is kernels.sde_dt",
    "base_min_signal_length": "the history is a fixed buffer; see kernels.warmup_signal_length",
    "signal_normalization_method": "fixed: every series is standardised online",
    "wtmm_buffer_size_step": "the tuner walks the powers of two, the only sizes that are valid",
    "dgm_width_size_step": "the tuner walks the powers of two, the only widths that are valid",
    # guards that are not negotiable
    "validation_finite_allow_nan": "fixed: a tick that is not finite is refused",
    "validation_finite_allow_inf": "fixed: a tick that is not finite is refused",
    "validation_alpha_stable_min": "the range of kernels.kernel_c_alpha",
    "validation_alpha_stable_max": "the range of kernels.kernel_c_alpha",
    "validation_alpha_stable_exclusive_bounds": "the range of kernels.kernel_c_alpha",
    "validation_beta_stable_min": "skew is estimated online from the stream",
    "validation_beta_stable_max": "skew is estimated online from the stream",
    "sanitize_replace_nan_value": "nothing is replaced silently: a tick that is not finite is refused",
    "sanitize_replace_inf_value": "nothing is replaced silently: a tick that is not finite is refused",
    "sanitize_clip_range": "nothing is clipped silently: see orchestration.sigma_bound",
    # kept out of configuration files
    "credentials_vault_path": "credentials come from the environment or mounted files, never from this file",
}

# Keys that stand under the specification's name with another default, range or meaning, and why.
CHANGED: dict[str, str] = {
    "orchestration.learning_rate": "A base that the adaptive JKO parameters multiply; the specification overwrites it "
    "at every step, so that it has no effect. Default 0.05 instead of 0.01.",
    "orchestration.entropy_window": "A base that the adaptive JKO parameters multiply, as above.",
    "orchestration.sinkhorn_epsilon_min": "Relative to the scale of the cost. In the specification's units epsilon_0 "
    "(1 + ...) is never below epsilon_0, so that the floor cannot bind.",
    "orchestration.entropy_threshold": "A share of the baseline entropy. In nats, as the specification has it, the "
    "number depends on how many bins there are.",
    "orchestration.cusum_h": 'Default "auto": worked out by simulation from alarm_mean_ticks_between_false. A fixed 5 '
    "gives several false alarms per 1,000 ticks on heavy tails. Range 2 to 40 instead of 2 to 10.",
    "orchestration.sigma_val": "A factor on the symbol's own robust scale, not a standard deviation in absolute units.",
    "orchestration.max_past_drift_ns": "Judged against the record's time, never against the wall clock, so that a "
    "replay repeats itself.",
    "kernels.kernel_ridge_lambda": "Times kernel_ridge_reference, so that its range acts on standardised data.",
    "kernels.kernel_a_bandwidth": "Relative to the spread of the delay vectors, default 1.0. At 0.1 on standardised "
    "vectors the Gram matrix is the identity and the forecast is the mean.",
    "kernels.stiffness_low": "A base that the Hölder exponent raises; the specification overwrites it at every step.",
    "kernels.stiffness_high": "A base that the Hölder exponent raises, as above.",
    "kernels.sde_diffusion_sigma": "A prior worth sde_prior_ticks ticks; the diffusion itself is estimated.",
    "kernels.kernel_c_alpha": "A prior; the tail index itself is estimated.",
    "kernels.dgm_width_size": "Resolves, with dgm_depth, to the shipped network of nearest capacity.",
    "kernels.dgm_depth": "Range 2 to 8 instead of 2 to 6: the shipped networks go that deep.",
    "kernels.log_sig_depth": "The depth that is used; the specification reads kernel_d_depth and ignores this one.",
    "kernels.kernel_b_horizon": "In ticks, as everything else in the predictor.",
    "io.frozen_signal_min_steps": "A minimum: on series that often repeat their value a run must also be improbable "
    "(frozen_false_alarm_probability).",
    "core.staleness_ttl_ns": "A floor below the symbol's own cadence (orchestration.staleness_cadence_factor). Half a "
    "second for all would make every slower feed stale for ever. Traced: it changes nothing but a comparison.",
    "io.snapshot_compression": "Without brotli, which the standard library does not have.",
    "io.snapshot_format": "Without protobuf, which the specification names and does not implement.",
    "io.snapshot_hash_algorithm": "Without crc32c, which finds accidents only.",
    "meta_optimization.cusum_h_max": "40 instead of 10, with the range of cusum_h.",
}
