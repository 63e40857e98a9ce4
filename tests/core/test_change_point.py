"""Change detection: when it alarms, when it must not, and what its reference is worth."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from usp_daemon.core import PredictorConfig
from usp_daemon.core import _change_point as change
from usp_daemon.core._parameters import HISTORY_CAPACITY
from usp_daemon.core._types import AlarmKind

CONFIG = PredictorConfig().as_arrays()
FLOAT64 = np.dtype("float64")


@jax.jit
def _run(state, innovations, config):
    """Many ticks; the reference is declared ready again after every alarm, so that only the bank is under test."""

    def step(carry, innovation):
        carry, alarm = change.update_cusum_statistics(carry, innovation, jnp.asarray(0.0), jnp.asarray(False), config)
        seen = (alarm, carry.statistics, carry.adaptive_h_t, carry.grace_counter, carry.kurtosis)
        return dataclasses.replace(carry, reference=_ready(carry.reference)), seen

    return jax.lax.scan(step, state, innovations)


def _ready(reference):
    return dataclasses.replace(reference, ready=jnp.asarray(True), sd=jnp.asarray(1.0))


def _start(config=CONFIG):
    state = change.init(config, FLOAT64)
    fitted = jnp.asarray(config.reference_fit_ticks, jnp.int32)
    return dataclasses.replace(state, reference=_ready(state.reference), ticks_in_regime=fitted)


def _with(**values):
    return dataclasses.replace(PredictorConfig(), **values).as_arrays()


def _alarm_ticks(innovations: np.ndarray, config=CONFIG) -> np.ndarray:
    _, (alarm, *_) = _run(_start(config), jnp.asarray(innovations), config)
    return np.flatnonzero(np.asarray(alarm.raised))


@pytest.mark.parametrize("grace", [0, 1, 7, 20])
def test_a_persistent_signal_alarms_every_grace_plus_one_ticks(grace: int) -> None:
    # 4 - k per tick crosses 2 on the first tick it is let to.
    config = _with(grace_period_steps=grace, cusum_h=2.0)
    ticks = _alarm_ticks(np.full(300, 10.0), config)
    assert ticks[0] == 0
    assert set(np.diff(ticks).tolist()) == {grace + 1}


def test_statistics_stand_at_zero_during_grace() -> None:
    config = _with(grace_period_steps=20, cusum_h=2.0)
    _, (alarm, statistics, _, counter, _) = _run(_start(config), jnp.full(100, 10.0), config)
    raised, counter = np.asarray(alarm.raised), np.asarray(counter)
    assert (np.asarray(statistics)[counter > 0] == 0.0).all()
    assert not raised[np.flatnonzero(raised)[0] + 1 : np.flatnonzero(raised)[1]].any()
    np.testing.assert_array_equal(counter[:23], [20, *range(19, -1, -1), 20, 19])


def test_alarm_exactly_when_a_statistic_exceeds_its_threshold() -> None:
    generator = np.random.default_rng(5)
    innovations = generator.standard_normal(4000)
    innovations[1000:1500] += 1.0
    innovations[2500:3000] -= 1.0
    h, k = 6.0, 0.5
    config = _with(cusum_h=h, cusum_k=k, cusum_slow_ratio=1e6, scale_up_ratio=1e6, scale_down_ratio=1e6,
                   dynamics_ratio=1e6)  # fmt: skip
    _, (alarm, statistics, threshold, _, _) = _run(_start(config), jnp.asarray(innovations), config)
    raised, statistics, threshold = np.asarray(alarm.raised), np.asarray(statistics), np.asarray(threshold)
    up = down = 0.0
    grace = 0
    count = 0
    for t, innovation in enumerate(np.clip(innovations, -4.0, 4.0)):
        up = 0.0 if grace else max(up + innovation - k, 0.0)
        down = 0.0 if grace else max(down - innovation - k, 0.0)
        expected = max(up, down) > threshold[t]
        assert raised[t] == expected, t
        if expected:
            assert float(alarm.statistic[t]) == pytest.approx(max(up, down))
            assert float(alarm.threshold[t]) == pytest.approx(threshold[t])
            assert int(alarm.kind[t]) == (AlarmKind.LEVEL_UP if up > down else AlarmKind.LEVEL_DOWN)
            up = down = 0.0
            count += 1
        else:
            assert statistics[t, 0] == pytest.approx(up, abs=1e-9)
            assert statistics[t, 1] == pytest.approx(down, abs=1e-9)
        grace = 20 if expected else max(grace - 1, 0)
    assert count >= 4


def test_the_threshold_is_the_base_times_the_kurtosis_factor() -> None:
    generator = np.random.default_rng(6)
    quiet = _with(cusum_h=1e3)  # the end of a reference would start a new window
    _, (alarm, _, threshold, _, kurtosis) = _run(_start(quiet), jnp.asarray(generator.standard_t(4, 600) / 4.0), quiet)
    assert not np.asarray(alarm.raised).any()
    kurtosis, threshold = np.asarray(kurtosis), np.asarray(threshold)
    np.testing.assert_allclose(threshold, 1e3 * (1.0 + np.log(np.maximum(kurtosis, 3.0) / 3.0)), rtol=1e-12)
    assert kurtosis.max() > 3.5


def test_kurtosis_is_that_of_the_last_window() -> None:
    quiet = _with(cusum_h=1e9)
    innovations = np.random.default_rng(7).standard_normal(2000)
    _, (*_, kurtosis) = _run(_start(quiet), jnp.asarray(innovations), quiet)
    kurtosis = np.asarray(kurtosis)
    for t in (100, 251, 252, 1000, 1999):
        window = innovations[max(0, t - 251) : t + 1]
        deviation = window - window.mean()
        assert kurtosis[t] == pytest.approx(np.mean(deviation**4) / np.mean(deviation**2) ** 2, rel=1e-8)
    assert 2.5 < kurtosis[1999] < 3.5


@pytest.mark.parametrize(
    ("kind", "make"),
    [
        (AlarmKind.LEVEL_UP, lambda z: z + 1.5),
        (AlarmKind.LEVEL_DOWN, lambda z: z - 1.5),
        (AlarmKind.SCALE_UP, lambda z: 2.5 * z),
        (AlarmKind.SCALE_DOWN, lambda z: 0.2 * z),
        (AlarmKind.DYNAMICS, lambda z: _autoregression(z, 0.8)),
        (AlarmKind.DYNAMICS, lambda z: _autoregression(z, -0.8)),
    ],
    ids=["up", "down", "wider", "narrower", "persistent", "alternating"],
)
def test_each_statistic_finds_its_own_change(kind: AlarmKind, make) -> None:
    noise = np.random.default_rng(8).standard_normal(800)
    noise[400:] = make(noise[400:])
    # Strong autocorrelation wanders, which the level statistics see first: they are silenced for it.
    alone = _with(cusum_k=3.0, cusum_slow_ratio=1e6, scale_up_ratio=1e6, scale_down_ratio=1e6)
    config = alone if kind == AlarmKind.DYNAMICS else CONFIG
    _, (alarm, *_) = _run(_start(config), jnp.asarray(noise), config)
    ticks = np.flatnonzero(np.asarray(alarm.raised))
    assert ticks.size, "no alarm"
    assert 400 <= ticks[0] < 560, ticks
    assert int(alarm.kind[ticks[0]]) & kind
    assert 0 < int(alarm.start_ticks_ago[ticks[0]]) <= ticks[0] - 380


def _autoregression(noise: np.ndarray, coefficient: float) -> np.ndarray:
    out = np.zeros_like(noise)
    for t in range(1, noise.size):
        out[t] = coefficient * out[t - 1] + noise[t] * np.sqrt(1.0 - coefficient**2)
    return out


def test_heavy_tails_alarm_less_often_than_with_a_fixed_threshold() -> None:
    """Against the same bank with the threshold held at its base, counted over the same innovations."""
    config = _with(cusum_h=5.0, cusum_slow_ratio=1e6, scale_up_ratio=1e6, scale_down_ratio=1e6, dynamics_ratio=1e6)
    adaptive, fixed = 0, 0
    for seed in range(3):
        innovations = np.random.default_rng(seed).standard_t(4, 6000)
        adaptive += _alarm_ticks(innovations, config).size
        up = down = 0.0
        grace = 0
        for innovation in np.clip(innovations, -4.0, 4.0):
            up = 0.0 if grace else max(up + innovation - 0.5, 0.0)
            down = 0.0 if grace else max(down - innovation - 0.5, 0.0)
            grace = max(grace - 1, 0)
            if max(up, down) > 5.0:
                fixed += 1
                up = down = 0.0
                grace = 20
    assert fixed > 30
    assert adaptive < 0.7 * fixed


def test_gaussian_innovations_seldom_alarm() -> None:
    ticks = [_alarm_ticks(np.random.default_rng(seed).standard_normal(6000)).size for seed in range(4)]
    assert sum(ticks) <= 16


def test_one_innovation_counts_only_up_to_the_clip() -> None:
    for far in (20.0, 1e6):
        _, (alarm, statistics, *_) = _run(_start(), jnp.asarray([far]), CONFIG)
        assert not bool(alarm.raised[0])
        assert float(statistics[0, 0]) == pytest.approx(4.0 - 0.5)


def test_nothing_moves_without_a_reference() -> None:
    state = change.init(CONFIG, FLOAT64)
    for _ in range(5):
        state, alarm = change.update_cusum_statistics(
            state, jnp.asarray(50.0), jnp.asarray(50.0), jnp.asarray(False), CONFIG
        )
        assert not bool(alarm.raised)
        assert (np.asarray(state.statistics) == 0.0).all()
    assert int(state.ticks_in_regime) == 5


def test_a_jump_alarms_while_a_new_reference_is_being_fitted() -> None:
    state = change.init(CONFIG, FLOAT64)
    state = dataclasses.replace(state, previous_sd=jnp.asarray(1.0))
    _, alarm = change.update_cusum_statistics(state, jnp.asarray(0.0), jnp.asarray(-6.5), jnp.asarray(False), CONFIG)
    assert bool(alarm.raised)
    assert int(alarm.kind) == AlarmKind.JUMP
    _, alarm = change.update_cusum_statistics(state, jnp.asarray(0.0), jnp.asarray(5.5), jnp.asarray(False), CONFIG)
    assert not bool(alarm.raised)


def test_a_rebased_level_alarms_unless_in_grace() -> None:
    for grace, expected in ((0, True), (3, False)):
        state = dataclasses.replace(_start(), grace_counter=jnp.asarray(grace, jnp.int32))
        _, alarm = change.update_cusum_statistics(state, jnp.asarray(0.0), jnp.asarray(0.0), jnp.asarray(True), CONFIG)
        assert bool(alarm.raised) is expected


# -- the reference -----------------------------------------------------------------------------------------------------


@jax.jit
def _fit(history, newest, scale, config):
    return change.fit_reference(change.init(config, FLOAT64), history, newest, scale, config).reference


def _relative(series: np.ndarray, scale: float) -> tuple[jnp.ndarray, jnp.ndarray, jnp.ndarray]:
    padded = np.concatenate([np.full(max(HISTORY_CAPACITY - series.size, 0), series[0]), series])[-HISTORY_CAPACITY:]
    return jnp.asarray((padded - series[-1]) / scale), jnp.asarray(series[-1]), jnp.asarray(scale)


def _innovations(reference, series: np.ndarray) -> np.ndarray:
    order = change.REFERENCE_ORDER
    past = np.lib.stride_tricks.sliding_window_view(series[:-1], order)[:, ::-1]
    forecasts = jax.vmap(lambda p: change.reference_forecast(reference, p))(jnp.asarray(past))
    return (series[order:] - np.asarray(forecasts)) / float(reference.sd)


def test_the_reference_whitens_an_autoregression() -> None:
    series = 100.0 + 3.0 * _autoregression(np.random.default_rng(9).standard_normal(1200), 0.7)
    reference = _fit(*_relative(series[:1000], 2.0), CONFIG)
    assert float(reference.reversion) == pytest.approx(-0.3, abs=0.15)
    assert bool(reference.ready)
    innovations = _innovations(reference, series)
    assert innovations.std() == pytest.approx(1.0, abs=0.15)
    assert abs(np.corrcoef(innovations[1:], innovations[:-1])[0, 1]) < 0.12


def test_a_random_walk_is_fitted_on_differences() -> None:
    held = 0
    for seed in range(8):
        series = np.cumsum(np.random.default_rng(seed).standard_normal(600))
        reference = _fit(*_relative(series, 1.0), CONFIG)
        held += float(reference.reversion) == 0.0
        assert float(reference.sd) == pytest.approx(1.0, abs=0.2)
    assert held >= 7


def test_outliers_in_the_fitted_stretch_do_not_spoil_the_reference() -> None:
    series = _autoregression(np.random.default_rng(10).standard_normal(600), 0.5)
    spoilt = series.copy()
    spoilt[[450, 500, 560]] += 40.0
    clean, dirty = _fit(*_relative(series, 1.0), CONFIG), _fit(*_relative(spoilt, 1.0), CONFIG)
    assert float(dirty.sd) < 2.0 * float(clean.sd)


def _wave(period: float, noise: np.ndarray) -> np.ndarray:
    return 2.0 * np.sin(2.0 * np.pi * np.arange(noise.size) / period) + 0.5 * noise


@pytest.mark.parametrize("coefficient", [0.0, 0.6, -0.5])
def test_what_a_short_filter_whitens_gets_a_short_one(coefficient: float) -> None:
    for seed in range(25):
        noise = np.random.default_rng([20, seed]).standard_normal(400)
        reference = _fit(*_relative(_autoregression(noise, coefficient), 1.0), CONFIG)
        assert (np.asarray(reference.lags)[2:] == 0.0).all()


@pytest.mark.parametrize(("before", "after"), [(19.0, 11.0), (11.0, 19.0), (24.0, 14.0)])
def test_a_change_of_frequency_alone_alarms(before: float, after: float) -> None:
    noise = np.random.default_rng(21).standard_normal(1000)
    series = _wave(before, noise)
    reference = _fit(*_relative(series[:500], 1.0), CONFIG)
    assert np.count_nonzero(np.asarray(reference.lags)) == change.REFERENCE_ORDER - 1
    assert _innovations(reference, series).std() == pytest.approx(1.0, abs=0.15)
    assert _alarm_ticks(_innovations(reference, series[400:])).size == 0
    changed = np.concatenate([series[:500], _wave(after, noise[500:])])
    ticks = _alarm_ticks(_innovations(reference, changed[400:])) + 400 + change.REFERENCE_ORDER
    assert ticks.size
    assert 500 <= ticks[0] < 550


def test_the_reference_carried_on_is_its_own_recursion() -> None:
    reference = _fit(*_relative(_wave(17.0, np.random.default_rng(22).standard_normal(600)), 1.0), CONFIG)
    past = _wave(17.0, np.random.default_rng(23).standard_normal(50))[::-1][: change.REFERENCE_ORDER]
    values = list(past)
    for _ in range(13):
        forecast = (
            values[0] + float(reference.intercept) + float(reference.reversion) * (values[0] - float(reference.origin))
        )
        forecast += sum(float(c) * (values[k] - values[k + 1]) for k, c in enumerate(np.asarray(reference.lags)))
        values.insert(0, forecast)
    path = values[::-1][change.REFERENCE_ORDER :]
    for periods, expected in ((0, 0.0), (1, path[1] - path[0]), (5, path[5] - path[0]), (12, path[12] - path[0]),
                              (40, path[12] - path[0])):  # fmt: skip
        found = change.reference_change(reference, jnp.asarray(past), jnp.asarray(periods, jnp.int32))
        assert float(found) == pytest.approx(expected, abs=1e-9)


def test_a_reference_that_never_held_is_replaced_in_silence() -> None:
    """A slope from the very fit on is the reference's error; the same slope after quiet ticks is a change."""
    config = _with(cusum_h=8.0, scale_down_ratio=1e6)
    for quiet, alarms in ((0, False), (30, True)):
        state, raised, ended = _start(config), False, False
        for innovation in [*np.zeros(quiet), *np.full(250, 0.4)]:
            if not bool(state.reference.ready):
                break
            state, alarm = _tick(state, jnp.asarray(innovation), config)
            raised |= bool(alarm.raised)
            ended |= not bool(state.reference.ready)
        assert ended
        assert raised is alarms
        if not alarms:
            assert bool(change.fit_due(state, config))
            assert float(jnp.max(state.statistics)) == 0.0


@jax.jit
def _tick(state, innovation, config):
    return change.update_cusum_statistics(state, innovation, jnp.asarray(0.0), jnp.asarray(False), config)


def test_the_start_is_the_latest_of_the_sums_that_ring() -> None:
    """A small slope keeps the slow sum up; the jump that then rings is dated where it began."""
    config = _with(cusum_h=8.0, cusum_slow_ratio=3.0, scale_down_ratio=1e6)
    innovations = np.concatenate([np.zeros(20), np.full(40, 0.3), np.full(20, 3.0)])
    _, (alarm, *_) = _run(_start(config), jnp.asarray(innovations), config)
    first = np.flatnonzero(np.asarray(alarm.raised))[0]
    assert 60 <= first < 66
    assert first - int(alarm.start_ticks_ago[first]) == 59


# -- clustering of volatility ------------------------------------------------------------------------------------------


def _garch(generator: np.random.Generator, size: int) -> np.ndarray:
    noise, variance = np.empty(size), 1.0
    for t in range(size):
        noise[t] = np.sqrt(variance) * generator.standard_normal()
        variance = 0.02 + 0.1 * noise[t] ** 2 + 0.88 * variance
    return noise


@jax.jit
def _watched(state, innovations, config):
    """The bank over many ticks with a refresh every 50, alarms out of reach."""

    def step(state, innovation):
        state, _ = change.update_cusum_statistics(state, innovation, jnp.asarray(0.0), jnp.asarray(False), config)
        return state, None

    def stretch(state, innovations):
        state, _ = jax.lax.scan(step, state, innovations)
        nothing = jnp.zeros(HISTORY_CAPACITY)
        state = change.refresh_reference(state, nothing, jnp.asarray(0.0), jnp.asarray(1.0), config)
        return state, change.clustering_room(state)

    return jax.lax.scan(stretch, state, innovations.reshape(-1, 50))


def test_clusters_of_volatility_make_room_and_independent_noise_does_not() -> None:
    quiet = _with(cusum_h=1e9)
    for seed in range(5):
        generator = np.random.default_rng([24, seed])
        for noise, low, high in (
            (_garch(generator, 3000), 3.0, 30.0),
            (generator.standard_normal(3000), 1.0, 1.5),
            (generator.standard_t(4, 3000) / np.sqrt(2.0), 1.0, 1.5),
        ):
            state, room = _watched(_start(quiet), jnp.asarray(noise), quiet)
            assert low <= float(room[-1]) <= high
    # it outlives the reference that it was learnt under
    raised, alarm = change.update_cusum_statistics(state, jnp.asarray(0.0), jnp.asarray(0.0), jnp.asarray(True), quiet)
    assert bool(alarm.raised)
    assert float(change.clustering_room(raised)) == float(room[-1])


def test_the_measure_of_clustering_is_a_sum_of_autocorrelations() -> None:
    innovations = _garch(np.random.default_rng(25), 256)
    used = np.arange(256) >= 40
    sizes = np.minimum(np.abs(innovations[40:]), 3.0)
    sizes = sizes - sizes.mean()
    expected = sum(np.sum(sizes[lag:] * sizes[:-lag]) for lag in range(1, 21)) / np.sum(sizes**2)
    found = change._clustering(jnp.asarray(innovations), jnp.asarray(used, jnp.float64))
    assert float(found) == pytest.approx(expected, rel=1e-9)


def test_everything_scales_with_the_symbol() -> None:
    """Reference, innovations and so alarms are the same for a symbol in other units and at another level."""
    noise = np.random.default_rng(11).standard_normal(1000)
    base = _autoregression(noise, 0.6)
    references = {}
    for factor, offset in ((0.01, 0.0), (0.5, 10.0), (1e6, -1e7)):
        series = offset + factor * base
        references[factor] = (_fit(*_relative(series, factor), CONFIG), series)
    small, series = references[0.01]
    expected = _innovations(small, series)
    for factor, (reference, series) in references.items():
        assert float(reference.sd) / float(small.sd) == pytest.approx(factor / 0.01, rel=1e-6)
        assert float(reference.reversion) == pytest.approx(float(small.reversion), rel=1e-6)
        np.testing.assert_allclose(_innovations(reference, series), expected, atol=1e-6)
    # A drift that is large for the one is nothing for the other: the threshold on the raw scale moves with its sd.
    drift = 0.05
    assert _alarm_ticks(expected[-400:] + drift / float(small.sd)).size > 0
    large, series = references[0.5]
    assert _alarm_ticks(_innovations(large, series)[-400:] + drift / float(large.sd)).size == 0
    assert _alarm_ticks(_innovations(large, series)[-400:] + 2.0 / float(large.sd)).size > 0


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_degenerate_histories_give_a_finite_reference(dtype) -> None:
    config = PredictorConfig().as_arrays(dtype)
    ramp = np.linspace(-1e6, 0.0, HISTORY_CAPACITY)
    for history in (np.zeros(HISTORY_CAPACITY), ramp, np.where(np.arange(HISTORY_CAPACITY) % 2, 1e6, 0.0)):
        state = jax.jit(change.fit_reference)(
            change.init(config, np.dtype(dtype)),
            jnp.asarray(history, dtype),
            jnp.asarray(1.0, dtype),
            jnp.asarray(1.0, dtype),
            config,
        )
        for leaf in jax.tree.leaves(state.reference):
            assert np.isfinite(np.asarray(leaf)).all()
        assert float(state.reference.sd) > 0.0
