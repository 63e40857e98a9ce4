"""A snapshot in memory: everything that a partition needs to go on, and where that stands in the input."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from ._errors import SnapshotContentError


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Snapshot:
    """The state of one partition after all records below ``offset`` and none at or above it.

    Raises :class:`SnapshotContentError` when the parts do not fit each other.
    """

    topic: str
    partition: int
    # The next input record to be stepped.
    offset: int
    # The consumer group whose committed offset this belongs to.
    group: str
    # Row i of every array belongs to symbol i.
    symbols: tuple[str, ...]
    # By path of the state's leaf: (symbols, ...), booleans or numbers.
    arrays: Mapping[str, np.ndarray]
    # What must agree for the same bits to follow: program hash, JAX version, device kind, instruction set, precision,
    # tile widths.
    identity: Mapping[str, str | int]
    # Traced and structural keys by dotted path, as they were in force at ``offset``. Never a secret.
    settings: Mapping[str, float | int | bool | str]
    config_hash: str
    # Number of the accepted change of configuration that ``settings`` came from.
    config_epoch: int
    # Partitions that the input topic had: with another number, symbols live elsewhere. 0 means not known.
    num_input_partitions: int
    # Wall clock, Unix nanoseconds: for people, no decision rests on it.
    created_ns: int
    # Free for the service: numbers that have to go on where they were.
    counters: Mapping[str, int] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("partition", "offset", "config_epoch", "num_input_partitions", "created_ns"):
            if not 0 <= getattr(self, name) < 1 << 63:
                raise SnapshotContentError(f"{name}: expected 0 to 2^63 - 1, got {getattr(self, name)}")
        if not self.topic:
            raise SnapshotContentError("topic: expected a name, got an empty one")
        if len(set(self.symbols)) != len(self.symbols):
            raise SnapshotContentError(f"the symbols of {self.topic}/{self.partition} name one twice")
        for path, array in self.arrays.items():
            if array.ndim < 1 or array.shape[0] != len(self.symbols):
                raise SnapshotContentError(
                    f"array {path!r}: expected one row for each of {len(self.symbols)} symbols, got shape {array.shape}"
                )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotInfo:
    """A snapshot as it lies in a store. ``created_ns`` is None when its header cannot be read."""

    name: str
    topic: str
    partition: int
    offset: int
    size_bytes: int
    created_ns: int | None
    # Where it is, in the store's own terms: a path.
    locator: str
