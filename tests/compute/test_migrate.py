"""States of one structure taken to another: what stays, what starts anew, and that it goes on."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from usp_daemon.compute import PartitionStates, migrate_states
from usp_daemon.compute._migrate import pristine_leaves
from usp_daemon.core import STRUCTURAL_FIELDS, PredictorConfig, initialize_state
from usp_daemon.core._kernels import deep_galerkin, rkhs, signature
from usp_daemon.core._kernels._interface import KernelObservation

from .fake_program import same_bits

NUM_SYMBOLS = 7
DEFAULT = PredictorConfig()
# One step down and one up from the default; the method of fusion has but two values.
STEPS = {
    "fusion_method": ("jko", "jko"),
    "kernel_a_embedding_dim": (3, 8),
    "kernel_a_lags": (3, 24),
    "kernel_a_features": (16, 48),
    "dgm_width_size": (32, 256),
    "dgm_depth": (2, 8),
    "log_sig_depth": (2, 4),
    "signature_window": (8, 24),
    "refresh_interval": (20, 100),
}
CHANGES = [(name, value) for name, values in STEPS.items() for value in dict.fromkeys(values)]
A, B, D = "model/kernels/0", "model/kernels/1", "model/kernels/3"
# Where each field's change may show; everything else keeps its bits.
TOUCHES = {
    "kernel_a_embedding_dim": (f"{A}/gaussian",),
    "kernel_a_lags": (f"{A}/linear",),
    "kernel_a_features": (f"{A}/gaussian",),
    "dgm_width_size": (f"{B}/tier",),
    "dgm_depth": (f"{B}/tier",),
    "log_sig_depth": (f"{D}/ridge", f"{D}/features", f"{D}/levels"),
    "signature_window": (f"{D}/",),
}


def changed(**fields):
    return dataclasses.replace(DEFAULT, **fields)


@functools.cache
def fresh(config, dtype="float64"):
    return pristine_leaves(config, np.dtype(dtype))


def trained(config, dtype="float64", seed=0):
    """States like those of symbols that have seen much: no two leaves, symbols or regressors alike."""
    rng = np.random.default_rng(seed)
    arrays = {}
    for path, leaf in fresh(config, dtype).items():
        shape = (NUM_SYMBOLS, *leaf.shape)
        if leaf.dtype.kind == "f":
            arrays[path] = (leaf * rng.uniform(0.1, 0.9, shape) + 0.05 * rng.normal(size=shape)).astype(dtype)
        elif leaf.dtype.kind == "b":
            arrays[path] = rng.random(shape) < 0.5
        else:
            arrays[path] = rng.integers(0, 50, shape).astype(leaf.dtype)
    arrays[f"{B}/tier"][:] = np.resize([1, 1, 2, 3], NUM_SYMBOLS)  # what the default may scale up to
    arrays["model/history/position"] %= 1024
    return PartitionStates(tuple(f"symbol {i}" for i in range(NUM_SYMBOLS)), arrays)


def migrated(states, old, new, dtype="float64"):
    return migrate_states(states, old, new, fresh(new, dtype))


def test_every_structural_field_has_its_steps():
    assert set(STEPS) == set(STRUCTURAL_FIELDS)


@pytest.mark.parametrize(("name", "value"), CHANGES)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_the_new_layout_is_that_of_the_new_structure(name, value, dtype):
    new = changed(**{name: value})
    states = trained(DEFAULT, dtype)
    result, report = migrated(states, DEFAULT, new, dtype)
    expected = fresh(new, dtype)
    assert result.symbols == states.symbols
    assert list(result.arrays) == list(expected)
    for path, leaf in expected.items():
        array = result.arrays[path]
        assert (array.shape, array.dtype) == ((NUM_SYMBOLS, *leaf.shape), leaf.dtype), path
        if leaf.dtype.kind == "f":
            assert np.isfinite(array).all(), path
        if not path.startswith(TOUCHES.get(name, ("nothing",))):
            assert array is states.arrays[path], path  # bits and all
    # What is shown is the field's doing, and is named.
    words = " ".join(report.kept + report.lost)
    if TOUCHES.get(name, ()):
        assert f"{name} {getattr(DEFAULT, name)} -> {value}" in words
    else:
        assert report.lost == ()


@pytest.mark.parametrize(("name", "value"), CHANGES)
def test_what_is_no_learner_is_untouched(name, value):
    states = trained(DEFAULT)
    result, _ = migrated(states, DEFAULT, changed(**{name: value}))
    outside = [path for path in states.arrays if not path.startswith("model/kernels/")]
    assert {"model/forecast", "model/raw_increments", "model/anchor/forecast_power", "model/rho"} <= set(outside)
    assert any(path.startswith("gate/") for path in outside)
    assert any(path.startswith("model/change_point/grace_counter") for path in outside)
    assert any(path.startswith("model/calibration/") for path in outside)
    for path in outside:
        assert result.arrays[path] is states.arrays[path], path


@pytest.mark.parametrize("change", [{}, {"cusum_k": 0.7, "kernel_ridge_lambda": 1e-3, "dgm_scaling_cap": 1.0}])
def test_the_same_structure_keeps_every_bit(change):
    states = trained(DEFAULT)
    result, report = migrated(states, DEFAULT, changed(**change))
    assert all(result.arrays[path] is array for path, array in states.arrays.items())
    assert report.lost == ()
    assert len(report.kept) == 4


@pytest.mark.parametrize(("name", "value"), CHANGES)
def test_it_is_a_function_of_each_symbol_alone(name, value):
    new = changed(**{name: value})
    states = trained(DEFAULT)
    whole, _ = migrated(states, DEFAULT, new)
    again, _ = migrated(trained(DEFAULT), DEFAULT, new)
    order = [4, 0, 6]
    some = PartitionStates(
        tuple(states.symbols[i] for i in order), {path: array[order] for path, array in states.arrays.items()}
    )
    part, _ = migrated(some, DEFAULT, new)
    for path, array in whole.arrays.items():
        assert same_bits(array, again.arrays[path]), path
        assert same_bits(array[order], part.arrays[path]), path


@pytest.mark.parametrize(
    "change",
    [{"kernel_a_lags": 24}, {"log_sig_depth": 5}, {"signature_window": 40}, {"refresh_interval": 7}, {"dgm_depth": 8}],
)
def test_there_and_back_again_keeps_what_was_kept(change):
    states = trained(DEFAULT)
    states.arrays[f"{B}/tier"][:] = 1
    there, first = migrated(states, DEFAULT, changed(**change))
    back, _ = migrated(there, changed(**change), DEFAULT)
    anew = {
        # a window's signature is that of its increments; here it was random
        "signature_window": (f"{D}/ridge", f"{D}/features", f"{D}/error_variance", f"{D}/samples", f"{D}/levels"),
    }.get(next(iter(change)), ())
    assert bool(first.lost) == bool(anew)
    for path, array in states.arrays.items():
        if not (anew and path.startswith(anew)):
            assert same_bits(back.arrays[path], array), path


def test_windows_keep_their_newest_increments():
    states = trained(DEFAULT)
    old = states.arrays[f"{D}/increments"]
    larger, _ = migrated(states, DEFAULT, changed(signature_window=24))
    assert same_bits(larger.arrays[f"{D}/increments"][:, 8:], old)
    assert not larger.arrays[f"{D}/increments"][:, :8].any()
    smaller, _ = migrated(states, DEFAULT, changed(signature_window=8))
    assert same_bits(smaller.arrays[f"{D}/increments"], old[:, -9:])
    for result, window in ((larger, 24), (smaller, 8)):
        levels = jax.vmap(lambda row: signature.window_signature(row, 3))(result.arrays[f"{D}/increments"])
        for number, level in enumerate(levels):
            assert np.allclose(result.arrays[f"{D}/levels/{number}"], level, rtol=1e-11, atol=1e-13), window


def test_a_deeper_signature_is_that_of_the_window():
    states = trained(DEFAULT)
    increments = states.arrays[f"{D}/increments"]
    levels = jax.vmap(lambda row: signature.window_signature(row, 5))(jnp.asarray(increments))
    for number in range(3):
        states.arrays[f"{D}/levels/{number}"] = np.asarray(levels[number])
    result, report = migrated(states, DEFAULT, changed(log_sig_depth=5))
    assert report.lost == ()
    for number in range(5):
        assert np.allclose(result.arrays[f"{D}/levels/{number}"], levels[number], rtol=1e-11, atol=1e-13)


def test_new_regressors_stand_at_the_prior_of_the_new_parameters():
    new = changed(kernel_a_lags=20, log_sig_depth=4, kernel_ridge_lambda=4e-6)  # a prior variance of one quarter
    states = trained(DEFAULT)
    result, _ = migrated(states, DEFAULT, new)
    for prefix, places, features in (
        (f"{A}/linear", np.arange(7, 21), f"{A}/linear_features"),
        (f"{D}/ridge", np.arange(14, 32), f"{D}/features"),
    ):
        root = result.arrays[f"{prefix}/root"]
        rows = root[:, places]
        assert np.allclose(rows[:, :, places], 0.5 * np.eye(places.size))
        rest = np.setdiff1d(np.arange(root.shape[1]), places)
        assert not rows[:, :, rest].any()
        assert not root[:, rest][:, :, places].any()
        assert not result.arrays[f"{prefix}/coefficients"][:, places].any()
        assert not result.arrays[features][:, places].any()
        assert same_bits(root[:, rest][:, :, rest], states.arrays[f"{prefix}/root"])
        # so the forecast that they give has not changed either
        before = (states.arrays[f"{prefix}/coefficients"] * states.arrays[features]).sum(1)
        assert np.allclose((result.arrays[f"{prefix}/coefficients"] * result.arrays[features]).sum(1), before)


def test_tiers_follow_the_base_network_and_stay_within_the_cap():
    states = trained(DEFAULT)
    states.arrays[f"{B}/tier"][:] = [1, 1, 2, 3, 3, 1, 2]
    down, report = migrated(states, DEFAULT, changed(dgm_width_size=32, dgm_depth=2))
    assert down.arrays[f"{B}/tier"].tolist() == [0, 0, 1, 1, 1, 0, 1]  # 4 * 32 * 2 = 64 * 4
    assert report.lost == ()
    assert any("64x4 -> 32x2" in words for words in report.kept)
    up, _ = migrated(states, DEFAULT, changed(dgm_width_size=128, dgm_depth=4))
    assert up.arrays[f"{B}/tier"].tolist() == [2, 2, 2, 3, 3, 2, 2]


def test_a_learner_that_is_not_finite_starts_anew():
    states = trained(DEFAULT)
    states.arrays[f"{A}/linear/root"][2, 3, 4] = np.nan
    new = changed(kernel_a_lags=3)
    result, _ = migrated(states, DEFAULT, new)
    assert same_bits(result.arrays[f"{A}/linear/root"][2], fresh(new)[f"{A}/linear/root"])
    healthy, _ = migrated(trained(DEFAULT), DEFAULT, new)
    for path, array in result.arrays.items():
        assert same_bits(np.delete(array, 2, 0), np.delete(healthy.arrays[path], 2, 0)), path


def test_a_partition_without_symbols():
    empty = PartitionStates((), {path: array[:0] for path, array in trained(DEFAULT).arrays.items()})
    result, _ = migrated(empty, DEFAULT, changed(kernel_a_lags=3, log_sig_depth=4, signature_window=24))
    assert all(len(array) == 0 for array in result.arrays.values())


def test_the_pristine_state_is_optional():
    states = trained(DEFAULT, "float32")
    new = changed(log_sig_depth=4)
    expected, _ = migrated(states, DEFAULT, new, "float32")
    result, _ = migrate_states(states, DEFAULT, new)
    assert all(same_bits(result.arrays[path], array) for path, array in expected.arrays.items())


def as_state(states, config):
    """The pytree of a batch of states."""
    template = initialize_state(config, dtype=jnp.float64)
    return jax.tree.unflatten(jax.tree.structure(template), [jnp.asarray(a) for a in states.arrays.values()])


def observation(numbers):
    one = jnp.ones(())
    value, increment, level, previous_level = numbers
    return KernelObservation(
        value=value,
        increment=increment,
        level=level,
        previous_level=previous_level,
        level_unit=one,
        scale=one,
        weight=one,
        forget=jnp.asarray(False),
    )


@pytest.mark.parametrize("step_number", [0, 1], ids=["down", "up"])
def test_the_kernels_go_on_in_the_new_structure(step_number):
    new = changed(**{name: values[step_number] for name, values in STEPS.items()})
    result, report = migrated(trained(DEFAULT), DEFAULT, new)
    assert len(report.lost) == (3 if step_number == 0 else 2)
    model = as_state(result, new).model
    parameters = new.as_arrays()

    def one(kernels, numbers, history):
        seen = observation(numbers)
        a = rkhs.update(kernels[0], seen, history, parameters)
        b = deep_galerkin.update(kernels[1], seen, parameters)
        d = signature.update(kernels[2], seen, parameters)
        outputs = [module.predict(k, parameters) for module, k in ((rkhs, a), (deep_galerkin, b), (signature, d))]
        return (a, b, d), jnp.stack([output.prediction for output in outputs])

    step = jax.jit(jax.vmap(one))
    rng = np.random.default_rng(3)
    kernels = (model.kernels[0], model.kernels[1], model.kernels[3])
    for _ in range(40):
        kernels, forecasts = step(kernels, jnp.asarray(rng.normal(size=(NUM_SYMBOLS, 4))), model.history)
        assert np.isfinite(forecasts).all()
        assert np.abs(forecasts).max() < 1e3
    assert np.abs(forecasts[:, 1]).min() > 0.0  # no symbol was left with a network that does not exist
