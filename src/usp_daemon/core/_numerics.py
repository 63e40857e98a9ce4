"""Small numerical helpers that several parts of the step share."""

import math
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap
from jaxtyping import Array, Bool, Float

from ._types import Count, Flag, Scalar

Tree = TypeVar("Tree")

# E|Z| of a standard normal is sqrt(2/pi): mean absolute deviation times this is a standard deviation.
SD_FROM_MEAN_ABSOLUTE = 1.2533141373155

_TURN = 2.0 * math.pi
_TURN_HIGH = 6.28125  # few bits, so that whole multiples of it are exact in float32 too
_SINE_SERIES = [(-1.0) ** k / math.factorial(2 * k + 1) for k in range(12)]  # up to pi / 2: 3e-18


def select_tree(condition: Flag, when_true: Tree, when_false: Tree) -> Tree:
    """Leafwise ``where``: the whole record from one side, bit for bit."""
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), when_true, when_false)


def cosine(angle: Float[Array, "..."]) -> Float[Array, "..."]:
    """Cosine of angles up to some thousands, within a few units of rounding of one; it vectorises, the library's does
    not.

    1 - 2 sin(x / 2)**2 with x brought to +-pi and the sine by its series.
    """
    turns = jnp.round(angle * (1.0 / _TURN))
    half = 0.5 * ((angle - turns * _TURN_HIGH) - turns * (_TURN - _TURN_HIGH))
    square = half * half
    series = jnp.full_like(square, _SINE_SERIES[-1])
    for coefficient in _SINE_SERIES[-2::-1]:
        series = series * square + coefficient
    sine = half * series
    return 1.0 - 2.0 * sine * sine


def where_needed(needed: Flag, function: Callable[..., Tree], otherwise: Tree, *operands: Any) -> Tree:
    """``function(*operands)`` where ``needed``, else ``otherwise``; in a batch in which nobody needs it, it is not run.

    Under ``vmap`` a ``cond`` becomes a select, and every lane pays for both sides. ``function`` must get all that it
    takes from its operands. It has no reverse-mode derivative.
    """

    @custom_vmap
    def chosen(needed: Flag, otherwise: Tree, operands: tuple[Any, ...]) -> Tree:
        return jax.lax.cond(needed, lambda at, _: function(*at), lambda _, kept: kept, operands, otherwise)

    @chosen.def_vmap
    def _(axis_size: int, in_batched: Any, needed: Array, otherwise: Any, operands: Any) -> tuple[Any, Any]:
        def spread(value: Any, is_batched: bool) -> Any:
            # a constant may come as a literal, which is no array
            return value if is_batched else jnp.broadcast_to(jnp.asarray(value), (axis_size, *jnp.shape(value)))

        needed, otherwise = jax.tree.map(spread, (needed, otherwise), tuple(in_batched[:2]))
        axes = jax.tree.map(lambda is_batched: 0 if is_batched else None, in_batched[2])

        def whole(at: Any, kept: Any) -> Any:
            return jax.vmap(select_tree)(needed, jax.vmap(function, in_axes=tuple(axes))(*at), kept)

        result = jax.lax.cond(jnp.any(needed), whole, lambda _, kept: kept, operands, otherwise)
        return result, jax.tree.map(lambda _: True, result)

    return chosen(needed, otherwise, operands)


def safe_divide(numerator: Any, denominator: Any, fallback: float = 0.0) -> Any:
    """``numerator / denominator`` where the denominator is positive, else ``fallback``; gradients stay finite."""
    positive = denominator > 0
    return jnp.where(positive, numerator / jnp.where(positive, denominator, 1.0), fallback)


def ewma_rate(count: Count, memory: Scalar) -> Scalar:
    """Weight of the newest sample: 1/n while the average is young, 1/memory once it has ``memory`` samples."""
    return 1.0 / jnp.minimum(count.astype(memory.dtype) + 1.0, jnp.maximum(memory, 1.0))


def huber_weight(standardized: Float[Array, "..."], bound: Any) -> Float[Array, "..."]:
    """Weight of a residual under Huber's loss: 1 inside ``bound``, bound/|residual| outside (Huber, 1964)."""
    return jnp.minimum(1.0, bound / jnp.maximum(jnp.abs(standardized), 1e-12))


def solve_spd(matrix: Float[Array, "n n"], right: Float[Array, " n"]) -> Float[Array, " n"]:
    """Solves a small symmetric positive definite system by unrolled elimination.

    For the small systems of the change detector the batched LAPACK call costs more than the arithmetic. The caller adds
    a ridge; a pivot that rounding has brought to nothing is floored in proportion to its diagonal entry.
    """
    size = matrix.shape[0]
    eps, tiny = float(jnp.finfo(matrix.dtype).eps), float(jnp.finfo(matrix.dtype).tiny)
    floors = eps * jnp.diag(matrix) + tiny
    rows = jnp.concatenate([matrix, right[:, None]], axis=1)
    for pivot in range(size):
        row = rows[pivot] / jnp.maximum(rows[pivot, pivot], floors[pivot])
        rows = (rows - rows[:, pivot, None] * row[None, :]).at[pivot].set(row)
    return rows[:, -1]


def all_finite(tree: Any) -> Bool[Array, ""]:
    """Whether every real leaf of ``tree`` is finite."""
    checks = [jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    result = jnp.asarray(True)
    for check in checks:
        result = result & check
    return result
