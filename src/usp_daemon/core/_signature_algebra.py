r"""The truncated tensor algebra in which path signatures live.

An element is a tuple of levels, level :math:`k` an array of shape ``(dim,) * k`` (level 0 is left out: it is 1 for a
group element and 0 for a Lie element). The length of the tuple is the truncation depth. Functions take NumPy as well
as JAX arrays. Sources: Lyons, Caruana & Lévy (2007), ch. 2 (signature, Chen's identity); Reutenauer (1993), ch. 4-5
(Lyndon words); Kidger & Lyons (2021) (fused multiply-exponentiate, words as coordinates).
"""

import functools
import itertools
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

Tensor = Float[Array, "..."] | Float[np.ndarray, "..."]
Vector = Float[Array, " dim"] | Float[np.ndarray, " dim"]
Levels = tuple[Tensor, ...]


def zero(dim: int, depth: int, dtype: Any) -> Levels:
    """The signature of a path that does not move: every level is zero (and level 0, left out, is one)."""
    return tuple(jnp.zeros((dim,) * level, dtype) for level in range(1, depth + 1))


def outer(left: Tensor, right: Tensor) -> Tensor:
    """Tensor product of two homogeneous tensors."""
    return left.reshape(left.shape + (1,) * right.ndim) * right.reshape((1,) * left.ndim + right.shape)


def exponential(vector: Vector, depth: int) -> Levels:
    """Signature of a straight segment: level k is the k-th tensor power of ``vector`` divided by k!."""
    levels = [vector]
    for level in range(2, depth + 1):
        levels.append(outer(levels[-1], vector / level))
    return tuple(levels)


def multiply(left: Levels, right: Levels) -> Levels:
    """Product of two group elements (Chen's identity: the signature of one path followed by another)."""
    return tuple(
        left[level - 1]
        + right[level - 1]
        + sum((outer(left[split - 1], right[level - split - 1]) for split in range(1, level)), 0.0)
        for level in range(1, len(left) + 1)
    )


def multiply_exponential(signature: Levels, vector: Vector) -> Levels:
    """The signature after one more straight segment: ``signature`` times exp(``vector``), in Horner's form."""
    result = []
    for level in range(1, len(signature) + 1):
        total = vector / level
        for below in range(1, level):
            total = outer(total + signature[below - 1], vector / (level - below))
        result.append(total + signature[level - 1])
    return tuple(result)


def exponential_multiply(vector: Vector, signature: Levels) -> Levels:
    """The signature with one straight segment put before: exp(``vector``) times ``signature``, in Horner's form."""
    result = []
    for level in range(1, len(signature) + 1):
        total = vector / level
        for below in range(1, level):
            total = outer(vector / (level - below), total + signature[below - 1])
        result.append(total + signature[level - 1])
    return tuple(result)


def inverse(signature: Levels) -> Levels:
    """Inverse of a group element, that is, the signature of the same path run backwards.

    The antipode: each word is reversed and signed by its length.
    """
    return tuple((-1.0) ** level.ndim * jnp.transpose(level) for level in signature)


def logarithm(signature: Levels) -> Levels:
    """Tensor logarithm of a group element: a finite polynomial, since the algebra is truncated.

    With S = 1 + X: X (1 - X (1/2 - X (1/3 - ...))), Horner's form of the logarithmic series.
    """
    depth = len(signature)
    # inner holds the bracket to the right of the current X: a constant and the levels that can still matter.
    inner_constant = 1.0 / depth
    inner: Levels = ()
    for power in range(depth - 1, 0, -1):
        product = _times(signature, inner_constant, inner, depth - power)
        inner_constant = 1.0 / power
        inner = tuple(-level for level in product)
    return _times(signature, inner_constant, inner, depth)


def _times(signature: Levels, constant: float, other: Levels, depth: int) -> Levels:
    """X (constant + other) up to ``depth``; X has no level 0, ``other`` holds the levels from 1 to below ``depth``."""
    return tuple(
        constant * signature[level - 1]
        + sum((outer(signature[split - 1], other[level - split - 1]) for split in range(1, level)), 0.0)
        for level in range(1, depth + 1)
    )


def dilate(signature: Levels, factors: Vector) -> Levels:
    """Signature of the path whose coordinates were multiplied by ``factors``: a word is multiplied letter by letter."""
    scaling = factors
    result = []
    for level in signature:
        result.append(level * scaling)
        if len(result) < len(signature):
            scaling = outer(scaling, factors)
    return tuple(result)


@functools.lru_cache(maxsize=32)
def lyndon_words(dim: int, depth: int) -> tuple[tuple[int, ...], ...]:
    """Lyndon words over ``dim`` letters up to length ``depth``, shortest first, then lexicographic.

    A word is Lyndon if it is strictly smaller than each of its proper suffixes. Their number is the dimension of the
    free nilpotent Lie algebra (Witt's formula).
    """
    return tuple(
        word
        for length in range(1, depth + 1)
        for word in itertools.product(range(dim), repeat=length)
        if all(word < word[cut:] for cut in range(1, length))
    )


def num_lyndon_words(dim: int, depth: int) -> int:
    """Witt's formula: sum over lengths n of (1/n) sum over divisors d of n of mobius(d) dim^(n/d)."""
    total = 0
    for length in range(1, depth + 1):
        total += sum(_mobius(d) * dim ** (length // d) for d in range(1, length + 1) if length % d == 0) // length
    return total


def _mobius(number: int) -> int:
    sign = 1
    for prime in range(2, number + 1):
        if number % prime == 0:
            number //= prime
            if number % prime == 0:
                return 0
            sign = -sign
    return sign


def lyndon_coordinates(lie_element: Levels) -> Float[Array, " words"]:
    """Coefficients of the Lyndon words in a Lie element (a tensor logarithm): a full set of coordinates on it.

    The bracketing of a Lyndon word is that word plus lexicographically larger ones, so the map from the coefficients in
    the Lyndon basis to these is unitriangular, hence invertible (Reutenauer 1993, thm 5.1; Kidger & Lyons 2021).
    """
    dim, depth = lie_element[0].shape[0], len(lie_element)
    flat = jnp.concatenate([jnp.reshape(level, (-1,)) for level in lie_element])
    return flat[lyndon_positions(dim, depth)]


@functools.lru_cache(maxsize=32)
def lyndon_positions(dim: int, depth: int) -> np.ndarray:
    """Where the Lyndon words stand in the levels, flattened and joined."""
    offsets = np.concatenate([[0], np.cumsum([dim**level for level in range(1, depth + 1)])])
    return np.array(
        [
            offsets[len(word) - 1] + sum(letter * dim ** (len(word) - 1 - place) for place, letter in enumerate(word))
            for word in lyndon_words(dim, depth)
        ],
        dtype=np.int32,
    )
