"""Online standardisation: the symbol's own scale of increments, its level, and the ring of past values."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ._numerics import SD_FROM_MEAN_ABSOLUTE, ewma_rate, where_needed
from ._parameters import HISTORY_CAPACITY, PredictorConfig
from ._types import Count, Flag, Scalar

_LEVEL_BOUND = 6.0
# A spread of the level beyond so many scales says no more: a first value far from a scale that is still rounding.
_UNIT_BOUND = 1e6


class ScaleState(eqx.Module):
    """Running robust scale of the increments and slow location and spread of the level, units of the symbol."""

    increment_scale: Scalar
    num_increments: Count
    level_mean: Scalar
    level_variance: Scalar
    num_levels: Count


class HistoryState(eqx.Module):
    """The last ``HISTORY_CAPACITY`` values by period; a period without a tick holds a bridge between its neighbours."""

    values: Float[Array, " history"]
    position: Count  # slot of the newest value
    length: Count  # periods held, at most the capacity


def init_scale(dtype: jnp.dtype) -> ScaleState:
    """A scale that knows nothing: one unit of the symbol."""
    return ScaleState(
        increment_scale=jnp.asarray(0.0, dtype),
        num_increments=jnp.asarray(0, jnp.int32),
        level_mean=jnp.asarray(0.0, dtype),
        level_variance=jnp.asarray(0.0, dtype),
        num_levels=jnp.asarray(0, jnp.int32),
    )


def init_history(dtype: jnp.dtype) -> HistoryState:
    """An empty ring."""
    return HistoryState(
        values=jnp.zeros((HISTORY_CAPACITY,), dtype),
        position=jnp.asarray(HISTORY_CAPACITY - 1, jnp.int32),
        length=jnp.asarray(0, jnp.int32),
    )


def floored_scale(state: ScaleState, value: Scalar) -> Scalar:
    """The increment scale, or a floor just above the rounding of ``value`` while none is known."""
    eps = jnp.finfo(value.dtype).eps
    floor = jnp.maximum(jnp.abs(value) * eps * 4.0, jnp.asarray(1e-30, value.dtype))
    return jnp.maximum(state.increment_scale, floor)


def update_scale(
    state: ScaleState, value: Scalar, increment: Scalar, learns: Flag, config: PredictorConfig
) -> ScaleState:
    """Moves the scales by one accepted tick; zero increments and re-based jumps teach the increment scale nothing."""
    young = state.num_increments < 20
    size = jnp.abs(increment)
    clipped = jnp.where(young, size, jnp.minimum(size, config.innovation_clip * state.increment_scale))
    teaches = learns & (size > 0)
    rate = ewma_rate(state.num_increments, config.scale_memory_ticks)
    moved = state.increment_scale + rate * (SD_FROM_MEAN_ABSOLUTE * clipped - state.increment_scale)
    level_rate = ewma_rate(state.num_levels, config.scale_memory_ticks)
    bound = _LEVEL_BOUND * _spread(state)
    # Its square must stay finite, since an infinite variance would never come down again.
    largest = 0.25 * float(jnp.finfo(value.dtype).max) ** 0.5
    deviation = jnp.clip(value - state.level_mean, -largest, largest)
    deviation = jnp.where(state.num_levels < 20, deviation, jnp.clip(deviation, -bound, bound))
    return ScaleState(
        increment_scale=jnp.where(teaches, moved, state.increment_scale),
        num_increments=state.num_increments + teaches.astype(jnp.int32),
        level_mean=state.level_mean + level_rate * deviation,
        level_variance=(1.0 - level_rate) * (state.level_variance + level_rate * deviation * deviation),
        num_levels=state.num_levels + 1,
    )


def _spread(state: ScaleState) -> Scalar:
    """Standard deviation of the level; the root of zero would have an infinite slope."""
    return jnp.sqrt(jnp.maximum(state.level_variance, float(jnp.finfo(state.level_variance.dtype).tiny)))


def standardized_level(state: ScaleState, value: Scalar, scale: Scalar) -> tuple[Scalar, Scalar]:
    """``value`` on the level's slow location and spread, clipped to +-6, and that spread in units of ``scale``, at
    most 1e6.
    """
    spread = jnp.maximum(_spread(state), scale)
    level = jnp.clip((value - state.level_mean) / spread, -_LEVEL_BOUND, _LEVEL_BOUND)
    return level, jnp.minimum(spread / scale, _UNIT_BOUND)


def push(state: HistoryState, value: Scalar, missed: Count, shift: Scalar, season: Count) -> HistoryState:
    """Appends ``value`` after ``missed`` empty periods, which are bridged.

    ``shift`` is added to all that stood there before: a re-based level keeps its increments. ``season`` is in periods,
    0 when there is none.
    """
    capacity = state.values.shape[0]
    steps = jnp.minimum(missed, capacity - 1) + 1
    position = (state.position + steps) % capacity
    slots = jnp.arange(capacity, dtype=jnp.int32)
    values = jnp.where(slots == position, value, state.values + shift)
    length = jnp.minimum(state.length + steps, capacity)
    pushed = HistoryState(values=values, position=position, length=length)
    # What stands in a gap counts as given: it has no derivative.
    given = jax.lax.stop_gradient(pushed)
    filled = where_needed(steps > 1, _bridge, given.values, given, steps, state.length, season)
    age = (position - slots) % capacity  # periods before the newest
    return HistoryState(values=jnp.where((age > 0) & (age < steps), filled, values), position=position, length=length)


def _bridge(state: HistoryState, steps: Count, held_before: Count, season: Count) -> Float[Array, " history"]:
    """Values for the ``steps - 1`` periods before the newest: the course of a season before, drawn to both ends.

    Without a season, or with too little history for it, that course is a constant and the bridge a straight line. What
    stands in slots outside the gap means nothing.
    """
    capacity = state.values.shape[0]
    slots = jnp.arange(capacity, dtype=jnp.int32)
    age = (state.position - slots) % capacity
    back = seasons_back(steps, season)
    seasonal = (season > 0) & (steps + back < jnp.minimum(held_before + steps, capacity))
    before = state.values[(slots - jnp.where(seasonal, back, 0)) % capacity]
    course = jnp.where(seasonal, before, 0.0)

    def at(lag: Count) -> Scalar:
        return jnp.where(seasonal, state.values[(state.position - lag - back) % capacity], 0.0)

    last, newest = state.values[(state.position - steps) % capacity], state.values[state.position]
    left, right = last - at(steps), newest - at(jnp.zeros_like(steps))
    done = (steps - age).astype(course.dtype) / steps.astype(course.dtype)
    return course + left + done * (right - left)


def seasons_back(periods: Count, season: Count) -> Count:
    """The fewest whole seasons that reach back over ``periods``, in periods."""
    length = jnp.maximum(season, 1)
    return (-(-periods // length) * length).astype(periods.dtype)


def seasonal_change(state: HistoryState, periods: Count, season: Count) -> Scalar:
    """What the season says of the change from the next value to that ``periods`` after it; 0 where it does not know."""
    back = seasons_back(periods + 1, season)
    known = (season > 0) & (periods > 0) & (back < state.length)
    ends = lagged(state, jnp.stack([back - 1 - periods, back - 1]))
    return jnp.where(known, ends[0] - ends[1], 0.0)


def lagged(state: HistoryState, lags: Int[Array, " lags"]) -> Float[Array, " lags"]:
    """The values ``lags`` periods before the newest one; lags beyond what is held give the oldest value held."""
    capacity = state.values.shape[0]
    held = jnp.clip(lags, 0, jnp.maximum(state.length - 1, 0))
    return state.values[(state.position - held) % capacity]


def ordered(state: HistoryState) -> Float[Array, " history"]:
    """The ring from oldest to newest; slots never filled repeat the oldest value held."""
    capacity = state.values.shape[0]
    lags = jnp.arange(capacity - 1, -1, -1, dtype=jnp.int32)
    return lagged(state, lags)
