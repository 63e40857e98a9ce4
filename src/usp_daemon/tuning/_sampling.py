"""What a trial tries: a function of the campaign, the trial's number and the trials before it, and of nothing else.

A campaign that was killed and continued therefore draws what it would have drawn. There is no random state to keep:
each trial's generator is seeded by a hash of the campaign's seed and the trial's number.

Within a batch, trials do not see each other's outcome, whether it is known by then or not; the trials before in the
same batch count as running, whose neighbourhood the sampler avoids (the constant liar).

Structures. The first ``n_startup_trials`` are drawn at random, each with a structure of its own as long as there are
fewer than ``max_structures``, else in the structure that was tried least. The later ones come from a tree-structured
Parzen estimator, in which the structures seen by then are the choices of one categorical parameter and the other
parameters stand as they are.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.samplers import RandomSampler, TPESampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState, create_trial

from usp_daemon.config import Value

from ._campaign import Campaign
from ._search_space import into_space, repaired
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


def draw(
    campaign: Campaign,
    space: Mapping[str, BaseDistribution],
    records: Sequence[TrialRecord],
    number: int,
    *,
    structure_fn: StructureFn,
    worker: str = "",
) -> dict[str, Value]:
    """The parameters of trial ``number``, by the ``records`` of the trials with smaller numbers.

    Trial 0 is the settings at the start, or the point of the space nearest to them.
    """
    if number == 0:
        return repaired(into_space(campaign.base, space), space)
    before = [record for record in records if record.number < number]
    seed = seed_of(campaign, number, worker)
    if number < campaign.n_startup_trials:
        return _at_random(campaign, space, before, seed, structure_fn)
    return _by_model(campaign, space, before, number, seed, structure_fn)


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
    values = dict(drawer.ask(dict(space)).params)
    seen = structures_seen(before, campaign.structural, structure_fn)
    structure = structure_fn(values)
    if structure in seen or len(seen) >= campaign.max_structures:
        # Several values may stand for one structure; those of its first trial stand for all.
        visits = Counter(structure_fn(record.params) for record in before)
        fewest = min(visits.values())
        rarest = [params for structure, params in seen.items() if visits[structure] == fewest]
        values.update(rarest[np.random.RandomState(seed).randint(len(rarest))])
    return repaired(values, space)


def _by_model(
    campaign: Campaign,
    space: Mapping[str, BaseDistribution],
    before: Sequence[TrialRecord],
    number: int,
    seed: int,
    structure_fn: StructureFn,
) -> dict[str, Value]:
    structural = campaign.structural
    seen = structures_seen(before, structural, structure_fn)
    indices = {structure: index for index, structure in enumerate(seen)}
    free = {name: distribution for name, distribution in space.items() if name not in structural}
    modelled: dict[str, BaseDistribution] = dict(free)
    if len(seen) > 1:
        modelled[_STRUCTURE] = CategoricalDistribution(list(range(len(seen))))

    def modelled_params(record: TrialRecord) -> dict[str, Value]:
        params = {name: record.params[name] for name in free}
        if len(seen) > 1:
            params[_STRUCTURE] = indices[structure_fn(record.params)]
        return params

    first = batch_start(campaign, number)
    known = [record for record in before if record.number < first and record.is_finished]
    pending = [record for record in before if not (record.number < first and record.is_finished)]
    study = optuna.create_study(
        sampler=TPESampler(seed=seed, multivariate=campaign.multivariate, n_startup_trials=0, constant_liar=True)
    )
    for record in known:
        study.add_trial(_seen_trial(record, modelled_params(record), modelled))
    for record in pending:
        study.add_trial(_running_trial(modelled_params(record), modelled))
    values = _asked(study, modelled)
    structure = int(values.pop(_STRUCTURE, 0))
    values.update(list(seen.values())[structure])
    return repaired({name: values[name] for name in space}, space)


def _asked(study: Study, modelled: Mapping[str, BaseDistribution]) -> dict[str, Value]:
    # by name: for parameters that are drawn one by one, the order decides which gets which random number
    return dict(study.ask({name: modelled[name] for name in sorted(modelled)}).params)


def _running_trial(params: dict[str, Value], distributions: dict[str, BaseDistribution]) -> FrozenTrial:
    return create_trial(state=TrialState.RUNNING, params=params, distributions=distributions)


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
