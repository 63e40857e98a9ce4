"""Walk-forward folds: causal, complete, with an embargo."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from usp_daemon.tuning import Fold, TooShortError, walk_forward_split


def test_a_worked_example() -> None:
    folds = walk_forward_split(100, train_ratio=0.5, n_folds=2, embargo=5, min_test=10)
    assert folds == [
        Fold(slice(0, 50), slice(55, 75)),
        Fold(slice(0, 75), slice(80, 100)),
    ]


def test_the_specification_s_example_is_long_enough() -> None:
    """A thousand samples, 70 % training, five blocks of 60: its own code refuses what its docstring shows."""
    folds = walk_forward_split(np.zeros(1000), train_ratio=0.7, n_folds=5)
    assert [fold.test.stop - fold.test.start for fold in folds] == [60] * 5


@given(
    num_ticks=st.integers(1, 5000),
    train_ratio=st.floats(0.05, 0.95),
    n_folds=st.integers(1, 12),
    embargo=st.integers(0, 60),
    min_test=st.integers(1, 80),
)
def test_what_holds_of_every_split(
    num_ticks: int, train_ratio: float, n_folds: int, embargo: int, min_test: int
) -> None:
    try:
        folds = walk_forward_split(
            num_ticks, train_ratio=train_ratio, n_folds=n_folds, embargo=embargo, min_test=min_test
        )
    except TooShortError:
        assert (num_ticks - max(1, round(train_ratio * num_ticks))) // n_folds < embargo + min_test
        return
    assert len(folds) == n_folds
    seen = np.zeros(num_ticks, int)
    for fold in folds:
        assert fold.train.start == 0
        assert fold.test.start - fold.train.stop == embargo
        seen[fold.test] += 1
        seen[fold.train.stop : fold.test.start] += 1
    # blocks tile what follows the first training part: no remainder, no tick twice
    assert not seen[: folds[0].train.stop].any()
    assert (seen[folds[0].train.stop :] == 1).all()
    lengths = [fold.test.stop - fold.test.start for fold in folds]
    assert min(lengths) >= min_test
    assert max(lengths) - min(lengths) <= 1


def test_too_short_says_how_much_would_do() -> None:
    with pytest.raises(
        TooShortError, match=r"100 ticks are too few for 5 tests of at least 50 .* give about (\d+)"
    ) as e:
        walk_forward_split(100, train_ratio=0.7, n_folds=5, embargo=10, min_test=50)
    enough = int(str(e.value).partition("give about ")[2].partition(",")[0])
    assert len(walk_forward_split(enough, train_ratio=0.7, n_folds=5, embargo=10, min_test=50)) == 5


@pytest.mark.parametrize(
    "wrong", [{"train_ratio": 0.0}, {"train_ratio": 1.0}, {"n_folds": 0}, {"embargo": -1}, {"min_test": 0}]
)
def test_arguments_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        walk_forward_split(1000, **wrong)  # type: ignore[arg-type]
