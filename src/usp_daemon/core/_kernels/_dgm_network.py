r"""The value network of the Deep Galerkin kernel: its shape, its trained box and its evaluation by tiers.

For :math:`dX = (a + bX + cX^3)\,dt + s\,dW` the network represents :math:`V(\tau, x) = E[X_{t+\tau} \mid X_t = x]`, the
solution of the backward Kolmogorov equation

.. math:: V_\tau = (a + bx + cx^3) V_x + \tfrac{s^2}{2} V_{xx}, \qquad V(0, x) = x .

Stretching time changes nothing but the coefficients, so horizon and coefficients enter only through
:math:`A = a\tau, B = b\tau, C = c\tau, S = s^2\tau` and the trial solution is

.. math:: V = x + \tau N, \qquad \tau N = A\,n_A + B\,n_B + C\,n_C ,

where each :math:`n` is its value for small :math:`\tau` (for :math:`n_C` the exact answer of the pure cubic flow) plus
one output of the network. The terminal condition then holds exactly, and an error of the network is an error *relative
to the drift*: a process without drift is forecast as such to the last bit. Trained by
``scripts/train_deep_galerkin.py`` after [SirignanoSpiliopoulos2018]_; the residual layers are those of [He2016]_.
"""

import functools
import importlib.resources
import io
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.custom_batching import custom_vmap
from jaxtyping import Array, Float

from .._parameters import DGM_TIERS
from .._types import Count, Scalar

AnyArray = Array | np.ndarray

# The box of scaled coefficients (drift per horizon) on which the networks are trained; outside it nothing is known.
MAX_CONSTANT = 1.5  # |A|, level standard deviations
MIN_SLOPE, MAX_SLOPE = -2.5, 0.3  # B: the level keeps between exp(-2.5) and exp(0.3) of its deviation
MIN_CUBIC = -0.5  # C: the cubic term only ever pushes inwards
MAX_VARIANCE = 2.25  # S, level variances
MAX_LEVEL = 6.0  # |x|

NUM_FEATURES = 6
NUM_HEADS = 3


class Problem(eqx.Module):
    """A point of the family: where the process is and its coefficients, each multiplied by the horizon."""

    level: Float[Array, "..."]
    constant: Float[Array, "..."]
    slope: Float[Array, "..."]
    cubic: Float[Array, "..."]
    variance: Float[Array, "..."]


class NetworkWeights(eqx.Module):
    """Weights of one tier; the first hidden layer, the residual ones (stacked) and the linear output layer."""

    input_weight: Float[AnyArray, "features width"]
    input_bias: Float[AnyArray, " width"]
    hidden_weights: Float[AnyArray, "residual width width"]
    hidden_biases: Float[AnyArray, "residual width"]
    output_weight: Float[AnyArray, "width heads"]
    output_bias: Float[AnyArray, " heads"]


def clip_to_box(problem: Problem) -> Problem:
    """The nearest problem on which the networks are trained."""
    return Problem(
        level=jnp.clip(problem.level, -MAX_LEVEL, MAX_LEVEL),
        constant=jnp.clip(problem.constant, -MAX_CONSTANT, MAX_CONSTANT),
        slope=jnp.clip(problem.slope, MIN_SLOPE, MAX_SLOPE),
        cubic=jnp.clip(problem.cubic, MIN_CUBIC, 0.0),
        variance=jnp.clip(problem.variance, 0.0, MAX_VARIANCE),
    )


def _features(problem: Problem) -> Float[Array, "*lanes features"]:
    """Network inputs, each of order one on the box; the second is the pure cubic flow, which tames the stiff corner."""
    x = problem.level
    carried = x / jnp.sqrt(1.0 - 2.0 * problem.cubic * x * x)
    return jnp.stack(
        [x / 3.0, carried, problem.constant, problem.slope + 1.0, 4.0 * problem.cubic + 1.0, problem.variance - 1.0],
        axis=-1,
    )


def _forward(weights: NetworkWeights, features: Float[Array, "lanes features"]) -> Float[Array, "lanes heads"]:
    hidden = jnp.tanh(features @ weights.input_weight + weights.input_bias[None, :])
    for layer in range(weights.hidden_weights.shape[0]):
        # Residual layers: a deeper network can start as an exact copy of a shallower one and only improve on it.
        hidden = hidden + jnp.tanh(hidden @ weights.hidden_weights[layer] + weights.hidden_biases[layer][None, :])
    return hidden @ weights.output_weight + weights.output_bias[None, :]


def increment(weights: NetworkWeights, problem: Problem) -> Float[Array, " lanes"]:
    """``V - x`` of the trial solution for a vector of problems, in level units."""
    x = problem.level
    heads = _forward(weights, _features(problem))
    cubed = x * x
    root = jnp.sqrt(1.0 - 2.0 * problem.cubic * cubed)
    wide = jnp.sqrt(1.0 - 2.0 * problem.cubic * (1.0 + cubed))
    reach = jnp.sqrt(1.0 + cubed)
    by_constant = 1.0 + heads[:, 0]
    by_slope = x + reach * heads[:, 1]
    by_cubic = (
        2.0 * x * cubed / (root * (1.0 + root)) + 2.0 * reach * (1.0 + cubed) / (wide * (1.0 + wide)) * heads[:, 2]
    )
    return problem.constant * by_constant + problem.slope * by_slope + problem.cubic * by_cubic


def save_weights(path: Any, weights: NetworkWeights) -> None:
    """Writes ``weights`` as plain float32 arrays (no pickled objects)."""
    arrays: dict[str, Any] = {name: np.asarray(value, np.float32) for name, value in vars(weights).items()}
    np.savez(path, **arrays)


def tier_file_name(tier: int) -> str:
    """File that holds the weights of ``DGM_TIERS[tier]``."""
    width, depth = DGM_TIERS[tier]
    return f"dgm_{width}x{depth}.npz"


def read_weights(content: bytes, dtype_name: str) -> NetworkWeights:
    """Weights from the bytes of a file written by :func:`save_weights`, in the dtype named."""
    with np.load(io.BytesIO(content), allow_pickle=False) as archive:
        # NumPy arrays: they become constants of whatever program uses them and never an array of a trace.
        return NetworkWeights(**{name: archive[name].astype(dtype_name) for name in archive.files})


@functools.cache
def load_weights(tier: int, dtype_name: str) -> NetworkWeights:
    """The shipped weights of ``DGM_TIERS[tier]``; read and converted once per process and dtype."""
    package = __package__ or "usp_daemon.core._kernels"
    content = importlib.resources.files(package).joinpath("weights", tier_file_name(tier)).read_bytes()
    return read_weights(content, dtype_name)


# ---------------------------------------------------------------------------------------------------------------------
# Evaluation by tiers


Point = Float[Array, " coordinates"]  # level, A, B, C, S, uncertainty of A
Lanes = Float[Array, "lanes coordinates"]
NUM_COORDINATES = 6
_BLOCK = 16  # lanes: the multiple at which a product's bits do not depend on the row


def _problem(points: Lanes, shift: float = 0.0) -> Problem:
    constant = points[:, 1] + shift * points[:, 5] if shift else points[:, 1]
    return clip_to_box(Problem(points[:, 0], constant, points[:, 2], points[:, 3], points[:, 4]))


def _bracket(weights: NetworkWeights, points: Lanes) -> Float[Array, "lanes 3"]:
    """``V - x`` without and with the worst drift on either side; the outer two cost nothing while all are certain."""
    centre = increment(weights, _problem(points))

    def both(at: Lanes) -> tuple[Array, Array]:
        return increment(weights, _problem(at, -1.0)), increment(weights, _problem(at, 1.0))

    low, high = lax.cond(jnp.any(points[:, 5] > 0), both, lambda _: (centre, centre), points)
    return jnp.stack([centre, low, high], axis=1)


def _bracket_gradient(weights: NetworkWeights, points: Lanes) -> Float[Array, "lanes 3 coordinates"]:
    """Derivative of each lane's bracket by its own coordinates; lanes do not mix, so one reverse pass per output."""
    _, pull = jax.vjp(lambda at: _bracket(weights, at), points)
    rows = [pull(jnp.zeros((points.shape[0], 3), points.dtype).at[:, k].set(1.0))[0] for k in range(3)]
    return jnp.stack(rows, axis=1)


def _by_tier(evaluate: Callable[[NetworkWeights, Lanes], Array], lowest_tier: int, shape: tuple[int, ...]) -> Any:
    """``(tier, point) -> evaluate`` with each lane's own network, without paying for tiers that no lane uses.

    Alone it is a switch. Under ``vmap`` a switch would run every branch for every lane; here the lowest tier is
    evaluated for all lanes of a batch, if any uses it, and the others for those that use them, sorted by tier. Any
    nesting of ``vmap`` is one flat batch.
    """
    tiers = range(lowest_tier, len(DGM_TIERS))

    def weights_of(tier: int, points: Array) -> NetworkWeights:
        return load_weights(tier, points.dtype.name)

    def nothing(points: Array) -> Array:
        return jnp.zeros((points.shape[0], *shape), points.dtype)

    def base(points: Array) -> Array:
        return evaluate(weights_of(lowest_tier, points), points)

    def larger(tier: Array, points: Array) -> Array:
        """Every tier's own lanes in blocks of a few, so that a large network is paid for by those who use it."""
        num = points.shape[0]
        order = jnp.argsort(tier)
        # A block may run over into the lanes of the next tier, which are computed after it, and over the end.
        ordered = jnp.pad(points[order], ((0, _BLOCK), (0, 0)))
        result = nothing(ordered)
        for k in tiers[1:]:
            first, count = jnp.sum(tier < k, dtype=jnp.int32), jnp.sum(tier == k, dtype=jnp.int32)

            def one_block(i: Array, found: Array, k: int = k, first: Array = first) -> Array:
                begin = first + i * _BLOCK
                rows = lax.dynamic_slice_in_dim(ordered, begin, _BLOCK)
                return lax.dynamic_update_slice_in_dim(found, evaluate(weights_of(k, rows), rows), begin, 0)

            num_blocks = (count + _BLOCK - 1) // _BLOCK
            result = lax.fori_loop(jnp.zeros_like(num_blocks), num_blocks, one_block, result)
        return result[:num][jnp.argsort(order)]

    @custom_vmap
    def lanes(tier: Array, points: Array) -> Array:
        is_base = tier == lowest_tier
        usual = lax.cond(jnp.any(is_base), base, nothing, points)
        rare = lax.cond(jnp.all(is_base), lambda _, at: nothing(at), larger, tier, points)
        return jnp.where(is_base.reshape(-1, *(1 for _ in shape)), usual, rare)

    @lanes.def_vmap
    def _(axis_size: int, in_batched: list[bool], tier: Array, points: Array) -> tuple[Array, bool]:
        tier = tier if in_batched[0] else jnp.broadcast_to(tier[None], (axis_size, *tier.shape))
        points = points if in_batched[1] else jnp.broadcast_to(points[None], (axis_size, *points.shape))
        flat = lanes(tier.reshape(-1), points.reshape(-1, points.shape[-1]))
        return flat.reshape(axis_size, -1, *shape), True

    @custom_vmap
    def point(tier: Array, at: Array) -> Array:
        branches = [lambda row, k=k: evaluate(weights_of(k, row), row) for k in tiers]
        return lax.switch(jnp.clip(tier - lowest_tier, 0, len(branches) - 1), branches, at[None, :])[0]

    @point.def_vmap
    def _(axis_size: int, in_batched: list[bool], tier: Array, at: Array) -> tuple[Array, bool]:
        tier = tier if in_batched[0] else jnp.broadcast_to(tier[None], (axis_size,))
        at = at if in_batched[1] else jnp.broadcast_to(at[None], (axis_size, *at.shape))
        return lanes(tier, at), True

    return point


@functools.cache
def _differentiable(lowest_tier: int) -> Any:
    """The bracket with its derivative as a rule of its own: ``custom_vmap`` has none for reverse mode."""
    value = _by_tier(_bracket, lowest_tier, (3,))
    gradient = _by_tier(_bracket_gradient, lowest_tier, (3, NUM_COORDINATES))

    @jax.custom_jvp
    def bracket(tier: Array, at: Array) -> Array:
        return value(tier, at)

    @bracket.defjvp
    def _(primals: tuple[Array, Array], tangents: tuple[Any, Array]) -> tuple[Array, Array]:
        tier, at = primals
        return value(tier, at), jnp.sum(gradient(tier, at) * tangents[1][None, :], axis=1)

    return bracket


def bracketed_increment(
    lowest_tier: int, tier: Count, problem: Problem, uncertainty: Scalar
) -> tuple[Scalar, Scalar, Scalar]:
    """``V - x`` of one problem: with its drift, with the drift lowered and with it raised by ``uncertainty`` (as A).

    ``tier`` is traced and lies in ``lowest_tier .. len(DGM_TIERS) - 1``; the problem is clipped to the trained box.
    Because V increases in x, the extreme drifts of the Hamilton-Jacobi-Bellman equation with drift uncertainty are the
    constant ones, and the same network answers all three.
    """
    at = jnp.stack([problem.level, problem.constant, problem.slope, problem.cubic, problem.variance, uncertainty])
    bracket = _differentiable(lowest_tier)(tier, at)
    return bracket[0], bracket[1], bracket[2]
