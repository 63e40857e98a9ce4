r"""Kernel C: an Ito-Levy equation whose coefficients come from the stream.

The standardised level obeys :math:`dX = (a + bX)\,dt + \sigma\,dW + dJ`, the unit of time being one tick. Online:

* drift: truncated least squares, that is recursive ridge regression of the increment on the level over the ticks
  without a jump (Gloter, Loukianova & Mai 2018), prior "no drift"; the slope s of one tick gives
  :math:`b = \log(1 + s)`;
* volatility: threshold bipower variation of the residuals (Barndorff-Nielsen & Shephard 2004; Corsi, Pirino & Reno
  2010), prior ``sde_diffusion_sigma``;
* jumps: residuals beyond the universal threshold :math:`\sigma\sqrt{2\log memory}` (Mancini 2009);
* tail index: McCulloch's ratio of two quantiles of the absolute residual (McCulloch 1986), tracked online.

:func:`refresh` integrates the equations of the conditional mean and variance with diffrax, explicitly, implicitly or as
a mixture by stiffness. Both are linear, so their responses to a unit source determine the whole forecast; what is kept
is the ratio of each response to the one the regression implies, and :func:`predict` applies it to the coefficients of
the present tick. docs/numerics/levy_sde.md derives all this and says where the specification is departed from.
"""

import math
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
from jaxtyping import Array, Float

from .. import _recursive_ridge as recursive_ridge
from .. import _stable as stable
from .._adaptive import compute_adaptive_stiffness_thresholds
from .._parameters import PredictorConfig
from .._results import KernelOutput
from .._types import Count, Scalar
from ._interface import KernelObservation, RefreshContext

EXPLICIT, MIXED, IMPLICIT = 0, 1, 2

# The level that is left after one tick is never taken to be less than a rounding error (float64's, whatever the dtype),
# so that the rate of mean reversion stays at or above log(2**-52) = -36 per tick.
_SMALLEST_PERSISTENCE = 2.0**-52
_MAX_STEPS = 512
# Optimal gains, 1 / density of log|z|, for tracking the logarithms of the 50 % and 90 % quantiles of a Gaussian's |z|.
_TRACKED_LEVELS = (0.5, 0.9)
_TRACKING_GAINS = (2.33, 2.95)
_GAUSSIAN_LOG_QUANTILES = (math.log(0.6744898), math.log(1.6448536))
_LOG_QUANTILE_BOUND = 20.0
# For a centred Gaussian beyond a threshold of z standard deviations: mean square over the threshold's square. At z > 1
# more than two thirds of the jumps would be guesswork, so the table ends there.
_STANDARD_THRESHOLDS = np.linspace(1.0, 0.05, 39)
_LOG_EXCESS_RATIOS = np.log(
    [
        (1.0 + z * math.sqrt(2.0 / math.pi) * math.exp(-0.5 * z * z) / math.erfc(z / math.sqrt(2.0))) / z**2
        for z in _STANDARD_THRESHOLDS
    ]
)
PUBLISHED_LEVELS = (0.025, 0.1, 0.5, 0.9, 0.975)


class LevyState(eqx.Module):
    """What kernel C has learnt of one symbol.

    Running means over a window of ``kernel_c_memory_ticks`` stand beside the (fading) count of what they are made of;
    residuals and increments are in units of the observation's ``scale``.
    """

    drift: recursive_ridge.RidgeState
    count: Scalar
    moves: Scalar
    pairs: Scalar
    move_rate: Scalar
    bipower: Scalar
    jump_rate: Scalar
    jump_drift: Scalar
    jump_power: Scalar
    log_quantiles: Float[Array, " tracked"]
    previous_abs_residual: Scalar
    previous_is_jump: Scalar
    previous_weight: Scalar
    level: Scalar
    level_unit: Scalar
    # from the last refresh
    mean_gain: Scalar
    variance_gain: Scalar
    tail_index: Scalar
    quantile_multipliers: Float[Array, " multipliers"]
    jump_intensity: Scalar
    jump_scale: Scalar
    stiffness: Scalar
    rate: Scalar
    scheme: Count
    solver_explicit_count: Count
    solver_implicit_count: Count


class LevyMetadata(eqx.Module):
    """What kernel C publishes, dimensionless.

    ``mean_reversion`` is b per tick, ``jump_rate`` is per tick; ``sigma``, ``jump_scale`` (root mean square of a jump)
    and ``quantiles`` (of the next increment, at ``PUBLISHED_LEVELS``) are in units of scale.
    """

    stiffness: Scalar
    scheme: Count
    solver_explicit_count: Count
    solver_implicit_count: Count
    mean_reversion: Scalar
    sigma: Scalar
    jump_rate: Scalar
    jump_scale: Scalar
    tail_index: Scalar
    quantiles: Float[Array, " quantiles"]


class LinearlyImplicitEuler(diffrax.AbstractSolver):
    """Backward Euler for a system whose components do not interact and are linear: one exact Newton step by lineax.

    ``args`` must be a pair whose first entry holds the diagonal of the Jacobian. For such systems it is
    ``diffrax.ImplicitEuler`` at a twentieth of the price: no root finder, and so no tolerance that float32 might miss.
    """

    term_structure = diffrax.AbstractTerm
    interpolation_cls = diffrax.LocalLinearInterpolation

    def order(self, terms: Any) -> int:
        """Order of convergence in the step."""
        del terms
        return 1

    def init(self, terms: Any, t0: Any, t1: Any, y0: Any, args: Any) -> None:
        """Nothing is carried from step to step."""
        del terms, t0, t1, y0, args

    def step(self, terms: Any, t0: Any, t1: Any, y0: Any, args: Any, solver_state: None, made_jump: Any) -> Any:
        """Solves (1 - h J) (y1 - y0) = h f(y0)."""
        del solver_state, made_jump
        jacobian, _ = args
        step = t1 - t0
        operator = lx.DiagonalLinearOperator(1.0 - step * jacobian)
        # Not throwing: an error would be a call back to the host out of the device's program.
        change = lx.linear_solve(operator, step * terms.vf(t0, y0, args), solver=lx.Diagonal(), throw=False).value
        y1 = y0 + change
        return y1, None, dict(y0=y0, y1=y1), None, diffrax.RESULTS.successful

    def func(self, terms: Any, t0: Any, y0: Any, args: Any) -> Any:
        """The vector field."""
        return terms.vf(t0, y0, args)


class _UnitSteps(diffrax.AbstractStepSizeController[None, Any]):
    """Steps of length 1.

    ``diffrax.ConstantStepSize`` with ``dt0=1`` does the same, but a ``dt0`` is checked against the direction of time by
    a call back to the host, and a program with one can neither be kept on disk nor sent to another process.
    """

    def wrap(self, direction: Any) -> "_UnitSteps":
        """The same forwards and backwards."""
        del direction
        return self

    def init(
        self, terms: Any, t0: Any, t1: Any, y0: Any, dt0: None, args: Any, func: Any, error_order: Any
    ) -> tuple[Any, None]:
        """The end of the first step."""
        del terms, t1, y0, dt0, args, func, error_order
        return t0 + 1.0, None

    def adapt_step_size(
        self, t0: Any, t1: Any, y0: Any, y1_candidate: Any, args: Any, y_error: Any, error_order: Any,
        controller_state: None,
    ) -> tuple[bool, Any, Any, bool, None, diffrax.RESULTS]:  # fmt: skip
        """Every step is kept."""
        del t0, y0, y1_candidate, args, y_error, error_order, controller_state
        return True, t1, t1 + 1.0, False, None, diffrax.RESULTS.successful


def _field(t: Any, y: Float[Array, " n"], args: tuple[Float[Array, " n"], Float[Array, " n"]]) -> Float[Array, " n"]:
    del t
    jacobian, source = args
    return jacobian * y + source


def unit_response(
    rates: Float[Array, " n"], horizon: Scalar, num_steps: Scalar, solver: diffrax.AbstractSolver
) -> Float[Array, " n"]:
    """Solutions at ``horizon`` of y' = rate * y + 1, y(0) = 0, in ``num_steps`` (a whole number) equal steps.

    Time is counted in steps, so that their number is exact in float32 too.
    """
    step = horizon / num_steps
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(_field),
        solver,
        t0=jnp.zeros_like(horizon),
        t1=num_steps,
        dt0=None,
        y0=jnp.zeros_like(rates),
        args=(step * rates, jnp.broadcast_to(step, rates.shape)),
        saveat=diffrax.SaveAt(t1=True),
        stepsize_controller=_UnitSteps(),
        max_steps=_MAX_STEPS,
        throw=False,
    )
    assert solution.ys is not None  # SaveAt(t1=True) always saves
    return solution.ys[0]


def num_integration_steps(horizon: Scalar, dt: Scalar, max_num: Count) -> Scalar:
    """Steps of at most ``dt`` that make up ``horizon``; no more than ``max_num``, then each is longer than asked."""
    wanted = jnp.ceil(horizon / dt - 1e-3)
    return jnp.clip(wanted, 1.0, jnp.minimum(max_num, _MAX_STEPS).astype(horizon.dtype))


def implicit_share(stiffness: Scalar, threshold_low: Scalar, threshold_high: Scalar) -> Scalar:
    """Weight of the implicit scheme: 0 below the lower threshold, 1 from the upper one on, linear between."""
    width = jnp.maximum(threshold_high - threshold_low, 1e-3)
    return jnp.clip((stiffness - threshold_low) / width, 0.0, 1.0)


def integration_gains(
    rate: Scalar, threshold_low: Scalar, threshold_high: Scalar, config: PredictorConfig
) -> tuple[Scalar, Scalar, Scalar, Scalar]:
    r"""Integrates the equations of the conditional mean and variance over ``kernel_c_horizon`` ticks.

    ``rate`` is b <= 0 per tick. Returns ``(mean_gain, variance_gain, stiffness, share)``: what the integrated moments
    are in units of those of one exact tick, :math:`\psi\,b/(e^b - 1)` and :math:`v\,2b/(e^{2b} - 1)` with the unit
    responses psi and v; the stiffness ``stiffness_scale`` * abs(b); and the weight that the implicit scheme had. The
    explicit scheme is left out, whatever the thresholds say, where it is not stable: at abs(b) times the step >= 1.
    """
    horizon = config.kernel_c_horizon
    num_steps = num_integration_steps(horizon, config.sde_dt, config.sde_numel_integrations)
    rates = jnp.stack([rate, 2.0 * rate])
    stiffness = config.stiffness_scale * jnp.abs(rate)
    share = implicit_share(stiffness, threshold_low, threshold_high)
    is_unstable = jnp.abs(rate) * horizon >= num_steps
    share = jnp.where(is_unstable, 1.0, share)
    # An unstable scheme may overflow, and 0 * inf is NaN: it is run on a harmless rate instead.
    explicit = unit_response(jnp.where(is_unstable, 0.0, rates), horizon, num_steps, diffrax.Euler())
    implicit = unit_response(rates, horizon, num_steps, LinearlyImplicitEuler())
    response = (1.0 - share) * explicit + share * implicit
    is_small = jnp.abs(rates) < 1e-6
    safe = jnp.where(is_small, 1.0, rates)
    gains = response * jnp.where(is_small, 1.0, safe / jnp.expm1(safe))
    return gains[0], gains[1], stiffness, share


def init(config: PredictorConfig, dtype: Any) -> LevyState:
    """The state before the first tick: no drift, the prior volatility and tail index, one exact tick as integration."""
    zero = jnp.zeros((), dtype)
    none = jnp.zeros((), jnp.int32)
    horizon = jnp.asarray(config.kernel_c_horizon, dtype)
    tail_index = jnp.asarray(config.kernel_c_alpha, dtype)
    return LevyState(
        drift=recursive_ridge.init(2, 1.0 / jnp.asarray(config.sde_prior_ticks, dtype)),
        count=zero,
        moves=zero,
        pairs=zero,
        move_rate=jnp.ones((), dtype),
        bipower=zero,
        jump_rate=zero,
        jump_drift=zero,
        jump_power=zero,
        log_quantiles=jnp.asarray(_GAUSSIAN_LOG_QUANTILES, dtype),
        previous_abs_residual=zero,
        previous_is_jump=zero,
        previous_weight=zero,
        level=zero,
        level_unit=jnp.ones((), dtype),
        mean_gain=horizon,
        variance_gain=horizon,
        tail_index=tail_index,
        quantile_multipliers=_quantile_multipliers(tail_index, horizon),
        jump_intensity=zero,
        jump_scale=zero,
        stiffness=zero,
        rate=zero,
        scheme=none,
        solver_explicit_count=none,
        solver_implicit_count=none,
    )


def _quantile_multipliers(tail_index: Scalar, clock: Scalar) -> Float[Array, " multipliers"]:
    """Quantiles 0.9 and 0.975 of a stable motion after ``clock`` ticks in units of its quantile 0.75 after one.

    The scale of such a motion grows with time to the power 1/alpha. Its clock is that of the moves.
    """
    quantiles = stable.table_quantiles(tail_index)
    growth = jnp.exp(jnp.log(jnp.maximum(clock, 1e-12)) / tail_index)
    return growth / quantiles[0] * jnp.stack([quantiles[1], quantiles[3]])


def _drift_coefficients(state: LevyState, level_unit: Scalar) -> tuple[Scalar, Scalar]:
    """Intercept and slope of the next increment in the level, the slope held between instant reversion and none.

    The minimum under the constraint moves the intercept along with a clipped slope by their covariance.
    """
    intercept, slope = state.drift.coefficients[0], state.drift.coefficients[1]
    clipped = jnp.clip(slope, -level_unit, 0.0)
    root = state.drift.root
    regression = jnp.sum(root[0] * root[1]) / jnp.maximum(jnp.sum(root[1] * root[1]), 1e-12)
    return intercept + regression * (clipped - slope), clipped


def _diffusion_variance(state: LevyState, config: PredictorConfig) -> Scalar:
    """Variance per tick of the continuous part: bipower variation over moves times their rate, and the prior."""
    prior = config.sde_prior_ticks
    sampled = state.count * state.move_rate * state.bipower
    return (sampled + prior * config.sde_diffusion_sigma**2) / (state.count + prior)


def _jump_moments(state: LevyState, config: PredictorConfig) -> tuple[Scalar, Scalar]:
    """What the jumps beyond the threshold add to mean and variance per tick, shrunk to nothing by the prior."""
    num_jumps = state.count * state.jump_rate
    trust = num_jumps / (num_jumps + config.sde_prior_ticks)
    return trust * state.jump_drift, state.count / (state.count + config.sde_prior_ticks) * state.jump_power


def _threshold_factor(config: PredictorConfig) -> Scalar:
    """Square of the jump threshold in units of the diffusion variance: a window of Gaussians hardly ever exceeds it."""
    return 2.0 * jnp.log(jnp.maximum(config.kernel_c_memory_ticks, 2.0))


def _jump_law(state: LevyState, config: PredictorConfig) -> tuple[Scalar, Scalar]:
    """Intensity and root mean square of Gaussian jumps, of which only those beyond the threshold were seen.

    The mean square beyond a threshold, relative to the threshold's own, tells how much of the law the threshold hides.
    """
    seen = state.count / (state.count + config.sde_prior_ticks) * state.jump_rate
    diffusion = _diffusion_variance(state, config)
    threshold = _threshold_factor(config) * diffusion
    mean_square = state.jump_power / jnp.maximum(state.jump_rate, 1e-6) + diffusion
    dtype = seen.dtype
    log_ratio = jnp.log(jnp.maximum(mean_square / jnp.maximum(threshold, 1e-12), 1.0))
    standard = jnp.interp(log_ratio, jnp.asarray(_LOG_EXCESS_RATIOS, dtype), jnp.asarray(_STANDARD_THRESHOLDS, dtype))
    intensity = jnp.minimum(seen / jax.scipy.special.erfc(standard / math.sqrt(2.0)), 1.0)
    scale = jnp.sqrt(jnp.maximum(threshold / standard**2 - diffusion, 0.0))
    return intensity, jnp.where(seen > 0.0, scale, 0.0)


def update(state: LevyState, observation: KernelObservation, config: PredictorConfig) -> LevyState:
    """Learns one tick: the increment from the level before it, then remembers the level for the next forecast."""
    weight = observation.weight
    dtype = weight.dtype
    memory = jnp.maximum(config.kernel_c_memory_ticks, 2.0)
    prior = config.sde_prior_ticks
    level_unit = jnp.maximum(observation.level_unit, 1e-3)

    intercept, slope = _drift_coefficients(state, level_unit)
    residual = observation.increment - (intercept + slope * observation.previous_level)
    magnitude = jnp.abs(residual)
    diffusion = _diffusion_variance(state, config)
    excess = residual * residual - diffusion
    is_jump = (residual * residual > _threshold_factor(config) * diffusion).astype(dtype)
    moved = (observation.increment != 0.0).astype(dtype)

    prior_variance = 1.0 / prior
    features = jnp.stack([jnp.ones_like(weight), observation.previous_level])
    forgetting = recursive_ridge.forgetting(memory / jnp.maximum(weight, 1e-12), observation.forget)
    drift = recursive_ridge.update(
        state.drift, features, observation.increment, forgetting, weight * (1.0 - is_jump), prior_variance
    )

    fade = 1.0 - weight / memory
    count = fade * state.count + weight
    gain = weight / jnp.maximum(count, 1.0)

    # Bipower variation in business time: prices that mostly stand still would make nearly every move a jump.
    move_weight = weight * moved
    move_fade = 1.0 - move_weight / memory
    moves = move_fade * state.moves + move_weight
    pair_weight = move_weight * state.previous_weight
    pairs = (1.0 - pair_weight / memory) * state.pairs + pair_weight
    # Jumps hardly ever come in pairs: a lone one counts as an average diffusive move, two in a row are volatility.
    is_lone = is_jump != state.previous_is_jump
    smaller = jnp.minimum(magnitude, state.previous_abs_residual)
    average = math.sqrt(2.0 / math.pi) * jnp.sqrt(diffusion)
    product = jnp.where(is_lone, smaller * average, magnitude * state.previous_abs_residual)
    product = 0.5 * math.pi * product
    bipower = state.bipower + pair_weight / jnp.maximum(pairs, 1.0) * (product - state.bipower)

    below = (magnitude <= jnp.exp(state.log_quantiles)).astype(dtype)
    tracking = move_weight / jnp.minimum(moves + prior, memory)
    levels, gains = jnp.asarray(_TRACKED_LEVELS, dtype), jnp.asarray(_TRACKING_GAINS, dtype)
    log_quantiles = jnp.clip(
        state.log_quantiles + tracking * gains * (levels - below), -_LOG_QUANTILE_BOUND, _LOG_QUANTILE_BOUND
    )

    # A regime change leaves the past of the noise worth no more than the prior.
    keep = jnp.where(observation.forget, jnp.minimum(1.0, prior / jnp.maximum(count, 1.0)), 1.0)
    has_gap = weight == 0.0
    return LevyState(
        drift=drift,
        count=keep * count,
        moves=keep * moves,
        pairs=keep * pairs,
        move_rate=state.move_rate + gain * (moved - state.move_rate),
        bipower=bipower,
        jump_rate=state.jump_rate + gain * (is_jump - state.jump_rate),
        jump_drift=state.jump_drift + gain * (is_jump * residual - state.jump_drift),
        jump_power=state.jump_power + gain * (is_jump * excess - state.jump_power),
        log_quantiles=log_quantiles,
        previous_abs_residual=jnp.where(moved > 0.0, magnitude, state.previous_abs_residual),
        previous_is_jump=jnp.where(moved > 0.0, is_jump, state.previous_is_jump),
        previous_weight=jnp.where(has_gap, 0.0, jnp.where(moved > 0.0, weight, state.previous_weight)),
        level=observation.level,
        level_unit=level_unit,
        mean_gain=state.mean_gain,
        variance_gain=state.variance_gain,
        tail_index=state.tail_index,
        quantile_multipliers=state.quantile_multipliers,
        jump_intensity=state.jump_intensity,
        jump_scale=state.jump_scale,
        stiffness=state.stiffness,
        rate=state.rate,
        scheme=state.scheme,
        solver_explicit_count=state.solver_explicit_count,
        solver_implicit_count=state.solver_implicit_count,
    )


def predict(state: LevyState, config: PredictorConfig) -> KernelOutput:
    """Forecasts the increment over the next ``kernel_c_horizon`` ticks, in units of scale.

    ``confidence`` is the reciprocal of the integrated variance of diffusion and jumps, enlarged by the uncertainty of
    the drift.
    """
    intercept, slope = _drift_coefficients(state, state.level_unit)
    jump_drift, jump_power = _jump_moments(state, config)
    diffusion = _diffusion_variance(state, config)
    prediction = state.mean_gain * (intercept + jump_drift + slope * state.level)
    features = jnp.stack([jnp.ones_like(state.level), state.level])
    uncertainty = recursive_ridge.leverage(state.drift, features)
    variance = state.variance_gain * (diffusion * (1.0 + uncertainty) + jump_power)

    half_widths = jnp.exp(state.log_quantiles[0]) * state.quantile_multipliers
    offsets = jnp.stack([-half_widths[1], -half_widths[0], jnp.zeros_like(prediction), half_widths[0], half_widths[1]])
    metadata = LevyMetadata(
        stiffness=state.stiffness,
        scheme=state.scheme,
        solver_explicit_count=state.solver_explicit_count,
        solver_implicit_count=state.solver_implicit_count,
        mean_reversion=state.rate,
        sigma=jnp.sqrt(diffusion),
        jump_rate=state.jump_intensity,
        jump_scale=state.jump_scale,
        tail_index=state.tail_index,
        quantiles=prediction + offsets,
    )
    return KernelOutput(
        prediction=prediction, confidence=1.0 / jnp.maximum(variance, config.numerical_epsilon), metadata=metadata
    )


def refresh(state: LevyState, context: RefreshContext, config: PredictorConfig) -> LevyState:
    """Integrates the moment equations for the coefficients of the moment, and re-reads the tail index."""
    _, slope = _drift_coefficients(state, state.level_unit)
    rate = jnp.log(jnp.clip(1.0 + slope / state.level_unit, _SMALLEST_PERSISTENCE, 1.0))
    low, high = compute_adaptive_stiffness_thresholds(context.holder_exponent, config)
    mean_gain, variance_gain, stiffness, share = integration_gains(rate, low, high, config)

    prior = config.sde_prior_ticks
    sampled = jnp.maximum(state.log_quantiles[1] - state.log_quantiles[0], 0.0)
    assumed = jnp.log(stable.ratio_from_tail_index(config.kernel_c_alpha))
    log_ratio = (state.moves * sampled + prior * assumed) / (state.moves + prior)
    tail_index = stable.tail_index_from_ratio(jnp.exp(log_ratio))
    tail_index = jnp.where(tail_index >= config.kernel_c_alpha_gaussian_threshold, stable.MAX_TAIL_INDEX, tail_index)

    jump_intensity, jump_scale = _jump_law(state, config)
    is_explicit, is_implicit = share <= 0.0, share >= 1.0
    return eqx.tree_at(
        lambda s: (
            s.mean_gain,
            s.variance_gain,
            s.tail_index,
            s.quantile_multipliers,
            s.jump_intensity,
            s.jump_scale,
            s.stiffness,
            s.rate,
            s.scheme,
            s.solver_explicit_count,
            s.solver_implicit_count,
        ),
        state,
        (
            mean_gain,
            variance_gain,
            tail_index,
            _quantile_multipliers(tail_index, variance_gain * state.move_rate),
            jump_intensity,
            jump_scale,
            stiffness,
            rate,
            jnp.where(is_explicit, EXPLICIT, jnp.where(is_implicit, IMPLICIT, MIXED)).astype(jnp.int32),
            state.solver_explicit_count + jnp.where(is_implicit, 0, 1).astype(jnp.int32),
            state.solver_implicit_count + jnp.where(is_explicit, 0, 1).astype(jnp.int32),
        ),
    )
