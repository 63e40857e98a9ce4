"""What a trial tries: a function of the campaign, the trial's number and the trials before it, and of nothing else.

A campaign that was killed and continued therefore draws what it would have drawn. There is no random state to keep:
each trial's generator is seeded by a hash of the campaign's seed and the trial's number.

Within a batch, trials do not see each other's outcome, whether it is known by then or not; the trials before in the
same batch count as running, whose neighbourhood the sampler avoids (the constant liar).

Structures. Of the pairs of width and depth that resolve to one shipped network only one is ever tried, so that one
network is one structure. The first ``n_startup_trials`` are drawn at random, each with a structure of its own as long
as there are fewer than ``max_structures``, else in the structure that was tried least. The later ones come from a
tree-structured Parzen estimator, in which the structures seen by then are the choices of one categorical parameter and
the other parameters stand as they are.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.samplers import RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState, create_trial

from usp_daemon.config import Value

from ._campaign import Campaign
from ._space import into_space, repaired, with_shipped_network
from ._trials import CONSTRAINT, TrialRecord

_STRUCTURE = "structure"
StructureFn = Callable[[Mapping[str, Value]], Hashable]


def seed_of(campaign: Campaign, number: int, worker: str) -> int:
    """The seed of trial ``number``, 32 bits. The campaign's founder draws the same whatever it is called."""
    drawer = "" if worker == campaign.founder else worker
    digest = hashlib.sha256(f"{campaign.seed}/{number}/{drawer}".encode()).digest()
    return int.from_bytes(digest[:4], "big")


def batch_start(campaign: Campaign, number: int) -> int:
    """The number of the first trial in the batch of trial ``number``."""
    return number - number % campaign.batch_size


def structure_fn_of(structural: Sequence[str]) -> StructureFn:
    """The structure of a candidate by the values of its structural parameters."""
    return lambda candidate: tuple(candidate[name] for name in structural)


def remembered(structure_fn: StructureFn, structural: Sequence[str]) -> StructureFn:
    """``structure_fn``, asked once for each combination of the structural parameters, on which alone it depends.

    It is wanted for every trial whenever one is drawn, and an evaluator's own may be dear.
    """
    answers: dict[tuple[Value, ...], Hashable] = {}

    def structure_of(candidate: Mapping[str, Value]) -> Hashable:
        values = tuple(candidate[name] for name in structural)
        if values not in answers:
            answers[values] = structure_fn(candidate)
        return answers[values]

    return structure_of


class TrialSampler:
    """Draws the trials of one campaign.

    ``draw`` is a function of its arguments; what is kept between calls only saves building the model's view of the
    trials anew for each trial of a batch.
    """

    def __init__(
        self,
        campaign: Campaign,
        space: Mapping[str, BaseDistribution],
        *,
        structure_fn: StructureFn,
        worker: str = "",
    ) -> None:
        self._campaign = campaign
        self._space = dict(space)
        self._structure_fn = structure_fn
        self._worker = worker
        self._view: _View | None = None

    def draw(self, records: Sequence[TrialRecord], number: int) -> dict[str, Value]:
        """The parameters of trial ``number``, by the ``records`` of the trials with smaller numbers.

        Trial 0 is the settings at the start, or the point of the space nearest to them.
        """
        campaign, space = self._campaign, self._space
        if number == 0:
            nearest = with_shipped_network(into_space(campaign.base, space), campaign.base, space)
            return repaired(nearest, space)
        before = [record for record in records if record.number < number]
        seed = seed_of(campaign, number, self._worker)
        if number < campaign.n_startup_trials:
            return _at_random(campaign, space, before, seed, self._structure_fn)
        first = batch_start(campaign, number)
        known = [record for record in before if record.number < first and record.is_finished]
        pending = [record for record in before if not (record.number < first and record.is_finished)]
        seen = structures_seen(before, campaign.structural, self._structure_fn)
        if self._view is None or not self._view.is_of(seen, known, pending):
            self._view = _View(campaign, space, seen, known, self._structure_fn)
        return self._view.draw(pending, seed)


class _View:
    """The model's view of a batch: the trials known at its beginning, and those of it drawn so far."""

    def __init__(
        self,
        campaign: Campaign,
        space: dict[str, BaseDistribution],
        seen: dict[Hashable, dict[str, Value]],
        known: Sequence[TrialRecord],
        structure_fn: StructureFn,
    ) -> None:
        self._space = space
        self._multivariate = campaign.multivariate
        self._seen = seen
        self._indices = {structure: index for index, structure in enumerate(seen)}
        self._structure_fn = structure_fn
        self._known = list(known)
        self._pending: list[TrialRecord] = []
        self._modelled = {name: space[name] for name in sorted(space) if name not in campaign.structural}
        if len(seen) > 1:
            self._modelled[_STRUCTURE] = CategoricalDistribution(list(range(len(seen))))
        self._study = optuna.create_study(sampler=RandomSampler())
        for record in known:
            self._study.add_trial(_seen_trial(record, self._modelled_params(record), self._modelled))

    def is_of(self, seen: Mapping[Hashable, object], known: list[TrialRecord], pending: Sequence[TrialRecord]) -> bool:
        """Whether this view is that of these trials, or becomes it by adding some of ``pending``."""
        return (
            list(seen) == list(self._seen)
            and known == self._known
            and [record.params for record in pending[: len(self._pending)]]
            == [record.params for record in self._pending]
        )

    def draw(self, pending: Sequence[TrialRecord], seed: int) -> dict[str, Value]:
        """The next trial, all others of the batch so far being ``pending``."""
        for record in pending[len(self._pending) :]:
            running = create_trial(
                state=TrialState.RUNNING, params=self._modelled_params(record), distributions=self._modelled
            )
            self._study.add_trial(running)
            self._pending.append(record)
        self._study.sampler = TPESampler(
            seed=seed, multivariate=self._multivariate, n_startup_trials=0, constant_liar=True
        )
        trial = self._study.ask(self._modelled)
        values = dict(trial.params)
        # The sampler passes failed trials over: this one comes back as it is run, after it was repaired.
        self._study.tell(trial, state=TrialState.FAIL)
        structure = int(values.pop(_STRUCTURE, 0))
        values.update(list(self._seen.values())[structure])
        return repaired({name: values[name] for name in self._space}, self._space)

    def _modelled_params(self, record: TrialRecord) -> dict[str, Value]:
        params = {name: record.params[name] for name in self._modelled if name != _STRUCTURE}
        if _STRUCTURE in self._modelled:
            params[_STRUCTURE] = self._indices[self._structure_fn(record.params)]
        return params


def structures_seen(
    records: Sequence[TrialRecord], structural: Sequence[str], structure_fn: StructureFn
) -> dict[Hashable, dict[str, Value]]:
    """Every structure in the order of its first trial, with the structural parameters of that trial."""
    seen: dict[Hashable, dict[str, Value]] = {}
    for record in records:
        seen.setdefault(structure_fn(record.params), {name: record.params[name] for name in structural})
    return seen


def _at_random(
    campaign: Campaign,
    space: Mapping[str, BaseDistribution],
    before: Sequence[TrialRecord],
    seed: int,
    structure_fn: StructureFn,
) -> dict[str, Value]:
    drawer = optuna.create_study(sampler=RandomSampler(seed=seed))
    values = with_shipped_network(drawer.ask(dict(space)).params, campaign.base, space)
    seen = structures_seen(before, campaign.structural, structure_fn)
    structure = structure_fn(values)
    if structure in seen or len(seen) >= campaign.max_structures:
        # Several values may stand for one structure; those of its first trial stand for all.
        visits = Counter(structure_fn(record.params) for record in before)
        fewest = min(visits.values())
        rarest = [params for structure, params in seen.items() if visits[structure] == fewest]
        values.update(rarest[np.random.RandomState(seed).randint(len(rarest))])
    return repaired(values, space)


def _seen_trial(
    record: TrialRecord, params: dict[str, Value], distributions: dict[str, BaseDistribution]
) -> FrozenTrial:
    if record.state == "complete":
        constraints = None if record.constraint is None else {CONSTRAINT: record.constraint}
        return create_trial(value=record.value, params=params, distributions=distributions, constraints=constraints)
    # A failed trial teaches what a trial given up before its first fold does: worse than anything else.
    means = record.running_means() if record.state == "pruned" else []
    return create_trial(
        state=TrialState.PRUNED,
        params=params,
        distributions=distributions,
        intermediate_values={len(means): means[-1]} if means else {},
    )
