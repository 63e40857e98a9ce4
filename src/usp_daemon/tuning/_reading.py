"""Looking at campaigns without touching them: whether one runs meanwhile does not matter."""

import datetime
import os
import pathlib
from typing import NamedTuple

from optuna.storages import BaseStorage, JournalStorage

from usp_daemon.config import MetaOptimization

from ._campaign import Campaign
from ._checkpoint import FORMAT, read_checkpoint
from ._decision import Decision
from ._errors import StorageError
from ._journal import JournalFile, exclusive
from ._study import journal_path, open_database, read_campaign, read_decision, stored_campaigns
from ._trials import TrialRecord, record_of

_SUFFIX = ".journal"


class StoredCampaign(NamedTuple):
    """A campaign, its trials, and what was decided of them; a saved study holds no decision."""

    campaign: Campaign
    records: list[TrialRecord]
    decision: Decision | None = None


def campaign_names(meta_config: MetaOptimization) -> list[str]:
    """The campaigns in the database, or in the directory, that the settings name."""
    if meta_config.storage_url:
        return stored_campaigns(open_database(meta_config.storage_url))
    return sorted(
        path.name.removesuffix(_SUFFIX) for path in pathlib.Path(meta_config.checkpoint_path).glob("*.journal")
    )


def read_stored(meta_config: MetaOptimization, name: str) -> StoredCampaign:
    """The campaign ``name`` where the settings keep campaigns, and its trials. Raises ``StorageError``."""
    if meta_config.storage_url:
        return _read(open_database(meta_config.storage_url), name)
    return read_file(journal_path(meta_config, name), name)


def read_file(path: pathlib.Path, name: str | None = None) -> StoredCampaign:
    """The campaign in a journal or a saved study, and its trials.

    ``name`` is needed where a journal holds several. Raises ``StorageError``, and ``IntegrityError`` for a saved study
    that is not what was saved.
    """
    try:
        with path.open("rb") as file:
            beginning = file.read(64)
    except OSError as error:
        raise StorageError(f"{path}: {error.strerror or error}") from error
    if beginning.startswith(b'{"format":"' + FORMAT.encode()):
        return StoredCampaign(*read_checkpoint(path))
    storage = JournalStorage(JournalFile(path, must_exist=True))
    names = stored_campaigns(storage)
    if name is None and len(names) == 1:
        return _read(storage, names[0])
    if name is None:
        raise StorageError(f"{path}: holds {len(names)} campaigns ({', '.join(names) or 'none'}); name one")
    return _read(storage, name)


def put_away(meta_config: MetaOptimization, name: str) -> pathlib.Path | None:
    """Rename the campaign's journal, so that the next one begins afresh; the new name, or None if there was none.

    Raises ``CampaignInUseError`` while it runs, and ``StorageError`` for a campaign in a database.
    """
    if meta_config.storage_url:
        raise StorageError("a campaign in a database is not put away; begin another under another name")
    path = journal_path(meta_config, name)
    if not path.exists():
        return None
    with exclusive(path):
        moment = datetime.datetime.now(datetime.UTC).strftime("%Y%m%dT%H%M%S")
        for attempt in range(1000):
            target = path.with_name(f"{name}.{moment}{f'-{attempt}' if attempt else ''}.journal.old")
            if not target.exists():
                os.rename(path, target)
                return target
    raise StorageError(f"{path}: no free name to put it away under")


def _read(storage: BaseStorage, name: str) -> StoredCampaign:
    campaign = read_campaign(storage, name)
    trials = storage.get_all_trials(storage.get_study_id_from_name(name), deepcopy=False)
    records = [record_of(trial) for trial in trials]
    return StoredCampaign(campaign, records, read_decision(storage, name, records))
