"""A step that is quick to compile and touches everything an engine must keep apart: wide and narrow state, whole
numbers, flags, transcendental functions, reductions, and work that is due by the symbol's own count."""

import equinox as eqx
import jax.numpy as jnp
import numpy as np

from usp_daemon.compute import DeviceChoice, Engine, StateKey, StepProgram, TilePrograms, choose_device
from usp_daemon.core import PredictorConfig

REFRESH_EVERY = 5


class FakeState(eqx.Module):
    mean: object
    root: object  # (12, 12), so a leaf of its own
    history: object  # (80,)
    count: object
    refreshed: object
    last_ns: object
    seen: object


def initialize(config, dtype):
    return FakeState(
        mean=jnp.zeros((), dtype) + config.volatility_alpha,
        root=jnp.eye(12, dtype=dtype),
        history=jnp.zeros((80,), dtype),
        count=jnp.zeros((), jnp.int32),
        refreshed=jnp.zeros((), jnp.int32),
        last_ns=jnp.zeros((), jnp.int64),
        seen=jnp.zeros((), bool),
    )


def advance(state, observation, config):
    value = jnp.where(jnp.isfinite(observation.magnitude), observation.magnitude, state.mean)
    history = jnp.roll(state.history, -1).at[-1].set(value)
    features = jnp.tanh(history[-12:] - state.mean)
    projected = jnp.sum(state.root * features[:, None], axis=0)
    gain = jnp.sum(state.root * projected[None, :], axis=1) / (1.0 + jnp.sum(projected * projected))
    root = state.root - 0.1 * gain[:, None] * projected[None, :] + 0.001 * state.root
    mean = state.mean + config.volatility_alpha * (value - state.mean)
    count = state.count + 1
    state = FakeState(mean, root, history, count, state.refreshed, observation.timestamp_ns, jnp.ones((), bool))
    columns = {
        "forecast": mean + jnp.sum(gain) + jnp.exp(-jnp.abs(jnp.mean(history))),
        "weights": jnp.exp(features[:4]) / jnp.sum(jnp.exp(features[:4])),
        "sequence": count,
        "refreshed": state.refreshed,
        "timestamp_ns": observation.timestamp_ns,
        "skew_ns": observation.record_timestamp_ns - observation.timestamp_ns,
        "refresh_due": count % REFRESH_EVERY == 0,
    }
    return state, columns


def refresh(state, config):
    return eqx.tree_at(
        lambda s: (s.mean, s.refreshed),
        state,
        (state.mean + 0.01 * jnp.sum(jnp.sin(state.history)) * config.volatility_alpha, state.refreshed + 1),
    )


FAKE_PROGRAM = StepProgram(initialize=initialize, advance=advance, refresh=refresh, columns=lambda result: result)


def fake_choice(precision: str = "float64", tile_width: int = 16, refresh_width: int = 16) -> DeviceChoice:
    return choose_device("cpu", precision, tile_width, refresh_width)


_COMPILED: dict[DeviceChoice, TilePrograms] = {}


def fake_engine(config: PredictorConfig | None = None, **options) -> Engine:
    """An engine over the fake program; what was compiled once is shared by all tests of a session."""
    choice = options.pop("choice", None) or fake_choice()
    programs = _COMPILED.get(choice)
    engine = Engine(config or PredictorConfig(), choice, program=FAKE_PROGRAM, programs=programs, **options)
    _COMPILED[choice] = engine.programs
    return engine


def key(symbol: object, partition: int = 0, topic: str = "ticks") -> StateKey:
    return StateKey(topic, partition, str(symbol))


def batch(symbols, values=None, first_ns: int = 1_000):
    """Arguments of ``step`` for a list of symbols, or of whole keys."""
    keys = [symbol if isinstance(symbol, StateKey) else key(symbol) for symbol in symbols]
    stamps = first_ns + np.arange(len(keys), dtype=np.int64)
    values = np.sin(np.arange(len(keys)) * 0.7) if values is None else np.asarray(values, np.float64)
    return keys, values, stamps, stamps + 7


def same_bits(left, right) -> bool:
    left, right = np.ascontiguousarray(left), np.ascontiguousarray(right)
    return left.dtype == right.dtype and left.shape == right.shape and left.tobytes() == right.tobytes()
