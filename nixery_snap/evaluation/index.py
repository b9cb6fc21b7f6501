"""The attribute index of one revision and system: how it is stored, and how a name is looked up in it.

Its attributes stand sorted in parts, blobs of some hundred lines each; a record names them, with the first
attribute of each. So a lookup takes the record and one small blob for each set on its way. What can be searched
stands apart, in one blob. All of these are immutable, and the record is written last.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import sys
from bisect import bisect_right
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from string import ascii_lowercase, ascii_uppercase
from typing import Any, Final, Self

from cachetools import LRUCache

from nixery_snap.errors import PackageProblem, ProblemKind, StorageError
from nixery_snap.nix.attribute_path import AttributePath
from nixery_snap.oci import canonical_json
from nixery_snap.oci.digest import Digest
from nixery_snap.ports import UNTRACKED, BlobStore, Package, Pin, Records, UseKind, Uses, use

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

INDEX_RECORD: Final = "index"  # of record
# Part of every key: raise it when the stored form or what an entry says changes.
_FORMAT: Final = 1
_LEVEL: Final = 9  # of zstd: written once, read often
_MAX_LINES_BYTES: Final = 64 * 1024 * 1024
_PARTS_BYTES: Final = 16 * 1024 * 1024
_LOWER: Final = str.maketrans(ascii_uppercase, ascii_lowercase)
_BELOW: Final = "\t"  # sorts before all that names hold: what is in a set stands right behind it
_BETWEEN: Final = b"\t\t"  # in no key, as no name is empty

Path = tuple[str, ...]
Levels = Sequence[Sequence[tuple[str, str]]]
"""By the depth of attributes, the parts: sort key of the first attribute, digest of the blob."""


@dataclass(frozen=True, slots=True)
class Entry:
    """What the index says of one attribute; of a set that `is_whole` it has every attribute."""

    path: Path
    result: Package | PackageProblem
    is_whole: bool = False

    @classmethod
    def from_json(cls, value: Any) -> Self:
        path = tuple(value["path"])
        if package := value.get("package"):
            return cls(path, Package.from_json({**package, "attribute": path}))
        problem = PackageProblem(str(AttributePath(path)), ProblemKind(value["problem"]), value["message"])
        return cls(path, problem, value["whole"])

    def to_json(self) -> dict[str, Any]:
        if isinstance(self.result, Package):
            package = {key: value for key, value in self.result.to_json().items() if key != "attribute"}
            return {"path": self.path, "package": package}
        kind, message = self.result.kind, self.result.message
        return {"path": self.path, "problem": kind, "message": message, "whole": self.is_whole}


@dataclass(frozen=True, slots=True)
class Absent:
    """There is no attribute `name` in the set at `path`."""

    path: Path
    name: str


def folded(text: str) -> str:
    """In lower case as resolve.nix has it: letters beyond ASCII stay as they are."""
    return text.translate(_LOWER)


def sort_key(path: Path) -> str:
    """Spellings that an image name does not tell apart have the same."""
    return folded(_BELOW.join(path))


def record_key(*parts: object) -> str:
    return hashlib.sha256(canonical_json.encode((_FORMAT, *parts))).hexdigest()


def index_key(pin: Pin, system: str) -> str:
    return record_key(pin.revision, pin.variant, system)


def pack(lines: Iterable[bytes]) -> bytes:
    return zstd.compress(b"\n".join(lines), _LEVEL)


def unpack(content: bytes) -> list[bytes]:
    """Raises StorageError for what `pack` did not make."""
    decompressor = zstd.ZstdDecompressor()
    try:
        text = decompressor.decompress(content, _MAX_LINES_BYTES)
    except (zstd.ZstdError, MemoryError) as error:
        raise StorageError(f"a part of an index cannot be read: {error}") from error
    if not decompressor.eof:
        raise StorageError(f"a part of an index is cut off or larger than {_MAX_LINES_BYTES} bytes")
    return text.split(b"\n") if text else []


def pack_entries(entries: Iterable[Entry]) -> bytes:
    """Each line holds its sort key, too, so that only those that are asked for need be read."""
    return pack(
        sort_key(entry.path).encode() + _BETWEEN + canonical_json.encode(entry.to_json()) for entry in entries
    )


class Indexes:
    """The indexes that are in the store; keeps the parts that were used last."""

    def __init__(self, blobs: BlobStore, records: Records, uses: Uses = UNTRACKED) -> None:
        self._blobs = blobs
        self._records = records
        self._uses = uses
        self._parts: LRUCache[str, dict[bytes, list[bytes]]] = LRUCache(
            _PARTS_BYTES, getsizeof=lambda part: sum(len(line) for lines in part.values() for line in lines)
        )

    async def open(self, pin: Pin, system: str) -> AttributeIndex | None:
        """None where there is no whole index yet."""
        key = index_key(pin, system)
        record = await self._records.get(INDEX_RECORD, key)
        if record is not None and not await self._uses.note(use(UseKind.INDEX, key)):
            record = await self._records.get(INDEX_RECORD, key)
        return None if record is None else AttributeIndex(key, record, self)

    async def lines(self, digest: str) -> list[bytes]:
        """What was packed into that blob. Raises BlobNotFound, StorageError."""
        return await asyncio.to_thread(unpack, await self._blobs.get(Digest.parse(digest)))

    async def part(self, digest: str) -> dict[bytes, list[bytes]]:
        """The entries of one part as JSON, by sort key."""
        if (known := self._parts.get(digest)) is not None:
            return known
        part: dict[bytes, list[bytes]] = {}
        for line in await self.lines(digest):
            key, _, entry = line.partition(_BETWEEN)
            part.setdefault(key, []).append(entry)
        with suppress(ValueError):  # larger than all that is kept
            self._parts[digest] = part
        return part


class AttributeIndex:
    """One index, opened; its parts are fetched as they are needed. All may raise BlobNotFound, StorageError."""

    def __init__(self, key: str, record: Any, indexes: Indexes) -> None:
        self.key = key
        self.catalogue: str = record["catalogue"]
        self.counts: dict[str, int] = record["counts"]
        self._indexes = indexes
        self._levels: Levels = record["levels"]

    async def find(self, name: AttributePath) -> Entry | Absent | None:
        """What `name` means, by the rules of resolve.nix; None where that cannot be told without Nix."""
        entry: Entry | None = None
        for part in name.parts:
            if entry is None or entry.is_whole:
                path = entry.path if entry else ()
                entry = await self._spelled(path, part)
                if entry is None:
                    return Absent(path, part)
            elif isinstance(entry.result, Package):
                # Of what is in a package the index has its outputs alone.
                path = (*entry.path, part)
                beside = await self._at(len(entry.path), sort_key(path))
                entry = next((one for one in beside if one.path == path), None)
                if entry is None:
                    return None
            else:
                return None
        return entry

    def entries(self) -> AsyncIterator[Entry]:
        """Every entry, one part in memory at a time."""
        return entries_of(self._levels, self._indexes)

    async def _spelled(self, path: Path, name: str) -> Entry | None:
        """The attribute of the set at `path` that `name` means: written so, else the first that folds to it."""
        spellings = [name, f"_{name}"] if "0" <= name[:1] <= "9" else [name]
        found = {
            entry.path[-1]: entry
            for spelling in spellings
            for entry in await self._at(len(path) + 1, sort_key((*path, spelling)))
            if entry.path[:-1] == path
        }
        exact = [spelling for spelling in spellings if spelling in found]
        same = exact or sorted(attribute for attribute in found if folded(attribute) in spellings)
        return found[same[0]] if same else None

    async def _at(self, level: int, key: str) -> list[Entry]:
        """The entries with that sort key among attributes `level` names deep and the outputs of these."""
        parts = self._levels[level - 1] if level <= len(self._levels) else []
        place = bisect_right(parts, key, key=lambda part: part[0]) - 1
        if place < 0:
            return []
        part = await self._indexes.part(parts[place][1])
        return [Entry.from_json(json.loads(line)) for line in part.get(_bytes(key), ())]


async def entries_of(levels: Levels, indexes: Indexes) -> AsyncIterator[Entry]:
    for parts in levels:
        for _, digest in parts:
            for line in await indexes.lines(digest):
                yield Entry.from_json(json.loads(line.partition(_BETWEEN)[2]))


def _bytes(key: str) -> bytes:
    return key.encode("utf-8", "surrogatepass")  # what is asked for may be no text at all
