"""Trains the value networks of the Deep Galerkin kernel, one per tier, and measures them.

    python scripts/train_deep_galerkin.py train --tiers 0-5 --seconds 420
    python scripts/train_deep_galerkin.py measure

Only the residual of the backward Kolmogorov equation is minimised (the terminal condition is built into the trial
solution), at random points, anew in every step [SirignanoSpiliopoulos2018]. The points are drawn star-wise:
coefficients from the box, times a random horizon, so that every point's past is sampled too. Each tier starts as an
exact copy of the tier before it, with the new units silent. The shipped weights are the exponential average of the
iterates.

Deterministic for a given seed and number of steps; ``--seconds`` stops at a multiple of the chunk of steps.
"""

import argparse
import dataclasses
import functools
import json
import pathlib
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from scipy.interpolate import CubicSpline
from scipy.linalg import solve_banded

from usp_daemon.core._kernels import _dgm_network as network
from usp_daemon.core._kernels._dgm_network import NetworkWeights, Problem
from usp_daemon.core._parameters import DGM_TIERS

WEIGHTS_FOLDER = pathlib.Path(network.__file__).parent / "weights"


@dataclasses.dataclass(frozen=True)
class TrainingPlan:
    """How long and how fast to train; the rule for runaway gradients is the specification's."""

    num_steps: int = 10_000
    num_points: int = 1024
    learning_rate: float = 3e-3
    final_learning_rate: float = 1e-5
    warmup_steps: int = 100
    gradient_norm_limit: float = 10.0
    max_clipped_in_a_row: int = 5  # more than that many: an event, and half the learning rate
    average_memory: float = 500.0  # steps
    chunk: int = 100


def initial_weights(key: jax.Array, width: int, depth: int) -> NetworkWeights:
    """Glorot-uniform hidden layers; a silent output layer, so that training starts from the trial solution's base."""
    input_key, hidden_key = jax.random.split(key)
    glorot = jax.nn.initializers.glorot_uniform()
    return NetworkWeights(
        input_weight=glorot(input_key, (network.NUM_FEATURES, width), jnp.float32),
        input_bias=jnp.zeros((width,), jnp.float32),
        hidden_weights=0.5
        * jax.nn.initializers.glorot_uniform(batch_axis=0)(hidden_key, (depth - 1, width, width), jnp.float32),
        hidden_biases=jnp.zeros((depth - 1, width), jnp.float32),
        output_weight=jnp.zeros((width, network.NUM_HEADS), jnp.float32),
        output_bias=jnp.zeros((network.NUM_HEADS,), jnp.float32),
    )


def grown_weights(key: jax.Array, old: NetworkWeights, width: int, depth: int) -> NetworkWeights:
    """A wider and deeper network that computes exactly what ``old`` computes.

    New units read everything and speak to no one yet; new layers add zero.
    """
    new = initial_weights(key, width, depth)
    old_width, old_layers = old.input_bias.shape[0], old.hidden_weights.shape[0]
    hidden = new.hidden_weights.at[:, :, :old_width].set(0.0)
    hidden = hidden.at[:old_layers, :old_width, :old_width].set(old.hidden_weights)
    hidden = hidden.at[old_layers:].set(0.0)
    return NetworkWeights(
        input_weight=new.input_weight.at[:, :old_width].set(old.input_weight),
        input_bias=new.input_bias.at[:old_width].set(old.input_bias),
        hidden_weights=hidden,
        hidden_biases=new.hidden_biases.at[:old_layers, :old_width].set(old.hidden_biases),
        output_weight=new.output_weight.at[:old_width].set(old.output_weight),
        output_bias=old.output_bias,
    )


def sample_problems(key: jax.Array, num_points: int) -> Problem:
    """Collocation points: coefficients denser near zero, where most series live, times a horizon in (0, 1]."""
    keys = jax.random.split(key, 7)
    uniform = functools.partial(jax.random.uniform, shape=(num_points,), dtype=jnp.float32)
    horizon = jnp.maximum(uniform(keys[0]), 1e-3)
    signed = 2.0 * uniform(keys[1]) - 1.0
    constant = network.MAX_CONSTANT * 1.05 * signed * jnp.abs(signed)
    slope = network.MIN_SLOPE * 1.05 + 1.05 * (network.MAX_SLOPE - network.MIN_SLOPE) * uniform(keys[2])
    cubic = network.MIN_CUBIC * 1.05 * uniform(keys[3]) ** 2
    variance = network.MAX_VARIANCE * 1.05 * uniform(keys[4]) ** 2
    # The equation has no boundary condition in x; going beyond the levels in use keeps the loose ends out of the way.
    everywhere = (network.MAX_LEVEL + 1.0) * (2.0 * uniform(keys[5]) - 1.0)
    level = jnp.where(jnp.arange(num_points) % 2 == 0, everywhere, 0.35 * everywhere)
    # A share of nearly linear problems: they are the commonest.
    cubic = jnp.where(jnp.arange(num_points) % 4 == 3, 0.0, cubic)
    return Problem(level, horizon * constant, horizon * slope, horizon * cubic, horizon * variance)


def residuals(weights: NetworkWeights, problem: Problem) -> jax.Array:
    """Residual of the equation at each point, relative to the size of the drift there."""
    x = problem.level

    def by_level(level: jax.Array) -> jax.Array:
        return network.increment(weights, dataclasses.replace(problem, level=level))

    def with_slope(level: jax.Array) -> tuple[jax.Array, jax.Array]:
        return jax.jvp(by_level, (level,), (jnp.ones_like(level),))

    (_, slope), (_, curvature) = jax.jvp(with_slope, (x,), (jnp.ones_like(x),))

    # d/dlambda at lambda = 1 of the increment for lambda * (A, B, C, S): the horizon's derivative times the horizon.
    def by_horizon(constant: jax.Array, linear: jax.Array, cubic: jax.Array, variance: jax.Array) -> jax.Array:
        return network.increment(weights, Problem(x, constant, linear, cubic, variance))

    coefficients = (problem.constant, problem.slope, problem.cubic, problem.variance)
    _, horizon_derivative = jax.jvp(by_horizon, coefficients, coefficients)
    drift = problem.constant + problem.slope * x + problem.cubic * x**3
    residual = horizon_derivative - drift * (1.0 + slope) - 0.5 * problem.variance * curvature
    reach = jnp.sqrt(1.0 + x * x)
    wide = jnp.sqrt(1.0 - 2.0 * problem.cubic * (1.0 + x * x))
    size = (
        jnp.abs(problem.constant)
        + jnp.abs(problem.slope) * reach
        + jnp.abs(problem.cubic) * 2.0 * reach**3 / (wide * (1.0 + wide))
        + 0.2 * jnp.abs(drift)
        + 1e-3
    )
    return residual / size


def loss_fn(weights: NetworkWeights, problem: Problem) -> jax.Array:
    """Mean square of the relative residuals."""
    return jnp.mean(residuals(weights, problem) ** 2)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainingState:
    """Adam's state, the averaged iterate and the account of clipped gradients."""

    weights: NetworkWeights
    average: NetworkWeights
    first_moment: NetworkWeights
    second_moment: NetworkWeights
    step: jax.Array
    rate_factor: jax.Array
    clipped_in_a_row: jax.Array
    runaway_events: jax.Array


def initial_state(weights: NetworkWeights) -> TrainingState:
    """Training about to begin at ``weights``."""
    zeros = jax.tree.map(jnp.zeros_like, weights)
    count = jnp.zeros((), jnp.int32)
    return TrainingState(weights, weights, zeros, zeros, count, jnp.ones((), jnp.float32), count, count)


def guard_gradient(
    plan: TrainingPlan, gradient: Any, rate_factor: jax.Array, clipped_in_a_row: jax.Array
) -> tuple[Any, ...]:
    """Clips the gradient to the norm limit; too many clipped in a row halve the learning rate.

    Returns ``(gradient, rate_factor, clipped_in_a_row, runaway)``.
    """
    norm = jnp.sqrt(sum(jnp.sum(leaf * leaf) for leaf in jax.tree.leaves(gradient)))
    clipped = norm > plan.gradient_norm_limit
    shrink = jnp.where(clipped, plan.gradient_norm_limit / jnp.maximum(norm, 1e-30), 1.0)
    gradient = jax.tree.map(lambda leaf: jnp.where(jnp.isfinite(norm), leaf * shrink, 0.0), gradient)
    clipped_in_a_row = jnp.where(clipped | ~jnp.isfinite(norm), clipped_in_a_row + 1, 0)
    runaway = clipped_in_a_row > plan.max_clipped_in_a_row
    rate_factor = jnp.where(runaway, 0.5 * rate_factor, rate_factor)
    return gradient, rate_factor, jnp.where(runaway, 0, clipped_in_a_row), runaway


def train_step(
    plan: TrainingPlan, state: TrainingState, key: jax.Array, learning_rate: jax.Array
) -> tuple[TrainingState, jax.Array]:
    """One step of Adam [KingmaBa2015] on fresh points."""
    loss, gradient = jax.value_and_grad(loss_fn)(state.weights, sample_problems(key, plan.num_points))
    gradient, rate_factor, in_a_row, runaway = guard_gradient(plan, gradient, state.rate_factor, state.clipped_in_a_row)
    step = state.step + 1
    first = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, state.first_moment, gradient)
    second = jax.tree.map(lambda v, g: 0.99 * v + 0.01 * g * g, state.second_moment, gradient)
    count = step.astype(jnp.float32)
    first_scale, second_scale = 1.0 / (1.0 - 0.9**count), 1.0 / (1.0 - 0.99**count)
    rate = learning_rate * rate_factor
    weights = jax.tree.map(
        lambda w, m, v: w - rate * m * first_scale / (jnp.sqrt(v * second_scale) + 1e-8), state.weights, first, second
    )
    share = 1.0 / jnp.minimum(count, plan.average_memory)
    average = jax.tree.map(lambda a, w: a + share * (w - a), state.average, weights)
    events = state.runaway_events + runaway.astype(jnp.int32)
    return TrainingState(weights, average, first, second, step, rate_factor, in_a_row, events), loss


@functools.partial(jax.jit, static_argnums=0)
def train_chunk(
    plan: TrainingPlan, state: TrainingState, key: jax.Array, rates: jax.Array
) -> tuple[TrainingState, jax.Array]:
    """``plan.chunk`` steps in one program."""
    keys = jax.random.split(key, plan.chunk)
    return lax.scan(lambda carry, inputs: train_step(plan, carry, *inputs), state, (keys, rates))


def learning_rates(plan: TrainingPlan, fraction_from: float, fraction_to: float, first_step: int) -> np.ndarray:
    """Cosine decay over the training's progress in [0, 1], after a linear warm-up."""
    progress = np.linspace(fraction_from, fraction_to, plan.chunk)
    decay = 0.5 * (1.0 + np.cos(np.pi * np.clip(progress, 0.0, 1.0)))
    rates = plan.final_learning_rate + (plan.learning_rate - plan.final_learning_rate) * decay
    warmup = np.minimum(1.0, (first_step + 1 + np.arange(plan.chunk)) / plan.warmup_steps)
    return (rates * warmup).astype(np.float32)


def train(
    plan: TrainingPlan, weights: NetworkWeights, key: jax.Array, seconds: float | None = None, report: Any = print
) -> tuple[TrainingState, list[float]]:
    """Trains for ``plan.num_steps`` or, if given, about ``seconds``; returns the state and the mean loss per chunk."""
    state = initial_state(jax.tree.map(jnp.array, weights))
    losses: list[float] = []
    start = time.monotonic()
    fraction = 0.0
    while fraction < 1.0:
        done = len(losses) * plan.chunk
        elapsed = time.monotonic() - start
        if seconds is None:
            step_fraction = plan.chunk / plan.num_steps
        else:
            step_fraction = elapsed / seconds / max(len(losses), 1) if losses else 0.0
        rates = learning_rates(plan, fraction, fraction + step_fraction, done)
        state, chunk_losses = train_chunk(plan, state, jax.random.fold_in(key, len(losses)), jnp.asarray(rates))
        losses.append(float(jnp.mean(chunk_losses)))
        fraction = (
            (time.monotonic() - start) / seconds if seconds is not None else len(losses) * plan.chunk / plan.num_steps
        )
        if len(losses) % 10 == 0 or fraction >= 1.0:
            report(
                f"step {len(losses) * plan.chunk:6d}  {time.monotonic() - start:6.1f} s  loss {losses[-1]:.3e}  "
                f"rate factor {float(state.rate_factor):g}"
            )
    return state, losses


# ---------------------------------------------------------------------------------------------------------------------
# Independent answers


def ornstein_uhlenbeck_increment(constant: np.ndarray, slope: np.ndarray, level: np.ndarray) -> np.ndarray:
    """Exact ``E[X] - x`` without the cubic term."""
    nonzero = np.where(np.abs(slope) < 1e-12, 1e-12, slope)
    return np.expm1(nonzero) / nonzero * (constant + slope * level)


def finite_difference_increments(
    constant: float,
    slope: float,
    cubic: float,
    variance: float,
    levels: np.ndarray,
    num_nodes: int = 1601,
    num_steps: int = 400,
) -> np.ndarray:
    """``E[X] - x`` at ``levels`` by an implicit finite-difference scheme with linear extrapolation at the far ends.

    Second order in space; in time implicit Euler with Richardson extrapolation of two step sizes.
    """
    grid = np.linspace(-14.0, 14.0, num_nodes)
    spacing = grid[1] - grid[0]
    drift = constant + slope * grid + cubic * grid**3
    down = -drift / (2 * spacing) + variance / (2 * spacing**2)
    up = drift / (2 * spacing) + variance / (2 * spacing**2)
    middle = np.full_like(grid, -variance / spacing**2)
    # The solution is smooth, so central differences serve at any cell Peclet number; at the ends the drift's own side.
    down[0], up[0], middle[0] = 0.0, drift[0] / spacing, -drift[0] / spacing
    up[-1], down[-1], middle[-1] = 0.0, -drift[-1] / spacing, drift[-1] / spacing

    def solve(steps: int) -> np.ndarray:
        size = 1.0 / steps
        bands = np.zeros((3, num_nodes))
        bands[0, 1:], bands[1], bands[2, :-1] = -size * up[:-1], 1.0 - size * middle, -size * down[1:]
        value = grid.copy()
        for _ in range(steps):
            value = solve_banded((1, 1), bands, value)
        return value

    value = 2.0 * solve(2 * num_steps) - solve(num_steps)
    return CubicSpline(grid, value)(levels) - levels


def measure(weights: NetworkWeights, seed: int = 0, num_linear: int = 4096, num_cubic: int = 48) -> dict[str, float]:
    """Errors of the forecast increment in level standard deviations, against independent answers.

    ``linear_*``: the exact Ornstein-Uhlenbeck answer; ``cubic_*``: finite differences. Problems fill the box; levels
    lie in [-4, 4]. ``relative`` errors are in units of the drift's size over the horizon, median over the problems.
    """
    rng = np.random.default_rng(seed)

    def box(size: int) -> tuple[np.ndarray, ...]:
        return (
            rng.uniform(-network.MAX_CONSTANT, network.MAX_CONSTANT, size),
            rng.uniform(network.MIN_SLOPE, network.MAX_SLOPE, size),
            rng.uniform(network.MIN_CUBIC, 0.0, size),
            rng.uniform(0.0, network.MAX_VARIANCE, size),
        )

    def answer(constant: Any, slope: Any, cubic: Any, variance: Any, level: np.ndarray) -> np.ndarray:
        parts = [
            np.broadcast_to(np.asarray(part, np.float32), level.shape) for part in (constant, slope, cubic, variance)
        ]
        problem = Problem(jnp.asarray(level, jnp.float32), *(jnp.asarray(part) for part in parts))
        return np.asarray(network.increment(weights, problem), np.float64)

    constant, slope, _, variance = box(num_linear)
    level = rng.uniform(-4.0, 4.0, num_linear)
    exact = ornstein_uhlenbeck_increment(constant, slope, level)
    linear_error = np.abs(answer(constant, slope, 0.0, variance, level) - exact)
    size = np.abs(constant) + np.abs(slope) * np.sqrt(1.0 + level**2)
    levels = np.linspace(-4.0, 4.0, 33)
    cubic_errors = np.stack(
        [
            np.abs(answer(*row, levels) - finite_difference_increments(*row, levels))
            for row in zip(*box(num_cubic), strict=True)
        ]
    )
    return {
        "linear_mean": float(linear_error.mean()),
        "linear_sup": float(linear_error.max()),
        "linear_relative": float(np.median(linear_error / size)),
        "cubic_mean": float(cubic_errors.mean()),
        "cubic_sup": float(cubic_errors.max()),
    }


def _selected_tiers(text: str) -> list[int]:
    first, _, last = text.partition("-")
    return list(range(int(first), int(last or first) + 1))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["train", "measure"])
    parser.add_argument("--tiers", default=f"0-{len(DGM_TIERS) - 1}", help="one tier or a range, as 0-5")
    parser.add_argument("--seconds", type=float, help="wall-clock budget per tier instead of --steps")
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--points", type=int, default=1024)
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--continue", dest="resume", action="store_true", help="start from the tier's own shipped weights"
    )
    parser.add_argument("--output", type=pathlib.Path, default=WEIGHTS_FOLDER)
    arguments = parser.parse_args()
    for tier in _selected_tiers(arguments.tiers):
        width, depth = DGM_TIERS[tier]
        path = arguments.output / network.tier_file_name(tier)
        if arguments.command == "train":
            key = jax.random.fold_in(jax.random.key(arguments.seed), tier)
            previous = arguments.output / network.tier_file_name(tier if arguments.resume else tier - 1)
            if arguments.resume:
                weights = network.read_weights(previous.read_bytes(), "float32")
            elif tier > 0 and previous.exists():
                weights = grown_weights(key, network.read_weights(previous.read_bytes(), "float32"), width, depth)
            else:
                weights = initial_weights(key, width, depth)
            plan = TrainingPlan(
                num_steps=arguments.steps, num_points=arguments.points, learning_rate=arguments.learning_rate
            )
            state, losses = train(
                plan, weights, key, arguments.seconds, functools.partial(print, f"{width}x{depth}", flush=True)
            )
            arguments.output.mkdir(parents=True, exist_ok=True)
            network.save_weights(path, state.average)
            print(f"{width}x{depth} events {int(state.runaway_events)} final loss {losses[-1]:.3e}", flush=True)
        weights = network.read_weights(path.read_bytes(), "float32")
        sample = sample_problems(jax.random.key(12345), 8192)
        row = {"tier": f"{width}x{depth}", "loss": float(loss_fn(weights, sample)), **measure(weights)}
        print(
            json.dumps({name: float(f"{v:.3g}") if isinstance(v, float) else v for name, v in row.items()}), flush=True
        )


if __name__ == "__main__":
    main()
