"""Sinkhorn alone: what one symbol's transport plan costs, batched and by itself, and how layouts compare.

``python -m benchmarks.sinkhorn`` solves 4 x 4 problems with all ``sinkhorn_max_iter`` = 200 iterations (nothing stops
early), in tiles of 64 and one at a time, and prints the figures to reach beside the measured ones. "Alone" is one
solve inside a compiled program, without the cost of calling that program from Python, which is a row of its own.
Every time is the median of the repetitions. ``--layouts`` adds bare loops in other array layouts, the evidence for the
one in use.
"""

import argparse
import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from usp_daemon.core import (
    KernelOutput,
    PredictorConfig,
    compute_cost_matrix,
    fuse_kernel_outputs,
    volatility_coupled_sinkhorn,
)

from ._table import Row, format_rows

TILE = 64
ITERATIONS = 200
SOLVES = 100
SPECIFIED = "specification: 85 us"


def problems(count: int, dtype: Any) -> tuple[jax.Array, ...]:
    """Random weights, targets and forecasts of ``count`` symbols, unit variance."""
    rng = np.random.default_rng(0)
    arrays = (rng.dirichlet(np.ones(4), count), rng.dirichlet(np.ones(4), count), rng.normal(size=(count, 4)))
    return (*(jnp.asarray(array, dtype) for array in arrays), jnp.ones(count, dtype))


def solve(source: Any, target: Any, forecasts: Any, variance: Any, config: Any, **options: Any) -> Any:
    """One symbol's plan, from its forecasts on."""
    cost = compute_cost_matrix(forecasts, config)
    return volatility_coupled_sinkhorn(source, target, cost, variance, config, **options)


def endless(*arguments: Any) -> Any:
    """All iterations: a tolerance of minus one is never reached."""
    return solve(*arguments, tolerance=-1.0)


def endless_log(*arguments: Any) -> Any:
    """All iterations in the log domain."""
    return solve(*arguments, tolerance=-1.0, domain="log")


def median_us(run: Callable[[], Any], repetitions: int) -> float:
    """Median wall time of ``run``, compiled and warm, in microseconds."""
    jax.block_until_ready(run())
    times = []
    for _ in range(repetitions):
        start = time.perf_counter()
        jax.block_until_ready(run())
        times.append(time.perf_counter() - start)
    return float(np.median(times)) * 1e6


def batched_us(function: Callable[..., Any], dtype: Any, config: Any, repetitions: int) -> float:
    """Microseconds per symbol of one tile."""
    batch = jax.jit(jax.vmap(function, in_axes=(0, 0, 0, 0, None)))
    arguments = problems(TILE, dtype)
    return median_us(lambda: batch(*arguments, config), repetitions) / TILE


def alone_us(function: Callable[..., Any], dtype: Any, config: Any, repetitions: int) -> float:
    """Microseconds of one solve among ``SOLVES`` that wait for each other inside one program."""
    source, target, forecasts, variance = (array[0] for array in problems(1, dtype))

    @jax.jit
    def chain(first: Any, config: Any) -> Any:
        def one(weights: Any, _: None) -> tuple[Any, Any]:
            result = function(weights, target, forecasts, variance, config)
            return 0.999 * weights + 0.001 * jnp.sum(result.transport_matrix, axis=1), result.reg_ot_cost

        return jax.lax.scan(one, first, None, length=SOLVES)

    return median_us(lambda: chain(source, config), repetitions) / SOLVES


def fused(method: str) -> Callable[..., Any]:
    """The whole fusion step by ``method``, with confidences in place of a target."""

    def step(weights: Any, confidences: Any, forecasts: Any, variance: Any, config: Any) -> Any:
        outputs = [KernelOutput(forecasts[k], confidences[k], None) for k in range(4)]
        return fuse_kernel_outputs(outputs, weights, variance, dataclasses.replace(config, fusion_method=method))

    return step


def measure(short: bool = True) -> list[Row]:
    """The figures of the table."""
    repetitions = 15 if short else 101
    rows = []
    for dtype in (jnp.float32, jnp.float64):
        name = jnp.dtype(dtype).name
        every = PredictorConfig(sinkhorn_max_iter=ITERATIONS).as_arrays(dtype)
        rows += [
            Row(
                name=f"Sinkhorn, {ITERATIONS} iterations, tiles of {TILE}, {name}",
                figure_to_reach="<= 5",
                measured=batched_us(endless, dtype, every, repetitions),
                unit="us/symbol",
                note=SPECIFIED,
            ),
            Row(
                name=f"Sinkhorn, {ITERATIONS} iterations, alone, {name}",
                figure_to_reach="<= 30",
                measured=alone_us(endless, dtype, every, repetitions),
                unit="us",
                note=SPECIFIED,
            ),
        ]
        if short:
            continue
        rows += [
            Row(
                name=f"the same, called from Python, {name}",
                figure_to_reach="-",
                measured=call_us(endless, dtype, every, repetitions),
                unit="us",
                note="dispatch of all parameters included",
            ),
            Row(
                name=f"log domain, {ITERATIONS} iterations, tiles of {TILE}, {name}",
                figure_to_reach="-",
                measured=batched_us(endless_log, dtype, every, max(repetitions // 10, 3)),
                unit="us/symbol",
            ),
            *(
                Row(
                    name=f"fusion step {method}, tiles of {TILE}, {name}",
                    figure_to_reach="-",
                    measured=batched_us(fused(method), dtype, every, repetitions),
                    unit="us/symbol",
                    note="stops on its tolerance",
                )
                for method in ("jko", "jko_proximal")
            ),
        ]
    return rows


def call_us(function: Callable[..., Any], dtype: Any, config: Any, repetitions: int) -> float:
    """Microseconds of one solve as one call of a compiled program."""
    single = jax.jit(function)
    arguments = tuple(array[0] for array in problems(1, dtype))
    return median_us(lambda: single(*arguments, config), repetitions)


# Bare loops, for the comparison of layouts: each takes a [B, 4], b [B, 4], K [B, 4, 4] and returns v [B, 4].


def rows_and_columns(source: Any, target: Any, kernel: Any, unroll: int) -> Any:
    """Lanes first, products as multiply and sum: the layout in use."""

    def body(_: Any, v: Any) -> Any:
        u = source / jnp.sum(kernel * v[:, None, :], axis=2)
        return target / jnp.sum(kernel * u[:, :, None], axis=1)

    return jax.lax.fori_loop(0, ITERATIONS, body, jnp.ones_like(source), unroll=unroll)


def matrix_products(source: Any, target: Any, kernel: Any, unroll: int) -> Any:
    """Lanes first, products as batched contractions."""

    def body(_: Any, v: Any) -> Any:
        u = source / jnp.einsum("bij,bj->bi", kernel, v)
        return target / jnp.einsum("bij,bi->bj", kernel, u)

    return jax.lax.fori_loop(0, ITERATIONS, body, jnp.ones_like(source), unroll=unroll)


def lanes_last(source: Any, target: Any, kernel: Any, unroll: int) -> Any:
    """Lanes last, so that each of the 16 entries is a contiguous vector."""
    a, b, k = source.T, target.T, jnp.moveaxis(kernel, 0, -1)

    def body(_: Any, v: Any) -> Any:
        u = a / (k[:, 0] * v[0] + k[:, 1] * v[1] + k[:, 2] * v[2] + k[:, 3] * v[3])
        return b / (k[0] * u[0] + k[1] * u[1] + k[2] * u[2] + k[3] * u[3])

    return jax.lax.fori_loop(0, ITERATIONS, body, jnp.ones_like(a), unroll=unroll).T


def separate_vectors(source: Any, target: Any, kernel: Any, unroll: int) -> Any:
    """Every entry its own vector, the iteration written out."""
    k = [[kernel[:, i, j] for j in range(4)] for i in range(4)]

    def body(_: Any, v: Any) -> Any:
        u = [source[:, i] / sum(k[i][j] * v[j] for j in range(4)) for i in range(4)]
        return [target[:, j] / sum(k[i][j] * u[i] for i in range(4)) for j in range(4)]

    return jnp.stack(jax.lax.fori_loop(0, ITERATIONS, body, [jnp.ones_like(source[:, 0])] * 4, unroll=unroll), axis=1)


def measure_layouts(repetitions: int = 31) -> list[Row]:
    """Microseconds per symbol of the bare loop in each layout."""
    rows = []
    for dtype in (jnp.float32, jnp.float64):
        source, target, forecasts, _ = problems(TILE, dtype)
        config = PredictorConfig().as_arrays(dtype)
        kernel = jnp.exp(-jax.vmap(lambda f, c=config: compute_cost_matrix(f, c))(forecasts) / 0.15)
        for layout in (rows_and_columns, matrix_products, lanes_last, separate_vectors):
            for unroll in (1, 5):
                loop = functools.partial(jax.jit(layout, static_argnums=3), source, target, kernel, unroll)
                microseconds = median_us(loop, repetitions)
                rows.append(
                    Row(
                        name=f"layout {layout.__name__}, unrolled {unroll}, {jnp.dtype(dtype).name}",
                        figure_to_reach="-",
                        measured=microseconds / TILE,
                        unit="us/symbol",
                    )
                )
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sinkhorn", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--layouts", action="store_true", help="compare array layouts too")
    options = parser.parse_args(arguments)
    print(format_rows(measure(short=False) + (measure_layouts() if options.layouts else [])))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
