"""Settings: the schema, loading with every error at once, comparison by what a change costs.

Nothing here imports JAX or the predictor; ``Settings.predictor_fields`` gives the predictor's parameters by name.
"""

from ._check import ConfigReport, check_config
from ._daemon_sections import Compute, Io, Meta, Security, Wire
from ._diff import Change, SettingsDiff, diff_settings
from ._key import Key, KeySpec, ParameterClass, Reader, Value
from ._live_tuning_section import Tuning
from ._load import ConfigError, Problem, find_config, load_settings, parse_settings
from ._predictor_sections import Core, Kernels, Orchestration, Validation
from ._reference import configuration_page, default_toml, errata_page
from ._service_sections import Delivery, Http, Kafka, Log, Recovery, Service
from ._settings import SECTIONS, SPECS, Settings
from ._tuning_section import MetaOptimization

__all__ = [
    "SECTIONS",
    "SPECS",
    "Change",
    "Compute",
    "ConfigError",
    "ConfigReport",
    "Core",
    "Delivery",
    "Http",
    "Io",
    "Kafka",
    "Kernels",
    "Key",
    "KeySpec",
    "Log",
    "Meta",
    "MetaOptimization",
    "Orchestration",
    "ParameterClass",
    "Problem",
    "Reader",
    "Recovery",
    "Security",
    "Service",
    "Settings",
    "SettingsDiff",
    "Tuning",
    "Validation",
    "Value",
    "Wire",
    "check_config",
    "configuration_page",
    "default_toml",
    "diff_settings",
    "errata_page",
    "find_config",
    "load_settings",
    "parse_settings",
]
