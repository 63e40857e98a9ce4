"""Derivatives of the whole step: finite everywhere, and exactly zero where the specification stops them."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from usp_daemon import core
from usp_daemon.core import PredictorConfig, ProcessState

from . import lanes

pytestmark = pytest.mark.slow

CONFIG = PredictorConfig(fusion_method="jko_proximal")
AGES = (0, 1, 50, 300)
RECENT = 3  # ticks whose values are differentiated by
WANTED = ("predicted_next", "lower_95", "upper_95", "sinkhorn_epsilon", "adaptive_threshold", "ema_variance")


def _series() -> np.ndarray:
    """A constant one and an autoregression."""
    generator = np.random.default_rng(5)
    out = np.zeros((max(AGES) + RECENT, 2))
    out[:, 0] = 5.0
    for t in range(1, len(out)):
        out[t, 1] = 0.7 * out[t - 1, 1] + generator.standard_normal()
    return out


@pytest.fixture(scope="module")
def derivatives():
    """Jacobians by the real parameters and by the last three values: a row for each age and series."""
    values = _series()
    states, recent, stamps = [], [], []
    for age in AGES:
        if age:
            state = lanes.run(values[:age], CONFIG).state
        else:
            state = jax.tree.map(np.asarray, core.initialize_batched_states(2, CONFIG, jnp.float64))
        states.append(state)
        recent.append(values[age : age + RECENT].T)
        stamps.append(np.broadcast_to(lanes.START + lanes.SECOND * np.arange(age, age + RECENT), (2, RECENT)))
    real, whole = eqx.partition(CONFIG.as_arrays(), eqx.is_inexact_array)

    def outputs(parameters, values, state, stamps):
        config = eqx.combine(parameters, whole)

        def one(state, tick):
            state, result = core.advance(state, ProcessState(tick[0], tick[0], tick[1], tick[1]), config)
            return state, {name: getattr(result.prediction, name) for name in WANTED}

        return jax.tree.map(lambda leaf: leaf[-1], jax.lax.scan(one, state, (values, stamps))[1])

    jacobian = jax.jit(jax.vmap(jax.jacrev(outputs, argnums=(0, 1)), in_axes=(None, 0, 0, 0)))
    found = jacobian(
        real,
        jnp.asarray(np.concatenate(recent)),
        jax.tree.map(lambda *leaves: jnp.asarray(np.concatenate(leaves)), *states),
        jnp.asarray(np.concatenate(stamps), jnp.int64),
    )
    return jax.tree.map(np.asarray, found)


@pytest.mark.parametrize("name", WANTED)
def test_derivatives_are_finite(derivatives, name: str) -> None:
    by_parameters, by_values = derivatives[name]
    for path, leaf in jax.tree_util.tree_leaves_with_path(by_parameters):
        assert np.isfinite(leaf).all(), f"{name} by {jax.tree_util.keystr(path)}: {leaf}"
    assert np.isfinite(by_values).all(), by_values


def test_the_forecast_follows_the_last_value(derivatives) -> None:
    """Moving the last value moves the forecast along, and the interval with it."""
    for name in ("predicted_next", "lower_95", "upper_95"):
        slope = derivatives[name][1][-1, -1]  # the oldest random series
        assert 0.1 < slope < 2.5, (name, slope)


def test_no_derivative_passes_the_regularisation_or_the_threshold(derivatives) -> None:
    """epsilon_t and h_t depend on what came in, and are constants to whoever differentiates by it."""
    assert not derivatives["sinkhorn_epsilon"][1].any()
    assert not derivatives["adaptive_threshold"][1].any()
    assert derivatives["ema_variance"][1][-1].any(), "the variance behind the regularisation has a derivative"
    np.testing.assert_array_equal(derivatives["sinkhorn_epsilon"][0].sinkhorn_epsilon_0, 0.0)
    # The constant series is frozen at the later ages: a refused tick leaves the threshold to the state.
    assert (derivatives["adaptive_threshold"][0].cusum_h[1::2] >= 1.0).all(), "the factor for kurtosis"
