"""States of one structure into another's, when a structural parameter changes while the daemon runs."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from usp_daemon import core

from ._engine import PartitionStates
from ._packing import plan_packing


@dataclass(frozen=True)
class MigrationReport:
    """What a migration did to the learners, in words, the same for every symbol.

    ``kept`` goes on as if nothing had happened, ``lost`` starts anew or was given up. What is no learner (gate,
    detector, calibration, weights and the stored forecast) is always kept.
    """

    kept: tuple[str, ...]
    lost: tuple[str, ...]


def migrate_states(
    states: PartitionStates,
    old: core.PredictorConfig,
    new: core.PredictorConfig,
    pristine: Mapping[str, np.ndarray] | None = None,
) -> tuple[PartitionStates, MigrationReport]:
    """``states`` of ``old``'s structure as states of ``new``'s, symbols in the same order.

    Same input, same bits; neither the order nor the company of the symbols matters. Arrays that do not change are
    handed on, not copied. ``pristine`` holds the leaves of a symbol that has seen nothing under ``new``
    (:meth:`Engine.pristine_state`); without it the predictor's own are computed, in the precision of ``states``, which
    takes a second.
    """
    if pristine is None:
        forecast = states.arrays.get("model/forecast")
        pristine = pristine_leaves(new, np.float64 if forecast is None else forecast.dtype)
    migrated = core.migrate_arrays(states.arrays, old, new, pristine)
    return (
        PartitionStates(states.symbols, migrated.arrays),
        MigrationReport(tuple(migrated.kept), tuple(migrated.lost)),
    )


def pristine_leaves(config: core.PredictorConfig, dtype: Any) -> dict[str, np.ndarray]:
    """The predictor's initial state by path, in ``dtype`` arithmetic."""
    state = core.initialize_state(config, dtype=dtype)
    leaves = plan_packing(state).leaves
    return {leaf.path: np.asarray(value) for leaf, value in zip(leaves, jax.tree.leaves(state), strict=True)}
