"""The objective: how a candidate would have forecast the recorded ticks, relative to the settings in force.

The predictor learns online from the first tick, exactly as it would live, so a run is causal by construction; folds
only say which ticks are scored. All candidates of one structure run side by side as lanes (candidate by symbol) of one
compiled program, in tiles of one width, so that a candidate's numbers do not depend on its company.
"""

import dataclasses
import hashlib
import itertools
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from usp_daemon.compute import choose_device, enable_compilation_cache, predictor_config
from usp_daemon.config import ConfigError, MetaOptimization, Settings, Value
from usp_daemon.core import PredictorConfig, resolve_thresholds

from ._candidate import candidate_config, candidate_settings
from ._evaluation import Evaluation, PruneFn
from ._folds import DEFAULT_MIN_TEST, Fold, TooShortError, walk_forward_split
from ._history import History, HistoryError, SymbolHistory, padded
from ._lanes import CHUNK_TICKS, AbstractProgram, AbstractPrograms, LanePrograms, Ticks, structure_key
from ._scorecard import Observations, Scorecard, alarm_constraint, fold_values, mean_value

DEFAULT_EMBARGO_TICKS = 50
# The narrowest tile that fills the vector units costs no more a lane than wider ones, and wastes the fewest.
DEFAULT_TILE_WIDTH = 16
# More lanes than this at once would only cost memory: the rest waits.
MAX_LANES = 4096
# Stands for "not a number", and for a candidate that is refused without being run: finite, so that a sampler can
# still order what is infeasible by how far it is outside.
WORST_VALUE = 1000.0
SCORES = ("crps", "absolute_error")
_VERSION = 1


class EvaluationStoppedError(Exception):
    """The evaluation was given up between two chunks: the time is over, or somebody asked for it."""


@dataclasses.dataclass(frozen=True)
class FoldPlan:
    """How each symbol's ticks are split; see ``walk_forward_split``.

    The newest share ``holdout`` is cut into ``n_validation`` folds, on which the best candidate is tested (``decide``).
    What is before them is the search's: ``train_ratio`` of it is only trained on, the rest is ``n_folds`` folds. With
    no validation folds all of it is the search's.
    """

    train_ratio: float = 0.7
    n_folds: int = 5
    n_validation: int = 2
    embargo: int = DEFAULT_EMBARGO_TICKS
    min_test: int = DEFAULT_MIN_TEST
    holdout: float = 0.25

    @classmethod
    def from_settings(cls, settings: Settings | MetaOptimization) -> "FoldPlan":
        """What ``[meta_optimization]`` asks for."""
        section = settings.meta_optimization if isinstance(settings, Settings) else settings
        return cls(
            train_ratio=section.train_ratio,
            n_folds=section.n_folds,
            n_validation=section.validation_folds,
            embargo=section.embargo_ticks,
            holdout=section.holdout,
        )

    @property
    def num_blocks(self) -> int:
        """Folds of both kinds."""
        return self.n_folds + self.n_validation

    def split(self, num_ticks: int) -> list[Fold]:
        """The folds of one symbol, those for validation last. Raises ``TooShortError``."""
        before = round((1.0 - self.holdout) * num_ticks) if self.n_validation else num_ticks
        folds = walk_forward_split(
            before, train_ratio=self.train_ratio, n_folds=self.n_folds, embargo=self.embargo, min_test=self.min_test
        )
        if self.n_validation:
            folds += walk_forward_split(
                num_ticks,
                train_ratio=1.0 - self.holdout,
                n_folds=self.n_validation,
                embargo=self.embargo,
                min_test=self.min_test,
            )
        return folds


@dataclasses.dataclass(frozen=True)
class Progress:
    """How far one structure's candidates have come."""

    rows_done: int
    num_rows: int
    num_candidates: int  # still running
    num_pruned: int


@dataclasses.dataclass
class _Tile:
    """Lanes that run together; those beyond ``lanes`` repeat the last one."""

    lanes: list[tuple[int, int]]  # (candidate, symbol)
    symbols: np.ndarray  # of every lane
    num_rows: int  # that any of them has
    carry: Any
    configs: Any


class WalkForwardEvaluator:
    """Judges candidates on recorded ticks; both a ``BatchEvaluator`` and the specification's plain function.

    ``value`` is the mean over folds of the geometric mean over symbols of the candidate's CRPS over the base's, both on
    the same ticks, so 1.0 is the base itself. ``constraint`` is at most 0 where the detector's base threshold is no
    lower than the asked rate of false alarms implies and where the alarms on the tested ticks are neither many more
    nor far fewer than the base's (``alarm_constraint``). What is not finite, or makes no sense, is ``WORST_VALUE`` and
    infeasible, never NaN.
    """

    def __init__(
        self,
        history: History,
        base_settings: Settings,
        *,
        folds: FoldPlan | None = None,
        dtype: Any = "float64",
        score: str = "crps",
        tile_width: int = DEFAULT_TILE_WIDTH,
        chunk_ticks: int = CHUNK_TICKS,
        num_threads: int | None = None,
        time_limit_s: float | None = None,
        stop_fn: Callable[[], bool] | None = None,
        progress_fn: Callable[[Progress], None] | None = None,
        cache_directory: Path | None = None,
        keep_programs: bool = True,
        programs: AbstractPrograms | None = None,
    ) -> None:
        """Prepares the ticks; nothing is compiled before the first evaluation.

        Args:
          history: the recorded ticks. A symbol that is too short for the folds is left out (``skipped`` says why).
          base_settings: what every candidate changes, and is compared with.
          folds: how the ticks are split; by default what the settings say.
          dtype: precision of the arithmetic, "float64" or "float32".
          score: "crps", or "absolute_error" of the point forecast.
          tile_width: lanes of one program call, a multiple of 16. The same for all: a candidate's last bits depend on
            the width.
          chunk_ticks: ticks of one program call; time limit and ``stop_fn`` are looked at between two.
          num_threads: tiles that run at once; by default one for each processor.
          time_limit_s: time from now on after which evaluations stop with ``EvaluationStoppedError``; None: never.
          stop_fn: asked between chunks whether to stop, from any thread.
          progress_fn: told between chunks how far it is, from any thread.
          cache_directory: where compiled programs are kept; by default where the daemon keeps its own.
          keep_programs: False leaves JAX's compilation cache as it is configured.
          programs: what runs the lanes: another evaluator's, to compile nothing twice, or a test's.

        Raises:
          HistoryError: no symbol is long enough.
          ValueError: an argument is out of its range.
        """
        if score not in SCORES:
            raise ValueError(f"score must be one of {', '.join(SCORES)}, got {score!r}")
        self._settings = base_settings
        self._base = predictor_config(base_settings)
        self._plan = folds or FoldPlan.from_settings(base_settings)
        self._score = score
        self._dtype = np.dtype(dtype)
        self._deadline = None if time_limit_s is None else time.monotonic() + time_limit_s
        self._stop_fn = stop_fn
        self._progress_fn = progress_fn
        self._num_threads = num_threads or _num_processors()
        if keep_programs:
            enable_compilation_cache(choose_device("auto", self._dtype.name), cache_directory)
        if programs is None:
            programs = LanePrograms(width=tile_width, dtype=self._dtype, chunk_ticks=chunk_ticks)
        self._programs = programs
        self._width, self._chunk_ticks = tile_width, chunk_ticks

        self.skipped: dict[str, str] = {}
        self._symbols: list[SymbolHistory] = []
        self._folds: list[list[Fold]] = []
        for one in history.symbols:
            try:
                self._folds.append(self._plan.split(len(one)))
            except TooShortError as error:
                self.skipped[one.symbol] = str(error)
            else:
                self._symbols.append(one)
        if not self._symbols:
            raise HistoryError("; ".join(f"{name}: {why}" for name, why in self.skipped.items()) or "no symbols")
        self._rows = -(-max(len(one) for one in self._symbols) // chunk_ticks) * chunk_ticks
        self._ticks = padded(self._symbols, self._rows)
        self._increments = np.asarray([_typical_move(one.values) for one in self._symbols])
        self._base_run: list[Observations] | None = None
        self._base_card: Scorecard | None = None
        self._cards: dict[tuple[Any, ...], Scorecard] = {}

    @property
    def symbols(self) -> tuple[str, ...]:
        """The symbols that count."""
        return tuple(one.symbol for one in self._symbols)

    @property
    def increments(self) -> np.ndarray:
        """Mean absolute move of each symbol, in its own units."""
        return self._increments

    @property
    def programs(self) -> AbstractPrograms:
        """The compiled programs, for another evaluator of the same width, precision and chunk."""
        return self._programs

    @property
    def num_programs(self) -> int:
        """Programs compiled so far: one for each structure."""
        return len(self._programs)

    @property
    def compile_seconds(self) -> float:
        """Time that tracing and compiling took so far."""
        return self._programs.compile_seconds

    @property
    def fingerprint(self) -> str:
        """Differs when the ticks, the base settings or the way of judging do."""
        digest = hashlib.sha256()
        parts = dataclasses.astuple(self._plan), self._score, self._dtype.name, self._width, _VERSION
        digest.update(repr((self._settings.predictor_hash(), *parts)).encode())
        for one in self._symbols:
            digest.update(f"\0{one.symbol}\0{len(one)}\0".encode())
            for array in (one.timestamps_ns, one.values, one.record_timestamps_ns):
                digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()

    def structure_of(self, candidate: Mapping[str, Value]) -> tuple[Any, ...]:
        """Equal for candidates that share a compiled program. Raises ``UnknownParameterError``."""
        try:
            return structure_key(candidate_config(self._settings, candidate))
        except ConfigError:
            return ()  # it will not be run

    def __call__(self, params: dict[str, Value]) -> float:
        """The value of one candidate, infinite where it is not feasible."""
        (evaluation,) = self.evaluate_batch([params])
        return evaluation.value if evaluation.constraint <= 0.0 else math.inf

    def scorecard(self, candidate: Mapping[str, Value]) -> Scorecard | None:
        """The sums behind a candidate's evaluation, for a decision; None where it was not evaluated."""
        key = _key(candidate_config(self._settings, candidate))
        return self.base_scorecard if key == _key(self._base) else self._cards.get(key)

    @property
    def base_scorecard(self) -> Scorecard:
        """The base's own sums, which are computed if they are not there yet."""
        if self._base_card is None:
            self._run([self._base], [_key(self._base)], None)
        assert self._base_card is not None
        return self._base_card

    @property
    def num_selection_folds(self) -> int:
        """Leading folds that ``value`` and ``fold_values`` are made of; the rest is kept from the search."""
        return self._plan.n_folds

    def validation_constraint(self, card: Scorecard) -> float:
        """How far a candidate's alarms on the validation folds are outside what is allowed; at most 0 is inside."""
        return self._alarm_constraint(card, self.base_scorecard, slice(self._plan.n_folds, self._plan.num_blocks))

    def evaluate_batch(
        self, candidates: Sequence[Mapping[str, Value]], *, prune_fn: PruneFn | None = None
    ) -> list[Evaluation]:
        """One evaluation per candidate, in order; those that share a structure run together.

        After each fold ``prune_fn(index, folds done, mean of their values)`` says whether a candidate is given up; its
        lanes are then freed. Raises ``UnknownParameterError`` for a candidate that is none, and
        ``EvaluationStoppedError`` when time is over or somebody asked to stop: nothing of the batch is then known.
        """
        results: list[Evaluation | None] = [None] * len(candidates)
        configs: dict[int, PredictorConfig] = {}
        limits: dict[int, float] = {}
        for index, candidate in enumerate(candidates):
            try:
                settings = candidate_settings(self._settings, candidate)
            except ConfigError:
                results[index] = Evaluation(WORST_VALUE, 1.0)
                continue
            configs[index] = predictor_config(settings)
            limits[index] = self._threshold_constraint(configs[index], settings)
        groups: dict[tuple[Any, ...], list[int]] = {}
        for index, config in configs.items():
            if _key(config) == _key(self._base):
                results[index] = Evaluation(1.0, min(0.0, limits[index]), (1.0,) * self._plan.n_folds)
            elif limits[index] > 0.0:
                # known without a single tick; running it would only cost time
                results[index] = Evaluation(WORST_VALUE, limits[index])
            else:
                groups.setdefault(structure_key(config), []).append(index)
        if groups and self._base_card is None and structure_key(self._base) not in groups:
            _ = self.base_scorecard
        # the base's structure first: the others are compared with its run
        for structure in sorted(groups, key=lambda key: key != structure_key(self._base)):
            members = groups[structure]
            size = max(1, MAX_LANES // len(self._symbols))
            for first in range(0, len(members), size):
                part = members[first : first + size]
                began = time.perf_counter()
                pruned = self._run([configs[i] for i in part], part, prune_fn)
                share = (time.perf_counter() - began) / len(part)
                for index in part:
                    results[index] = self._evaluation(configs[index], limits[index], index in pruned, share)
        return [one for one in results if one is not None]

    def _threshold_constraint(self, config: PredictorConfig, settings: Settings) -> float:
        """How far the detector's base threshold lies below what the asked rate of false alarms implies.

        This is exact, by simulation, where counts of alarms on a recorded series are few and of unknown truth. A base
        whose operator chose a lower threshold by hand sets the limit itself.
        """
        asked = resolve_thresholds(
            cusum_k=float(config.cusum_k),
            mean_ticks_between_false=float(settings["orchestration.alarm_mean_ticks_between_false"]),
            reference_fit_ticks=float(config.reference_fit_ticks),
        )["cusum_h"]
        least = asked
        if config.cusum_k == self._base.cusum_k:
            least = min(asked, float(self._base.cusum_h))
        # a threshold that went through a file may have lost its last digits
        return min(least / float(config.cusum_h) - 1.0 - 1e-9, 1e6)

    def _evaluation(self, config: PredictorConfig, limit: float, pruned: bool, seconds: float) -> Evaluation:
        card = self._cards[_key(config)]
        base = self.base_scorecard
        done = slice(0, min(card.folds_done, self._plan.n_folds))
        values = fold_values(card, base, self._increments, done)
        value = mean_value(values)
        constraint = max(limit, self._alarm_constraint(card, base, done))
        if value >= WORST_VALUE:
            constraint = max(constraint, 1.0)
        capped = tuple(min(one, WORST_VALUE) for one in values)
        return Evaluation(min(value, WORST_VALUE), constraint, capped, pruned, seconds)

    def _alarm_constraint(self, card: Scorecard, base: Scorecard, folds: slice) -> float:
        asked = float(self._settings["orchestration.alarm_mean_ticks_between_false"])
        return alarm_constraint(card, base, folds, mean_ticks_between_false=asked)

    # Running lanes.

    def _run(self, configs: Sequence[PredictorConfig], names: Sequence[Any], prune_fn: PruneFn | None) -> set[Any]:
        """Run candidates of one structure over the ticks and enter their scorecards; the names of those given up."""
        program = self._programs.get(configs[0])
        running = list(range(len(configs)))
        every = list(configs)
        if self._base_card is None and structure_key(configs[0]) == structure_key(self._base):
            every.append(self._base)  # rides along, and is never given up
        base_lane = len(configs) if len(every) > len(configs) else -1
        seen = {
            (member, symbol): Observations(
                np.full(len(one), np.nan), np.zeros(len(one), bool), np.zeros(len(one), bool)
            )
            for member in range(len(every))
            for symbol, one in enumerate(self._symbols)
        }
        cards = [Scorecard.empty(len(self._symbols), self._plan.num_blocks) for _ in every]
        longest_first = sorted(range(len(self._symbols)), key=lambda symbol: -len(self._symbols[symbol]))
        order = [(member, symbol) for symbol in longest_first for member in range(len(every))]
        tiles = self._tiles(program, every, order, None)
        pruned: set[Any] = set()
        first = 0
        for number in range(self._plan.num_blocks):
            last = self._row_after(number)
            tell = Progress(first, self._rows, len(running), len(pruned))
            self._advance(program, tiles, seen, first, last, tell)
            first = last
            base = self._base_run or [seen[base_lane, symbol] for symbol in range(len(self._symbols))]
            alive = [*running, base_lane] if base_lane >= 0 else running
            for member in alive:
                for symbol, folds in enumerate(self._folds):
                    cards[member].enter(symbol, number, folds[number], seen[member, symbol], base[symbol])
            if prune_fn is not None and number + 1 < self._plan.n_folds:
                reference = cards[base_lane] if base_lane >= 0 else self.base_scorecard
                stopped = {
                    member
                    for member in running
                    if prune_fn(
                        names[member],
                        number + 1,
                        mean_value(fold_values(cards[member], reference, self._increments, slice(0, number + 1))),
                    )
                }
                if stopped:
                    pruned |= {names[member] for member in stopped}
                    running = [member for member in running if member not in stopped]
                    if not running and base_lane < 0:
                        break
                    tiles = self._compacted(program, every, tiles, stopped)
        if base_lane >= 0:
            self._base_card = cards[base_lane]
            self._base_run = [seen[base_lane, symbol] for symbol in range(len(self._symbols))]
        for config, card in zip(configs, cards, strict=False):
            self._cards[_key(config)] = card
        return pruned

    def _row_after(self, number: int) -> int:
        """The first row, on a chunk's edge, by which every symbol has finished fold ``number``."""
        stop = max(folds[number].test.stop for folds in self._folds)
        return min(-(-stop // self._chunk_ticks) * self._chunk_ticks, self._rows)

    def _tiles(
        self, program: AbstractProgram, configs: Sequence[PredictorConfig], lanes: list[tuple[int, int]], carry: Any
    ) -> list[_Tile]:
        """Lanes dealt into tiles; ``carry`` (host arrays, a row a lane) goes on where they stood, None begins."""
        tiles = []
        for first in range(0, len(lanes), self._width):
            own = lanes[first : first + self._width]
            filled = [*own, *([own[-1]] * (self._width - len(own)))]
            stacked = program.stacked([configs[member] for member, _ in filled])
            if carry is None:
                begun = program.start(stacked)
            else:
                rows = np.minimum(np.arange(first, first + self._width), len(lanes) - 1)
                begun = jax.tree.map(lambda leaf, rows=rows: jnp.asarray(leaf[rows]), carry)
            symbols = np.asarray([symbol for _, symbol in filled])
            tiles.append(_Tile(own, symbols, max(len(self._symbols[s]) for _, s in own), begun, stacked))
        return tiles

    def _compacted(
        self, program: AbstractProgram, configs: Sequence[PredictorConfig], tiles: list[_Tile], stopped: set[int]
    ) -> list[_Tile]:
        """The lanes that go on, in as few tiles as hold them; their states are moved, not recomputed."""
        flat = [(member, at) for at, (member, _) in enumerate(itertools.chain.from_iterable(t.lanes for t in tiles))]
        kept = [at for member, at in flat if member not in stopped]
        if -(-len(kept) // self._width) == len(tiles):
            return tiles
        lanes = list(itertools.chain.from_iterable(tile.lanes for tile in tiles))
        counts = [len(tile.lanes) for tile in tiles]  # the lanes that repeat one are left behind

        def gathered(*leaves: jax.Array) -> np.ndarray:
            own = [np.asarray(leaf)[:count] for leaf, count in zip(leaves, counts, strict=True)]
            return np.concatenate(own)[np.asarray(kept)]

        carry = jax.tree.map(gathered, *(tile.carry for tile in tiles))
        return self._tiles(program, configs, [lanes[at] for at in kept], carry)

    def _advance(
        self,
        program: AbstractProgram,
        tiles: Sequence[_Tile],
        seen: Mapping[tuple[int, int], Observations],
        first: int,
        last: int,
        progress: Progress,
    ) -> None:
        """Rows ``first`` to ``last`` of every tile, some tiles at once: JAX frees the interpreter while it computes."""
        if first >= last:
            return
        with ThreadPoolExecutor(min(self._num_threads, len(tiles)), thread_name_prefix="usp-tune") as pool:
            jobs = [pool.submit(self._advance_tile, program, tile, seen, first, last, progress) for tile in tiles]
            for job in jobs:
                job.result()

    def _advance_tile(
        self,
        program: AbstractProgram,
        tile: _Tile,
        seen: Mapping[tuple[int, int], Observations],
        first: int,
        last: int,
        progress: Progress,
    ) -> None:
        for top in range(first, min(last, tile.num_rows), self._chunk_ticks):
            self._check_whether_to_stop()
            rows = slice(top, top + self._chunk_ticks)
            ticks = Ticks(*(table[rows][:, tile.symbols] for table in self._ticks))
            tile.carry, said = program.run(tile.carry, ticks, tile.configs)
            loss = said.crps if self._score == "crps" else said.absolute_error
            for lane, (member, symbol) in enumerate(tile.lanes):
                into = seen[member, symbol]
                count = min(self._chunk_ticks, len(into.loss) - top)
                if count > 0:
                    into.loss[top : top + count] = loss[:count, lane]
                    into.alarm[top : top + count] = said.alarm[:count, lane]
                    into.accepted[top : top + count] = said.accepted[:count, lane]
            if self._progress_fn is not None:
                self._progress_fn(dataclasses.replace(progress, rows_done=min(top + self._chunk_ticks, last)))

    def _check_whether_to_stop(self) -> None:
        if self._stop_fn is not None and self._stop_fn():
            raise EvaluationStoppedError("somebody asked to stop")
        if self._deadline is not None and time.monotonic() > self._deadline:
            raise EvaluationStoppedError("the time limit is over")


def _key(config: PredictorConfig) -> tuple[Any, ...]:
    return tuple(getattr(config, field.name) for field in dataclasses.fields(config))


def _typical_move(values: np.ndarray) -> float:
    """Mean absolute increment between successive observed values, without what garbage adds; 0 for a series at rest."""
    with np.errstate(over="ignore"):
        moves = np.abs(np.diff(values[np.isfinite(values)]))
    moves = moves[moves > 0.0]
    return float(np.mean(np.minimum(moves, 100.0 * np.median(moves)))) if len(moves) else 0.0


def _num_processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
