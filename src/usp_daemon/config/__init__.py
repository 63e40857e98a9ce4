"""Settings: the schema, loading with every error at once, comparison by what a change costs.

Nothing here imports JAX or the predictor; ``Settings.predictor_fields`` gives the predictor's parameters by name.
"""

from ._audit import AuditEvent, AuditLog, AuditReport
from ._check import ConfigReport, check_config
from ._daemon_sections import Compute, Io, Meta, Security, Wire
from ._diff import HIDDEN, Change, SettingsDiff, diff_settings
from ._history import BackupHistory, EntryStatus, HistoryEntry
from ._key import Key, KeySpec, ParameterClass, Reader, Value
from ._live_tuning_section import Tuning
from ._load import ConfigError, Problem, find_config, load_settings, parse_settings
from ._mutate import ConfigMutator, settings_as_far_as_right
from ._mutation import Mutation, MutationOutcome
from ._mutation_errors import (
    AuditDamagedError,
    ConfigMutationError,
    MutationFailedError,
    MutationLockedError,
    MutationRejectedError,
)
from ._overlay import OverlayEntry, YieldedEntry
from ._policy import LOCKED, MUTABLE, Move, MutableKey
from ._predictor_sections import Core, Kernels, Orchestration, Validation
from ._process import ProcessIdentity, this_process
from ._reference import configuration_page, default_toml, errata_page
from ._running import ReloadOutcome, ReloadReport, ReloadTrigger, RunningDaemon
from ._seen import SeenBase
from ._service_sections import Delivery, Http, Kafka, Log, Recovery, Service, Telemetry
from ._settings import SECTIONS, SPECS, Settings, document_of
from ._source import ConfigSource, LoadedConfig
from ._trust_region import step_toward
from ._tuning_section import MetaOptimization
from ._watch import ConfigEvent, ConfigWatcher

__all__ = [
    "HIDDEN",
    "LOCKED",
    "MUTABLE",
    "SECTIONS",
    "SPECS",
    "AuditDamagedError",
    "AuditEvent",
    "AuditLog",
    "AuditReport",
    "BackupHistory",
    "Change",
    "Compute",
    "ConfigError",
    "ConfigEvent",
    "ConfigMutationError",
    "ConfigMutator",
    "ConfigReport",
    "ConfigSource",
    "ConfigWatcher",
    "Core",
    "Delivery",
    "EntryStatus",
    "HistoryEntry",
    "Http",
    "Io",
    "Kafka",
    "Kernels",
    "Key",
    "KeySpec",
    "LoadedConfig",
    "Log",
    "Meta",
    "MetaOptimization",
    "Move",
    "MutableKey",
    "Mutation",
    "MutationFailedError",
    "MutationLockedError",
    "MutationOutcome",
    "MutationRejectedError",
    "Orchestration",
    "OverlayEntry",
    "ParameterClass",
    "Problem",
    "ProcessIdentity",
    "Reader",
    "Recovery",
    "ReloadOutcome",
    "ReloadReport",
    "ReloadTrigger",
    "RunningDaemon",
    "Security",
    "SeenBase",
    "Service",
    "Settings",
    "SettingsDiff",
    "Telemetry",
    "Tuning",
    "Validation",
    "Value",
    "Wire",
    "YieldedEntry",
    "check_config",
    "configuration_page",
    "default_toml",
    "diff_settings",
    "document_of",
    "errata_page",
    "find_config",
    "load_settings",
    "parse_settings",
    "settings_as_far_as_right",
    "step_toward",
    "this_process",
]
