"""Traced programs are kept on disk: the next start reads them, and whatever is wrong with them is traced again."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from usp_daemon import core
from usp_daemon.compute._traced import TracedPrograms, sources_digest, traced

SPECS = (jax.ShapeDtypeStruct((4,), jnp.float64), jax.ShapeDtypeStruct((4,), jnp.float64))


def function(state, change):
    return jnp.tanh(state) + change


class Tracing:
    """Counts how often it is asked to trace."""

    def __init__(self):
        self.count = 0

    def __call__(self):
        self.count += 1
        return traced(function, SPECS, (0,), "cpu")


def run(program):
    return np.asarray(program(jnp.arange(4.0), jnp.ones(4)))


def test_what_was_traced_is_read_back(tmp_path):
    tracing = Tracing()
    first = run(TracedPrograms(tmp_path, "key").program("p", tracing, (0,)))
    again = run(TracedPrograms(tmp_path, "key").program("p", tracing, (0,)))
    assert tracing.count == 1
    assert first.tobytes() == again.tobytes()
    assert np.allclose(first, np.tanh(np.arange(4.0)) + 1.0)


def test_fresh_and_kept_programs_have_one_text(tmp_path):
    texts = {
        TracedPrograms(folder, "key").program("p", Tracing(), (0,)).lower(*SPECS).as_text()
        for folder in (None, tmp_path, tmp_path)
    }
    assert len(texts) == 1


@pytest.mark.parametrize("damage", [b"", b"nonsense", None])
def test_a_damaged_file_is_traced_again(tmp_path, damage):
    tracing = Tracing()
    run(TracedPrograms(tmp_path, "key").program("p", tracing, (0,)))
    (kept,) = (tmp_path / "traced").glob("*-p.stablehlo")
    kept.write_bytes(kept.read_bytes()[:100] if damage is None else damage)
    assert np.allclose(run(TracedPrograms(tmp_path, "key").program("p", tracing, (0,))), np.tanh(np.arange(4.0)) + 1.0)
    assert tracing.count == 2


def test_another_key_shares_nothing(tmp_path):
    tracing = Tracing()
    for key in ("a", "b"):
        run(TracedPrograms(tmp_path, key).program("p", tracing, (0,)))
    assert tracing.count == 2


def test_a_folder_that_cannot_be_written_costs_only_time(tmp_path):
    occupied = tmp_path / "file"
    occupied.write_text("no folder")
    tracing = Tracing()
    for _ in range(2):
        run(TracedPrograms(occupied, "key").program("p", tracing, (0,)))
    assert tracing.count == 2


def test_shapes_are_kept(tmp_path):
    shapes = {"a": jax.ShapeDtypeStruct((3,), jnp.float32), "b": jax.ShapeDtypeStruct((), jnp.bool_)}
    first = TracedPrograms(tmp_path, "key").shapes("columns", lambda: shapes)

    def must_not_be_asked():
        raise AssertionError

    again = TracedPrograms(tmp_path, "key").shapes("columns", must_not_be_asked)
    assert list(first.items()) == list(again.items()) == list(shapes.items())


def test_the_digest_is_of_what_lies_there():
    assert len(sources_digest()) == 64
    assert sources_digest() == sources_digest()


@pytest.mark.parametrize("name", ["advance", "refresh"])
def test_the_step_never_calls_back_to_the_host(name):
    """Else it could not be kept on disk, and a device would wait for the interpreter."""
    config = core.PredictorConfig().as_arrays(jnp.float64)
    state = core.initialize_state(config)
    stamp = jnp.asarray(0, jnp.int64)
    tick = core.ProcessState(jnp.asarray(1.0), jnp.asarray(1.0), stamp, stamp)
    if name == "advance":
        text = str(jax.make_jaxpr(core.advance)(state, tick, config))
    else:
        text = str(jax.make_jaxpr(core.refresh)(state, config))
    assert "callback" not in text
