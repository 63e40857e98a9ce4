"""What can go wrong with a campaign."""


class TuningError(Exception):
    """A campaign cannot be begun, continued or stored; the text says why and what to do."""


class StorageError(TuningError):
    """The storage of the campaigns cannot be opened, or holds something that is no campaign."""


class CampaignMismatchError(TuningError, ValueError):
    """What is stored under the name is another campaign: other ranges, another seed, other data."""


class CampaignInUseError(TuningError):
    """Another process is running the campaign."""


class IntegrityError(TuningError):
    """A saved study is not what was saved: its hash is wrong or missing, or it is no data of ours."""


class MissingHashError(IntegrityError, FileNotFoundError):
    """The ``.sha256`` file beside a saved study is missing."""
