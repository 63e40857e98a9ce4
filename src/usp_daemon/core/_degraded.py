"""Degraded mode, staleness and grace: the counters that keep a mode from flickering."""

import jax.numpy as jnp

from ._parameters import PredictorConfig
from ._types import Count, Flag, Scalar


def update_degraded_mode(
    degraded: Flag, recovery_counter: Count, impaired: Flag, config: PredictorConfig
) -> tuple[Flag, Count]:
    """In at once, out after ``frozen_signal_recovery_steps`` clean ticks in a row (at least one).

    ========  ========  ==================================================
    degraded  impaired  next
    ========  ========  ==================================================
    no        no        not degraded, counter 0
    any       yes       degraded, counter 0
    yes       no        counter + 1; degraded while that is below the limit
    ========  ========  ==================================================

    ``impaired`` says that this tick was refused, stale, frozen or otherwise poor. Returns the mode and the counter,
    which is 0 whenever the mode is off.
    """
    clean_ticks = jnp.where(impaired, 0, recovery_counter + 1)
    needed = jnp.maximum(jnp.asarray(config.frozen_signal_recovery_steps, recovery_counter.dtype), 1)
    next_degraded = impaired | (degraded & (clean_ticks < needed))
    return next_degraded, jnp.where(next_degraded & degraded, clean_ticks, 0).astype(recovery_counter.dtype)


def update_staleness(stale: Flag, delay: Scalar, limit: Scalar, config: PredictorConfig) -> Flag:
    """Stale once ``delay`` exceeds ``limit``, until it is below ``inference_recovery_hysteresis`` of it.

    Both in one unit, as reals: nanoseconds of centuries fit.
    """
    inside = delay < jnp.asarray(config.inference_recovery_hysteresis, limit.dtype) * limit
    return (delay > limit) | (stale & ~inside)


def update_grace(grace_counter: Count, signal: Flag, config: PredictorConfig) -> tuple[Flag, Count]:
    """Whether ``signal`` may alarm on this tick, and the counter afterwards.

    An alarm sets the counter to ``grace_period_steps``; every other tick takes one off. While it is positive nothing
    alarms, so exactly that many ticks are suppressed and a persistent signal alarms every ``grace_period_steps + 1``
    ticks.
    """
    alarm = signal & (grace_counter <= 0)
    length = jnp.asarray(config.grace_period_steps, grace_counter.dtype)
    return alarm, jnp.where(alarm, length, jnp.maximum(grace_counter - 1, 0)).astype(grace_counter.dtype)
