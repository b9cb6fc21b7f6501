"""Several binary caches as one: each path is taken from the first that has a good one."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Final

from cachetools import LRUCache

from nixery_snap import tracing
from nixery_snap.errors import SubstituterError
from nixery_snap.nix.narinfo import NarInfo
from nixery_snap.nix.path_info import PathInfo
from nixery_snap.nix.store_path import StorePath
from nixery_snap.nix_stores.cache_transport import shown_url
from nixery_snap.nix_stores.substituter import DEFAULT_PRIORITY, Substituter

# One that does not even tell its priority in time is asked as if it had none.
_PATIENCE_SECONDS: Final = 1.0
_IN_A_PART: Final = 128  # paths; each Substituter bounds its requests by itself
_ERRORS_REMEMBERED: Final = 16_384


class Substituters:
    """Implements the port PathInfoSource. Asked in order of priority, then as given; bad answers are passed over."""

    def __init__(self, substituters: Sequence[Substituter]) -> None:
        self._given = tuple(substituters)
        self._by_url = {substituter.url: substituter for substituter in substituters}
        self._errors: LRUCache[StorePath, tuple[SubstituterError, ...]] = LRUCache(_ERRORS_REMEMBERED)

    def __iter__(self) -> Iterator[Substituter]:
        return iter(self._given)

    def get(self, url: str) -> Substituter:
        """The one with that URL, which may have its secrets or not. Raises KeyError."""
        return self._by_url[shown_url(url)]

    async def path_infos(self, paths: Collection[StorePath]) -> Mapping[StorePath, PathInfo]:
        if not paths or not self._given:
            return {}
        narinfos = await self._narinfos(await self._order(), paths)
        return {path: narinfo.info for path, narinfo in narinfos.items()}

    async def where(self, path: StorePath) -> NarInfo | None:
        """What the first one says that has `path`; its info's origin tells which that is."""
        return (await self._narinfos(await self._order(), (path,))).get(path)

    async def having(self, paths: Collection[StorePath], urls: Collection[str]) -> set[StorePath]:
        """Those of `paths` that one of those with these URLs has. One that cannot be asked has none."""
        wanted = set(map(shown_url, urls))
        order = [substituter for substituter in await self._order() if substituter.url in wanted]
        return set(await self._narinfos(order, paths))

    def errors_of(self, path: StorePath) -> tuple[SubstituterError, ...]:
        """Why it was not taken from those passed over when it was last asked for."""
        return self._errors.get(path, ())

    async def close(self) -> None:
        await asyncio.gather(*(substituter.close() for substituter in self._given))

    async def _narinfos(
        self, order: Sequence[Substituter], paths: Collection[StorePath]
    ) -> dict[StorePath, NarInfo]:
        """In parts, so that those which the first has not are asked of the next while others are under way."""
        pending, found = list(paths), dict[StorePath, NarInfo]()
        parts = (pending[begin : begin + _IN_A_PART] for begin in range(0, len(pending), _IN_A_PART))
        for narinfos in await asyncio.gather(*(self._firsts(order, part) for part in parts)):
            found |= narinfos
        return found

    async def _firsts(
        self, order: Iterable[Substituter], paths: Sequence[StorePath]
    ) -> Mapping[StorePath, NarInfo]:
        found: dict[StorePath, NarInfo] = {}
        errors: defaultdict[StorePath, list[SubstituterError]] = defaultdict(list)
        for substituter in order:
            left = [path for path in paths if path not in found]
            if not left:
                break
            with tracing.span("narinfos", {"substituter": substituter.url, "paths": len(left)}):
                answers = await substituter.narinfos(left)
            for path, said in answers.items():
                if isinstance(said, NarInfo):
                    found[path] = said
                else:
                    errors[path].append(said)
        if self._errors:
            for path in paths:
                self._errors.pop(path, None)
        for path, several in errors.items():
            self._errors[path] = tuple(several)
        return found

    async def _order(self) -> list[Substituter]:
        unknown = [one for one in self._given if one.known_priority is None]
        if unknown:
            # Each goes on by itself when it takes longer: somebody else may be waiting for it too.
            tasks = {asyncio.ensure_future(_priority(one)) for one in unknown}
            await asyncio.wait(tasks, timeout=_PATIENCE_SECONDS)
        return sorted(
            self._given,
            key=lambda one: DEFAULT_PRIORITY if one.known_priority is None else one.known_priority,
        )


async def _priority(substituter: Substituter) -> None:
    with suppress(SubstituterError):  # asking it for a path will say the same
        await substituter.priority()
