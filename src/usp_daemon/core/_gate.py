"""The ingestion gate: what may reach the model, and what it was if it may not.

One tick in, one verdict out. A refused tick changes only the gate's own state. All distances are in units of the
symbol's own robust scale of non-zero increments, all gaps in units of its own cadence.

Spikes, garbage and true level shifts look alike on their first tick. They are told apart by what follows:

    spike     one far value, then back       -> refused; the next tick is ordinary
    garbage   far values that do not move    -> refused as long as they repeat themselves or scatter wildly,
              like the series                   at most ``outlier_max_consecutive`` ticks
    shift     far values that move like      -> the third such tick is accepted and the level re-based
              the series

Values that are far but within ``sigma_bound`` are refused only once the symbol has shown that its jumps usually revert.
"""

import equinox as eqx
import jax.numpy as jnp

from . import _degraded
from ._numerics import ewma_rate, safe_divide
from ._parameters import PredictorConfig
from ._results import ProcessState
from ._types import Count, Flag, GateReason, Scalar

# A cadence is regular enough to count missed periods by when this share of gaps is within a quarter of it.
_REGULAR_SHARE = 0.9
_LOG_QUARTER = 0.25
_WARMUP_TICKS = 20
_REBASE_TICKS = 3
_LEAP_IN_GAPS = 1000.0  # a gap of so many usual ones, and beyond max_past_drift_ns, may be a wrong clock
_SUSPECT_SIGMAS = 6.0
_SUSPECT_TAILS = 3.0
_UNHEARD_OF = 2.0  # times the symbol's own fading maximum
# Rates of repetition: what is supposed at first, what that counts for in ticks, and the memory.
_FIRST_REPEAT_RATE, _FIRST_LONG_REPEAT_RATE = 0.02, 0.05
_PRIOR_TICKS = 10
_REPETITION_MEMORY, _LONG_REPETITION_MEMORY = 500.0, 100.0
_DEGRADING_REASONS = (
    GateReason.NOT_FINITE
    | GateReason.FUTURE
    | GateReason.TOO_OLD
    | GateReason.OUTLIER
    | GateReason.FROZEN
    | GateReason.STALE
)


def _upper_bound(share: Scalar, newest_weight: Scalar) -> Scalar:
    """Two standard errors above a running share whose newest sample weighs ``newest_weight``; below one."""
    return jnp.minimum(share + 2.0 * jnp.sqrt(share * (1.0 - share) * newest_weight), 0.999)


class GateState(eqx.Module):
    """What the gate remembers of one symbol, accepted ticks and refused ones."""

    last_seen_ns: Count
    before_leap_ns: Count  # time before the last tick's leap ahead; 0 when it made none
    returned_ns: Count  # latest of the ticks that may have come back from it
    leap_returns: Count  # how many those are
    num_seen: Count
    num_accepted: Count
    cadence_ns: Scalar
    regularity: Scalar  # running share of gaps near the cadence
    last_seen_value: Scalar
    equal_run: Count  # consecutive ticks that repeated the value
    repeat_rate: Scalar  # P(a tick repeats the value before it)
    long_repeat_rate: Scalar  # the same within runs that are long already
    num_repeat_chances: Count  # ticks behind repeat_rate
    num_long_chances: Count  # ticks behind long_repeat_rate
    run_repeat_rate: Scalar  # upper bounds of both rates as they stood when the present run began
    run_long_repeat_rate: Scalar
    frozen: Flag
    moved_steps: Count
    num_consecutive_outliers: Count
    candidate_value: Scalar
    candidate_run: Count
    before_jump: Scalar  # level that the last far tick jumped away from
    jump_pending: Flag
    jumps_stuck: Scalar
    jumps_reverted: Scalar
    scale: Scalar  # robust sd of non-zero increments, units of the symbol
    tail: Scalar  # running 0.95 quantile of absolute increments
    extreme: Scalar  # slowly fading maximum of ordinary increments
    num_increments: Count
    missed_periods: Count
    stale: Flag
    degraded_mode: Flag
    degraded_mode_recovery_counter: Count


class GateDecision(eqx.Module):
    """The verdict on one tick."""

    accepted: Flag
    reasons: Count
    rebased: Flag
    jumped: Flag  # accepted, yet further from forecast and last value than anything the symbol did lately
    missed_before: Count  # periods without an accepted tick since the last one
    degrading: Flag  # a reason that counts against the symbol's health


def init(dtype: jnp.dtype) -> GateState:
    """A gate that has seen nothing."""

    def real(value: float = 0.0) -> Scalar:
        return jnp.asarray(value, dtype)

    def whole(value: int = 0) -> Count:
        return jnp.asarray(value, jnp.int32)

    no = jnp.asarray(False)
    return GateState(
        last_seen_ns=jnp.asarray(0, jnp.int64),
        before_leap_ns=jnp.asarray(0, jnp.int64),
        returned_ns=jnp.asarray(0, jnp.int64),
        leap_returns=whole(),
        num_seen=whole(),
        num_accepted=whole(),
        cadence_ns=real(),
        regularity=real(1.0),
        last_seen_value=real(),
        equal_run=whole(),
        repeat_rate=real(_FIRST_REPEAT_RATE),
        long_repeat_rate=real(_FIRST_LONG_REPEAT_RATE),
        num_repeat_chances=whole(),
        num_long_chances=whole(),
        run_repeat_rate=real(_FIRST_REPEAT_RATE),
        run_long_repeat_rate=real(_FIRST_LONG_REPEAT_RATE),
        frozen=no,
        moved_steps=whole(),
        num_consecutive_outliers=whole(),
        candidate_value=real(),
        candidate_run=whole(),
        before_jump=real(),
        jump_pending=no,
        jumps_stuck=real(1.5),
        jumps_reverted=real(0.5),
        scale=real(),
        tail=real(),
        extreme=real(),
        num_increments=whole(),
        missed_periods=whole(),
        stale=no,
        degraded_mode=no,
        degraded_mode_recovery_counter=whole(),
    )


def inspect(
    state: GateState, tick: ProcessState, forecast: Scalar, last_value: Scalar, config: PredictorConfig
) -> tuple[GateState, GateDecision]:
    """Judges one tick.

    ``forecast`` is the standing forecast and ``last_value`` the last accepted value, both in units of the symbol. Of
    the state returned, everything but the degraded mode is final; that one needs the hysteresis of :mod:`._degraded`.
    """
    dtype = state.scale.dtype
    value = tick.magnitude.astype(dtype)
    finite = jnp.isfinite(value) & (jnp.abs(value) < jnp.sqrt(jnp.finfo(dtype).max))
    value = jnp.where(finite, value, state.last_seen_value)
    seen_before = state.num_seen > 0
    gap = tick.timestamp_ns - state.last_seen_ns
    skew = tick.timestamp_ns - tick.record_timestamp_ns
    future = skew > config.max_future_drift_ns
    too_old = skew < -config.max_past_drift_ns
    duplicate = seen_before & (gap == 0)
    disordered = seen_before & (gap < 0)

    # One absurd time, far ahead, would make every tick after it disordered. What follows tells it from a true silence:
    # ticks in order between the time before the leap and the leap itself, and the third of them is believed.
    in_order = ~(future | too_old)
    usual_gap = jnp.maximum(config.max_past_drift_ns.astype(dtype), _LEAP_IN_GAPS * state.cadence_ns)
    may_return = (state.before_leap_ns > 0) | (state.num_seen == 1)
    returning = may_return & disordered & in_order & (tick.timestamp_ns > state.returned_ns)
    leap_returns = jnp.where(returning, state.leap_returns + 1, jnp.where(disordered, state.leap_returns, 0))
    clock_rebased = returning & (leap_returns >= _REBASE_TICKS)
    disordered = disordered & ~clock_rebased
    timely = in_order & ~(duplicate | disordered)
    leaps = timely & seen_before & ~clock_rebased & (gap.astype(dtype) > usual_gap)
    before_leap_ns = jnp.where(leaps, state.last_seen_ns, jnp.where(timely, 0, state.before_leap_ns))
    returned_ns = jnp.where(
        timely, jnp.where(leaps, state.last_seen_ns, 0), jnp.where(returning, tick.timestamp_ns, state.returned_ns)
    )

    # Cadence: a clipped running mean of log gaps, so that one long silence moves it by a few per cent.
    first_gap = state.cadence_ns <= 0
    gap_real = jnp.maximum(gap, 1).astype(dtype)
    log_ratio = jnp.log(safe_divide(gap_real, state.cadence_ns, 1.0))
    usable_gap = timely & seen_before & ~clock_rebased
    gap_known = usable_gap & ~first_gap
    cadence = jnp.where(
        usable_gap,
        jnp.where(first_gap, gap_real, state.cadence_ns * jnp.exp(0.05 * jnp.clip(log_ratio, -1.0, 1.0))),
        state.cadence_ns,
    )
    near = (jnp.abs(log_ratio) < _LOG_QUARTER).astype(dtype)
    regularity = jnp.where(gap_known, state.regularity + 0.02 * (near - state.regularity), state.regularity)
    counted_gap = gap_known & (regularity > _REGULAR_SHARE)
    periods = jnp.where(
        counted_gap, jnp.clip(jnp.round(safe_divide(gap_real, state.cadence_ns, 1.0)), 1.0, 1e6), 1.0
    ).astype(jnp.int32)

    stale_bound = jnp.maximum(config.staleness_ttl_ns.astype(dtype), config.staleness_cadence_factor * cadence)
    stale_now = _degraded.update_staleness(state.stale, gap_real, stale_bound, config)
    stale = jnp.where(gap_known, stale_now, state.stale & timely)
    sparse = gap_known & (gap_real > jnp.maximum(config.besov_nyquist_interval_ns.astype(dtype), 2.5 * cadence))

    observed = timely & finite
    # Frozen: a run of equal values that is improbable under the repetition rates as they stood when it began. Under
    # those of the moment a long run would excuse itself.
    repeated = observed & seen_before & (value == state.last_seen_value)
    equal_run = jnp.where(observed, jnp.where(repeated, state.equal_run + 1, 1), state.equal_run)
    min_steps = config.frozen_signal_min_steps
    run = equal_run.astype(dtype)
    start = min_steps.astype(dtype)
    log_chance = jnp.minimum(run, start) * jnp.log(state.run_repeat_rate)
    log_chance = log_chance + jnp.maximum(run - start, 0.0) * jnp.log(state.run_long_repeat_rate)
    freezes = repeated & (equal_run >= min_steps) & (log_chance < jnp.log(config.frozen_false_alarm_probability))
    moved_far = jnp.abs(value - state.last_seen_value) > jnp.sqrt(config.frozen_signal_recovery_ratio) * state.scale
    moved_steps = jnp.where(observed & state.frozen & ~repeated, state.moved_steps + 1, 0)
    thaws = observed & ~repeated & (moved_far | (moved_steps >= config.frozen_signal_recovery_steps))
    frozen = jnp.where(observed, (state.frozen & ~thaws) | freezes, state.frozen)
    long_run = state.equal_run >= min_steps
    is_repeat = repeated.astype(dtype)
    # Frozen runs teach the second rate too: a feed that repeats itself for long stretches is no broken sensor.
    teaches, teaches_long = observed & seen_before & ~long_run & ~state.frozen, observed & seen_before & long_run
    rate = ewma_rate(state.num_repeat_chances + _PRIOR_TICKS, jnp.asarray(_REPETITION_MEMORY, dtype))
    long_run_rate = ewma_rate(state.num_long_chances + _PRIOR_TICKS, jnp.asarray(_LONG_REPETITION_MEMORY, dtype))
    repeat_rate = jnp.where(teaches, state.repeat_rate + rate * (is_repeat - state.repeat_rate), state.repeat_rate)
    long_repeat_rate = jnp.where(
        teaches_long,
        state.long_repeat_rate + long_run_rate * (is_repeat - state.long_repeat_rate),
        state.long_repeat_rate,
    )
    repeat_rate = jnp.clip(repeat_rate, 1e-3, 0.999)
    long_repeat_rate = jnp.clip(long_repeat_rate, 1e-2, 0.999)
    run_begins = observed & ~repeated
    run_repeat_rate = _upper_bound(repeat_rate, rate)
    run_long_repeat_rate = jnp.maximum(_upper_bound(long_repeat_rate, long_run_rate), run_repeat_rate)

    # Outliers, measured from the standing forecast and widened by the square root of the time since the last good tick.
    missed = state.missed_periods + jnp.where(timely, periods - 1, 0)
    distance = jnp.minimum(jnp.abs(value - forecast), jnp.abs(value - last_value))
    known = state.num_increments >= _WARMUP_TICKS
    # A symbol whose ordinary increments have a heavy tail (a daily rush, say) sets its own bounds.
    widening = jnp.sqrt(1.0 + jnp.minimum(missed, 100).astype(dtype))
    spread, tail = state.scale * widening, state.tail * widening
    hard = known & (
        distance > jnp.maximum(config.sigma_bound * config.sigma_val * spread, _UNHEARD_OF * state.extreme * widening)
    )
    soft = known & (distance > jnp.maximum(_SUSPECT_SIGMAS * config.sigma_val * spread, _SUSPECT_TAILS * tail)) & ~hard
    returning = state.jump_pending & (jnp.abs(value - state.before_jump) < jnp.abs(value - state.candidate_value))
    reverting_symbol = state.jumps_reverted > state.jumps_stuck
    outlier = observed & (hard | (soft & reverting_symbol & ~returning))
    step_size = jnp.abs(value - state.candidate_value)
    moves_alike = (step_size <= config.outlier_cluster_sigmas * config.sigma_val * state.scale) & (
        (step_size > 0) | (repeat_rate > 0.5)
    )
    same_cluster = (state.num_consecutive_outliers > 0) & moves_alike
    candidate_run = jnp.where(outlier, jnp.where(same_cluster, state.candidate_run + 1, 1), 0)
    num_outliers = jnp.where(outlier, state.num_consecutive_outliers + 1, 0)
    rebased = outlier & ((candidate_run >= _REBASE_TICKS) | (num_outliers > config.outlier_max_consecutive))
    refused_outlier = outlier & ~rebased

    # Does a jump of this symbol stick? Settled by the tick after it.
    settled = observed & state.jump_pending
    stuck = jnp.where(settled & ~returning, 0.9 * state.jumps_stuck + 1.0, state.jumps_stuck)
    reverted = jnp.where(settled & returning, 0.9 * state.jumps_reverted + 1.0, state.jumps_reverted)
    jumped = observed & (hard | soft) & ~returning & ~rebased & ~settled
    accepted = observed & ~frozen & ~refused_outlier
    unheard = distance > jnp.maximum(
        config.alarm_jump_sigmas * config.sigma_val * spread, _UNHEARD_OF * state.extreme * widening
    )

    increment = jnp.abs(value - state.last_seen_value)
    scale_learns = accepted & seen_before & (increment > 0) & ~rebased & (state.num_consecutive_outliers == 0)
    clipped = jnp.where(known, jnp.minimum(increment, 5.0 * state.scale), increment)
    rate = ewma_rate(state.num_increments, jnp.asarray(200.0, dtype))
    scale = jnp.where(scale_learns, state.scale + rate * (1.2533141 * clipped - state.scale), state.scale)

    # The 0.95 quantile in the log domain, on the pinball gradient; the maximum fades to half in about 700 ticks.
    tail_rate = jnp.maximum(0.03, 1.0 / (state.num_increments.astype(dtype) + 2.0))
    tail_step = jnp.where(increment > state.tail, 0.95, -0.05) * tail_rate
    tail = jnp.where(state.num_increments < 5, jnp.maximum(state.tail, increment), state.tail * jnp.exp(tail_step))
    new_tail = jnp.where(scale_learns, tail, state.tail)
    # A jump that turned out to be real belongs to what this symbol does.
    faded = jnp.where(scale_learns, 0.999 * state.extreme, state.extreme)
    real_jump = jnp.where(rebased, jnp.abs(value - last_value), jnp.where(scale_learns, increment, 0.0))
    extreme = jnp.maximum(faded, real_jump)

    reasons = (
        jnp.where(finite, 0, int(GateReason.NOT_FINITE))
        + jnp.where(future, int(GateReason.FUTURE), 0)
        + jnp.where(too_old, int(GateReason.TOO_OLD), 0)
        + jnp.where(duplicate, int(GateReason.DUPLICATE), 0)
        + jnp.where(disordered, int(GateReason.OUT_OF_ORDER), 0)
        + jnp.where(refused_outlier, int(GateReason.OUTLIER), 0)
        + jnp.where(frozen & observed, int(GateReason.FROZEN), 0)
        + jnp.where(stale, int(GateReason.STALE), 0)
        + jnp.where(sparse, int(GateReason.SPARSE), 0)
        + jnp.where(rebased, int(GateReason.REBASED), 0)
    ).astype(jnp.int32)
    new_state = GateState(
        last_seen_ns=jnp.where(timely, tick.timestamp_ns, state.last_seen_ns),
        before_leap_ns=before_leap_ns,
        returned_ns=returned_ns,
        leap_returns=jnp.where(timely, 0, leap_returns).astype(jnp.int32),
        num_seen=state.num_seen + timely.astype(jnp.int32),
        num_accepted=state.num_accepted + accepted.astype(jnp.int32),
        cadence_ns=cadence,
        regularity=regularity,
        last_seen_value=jnp.where(observed & ~refused_outlier, value, state.last_seen_value),
        equal_run=equal_run,
        repeat_rate=repeat_rate,
        long_repeat_rate=long_repeat_rate,
        num_repeat_chances=state.num_repeat_chances + teaches.astype(jnp.int32),
        num_long_chances=state.num_long_chances + teaches_long.astype(jnp.int32),
        run_repeat_rate=jnp.where(run_begins, run_repeat_rate, state.run_repeat_rate),
        run_long_repeat_rate=jnp.where(run_begins, run_long_repeat_rate, state.run_long_repeat_rate),
        frozen=frozen,
        moved_steps=moved_steps,
        num_consecutive_outliers=jnp.where(
            observed, jnp.where(rebased, 0, num_outliers), state.num_consecutive_outliers
        ),
        candidate_value=jnp.where(outlier | jumped, value, state.candidate_value),
        candidate_run=jnp.where(observed, jnp.where(rebased, 0, candidate_run), state.candidate_run),
        before_jump=jnp.where(jumped, last_value, state.before_jump),
        jump_pending=jnp.where(observed, jumped, state.jump_pending),
        jumps_stuck=stuck,
        jumps_reverted=reverted,
        scale=scale,
        tail=new_tail,
        extreme=extreme,
        num_increments=state.num_increments + scale_learns.astype(jnp.int32),
        missed_periods=jnp.where(accepted, 0, state.missed_periods + jnp.where(timely, periods, 0)),
        stale=stale,
        degraded_mode=state.degraded_mode,
        degraded_mode_recovery_counter=state.degraded_mode_recovery_counter,
    )
    decision = GateDecision(
        accepted=accepted,
        reasons=reasons,
        rebased=rebased,
        jumped=accepted & (rebased | (known & unheard)),
        missed_before=jnp.where(accepted, missed, state.missed_periods),
        # A duplicate or a straggler says nothing about the health of the signal.
        degrading=(reasons & int(_DEGRADING_REASONS)) != 0,
    )
    return new_state, decision
