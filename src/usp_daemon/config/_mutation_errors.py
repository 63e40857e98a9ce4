"""What can come of an attempt to change the configuration, other than the change."""

from collections.abc import Iterable

from ._load import Problem


class ConfigMutationError(Exception):
    """The configuration was not changed; the text says why and what to do."""


class MutationRejectedError(ConfigMutationError):
    """The change is against the policy: ``problems`` is everything that speaks against it."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("; ".join(str(problem) for problem in self.problems))


class MutationFailedError(ConfigMutationError):
    """The change was allowed and could not be made."""


class MutationLockedError(ConfigMutationError):
    """Somebody else is changing the configuration and did not finish in time; ``holder`` says who."""

    def __init__(self, text: str, holder: str) -> None:
        self.holder = holder
        super().__init__(text)


class AuditDamagedError(ConfigMutationError):
    """The log of changes is not what was written there."""
