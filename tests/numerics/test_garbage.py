"""Whatever comes in: finite numbers, weights on the simplex, a refused tick leaves the model alone, and it heals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from usp_daemon import core
from usp_daemon.core import PredictionResult, PredictorConfig

from . import lanes, series

DTYPES = {"float64": jnp.float64, "float32": jnp.float32}
CONFIG = PredictorConfig(fusion_method="jko_proximal")
ATOL = PredictorConfig().validation_simplex_atol
NUM_LANES = lanes.WIDTH
SECOND, START = lanes.SECOND, lanes.START
INT64 = np.iinfo(np.int64)

# What may stand in the place of an ordinary value; c is the ordinary one, s the symbol's usual increment.
VALUES = {
    "ordinary": lambda g, c, s: c,
    "nan": lambda g, c, s: np.nan,
    "infinite": lambda g, c, s: g.choice([np.inf, -np.inf]),
    "largest": lambda g, c, s: g.choice([1e308, -1e308, 3.4e38, -3.4e38]),
    "large": lambda g, c, s: g.choice([-1.0, 1.0]) * 10.0 ** g.uniform(10.0, 160.0),
    "subnormal": lambda g, c, s: g.choice([5e-324, -5e-324, 1e-310, 1e-42, -1e-42]),
    "zero": lambda g, c, s: g.choice([0.0, -0.0]),
    "jump": lambda g, c, s: c + g.choice([-1.0, 1.0]) * s * 10.0 ** g.uniform(1.0, 8.0),
    "stuck": lambda g, c, s: None,  # the last value that was sent
}
# What may become of the time of the tick, and of its record; t is the ordinary one.
TIMES = {
    "ordinary": lambda g, t: (t, t),
    "duplicate": lambda g, t: (t - SECOND, t),
    "disordered": lambda g, t: (t - int(g.integers(1, 100)) * SECOND // 3, t),
    "future": lambda g, t: (t + int(10.0 ** g.uniform(9.1, 18.0)), t),
    "ancient": lambda g, t: (int(g.choice([0, -1, INT64.min, INT64.max, t - 10**18])), t),
    "absurd": lambda g, t: (x := int(g.choice([0, 1, INT64.min, INT64.max, -(10**17)])), x),
    "silence": lambda g, t: (t + 40 * SECOND, t + 40 * SECOND),
}
HEALABLE_TIMES = tuple(name for name in TIMES if name != "absurd")
Script = list[tuple[str, str, int]]
scripts = st.lists(
    st.tuples(st.sampled_from(tuple(VALUES)), st.sampled_from(tuple(TIMES)), st.integers(1, 12)), min_size=2, max_size=8
)


def clean(num: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Ordinary series of every family, one a lane, at levels and scales of many sizes, and their usual increments."""
    names = tuple(series.FAMILIES)
    columns = []
    for lane in range(NUM_LANES):
        z = series.FAMILIES[names[lane % len(names)]](np.random.default_rng([seed, lane]), num)
        columns.append((lane % 3) * 50.0 + z * 10.0 ** (lane % 7 - 3))
    table = np.stack(columns, axis=1)
    return table, np.median(np.abs(np.diff(table, axis=0)), axis=0) + 1e-3


def spoil(script: Script, values: np.ndarray, sizes: np.ndarray, first: int, seed: int):
    """The script on every lane, each beginning at another place of it: values, times of ticks and of records."""
    num, width = values.shape
    out = values.copy()
    stamps = np.zeros((num, width), np.int64)
    records = np.zeros((num, width), np.int64)
    for lane in range(width):
        generator = np.random.default_rng([seed, lane])
        turned = script[lane % len(script) :] + script[: lane % len(script)]
        kinds = [(value, time) for value, time, length in turned for _ in range(length)]
        sent = values[0, lane]
        for t in range(num):
            value_kind, time_kind = kinds[t % len(kinds)]
            made = VALUES[value_kind](generator, values[t, lane], sizes[lane])
            sent = sent if made is None else made
            out[t, lane] = sent
            stamps[t, lane], records[t, lane] = TIMES[time_kind](generator, START + SECOND * (first + t))
    return out, stamps, records


def assert_sound(run: lanes.Run, dtype) -> None:
    """What holds of every tick whatever came in."""
    assert run.finite.all(), np.argwhere(~run.finite)[:5]
    prediction = run.prediction
    refused = ~prediction.accepted
    assert run.model_kept[refused].all(), np.argwhere(refused & ~run.model_kept)[:5]
    PredictionResult.validate_simplex(prediction.weights, ATOL)
    assert (np.diff(prediction.quantiles, axis=-1) >= 0.0).all()
    assert (prediction.scale > 0.0).all()
    assert_forecast_is_what_the_weights_say(run, dtype)


def assert_forecast_is_what_the_weights_say(run: lanes.Run, dtype) -> None:
    """The emitted forecast is the emitted weights times the emitted forecasts of the kernels, within rounding."""
    prediction = run.prediction
    kernels = prediction.kernel_predictions.astype(np.float64)
    product = np.sum(prediction.weights.astype(np.float64) * kernels, axis=-1)
    # A last value and an increment that cancel leave less than either was rounded to; the increment is a few scales.
    size = np.max(np.abs(kernels), axis=-1) + prediction.scale
    gap = np.abs(prediction.predicted_next - product)
    bound = 16.0 * float(jnp.finfo(dtype).eps) * size + float(jnp.finfo(dtype).tiny)
    worst = np.unravel_index(np.argmax(gap - bound), gap.shape)
    assert (gap <= bound).all(), (worst, gap[worst], bound[worst], int(prediction.mode[worst]))


@pytest.fixture(scope="module", params=list(DTYPES))
def warm(request):
    """A precision, and states after 250 ordinary ticks in half of the lanes, pristine ones in the other half."""
    dtype = DTYPES[request.param]
    values, sizes = clean(400)
    old = lanes.run(values[:250], CONFIG, dtype=dtype)
    assert_sound(old, dtype)
    return dtype, values, sizes, old


@settings(max_examples=20, phases=(Phase.explicit, Phase.generate))
@given(script=scripts, seed=st.integers(0, 2**16))
def test_any_sequence_of_garbage(warm, script: Script, seed: int) -> None:
    dtype, values, sizes, old = warm
    out, stamps, records = spoil(script, values[250:300], sizes, 250, seed)
    fresh = core.initialize_batched_states(NUM_LANES, CONFIG, dtype)
    half = np.arange(NUM_LANES) % 2 == 0
    mixed = jax.tree.map(
        lambda one, two: np.where(half.reshape((-1,) + (1,) * (one.ndim - 1)), one, two), old.state, fresh
    )
    run = lanes.run(out, CONFIG, dtype=dtype, state=mixed, stamps=stamps, records=records)
    assert_sound(run, dtype)
    with np.errstate(over="ignore"):
        assert not run.prediction.accepted[~np.isfinite(out.astype(np.dtype(dtype)))].any()


HARM = {
    "not finite": [("nan", "ordinary", 4), ("ordinary", "ordinary", 3), ("infinite", "ordinary", 5)],
    "spikes": [("jump", "ordinary", 1), ("ordinary", "ordinary", 4), ("largest", "ordinary", 1)],
    "bursts": [("jump", "ordinary", 10), ("ordinary", "ordinary", 5), ("large", "ordinary", 10)],
    "long burst": [("large", "ordinary", 30), ("ordinary", "ordinary", 10)],
    "stuck": [("ordinary", "ordinary", 3), ("stuck", "ordinary", 25)],
    "small": [("subnormal", "ordinary", 6), ("zero", "ordinary", 3), ("ordinary", "ordinary", 6)],
    "times": [("ordinary", name, 3) for name in HEALABLE_TIMES],
    "all": [(value, time, 2) for value in VALUES for time in HEALABLE_TIMES],
}


@pytest.mark.parametrize("harm", list(HARM))
def test_forecasts_heal(warm, harm: str) -> None:
    """After 50 ticks of garbage and 50 of peace, forecasts are about as good as those of a copy that saw none."""
    dtype, values, sizes, old = warm
    out, stamps, records = spoil(HARM[harm], values[250:300], sizes, 250, 7)
    harmed = lanes.run(out, CONFIG, dtype=dtype, state=old.state, stamps=stamps, records=records)
    assert_sound(harmed, dtype)
    unharmed = lanes.run(values[250:300], CONFIG, dtype=dtype, state=old.state, first=250)
    errors = []
    for state in (harmed.state, unharmed.state):
        after = lanes.run(values[300:400], CONFIG, dtype=dtype, state=state, first=341)
        assert_sound(after, dtype)
        assert after.prediction.accepted[50:].mean() > 0.95
        errors.append(np.abs(after.prediction.predicted_next[50:-1] - values[351:400]).mean(axis=0))
    ratio = errors[0] / (errors[1] + 1e-6 * sizes)
    assert np.median(ratio) < 1.1
    assert ratio.max() < 3.0


def test_emitted_forecast_is_the_emitted_weights_in_every_mode(warm) -> None:
    """Over ordinary ticks, grace, degraded mode, emergency, resets and refused ticks: each of them must occur."""
    dtype = warm[0]
    table = series.table(600, ("regime_switch", "overshoot", "roughness_change", "jumps"))
    table = np.concatenate([table + 10.0, 1e4 * table + 1e6], axis=1)
    table[400:405, ::2] = np.nan
    run = lanes.run(table, CONFIG, dtype=dtype)
    assert_sound(run, dtype)
    prediction = run.prediction
    assert prediction.emergency_mode.any()
    assert (prediction.grace_counter > 0).any()
    assert prediction.regime_change_detected.any()
    assert prediction.degraded_inference_mode.any()
    assert (~prediction.accepted).any()
    resumed = prediction.accepted[1:] & ~prediction.accepted[:-1]
    assert resumed.any()


def test_configuration_of_the_weights_is_the_simplex_check() -> None:
    """The check above can fail."""
    with pytest.raises(ValueError, match="simplex"):
        PredictionResult.validate_simplex(np.asarray([0.5, 0.5, 2e-6, 0.0]), ATOL)
