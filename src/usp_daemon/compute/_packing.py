"""Packs a pytree of many small arrays into a few large ones.

Starting a program costs one to two microseconds per array handed over, so a state of three hundred leaves would cost a
third of the step. Small leaves of one dtype therefore share one array per tile; large ones stay on their own, because
packing those would copy them on every step. Packing moves bits and computes nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# Leaves of at most this many elements per lane are packed together (measured: best of 16, 64, 256 and everything).
SMALL_LEAF_ELEMENTS = 64


@dataclass(frozen=True)
class PackedLeaf:
    """Where one leaf of the pytree lives: columns ``start`` to ``stop`` of array number ``array``.

    ``is_whole`` marks a leaf that is an array of its own, in its own shape.
    """

    path: str
    shape: tuple[int, ...]
    dtype: np.dtype
    array: int
    start: int
    stop: int
    is_whole: bool


@dataclass(frozen=True)
class Packing:
    """A two-way map between a pytree (leaves with one leading axis) and a few arrays with the same leading axis."""

    leaves: tuple[PackedLeaf, ...]
    treedef: Any
    num_arrays: int

    def pack(self, tree: Any) -> tuple[jax.Array, ...]:
        """The tuple of arrays that holds ``tree``; traceable."""
        values = jax.tree.leaves(tree)
        width = values[0].shape[0]
        parts: list[list[jax.Array]] = [[] for _ in range(self.num_arrays)]
        for leaf, value in zip(self.leaves, values, strict=True):
            parts[leaf.array].append(value if leaf.is_whole else jnp.reshape(value, (width, leaf.stop - leaf.start)))
        return tuple(part[0] if len(part) == 1 else jnp.concatenate(part, axis=1) for part in parts)

    def unpack(self, arrays: Sequence[Any]) -> Any:
        """The pytree that ``arrays`` hold; works on traced and on numpy arrays."""
        return jax.tree.unflatten(self.treedef, [self.read(leaf, arrays) for leaf in self.leaves])

    def read(self, leaf: PackedLeaf, arrays: Sequence[Any]) -> Any:
        """One leaf out of ``arrays``, with its leading axis."""
        array = arrays[leaf.array]
        return array if leaf.is_whole else array[:, leaf.start : leaf.stop].reshape((array.shape[0], *leaf.shape))

    def num_bytes(self) -> int:
        """Bytes of one lane."""
        return sum(int(np.prod(leaf.shape)) * leaf.dtype.itemsize for leaf in self.leaves)


def plan_packing(example: Any, small_leaf_elements: int | None = SMALL_LEAF_ELEMENTS) -> Packing:
    """How to pack trees like ``example``, whose leaves are the shapes of one lane (arrays or ``ShapeDtypeStruct``).

    ``small_leaf_elements`` is the largest leaf that shares an array; ``None`` packs everything.
    """
    paths_and_leaves, treedef = jax.tree_util.tree_flatten_with_path(example)
    arrays: dict[Any, int] = {}
    columns: dict[int, int] = {}
    leaves = []
    for path, value in paths_and_leaves:
        size, dtype = int(np.prod(value.shape)), np.dtype(value.dtype)
        is_whole = small_leaf_elements is not None and size > small_leaf_elements
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        array = arrays.setdefault(("whole", name) if is_whole else dtype, len(arrays))
        start = columns.get(array, 0)
        columns[array] = start + size
        leaves.append(PackedLeaf(name, tuple(value.shape), dtype, array, start, start + size, is_whole))
    return Packing(tuple(leaves), treedef, len(arrays))
