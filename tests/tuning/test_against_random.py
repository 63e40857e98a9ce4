"""The benchmark that compares the sampler with random search: campaigns together, and what it finds."""

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from usp_daemon.tuning import Evaluation


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch, repository_root: Any) -> Any:
    monkeypatch.syspath_prepend(str(repository_root))
    from benchmarks import _against_random

    return _against_random


class Squares:
    fingerprint = "squares"

    def __init__(self) -> None:
        self.batches: list[int] = []

    def evaluate_batch(self, candidates: list[dict[str, float]]) -> list[Evaluation]:
        self.batches.append(len(candidates))
        return [Evaluation(one["x"] ** 2, 0.0) for one in candidates]


def test_each_campaign_is_told_of_its_own_candidates_and_batches_are_shared(benchmark: Any) -> None:
    squares, lengths = Squares(), (3, 1, 2)  # batches that the campaigns ask for before they end
    together = benchmark.Together(squares, len(lengths))

    def campaign(number: int) -> list[float]:
        member, found = together.member(number), []
        for batch in range(lengths[number]):
            asked = [{"x": 100.0 * number + 10.0 * batch + i} for i in range(number + 1)]
            found += [evaluation.value for evaluation in member.evaluate_batch(asked)]
        together.leave()
        return found

    with ThreadPoolExecutor(len(lengths)) as pool:
        found = list(pool.map(campaign, range(len(lengths)), timeout=60))
    for number, length in enumerate(lengths):
        asked = [100.0 * number + 10.0 * batch + i for batch in range(length) for i in range(number + 1)]
        assert found[number] == [x**2 for x in asked]
    assert squares.batches == [1 + 2 + 3, 1 + 3, 1]
    assert together.num_evaluated == sum(squares.batches)


def test_a_failed_evaluation_ends_all_campaigns(benchmark: Any) -> None:
    class Failing(Squares):
        def evaluate_batch(self, candidates: list[dict[str, float]]) -> list[Evaluation]:
            raise ArithmeticError("no")

    together = benchmark.Together(Failing(), 2)
    errors: list[BaseException] = []

    def campaign(number: int) -> None:
        try:
            together.member(number).evaluate_batch([{"x": 1.0}])
        except RuntimeError as error:
            errors.append(error)

    threads = [threading.Thread(target=campaign, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [type(error.__cause__) for error in errors] == [ArithmeticError] * 2


def test_what_is_said_of_two_samples(benchmark: Any) -> None:
    low, high = np.array([1.0, 2.0, 3.0, 4.5]), np.array([4.0, 5.0, 6.0, 7.0])
    found = benchmark.Comparison(low, high, 0, 0.0)
    wins = np.mean([[a < b for b in high] for a in low])  # no ties
    assert found.chance_of_winning == wins == 15 / 16
    assert found.p == pytest.approx(2 / 70)  # of the 70 orders of four and four, two are at least as extreme
    assert benchmark.Comparison(high, low, 0, 0.0).p > 0.9


@pytest.mark.long
def test_the_sampler_beats_random_search_on_the_real_objective(benchmark: Any) -> None:
    """T-73 beside the real predictor, smaller than the benchmark: one bundled series of 800 ticks.

    At a true chance of winning of 0.85, which three other sets of seeds show too (0.81 to 0.88), p would exceed 0.05
    in fewer than one of a thousand draws of 20 and 20; the draws are seeded besides.
    """
    from benchmarks.tuning import bundled_history

    history = bundled_history(["waterflow_1h"], 800)
    found = benchmark.against_random(history, tier="sensitive", trials=50, repeats=20, num_threads=1, tell=False)
    assert found.num_evaluated == 2 * 20 * 50
    assert np.all(found.modelled <= 1.0) and np.all(found.random <= 1.0)  # both begin with the settings at the start
    assert found.p < 0.05, found
    print(f"p {found.p:.2g}, chance of winning {found.chance_of_winning:.2f}, {found.seconds:.0f} s")
