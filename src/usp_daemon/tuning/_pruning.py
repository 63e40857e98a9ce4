"""When a trial is given up: the median rule, over the trials before its batch."""

import statistics
from collections.abc import Sequence

from ._campaign import Campaign
from ._evaluation import PruneFn
from ._sampling import batch_start
from ._trials import TrialRecord


def prune_fn_of(campaign: Campaign, records: Sequence[TrialRecord], number: int) -> PruneFn | None:
    """The rule for the batch of trial ``number``, or None as long as there is nothing to compare with.

    A trial is given up after a fold when the mean of its fold values is above the median of what the complete,
    feasible trials before the batch had after as many folds. The first ``n_startup_trials`` are let through, and the
    settings at the start always: everything is measured by them. Depends on trials of earlier batches only, so that
    an interrupted batch is judged as it would have been.
    """
    first = batch_start(campaign, number)
    if not campaign.pruning or first < campaign.n_startup_trials:
        return None
    paths = [record.running_means() for record in records if record.number < first and record.is_feasible]
    num_folds = max((len(path) for path in paths), default=0)
    medians = [
        statistics.median(path[fold] for path in paths if len(path) > fold)
        for fold in range(num_folds - 1)  # after the last fold there is nothing left to save
    ]
    if not medians:
        return None

    def is_hopeless(candidate: int, num_folds_done: int, mean: float) -> bool:
        del candidate
        return 1 <= num_folds_done <= len(medians) and not mean <= medians[num_folds_done - 1]

    return is_hopeless
