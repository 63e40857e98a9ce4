"""The shipped value networks: they solve their equation, know the known answers, and are evaluated tier by tier."""

import functools
import importlib.util
import io
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from usp_daemon.core._kernels import _dgm_network as network
from usp_daemon.core._kernels._dgm_network import Problem
from usp_daemon.core._parameters import DGM_TIERS


@pytest.fixture(scope="module")
def training(repository_root):
    path = repository_root / "scripts" / "train_deep_galerkin.py"
    spec = importlib.util.spec_from_file_location("train_deep_galerkin", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


TIERS = range(len(DGM_TIERS))
# Root mean square of the equation's relative residual, and mean error in level standard deviations, as documented.
RESIDUAL = (7e-3, 6e-3, 3.5e-3, 3e-3, 2.5e-3, 2.2e-3)
MEAN_ERROR = (7e-3, 6e-3, 3.5e-3, 3e-3, 2.6e-3, 2.2e-3)


def problems(level, constant=0.0, slope=0.0, cubic=0.0, variance=0.0, dtype=jnp.float64):
    level = jnp.atleast_1d(jnp.asarray(level, dtype))
    return Problem(level, *(jnp.full(level.shape, value, dtype) for value in (constant, slope, cubic, variance)))


@functools.partial(jax.jit, static_argnums=0)
def _increments(tier, problem):
    return network.increment(network.load_weights(tier, problem.level.dtype.name), problem)


def increments(tier, *arguments, **keywords):
    return np.asarray(_increments(tier, problems(*arguments, **keywords)))


# ---------------------------------------------------------------------------------------------------------------------
# What is shipped


@pytest.mark.parametrize("tier", TIERS)
def test_shipped_weights_are_plain_float32_of_the_tier_s_shape(tier, repository_root):
    width, depth = DGM_TIERS[tier]
    path = repository_root / "src/usp_daemon/core/_kernels/weights" / network.tier_file_name(tier)
    with np.load(path, allow_pickle=False) as archive:
        assert {archive[name].dtype for name in archive.files} == {np.dtype(np.float32)}
        assert archive["input_weight"].shape == (network.NUM_FEATURES, width)
        assert archive["hidden_weights"].shape == (depth - 1, width, width)
    assert network.load_weights(tier, "float64").output_weight.dtype == np.float64


@pytest.mark.parametrize("tier", TIERS)
def test_the_terminal_condition_is_exact(tier):
    assert np.all(increments(tier, np.linspace(-6, 6, 25)) == 0.0)
    assert np.all(increments(tier, np.linspace(-6, 6, 25), variance=0.7) == 0.0)


@pytest.mark.parametrize("tier", TIERS)
def test_the_residual_of_the_equation_is_small(training, tier):
    weights = network.load_weights(tier, "float32")
    sample = training.sample_problems(jax.random.key(2024), 4096)
    residual = np.asarray(jax.jit(training.residuals)(weights, sample))
    assert np.sqrt(np.mean(residual**2)) < RESIDUAL[tier]
    assert np.quantile(np.abs(residual), 0.99) < 4.0 * RESIDUAL[tier]


def test_larger_tiers_solve_the_equation_better(training):
    sample = training.sample_problems(jax.random.key(2025), 4096)
    losses = [float(training.loss_fn(network.load_weights(tier, "float32"), sample)) for tier in TIERS]
    assert losses == sorted(losses, reverse=True)


# ---------------------------------------------------------------------------------------------------------------------
# Known answers


@pytest.mark.parametrize("tier", TIERS)
def test_known_means(tier):
    ornstein_uhlenbeck = 1.0 + increments(tier, 1.0, slope=-1.0, variance=0.25)[0]
    assert ornstein_uhlenbeck == pytest.approx(0.367879, abs=4e-3)
    growth = 1.0 + increments(tier, 1.0, slope=0.05, variance=0.04)[0]  # geometric Brownian motion has the same mean
    assert growth == pytest.approx(1.051271, abs=5e-4)


@pytest.mark.parametrize("tier", TIERS)
def test_errors_against_independent_answers(training, tier):
    errors = training.measure(network.load_weights(tier, "float32"), num_linear=2048, num_cubic=6)
    assert errors["linear_mean"] < MEAN_ERROR[tier]
    assert errors["cubic_mean"] < MEAN_ERROR[tier]
    # 5 % of the largest value of the solution, which is of the order of 4.
    assert errors["linear_sup"] < 0.2 and errors["cubic_sup"] < 0.2
    assert errors["linear_relative"] < 2e-3


def test_the_variance_of_the_solution_neither_collapses_nor_explodes():
    # Var V(tau) / Var x for x ~ N(0, 1) is exp(2 b tau); the network's must follow it along the whole horizon.
    levels = np.random.default_rng(0).standard_normal(4000)
    for rate in (-0.1, -0.7, -2.0):
        ratios = []
        for horizon in np.linspace(0.05, 1.0, 20):
            value = levels + increments(1, levels, slope=rate * horizon, variance=min(-2.0 * rate * horizon, 2.25))
            ratios.append(np.var(value) / np.var(levels) / np.exp(2.0 * rate * horizon))
        assert np.min(ratios) > 0.9 and np.max(ratios) < 1.1
        assert np.median(ratios) == pytest.approx(1.0, abs=0.03)


@pytest.mark.parametrize("tier", (0, 1, 5))
def test_the_solution_increases_in_the_level_and_in_the_drift(tier):
    rng = np.random.default_rng(1)
    levels = np.linspace(-4.0, 4.0, 161)
    for _ in range(20):
        arguments = (rng.uniform(-1, 1), rng.uniform(-2.0, 0.2), rng.uniform(-0.3, 0.0), rng.uniform(0.0, 1.5))
        value = levels + increments(tier, levels, *arguments)
        assert np.min(np.diff(value)) > -2e-3  # flat where the cubic term has forgotten the start
        higher = increments(tier, levels, arguments[0] + 0.1, *arguments[1:])
        assert np.all(higher > increments(tier, levels, *arguments))


def test_mirror_images_have_mirrored_forecasts():
    levels = np.linspace(-3.0, 3.0, 25)
    one = increments(2, levels, 0.4, -0.5, -0.1, 0.5)
    other = increments(2, -levels, -0.4, -0.5, -0.1, 0.5)
    np.testing.assert_allclose(one, -other, atol=2e-2)


def test_both_precisions_agree():
    levels = np.linspace(-6.0, 6.0, 49)
    wide = increments(1, levels, 0.3, -0.8, -0.2, 0.6)
    narrow = increments(1, levels, 0.3, -0.8, -0.2, 0.6, dtype=jnp.float32)
    np.testing.assert_allclose(wide, narrow, atol=2e-4)


def test_beyond_the_trained_box_the_nearest_problem_is_answered():
    scalar = functools.partial(jnp.asarray, dtype=jnp.float64)
    outside = Problem(*(scalar(value) for value in (50.0, -9.0, 4.0, 7.0, 80.0)))
    edge = Problem(
        *(scalar(v) for v in (network.MAX_LEVEL, -network.MAX_CONSTANT, network.MAX_SLOPE, 0.0, network.MAX_VARIANCE))
    )
    answers = [
        network.bracketed_increment(0, jnp.asarray(0, jnp.int32), problem, scalar(0.0)) for problem in (outside, edge)
    ]
    assert float(answers[0][0]) == float(answers[1][0])
    assert np.isfinite(float(answers[0][0]))


# ---------------------------------------------------------------------------------------------------------------------
# Evaluation by tiers


def bracket(tier, at, lowest_tier=0):
    return jnp.stack(network.bracketed_increment(lowest_tier, tier, Problem(*at[:5]), at[5]))


def lanes(size, seed=0, dtype=jnp.float64, uncertain=True):
    rng = np.random.default_rng(seed)
    points = np.stack(
        [
            rng.uniform(-3, 3, size),
            rng.uniform(-0.5, 0.5, size),
            rng.uniform(-2, 0.2, size),
            rng.uniform(-0.3, 0, size),
            rng.uniform(0, 1, size),
            rng.uniform(0, 0.3, size) * uncertain,
        ],
        axis=1,
    )
    return jnp.asarray(rng.integers(0, len(TIERS), size), jnp.int32), jnp.asarray(points, dtype)


batched = jax.jit(jax.vmap(bracket))


def test_every_way_of_calling_gives_the_lane_its_own_network():
    tiers, points = lanes(64)
    expected = []
    for tier, point in zip(np.asarray(tiers), np.asarray(points), strict=True):
        shifts = [point[1], max(point[1] - point[5], -1.5), min(point[1] + point[5], 1.5)]
        expected.append([increments(int(tier), point[0], a, *point[2:5])[0] for a in shifts])
    np.testing.assert_allclose(batched(tiers, points), expected, atol=1e-12)
    alone = jax.jit(bracket)
    np.testing.assert_allclose([alone(tiers[k], points[k]) for k in range(8)], expected[:8], atol=1e-12)
    nested = jax.jit(jax.vmap(jax.vmap(bracket)))(tiers.reshape(4, 16), points.reshape(4, 16, 6))
    np.testing.assert_allclose(nested.reshape(64, 3), expected, atol=1e-12)
    one_tier = jax.jit(jax.vmap(bracket, in_axes=(None, 0)))(tiers[0], points)
    np.testing.assert_allclose(one_tier[0], expected[0], atol=1e-12)
    one_point = jax.jit(jax.vmap(bracket, in_axes=(0, None)))(tiers, points[0])
    np.testing.assert_allclose(one_point[0], expected[0], atol=1e-12)
    _, scanned = jax.jit(lambda t, p: jax.lax.scan(lambda c, row: (c, batched(*row)), 0, (t, p)))(
        tiers.reshape(2, 32), points.reshape(2, 32, 6)
    )
    np.testing.assert_allclose(scanned.reshape(64, 3), expected, atol=1e-12)


@pytest.mark.parametrize("dtype", [jnp.float64, jnp.float32])
def test_a_lane_is_bit_equal_in_any_company_and_any_place(dtype):
    tiers, points = lanes(64, dtype=dtype)
    together = np.asarray(batched(tiers, points))
    order = np.random.default_rng(5).permutation(64)
    np.testing.assert_array_equal(np.asarray(batched(tiers[order], points[order])), together[order])
    others = lanes(64, seed=8, dtype=dtype, uncertain=False)
    for lane in (0, 17, 63):
        mixed = [other.at[lane].set(own[lane]) for other, own in zip(others, (tiers, points), strict=True)]
        np.testing.assert_array_equal(np.asarray(batched(*mixed))[lane], together[lane])


def test_larger_tiers_are_evaluated_for_the_lanes_that_use_them():
    # Under vmap a plain switch becomes a select and every lane pays for every branch; here loops over blocks survive.
    tiers, points = lanes(64)
    program = str(jax.make_jaxpr(jax.vmap(jax.vmap(bracket)))(tiers.reshape(4, 16), points.reshape(4, 16, 6)))
    assert program.count("while[") == len(TIERS) - 1
    assert "f64[16,128]" in program and "f64[64,128]" not in program and "f64[4,16,128]" not in program


@pytest.mark.parametrize(
    "counts", [(64, 0, 0, 0, 0, 0), (0, 64, 0, 0, 0, 0), (15, 0, 17, 16, 0, 16), (1, 33, 1, 0, 28, 1)]
)
def test_blocks_of_every_filling_reach_their_lanes(counts):
    _, points = lanes(64)
    tiers = np.random.default_rng(6).permutation(np.repeat(np.arange(len(TIERS)), counts))
    found = np.asarray(batched(jnp.asarray(tiers, jnp.int32), points))
    for tier in np.unique(tiers):
        own = np.asarray(points)[tiers == tier]
        expected = [increments(int(tier), *point[:5])[0] for point in own]
        np.testing.assert_allclose(found[tiers == tier, 0], expected, atol=1e-12)


def test_gradients_are_those_of_finite_differences_alone_and_in_a_batch():
    _, points = lanes(16)
    tiers = jnp.asarray([4, 5] * 8, jnp.int32)  # the two largest: fewer programs to compile
    value = jax.jit(jax.vmap(functools.partial(bracket, lowest_tier=4)))
    gradient = np.asarray(jax.jit(jax.grad(lambda p: jnp.sum(value(tiers, p)[:, 0])))(points))
    for column in range(5):
        step = jnp.zeros_like(points).at[:, column].set(1e-6)
        forward, backward = value(tiers, points + step)[:, 0], value(tiers, points - step)[:, 0]
        np.testing.assert_allclose(gradient[:, column], (forward - backward) / 2e-6, atol=1e-6)
    alone = jax.jit(jax.grad(lambda p: bracket(tiers[3], p, lowest_tier=4)[0]))(points[3])
    np.testing.assert_allclose(alone, gradient[3], atol=1e-10)


# ---------------------------------------------------------------------------------------------------------------------
# The reference solver and the training


def test_finite_differences_agree_with_the_exact_answer_and_refine(training):
    levels = np.linspace(-3.0, 3.0, 13)
    exact = training.ornstein_uhlenbeck_increment(0.3, -1.2, levels)
    fine = training.finite_difference_increments(0.3, -1.2, 0.0, 0.8, levels)
    np.testing.assert_allclose(fine, exact, atol=2e-5)
    # A cubic flow without noise has a closed form; halving the mesh must quarter the error.
    exact = levels / np.sqrt(1.0 + 0.2 * levels**2) - levels
    errors = [
        np.max(np.abs(training.finite_difference_increments(0.0, 0.0, -0.1, 0.0, levels, nodes, 800) - exact))
        for nodes in (201, 401, 801)
    ]
    rates = np.log2(np.asarray(errors[:-1]) / np.asarray(errors[1:]))
    assert errors[0] > errors[1] > errors[2]
    assert np.all(rates > 1.8)


def test_training_reduces_the_residual_tenfold_and_repeats_itself(training):
    plan = training.TrainingPlan(num_steps=600, num_points=256, learning_rate=5e-3)
    weights = training.initial_weights(jax.random.key(0), 24, 2)
    state, losses = training.train(plan, weights, jax.random.key(1), report=lambda _: None)
    assert losses[-1] < 0.1 * losses[0]
    assert int(state.runaway_events) == 0
    sample = training.sample_problems(jax.random.key(9), 2048)
    assert float(training.loss_fn(state.average, sample)) < 0.1 * float(training.loss_fn(weights, sample))
    once_more, again = training.train(plan, weights, jax.random.key(1), report=lambda _: None)
    assert again == losses
    np.testing.assert_array_equal(once_more.average.hidden_weights, state.average.hidden_weights)


def test_runaway_gradients_are_clipped_and_halve_the_learning_rate(training):
    plan = training.TrainingPlan()
    steep = {"weight": jnp.full((4,), 50.0)}
    factor, in_a_row = jnp.ones(()), jnp.zeros((), jnp.int32)
    events = []
    for _ in range(12):
        gradient, factor, in_a_row, runaway = training.guard_gradient(plan, steep, factor, in_a_row)
        assert float(jnp.linalg.norm(gradient["weight"])) == pytest.approx(plan.gradient_norm_limit)
        events.append(bool(runaway))
    assert [k for k, event in enumerate(events) if event] == [5, 11]  # the sixth clipped step in a row, twice
    assert float(factor) == 0.25
    gentle = {"weight": jnp.full((4,), 1.0)}
    gradient, factor, in_a_row, runaway = training.guard_gradient(plan, gentle, factor, jnp.asarray(5, jnp.int32))
    assert (float(gradient["weight"][0]), float(factor), int(in_a_row), bool(runaway)) == (1.0, 0.25, 0, False)
    broken, *_ = training.guard_gradient(plan, {"weight": jnp.full((4,), jnp.nan)}, factor, in_a_row)
    assert np.all(np.asarray(broken["weight"]) == 0.0)


def test_training_recovers_from_a_learning_rate_that_is_far_too_high(training):
    plan = training.TrainingPlan(num_steps=500, num_points=128, learning_rate=0.5, warmup_steps=1)
    weights = training.initial_weights(jax.random.key(3), 16, 2)
    state, losses = training.train(plan, weights, jax.random.key(4), report=lambda _: None)
    assert int(state.runaway_events) >= 1
    assert float(state.rate_factor) == 0.5 ** int(state.runaway_events)
    assert all(np.isfinite(losses)) and all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(state.weights))
    # The halvings end the divergence: what follows is below where it stood, and no longer moves.
    assert losses[-1] < 0.6 * losses[0]
    assert max(losses[-3:]) < 1.5 * min(losses[-3:])


def test_a_grown_network_is_the_same_function(training):
    small = network.load_weights(1, "float32")
    grown = training.grown_weights(jax.random.key(5), small, 128, 5)
    sample = training.sample_problems(jax.random.key(6), 512)
    np.testing.assert_allclose(network.increment(grown, sample), network.increment(small, sample), atol=3e-6)
    gradient = jax.jit(jax.grad(training.loss_fn))(grown, sample)
    assert float(jnp.max(jnp.abs(gradient.output_weight[64:]))) > 0.0  # the new units are silent, not dead


def test_saved_weights_come_back_bit_equal(training, tmp_path):
    weights = training.initial_weights(jax.random.key(7), 16, 3)
    network.save_weights(tmp_path / "w.npz", weights)
    back = network.read_weights((tmp_path / "w.npz").read_bytes(), "float32")
    for one, other in zip(jax.tree.leaves(weights), jax.tree.leaves(back), strict=True):
        np.testing.assert_array_equal(one, other)
    with pytest.raises(ValueError):
        network.read_weights(b"not an archive", "float32")
    pickled = io.BytesIO()
    np.savez(pickled, input_weight=np.asarray([{}], dtype=object))
    with pytest.raises(ValueError):
        network.read_weights(pickled.getvalue(), "float32")
