"""Where the time of one tile's step goes: processor time a tick, and by line of the source.

``python -m benchmarks.profile_step`` compiles the programs of the engine, runs ``advance`` (or ``--refresh``) on one
tile of random walks in one thread, and prints the median processor time a tick. With ``--by-line`` the runtime's own
profile is attributed to the compiled instructions and, by their metadata, to files or functions of the source.
"""

import argparse
import gzip
import json
import re
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from usp_daemon.compute import choose_device
from usp_daemon.compute._program import TilePrograms, compile_programs, core_program, pack_parameters
from usp_daemon.core import PredictorConfig

from ._command import keep_compiled_programs

SECOND_NS = 1_000_000_000


class OneTile:
    """A tile of random walks with everything that a step of it takes."""

    def __init__(self, precision: str) -> None:
        choice = choose_device("cpu", precision)
        config = PredictorConfig().as_arrays(choice.dtype)
        self.programs: TilePrograms = compile_programs(core_program(), config, choice)
        self._dtype = choice.dtype
        self.width, self.refresh_width = choice.tile_width, choice.refresh_width
        vectors = pack_parameters(self.programs.config_packing, config)
        self.vectors = tuple(jax.device_put(vector, choice.device, may_alias=False) for vector in vectors)
        self.arrays = self.programs.initialize(self.vectors)
        self._random = np.random.default_rng(0)
        self._values = np.full(self.width, 100.0)
        self._stamp = 1_700_000_000 * SECOND_NS
        for tick in range(300):
            self.tick()
            if tick % 50 == 49:
                self.refresh_all()

    def tick(self) -> None:
        """One step of every lane."""
        self._values += self._random.normal(size=self.width)
        self._stamp += SECOND_NS
        stamps = np.full((3, self.width), self._stamp, np.int64)
        stamps[2] = 1
        values = self._values.astype(self._dtype)
        self.arrays, result = self.programs.advance(self.arrays, values, stamps, self.vectors)
        jax.block_until_ready(result)

    def refresh_all(self) -> None:
        """The heavy work of every lane, in parts of the refresh program's width."""
        width = self.refresh_width
        parts = []
        for first in range(0, self.width, width):
            part = tuple(jax.device_put(np.asarray(a)[first : first + width], may_alias=False) for a in self.arrays)
            parts.append(self.programs.refresh(part, self.vectors))
        joined = [np.concatenate([np.asarray(part[i]) for part in parts]) for i in range(len(self.arrays))]
        self.arrays = tuple(jax.device_put(a, may_alias=False) for a in joined)

    def refresher(self) -> Callable[[], None]:
        """One refresh of as many lanes as the program takes, over and over."""
        held = [tuple(jax.device_put(np.asarray(a)[: self.refresh_width], may_alias=False) for a in self.arrays)]

        def once() -> None:
            held[0] = self.programs.refresh(held[0], self.vectors)
            jax.block_until_ready(held[0])

        return once


def processor_us(action: Callable[[], None], repetitions: int) -> tuple[float, float]:
    """Median and 2 % quantile of the processor time of ``action``, microseconds, all threads together."""
    costs = []
    for _ in range(repetitions):
        began = time.process_time_ns()
        action()
        costs.append(time.process_time_ns() - began)
    return float(np.median(costs)) * 1e-3, float(np.quantile(costs, 0.02)) * 1e-3


def instruction_times(action: Callable[[], None], repetitions: int) -> dict[str, float]:
    """Microseconds per call and compiled instruction, from the runtime's profile."""
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder, create_perfetto_trace=True):
            for _ in range(repetitions):
                action()
        path = next(Path(folder).rglob("perfetto_trace.json.gz"))
        events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    times: dict[str, float] = defaultdict(float)
    by_thread: dict[tuple[Any, Any], list[tuple[float, float, str]]] = defaultdict(list)
    for event in events:
        if event.get("ph") == "X" and "hlo_op" in (event.get("args") or {}):
            thread = event["pid"], event["tid"]
            by_thread[thread].append((event["ts"], event["dur"], event["args"]["hlo_op"]))
    for spans in by_thread.values():
        # A loop's or call's own span holds those of its parts: take each span less what lies inside it.
        spans.sort(key=lambda span: (span[0], -span[1]))
        open_spans: list[tuple[float, str]] = []
        for start, duration, name in spans:
            while open_spans and open_spans[-1][0] <= start:
                open_spans.pop()
            if open_spans:
                times[open_spans[-1][1]] -= duration
            times[name] += duration
            open_spans.append((start + duration, name))
    return {name: total / repetitions for name, total in times.items()}


def sources(text: str) -> dict[str, tuple[str, str]]:
    """For every instruction of a compiled program's text: its operation's name, and the text of its line."""
    found = {}
    for line in text.splitlines():
        match = re.match(r"\s*(?:ROOT )?%?([\w.\-]+) = (.*)", line)
        if match:
            name = re.search(r'op_name="([^"]*)"', line)
            found[match[1]] = (name[1] if name else "", match[2])
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the figures."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.profile_step", description="Where a step's time goes.")
    parser.add_argument("--precision", default="float64", choices=("float32", "float64"))
    parser.add_argument("--refresh", action="store_true", help="the heavy step instead of the fast one")
    parser.add_argument("--by-line", type=int, default=0, metavar="N", help="the N dearest instructions")
    parser.add_argument("--dump", type=Path, help="write the compiled program's text here")
    parser.add_argument("--repetitions", type=int, default=1000)
    options = parser.parse_args(arguments)
    keep_compiled_programs()
    tile = OneTile(options.precision)
    program, lanes = (
        (tile.programs.refresh, tile.refresh_width) if options.refresh else (tile.programs.advance, tile.width)
    )
    action = tile.refresher() if options.refresh else tile.tick
    repetitions = max(options.repetitions // (10 if options.refresh else 1), 10)
    text = program.as_text()
    if options.dump:
        options.dump.write_text(text)
    median, low = processor_us(action, repetitions)
    per_tick = lanes * (50 if options.refresh else 1)
    print(f"{options.precision}: {median / per_tick:.2f} us of processor a tick (2 % quantile {low / per_tick:.2f})")
    if options.by_line:
        found = sources(text)
        times = instruction_times(action, min(repetitions, 200))
        print(f"in instructions: {sum(times.values()) / per_tick:.2f} us a tick, of them")
        for name, us in sorted(times.items(), key=lambda item: -item[1])[: options.by_line]:
            operation, line = found.get(name, ("", ""))
            print(f"{us / per_tick:7.3f}  {name:45s} {operation[-70:]:70s} {line[:60]}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
