"""A campaign in its storage: every trial is there before it is evaluated, and finished there when it is told.

What a kill costs, by where it comes:

    while a batch is drawn      the trials drawn so far are in the storage as running, the others are drawn again
                                and come out the same
    while a batch is evaluated  what was being evaluated is evaluated again, under its own number
    while a trial is told       (1) its outcome is written in one piece, (2) its constraint, (3) its state: before (1)
                                it is evaluated again, after it the rest is made up for from the outcome
"""

import contextlib
import importlib
import pathlib
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import msgspec
import optuna
from optuna.distributions import BaseDistribution
from optuna.exceptions import OptunaError, UpdateFinishedTrialError
from optuna.storages import BaseStorage, JournalStorage
from optuna.study import Study, StudyDirection

from usp_daemon.config import MetaOptimization, Value

from ._campaign import ATTRIBUTE, Campaign, campaign_of, require_same, to_attribute
from ._decision import Decision
from ._errors import StorageError
from ._evaluation import Evaluation
from ._journal import JournalFile, exclusive
from ._trials import (
    CONSTRAINT_ATTRIBUTE,
    EVALUATION,
    OPTUNA_STATES,
    TrialRecord,
    encoded,
    finished_record,
    frozen_of,
    outcome_of,
    record_of,
    stored_evaluation,
    with_stored,
)

# Optuna reports every study and trial that it makes, those that only draw included.
optuna.logging.set_verbosity(optuna.logging.WARNING)

_DECISION = "decision"  # the study's attribute that holds it, with the number of trials that it is of
_SEEN = "seen:"  # prefix of the study's attributes in which workers say when they were last there


def journal_path(meta_config: MetaOptimization, name: str) -> pathlib.Path:
    """The file of the campaign ``name`` where no database is set."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name):
        raise StorageError(f"expected a campaign's name of letters, digits, dots, dashes and underscores, got {name!r}")
    return pathlib.Path(meta_config.checkpoint_path) / f"{name}.journal"


def open_storage(meta_config: MetaOptimization, name: str) -> tuple[BaseStorage, pathlib.Path | None]:
    """The storage that the settings ask for, and the file in which it is, if it is one. Raises ``StorageError``."""
    if meta_config.storage_url:
        return open_database(meta_config.storage_url), None
    path = journal_path(meta_config, name)
    return open_journal(path), path


def open_journal(path: pathlib.Path) -> BaseStorage:
    """The storage in the journal ``path``."""
    return JournalStorage(JournalFile(path))


def open_database(url: str) -> BaseStorage:
    """The storage in the database at ``url``. Raises ``StorageError``, in whose text the password does not stand."""
    try:
        # A connection per operation: between two of them a batch is evaluated, for which few networks keep one open.
        # SQLAlchemy is Optuna's requirement and comes with it; all that is wanted of it is the name of this class.
        no_pool = importlib.import_module("sqlalchemy.pool").NullPool
        backend = optuna.storages.RDBStorage(url, engine_kwargs={"poolclass": no_pool})
        return optuna.storages.get_storage(backend)
    except Exception as error:  # whatever the database's driver raises: hundreds of classes without a common base
        kind = url.partition(":")[0] or "?"
        text = re.sub(r"//[^@\s]*@", "//***@", str(error).replace(url, f"{kind}://***"))
        raise StorageError(f"meta_optimization.storage_url ({kind}): {text}") from None


def stored_campaigns(storage: BaseStorage) -> list[str]:
    """The names of the campaigns in ``storage``."""
    return sorted(study.study_name for study in storage.get_all_studies() if ATTRIBUTE in study.user_attrs)


def read_campaign(storage: BaseStorage, name: str) -> Campaign:
    """The campaign ``name`` in ``storage``. Raises ``StorageError`` where there is none."""
    for study in storage.get_all_studies():
        if study.study_name == name and ATTRIBUTE in study.user_attrs:
            return campaign_of(study.user_attrs[ATTRIBUTE], name)
    known = ", ".join(stored_campaigns(storage)) or "none"
    raise StorageError(f"there is no campaign {name!r} in the storage (campaigns: {known})")


def read_decision(storage: BaseStorage, name: str, records: Sequence[TrialRecord]) -> Decision | None:
    """What was decided of exactly these trials of the campaign ``name``, if anything was."""
    stored = storage.get_study_user_attrs(storage.get_study_id_from_name(name)).get(_DECISION)
    if not isinstance(stored, Mapping) or stored.get("num_trials") != _num_finished(records):
        return None
    try:
        return msgspec.convert(stored.get("decision"), Decision)
    except msgspec.ValidationError as error:
        raise StorageError(f"the campaign {name!r} holds a decision that is none: {error}") from error


def _num_finished(records: Sequence[TrialRecord]) -> int:
    return sum(record.is_finished for record in records)


class TrialStore:
    """The trials of one campaign, in a storage and, as plain records, in memory.

    ``worker`` names the process among those that share a campaign over a database. Raises ``CampaignMismatchError``
    where the storage holds another campaign of that name.
    """

    def __init__(
        self,
        storage: BaseStorage,
        campaign: Campaign,
        *,
        worker: str,
        path: pathlib.Path | None = None,
        unix_ns_fn: Callable[[], int] = time.time_ns,
    ) -> None:
        self._storage = storage
        self._path = path
        self._unix_ns_fn = unix_ns_fn
        self.worker = worker
        with _translated(path):
            self.study: Study = optuna.create_study(
                storage=storage, study_name=campaign.name, direction=StudyDirection.MINIMIZE, load_if_exists=True
            )
            self._study_id = storage.get_study_id_from_name(campaign.name)
            stored = storage.get_study_user_attrs(self._study_id).get(ATTRIBUTE)
            if stored is None:
                if self.study.get_trials(deepcopy=False):
                    raise StorageError(f"the study {campaign.name!r} in the storage is no campaign of usp-daemon")
                storage.set_study_user_attr(self._study_id, ATTRIBUTE, to_attribute(campaign))
                stored = to_attribute(campaign)
        self.campaign = campaign_of(stored, campaign.name)
        require_same(self.campaign, campaign)
        self.space: Mapping[str, BaseDistribution] = self.campaign.distributions()
        self._ids: dict[int, int] = {}
        self._records: dict[int, TrialRecord] = {}
        self._lines: dict[int, bytes] = {}
        self._lock = threading.Lock()  # over the three above; never held while anything is written
        self.refresh()

    @contextlib.contextmanager
    def exclusively(self) -> Iterator[None]:
        """Hold the campaign alone where it is a file. Raises ``CampaignInUseError``."""
        if self._path is None:
            yield
            return
        with exclusive(self._path):
            yield

    @property
    def is_shared(self) -> bool:
        """Whether other workers may be at it."""
        return self._path is None and not isinstance(self._storage, optuna.storages.InMemoryStorage)

    def records(self) -> list[TrialRecord]:
        """All trials by number, as of the last refresh and what was written since."""
        with self._lock:
            return [self._records[number] for number in sorted(self._records)]

    def lines(self) -> list[bytes]:
        """The same, encoded. Takes microseconds: each trial was encoded when it changed."""
        with self._lock:
            return [self._lines[number] for number in sorted(self._lines)]

    def refresh(self) -> list[TrialRecord]:
        """Take in what other workers have written, finish what a killed one had begun to tell; all trials."""
        with _translated(self._path):
            trials = self._storage.get_all_trials(self._study_id, deepcopy=False)
        for trial in trials:
            known = self._records.get(trial.number)
            if known is not None and known.is_finished:
                continue
            self._ids[trial.number] = trial._trial_id
            record = record_of(trial)
            stored = stored_evaluation(trial)
            if not record.is_finished and stored is not None:
                self._write_outcome(with_stored(record, stored))
            else:
                self._keep(record)
        return self.records()

    def begin(self, params: Mapping[str, Value], *, outside: Mapping[str, Value] | None = None) -> TrialRecord:
        """Write a new running trial, in one piece, and return it with the number that it got."""
        record = TrialRecord(
            number=len(self._records),
            state="running",
            params=dict(params),
            outside=dict(outside or {}),
            worker=self.worker,
            started_ns=self._unix_ns_fn(),
        )
        return self.add(record)

    def add(self, record: TrialRecord) -> TrialRecord:
        """Write a trial as it is; the storage numbers it."""
        with _translated(self._path):
            trial_id = self._storage.create_new_trial(self._study_id, template_trial=frozen_of(record, self.space))
            written = record_of(self._storage.get_trial(trial_id))
        self._ids[written.number] = trial_id
        self._keep(written)
        return written

    def finish(self, record: TrialRecord, evaluation: Evaluation) -> TrialRecord:
        """Tell a running trial its outcome; it is on the disk when this returns."""
        return self._write_outcome(finished_record(record, evaluation, self._unix_ns_fn()))

    def write_decision(self, decision: Decision) -> None:
        """Keep what was decided of the trials there are; further trials make it void."""
        stored = {"num_trials": _num_finished(self.records()), "decision": msgspec.to_builtins(decision)}
        with _translated(self._path):
            self._storage.set_study_user_attr(self._study_id, _DECISION, stored)

    def decision(self) -> Decision | None:
        """What was decided of these trials, if anything was."""
        return read_decision(self._storage, self.campaign.name, self.records())

    def has_lapsed(self, worker: str, lease_s: float) -> bool:
        """Whether ``worker`` was not seen for ``lease_s`` seconds."""
        with _translated(self._path):
            seen_ns = self._storage.get_study_user_attrs(self._study_id).get(_SEEN + worker, 0)
        return self._unix_ns_fn() - seen_ns > lease_s * 1e9

    def say_present(self) -> None:
        """Let the other workers know that this one is at it."""
        with _translated(self._path):
            self._storage.set_study_user_attr(
                self._study_id,
                _SEEN + self.worker,
                self._unix_ns_fn(),
            )

    def _write_outcome(self, record: TrialRecord) -> TrialRecord:
        trial_id = self._ids[record.number]
        means = record.running_means()
        with _translated(self._path):
            try:
                self._storage.set_trial_user_attr(trial_id, EVALUATION, outcome_of(record))
                if record.constraint is not None:
                    self._storage.set_trial_system_attr(trial_id, CONSTRAINT_ATTRIBUTE, record.constraint)
                if record.state == "pruned" and means:
                    self._storage.set_trial_intermediate_value(trial_id, len(means), means[-1])
                values = None if record.value is None else [record.value]
                self._storage.set_trial_state_values(trial_id, OPTUNA_STATES[record.state], values)
            except UpdateFinishedTrialError:
                pass  # another worker took it for abandoned and was faster; both have the same outcome
            record = record_of(self._storage.get_trial(trial_id))
        self._keep(record)
        return record

    def _keep(self, record: TrialRecord) -> None:
        line = encoded(record)
        with self._lock:
            self._records[record.number] = record
            self._lines[record.number] = line


@contextlib.contextmanager
def _translated(path: pathlib.Path | None) -> Iterator[None]:
    """Turn what the storage raises into ``StorageError``."""
    try:
        yield
    except UpdateFinishedTrialError:
        raise
    except (OptunaError, OSError) as error:
        place = path if path is not None else "meta_optimization.storage_url"
        raise StorageError(f"{place}: {error}") from error
