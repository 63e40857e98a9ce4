"""The settings as one frozen record, and the table of all keys."""

import dataclasses
import hashlib
import json
import typing
from collections.abc import Iterator, Mapping

from ._daemon_sections import Compute, Io, Meta, Security, Wire
from ._key import KeySpec, ParameterClass, Reader, Value, specs_of
from ._live_tuning_section import Tuning
from ._predictor_sections import Core, Kernels, Orchestration, Validation
from ._service_sections import Delivery, Http, Kafka, Log, Recovery, Service, Telemetry
from ._tuning_section import MetaOptimization


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Every section; what the constructor is not given stands at its default.

    The constructor checks nothing. ``load_settings`` and ``parse_settings`` are the ways in from outside.
    """

    meta: Meta = dataclasses.field(default_factory=Meta)
    core: Core = dataclasses.field(default_factory=Core)
    orchestration: Orchestration = dataclasses.field(default_factory=Orchestration)
    kernels: Kernels = dataclasses.field(default_factory=Kernels)
    validation: Validation = dataclasses.field(default_factory=Validation)
    io: Io = dataclasses.field(default_factory=Io)
    security: Security = dataclasses.field(default_factory=Security)
    compute: Compute = dataclasses.field(default_factory=Compute)
    wire: Wire = dataclasses.field(default_factory=Wire)
    kafka: Kafka = dataclasses.field(default_factory=Kafka)
    delivery: Delivery = dataclasses.field(default_factory=Delivery)
    recovery: Recovery = dataclasses.field(default_factory=Recovery)
    service: Service = dataclasses.field(default_factory=Service)
    http: Http = dataclasses.field(default_factory=Http)
    telemetry: Telemetry = dataclasses.field(default_factory=Telemetry)
    log: Log = dataclasses.field(default_factory=Log)
    meta_optimization: MetaOptimization = dataclasses.field(default_factory=MetaOptimization)
    tuning: Tuning = dataclasses.field(default_factory=Tuning)

    def __getitem__(self, path: str) -> Value:
        """The value under a dotted path such as "orchestration.cusum_k". Raises ``KeyError``."""
        spec = SPECS[path]
        return getattr(getattr(self, spec.section), spec.name)

    def items(self) -> Iterator[tuple[str, Value]]:
        """Every dotted path with its value, in the order of the schema."""
        return ((path, self[path]) for path in SPECS)

    def predictor_fields(self) -> dict[str, Value]:
        """The keyword arguments of core's ``PredictorConfig``, by name.

        ``cusum_h`` may be the word "auto": whoever builds the predictor resolves it from
        ``orchestration.alarm_mean_ticks_between_false``.
        """
        return {spec.name: self[path] for path, spec in SPECS.items() if spec.key.reader is Reader.PREDICTOR}

    def content_hash(self) -> str:
        """SHA-256, in hexadecimal, over the canonical JSON of all values but the secrets: equal for equal settings,
        whatever file they came from and whatever was left to its default.
        """
        return _hash({path: value for path, value in self.items() if not SPECS[path].key.secret})

    def predictor_hash(self) -> str:
        """The same over the traced and structural keys only: equal wherever the same ticks get the same answers.

        It stands in every record that is published, so it must not differ between replicas that differ in a port.
        """
        return _hash(self.predictor_values())

    def predictor_values(self) -> dict[str, Value]:
        """The traced and structural keys by dotted path: all that an answer depends on beside the ticks."""
        kinds = (ParameterClass.TRACED, ParameterClass.STRUCTURAL)
        return {path: value for path, value in self.items() if SPECS[path].key.parameter_class in kinds}


def _hash(values: dict[str, Value]) -> str:
    canonical = json.dumps(values, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode("ascii")).hexdigest()


SECTIONS: dict[str, type] = {
    field.name: typing.cast(type, field.default_factory) for field in dataclasses.fields(Settings)
}
SPECS: dict[str, KeySpec] = {
    spec.path: spec for section, record in SECTIONS.items() for spec in specs_of(section, record)
}


def document_of(values: Mapping[str, Value]) -> dict[str, dict[str, Value]]:
    """Values by dotted path as the document of sections that a file would hold."""
    document: dict[str, dict[str, Value]] = {}
    for path, value in values.items():
        section, _, name = path.partition(".")
        document.setdefault(section, {})[name] = value
    return document


def build_settings(values: dict[str, Value]) -> Settings:
    """Settings from checked values by dotted path; missing paths take their defaults."""
    sections = {}
    for section, record in SECTIONS.items():
        prefix = f"{section}."
        sections[section] = record(
            **{path.removeprefix(prefix): value for path, value in values.items() if path.startswith(prefix)}
        )
    return Settings(**sections)
