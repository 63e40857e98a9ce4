"""What the orchestrator tells a kernel, and when.

A kernel is a module of pure functions: ``init(config, dtype)``, ``update(state, observation, config)``,
``predict(state, config)`` and, where it has heavy and rare work, ``refresh(state, context, config)``.
``update`` first learns from the features that were stored one tick earlier, then stores those of the present tick, so a
forecast can never have seen its own target.
"""

import equinox as eqx
from jaxtyping import Array, Float

from .._types import Count, Flag, Scalar


class KernelObservation(eqx.Module):
    """One accepted tick on the predictor's dimensionless scales.

    ``increment`` and forecasts are in units of ``scale`` (a robust standard deviation of increments, in units of the
    symbol); ``level`` is in units of the level's own slow standard deviation, which is ``level_unit`` times ``scale``.
    """

    value: Scalar
    increment: Scalar
    level: Scalar
    previous_level: Scalar
    level_unit: Scalar
    scale: Scalar
    weight: Scalar
    forget: Flag


class RefreshContext(eqx.Module):
    """What heavy and rare work may look at.

    ``history`` holds past values, oldest first, relative to the newest one and in units of ``scale``; only its last
    ``length`` entries are real, the ones before repeat the oldest real value.
    """

    history: Float[Array, " history"]
    length: Count
    level: Scalar
    level_unit: Scalar
    holder_exponent: Scalar
    regime_started: Flag
