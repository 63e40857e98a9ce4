"""The step's small helpers: a cosine that vectorises, and work that a batch skips where nobody needs it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from usp_daemon.core._numerics import cosine, where_needed


@pytest.mark.parametrize(("dtype", "bound"), [(jnp.float64, 4e-13), (jnp.float32, 1e-5)])
def test_cosine_is_the_library_s_over_many_turns(dtype, bound) -> None:
    angles = np.concatenate([np.linspace(-2000.0, 2000.0, 40_001), np.pi * np.arange(-8, 9) / 2]).astype(dtype)
    np.testing.assert_allclose(cosine(jnp.asarray(angles)), np.cos(angles.astype(np.float64)), atol=bound)


def test_cosine_is_exact_to_rounding_near_zero() -> None:
    angles = np.linspace(-np.pi, np.pi, 10_001)
    np.testing.assert_allclose(cosine(jnp.asarray(angles)), np.cos(angles), atol=5e-16)


def _slow(value, unit):
    return {"root": jnp.sqrt(value) * unit}


def test_where_needed_is_a_choice_per_lane_in_any_nesting() -> None:
    values = jnp.arange(12.0)
    needed = jnp.arange(12, dtype=jnp.int32) % 3 == 0
    old = {"root": -jnp.ones(12)}
    expected = np.where(needed, 2.0 * np.sqrt(np.arange(12.0)), -1.0)

    def one(flag, kept, value, unit):
        return where_needed(flag, _slow, kept, value, unit)["root"]

    unit = jnp.asarray(2.0)
    alone = [one(needed[i], {"root": old["root"][i]}, values[i], unit) for i in range(4)]
    np.testing.assert_allclose(alone, expected[:4])
    batch = jax.vmap(one, in_axes=(0, 0, 0, None))
    np.testing.assert_allclose(batch(needed, old, values, unit), expected)
    shared = jax.vmap(one, in_axes=(None, None, 0, None))(needed[0], {"root": old["root"][0]}, values, unit)
    np.testing.assert_allclose(shared, 2.0 * np.sqrt(np.arange(12.0)))
    nested = jax.vmap(batch, in_axes=(0, 0, 0, None))(
        needed.reshape(3, 4), {"root": old["root"].reshape(3, 4)}, values.reshape(3, 4), unit
    )
    np.testing.assert_allclose(nested.reshape(-1), expected)


def test_where_needed_stays_a_condition_in_a_batch() -> None:
    program = jax.make_jaxpr(jax.vmap(lambda flag, kept, value: where_needed(flag, _slow, kept, value, value)))(
        jnp.zeros(8, bool), {"root": jnp.zeros(8)}, jnp.ones(8)
    )
    assert "cond[" in str(program)
    assert "f64[8] = sqrt" in str(program)
