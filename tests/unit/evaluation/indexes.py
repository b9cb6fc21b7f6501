"""Indexes made by hand, stored as the real ones are."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

from nixery_snap.errors import PackageProblem, ProblemKind
from nixery_snap.evaluation.index import (
    INDEX_RECORD,
    AttributeIndex,
    Entry,
    Indexes,
    Path,
    index_key,
    pack,
    pack_entries,
    sort_key,
)
from nixery_snap.nix.attribute_path import AttributePath
from nixery_snap.object_store.blobs import Blobs
from nixery_snap.object_store.records import StoredRecords
from nixery_snap.object_store.store import ObjectStore
from nixery_snap.oci import canonical_json
from nixery_snap.ports import Package, Pin
from tests.unit.stores import store_path

PIN = Pin("revision")
SYSTEM = "x86_64-linux"


def package(path: Path, name: str = "", program: str | None = None, output: str = "out") -> Package:
    name = name or f"{path[-1].strip('_') or 'x'}-1.0"
    label = hashlib.sha256("\t".join((*path, output)).encode()).hexdigest()
    return Package(
        AttributePath(path),
        name,
        str(store_path(f"{label}.drv")),
        {output: store_path(label)},
        program,
        ("MIT",),
        5,
    )


def problem(path: Path, kind: ProblemKind = ProblemKind.WRONG_KIND) -> PackageProblem:
    return PackageProblem(str(AttributePath(path)), kind, "it is odd")


@dataclass
class Made:
    """A store with one index in it."""

    objects: ObjectStore = field(default_factory=lambda: ObjectStore("memory://"))

    def __post_init__(self) -> None:
        self.blobs = Blobs(self.objects)
        self.records = StoredRecords(self.objects, 2**20)
        self.indexes = Indexes(self.blobs, self.records)

    async def add(
        self, entries: Sequence[Entry], *, outputs: Sequence[Entry] = (), per_part: int = 3, pin: Pin = PIN
    ) -> AttributeIndex:
        """`outputs` are entries of outputs, which stand with their packages."""
        levels: list[list[tuple[str, str]]] = []
        depth = max((len(entry.path) for entry in entries), default=0)
        for level in range(1, depth + 1):
            some = sorted(
                (e for e in entries if len(e.path) == level), key=lambda e: (sort_key(e.path), e.path)
            )
            parts: list[list[Entry]] = [[]]
            for _, group in itertools.groupby(some, key=lambda e: sort_key(e.path)):
                if len(parts[-1]) >= per_part:
                    parts.append([])
                for entry in group:
                    parts[-1] += [entry, *(one for one in outputs if one.path[:-1] == entry.path)]
            levels.append([])
            for part in parts:
                digest = await self.blobs.put(pack_entries(part))
                levels[-1].append((sort_key(part[0].path), str(digest)))
        lines = [
            canonical_json.encode([e.path, e.result.name, e.result.main_program, f"all about {e.path[-1]}"])
            for e in entries
            if isinstance(e.result, Package)
        ]
        record = {"levels": levels, "catalogue": str(await self.blobs.put(pack(lines))), "counts": {}}
        await self.records.put(INDEX_RECORD, index_key(pin, SYSTEM), record)
        index = await self.indexes.open(pin, SYSTEM)
        assert index is not None
        return index
