"""Searches an index: for people who know a part of a name, and for near matches of names that are none."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final
from weakref import WeakValueDictionary

from cachetools import LRUCache
from rapidfuzz.distance import OSA

from nixery_snap.errors import InvalidFormat, NotFound, UnsupportedSystem
from nixery_snap.evaluation.index import AttributeIndex, Indexes, folded
from nixery_snap.nix.attribute_path import AttributePath
from nixery_snap.ports import PackageSource

MAX_QUERY: Final = 200  # characters
MAX_WORDS: Final = 8
MAX_PAGE: Final = 100
_CATALOGUES: Final = 4  # of nixpkgs about 60 MB each
_SUGGESTIONS: Final = 3
_MAX_SLIPS: Final = 3
_BETWEEN: Final = "\n"

# How a word is in a package, the best first.
_EXACT, _PREFIX, _IN_NAME, _IN_DESCRIPTION, _FUZZY = range(5)


@dataclass(frozen=True, slots=True)
class Listed:
    """A package as it is searched for."""

    attribute: AttributePath
    name: str
    main_program: str | None
    description: str

    def to_json(self) -> dict[str, Any]:
        return {
            "attribute": str(self.attribute),
            "name": self.name,
            "mainProgram": self.main_program,
            "description": self.description,
        }


@dataclass(frozen=True, slots=True)
class Page:
    """Some of `total` packages, the best first."""

    total: int
    packages: tuple[Listed, ...]


class Catalogue:
    """The packages of one index, in memory. What it is asked for takes a while: ask in a thread."""

    def __init__(self, packages: Iterable[Listed]) -> None:
        # Among equals what is not nested comes first, then what is short.
        self._packages = sorted(packages, key=_order)
        # What people know it by: its attribute as an image name has it, main program, derivation, whole path.
        self._names = [
            (
                folded(one.attribute.parts[-1]).lstrip("_"),
                folded(one.main_program or ""),
                folded(one.name),
                folded(str(one.attribute)),
            )
            for one in self._packages
        ]
        self._texts = [
            _BETWEEN.join((*names, one.description.lower()))
            for one, names in zip(self._packages, self._names, strict=True)
        ]

    def search(self, query: str, offset: int, limit: int) -> Page:
        """Packages that have every word of `query`; where there are none, those that come near.

        Raises InvalidFormat.
        """
        words = query.lower().split()
        if not words or len(words) > MAX_WORDS or len(query) > MAX_QUERY:
            raise InvalidFormat(
                "search", query, f"it has 1 to {MAX_WORDS} words and at most {MAX_QUERY} characters"
            )
        ranked = [
            (self._rank(number, words), number)
            for number, text in enumerate(self._texts)
            if all(word in text for word in words)
        ] or [((_FUZZY, slips), number) for number, slips in self._fuzzy(" ".join(words))]
        ranked.sort()
        page = ranked[offset : offset + limit]
        return Page(len(ranked), tuple(self._packages[number] for _, number in page))

    def near(self, name: str, path: tuple[str, ...] = ()) -> tuple[str, ...]:
        """What somebody can have meant by `name` in the set at `path`: attribute paths, the likeliest first."""
        wanted = folded(name)
        # As many slips count less in the set that was meant.
        slips = {
            number: count - (2 if self._packages[number].attribute.parts[:-1] == path else 0)
            for number, count in self._fuzzy(wanted)
        }
        slips |= {number: -9 for number, names in enumerate(self._names) if names[1] == wanted}
        best = sorted(slips, key=lambda number: (slips[number], number))
        return tuple(str(self._packages[number].attribute) for number in best[:_SUGGESTIONS])

    def _rank(self, number: int, words: Iterable[str]) -> tuple[int, int]:
        """Of the worst word, and of all together."""
        ranks = [self._word(number, word) for word in words]
        return max(ranks), sum(ranks)

    def _word(self, number: int, word: str) -> int:
        names = self._names[number]
        if word in names:
            return _EXACT
        if any(name.startswith(word) for name in names):
            return _PREFIX
        return _IN_NAME if any(word in name for name in names) else _IN_DESCRIPTION

    def _fuzzy(self, wanted: str) -> Iterator[tuple[int, int]]:
        """Packages whose attribute is `wanted` but for slips, letters that are wrong or change places; and how many."""
        most = min(len(wanted) // 3, _MAX_SLIPS)
        for number, names in enumerate(self._names):
            if (slips := OSA.distance(wanted, names[0], score_cutoff=most)) <= most:
                yield number, slips


def _order(one: Listed) -> tuple[int, int, AttributePath]:
    return len(one.attribute.parts), len(one.attribute.parts[-1]), one.attribute


class Catalogues:
    """Keeps the catalogues that were used last."""

    def __init__(self, indexes: Indexes) -> None:
        self._indexes = indexes
        self._known: LRUCache[str, asyncio.Future[Catalogue]] = LRUCache(_CATALOGUES)

    async def open(self, index: AttributeIndex) -> Catalogue:
        """Raises BlobNotFound, StorageError."""
        if (known := self._known.get(index.catalogue)) is not None and not known.cancelled():
            return await asyncio.shield(known)
        loading = self._known[index.catalogue] = asyncio.ensure_future(self._load(index.catalogue))
        try:
            return await asyncio.shield(loading)
        except Exception:
            self._known.pop(index.catalogue, None)
            raise

    async def _load(self, digest: str) -> Catalogue:
        lines = await self._indexes.lines(digest)
        return await asyncio.to_thread(_parse, lines)


class _Turns:
    """One search at a time, as each slows all else down; of several in line no two are one client's."""

    def __init__(self) -> None:
        self._turn = asyncio.Semaphore(1)
        self._of: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()

    @asynccontextmanager
    async def of(self, client: str) -> AsyncIterator[None]:
        place_in_line = self._of.setdefault(client, asyncio.Semaphore(1))
        async with place_in_line, self._turn:
            yield


@dataclass(frozen=True, slots=True)
class Found:
    """A page of what was found in one revision."""

    revision: str
    system: str
    page: Page


@dataclass(frozen=True, slots=True)
class PackageSearch:
    """Searches sources, by their names, where there is an index of what a tag means now."""

    sources: Mapping[str, PackageSource]
    systems: tuple[str, ...]
    indexes: Indexes
    catalogues: Catalogues
    _turns: _Turns = field(default_factory=_Turns, init=False)

    async def search(
        self,
        query: str,
        source: str,
        tag: str,
        system: str | None = None,
        offset: int = 0,
        limit: int = 20,
        client: str = "",
    ) -> Found:
        """Without a `system` the first one is meant. Clients take turns.

        Raises NotFound where there is no source or index, UnsupportedSystem, TagNotFound, SourceError, InvalidFormat,
        BlobNotFound, StorageError.
        """
        system = system or self.systems[0]
        if system not in self.systems:
            raise UnsupportedSystem(system, self.systems)
        if source not in self.sources:
            # Not which there are: that is not for everybody.
            raise NotFound(f"there is no package source {source!r}")
        pin = self.sources[source].current(tag) or await self.sources[source].pin(tag)
        index = await self.indexes.open(pin, system)
        if index is None:
            raise NotFound(
                f"there is no index of revision {pin.revision} for {system}; `nixery-snap index` makes it"
            )
        catalogue = await self.catalogues.open(index)
        async with self._turns.of(client):
            page = await asyncio.to_thread(catalogue.search, query, offset, limit)
        return Found(pin.revision, system, page)


def _parse(lines: Iterable[bytes]) -> Catalogue:
    return Catalogue(Listed(AttributePath(tuple(path)), *rest) for path, *rest in map(json.loads, lines))
