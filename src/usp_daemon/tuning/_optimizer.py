"""A campaign: draw a batch, evaluate it structure by structure, tell, until a limit is reached."""

import math
import os
import pathlib
import socket
import threading
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, Self

import msgspec
import optuna
from optuna.distributions import BaseDistribution
from optuna.storages import BaseStorage
from optuna.study import Study

from usp_daemon.config import Settings, Value, document_of, load_settings, parse_settings

from ._campaign import Campaign, new_campaign, require_same
from ._candidate import base_candidate
from ._checkpoint import read_checkpoint, write_checkpoint
from ._decision import Decision, DecisionRule, ScorecardSource, decide
from ._errors import CampaignMismatchError, TuningError
from ._evaluation import BatchEvaluator, Evaluation, as_batch_evaluator
from ._meta_config import MetaOptimizationConfig, load_meta_optimization_config
from ._progress import Progress, StopReason, best_of, is_out_of_patience, last_improvement
from ._pruning import prune_fn_of
from ._report import render_report
from ._sampling import StructureFn, TrialSampler, batch_start, remembered, structure_fn_of, structures_seen
from ._space import path_of, search_space, structural_names
from ._study import TrialStore, open_storage
from ._trials import TrialRecord

Evaluator = BatchEvaluator | Callable[[dict[str, Value]], float]
# A worker that was not seen for so long is taken for dead, and its trials are evaluated by another.
LEASE_S = 3600.0


class OptimizationResult(msgspec.Struct, frozen=True, kw_only=True):
    """How a run of a campaign ended.

    ``best_params`` is empty and ``best_value`` inf where no trial may be used. ``n_trials`` counts all finished trials
    of the campaign; ``study`` is Optuna's view of it.
    """

    best_params: dict[str, Any]
    best_value: float
    n_trials: int
    study: Study
    best_number: int | None
    stop_reason: StopReason


class BayesianMetaOptimizer:
    """Searches the parameters of one tier for those that an evaluator scores best.

    Every trial is in the storage before it is evaluated and finished there as soon as its outcome is known. By default
    the storage is the journal ``<checkpoint_path>/<study_name>.journal``, or the database at ``storage_url``; an
    optimizer that finds its campaign there continues it. ``storage=optuna.storages.InMemoryStorage()`` keeps nothing.

    A campaign that one worker runs is exact: interrupted anywhere and continued, its trials are what they would have
    been, provided that the evaluator is a function of the candidate. Optuna's version is part of that.
    """

    def __init__(
        self,
        walk_forward_evaluator: Evaluator,
        meta_config: MetaOptimizationConfig | None = None,
        base_config: Settings | None = None,
        *,
        study_name: str | None = None,
        tier: str | None = None,
        storage: BaseStorage | None = None,
        worker: str | None = None,
        progress_fn: Callable[[Progress], None] | None = None,
        lease_s: float = LEASE_S,
        clock_fn: Callable[[], float] = time.monotonic,
    ) -> None:
        self.base_config = base_config if base_config is not None else load_settings()
        self.meta_config = meta_config if meta_config is not None else load_meta_optimization_config(self.base_config)
        self.tier = tier or self.meta_config.tier
        self.study_name = study_name or f"usp-{self.tier}"
        self._evaluator = as_batch_evaluator(walk_forward_evaluator)
        self._worker = worker if worker is not None else socket.gethostname()
        self._progress_fn = progress_fn
        self._lease_s = lease_s
        self._clock_fn = clock_fn
        self._storage = storage
        self._store: TrialStore | None = None
        self._stop = threading.Event()
        self._stop_reason: StopReason | None = None
        self._space: dict[str, BaseDistribution] = dict(search_space(self.meta_config, self.tier))
        structural = structural_names(self._space)
        told_by_evaluator: StructureFn | None = getattr(self._evaluator, "structure_of", None)
        self._structure_fn = remembered(told_by_evaluator or structure_fn_of(structural), structural)
        self._campaign = new_campaign(
            self.meta_config,
            name=self.study_name,
            tier=self.tier,
            space=self._space,
            structural=structural,
            base=base_candidate(self.base_config, self._space),
            evaluator=str(getattr(self._evaluator, "fingerprint", "")),
            founder=self._worker,
            optuna_version=optuna.__version__,
        )

    @property
    def study(self) -> Study | None:
        """Optuna's view of the campaign, or None before it was begun or loaded."""
        return None if self._store is None else self._store.study

    @property
    def records(self) -> list[TrialRecord]:
        """All trials of the campaign by number; none before it was begun or loaded."""
        return [] if self._store is None else self._store.records()

    @property
    def campaign(self) -> Campaign:
        """What the trials depend on."""
        return self._campaign if self._store is None else self._store.campaign

    def stop(self) -> None:
        """End :meth:`optimize` after the batch in hand. May be called from any thread or signal handler."""
        self._stop.set()

    def open(self) -> TrialStore:
        """Begin the campaign in its storage, or take it up from there, without a trial."""
        if self._store is None:
            path: pathlib.Path | None = None
            storage = self._storage
            if storage is None:
                storage, path = open_storage(self.meta_config, self.study_name)
            self._store = TrialStore(storage, self._campaign, worker=self._worker, path=path)
        return self._store

    def optimize(self, n_trials: int | None = None, *, total_trials: int | None = None) -> OptimizationResult:
        """Run ``n_trials`` more trials, or as many as make ``total_trials``, or (neither) as the settings say.

        Ends earlier by patience, by the time limit or by :meth:`stop`, always after a whole batch. Trials that an
        earlier run left unfinished are evaluated first and count among those still to be run. Raises what the
        evaluator raises (the batch is then evaluated again by the next run), ``StorageError``,
        ``CampaignMismatchError`` and ``CampaignInUseError``.
        """
        for asked in (n_trials, total_trials):
            if asked is not None and asked < 0:
                raise ValueError(f"expected a number of trials, got {asked}")
        store = self.open()
        self._stop.clear()
        begun = self._clock_fn()
        with store.exclusively():
            records = store.refresh()
            total = total_trials if total_trials is not None else self.meta_config.total_trials(self.tier)
            if n_trials is not None:
                total = sum(record.is_finished for record in records) + n_trials
            # Who runs a file is alone with it, and draws as its founder did, whatever the machine is called now.
            drawer = store.worker if store.is_shared else store.campaign.founder
            sampler = TrialSampler(store.campaign, store.space, structure_fn=self._structure_fn, worker=drawer)
            while (reason := self._reason_to_stop(records, total, begun)) is None:
                batch = self._next_batch(store, sampler, records, total)
                if not batch:
                    reason = StopReason.ELSEWHERE
                    break
                self._evaluate(store, batch, total, begun)
                records = store.refresh()
        self._stop_reason = reason
        return self._result(reason)

    def _reason_to_stop(self, records: Sequence[TrialRecord], total: int, begun: float) -> StopReason | None:
        config = self.meta_config
        settled = [record for record in records if record.is_finished]
        if len(records) >= total and len(settled) == len(records):
            return StopReason.TRIALS
        if self._stop.is_set():
            return StopReason.ASKED
        if config.time_limit_s > 0.0 and self._clock_fn() - begun >= config.time_limit_s:
            return StopReason.TIME
        # Judged at the ends of batches only: an interrupted batch is completed first, as it would have been.
        is_batch_end = len(records) == len(settled) and len(records) % self.campaign.batch_size == 0
        if is_batch_end and is_out_of_patience(settled, config.patience_trials, config.min_improvement):
            return StopReason.PATIENCE
        return None

    def _next_batch(
        self, store: TrialStore, sampler: TrialSampler, records: list[TrialRecord], total: int
    ) -> list[TrialRecord]:
        """The trials to be evaluated next: those that were left unfinished, and new ones up to the batch's end."""
        if store.is_shared:
            store.say_present()
        campaign = store.campaign
        batch = [record for record in records if not record.is_finished and self._is_ours(store, record)]
        if batch:
            # what one killed worker left is one batch at most; what several left is taken batch by batch
            first = batch_start(campaign, batch[0].number)
            batch = [record for record in batch if batch_start(campaign, record.number) == first]
        while len(records) < total and len(batch) < campaign.batch_size:
            number = len(records)
            if batch and batch_start(campaign, number) != batch_start(campaign, batch[-1].number):
                break
            params = sampler.draw(records, number)
            outside = {}
            if number == 0:
                outside = {name: value for name, value in campaign.base.items() if value != params[name]}
            record = store.begin(params, outside=outside)
            batch.append(record)
            records = store.refresh() if record.number != number else [*records, record]
        return batch

    def _is_ours(self, store: TrialStore, record: TrialRecord) -> bool:
        """Whether an unfinished trial is ours to evaluate: nobody else can be at it, or who was is gone."""
        return not store.is_shared or record.worker == store.worker or store.has_lapsed(record.worker, self._lease_s)

    def _evaluate(self, store: TrialStore, batch: Sequence[TrialRecord], total: int, begun: float) -> None:
        prune_fn = prune_fn_of(store.campaign, store.records(), batch[0].number)
        groups: dict[Hashable, list[TrialRecord]] = {}
        for record in batch:
            groups.setdefault(self._structure_fn(record.candidate), []).append(record)
        for group in groups.values():
            evaluations = self._evaluator.evaluate_batch([record.candidate for record in group], prune_fn=prune_fn)
            if len(evaluations) != len(group):
                raise TuningError(f"the evaluator was given {len(group)} candidates and judged {len(evaluations)}")
            told = [store.finish(record, evaluation) for record, evaluation in zip(group, evaluations, strict=True)]
            if self._progress_fn is not None:
                self._progress_fn(self._progress(store, total, begun, told))

    def _progress(self, store: TrialStore, total: int, begun: float, latest: Sequence[TrialRecord] = ()) -> Progress:
        records = store.records()
        best = best_of(records)
        return Progress(
            num_finished=sum(record.is_finished for record in records),
            num_total=total,
            best_value=best.value if best is not None and best.value is not None else math.inf,
            best_number=best.number if best is not None else None,
            last_improvement=last_improvement(records, self.meta_config.min_improvement),
            num_structures=len(structures_seen(records, store.campaign.structural, self._structure_fn)),
            elapsed_s=self._clock_fn() - begun,
            latest=tuple(latest),
        )

    def _result(self, reason: StopReason) -> OptimizationResult:
        store = self.open()
        records = store.records()
        best = best_of(records)
        return OptimizationResult(
            best_params=dict(best.candidate) if best is not None else {},
            best_value=best.value if best is not None and best.value is not None else math.inf,
            n_trials=sum(record.is_finished for record in records),
            study=store.study,
            best_number=best.number if best is not None else None,
            stop_reason=reason,
        )

    def decide(self) -> Decision | None:
        """Test the best trial on the ticks that were kept from the search, by the settings' rule, and keep the answer.

        None where the evaluator keeps none: it is not a ``ScorecardSource``. Raises what the evaluator raises.
        """
        if not isinstance(self._evaluator, ScorecardSource):
            return None
        store = self.open()
        records = [record for record in store.records() if record.is_finished and record.value is not None]
        evaluations = [
            Evaluation(record.value or 0.0, record.constraint or 0.0, pruned=record.state != "complete")
            for record in records
        ]
        rule = DecisionRule.from_settings(self.meta_config)
        decision = decide([record.candidate for record in records], evaluations, self._evaluator, rule=rule)
        store.write_decision(decision)
        return decision

    @property
    def decision(self) -> Decision | None:
        """What was decided of the trials there are, if anything was."""
        return None if self._store is None else self._store.decision()

    def best_changes(self) -> dict[str, Value]:
        """By dotted path, the values of the best trial that differ from those of the settings at the start."""
        best = best_of(self.records)
        if best is None:
            return {}
        base = self.campaign.base
        return {path_of(name): value for name, value in best.candidate.items() if value != base[name]}

    def get_best_config(self) -> Settings:
        """The settings at the start with the best trial's values. Raises ``ConfigError`` where they do not fit."""
        values = {**dict(self.base_config.items()), **self.best_changes()}
        return parse_settings(document_of(values), source="the best trial")

    def generate_optimization_report(self, audit: Sequence[Mapping[str, Any]] = ()) -> str:
        """The campaign in words (V-MIN-2); ``audit`` are entries of the audit log, as mappings."""
        if self._store is None:
            return "No optimization run yet. Call optimize() first."
        return render_report(
            self.campaign,
            self.records,
            patience_trials=self.meta_config.patience_trials,
            min_improvement=self.meta_config.min_improvement,
            stop_reason=self._stop_reason,
            decision=self.decision,
            audit=audit,
        )

    def save_study(self, path: str | os.PathLike[str]) -> None:
        """Write every trial to ``path``, and the file's SHA-256 beside it to ``path`` + ``.sha256``.

        The file is data only (JSON), carries its own SHA-256 too, and replaces what was there in one step.
        """
        store = self.open()
        write_checkpoint(pathlib.Path(path), store.campaign, store.lines())

    @classmethod
    def load_study(
        cls,
        path: str | os.PathLike[str],
        walk_forward_evaluator: Evaluator,
        meta_config: MetaOptimizationConfig | None = None,
        base_config: Settings | None = None,
        *,
        study_name: str | None = None,
        **options: Any,
    ) -> Self:
        """An optimizer that continues the campaign saved at ``path`` exactly.

        Its trials are put into the storage (that of the settings, or ``storage``), as far as they are not there yet.
        ``options`` are those of the constructor. Raises ``IntegrityError`` where a hash is wrong or missing or the
        file is no saved study, and ``CampaignMismatchError``, a ``ValueError``, where ``study_name`` is not the name
        in the file, the campaign in the file is another than the arguments describe, or the storage holds other
        trials under the same name.
        """
        campaign, saved = read_checkpoint(pathlib.Path(path))
        if study_name is not None and study_name != campaign.name:
            raise CampaignMismatchError(f"{path}: it holds the campaign {campaign.name!r}, not {study_name!r}")
        options.setdefault("tier", campaign.tier)
        optimizer = cls(walk_forward_evaluator, meta_config, base_config, study_name=campaign.name, **options)
        # the saved founder's draws are continued, under whatever name
        optimizer._campaign = msgspec.structs.replace(optimizer._campaign, founder=campaign.founder)
        optimizer._worker = options.get("worker") or campaign.founder
        optimizer._take_in(campaign, saved)
        return optimizer

    def _take_in(self, campaign: Campaign, saved: Sequence[TrialRecord]) -> None:
        require_same(campaign, self._campaign)
        store = self.open()
        with store.exclusively():
            present = store.refresh()
            for mine, theirs in zip(present, saved, strict=False):
                if not _agree(mine, theirs):
                    raise CampaignMismatchError(
                        f"the storage holds another trial {mine.number} of {campaign.name!r} than the saved study. "
                        "Load it under an empty checkpoint_path or storage."
                    )
            for record in saved[len(present) :]:
                store.add(record)


def _agree(one: TrialRecord, other: TrialRecord) -> bool:
    if one.params != other.params or one.outside != other.outside:
        return False
    if not (one.is_finished and other.is_finished):
        return True
    return (one.state, one.value, one.constraint, one.fold_values) == (
        other.state, other.value, other.constraint, other.fold_values,
    )  # fmt: skip
