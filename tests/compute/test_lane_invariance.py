"""A lane's bits do not depend on its place in the tile: the predictor's own program, lanes rolled around.

Two hundred ticks in, on purpose: an untrained state is so regular that rounding has nothing to differ in.
"""

import jax
import numpy as np
import pytest

from usp_daemon.compute import Engine, StateKey, choose_device
from usp_daemon.compute._device import forbid_fused_arithmetic
from usp_daemon.core import PredictorConfig

START_NS = 1_700_000_000_000_000_000
SHIFTS = (1, 3, 17, 32, 63)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float64", "float32"])
def test_every_bit_of_state_and_result_follows_its_lane(precision: str) -> None:
    choice = choose_device("cpu", precision)
    engine = Engine(PredictorConfig(), choice)
    width = choice.tile_width
    keys = [StateKey("t", 0, str(i)) for i in range(width)]
    rng = np.random.default_rng(0)
    scales, values = 10.0 ** (np.arange(width) % 9 - 4), np.zeros(width)
    for number in range(200):
        values = (0.98 if number % 2 else 1.0) * values + rng.normal(size=width) * scales
        stamps = np.full(width, START_NS + number * 10**9, np.int64)
        if number > 100 and number % 7 == 0:
            assert_lanes_agree(engine, values.astype(choice.dtype), stamps)
        engine.step(keys, values, stamps, stamps)


def assert_lanes_agree(engine: Engine, values: np.ndarray, stamps: np.ndarray) -> None:
    """One step of the only page, as it lies and rolled around; the rolled results, rolled back, are the same bits."""
    (page,) = engine._pages.values()
    programs = engine.programs
    before = [np.array(array) for array in page.arrays]
    whole = np.stack([stamps, stamps, np.ones_like(stamps)])

    def step(shift: int) -> list[np.ndarray]:
        rolled = tuple(jax.device_put(np.roll(array, shift, axis=0), may_alias=False) for array in before)
        arrays, result = programs.advance(rolled, np.roll(values, shift), whole, engine._parameters.vectors)
        return [np.roll(np.asarray(array), -shift, axis=0) for array in (*arrays, *result)]

    expected = step(0)
    for shift in SHIFTS:
        for index, (found, wanted) in enumerate(zip(step(shift), expected, strict=True)):
            lanes = np.flatnonzero((found.view(np.uint8) != wanted.view(np.uint8)).reshape(len(wanted), -1).any(axis=1))
            assert not lanes.size, f"array {index}: lanes {lanes.tolist()} differ when rolled by {shift}"


def test_the_instruction_set_is_asked_for_once_and_an_explicit_one_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("usp_daemon.compute._device.platform.machine", lambda: "x86_64")
    monkeypatch.setattr("usp_daemon.compute._device.xla_bridge.backends_are_initialized", lambda: False)
    environ = {"XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false"}
    for _ in range(2):
        forbid_fused_arithmetic(environ)
    assert environ["XLA_FLAGS"] == "--xla_cpu_multi_thread_eigen=false --xla_cpu_max_isa=AVX"
    explicit = {"XLA_FLAGS": "--xla_cpu_max_isa=AVX512"}
    forbid_fused_arithmetic(explicit)
    assert explicit == {"XLA_FLAGS": "--xla_cpu_max_isa=AVX512"}


@pytest.mark.parametrize(("machine", "too_late"), [("aarch64", False), ("x86_64", True)])
def test_nothing_is_claimed_where_it_would_have_no_effect(
    monkeypatch: pytest.MonkeyPatch, machine: str, too_late: bool
) -> None:
    monkeypatch.setattr("usp_daemon.compute._device.platform.machine", lambda: machine)
    monkeypatch.setattr("usp_daemon.compute._device.xla_bridge.backends_are_initialized", lambda: too_late)
    environ: dict[str, str] = {}
    forbid_fused_arithmetic(environ)
    assert environ == {}
