"""The integrators behind kernel C: known answers, orders of convergence, stability, a truly implicit scheme."""

import math

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import optimistix as optx
import pytest

from usp_daemon.core._kernels import levy_sde
from usp_daemon.core._parameters import PredictorConfig

SCHEMES = {"explicit": diffrax.Euler(), "implicit": levy_sde.LinearlyImplicitEuler()}


def response(rate, horizon, num_steps, solver):
    """(psi, v) at ``horizon`` of psi' = rate psi + 1 and v' = 2 rate v + 1 from 0."""
    rates = jnp.asarray([rate, 2.0 * rate])
    return np.asarray(levy_sde.unit_response(rates, jnp.asarray(horizon), jnp.asarray(float(num_steps)), solver))


# ---- known answers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize(("num_steps", "tolerance"), [(100, 4e-3), (500, 8e-4)])
def test_ornstein_uhlenbeck_moments(scheme, num_steps, tolerance):
    """theta 1, mean 0, sigma 0.5, x0 1, horizon 1: the error is first order, dt / 2 times e**-1 in the mean."""
    psi, v = response(-1.0, 1.0, num_steps, SCHEMES[scheme])
    assert 1.0 - psi == pytest.approx(0.367879, abs=0.5 * tolerance)
    assert 0.25 * v == pytest.approx(0.108083, abs=tolerance / 4.0)


def test_geometric_brownian_mean_by_its_linear_drift():
    """mu = 0.05 over one unit of time from 1: exp(0.05) = 1.051271."""
    psi, _ = response(0.05, 1.0, 100, diffrax.Euler())
    assert 1.0 + 0.05 * psi == pytest.approx(1.051271, abs=2e-5)


def test_forecast_of_a_known_process():
    """Mean and variance of the exact transition, of which the gains are multiples, to within the step's error."""
    for rate in (-0.05, -0.5, -1.5):
        config = PredictorConfig(sde_dt=0.005, sde_numel_integrations=200).as_arrays()
        low, high = jnp.asarray(100.0), jnp.asarray(1000.0)
        mean_gain, variance_gain, stiffness, share = levy_sde.integration_gains(jnp.asarray(rate), low, high, config)
        assert float(share) == 0.0
        assert float(stiffness) == pytest.approx(50.0 * abs(rate))
        # Euler's relative error in both, to first order: dt b**2 exp(b) / (2 (1 - exp(b))) and the like
        assert float(mean_gain) == pytest.approx(1.0, abs=0.005 * abs(rate))
        assert float(variance_gain) == pytest.approx(1.0, abs=0.005 * 2.0 * abs(rate))


def test_horizon_scales_mean_and_variance():
    config = PredictorConfig(kernel_c_horizon=3.0, sde_dt=0.01, sde_numel_integrations=200).as_arrays()
    thresholds = jnp.asarray(100.0), jnp.asarray(1000.0)
    mean_gain, variance_gain, _, _ = levy_sde.integration_gains(jnp.asarray(0.0), *thresholds, config)
    assert (float(mean_gain), float(variance_gain)) == pytest.approx((3.0, 3.0))
    mean_gain, _, _, _ = levy_sde.integration_gains(jnp.asarray(-0.5), *thresholds, config)
    assert float(mean_gain) == pytest.approx(math.expm1(-1.5) / math.expm1(-0.5), rel=0.01)


# ---- steps ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("horizon", "dt", "max_num", "expected"),
    [(1.0, 0.01, 100, 100), (1.0, 0.01, 50, 50), (1.0, 1.0, 200, 1), (1.0, 0.3, 200, 4), (2.5, 0.01, 200, 200)],
)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_number_of_steps(horizon, dt, max_num, expected, dtype):
    """dt is a bound until max_num binds; then the steps are longer than dt, and still end at the horizon."""
    steps = levy_sde.num_integration_steps(jnp.asarray(horizon, dtype), jnp.asarray(dt, dtype), jnp.asarray(max_num))
    assert float(steps) == expected
    rates = jnp.zeros((1,), dtype)
    at_horizon = levy_sde.unit_response(rates, jnp.asarray(horizon, dtype), steps, diffrax.Euler())
    np.testing.assert_allclose(at_horizon, horizon, rtol=1e-5)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_weak_order_is_one(scheme):
    exact = -math.expm1(-2.0) / 2.0
    errors = [abs(response(-2.0, 1.0, n, SCHEMES[scheme])[0] - exact) for n in (16, 32, 64, 128, 256)]
    slope = np.polyfit(np.log2([16, 32, 64, 128, 256]), np.log2(errors), 1)[0]
    assert slope == pytest.approx(-1.0, abs=0.1)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_integration_is_the_schemes_own_recursion(scheme):
    """Against the closed form of n steps: amplification (1 + z) or 1 / (1 - z) per step."""
    for rate, num in ((-0.3, 7), (-3.0, 50), (-20.0, 100)):
        z = rate / num
        amplification = 1.0 + z if scheme == "explicit" else 1.0 / (1.0 - z)
        expected = (amplification**num - 1.0) / rate
        assert response(rate, 1.0, num, SCHEMES[scheme])[0] == pytest.approx(expected, rel=1e-12)


# ---- an implicit scheme that is one --------------------------------------------------------------------------------


def test_implicit_scheme_is_bounded_where_the_explicit_one_is_not():
    """One step of y' = -l y from 1 at l dt = 10: backward Euler 1/11; a predictor-corrector would give 41, Euler -9."""
    rate = -10.0
    implicit = 1.0 + rate * response(rate, 1.0, 1, SCHEMES["implicit"])[0]
    assert implicit == pytest.approx(1.0 / 11.0, rel=1e-12)
    explicit = 1.0 + rate * response(rate, 1.0, 1, SCHEMES["explicit"])[0]
    assert explicit == pytest.approx(-9.0)
    predictor = 1.0 + rate
    assert 1.0 + 0.5 * rate * (1.0 + predictor) == pytest.approx(41.0)


@pytest.mark.parametrize("rate", [-0.5, -10.0, -36.0])
def test_implicit_scheme_is_diffrax_implicit_euler(rate):
    jacobian = jnp.asarray([rate, 2.0 * rate])
    ours, reference = (
        diffrax.diffeqsolve(
            diffrax.ODETerm(lambda t, y, args: args[0] * y + args[1]),
            solver,
            0.0,
            1.0,
            0.1,
            jnp.asarray([1.0, -2.0]),
            args=(jacobian, jnp.ones(2)),
        ).ys[0]
        for solver in (
            levy_sde.LinearlyImplicitEuler(),
            diffrax.ImplicitEuler(root_finder=optx.Newton(rtol=1e-12, atol=1e-12)),
        )
    )
    np.testing.assert_allclose(ours, reference, rtol=1e-9)


# ---- choice of scheme ----------------------------------------------------------------------------------------------


def test_share_of_the_implicit_scheme():
    """Explicit below the lower threshold, implicit from the upper one on, a convex mixture between."""
    share = [float(levy_sde.implicit_share(jnp.asarray(s), jnp.asarray(100.0), jnp.asarray(1000.0)))
             for s in (0.0, 99.9, 100.0, 325.0, 999.0, 1000.0, 1e6)]  # fmt: skip
    assert share == pytest.approx([0.0, 0.0, 0.0, 0.25, 899.0 / 900.0, 1.0, 1.0])


def test_mixture_is_convex():
    config = PredictorConfig(sde_dt=0.1).as_arrays()
    rate = jnp.asarray(-4.0)  # stiffness 200
    never, always = jnp.asarray(1e9), jnp.asarray(1.0)
    explicit = levy_sde.integration_gains(rate, never, never * 2.0, config)[:2]
    implicit = levy_sde.integration_gains(rate, always, always * 2.0, config)[:2]
    mixed = levy_sde.integration_gains(rate, jnp.asarray(100.0), jnp.asarray(500.0), config)[:2]
    np.testing.assert_allclose(mixed, 0.75 * np.asarray(explicit) + 0.25 * np.asarray(implicit), rtol=1e-12)
    assert abs(float(explicit[0] - implicit[0])) > 0.01


@pytest.mark.parametrize("rate", [-1.0, -5.0, -36.0])
def test_unstable_explicit_steps_are_refused_whatever_the_thresholds_say(rate):
    """One step a tick and thresholds that ask for the explicit scheme: its gain would alternate and grow."""
    config = PredictorConfig(sde_dt=1.0).as_arrays()
    thresholds = jnp.asarray(1e6), jnp.asarray(1e7)
    mean_gain, variance_gain, _, share = levy_sde.integration_gains(jnp.asarray(rate), *thresholds, config)
    assert float(share) == 1.0
    assert 0.0 < float(mean_gain) <= 1.0
    assert 0.0 < float(variance_gain) <= 1.0


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_no_persistence_at_all_is_the_stiffest_case(dtype):
    """A level forgotten within one tick: the rate stops at a rounding error of float64, in float32 too."""
    config = PredictorConfig().as_arrays(dtype)
    rate = jnp.log(jnp.asarray(2.0**-52, dtype))
    low, high = jnp.asarray(100.0, dtype), jnp.asarray(1000.0, dtype)
    mean_gain, variance_gain, stiffness, share = levy_sde.integration_gains(rate, low, high, config)
    assert float(stiffness) == pytest.approx(1802.2, abs=0.1)
    assert float(share) == 1.0
    assert float(mean_gain) == pytest.approx(1.0, rel=1e-3)
    assert float(variance_gain) == pytest.approx(1.0, rel=1e-3)


# ---- strong convergence and mean-square stability of the stochastic schemes -----------------------------------------
# Kernel C integrates moments, not paths; these pin what diffrax's stochastic solvers do, which simulations rely on.


def simulate(solver, drift, diffusion, num_steps, keys, horizon=1.0, x0=1.0):
    """End points of one path per key, and the Brownian increments' sums that drove them."""

    def one(key):
        path = diffrax.VirtualBrownianTree(0.0, horizon, tol=horizon / 4096.0, shape=(), key=key)
        terms = diffrax.MultiTerm(
            diffrax.ODETerm(lambda t, y, args: drift * y), diffrax.ControlTerm(lambda t, y, args: diffusion * y, path)
        )
        solution = diffrax.diffeqsolve(terms, solver, 0.0, horizon, horizon / num_steps, jnp.asarray(x0))
        return solution.ys[0], path.evaluate(0.0, horizon)

    return jax.jit(jax.vmap(one))(keys)


@pytest.mark.parametrize(("solver", "order"), [(diffrax.Euler(), 0.5), (diffrax.ItoMilstein(), 1.0)])
def test_strong_order_on_geometric_brownian_motion(solver, order):
    """Root mean square error at the end falls as dt to the power 0.5 (Euler-Maruyama) or 1 (Milstein)."""
    drift, diffusion = 0.05, 0.8
    keys = jax.random.split(jax.random.key(11), 1000)
    steps = (8, 32, 128)
    errors = []
    for num in steps:
        ends, brownian = simulate(solver, drift, diffusion, num, keys)
        exact = jnp.exp((drift - 0.5 * diffusion**2) + diffusion * brownian)
        errors.append(float(jnp.sqrt(jnp.mean((ends - exact) ** 2))))
    slope = np.polyfit(np.log(1.0 / np.asarray(steps)), np.log(errors), 1)[0]
    assert slope == pytest.approx(order, abs=0.1)


@pytest.mark.parametrize(("dt", "growth"), [(0.40, 0.76), (0.45, 1.09)])
def test_mean_square_stability_bound_of_euler_maruyama(dt, growth):
    """dX = -l X dt + m X dW is mean-square stable iff dt < (2 l - m**2) / l**2, here 7/16, between the two steps."""
    decay, noise = 4.0, 1.0
    assert (1.0 - decay * dt) ** 2 + noise**2 * dt == pytest.approx(growth)
    assert (growth < 1.0) == (dt < (2.0 * decay - noise**2) / decay**2)
    ends, _ = simulate(diffrax.Euler(), -decay, noise, 1, jax.random.split(jax.random.key(12), 40_000), horizon=dt)
    squares = np.asarray(ends) ** 2
    assert np.mean(squares) == pytest.approx(growth, abs=4.0 * np.std(squares) / 200.0)


def test_coarse_steps_stay_bounded():
    """Mean reversion 1, noise 0.5 x: the mean size at time 1 with dt = 0.5 is of the order of that with 0.01."""
    keys = jax.random.split(jax.random.key(13), 1000)
    sizes = {}
    for dt in (0.01, 0.1, 0.5, 1.0):
        ends, _ = simulate(diffrax.Euler(), -1.0, 0.5, round(1.0 / dt), keys)
        sizes[dt] = float(jnp.mean(jnp.abs(ends)))
    assert all(math.isfinite(size) for size in sizes.values())
    assert sizes[0.5] < 10.0 * sizes[0.01]
    assert sizes[0.01] == pytest.approx(math.exp(-1.0), abs=0.05)
