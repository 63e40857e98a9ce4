"""The tuner's search beside random search on the real objective, every campaign of a comparison at the same time.

A campaign asks for a few candidates at a time, which fill no tile of lanes. So the campaigns run in threads, and what
all of them ask for is evaluated together; a candidate's value does not depend on its company.
"""

import dataclasses
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import optuna
import scipy.stats

from usp_daemon.config import Settings
from usp_daemon.tuning import (
    BayesianMetaOptimizer,
    Evaluation,
    FoldPlan,
    History,
    MetaOptimizationConfig,
    WalkForwardEvaluator,
)

# All ticks are the search's: what is compared is the objective itself.
PLAN = FoldPlan(train_ratio=0.3, n_folds=3, n_validation=0, embargo=10, min_test=30)
# Of the random campaigns' seeds, so that no draw is shared: the samples are independent.
RANDOM_SEEDS = 1_000


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Best values of each repeat, the settings at the start being 1; ``p`` is one-sided, by Mann-Whitney."""

    modelled: np.ndarray
    random: np.ndarray
    num_evaluated: int
    seconds: float

    @property
    def p(self) -> float:
        """How likely the modelled values are so much lower by chance."""
        return float(scipy.stats.mannwhitneyu(self.modelled, self.random, alternative="less").pvalue)

    @property
    def chance_of_winning(self) -> float:
        """Of a pair of one modelled and one random campaign, how likely the modelled one is better."""
        ranks = scipy.stats.mannwhitneyu(self.random, self.modelled).statistic
        return float(ranks) / (len(self.modelled) * len(self.random))


class Together:
    """Evaluates what ``num_members`` campaigns ask for as one batch, as soon as all that still run have asked."""

    def __init__(self, evaluator: Any, num_members: int) -> None:
        self._evaluator = evaluator
        self._num_members = num_members
        self._changed = threading.Condition()
        self._asked: dict[int, Sequence[Any]] = {}
        self._told: dict[int, list[Evaluation]] = {}
        self._failure: BaseException | None = None
        self.fingerprint = evaluator.fingerprint
        self.num_evaluated = 0

    def member(self, number: int) -> "Member":
        """The evaluator of campaign ``number``."""
        return Member(self, number)

    def leave(self) -> None:
        """A campaign has ended."""
        with self._changed:
            self._num_members -= 1
            self._evaluate_if_all_asked()

    def ask(self, number: int, candidates: Sequence[Any]) -> list[Evaluation]:
        """Waits for the others; raises what the evaluator raised."""
        with self._changed:
            self._asked[number] = candidates
            self._evaluate_if_all_asked()
            self._changed.wait_for(lambda: number in self._told or self._failure is not None)
            if self._failure is not None:
                raise RuntimeError("the evaluation of all campaigns failed") from self._failure
            return self._told.pop(number)

    def _evaluate_if_all_asked(self) -> None:
        if not self._asked or len(self._asked) < self._num_members:
            return
        asked, self._asked = self._asked, {}
        try:
            flat = self._evaluator.evaluate_batch([one for number in sorted(asked) for one in asked[number]])
        except BaseException as error:
            self._failure = error
            self._changed.notify_all()
            return
        self.num_evaluated += len(flat)
        for number in sorted(asked):
            self._told[number], flat = list(flat[: len(asked[number])]), flat[len(asked[number]) :]
        self._changed.notify_all()


@dataclasses.dataclass(frozen=True)
class Member:
    """A batch evaluator for one campaign."""

    together: Together
    number: int

    @property
    def fingerprint(self) -> str:
        """That of the evaluator behind it."""
        return self.together.fingerprint

    def evaluate_batch(self, candidates: Sequence[Any], *, prune_fn: Any = None) -> list[Evaluation]:
        """See ``BatchEvaluator``; nothing is pruned, so that every trial counts in full."""
        del prune_fn
        return self.together.ask(self.number, candidates)


def against_random(
    history: History,
    *,
    tier: str,
    trials: int,
    repeats: int,
    seed: int = 0,
    precision: str = "float64",
    num_threads: int | None = None,
    programs: Any = None,
    tell: bool = True,
) -> Comparison:
    """``repeats`` campaigns with the settings' sampler and as many at random, of ``trials`` trials each.

    Their seeds are those from ``seed`` on. Both kinds begin with the settings at the start, and keep to its structure.
    """
    began = time.perf_counter()
    judge = WalkForwardEvaluator(
        history, Settings(), folds=PLAN, dtype=precision, num_threads=num_threads, programs=programs
    )
    together = Together(judge, 2 * repeats)
    done = [0] * (2 * repeats)

    def campaign(number: int) -> float:
        is_random = number >= repeats
        config = MetaOptimizationConfig(
            seed=seed + number + (RANDOM_SEEDS if is_random else 0),
            n_trials=trials,
            n_startup_trials=trials if is_random else min(MetaOptimizationConfig().n_startup_trials, trials),
            max_structures=1,
            patience_trials=0,
            pruning=False,
        )

        def told(progress: Any) -> None:
            done[number] = progress.num_finished
            if tell:
                elapsed = time.perf_counter() - began
                line = f"\r{sum(done):,} of {2 * repeats * trials:,} trials, {elapsed:.0f} s"
                print(line, end="", file=sys.stderr, flush=True)

        storage = optuna.storages.InMemoryStorage()
        try:
            optimizer = BayesianMetaOptimizer(
                together.member(number), config, Settings(), tier=tier, storage=storage, progress_fn=told
            )
            return optimizer.optimize(total_trials=trials).best_value
        finally:
            together.leave()

    with ThreadPoolExecutor(2 * repeats, thread_name_prefix="campaign") as pool:
        best = np.asarray(list(pool.map(campaign, range(2 * repeats))))
    if tell:
        print(file=sys.stderr)
    return Comparison(best[:repeats], best[repeats:], together.num_evaluated, time.perf_counter() - began)
