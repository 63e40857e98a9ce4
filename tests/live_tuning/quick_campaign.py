"""The campaign's process with another evaluator, whose values are known: the predictor itself takes minutes."""

import functools
import sys
import time

from usp_daemon import campaign_process
from usp_daemon.tuning import Evaluation
from usp_daemon.tuning._scorecard import Scorecard

BEST = 0.8


class Evaluator:
    """Better the nearer ``cusum_k`` is to 0.8, and by ``depth_gain`` with ``log_sig_depth`` 4."""

    def __init__(self, history, settings, plan, *, depth_gain=0.0, is_false=False, seen=None, seconds=0.0):
        self.history, self.settings, self.plan = history, settings, plan
        self.depth_gain, self.seconds = depth_gain, seconds
        self.is_false = is_false  # what the search saw does not hold on the holdout
        self.fingerprint = f"{history.num_ticks}"
        if seen is not None:
            seen.append(self)
        self.asked = []

    def evaluate_batch(self, candidates, *, prune_fn=None):
        deadline = time.process_time() + self.seconds
        while time.process_time() < deadline:
            pass
        self.asked += candidates
        return [Evaluation(self.value(each), 0.0) for each in candidates]

    # What a decision asks for: the same value on every block of the holdout.

    num_selection_folds = 0

    @property
    def base_scorecard(self):
        return self.scorecard({})

    def scorecard(self, candidate):
        card = Scorecard.empty(1, 2)
        card.count[:] = 10
        card.loss[:] = 10.0 * self.value(candidate, is_false=self.is_false)
        return card

    def validation_constraint(self, card):
        return 0.0

    def value(self, candidate, *, is_false=False):
        base = self.settings["orchestration.cusum_k"]
        k, depth = candidate.get("cusum_k", base), candidate.get("log_sig_depth", 3)
        gain = abs(base - BEST) - abs(k - BEST)
        if is_false:
            gain = -abs(gain)
        return 1.0 - gain - self.depth_gain * (depth == 4)


if __name__ == "__main__":
    how, seconds = sys.argv[1], float(sys.argv[2])
    if how == "crash":
        sys.exit("out of memory, say")
    if how == "babble":
        print("hello", flush=True)
        time.sleep(60)
    sys.exit(campaign_process.main(evaluator_fn=functools.partial(Evaluator, seconds=seconds)))
