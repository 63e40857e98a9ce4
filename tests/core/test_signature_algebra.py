"""The truncated tensor algebra against an independent implementation, and the identities that signatures obey."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from usp_daemon.core import _signature_algebra as algebra


def words(dim, depth):
    return [word for length in range(1, depth + 1) for word in itertools.product(range(dim), repeat=length)]


def iterated_integrals(points, depth):
    """Signature of a piecewise linear path, one word at a time, by exact integration of piecewise polynomials.

    On each segment the iterated integral of a word is a polynomial in the segment's own time u in [0, 1]; integrating
    it against the next letter's slope gives the next word's. Shares nothing with the algebra under test.
    """
    increments = np.diff(np.asarray(points, float), axis=0)
    dim = increments.shape[1]
    polynomials = {(): [np.polynomial.Polynomial([1.0]) for _ in increments]}
    result = {}
    for word in words(dim, depth):
        value, pieces = 0.0, []
        for slope, inner in zip(increments[:, word[-1]], polynomials[word[:-1]], strict=True):
            piece = (inner * slope).integ() + value
            value = piece(1.0)
            pieces.append(piece)
        polynomials[word] = pieces
        result[word] = value
    return result


@functools.partial(jax.jit, static_argnums=1)
def signature_of_steps(steps, depth):
    start = algebra.zero(steps.shape[1], depth, steps.dtype)
    return jax.lax.scan(lambda levels, step: (algebra.multiply_exponential(levels, step), None), start, steps)[0]


multiply = jax.jit(algebra.multiply)
logarithm_of = jax.jit(algebra.logarithm)


def signature(points, depth):
    return signature_of_steps(jnp.asarray(np.diff(np.asarray(points, float), axis=0)), depth)


def flat(levels):
    return np.concatenate([np.asarray(level).reshape(-1) for level in levels])


def random_path(seed, num_points, dim):
    return np.cumsum(np.random.default_rng(seed).normal(size=(num_points, dim)) * 0.5, axis=0)


@pytest.mark.parametrize(("dim", "depth"), [(2, 2), (2, 5), (3, 3), (3, 4)])
def test_signature_equals_the_iterated_integrals_word_by_word(dim, depth):
    points = random_path(0, 7, dim)
    expected = iterated_integrals(points, depth)
    levels = signature(points, depth)
    for word, value in expected.items():
        assert float(levels[len(word) - 1][word]) == pytest.approx(value, abs=1e-12)


def test_chen_identity_and_its_one_sided_forms():
    points = random_path(1, 201, 3) * 0.1
    whole = signature(points, 4)
    left, right = signature(points[:90], 4), signature(points[89:], 4)
    np.testing.assert_allclose(flat(multiply(left, right)), flat(whole), atol=1e-12, rtol=0)
    first = jnp.asarray(points[1] - points[0])
    np.testing.assert_allclose(
        flat(algebra.exponential_multiply(first, signature(points[1:], 4))), flat(whole), atol=1e-12, rtol=0
    )


def test_a_segment_has_the_exponential_as_its_signature():
    step = jnp.asarray([0.7, -1.3, 0.2])
    levels = signature(np.stack([np.zeros(3), np.asarray(step)]), 5)
    for word in words(3, 5):
        expected = math.prod(float(step[letter]) for letter in word) / math.factorial(len(word))
        assert float(levels[len(word) - 1][word]) == pytest.approx(expected, abs=1e-15)


def test_logarithm_of_a_segment_is_the_segment_itself():
    step = np.array([0.7, -1.3, 0.2])
    # Subdividing a straight line changes nothing either, so a fine step is of no use.
    for pieces in (1, 10):
        line = np.linspace(np.zeros(3), step, pieces + 1)
        logarithm = logarithm_of(signature(line, 5))
        np.testing.assert_allclose(np.asarray(logarithm[0]), step, atol=1e-14)
        for level in logarithm[1:]:
            assert float(jnp.max(jnp.abs(level))) < 1e-13


def test_logarithm_of_two_segments_is_the_baker_campbell_hausdorff_series():
    x, y = np.array([0.3, -0.5, 0.8]), np.array([-0.4, 0.9, 0.1])
    logarithm = logarithm_of(signature(np.cumsum([0 * x, x, y], axis=0), 3))

    def bracket(a, b):
        return np.multiply.outer(a, b) - np.multiply.outer(b, a)

    second = 0.5 * bracket(x, y)
    third = (bracket(x, bracket(x, y)) - bracket(y, bracket(x, y))) / 12.0
    np.testing.assert_allclose(logarithm[0], x + y, atol=1e-15)
    np.testing.assert_allclose(logarithm[1], second, atol=1e-15)
    np.testing.assert_allclose(logarithm[2], third, atol=1e-15)


def test_inverse_is_the_path_run_backwards():
    points = random_path(2, 12, 3)
    levels = signature(points, 4)
    np.testing.assert_allclose(flat(algebra.inverse(levels)), flat(signature(points[::-1], 4)), atol=1e-11)
    assert np.max(np.abs(flat(multiply(levels, algebra.inverse(levels))))) < 1e-11


def test_reparametrisation_leaves_the_signature_alone():
    points = random_path(3, 30, 2)
    rng = np.random.default_rng(4)
    slower = []
    for here, there in itertools.pairwise(points):
        slower.extend([here] * rng.integers(1, 4))
        slower.extend(here + u * (there - here) for u in np.sort(rng.uniform(size=rng.integers(0, 5))))
    slower.append(points[-1])
    np.testing.assert_allclose(flat(signature(slower, 4)), flat(signature(points, 4)), atol=1e-12, rtol=1e-12)


def test_tree_like_detours_leave_the_signature_alone_and_other_curves_do_not():
    points = random_path(5, 20, 2)
    detour = random_path(6, 6, 2)
    detour = points[9] + detour - detour[0]
    wandering = np.concatenate([points[:10], detour[1:], detour[::-1][1:], points[10:]])
    np.testing.assert_allclose(flat(signature(wandering, 4)), flat(signature(points, 4)), atol=1e-11)
    # psi(t) = t^2 - t/2 ends half way, a different curve; one that overshoots and comes back is the same one.
    curve = np.stack([np.cos, np.sin])
    time = np.linspace(0.0, 1.0, 400)

    def traced(clock):
        return signature(np.stack([function(clock) for function in curve], axis=1), 3)

    assert np.max(np.abs(flat(traced(time**2 - time / 2)) - flat(traced(time)))) > 0.1


def test_time_augmentation_breaks_reparametrisation_invariance_by_design():
    values = random_path(7, 30, 1)[:, 0]
    uniform = np.linspace(0.0, 1.0, 30)
    plain, warped = (signature(np.stack([clock, values], axis=1), 3) for clock in (uniform, uniform**2))
    assert np.linalg.norm(flat(plain) - flat(warped)) > 0.05 * np.linalg.norm(flat(plain))


def test_dilation_scales_the_path():
    points = random_path(8, 15, 3)
    factors = np.array([0.6, 1.0, -2.0])
    np.testing.assert_allclose(
        flat(algebra.dilate(signature(points, 4), jnp.asarray(factors))),
        flat(signature(points * factors, 4)),
        atol=1e-10,
    )


def test_expected_signature_of_brownian_motion():
    # Stratonovich: exp(T/2 sum_i e_i e_i). Random walks with N(0, T/n) steps have it in the limit; level 4 at 1/n.
    rng = np.random.default_rng(9)
    paths, steps, duration = 20_000, 24, 0.8
    increments = rng.normal(scale=np.sqrt(duration / steps), size=(paths, steps, 2))
    levels = tuple(np.zeros((paths,) + (2,) * level) for level in range(1, 5))
    advance = jax.jit(jax.vmap(algebra.multiply_exponential))
    levels = tuple(map(jnp.asarray, levels))
    for step in range(steps):
        levels = advance(levels, jnp.asarray(increments[:, step]))
    mean = [np.asarray(level).mean(axis=0) for level in levels]
    error = [np.asarray(level).std(axis=0) / np.sqrt(paths) for level in levels]
    assert np.all(np.abs(mean[1] - duration / 2 * np.eye(2)) < 5 * error[1])
    assert np.all(np.abs(mean[2]) < 5 * error[2])
    # Piecewise linear Brownian motion: E S(iiii) = E (dx)^4 / 24 = 3 T^2 / 24.
    assert abs(mean[3][0, 0, 0, 0] - duration**2 / 8) < 5 * error[3][0, 0, 0, 0]
    assert abs(mean[3][0, 0, 1, 1] - duration**2 / 8) < 5 * error[3][0, 0, 1, 1] + duration**2 / steps
    area = np.asarray(levels[1])[:, 0, 1] - np.asarray(levels[1])[:, 1, 0]
    # The Levy area (without the half) has variance T^2; discretely T^2 (1 - 1/n).
    assert np.var(area) / (duration**2 * (1 - 1 / steps)) == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize(("depth", "size"), [(2, 6), (3, 14), (4, 32), (5, 80)])
def test_dimension_of_the_log_signature(depth, size):
    assert len(algebra.lyndon_words(3, depth)) == size == algebra.num_lyndon_words(3, depth)
    assert len(algebra.lyndon_words(2, depth)) == {2: 3, 3: 5, 4: 8, 5: 14}[depth]


def lyndon_bracket(word, dim, known):
    """Tensor of the standard bracketing of a Lyndon word."""
    if len(word) == 1:
        return np.eye(dim)[word[0]]
    for cut in range(1, len(word)):  # the longest proper Lyndon suffix
        if word[cut:] in known:
            left, right = known[word[:cut]], known[word[cut:]]
            return np.multiply.outer(left, right) - np.multiply.outer(right, left)
    raise AssertionError(word)


@pytest.mark.parametrize(("dim", "depth"), [(2, 5), (3, 4), (3, 5)])
def test_lyndon_coordinates_are_coordinates(dim, depth):
    known = {}
    for word in algebra.lyndon_words(dim, depth):
        known[word] = lyndon_bracket(word, dim, known)
    columns = []
    for bracket in known.values():
        levels = [np.zeros((dim,) * level) for level in range(1, depth + 1)]
        levels[bracket.ndim - 1] = bracket
        columns.append(np.asarray(algebra.lyndon_coordinates(tuple(levels))))
    matrix = np.stack(columns, axis=1)
    # Unitriangular: each bracket is its own word plus larger ones, so nothing of the log-signature is lost.
    np.testing.assert_array_equal(np.diag(matrix), 1.0)
    np.testing.assert_array_equal(np.triu(matrix, 1), 0.0)
    # The whole log-signature is recovered from its coordinates.
    logarithm = logarithm_of(signature(random_path(10, 9, dim), depth))
    coefficients = np.linalg.solve(matrix, np.asarray(algebra.lyndon_coordinates(logarithm)))
    rebuilt = [np.zeros((dim,) * level) for level in range(1, depth + 1)]
    for coefficient, bracket in zip(coefficients, known.values(), strict=True):
        rebuilt[bracket.ndim - 1] += coefficient * bracket
    np.testing.assert_allclose(flat(rebuilt), flat(logarithm), atol=1e-10)


def test_level_norms_obey_the_factorial_bound():
    points = random_path(11, 40, 3)
    length = np.linalg.norm(np.diff(points, axis=0), axis=1).sum()
    for order, level in enumerate(signature(points, 5), start=1):
        assert np.linalg.norm(np.asarray(level)) <= length**order / math.factorial(order) * (1 + 1e-12)
