"""The whole state of one symbol: everything the next step needs, in fixed shapes.

Two parts. ``gate`` may change on every tick; ``model`` changes on accepted ticks only, and a refused one leaves it
bit-identical. The specification's field names are offered as properties.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from . import _anchor, _calibration, _change_point, _circuit_breaker, _gate, _standardize
from ._anchor import AnchorState, ScoreState
from ._calibration import CalibrationState
from ._change_point import ChangePointState
from ._circuit_breaker import BreakerState
from ._gate import GateState
from ._kernels import deep_galerkin, levy_sde, rkhs, signature
from ._parameters import PredictorConfig
from ._regularity import RegularityResult
from ._standardize import HistoryState, ScaleState
from ._types import NUM_KERNELS, Count, Flag, Scalar, Weights

# Raw forecasts that are anchored one by one: kernel A's two parts, then B, C and D.
NUM_FORECASTERS = 5


class ModelState(eqx.Module):
    """Learners, detector, weights, calibration and the stored forecast."""

    scale: ScaleState
    history: HistoryState
    change_point: ChangePointState
    calibration: CalibrationState
    anchor: AnchorState
    score: ScoreState
    breaker: BreakerState
    regularity: RegularityResult
    kernels: tuple[rkhs.RkhsState, deep_galerkin.DeepGalerkinState, levy_sde.LevyState, signature.SignatureState]
    rho: Weights  # behind the stored forecast
    resting_rho: Weights  # the same but for an emergency, which ends with these
    ema_variance: Scalar
    slow_error: Scalar
    mode_collapse_consecutive_steps: Count
    forecast: Scalar  # of the next value, units of the symbol
    raw_increments: Float[Array, " forecasters"]  # the experts' raw forecasts of the next increment, in scales
    kernel_increments: Weights  # the same, anchored and summed by kernel
    forecast_scale: Scalar  # what one scale was worth when they were made
    last_value: Scalar
    last_update_ns: Count
    sequence: Count
    residual_buffer: Float[Array, " recent"]  # last forecast errors in units of their scale
    signal_buffer: Float[Array, " recent"]  # last accepted values
    regime_changed: Flag
    emergency_mode: Flag
    refresh_due: Flag
    rng_counter: Count


class InternalState(eqx.Module):
    """State of one symbol; batched states have a leading axis on every leaf."""

    model: ModelState
    gate: GateState

    # The specification's names.
    signal_history = property(lambda self: self.model.signal_buffer)
    residual_buffer = property(lambda self: self.model.residual_buffer)
    residual_window = property(lambda self: self.model.change_point.residual_window)
    rho = property(lambda self: self.model.rho)
    cusum_g_plus = property(lambda self: self.model.change_point.statistics[..., 0])
    cusum_g_minus = property(lambda self: self.model.change_point.statistics[..., 1])
    grace_counter = property(lambda self: self.model.change_point.grace_counter)
    adaptive_h_t = property(lambda self: self.model.change_point.adaptive_h_t)
    ema_variance = property(lambda self: self.model.ema_variance)
    kurtosis = property(lambda self: self.model.change_point.kurtosis)
    holder_exponent = property(lambda self: self.model.regularity.holder_exponent)
    dgm_entropy = property(lambda self: self.model.kernels[1].entropy)
    baseline_entropy = property(lambda self: self.model.kernels[1].baseline_entropy)
    architecture_scaling_events = property(lambda self: self.model.kernels[1].architecture_scaling_events)
    solver_explicit_count = property(lambda self: self.model.kernels[2].solver_explicit_count)
    solver_implicit_count = property(lambda self: self.model.kernels[2].solver_implicit_count)
    mode_collapse_consecutive_steps = property(lambda self: self.model.mode_collapse_consecutive_steps)
    degraded_mode = property(lambda self: self.gate.degraded_mode)
    degraded_mode_recovery_counter = property(lambda self: self.gate.degraded_mode_recovery_counter)
    emergency_mode = property(lambda self: self.model.emergency_mode)
    regime_changed = property(lambda self: self.model.regime_changed)
    last_update_ns = property(lambda self: self.model.last_update_ns)
    rng_key = property(lambda self: jax.random.key_data(jax.random.key(0)).at[1].set(self.model.rng_counter))


_RECENT = 32


def initialize_state(config: PredictorConfig, dtype: Any = None, seed: int = 0) -> InternalState:
    """A symbol that has seen nothing.

    ``dtype`` is the arithmetic (float32 or float64; that of ``config`` when its fields are arrays, else float64),
    ``seed`` starts the symbol's random counter.
    """
    if dtype is None:
        dtype = getattr(config.learning_rate, "dtype", jnp.float64)
    dtype = jnp.dtype(dtype)
    config = config.as_arrays(dtype)
    zero = jnp.asarray(0.0, dtype)
    none = jnp.asarray(0, jnp.int32)
    no = jnp.asarray(False)
    model = ModelState(
        scale=_standardize.init_scale(dtype),
        history=_standardize.init_history(dtype),
        change_point=_change_point.init(config, dtype),
        calibration=_calibration.init(dtype),
        anchor=_anchor.init(NUM_FORECASTERS, dtype),
        score=_anchor.init_score(dtype),
        breaker=_circuit_breaker.init(dtype),
        regularity=RegularityResult.unknown(dtype),
        kernels=(
            rkhs.init(config, dtype),
            deep_galerkin.init(config, dtype),
            levy_sde.init(config, dtype),
            signature.init(config, dtype),
        ),
        rho=jnp.full((NUM_KERNELS,), 1.0 / NUM_KERNELS, dtype),
        resting_rho=jnp.full((NUM_KERNELS,), 1.0 / NUM_KERNELS, dtype),
        ema_variance=jnp.asarray(1.0, dtype),
        slow_error=zero,
        mode_collapse_consecutive_steps=none,
        forecast=zero,
        raw_increments=jnp.zeros((NUM_FORECASTERS,), dtype),
        kernel_increments=jnp.zeros((NUM_KERNELS,), dtype),
        forecast_scale=jnp.asarray(1.0, dtype),
        last_value=zero,
        last_update_ns=jnp.asarray(0, jnp.int64),
        sequence=none,
        residual_buffer=jnp.zeros((_RECENT,), dtype),
        signal_buffer=jnp.zeros((_RECENT,), dtype),
        regime_changed=no,
        emergency_mode=no,
        refresh_due=no,
        rng_counter=jnp.asarray(seed, jnp.int32),
    )
    return InternalState(model=model, gate=_gate.init(dtype))


def initialize_batched_states(num: int, config: PredictorConfig, dtype: Any = None, seed: int = 0) -> InternalState:
    """``num`` symbols that have seen nothing: :func:`initialize_state` with a leading axis."""
    single = initialize_state(config, dtype, seed)
    return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (num, *leaf.shape)).copy(), single)
