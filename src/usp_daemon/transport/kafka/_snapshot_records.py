"""What stands in the snapshot topic: keys, chunks, manifests and claims, and an index of one partition's.

======================================  ==========================================================================
key (UTF-8)                             value
======================================  ==========================================================================
{group}/{topic}/{partition}/{s}/{c}     chunk c of the snapshot in slot s; its header says of which one, and how many
                                        chunks are at least to come
{group}/{topic}/{partition}/{s}/manifest  JSON, see :class:`Manifest`; the last record of its transaction
{group}/{topic}/{partition}/owner       JSON: who saves this partition since when
======================================  ==========================================================================

A topic's name has no slash, so the end of a key tells its parts apart, whatever stands in the group's name.
"""

import dataclasses
import re
import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated

import msgspec

from usp_daemon.persistence import DamagedSnapshotError

MANIFEST_VERSION = 1
CHUNK_HEADER = "usp-chunk"
# Of what a request takes, what is left for a record's frame, batch and header beside its key.
FRAME_BYTES = 512

_CHUNK = struct.Struct(">16sI")
_ENDING = re.compile(rb"(owner)|([0-9]{1,9})/(manifest|[0-9]{1,9})")

Count = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a snapshot without its chunks.

    ``id`` (32 hex digits) is new for each save, ``first`` the log offset of chunk 0, ``sha256`` that of all bytes but
    the last 32, which are the same hash in binary.
    """

    version: Count = MANIFEST_VERSION
    id: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{32}$")]
    offset: Count
    created_ns: Count
    num_chunks: Annotated[int, msgspec.Meta(ge=1, lt=1_000_000_000)]
    chunk_bytes: Annotated[int, msgspec.Meta(ge=1, lt=1 << 31)]
    size_bytes: Count
    first: Count
    sha256: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]


class Claim(msgspec.Struct, frozen=True, kw_only=True):
    """Who saves a partition; ``id`` is new each time that somebody takes it over."""

    id: str
    instance: str
    since_ns: int


@dataclasses.dataclass(eq=False, slots=True)
class Entry:
    """A manifest as it lies in the log; None where it cannot be read. ``damage`` says what is wrong with it."""

    slot: int
    log_offset: int
    manifest: Manifest | None
    damage: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class Plan:
    """Where the next snapshot goes and which entries go for it; ``superseded`` of them lie beyond its offset."""

    slot: int
    dropped: Sequence[Entry]
    superseded: Sequence[Entry]


class Keys:
    """The keys of one input partition of one group."""

    def __init__(self, group: str, topic: str, partition: int) -> None:
        self.name = f"{group}/{topic}/{partition}"
        self.prefix = f"{self.name}/".encode("utf-8", "surrogatepass")
        self.owner = self.prefix + b"owner"

    def chunk(self, slot: int, chunk: int) -> bytes:
        """Key of a chunk."""
        return self.prefix + b"%d/%d" % (slot, chunk)

    def manifest(self, slot: int) -> bytes:
        """Key of a manifest."""
        return self.prefix + b"%d/manifest" % slot

    def parsed(self, key: bytes | None) -> tuple[int, int] | None:
        """Slot and chunk; chunk -1 is the manifest, (-1, -1) the owner, None what belongs to somebody else."""
        if key is None or not key.startswith(self.prefix):
            return None
        match = _ENDING.fullmatch(key, len(self.prefix))
        if match is None:
            return None
        if match[1]:
            return -1, -1
        return int(match[2]), -1 if match[3] == b"manifest" else int(match[3])


def chunk_header(snapshot_id: str, num_left: int) -> list[tuple[str, bytes]]:
    """Headers of a chunk after which at least ``num_left`` more follow."""
    return [(CHUNK_HEADER, _CHUNK.pack(bytes.fromhex(snapshot_id), num_left))]


def parse_chunk_header(headers: Iterable[tuple[str, bytes]]) -> tuple[str, int] | None:
    """The snapshot's id and how many chunks follow at least; None where that is not said."""
    for name, value in headers:
        if name == CHUNK_HEADER and len(value) == _CHUNK.size:
            raw, num_left = _CHUNK.unpack(value)
            return raw.hex(), num_left
    return None


def cut(pieces: Iterable[bytes | memoryview], chunk_bytes: int) -> Iterator[bytes]:
    """The same bytes in pieces of ``chunk_bytes``, the last one aside."""
    buffer = bytearray()
    for piece in pieces:
        view = memoryview(piece)
        while view:
            taken = view[: chunk_bytes - len(buffer)]
            buffer += taken
            view = view[len(taken) :]
            if len(buffer) == chunk_bytes:
                yield bytes(buffer)
                buffer.clear()
    if buffer:
        yield bytes(buffer)


class PartitionIndex:
    """Manifests and owner of one input partition, as far as the log was read, which is up to ``position``."""

    def __init__(self, keys: Keys) -> None:
        self.keys = keys
        self.reset()

    def reset(self) -> None:
        """Know nothing: the log is another one."""
        self.position = 0
        self.claim: str | None = None
        self.entries: dict[int, Entry] = {}

    def take(
        self, log_offset: int, key: bytes | None, value: bytes | None, headers: Iterable[tuple[str, bytes]]
    ) -> int:
        """Note one record; returns the log offset before which nothing else can concern this partition.

        A chunk that readers of committed records see is followed by all others of its snapshot and its manifest, with
        nothing of this partition between: they are skipped.
        """
        parsed = self.keys.parsed(key)
        if parsed is None:
            return log_offset + 1
        slot, chunk = parsed
        if chunk >= 0:
            about = None if value is None else parse_chunk_header(headers)
            return log_offset + 1 + (0 if about is None else about[1])
        if slot < 0:
            self.claim = _claim_id(value)
        elif value is None:
            self.entries.pop(slot, None)
        else:
            self.entries[slot] = _entry(slot, log_offset, value)
        return log_offset + 1

    def newest_first(self) -> list[Entry]:
        """Entries whose manifest can be read, highest offset first."""
        known = [entry for entry in self.entries.values() if entry.manifest is not None]
        return sorted(known, key=lambda entry: entry.manifest.offset if entry.manifest else 0, reverse=True)

    def plan(self, offset: int, keep: int) -> Plan:
        """Keep the ``keep`` - 1 highest whole entries below ``offset``; the new one takes the place of another."""
        sound = [entry for entry in self.newest_first() if not entry.damage]
        superseded = [entry for entry in sound if entry.manifest and entry.manifest.offset > offset]
        kept = [entry for entry in sound if entry.manifest and entry.manifest.offset < offset][: keep - 1]
        dropped = [entry for entry in self.entries.values() if entry not in kept]
        taken = {entry.slot for entry in kept}
        free = [slot for slot in range(keep) if slot not in taken]
        # An empty slot first; else the dropped one with the lowest offset, one that cannot be read before all.
        slot = min(free, key=lambda slot: self._age(slot))
        return Plan(slot, dropped, superseded)

    def _age(self, slot: int) -> int:
        entry = self.entries.get(slot)
        if entry is None:
            return -2
        return -1 if entry.manifest is None or entry.damage else entry.manifest.offset


def _entry(slot: int, log_offset: int, value: bytes) -> Entry:
    try:
        manifest = msgspec.json.decode(value, type=Manifest)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        return Entry(slot, log_offset, None, f"its manifest cannot be read: {error}")
    chunks = -(-manifest.size_bytes // manifest.chunk_bytes)
    if chunks != manifest.num_chunks or manifest.first + chunks > log_offset:
        return Entry(slot, log_offset, None, "the numbers of its manifest contradict one another")
    return Entry(slot, log_offset, manifest)


def _claim_id(value: bytes | None) -> str | None:
    try:
        return None if value is None else msgspec.json.decode(value, type=Claim).id
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return "?"  # somebody's, but not ours


class Assembly:
    """The chunks of one snapshot, in order, as they are found; nothing is allocated for what is only promised."""

    def __init__(self, keys: Keys, entry: Entry) -> None:
        assert entry.manifest is not None
        self._keys = keys
        self._slot = entry.slot
        self._manifest = entry.manifest
        self._data = bytearray()
        self.num_found = 0

    @property
    def is_complete(self) -> bool:
        """Whether every chunk is there."""
        return self.num_found == self._manifest.num_chunks

    def take(self, key: bytes | None, value: bytes | None, headers: Iterable[tuple[str, bytes]]) -> None:
        """Add a record if it is a chunk of this snapshot. Raises :class:`DamagedSnapshotError`."""
        parsed = self._keys.parsed(key)
        if parsed is None or parsed[0] != self._slot or parsed[1] < 0 or value is None:
            return
        about = parse_chunk_header(headers)
        if about is None or about[0] != self._manifest.id:
            return
        if parsed[1] != self.num_found:
            raise DamagedSnapshotError(f"chunk {self.num_found} of {self._manifest.num_chunks} is missing")
        self._data += value
        self.num_found += 1
        if len(value) != self._manifest.chunk_bytes and not self.is_complete:
            raise DamagedSnapshotError(
                f"chunk {parsed[1]}: expected {self._manifest.chunk_bytes} bytes, got {len(value)}"
            )

    def finish(self) -> bytearray:
        """All bytes. Raises :class:`DamagedSnapshotError`; the content is checked by whoever decodes it."""
        if not self.is_complete:
            raise DamagedSnapshotError(f"chunk {self.num_found} of {self._manifest.num_chunks} is missing")
        if len(self._data) != self._manifest.size_bytes:
            raise DamagedSnapshotError(f"expected {self._manifest.size_bytes} bytes, got {len(self._data)}")
        if bytes(self._data[-32:]).hex() != self._manifest.sha256:
            raise DamagedSnapshotError("the chunks do not match the manifest's SHA-256")
        return self._data
