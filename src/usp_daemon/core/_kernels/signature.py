r"""Kernel D: the recent path read through its log-signature, and a recursive ridge from there to the next increment.

The path of the last ``signature_window`` ticks is time-augmented and lead-lag, the lag following one tick behind:

    tick k:  (clock, lead, gap) -> (clock + dt/2, lead, gap - dx_{k-1})        the lag catches up
                                -> (clock + dt,   lead + dx_k, gap - dx_{k-1} + dx_k)   the lead moves on

``gap`` is lead minus lag, a linear change of letters: it spans what (clock, lead, lag) spans, and its end is the
latest increment. The clock is geometric: one tick of age multiplies ``dt`` by a constant, so that the words that start
with the clock are exponentially weighted sums over the recent past. Another clock would give other features, on
purpose: a time-augmented signature is not invariant under reparametrisation. The basepoint carries the level.

Chen's identity moves the window by one tick: the oldest tick's inverse from the left, the newest tick's exponentials
from the right, and a dilation that ages the clock in between. Sources: Lyons, Caruana & Lévy (2007), ch. 2; Gyurkó,
Lyons, Kontkowski & Field (2013) for lead-lag; Chevyrev & Kormilitzin (2016) for basepoint and regression.
"""

import functools
import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .. import _recursive_ridge as recursive_ridge
from .. import _signature_algebra as algebra
from .._parameters import PredictorConfig
from .._results import KernelOutput
from .._types import Scalar
from ._interface import KernelObservation, RefreshContext

_Vector = Float[Array, " dim"]

DIMENSION = 3  # clock, lead, lead minus lag
CLOCK_RATIO = 0.85  # how much a tick of age shrinks a clock increment
LEVEL_KNEE = 2.0  # the basepoint is linear in the level below this many path units, and saturates beyond
FEATURE_BOUND = 8.0  # a feature may not exceed this many times what it is on a random walk


class SignatureMetadata(eqx.Module):
    """What kernel D publishes: the forecast's leverage, its running error variance and the log-signature's norm."""

    leverage: Scalar
    error_variance: Scalar
    log_signature_norm: Scalar


class SignatureState(eqx.Module):
    """Kernel D between two ticks.

    ``increments`` are the last ``signature_window`` + 1 ones, oldest first, in units of scale; ``levels`` is the
    signature of the path over the last ``signature_window`` of them, without basepoint; ``features`` is what the next
    increment is regressed on, the first of them constant; ``error_variance`` is the running square of one-step errors,
    and ``samples`` the number of ticks behind it.
    """

    ridge: recursive_ridge.RidgeState
    features: Float[Array, " features"]
    increments: Float[Array, " ticks"]
    levels: algebra.Levels
    error_variance: Scalar
    samples: Scalar


def num_features(depth: int) -> int:
    """Number of regressors at a log-signature depth: its Lyndon words (14 at depth 3)."""
    return len(algebra.lyndon_words(DIMENSION, depth))


def init(config: PredictorConfig, dtype: Any) -> SignatureState:
    """A kernel that has seen a flat path and forecasts no change."""
    size = num_features(config.log_sig_depth)
    return SignatureState(
        ridge=recursive_ridge.init(size, jnp.asarray(_prior_variance(config), dtype)),
        features=jnp.zeros((size,), dtype),
        increments=jnp.zeros((config.signature_window + 1,), dtype),
        levels=window_signature(jnp.zeros((config.signature_window + 1,), dtype), config.log_sig_depth),
        error_variance=jnp.ones((), dtype),
        samples=jnp.zeros((), dtype),
    )


def update(state: SignatureState, observation: KernelObservation, config: PredictorConfig) -> SignatureState:
    """Learns the tick's increment from the features of one tick ago, then moves the window on by one tick."""
    depth, window = config.log_sig_depth, config.signature_window
    target = observation.increment
    prior_variance = _prior_variance(config)
    memory = config.kernel_d_memory_ticks
    error = target - recursive_ridge.predict(state.ridge, state.features)
    ridge = recursive_ridge.update(
        state.ridge,
        state.features,
        target,
        recursive_ridge.forgetting(memory, observation.forget),
        observation.weight,
        jnp.maximum(prior_variance, jnp.finfo(target.dtype).tiny),
    )

    # A running mean over the first ticks, an exponential window afterwards.
    samples = jnp.minimum(state.samples + observation.weight, memory / 5.0)
    rate = observation.weight / jnp.maximum(samples + 5.0, 1.0)
    error_variance = state.error_variance + rate * (jnp.minimum(error * error, _ERROR_CLIP) - state.error_variance)

    levels = slide(state.levels, state.increments, target, window)
    increments = jnp.concatenate([state.increments[1:], target[None]])
    return SignatureState(
        ridge=ridge,
        features=_features(levels, increments, observation, depth, window),
        increments=increments,
        levels=levels,
        error_variance=error_variance,
        samples=samples,
    )


def predict(state: SignatureState, config: PredictorConfig) -> KernelOutput:
    """Forecast of the next increment in units of scale, with the precision that leverage and past errors imply."""
    del config
    leverage = recursive_ridge.leverage(state.ridge, state.features)
    variance = jnp.maximum(state.error_variance, 1e-6) * (1.0 + leverage)
    words = state.features
    return KernelOutput(
        prediction=recursive_ridge.predict(state.ridge, state.features),
        confidence=1.0 / variance,
        metadata=SignatureMetadata(
            leverage=leverage,
            error_variance=state.error_variance,
            log_signature_norm=jnp.sqrt(jnp.sum(words * words)),
        ),
    )


def refresh(state: SignatureState, context: RefreshContext, config: PredictorConfig) -> SignatureState:
    """Rebuilds the window's signature from the stored increments, so that the rounding of sliding cannot drift."""
    del context
    return eqx.tree_at(lambda kernel: kernel.levels, state, window_signature(state.increments, config.log_sig_depth))


_ERROR_CLIP = 36.0


def _prior_variance(config: PredictorConfig) -> Scalar:
    return 1.0 / (config.kernel_ridge_lambda * config.kernel_ridge_reference)


def clock_increments(window: int) -> np.ndarray:
    """How far the clock runs on each tick of the window, oldest first; in all it runs for one unit."""
    steps = CLOCK_RATIO ** np.arange(window - 1, -1, -1.0)
    return steps / steps.sum()


def _segments(clock_step: Scalar, previous: Scalar, latest: Scalar, window: int) -> tuple[_Vector, _Vector]:
    """The two straight segments of a tick: the lag catches up, then the lead moves on."""
    half = 0.5 * clock_step
    # The lead counts in units of what a random walk covers in the window, the gap in units of one tick.
    return jnp.stack([half, 0.0 * latest, -previous]), jnp.stack([half, latest / math.sqrt(window), latest])


def slide(levels: algebra.Levels, increments: Float[Array, " ticks"], latest: Scalar, window: int) -> algebra.Levels:
    """The signature of the window one tick later, by Chen's identity at both ends.

    ``increments`` are the ``window`` + 1 ones before this tick, oldest first, ``levels`` is their signature and
    ``latest`` the new increment.
    """
    clock = jnp.asarray(clock_increments(window), latest.dtype)
    catch_up, move_on = _segments(clock[0], increments[0], increments[1], window)
    levels = algebra.exponential_multiply(-catch_up, levels)
    levels = algebra.exponential_multiply(-move_on, levels)
    levels = algebra.dilate(levels, jnp.asarray([CLOCK_RATIO, 1.0, 1.0], latest.dtype))
    catch_up, move_on = _segments(clock[-1], increments[-1], latest, window)
    return algebra.multiply_exponential(algebra.multiply_exponential(levels, catch_up), move_on)


def window_signature(increments: Float[Array, " ticks"], depth: int) -> algebra.Levels:
    """The same signature from the stored increments, tick by tick: what :func:`slide` must agree with."""
    window = increments.shape[0] - 1

    def one_tick(levels: algebra.Levels, tick: tuple[Scalar, Scalar, Scalar]) -> tuple[algebra.Levels, None]:
        catch_up, move_on = _segments(*tick, window)
        levels = algebra.multiply_exponential(levels, catch_up)
        return algebra.multiply_exponential(levels, move_on), None

    clock = jnp.asarray(clock_increments(window), increments.dtype)
    start = algebra.zero(DIMENSION, depth, increments.dtype)
    levels, _ = jax.lax.scan(one_tick, start, (clock, increments[:-1], increments[1:]))
    return levels


def _features(
    levels: algebra.Levels,
    increments: Float[Array, " ticks"],
    observation: KernelObservation,
    depth: int,
    window: int,
) -> Float[Array, " features"]:
    """Regressors for the next increment: the Lyndon coordinates of the log-signature, each on its usual scale.

    The first of them, the word "clock", is the constant one and serves as the intercept.
    """
    root_window = math.sqrt(window)
    now = observation.level * observation.level_unit / root_window
    now = now / jnp.sqrt(1.0 + (now / LEVEL_KNEE) ** 2)
    start = now - jnp.sum(increments[1:]) / root_window
    basepoint = jnp.stack([jnp.zeros_like(start), start, increments[0]])
    path = algebra.exponential_multiply(basepoint, levels)
    words = algebra.lyndon_coordinates(algebra.logarithm(path))
    words = words * jnp.asarray(word_scales(depth, window), words.dtype)
    return jnp.clip(words, -FEATURE_BOUND, FEATURE_BOUND)


@functools.lru_cache(maxsize=16)
def word_scales(depth: int, window: int) -> np.ndarray:
    """What each Lyndon coordinate is multiplied by: the power of two nearest to 1 / rms on a random walk.

    Fixed scales keep the regression's past comparable with its present (running ones would not), and powers of two are
    exact. The walk has steps of +sqrt(3/2), 0 and -sqrt(3/2) with equal probability and has run for twice the window.
    """
    num_walks, root_window = 256, math.sqrt(window)
    draws = np.random.Philox(key=20).random_raw(num_walks * 2 * window).reshape(num_walks, 2 * window)
    walks = ((draws % np.uint64(3)).astype(np.float64) - 1.0) * math.sqrt(1.5)
    clock = clock_increments(window)
    positions = algebra.lyndon_positions(DIMENSION, depth)
    squares = np.zeros(len(positions))
    for walk in walks:
        past, steps = walk[: window - 1], walk[window - 1 :]
        path = algebra.exponential(np.array([0.0, past.sum() / root_window, steps[0]]), depth)
        for clock_step, previous, latest in zip(clock, steps[:-1], steps[1:], strict=True):
            half = 0.5 * clock_step
            path = algebra.multiply_exponential(path, np.array([half, 0.0, -previous]))
            path = algebra.multiply_exponential(path, np.array([half, latest / root_window, latest]))
        flat = np.concatenate([level.reshape(-1) for level in algebra.logarithm(path)])
        squares += flat[positions] ** 2 / num_walks
    return 2.0 ** -np.round(0.5 * np.log2(np.maximum(squares, 1e-30)))
