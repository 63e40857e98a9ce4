"""One tick in causal order: gate, score, detect, volatility, circuit breaker, weigh, learn, forecast, calibrate, store.

``advance`` is the fast step of every tick, ``refresh`` the heavy and rare work of one symbol; ``orchestrate_step`` is
the two together and what everything else calls, in batches by ``orchestrate_step_batch``.
"""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from . import _adaptive, _anchor, _calibration, _change_point, _circuit_breaker, _degraded, _fusion, _gate, _standardize
from ._kernels import deep_galerkin, levy_sde, rkhs, signature
from ._kernels._interface import KernelObservation, RefreshContext
from ._numerics import SD_FROM_MEAN_ABSOLUTE, ewma_rate, safe_divide, select_tree, where_needed
from ._parameters import PredictorConfig
from ._regularity import estimate_regularity
from ._results import FusionResult, KernelOutput, OrchestrationResult, PredictionResult, ProcessState
from ._state import InternalState, ModelState
from ._types import NUM_KERNELS, Flag, OperatingMode, ResultCode, Scalar

_SLOW_ERROR_MEMORY = 500.0
_INDEX = _calibration.INDEX_OF


class _Step(eqx.Module):
    """What one accepted tick brings to light besides the new model."""

    model: ModelState
    alarm: _change_point.Alarm
    innovation: Scalar
    forecast_error: Scalar
    fusion: FusionResult
    outputs: tuple[KernelOutput, KernelOutput, KernelOutput, KernelOutput]
    entropy_window: Scalar
    learning_rate: Scalar
    mode_collapse_warning: Flag
    result_code: Array


def carried_forecast(model: ModelState, missed: Array) -> tuple[Scalar, Scalar]:
    """The standing forecast after ``missed`` further periods, and how much wider its interval is.

    The level is carried along the course that it took a season ago, as far as seasons repeat themselves; without a
    season along the detector's reference, if that is held; else flat. The spread grows with the square root of time.
    """
    dtype = model.forecast.dtype
    kernel = model.kernels[0]
    course = _standardize.seasonal_change(model.history, missed, kernel.season_length)
    # Of m steps one season ago, so much returns, where the share rho of the variance of a single one does.
    rho = jnp.clip(kernel.season_correlation, 0.0, 1.0)
    signal = jnp.square(missed.astype(dtype)) * rho
    returns = safe_divide(signal, signal + 1.0 - rho)
    past = _standardize.lagged(model.history, jnp.arange(_change_point.REFERENCE_ORDER, dtype=jnp.int32))
    drawn = (missed > 0) & model.change_point.reference.ready & (kernel.season_length == 0)
    # It counts as given: where_needed has no derivative.
    reference, past, last = jax.lax.stop_gradient((model.change_point.reference, past, model.forecast))
    path = where_needed(drawn, _change_point.reference_change, jnp.zeros_like(last), reference, past, missed)
    bound = 6.0 * model.forecast_scale * jnp.sqrt(missed.astype(dtype))
    change = jnp.clip(returns * course + path, -bound, bound)
    return model.forecast + change, jnp.sqrt(1.0 + jnp.minimum(missed, 1000).astype(dtype))


def _finite_or_zero(value: Array) -> tuple[Array, Array]:
    good = jnp.isfinite(value)
    return jnp.where(good, value, 0.0), ~good


def _accept(
    state: InternalState, tick: ProcessState, decision: _gate.GateDecision, held: Flag, config: PredictorConfig
) -> _Step:
    """Everything that happens to the model when a tick is accepted."""
    model = state.model
    dtype = model.forecast.dtype
    first = model.sequence == 0
    value = tick.magnitude.astype(dtype)
    missed = decision.missed_before
    carried, _ = carried_forecast(model, missed)
    # A re-based level keeps its increments: what stood before is moved along with the jump.
    shift = jnp.where(decision.rebased, value - carried, 0.0)
    previous = jnp.where(first, value, model.last_value + shift)
    increment = value - previous
    scale_before = _standardize.floored_scale(model.scale, value)
    usual = ~first & ~decision.rebased & (missed == 0)

    # Score the stored forecast.
    error = jnp.where(usual, tick.reference.astype(dtype) - carried, 0.0)
    error_scale = _calibration.volatility(model.calibration, scale_before)
    forecast_error = jnp.clip(error / error_scale, -1e6, 1e6)
    outcome = jnp.clip(increment / model.forecast_scale, -2.0 * config.innovation_clip, 2.0 * config.innovation_clip)
    surprise = jnp.abs(error) / jnp.maximum(error_scale, 1e-3 * scale_before)
    weight = jnp.where(usual, _anchor.robust_weight(surprise, config), 0.0)

    # Detect.
    past = _standardize.lagged(model.history, jnp.arange(_change_point.REFERENCE_ORDER, dtype=jnp.int32)) + shift
    reference = model.change_point.reference
    deviation = value - _change_point.reference_forecast(reference, past)
    innovation = jnp.where(reference.ready & usual, deviation / jnp.maximum(reference.sd, 1e-6 * scale_before), 0.0)
    innovation = jnp.clip(innovation, -1e3, 1e3)
    # While a reference is being fitted, a jump must stand out from the last one's spread and from the present one's.
    jump = error / _change_point.jump_scale(model.change_point, error_scale, config)
    warmed = model.sequence >= config.warmup_signal_length
    change_point, alarm = _change_point.update_cusum_statistics(
        model.change_point, innovation, jnp.clip(jump, -1e3, 1e3), decision.rebased & warmed, config
    )
    forget = alarm.raised

    # Volatility relative to a slow robust scale.
    slow = jnp.maximum(SD_FROM_MEAN_ABSOLUTE * model.slow_error, 1e-3 * scale_before)
    relative = jnp.clip(error / slow, -config.innovation_clip, config.innovation_clip)
    learns_volatility = usual & (model.sequence > 10)
    ema_variance = jnp.where(
        learns_volatility,
        model.ema_variance + config.volatility_alpha * (relative * relative - model.ema_variance),
        model.ema_variance,
    )
    slow_rate = ewma_rate(model.sequence, jnp.asarray(_SLOW_ERROR_MEMORY, dtype))
    slow_size = jnp.where(learns_volatility, jnp.minimum(jnp.abs(error), config.innovation_clip * slow), jnp.abs(error))
    slow_error = jnp.where(usual, model.slow_error + slow_rate * (slow_size - model.slow_error), model.slow_error)

    # Circuit breaker, before anything is weighed, and adaptation.
    breaker = _circuit_breaker.on_tick(model.breaker, alarm.raised, decision.jumped)
    emergency = breaker.emergency
    entropy_window, learning_rate = _adaptive.compute_adaptive_jko_params(ema_variance, config)

    # Scores decide confidence: what each expert had said one tick ago against what came.
    anchor = _anchor.update(model.anchor, model.raw_increments, outcome, weight, config)
    score = _anchor.update_score(model.score, outcome - model.kernel_increments, entropy_window, emergency, config)
    score = select_tree(weight > 0, score, model.score)
    confidences = _anchor.confidences(score, config)

    # Learn.
    scale_state = _standardize.update_scale(model.scale, value, increment, usual, config)
    scale_state = eqx.tree_at(lambda s: s.level_mean, scale_state, scale_state.level_mean + shift)
    scale = _standardize.floored_scale(scale_state, value)
    level, level_unit = _standardize.standardized_level(scale_state, value, scale)
    previous_level, _ = _standardize.standardized_level(scale_state, previous, scale)
    history = _standardize.push(model.history, value, missed, shift, model.kernels[0].season_length)
    observation = KernelObservation(
        value=value,
        increment=jnp.clip(increment / scale, -2.0 * config.innovation_clip, 2.0 * config.innovation_clip),
        level=level,
        previous_level=previous_level,
        level_unit=level_unit,
        scale=scale,
        weight=weight,
        forget=forget,
    )
    kernel_a = rkhs.update(model.kernels[0], observation, history, config)
    kernel_b = deep_galerkin.update(model.kernels[1], observation, config)
    kernel_c = levy_sde.update(model.kernels[2], observation, config)
    kernel_d = signature.update(model.kernels[3], observation, config)

    # Forecast: raw, then anchored to "no change", then in units of the symbol.
    linear, gaussian = rkhs.parts(kernel_a)
    raw_outputs = (
        rkhs.predict(kernel_a, config),
        deep_galerkin.predict(kernel_b, config),
        levy_sde.predict(kernel_c, config),
        signature.predict(kernel_d, config),
    )
    raw = jnp.stack([linear, gaussian, *(output.prediction for output in raw_outputs[1:])])
    raw, broken = _finite_or_zero(jnp.clip(raw, -4.0 * config.innovation_clip, 4.0 * config.innovation_clip))
    earned = _anchor.gains(anchor, config) * raw
    increments = jnp.stack([earned[0] + earned[1], earned[2], earned[3], earned[4]])
    values = value + increments * scale
    outputs = tuple(
        KernelOutput(prediction=values[k], confidence=confidences[k], metadata=raw_outputs[k].metadata)
        for k in range(NUM_KERNELS)
    )

    # Weigh, with exactly the weights that are emitted.
    # The cost is between increments: at a high level, forecasts in float32 may not differ at all.
    uniform = jnp.full((NUM_KERNELS,), 1.0 / NUM_KERNELS, dtype)
    kept = jnp.where(forget, uniform, model.resting_rho)
    hold = emergency | forget | held | (change_point.grace_counter > 0) | first
    fusion = _fusion.fuse_kernel_outputs(
        tuple(dataclasses.replace(output, prediction=increments[k]) for k, output in enumerate(outputs)),
        model.resting_rho,
        ema_variance,
        dataclasses.replace(config, learning_rate=learning_rate),
        hold=hold,
        held_weights=jnp.where(emergency, _circuit_breaker.emergency_weights(dtype), kept),
    )
    rho = fusion.updated_weights
    forecast = value + fusion.fused_prediction * scale
    fusion = dataclasses.replace(fusion, fused_prediction=forecast)

    calibrated = _calibration.update(model.calibration, error, scale_before, config)
    calibration = select_tree(usual, calibrated, model.calibration)
    retained = deep_galerkin.entropy_retained(kernel_b)
    collapse_counter, collapse_warning = _adaptive.update_mode_collapse(
        model.mode_collapse_consecutive_steps, retained, entropy_window, ema_variance, config
    )
    kernel_b = deep_galerkin.request_capacity(kernel_b, collapse_warning)

    sequence = model.sequence + 1
    refresh_due = (sequence % config.refresh_interval == 0) | _change_point.fit_due(change_point, config)
    code = jnp.where(broken[0] | broken[1], int(ResultCode.KERNEL_A_NON_FINITE), 0)
    code = code + jnp.where(broken[2], int(ResultCode.KERNEL_B_NON_FINITE), 0)
    code = code + jnp.where(broken[3], int(ResultCode.KERNEL_C_NON_FINITE), 0)
    code = code + jnp.where(broken[4], int(ResultCode.KERNEL_D_NON_FINITE), 0)
    code = code + jnp.where(fusion.sinkhorn_converged | hold, 0, int(ResultCode.SINKHORN_NOT_CONVERGED))
    code = code + jnp.where(fusion.sinkhorn_log_domain, int(ResultCode.SINKHORN_LOG_DOMAIN), 0)
    code = code + jnp.where(forget, int(ResultCode.WEIGHTS_RESET), 0)
    code = code + jnp.where(warmed, 0, int(ResultCode.WARMING_UP))
    new_model = ModelState(
        scale=scale_state,
        history=history,
        change_point=change_point,
        calibration=calibration,
        anchor=anchor,
        score=score,
        breaker=breaker,
        regularity=model.regularity,
        kernels=(kernel_a, kernel_b, kernel_c, kernel_d),
        rho=rho,
        resting_rho=jnp.where(emergency, kept, rho),
        ema_variance=ema_variance,
        slow_error=slow_error,
        mode_collapse_consecutive_steps=collapse_counter,
        forecast=forecast,
        raw_increments=raw,
        kernel_increments=increments,
        forecast_scale=scale,
        last_value=value,
        last_update_ns=tick.timestamp_ns,
        sequence=sequence,
        residual_buffer=jnp.concatenate([model.residual_buffer[1:], forecast_error[None]]),
        signal_buffer=jnp.concatenate([model.signal_buffer[1:], value[None]]),
        regime_changed=alarm.raised,
        emergency_mode=emergency,
        refresh_due=refresh_due,
        rng_counter=model.rng_counter + 1,
    )
    return _Step(
        model=new_model,
        alarm=alarm,
        innovation=innovation,
        forecast_error=forecast_error,
        fusion=fusion,
        outputs=outputs,  # pyright: ignore[reportArgumentType]
        entropy_window=entropy_window,
        learning_rate=learning_rate,
        mode_collapse_warning=collapse_warning,
        result_code=code.astype(jnp.int32),
    )


def atomic_state_update(old: ModelState, new: ModelState, accepted: Flag) -> ModelState:
    """The model after a tick: all of the new one, or, when the tick was refused, the old one bit for bit."""
    return select_tree(accepted, new, old)


def _intervals(
    model: ModelState, forecast: Scalar, widening: Scalar, fallback: Scalar
) -> tuple[Float[Array, " levels"], Scalar]:
    scale = _calibration.volatility(model.calibration, fallback) * widening
    return forecast + scale * model.calibration.quantiles, scale


def advance(
    state: InternalState, observation: ProcessState, config: PredictorConfig
) -> tuple[InternalState, OrchestrationResult]:
    """The fast step: everything but what :func:`refresh` does.

    When ``result.prediction.refresh_due`` is set, :func:`refresh` must follow before the symbol's next tick.
    """
    dtype = state.model.forecast.dtype
    finite = jnp.isfinite(observation.magnitude) & jnp.isfinite(observation.reference)
    never = state.model.sequence == 0
    carried, _ = carried_forecast(state.model, state.gate.missed_periods)
    gate, decision = _gate.inspect(state.gate, observation, carried, state.model.last_value, config)
    decision = dataclasses.replace(decision, accepted=decision.accepted & finite)
    degraded, recovery = _degraded.update_degraded_mode(
        state.gate.degraded_mode, state.gate.degraded_mode_recovery_counter, decision.degrading, config
    )
    gate = dataclasses.replace(gate, degraded_mode=degraded, degraded_mode_recovery_counter=recovery)
    clean = dataclasses.replace(
        observation,
        magnitude=jnp.where(decision.accepted, observation.magnitude.astype(dtype), state.model.last_value),
        reference=jnp.where(decision.accepted, observation.reference.astype(dtype), state.model.last_value),
    )
    step = _accept(state, clean, decision, degraded, config)
    accepted = decision.accepted
    model = atomic_state_update(state.model, step.model, accepted)

    missed = jnp.where(accepted, 0, gate.missed_periods)
    forecast, widening = carried_forecast(model, missed)
    fallback = _standardize.floored_scale(model.scale, forecast)
    quantiles, scale = _intervals(model, forecast, widening, fallback)
    said = model.last_value + model.kernel_increments * model.forecast_scale
    change = model.change_point
    emergency = model.emergency_mode
    mode = jnp.where(
        emergency,
        int(OperatingMode.EMERGENCY),
        jnp.where(degraded, int(OperatingMode.ROBUST), int(OperatingMode.STANDARD)),
    )
    kernel_b, kernel_c = model.kernels[1], model.kernels[2]
    refused = ~accepted
    prediction = PredictionResult(
        predicted_next=forecast,
        scale=scale,
        lower_80=quantiles[_INDEX[0.1]],
        upper_80=quantiles[_INDEX[0.9]],
        lower_95=quantiles[_INDEX[0.025]],
        upper_95=quantiles[_INDEX[0.975]],
        quantiles=quantiles,
        kernel_predictions=said + (forecast - model.forecast),
        kernel_confidences=_anchor.confidences(model.score, config),
        weights=model.rho,
        innovation=jnp.where(refused, 0.0, step.innovation),
        forecast_error=jnp.where(refused, 0.0, step.forecast_error),
        holder_exponent=model.regularity.holder_exponent,
        cusum_drift=change.statistics[0],
        cusum_drift_down=change.statistics[1],
        scale_statistic_up=change.statistics[4],
        scale_statistic_down=change.statistics[5],
        distance_to_collapse=change.adaptive_h_t - change.statistics[0],
        adaptive_threshold=change.adaptive_h_t,
        free_energy=jnp.where(refused, 0.0, step.fusion.free_energy),
        kurtosis=change.kurtosis,
        ema_variance=model.ema_variance,
        dgm_entropy=kernel_b.entropy,
        dgm_entropy_fraction=kernel_b.entropy_fraction,
        entropy_ratio=_adaptive.compute_entropy_ratio(kernel_b.entropy, kernel_b.baseline_entropy),
        dgm_tier=kernel_b.tier,
        stiffness=kernel_c.stiffness,
        solver_scheme=kernel_c.scheme,
        entropy_window=step.entropy_window,
        learning_rate=step.learning_rate,
        sinkhorn_epsilon=step.fusion.sinkhorn_epsilon,
        sinkhorn_converged=step.fusion.sinkhorn_converged,
        sinkhorn_iterations=step.fusion.sinkhorn_iterations,
        sinkhorn_max_err=step.fusion.sinkhorn_max_err,
        season_length=model.kernels[0].season_length,
        sequence=model.sequence,
        grace_counter=change.grace_counter,
        missed_periods=missed,
        gate_reasons=decision.reasons,
        result_code=jnp.where(refused, 0, step.result_code),
        mode=mode.astype(jnp.int32),
        accepted=accepted,
        degraded_inference_mode=degraded,
        emergency_mode=emergency,
        regime_change_detected=accepted & step.alarm.raised,
        mode_collapse_warning=accepted & step.mode_collapse_warning,
        warming_up=never | (model.sequence < config.warmup_signal_length),
        reference_ready=change.reference.ready,
        refresh_due=accepted & model.refresh_due,
        alarm_kind=jnp.where(accepted, step.alarm.kind, 0),
        alarm_statistic=jnp.where(accepted & step.alarm.raised, step.alarm.statistic, 0.0),
        alarm_threshold=jnp.where(accepted & step.alarm.raised, step.alarm.threshold, 0.0),
        alarm_start_ticks_ago=jnp.where(accepted, step.alarm.start_ticks_ago, 0),
    )
    result = OrchestrationResult(prediction=prediction, kernel_outputs=step.outputs, fusion=step.fusion)
    return InternalState(model=model, gate=gate), result


def refresh(state: InternalState, config: PredictorConfig) -> InternalState:
    """The heavy and rare work of one symbol: season, reference, regularity, entropy and solvers."""
    model = state.model
    scale = _standardize.floored_scale(model.scale, model.last_value)
    level, level_unit = _standardize.standardized_level(model.scale, model.last_value, scale)
    relative = (_standardize.ordered(model.history) - model.last_value) / scale
    relative = jnp.clip(relative, -1e6, 1e6)
    regularity = estimate_regularity(relative, model.history.length, config)
    exponent = jnp.clip(
        regularity.holder_exponent, config.validation_holder_exponent_min, config.validation_holder_exponent_max
    )
    regularity = dataclasses.replace(regularity, holder_exponent=exponent)
    breaker = _circuit_breaker.update(model.breaker, regularity, model.history.length, config)
    context = RefreshContext(
        history=relative,
        length=model.history.length,
        level=level,
        level_unit=level_unit,
        holder_exponent=regularity.holder_exponent,
        regime_started=model.regime_changed,
    )
    change_point = _change_point.refresh_reference(model.change_point, relative, model.last_value, scale, config)
    kernels = (
        rkhs.refresh(model.kernels[0], context, config),
        deep_galerkin.refresh(model.kernels[1], context, config),
        levy_sde.refresh(model.kernels[2], context, config),
        signature.refresh(model.kernels[3], context, config),
    )
    refreshed = dataclasses.replace(
        model,
        regularity=regularity,
        breaker=breaker,
        change_point=change_point,
        kernels=kernels,
        refresh_due=jnp.asarray(False),
    )
    return InternalState(model=refreshed, gate=state.gate)


def orchestrate_step(
    state: InternalState, observation: ProcessState, config: PredictorConfig
) -> tuple[InternalState, OrchestrationResult]:
    """One tick of one symbol: the next state, and everything there is to say.

    Pure; ``jit``, ``vmap`` and ``scan`` apply. Under ``vmap`` the refresh is computed for every lane: batches are
    better served by :func:`orchestrate_step_batch`.
    """
    advanced, result = advance(state, observation, config)
    due = result.prediction.refresh_due
    return jax.lax.cond(due, lambda s: refresh(s, config), lambda s: s, advanced), result


def orchestrate_step_batch(
    states: InternalState, observations: ProcessState, config: PredictorConfig
) -> tuple[InternalState, OrchestrationResult]:
    """One tick of each of a batch of symbols (leading axis); the refresh runs only where some lane is due."""
    advanced, results = jax.vmap(lambda s, o: advance(s, o, config))(states, observations)
    due = results.prediction.refresh_due

    def refreshed(batch: InternalState) -> InternalState:
        return jax.vmap(lambda flag, s: select_tree(flag, refresh(s, config), s))(due, batch)

    return jax.lax.cond(jnp.any(due), refreshed, lambda batch: batch, advanced), results
