"""The sections that describe the predictor: [core], [orchestration], [kernels] and [validation]."""

import dataclasses
from typing import Annotated, Literal

from ._key import Reader, structural, traced


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Core:
    """Limits that hold for every symbol before anything is computed."""

    staleness_ttl_ns: Annotated[
        int,
        traced(
            "Age of a symbol's last accepted tick above which its forecasts count as stale. It is a floor: a symbol "
            "whose own cadence is slower is allowed staleness_cadence_factor of its periods.",
            "ns",
            1_000_000,
            86_400_000_000_000,
        ),
    ] = 500_000_000


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Orchestration:
    """How the four experts are weighed, when a regime has changed, and which ticks are let in."""

    # fusion and weights
    learning_rate: Annotated[
        float,
        traced(
            "Base of the JKO step, the fraction of the way from the current to the target weights taken per tick; the "
            "volatility regime scales it.",
            "1/tick",
            1e-5,
            1.0,
        ),
    ] = 0.05
    sinkhorn_epsilon_min: Annotated[
        float,
        traced("Floor of the entropic regularisation epsilon_t, relative to the scale of the cost.", "", 1e-4, 1.0),
    ] = 0.01
    sinkhorn_epsilon_0: Annotated[
        float, traced("Entropic regularisation epsilon_t of a series without volatility.", "", 1e-3, 2.0)
    ] = 0.1
    sinkhorn_alpha: Annotated[
        float,
        traced(
            "Coupling of epsilon_t to volatility: epsilon_0 (1 + alpha sqrt(ema_variance)).",
            "",
            0.0,
            1.0,
            above_low=True,
        ),
    ] = 0.5
    sinkhorn_max_iter: Annotated[int, traced("Most Sinkhorn iterations per tick.", "iterations", 10, 500)] = 200
    entropy_window: Annotated[
        int,
        traced(
            "Base of the window over which low entropy is counted; the volatility regime scales it.", "ticks", 10, 500
        ),
    ] = 100
    entropy_threshold: Annotated[
        float,
        traced(
            "Base of the share of the baseline entropy below which the Deep Galerkin solution counts as collapsed.",
            "",
            0.05,
            1.0,
        ),
    ] = 0.8
    entropy_gamma_min: Annotated[
        float, traced("Factor on entropy_threshold when volatility is high.", "", 0.1, 1.0)
    ] = 0.5
    entropy_gamma_max: Annotated[float, traced("Factor on entropy_threshold when volatility is low.", "", 0.1, 1.0)] = (
        1.0
    )
    entropy_gamma_default: Annotated[
        float, traced("Factor on entropy_threshold when volatility is ordinary.", "", 0.1, 1.0)
    ] = 0.8
    mode_collapse_min_threshold: Annotated[
        int, traced("Fewest ticks of low entropy before mode collapse is reported.", "ticks", 1, 1000)
    ] = 10
    mode_collapse_window_ratio: Annotated[
        float,
        traced("Ticks of low entropy before mode collapse is reported, as a share of entropy_window.", "", 0.0, 1.0),
    ] = 0.1
    volatility_alpha: Annotated[
        float, traced("Weight of the newest squared innovation in ema_variance.", "", 1e-3, 1.0)
    ] = 0.1
    confidence_power: Annotated[
        float,
        traced(
            "Power of an expert's precision in its target weight: 0 weighs all alike, larger prefers the best.",
            "",
            0.0,
            128.0,
        ),
    ] = 16.0
    anchor_threshold: Annotated[
        float,
        traced(
            "Evidence an expert must show over persistence before it departs from it, in standard errors.",
            "",
            0.0,
            10.0,
        ),
    ] = 1.0
    anchor_memory_ticks: Annotated[
        float, traced("Memory of the evidence that an expert beats persistence.", "ticks", 10.0, 100_000.0)
    ] = 300.0
    jko_domain_length: Annotated[
        float, traced("Length L of the domain in the relaxation time L^2 / sigma^2 of the JKO flow.", "", 0.01, 100.0)
    ] = 1.0
    jko_window_factor: Annotated[float, traced("Relaxation times in the adaptive entropy window.", "", 0.1, 100.0)] = (
        5.0
    )
    jko_window_min: Annotated[int, traced("Shortest adaptive entropy window.", "ticks", 1, 1000)] = 10
    jko_window_max: Annotated[int, traced("Longest adaptive entropy window.", "ticks", 1, 10_000)] = 500
    jko_rate_safety: Annotated[float, traced("Share of the largest stable JKO step that is taken.", "", 0.01, 1.0)] = (
        0.8
    )
    fusion_method: Annotated[
        str,
        structural(
            "The weight update: the true proximal step of the JKO scheme, in which the transport plan decides the "
            "move, or a plain step of learning_rate towards the target.",
            choices=("jko_proximal", "jko"),
        ),
    ] = "jko_proximal"

    # circuit breaker
    holder_threshold: Annotated[
        float, traced("Hölder exponent below which, with certainty, the circuit breaks.", "", 0.0, 1.0, above_low=True)
    ] = 0.4
    holder_hysteresis: Annotated[
        float,
        traced("How far the Hölder exponent must rise above its threshold to close the circuit again.", "", 0.0, 0.5),
    ] = 0.05
    huber_delta: Annotated[
        float, traced("Where the Huber loss of emergency mode turns linear, in standardised units.", "sd", 0.01, 10.0)
    ] = 1.0
    jump_exponent_threshold: Annotated[
        float, traced("Pointwise Hölder exponent below which a maxima line marks a jump.", "", -1.0, 1.0)
    ] = 0.25

    # change detection
    alarm_mean_ticks_between_false: Annotated[
        int,
        traced(
            "Mean number of ticks between false alarms that the operator accepts per symbol; sets the thresholds while "
            'cusum_h is "auto".',
            "ticks",
            100,
            1_000_000,
            reader=Reader.PIPELINE,
        ),
    ] = 50_000
    cusum_h: Annotated[
        float | Literal["auto"],
        traced(
            "Base threshold of the cumulative sums, raised by kurtosis. "
            '"auto" works it out by simulation from alarm_mean_ticks_between_false.',
            "sd",
            2.0,
            40.0,
            auto=True,
        ),
    ] = "auto"
    cusum_k: Annotated[
        float, traced("Allowance of the cumulative sums: drifts below it are ignored.", "sd", 0.05, 2.0)
    ] = 0.5
    grace_period_steps: Annotated[
        int, traced("Accepted ticks after an alarm in which no further alarm is raised.", "ticks", 0, 1000)
    ] = 20
    residual_window_size: Annotated[int, traced("Innovations from which the kurtosis is taken.", "ticks", 20, 256)] = (
        252
    )
    reference_fit_ticks: Annotated[
        int,
        traced(
            "Accepted ticks after a regime's start on which the detector's reference model is fitted.",
            "ticks",
            40,
            500,
        ),
    ] = 180
    alarm_jump_sigmas: Annotated[
        float,
        traced(
            "Jump that alarms at once while the reference model is not yet fitted, and, if twice as far as anything "
            "lately, breaks the circuit for the very forecast made on it.",
            "sd",
            3.0,
            50.0,
        ),
    ] = 6.0
    scale_clip: Annotated[
        float, traced("Where innovations are clipped in the statistics that watch the scale.", "sd", 2.0, 20.0)
    ] = 4.0
    cusum_slow_ratio: Annotated[
        float, traced("Threshold of the slow level statistic, relative to cusum_h.", "", 0.1, 10.0)
    ] = 2.1598
    scale_up_ratio: Annotated[float, traced("Threshold for a doubled scale, relative to cusum_h.", "", 0.1, 10.0)] = (
        0.78662
    )
    scale_down_ratio: Annotated[float, traced("Threshold for a halved scale, relative to cusum_h.", "", 0.1, 10.0)] = (
        0.77881
    )
    dynamics_ratio: Annotated[float, traced("Threshold for changed dynamics, relative to cusum_h.", "", 0.1, 10.0)] = (
        2.18148
    )

    # ingestion gate
    sigma_bound: Annotated[
        float, traced("Distance from the robust local level above which a tick is an outlier.", "sd", 3.0, 1000.0)
    ] = 20.0
    sigma_val: Annotated[
        float, traced("Factor on the robust local scale that sigma_bound multiplies.", "", 0.01, 100.0)
    ] = 1.0
    outlier_max_consecutive: Annotated[
        int,
        traced("Most outliers in a row that are refused; agreeing ones become the new level sooner.", "ticks", 1, 100),
    ] = 20
    outlier_cluster_sigmas: Annotated[
        float, traced("How close successive outliers must lie to agree on a new level.", "sd", 0.1, 1000.0)
    ] = 8.0
    max_future_drift_ns: Annotated[
        int,
        traced("How far a tick's time may lie after its record's.", "ns", 1, 86_400_000_000_000),
    ] = 1_000_000_000
    max_past_drift_ns: Annotated[
        int,
        traced("How far a tick's time may lie before its record's.", "ns", 1, 3_153_600_000_000_000_000),
    ] = 86_400_000_000_000
    staleness_cadence_factor: Annotated[
        float, traced("Typical intervals of a symbol without a tick after which it is stale.", "intervals", 1.0, 1000.0)
    ] = 5.0
    inference_recovery_hysteresis: Annotated[
        float,
        traced(
            "Share of the staleness limit below which a stale symbol counts as fresh again.",
            "",
            0.0,
            1.0,
            above_low=True,
        ),
    ] = 0.8

    # standardisation and calibration
    scale_memory_ticks: Annotated[
        float, traced("Memory of the robust scale of increments.", "ticks", 10.0, 100_000.0)
    ] = 200.0
    innovation_clip: Annotated[
        float, traced("Where standardised innovations are clipped before anything learns from them.", "sd", 2.0, 50.0)
    ] = 6.0
    calibration_rate: Annotated[
        float, traced("Step of the online conformal quantiles, relative to the forecast's scale.", "1/tick", 1e-4, 0.5)
    ] = 0.02


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Kernels:
    """The four experts and the estimator of regularity."""

    # common
    numerical_epsilon: Annotated[float, traced("Guard in denominators, in standardised units.", "", 1e-14, 1e-4)] = (
        1e-10
    )
    warmup_signal_length: Annotated[
        int, traced("Accepted ticks of a symbol before its forecasts count as warmed up.", "ticks", 1, 1024)
    ] = 100
    refresh_interval: Annotated[
        int,
        structural("Accepted ticks of a symbol between two runs of its heavy, rare work.", "ticks", 1, 10_000),
    ] = 50
    besov_nyquist_interval_ns: Annotated[
        int,
        traced(
            "Sampling interval above which the series counts as sparsely sampled for the regularity estimate.",
            "ns",
            1,
            86_400_000_000_000,
        ),
    ] = 100_000_000

    # A: projection on the past in a reproducing kernel Hilbert space
    kernel_ridge_lambda: Annotated[
        float, traced("Ridge of the recursive regressions, relative to kernel_ridge_reference.", "", 1e-10, 1e-1)
    ] = 1e-6
    kernel_ridge_reference: Annotated[
        float, traced("Prior precision of a coefficient that a ridge of one stands for.", "", 1.0, 1e12)
    ] = 1e6
    kernel_a_bandwidth: Annotated[
        float, traced("Width of the Gaussian kernel, relative to the spread of the delay vectors.", "", 0.01, 100.0)
    ] = 1.0
    kernel_a_min_variance: Annotated[
        float, traced("Floor of the predictive variance, in standardised units.", "", 1e-14, 1.0)
    ] = 1e-10
    kernel_a_memory_ticks: Annotated[
        float, traced("Memory of the recursive ridge of kernel A.", "ticks", 20.0, 1_000_000.0)
    ] = 1000.0
    season_min_correlation: Annotated[
        float, traced("Autocorrelation that a lag must reach to be taken for a season.", "", 0.0, 1.0)
    ] = 0.25
    kernel_a_embedding_dim: Annotated[
        int, structural("Delays in the long embedding of the Gaussian part: 0, then from 1 to 16.", "lags", 1, 16)
    ] = 5
    kernel_a_lags: Annotated[int, structural("Lags of the linear part.", "lags", 1, 64)] = 6
    kernel_a_features: Annotated[
        int, structural("Random Fourier features of the Gaussian part.", "features", 2, 256)
    ] = 32

    # B: Deep Galerkin solution of the backward equation
    dgm_width_size: Annotated[
        int,
        structural(
            "Width of the network; with dgm_depth it resolves to the shipped network of nearest capacity.",
            "units",
            32,
            256,
            power_of_two=True,
        ),
    ] = 64
    dgm_depth: Annotated[int, structural("Hidden layers of the network.", "layers", 2, 8)] = 4
    dgm_entropy_num_bins: Annotated[
        int, traced("Bins of the histogram from which the solution's entropy is taken.", "bins", 8, 128)
    ] = 50
    dgm_scaling_trigger: Annotated[
        float, traced("Entropy ratio above which a larger network is asked for.", "", 1.0, 100.0)
    ] = 2.0
    dgm_scaling_beta: Annotated[
        float, traced("Exponent of the capacity law: parameters grow as the entropy ratio to this power.", "", 0.0, 2.0)
    ] = 0.7
    dgm_scaling_cap: Annotated[
        float, traced("Most that the network's capacity may grow over the configured one.", "", 1.0, 16.0)
    ] = 4.0
    kernel_b_horizon: Annotated[float, traced("Horizon of the backward equation.", "ticks", 0.01, 10.0)] = 1.0
    kernel_b_drift_uncertainty: Annotated[
        float,
        traced("Bound on the drift's error in the Hamilton-Jacobi-Bellman equation.", "standard errors", 0.0, 5.0),
    ] = 0.0
    kernel_b_memory_ticks: Annotated[
        float, traced("Memory of the drift and diffusion that kernel B estimates.", "ticks", 20.0, 1_000_000.0)
    ] = 1000.0

    # C: Itô-Lévy stochastic differential equation
    stiffness_low: Annotated[
        float, traced("Base of the stiffness below which the integration is explicit.", "", 1.0, 10_000.0)
    ] = 100.0
    stiffness_high: Annotated[
        float, traced("Base of the stiffness above which the integration is implicit.", "", 10.0, 100_000.0)
    ] = 1000.0
    stiffness_c1: Annotated[
        float, traced("Factor C1 of the lower threshold's growth with the Hölder exponent.", "", 0.0, 10_000.0)
    ] = 25.0
    stiffness_c2: Annotated[
        float, traced("Factor C2 of the upper threshold's growth with the Hölder exponent.", "", 0.0, 100_000.0)
    ] = 250.0
    stiffness_scale: Annotated[
        float,
        traced(
            "Factor from the drift's slope per tick to stiffness; 50 puts the explicit limit at 100.",
            "ticks",
            0.01,
            10_000.0,
        ),
    ] = 50.0
    sde_dt: Annotated[float, traced("Longest step of the integration.", "ticks", 1e-4, 1.0)] = 0.01
    sde_numel_integrations: Annotated[int, traced("Most steps of one integration.", "steps", 10, 1000)] = 100
    sde_diffusion_sigma: Annotated[
        float, traced("Prior of the diffusion, on the standardised series.", "sd/sqrt(tick)", 1e-3, 10.0)
    ] = 0.2
    sde_prior_ticks: Annotated[
        float, traced("Ticks that the priors of the coefficients are worth.", "ticks", 0.1, 10_000.0)
    ] = 20.0
    kernel_c_horizon: Annotated[
        float, traced("Horizon of the stochastic differential equation.", "ticks", 0.01, 10.0)
    ] = 1.0
    kernel_c_alpha: Annotated[
        float, traced("Prior of the tail index; 2 is Gaussian.", "", 0.0, 2.0, above_low=True)
    ] = 1.8
    kernel_c_alpha_gaussian_threshold: Annotated[
        float, traced("Stable index from which the increments count as Gaussian.", "", 1.0, 2.0)
    ] = 1.99
    kernel_c_memory_ticks: Annotated[
        float, traced("Memory of the coefficients that kernel C estimates.", "ticks", 20.0, 1_000_000.0)
    ] = 500.0

    # D: signature
    log_sig_depth: Annotated[int, structural("Depth at which the log-signature is cut off.", "levels", 1, 5)] = 3
    signature_window: Annotated[
        int, structural("Increments of the path whose signature is taken.", "ticks", 2, 128)
    ] = 16
    kernel_d_memory_ticks: Annotated[
        float, traced("Memory of the recursive ridge of kernel D.", "ticks", 20.0, 1_000_000.0)
    ] = 1000.0

    # regularity
    wtmm_buffer_size: Annotated[
        int,
        traced(
            "Values from which the wavelet transform's maxima lines are taken.", "ticks", 64, 512, power_of_two=True
        ),
    ] = 128
    besov_cone_c: Annotated[
        float, traced("Opening of the cone in which maxima are linked from scale to scale.", "", 0.5, 5.0)
    ] = 1.5


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Validation:
    """Bounds that hold for what the predictor says."""

    validation_simplex_atol: Annotated[
        float,
        traced("How far the weights' sum may be from one, and the tolerance of Sinkhorn's marginals.", "", 1e-12, 1e-2),
    ] = 1e-6
    validation_holder_exponent_min: Annotated[
        float, traced("Least Hölder exponent that is reported.", "", -1.0, 1.0)
    ] = 0.0
    validation_holder_exponent_max: Annotated[
        float, traced("Greatest Hölder exponent that is reported.", "", 0.0, 2.0)
    ] = 1.0
