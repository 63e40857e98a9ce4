"""Change detection: a bank of cumulative sums on the innovations of a held reference model.

The reference is a whitening filter, fitted once on the first ``reference_fit_ticks`` ticks after a regime start and
then held, so that it cannot explain a change away. It is short, or long where that gains much: only a long one whitens
a season in noise, and so shows a change of its frequency. With z the standardised innovation, clipped to
+-``scale_clip``:

    level      G+ <- max(0, G+ + z - k),  G- <- max(0, G- - z - k)      k = cusum_k; a slower pair has k/2 (Page, 1954)
    scale      log-likelihood ratios of a doubled and of a halved standard deviation
    dynamics   products z_t z_{t-1} beyond an allowance of 0.35, both signs

Each threshold is its base, which comes by simulation from the mean time between false alarms that the operator asks
for, times 1 + ln(max(kurtosis, 3) / 3). Those of scale and dynamics have more room where volatility clusters.
"""

import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ._degraded import update_grace
from ._numerics import SD_FROM_MEAN_ABSOLUTE, huber_weight, solve_spd, where_needed
from ._parameters import RESIDUAL_CAPACITY, PredictorConfig
from ._types import AlarmKind, Count, Flag, Scalar

NUM_STATISTICS = 8
_LN2 = 0.6931471805599453
_DYNAMICS_ALLOWANCE = 0.35
_FIT_CAPACITY = 512
_SHORT_LAGS, _LONG_LAGS = 2, 11  # increments that the two filters look back on
REFERENCE_ORDER = _LONG_LAGS + 1  # values
# By how much higher the long filter's thresholds must be for false alarms on noisy sines to be as rare as asked.
_LONG_ROOM = 1.2
_FIT_SLACK, _SLOWLY = 2, 60  # ticks
_FORECAST_PERIODS = 12  # beyond the next, that the reference is iterated over
# Twice the log-likelihood that the long filter must gain. On what the short one whitens it is chi-squared with
# nine degrees of freedom, of which one in 100,000 is beyond this.
_LONG_EVIDENCE = 40.0
_CLUSTERING_LAGS = 20
_CLUSTERING_CLIP = 3.0
_CLUSTERING_MIN = 150  # innovations in a window that says something
_CLUSTERING_MEMORY = 5.0  # windows
_CLUSTERING_NOISE, _CLUSTERING_GAIN = 0.2, 10.0
_BEYOND_LARGEST = 1.5
_KINDS = (
    AlarmKind.LEVEL_UP,
    AlarmKind.LEVEL_DOWN,
    AlarmKind.LEVEL_UP,
    AlarmKind.LEVEL_DOWN,
    AlarmKind.SCALE_UP,
    AlarmKind.SCALE_DOWN,
    AlarmKind.DYNAMICS,
    AlarmKind.DYNAMICS,
)


class ReferenceModel(eqx.Module):
    """The held whitening filter: next increment = intercept + reversion (y - origin) + sum of lags_k d_k, with d_k the
    k-th last increment; units of the symbol. A short filter has zeros beyond its second lag.
    """

    origin: Scalar
    intercept: Scalar
    reversion: Scalar
    lags: Float[Array, " lags"]
    sd: Scalar
    ready: Flag


class ChangePointState(eqx.Module):
    """The bank, its window of innovations and the reference behind them."""

    reference: ReferenceModel
    previous_sd: Scalar
    statistics: Float[Array, " statistics"]
    starts: Int[Array, " statistics"]  # ticks since each statistic last stood at zero
    last_innovation: Scalar
    residual_window: Float[Array, " window"]
    residual_position: Count
    residual_count: Count
    moments: Float[Array, " 4"]  # sums of powers 1..4 over the window
    kurtosis: Scalar
    adaptive_h_t: Scalar
    grace_counter: Count
    ticks_in_regime: Count
    clustering: Scalar  # running sum of how much volatility clusters, and the windows behind it
    clustering_windows: Scalar
    largest: Scalar  # residual of the values that references were fitted on, units of the symbol


class Alarm(eqx.Module):
    """What the bank says after one tick."""

    raised: Flag
    kind: Count
    statistic: Scalar
    threshold: Scalar
    start_ticks_ago: Count


def init(config: PredictorConfig, dtype: jnp.dtype) -> ChangePointState:
    """No reference, statistics at zero."""
    zero = jnp.asarray(0.0, dtype)
    none = jnp.asarray(0, jnp.int32)
    reference = ReferenceModel(
        origin=zero,
        intercept=zero,
        reversion=zero,
        lags=jnp.zeros((_LONG_LAGS,), dtype),
        sd=zero,
        ready=jnp.asarray(False),
    )
    return ChangePointState(
        reference=reference,
        previous_sd=zero,
        statistics=jnp.zeros((NUM_STATISTICS,), dtype),
        starts=jnp.zeros((NUM_STATISTICS,), jnp.int32),
        last_innovation=zero,
        residual_window=jnp.zeros((RESIDUAL_CAPACITY,), dtype),
        residual_position=none,
        residual_count=none,
        moments=jnp.zeros((4,), dtype),
        kurtosis=jnp.asarray(3.0, dtype),
        adaptive_h_t=jnp.asarray(config.cusum_h, dtype),
        grace_counter=none,
        ticks_in_regime=none,
        clustering=zero,
        clustering_windows=zero,
        largest=zero,
    )


def jump_scale(state: ChangePointState, error_scale: Scalar, config: PredictorConfig) -> Scalar:
    """What a sudden jump is measured in while a reference is being fitted, units of the symbol.

    The spread of the last reference or the present one, the larger; and no jump alarms that is not well beyond what
    references were fitted on: a series that mostly repeats itself moves by six of its deviations all the time.
    """
    ordinary = _BEYOND_LARGEST * state.largest / config.alarm_jump_sigmas
    return jnp.maximum(jnp.maximum(jnp.maximum(state.previous_sd, error_scale), ordinary), 1e-30)


def reference_forecast(reference: ReferenceModel, past: Float[Array, " past"]) -> Scalar:
    """The reference's forecast of the next value from the last ``REFERENCE_ORDER``, newest first, units of the
    symbol.
    """
    return (
        past[0]
        + reference.intercept
        + reference.reversion * (past[0] - reference.origin)
        + jnp.sum(reference.lags * (past[:-1] - past[1:]))
    )


def reference_change(reference: ReferenceModel, past: Float[Array, " past"], periods: Count) -> Scalar:
    """The reference's forecast of the change from the next value to that ``periods`` after it, at most
    ``_FORECAST_PERIODS``; ``past`` as for :func:`reference_forecast`.
    """
    first = reference_forecast(reference, past)
    latest, reached = first, first
    for period in range(1, _FORECAST_PERIODS + 1):
        past = jnp.concatenate([latest[None], past[:-1]])
        latest = reference_forecast(reference, past)
        reached = jnp.where(period <= periods, latest, reached)
    return reached - first


def kurtosis_factor(kurtosis: Scalar) -> Scalar:
    """Inflation of every threshold for heavy tails: 1 + ln(max(kurtosis, 3) / 3), at least 1."""
    return 1.0 + jnp.log(jnp.maximum(kurtosis, 3.0) / 3.0)


def _window_kurtosis(moments: Float[Array, " 4"], count: Count) -> Scalar:
    """Kurtosis (normal: 3) from sums of powers; 3 while fewer than 8 values or no spread."""
    n = jnp.maximum(count.astype(moments.dtype), 1.0)
    m1, m2, m3, m4 = moments[0] / n, moments[1] / n, moments[2] / n, moments[3] / n
    variance = m2 - m1 * m1
    fourth = m4 - 4.0 * m1 * m3 + 6.0 * m1 * m1 * m2 - 3.0 * m1**4
    usable = (count >= 8) & (variance > 1e-6)
    ratio = fourth / jnp.where(usable, variance * variance, 1.0)
    return jnp.where(usable, jnp.clip(ratio, 1.0, 100.0), 3.0)


def _push_residual(state: ChangePointState, innovation: Scalar, config: PredictorConfig) -> ChangePointState:
    capacity = state.residual_window.shape[0]
    window = jnp.clip(config.residual_window_size, 8, capacity - 1)
    position = (state.residual_position + 1) % capacity
    leaving = state.residual_window[(position - window) % capacity]
    full = state.residual_count >= window
    out = jnp.where(full, leaving, 0.0)
    powers_in = jnp.stack([innovation, innovation**2, innovation**3, innovation**4])
    powers_out = jnp.stack([out, out**2, out**3, out**4])
    moments = state.moments + powers_in - powers_out
    count = jnp.minimum(state.residual_count + 1, window)
    slots = jnp.arange(capacity, dtype=jnp.int32)
    return eqx.tree_at(
        lambda s: (s.residual_window, s.residual_position, s.residual_count, s.moments, s.kurtosis),
        state,
        (
            jnp.where(slots == position, innovation, state.residual_window),
            position,
            count,
            moments,
            jax.lax.stop_gradient(_window_kurtosis(moments, count)),
        ),
    )


def update_cusum_statistics(
    state: ChangePointState, innovation: Scalar, jump: Scalar, jumped: Flag, config: PredictorConfig
) -> tuple[ChangePointState, Alarm]:
    """Moves the bank by one accepted tick.

    ``innovation`` is the reference's standardised innovation, ``jump`` the forecaster's error in standard deviations of
    the previous reference (it alone can alarm while a new reference is being fitted), ``jumped`` says that the gate
    re-based the level. Alarms are raised only while the grace counter is 0; during grace the statistics are held at 0.
    """
    ready = state.reference.ready
    clipped = jnp.clip(innovation, -config.scale_clip, config.scale_clip)
    pushed = _push_residual(state, jnp.clip(innovation, -20.0, 20.0), config)
    with_window = jax.tree.map(lambda new, old: jnp.where(ready, new, old), pushed, state)
    factor = jax.lax.stop_gradient(kurtosis_factor(with_window.kurtosis))
    slow = 0.5 * config.cusum_k
    square = clipped * clipped
    product = clipped * state.last_innovation
    steps = jnp.stack(
        [
            clipped - config.cusum_k,
            -clipped - config.cusum_k,
            clipped - slow,
            -clipped - slow,
            0.375 * square - _LN2,
            _LN2 - 1.5 * square,
            product - _DYNAMICS_ALLOWANCE,
            -product - _DYNAMICS_ALLOWANCE,
        ]
    )
    one = jnp.ones_like(config.cusum_h)
    ratios = jnp.stack(
        [
            one,
            one,
            config.cusum_slow_ratio,
            config.cusum_slow_ratio,
            config.scale_up_ratio,
            config.scale_down_ratio,
            config.dynamics_ratio,
            config.dynamics_ratio,
        ]
    )
    # A cumulative sum of autocorrelated terms wanders as far as its long-run variance: where volatility clusters, the
    # statistics of scale and of products need that much more room.
    room = jnp.stack([one, one, one, one, *[clustering_room(state)] * 4])
    # The simulation knows the short filter only.
    longer = jnp.where(state.reference.lags[-1] != 0.0, _LONG_ROOM, 1.0)
    thresholds = jax.lax.stop_gradient(config.cusum_h * factor * ratios * room * longer)
    in_grace = state.grace_counter > 0
    running = ready & ~in_grace
    statistics = jnp.where(running, jnp.maximum(state.statistics + steps, 0.0), 0.0)
    starts = jnp.where(statistics > 0, state.starts + 1, 0)
    crossed = (statistics > thresholds) & running
    excess = statistics / thresholds
    strongest = jnp.argmax(excess)
    jump_bound = config.alarm_jump_sigmas * factor
    sudden = ~in_grace & (jumped | (~ready & (state.previous_sd > 0) & (jnp.abs(jump) > jump_bound)))
    # A sum for small changes last stood at zero well before a large one: the latest start among those that ring or
    # are half as far.
    ringing = (excess > 0.5 * excess[strongest]) & (starts > 0)
    latest = jnp.min(jnp.where(ringing, starts, starts[strongest]))
    # What has rung from the fit on, slowly, shows a reference that never held; it is replaced in silence.
    held = state.ticks_in_regime + 1 - config.reference_fit_ticks
    never_held = ready & jnp.any(crossed) & ~sudden & (latest >= held - _FIT_SLACK) & (latest >= _SLOWLY)
    crossed = crossed & ~never_held
    raised, grace_counter = update_grace(state.grace_counter, jnp.any(crossed) | sudden, config)
    bits = jnp.asarray([int(kind) for kind in _KINDS], jnp.int32)
    kind = jnp.int32(0)
    for index in range(NUM_STATISTICS):
        kind = kind | jnp.where(crossed[index], bits[index], 0)
    kind = kind | jnp.where(sudden, int(AlarmKind.JUMP), 0).astype(jnp.int32)
    by_jump = sudden & ~jnp.any(crossed)
    start = jnp.where(by_jump, 0, latest)
    alarm = Alarm(
        raised=raised,
        kind=jnp.where(raised, kind, 0),
        statistic=jnp.where(by_jump, jnp.abs(jump), statistics[strongest]),
        threshold=jnp.where(by_jump, jump_bound, thresholds[strongest]),
        start_ticks_ago=jnp.where(raised, start, 0),
    )
    ends = raised | never_held
    reference = eqx.tree_at(lambda r: r.ready, state.reference, ready & ~ends)
    since = jnp.where(never_held, config.reference_fit_ticks, state.ticks_in_regime + 1)
    new_state = ChangePointState(
        reference=reference,
        previous_sd=jnp.where(raised & (state.reference.sd > 0), state.reference.sd, state.previous_sd),
        statistics=jnp.where(ends, 0.0, statistics),
        starts=jnp.where(ends, 0, starts).astype(jnp.int32),
        last_innovation=jnp.where(ready & ~ends, clipped, 0.0),
        residual_window=with_window.residual_window,
        residual_position=with_window.residual_position,
        # A new reference starts a new window: innovations of two references do not mix.
        residual_count=jnp.where(ends, 0, with_window.residual_count),
        moments=jnp.where(ends, 0.0, with_window.moments),
        kurtosis=jnp.where(ends, 3.0, with_window.kurtosis),
        adaptive_h_t=config.cusum_h * factor,
        grace_counter=grace_counter,
        ticks_in_regime=jnp.where(raised, start, since).astype(jnp.int32),
        clustering=state.clustering,
        clustering_windows=state.clustering_windows,
        largest=state.largest,
    )
    return new_state, alarm


def fit_due(state: ChangePointState, config: PredictorConfig) -> Flag:
    """Whether enough ticks of the present regime have come to fit its reference."""
    return ~state.reference.ready & (state.ticks_in_regime >= config.reference_fit_ticks)


def refresh_reference(
    state: ChangePointState, history: Float[Array, " history"], newest: Scalar, scale: Scalar, config: PredictorConfig
) -> ChangePointState:
    """:func:`fit_reference` where it is due (one refresh in many), and how volatility clusters under a held one."""
    capacity = state.residual_window.shape[0]
    ages = jnp.arange(capacity - 1, -1, -1, dtype=jnp.int32)
    innovations = state.residual_window[(state.residual_position - ages) % capacity]
    used = (ages < state.residual_count).astype(innovations.dtype)
    share = jnp.where(
        state.reference.ready & (state.residual_count >= _CLUSTERING_MIN), config.refresh_interval / capacity, 0.0
    )
    watched = _learn_clustering(state, _clustering(innovations, used), share)
    return where_needed(fit_due(state, config), fit_reference, watched, watched, history, newest, scale, config)


def fit_reference(
    state: ChangePointState, history: Float[Array, " history"], newest: Scalar, scale: Scalar, config: PredictorConfig
) -> ChangePointState:
    """Fits the reference on the last ``reference_fit_ticks`` values by iterated Huber-weighted least squares.

    ``history`` is oldest first, relative to ``newest`` and in units of ``scale``. Near a unit root (reversion weaker
    than 13/n, about the 5 % point of Dickey and Fuller) the filter is fitted on differences.
    """
    dtype = history.dtype
    recent = history[-_FIT_CAPACITY:]
    num_rows = _FIT_CAPACITY - REFERENCE_ORDER
    count = jnp.clip(config.reference_fit_ticks, 32, num_rows)
    index = jnp.arange(num_rows, dtype=jnp.int32)
    used = (index >= (num_rows - count)).astype(dtype)
    lagged = [recent[REFERENCE_ORDER - lag : -lag] for lag in range(1, REFERENCE_ORDER + 1)]
    target = recent[REFERENCE_ORDER:] - lagged[0]
    n = jnp.sum(used)
    origin = jnp.sum(used * lagged[0]) / n
    increments = [newer - older for newer, older in itertools.pairwise(lagged)]
    columns = jnp.stack([jnp.ones_like(target), lagged[0] - origin, *increments], axis=1)

    def fit(weights: Float[Array, " rows"], ridge: Float[Array, " columns"]) -> Float[Array, " columns"]:
        weighted = columns * weights[:, None]
        gram = jnp.sum(weighted[:, :, None] * columns[:, None, :], axis=0) + jnp.diag(ridge)
        return solve_spd(gram, jnp.sum(weighted * target[:, None], axis=0))

    def robust_fit(
        ridge: Float[Array, " columns"], num_parameters: Scalar
    ) -> tuple[Float[Array, " columns"], Scalar, Scalar]:
        weights = used
        coefficients = fit(weights, ridge)
        spread = jnp.asarray(1.0, dtype)
        for _ in range(3):
            residual = target - jnp.sum(columns * coefficients[None, :], axis=1)
            spread = SD_FROM_MEAN_ABSOLUTE * jnp.sum(used * jnp.abs(residual)) / n + 1e-12
            weights = used * huber_weight(residual / spread, 2.0)
            coefficients = fit(weights, ridge)
        residual = target - jnp.sum(columns * coefficients[None, :], axis=1)
        left = jnp.maximum(n - num_parameters, 1.0)
        power = n * spread * spread
        for _ in range(3):
            bounded = jnp.clip(residual, -config.scale_clip * spread, config.scale_clip * spread)
            power = jnp.sum(used * bounded * bounded)
            spread = jnp.sqrt(power / left) + 1e-12
        return coefficients, spread, power

    # A column is left out by a ridge that nothing outweighs. The long filter's further lags are held a little, so that
    # a series without noise does not get a reference of arbitrary precision.
    out = 1e12
    small = jnp.full((2 + _SHORT_LAGS,), 1e-6, dtype) * n
    further = jnp.ones((_LONG_LAGS - _SHORT_LAGS,), dtype)
    ridges = jnp.stack([jnp.concatenate([small, out * further]), jnp.concatenate([small, 1e-3 * n * further])])
    sizes = jnp.asarray([2.0 + _SHORT_LAGS, 2.0 + _LONG_LAGS], dtype)
    both, both_sd, both_power = jax.vmap(robust_fit)(ridges, sizes)
    is_long = n * (jnp.log(both_power[0] + 1e-30) - jnp.log(both_power[1] + 1e-30)) > _LONG_EVIDENCE
    ridge, size = jnp.where(is_long, ridges[1], ridges[0]), jnp.where(is_long, sizes[1], sizes[0])
    stationary, stationary_sd = jnp.where(is_long, both[1], both[0]), jnp.where(is_long, both_sd[1], both_sd[0])
    unit_root, unit_root_sd, _ = robust_fit(ridge.at[1].set(out), size)
    is_unit_root = stationary[1] > -13.0 / n
    coefficients = jnp.where(is_unit_root, unit_root, stationary)
    sd = jnp.where(is_unit_root, unit_root_sd, stationary_sd)
    # Ahead of the fitted ticks a filter misses by more, the more parameters it has; what the short one misses by is in
    # the simulated thresholds.
    sd = sd * jnp.sqrt((1.0 + size / n) / (1.0 + sizes[0] / n))
    kept = ridge < out  # rounding leaves traces in what was left out
    coefficients = jnp.where(kept, coefficients, 0.0)
    reference = ReferenceModel(
        origin=newest + origin * scale,
        intercept=coefficients[0] * scale,
        reversion=jnp.where(is_unit_root, 0.0, coefficients[1]),
        lags=coefficients[2:],
        sd=sd * scale,
        ready=jnp.asarray(True),
    )
    residual = target - jnp.sum(columns * coefficients[None, :], axis=1)
    learnt = _learn_clustering(state, _clustering(residual / sd, used), jnp.asarray(1.0, dtype))
    largest = jnp.maximum(jnp.max(used * jnp.abs(residual)) * scale, 0.8 * state.largest)
    ticks = jnp.maximum(state.ticks_in_regime, config.reference_fit_ticks).astype(jnp.int32)
    return eqx.tree_at(lambda s: (s.reference, s.largest, s.ticks_in_regime), learnt, (reference, largest, ticks))


def _clustering(innovations: Float[Array, " rows"], used: Float[Array, " rows"]) -> Scalar:
    """Sum of the first autocorrelations of absolute innovations, oldest first, those that are ``used``."""
    n = jnp.maximum(jnp.sum(used), 1.0)
    sizes = jnp.minimum(jnp.abs(innovations), _CLUSTERING_CLIP)
    centred = used * (sizes - jnp.sum(used * sizes) / n)
    power = jnp.sum(centred * centred) + 1e-12
    total = jnp.zeros_like(power)
    for lag in range(1, _CLUSTERING_LAGS + 1):
        total = total + jnp.sum(centred[lag:] * centred[:-lag])
    return total / power


def _learn_clustering(state: ChangePointState, found: Scalar, share: Scalar) -> ChangePointState:
    """Takes in what one window ``found``, which is new by ``share``."""
    keep = 1.0 - share / _CLUSTERING_MEMORY
    return eqx.tree_at(
        lambda s: (s.clustering, s.clustering_windows),
        state,
        (keep * state.clustering + share * found, keep * state.clustering_windows + share),
    )


def clustering_room(state: ChangePointState) -> Scalar:
    """Inflation of the thresholds of scale and dynamics where volatility clusters, at least 1.

    The mean over windows is shrunk towards zero by a window without any. Independent innovations show -0.1 on
    average, a standard deviation of 0.3 for one window; GARCH(1, 1) as returns have it shows 0.5 to 1.5.
    """
    mean = state.clustering / (state.clustering_windows + 1.0)
    return 1.0 + _CLUSTERING_GAIN * jnp.maximum(mean - _CLUSTERING_NOISE, 0.0)
