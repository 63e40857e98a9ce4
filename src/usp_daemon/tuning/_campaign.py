"""What makes a campaign the one it is: everything its trials depend on."""

import json
from collections.abc import Mapping
from typing import Any

import msgspec
from optuna.distributions import BaseDistribution, distribution_to_json, json_to_distribution

from ._errors import CampaignMismatchError, StorageError
from ._meta_config import MetaOptimizationConfig

FORMAT_VERSION = 1
ATTRIBUTE = "campaign"  # the study's attribute that holds it


class Campaign(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Name and identity of a campaign. A trial's parameters are a function of this, its number and the trials before.

    ``space`` holds Optuna's JSON of each distribution, ``base`` the values of the settings at the start. ``founder``
    is the worker that began it: other workers draw from other seeds, so that two never draw the same.
    """

    version: int = FORMAT_VERSION
    name: str
    tier: str
    seed: int
    batch_size: int
    n_startup_trials: int
    multivariate: bool
    max_structures: int
    pruning: bool
    train_ratio: float
    n_folds: int
    embargo_ticks: int
    validation_folds: int
    holdout: float
    space: dict[str, str]
    structural: tuple[str, ...]
    base: dict[str, float | int | str | bool]
    evaluator: str = ""
    founder: str = ""
    optuna: str = ""

    def distributions(self) -> dict[str, BaseDistribution]:
        """The space."""
        return {name: json_to_distribution(text) for name, text in self.space.items()}


def new_campaign(
    config: MetaOptimizationConfig,
    *,
    name: str,
    tier: str,
    space: Mapping[str, BaseDistribution],
    structural: tuple[str, ...],
    base: Mapping[str, Any],
    evaluator: str,
    founder: str,
    optuna_version: str,
) -> Campaign:
    """The campaign that the settings describe."""
    return Campaign(
        name=name,
        tier=tier,
        seed=config.seed,
        batch_size=config.batch_size,
        n_startup_trials=config.n_startup_trials,
        multivariate=config.multivariate,
        max_structures=config.max_structures,
        pruning=config.pruning,
        train_ratio=config.train_ratio,
        n_folds=config.n_folds,
        embargo_ticks=config.embargo_ticks,
        validation_folds=config.validation_folds,
        holdout=config.holdout,
        space={parameter: distribution_to_json(distribution) for parameter, distribution in space.items()},
        structural=structural,
        base=dict(base),
        evaluator=evaluator,
        founder=founder,
        optuna=optuna_version,
    )


def require_same(stored: Campaign, wanted: Campaign) -> None:
    """Raise :class:`CampaignMismatchError` that names what differs, unless trials of one may follow the other's."""
    free = {"founder", "optuna", "version"}
    differing = [
        f"{field} ({_short(getattr(stored, field))} then, {_short(getattr(wanted, field))} now)"
        for field in Campaign.__struct_fields__
        if field not in free and getattr(stored, field) != getattr(wanted, field)
    ]
    if differing:
        raise CampaignMismatchError(
            f"the campaign {stored.name!r} was begun with other settings or data: {', '.join(differing)}. "
            "Continue it with those, begin one of another name, or put it away and begin afresh."
        )


def campaign_of(attribute: Any, name: str) -> Campaign:
    """The campaign from a study's attribute. Raises :class:`StorageError` for what is none, or of a newer version."""
    if isinstance(attribute, Mapping) and isinstance(attribute.get("version"), int):
        version = attribute["version"]
        if version > FORMAT_VERSION:
            raise StorageError(
                f"the campaign {name!r} has format version {version}; this program knows versions up to "
                f"{FORMAT_VERSION}. Use a newer program."
            )
    try:
        return msgspec.convert(attribute, Campaign)
    except msgspec.ValidationError as error:
        raise StorageError(f"the study {name!r} is no campaign of usp-daemon: {error}") from error


def to_attribute(campaign: Campaign) -> dict[str, Any]:
    """The campaign as the study's attribute: JSON data."""
    return json.loads(msgspec.json.encode(campaign))


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
