"""[meta_optimization]: what the tuner searches and how it validates."""

import dataclasses
from typing import Annotated

from ._daemon_sections import Io
from ._key import Key, KeySpec, ParameterClass, Reader, locked, secret, specs_of
from ._predictor_sections import Kernels, Orchestration

_TARGETS: dict[str, KeySpec] = {
    spec.name: spec
    for spec in (*specs_of("orchestration", Orchestration), *specs_of("kernels", Kernels), *specs_of("io", Io))
}


def _end(of: str, which: str) -> Key:
    """One end of the range in which the tuner searches ``of``; it may be any value that ``of`` may have."""
    target = _TARGETS[of]
    return Key(
        meaning=f"{which} {target.section}.{of} that the tuner tries.",
        parameter_class=ParameterClass.LOCKED,
        reader=Reader.TUNER,
        unit=target.key.unit,
        low=target.key.low,
        high=target.key.high,
        above_low=target.key.above_low,
        power_of_two=target.key.power_of_two,
    )


def _least(of: str) -> Key:
    return _end(of, "Least")


def _greatest(of: str) -> Key:
    return _end(of, "Greatest")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class MetaOptimization:
    """The tuner's search space and budget."""

    # structure and estimation
    log_sig_depth_min: Annotated[int, _least("log_sig_depth")] = 2
    log_sig_depth_max: Annotated[int, _greatest("log_sig_depth")] = 5
    wtmm_buffer_size_min: Annotated[int, _least("wtmm_buffer_size")] = 64
    wtmm_buffer_size_max: Annotated[int, _greatest("wtmm_buffer_size")] = 512
    besov_cone_c_min: Annotated[float, _least("besov_cone_c")] = 1.0
    besov_cone_c_max: Annotated[float, _greatest("besov_cone_c")] = 3.0
    dgm_width_size_min: Annotated[int, _least("dgm_width_size")] = 32
    dgm_width_size_max: Annotated[int, _greatest("dgm_width_size")] = 256
    dgm_depth_min: Annotated[int, _least("dgm_depth")] = 2
    dgm_depth_max: Annotated[int, _greatest("dgm_depth")] = 6
    dgm_entropy_num_bins_min: Annotated[int, _least("dgm_entropy_num_bins")] = 20
    dgm_entropy_num_bins_max: Annotated[int, _greatest("dgm_entropy_num_bins")] = 100
    stiffness_low_min: Annotated[float, _least("stiffness_low")] = 50.0
    stiffness_low_max: Annotated[float, _greatest("stiffness_low")] = 500.0
    stiffness_high_min: Annotated[float, _least("stiffness_high")] = 500.0
    stiffness_high_max: Annotated[float, _greatest("stiffness_high")] = 5000.0
    sde_dt_min: Annotated[float, _least("sde_dt")] = 0.001
    sde_dt_max: Annotated[float, _greatest("sde_dt")] = 0.1
    sde_numel_integrations_min: Annotated[int, _least("sde_numel_integrations")] = 50
    sde_numel_integrations_max: Annotated[int, _greatest("sde_numel_integrations")] = 200
    sde_diffusion_sigma_min: Annotated[float, _least("sde_diffusion_sigma")] = 0.05
    sde_diffusion_sigma_max: Annotated[float, _greatest("sde_diffusion_sigma")] = 0.5
    kernel_ridge_lambda_min: Annotated[float, _least("kernel_ridge_lambda")] = 1e-8
    kernel_ridge_lambda_max: Annotated[float, _greatest("kernel_ridge_lambda")] = 1e-3

    # sensitivity
    cusum_k_min: Annotated[float, _least("cusum_k")] = 0.1
    cusum_k_max: Annotated[float, _greatest("cusum_k")] = 1.0
    cusum_h_min: Annotated[float, _least("cusum_h")] = 2.0
    cusum_h_max: Annotated[float, _greatest("cusum_h")] = 40.0
    grace_period_steps_min: Annotated[int, _least("grace_period_steps")] = 5
    grace_period_steps_max: Annotated[int, _greatest("grace_period_steps")] = 100
    sinkhorn_alpha_min: Annotated[float, _least("sinkhorn_alpha")] = 0.1
    sinkhorn_alpha_max: Annotated[float, _greatest("sinkhorn_alpha")] = 1.0
    sinkhorn_epsilon_min_min: Annotated[float, _least("sinkhorn_epsilon_min")] = 0.001
    sinkhorn_epsilon_min_max: Annotated[float, _greatest("sinkhorn_epsilon_min")] = 0.1
    sinkhorn_epsilon_0_min: Annotated[float, _least("sinkhorn_epsilon_0")] = 0.05
    sinkhorn_epsilon_0_max: Annotated[float, _greatest("sinkhorn_epsilon_0")] = 0.5
    volatility_alpha_min: Annotated[float, _least("volatility_alpha")] = 0.05
    volatility_alpha_max: Annotated[float, _greatest("volatility_alpha")] = 0.3
    learning_rate_min: Annotated[float, _least("learning_rate")] = 0.001
    learning_rate_max: Annotated[float, _greatest("learning_rate")] = 0.1
    entropy_window_min: Annotated[int, _least("entropy_window")] = 50
    entropy_window_max: Annotated[int, _greatest("entropy_window")] = 500
    entropy_threshold_min: Annotated[float, _least("entropy_threshold")] = 0.5
    entropy_threshold_max: Annotated[float, _greatest("entropy_threshold")] = 0.95
    holder_threshold_min: Annotated[float, _least("holder_threshold")] = 0.2
    holder_threshold_max: Annotated[float, _greatest("holder_threshold")] = 0.65

    # beside the specification's 23
    kernel_a_memory_ticks_min: Annotated[float, _least("kernel_a_memory_ticks")] = 125.0
    kernel_a_memory_ticks_max: Annotated[float, _greatest("kernel_a_memory_ticks")] = 8000.0
    kernel_a_bandwidth_min: Annotated[float, _least("kernel_a_bandwidth")] = 0.125
    kernel_a_bandwidth_max: Annotated[float, _greatest("kernel_a_bandwidth")] = 8.0
    anchor_threshold_min: Annotated[float, _least("anchor_threshold")] = 0.125
    anchor_threshold_max: Annotated[float, _greatest("anchor_threshold")] = 8.0
    anchor_memory_ticks_min: Annotated[float, _least("anchor_memory_ticks")] = 37.5
    anchor_memory_ticks_max: Annotated[float, _greatest("anchor_memory_ticks")] = 2400.0
    confidence_power_min: Annotated[float, _least("confidence_power")] = 2.0
    confidence_power_max: Annotated[float, _greatest("confidence_power")] = 128.0
    calibration_rate_min: Annotated[float, _least("calibration_rate")] = 0.0025
    calibration_rate_max: Annotated[float, _greatest("calibration_rate")] = 0.16
    scale_memory_ticks_min: Annotated[float, _least("scale_memory_ticks")] = 25.0
    scale_memory_ticks_max: Annotated[float, _greatest("scale_memory_ticks")] = 1600.0

    # budget
    default_tier: Annotated[
        str,
        locked(
            "What a campaign searches unless asked otherwise: fast (6 parameters), sensitive (the 9 that move "
            "forecasts most), deep (the specification's 23), wide (30).",
            reader=Reader.TUNER,
            choices=("fast", "sensitive", "deep", "wide"),
        ),
    ] = "sensitive"
    n_trials: Annotated[
        int, locked("Trials of a fast or sensitive campaign.", "trials", 1, 100_000, reader=Reader.TUNER)
    ] = 50
    n_startup_trials: Annotated[
        int, locked("Random trials before the sampler models anything.", "trials", 1, 100_000, reader=Reader.TUNER)
    ] = 10
    max_deep_tuning_iterations: Annotated[
        int, locked("Trials of a deep or wide campaign.", "trials", 1, 1_000_000, reader=Reader.TUNER)
    ] = 500
    multivariate: Annotated[bool, locked("Whether the sampler models the parameters jointly.", reader=Reader.TUNER)] = (
        True
    )
    enable_deep_tuning: Annotated[
        bool,
        locked("Whether default_tier is deep, whatever it says.", reader=Reader.TUNER),
    ] = False
    batch_size: Annotated[
        int,
        locked(
            "Trials that are drawn before any of them is evaluated; those of one structure are evaluated together.",
            "trials",
            1,
            1000,
            reader=Reader.TUNER,
        ),
    ] = 8
    max_structures: Annotated[
        int,
        locked(
            "Most structures (combinations of structural parameters) that one campaign visits; each is compiled once.",
            "structures",
            1,
            100,
            reader=Reader.TUNER,
        ),
    ] = 8
    pruning: Annotated[
        bool,
        locked(
            "Whether a trial is given up when, after a fold, its mean is worse than the median of those before it.",
            reader=Reader.TUNER,
        ),
    ] = True
    patience_trials: Annotated[
        int,
        locked(
            "Trials without an improvement of min_improvement after which a campaign ends; 0: never.",
            "trials",
            0,
            1_000_000,
            reader=Reader.TUNER,
        ),
    ] = 50
    min_improvement: Annotated[
        float,
        locked(
            "Least fall of the best value, on which the settings at the start score 1, that counts as one.",
            "",
            0.0,
            1.0,
            reader=Reader.TUNER,
        ),
    ] = 1e-4
    time_limit_s: Annotated[
        float,
        locked(
            "Time after which a run of a campaign begins no further batch; 0: no limit.",
            "s",
            0.0,
            31_536_000.0,
            reader=Reader.TUNER,
        ),
    ] = 604_800.0
    seed: Annotated[
        int,
        locked("What the draws depend on, besides the trials before them.", "", 0, 2**63 - 1, reader=Reader.TUNER),
    ] = 42
    checkpoint_path: Annotated[str, locked("Directory of the campaigns.", "path", reader=Reader.TUNER)] = "io/tuning"
    storage_url: Annotated[
        str,
        secret(
            "Database of the campaigns, as an SQLAlchemy URL, so that machines may share one; empty: files in "
            "checkpoint_path.",
            reader=Reader.TUNER,
        ),
    ] = ""

    # walk-forward validation
    train_ratio: Annotated[
        float, locked("Share of what the search sees that is only trained on.", "", 0.1, 0.95, reader=Reader.TUNER)
    ] = 0.7
    n_folds: Annotated[int, locked("Test blocks after it.", "folds", 1, 100, reader=Reader.TUNER)] = 5
    embargo_ticks: Annotated[
        int,
        locked(
            "Ticks before each test block that count neither as training nor as test.",
            "ticks",
            0,
            1_000_000,
            reader=Reader.TUNER,
        ),
    ] = 50

    # what counts as better
    holdout: Annotated[
        float,
        locked(
            "Share of the ticks, the newest ones, that the search does not see and its result is judged on.",
            "",
            0.05,
            0.5,
            reader=Reader.TUNER,
        ),
    ] = 0.25
    validation_folds: Annotated[
        int, locked("Test blocks that the holdout is cut into.", "folds", 1, 20, reader=Reader.TUNER)
    ] = 2
    min_gain: Annotated[
        float,
        locked(
            "Gain of score, relative to the settings in force, that a candidate must show on the holdout.",
            "",
            0.0,
            0.5,
            reader=Reader.TUNER,
        ),
    ] = 0.005
    min_standard_errors: Annotated[
        float,
        locked("How many times its standard error that gain must be.", "", 0.0, 10.0, reader=Reader.TUNER),
    ] = 0.5
