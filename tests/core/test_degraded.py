"""Degraded mode, staleness and grace."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from usp_daemon.core._degraded import update_degraded_mode, update_grace, update_staleness
from usp_daemon.core._parameters import PredictorConfig


def config_for(**fields) -> PredictorConfig:
    return dataclasses.replace(PredictorConfig(), **fields).as_arrays()


def run(step, first, inputs, config):
    """Outputs of ``step(*state, input, config)`` over ``inputs``, whose first output feeds back with the rest."""
    _, outputs = jax.lax.scan(lambda state, x: (out := step(*state, x, config), out), first, jnp.asarray(inputs))
    return [np.asarray(output).tolist() for output in outputs]


def degraded_over(impaired: str, **fields) -> tuple[str, list[int]]:
    start = (jnp.asarray(False), jnp.asarray(0, jnp.int32))
    modes, counters = run(update_degraded_mode, start, [mark == "x" for mark in impaired], config_for(**fields))
    return "".join("D" if mode else "." for mode in modes), counters


def test_entry_is_immediate_and_exit_takes_two_clean_ticks() -> None:
    modes, counters = degraded_over("..x....x.x..")
    assert modes == "..DD...DDDD."
    assert counters == [0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 1, 0]


def test_a_borderline_signal_does_not_flicker() -> None:
    modes, _ = degraded_over("x.x.x.x.x.x." + "..")
    assert modes == "D" * 12 + ".."


@pytest.mark.parametrize("needed", [1, 2, 5])
def test_recovery_takes_the_configured_number_of_clean_ticks(needed: int) -> None:
    modes, _ = degraded_over("x" + "." * 8, frozen_signal_recovery_steps=needed)
    assert modes == "D" * needed + "." * (9 - needed)


def test_staleness_has_its_own_exit() -> None:
    config, limit = config_for(), jnp.asarray(100.0)

    def step(stale, delay, config):
        return (update_staleness(stale, delay, limit, config),)

    (seen,) = run(
        step, (jnp.asarray(False),), np.asarray([90.0, 100.0, 101.0, 150.0, 85.0, 80.0, 79.0, 90.0, 75.0]), config
    )
    assert seen == [False, False, True, True, True, True, False, False, False]


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_delays_of_years_do_not_overflow(dtype) -> None:
    config = config_for()
    century, instant = jnp.asarray(100 * 365 * 86_400 * 10**9, dtype), jnp.asarray(1, dtype)
    assert bool(update_staleness(jnp.asarray(False), century, instant, config))
    assert not bool(update_staleness(jnp.asarray(True), instant, century, config))


@pytest.mark.parametrize("length", [0, 1, 5, 20])
def test_grace_suppresses_exactly_its_length(length: int) -> None:
    config = config_for(grace_period_steps=length)

    def step(counter, signal, config):
        alarm, counter = update_grace(counter, signal, config)
        return counter, alarm

    _, outputs = jax.lax.scan(
        lambda counter, signal: step(counter, signal, config), jnp.asarray(0, jnp.int32), jnp.ones(70, bool)
    )
    alarms = np.flatnonzero(np.asarray(outputs))
    assert alarms[0] == 0
    assert np.all(np.diff(alarms) == length + 1)


def test_grace_runs_out_without_a_signal() -> None:
    counter, counts = jnp.asarray(0, jnp.int32), []
    for signal in [True] + [False] * 21:
        _, counter = update_grace(counter, jnp.asarray(signal), config_for())
        counts.append(int(counter))
    assert counts == [*range(20, -1, -1), 0]
