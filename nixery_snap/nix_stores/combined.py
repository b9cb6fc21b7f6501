"""The local store and the substituters as one: whatever the local store has is taken from there."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterator, Mapping

from nixery_snap.nix.file_tree import FileEntry, Node
from nixery_snap.nix.path_info import PathInfo
from nixery_snap.nix.store_path import StorePath
from nixery_snap.ports import PathInfoSource, StoreContents


class CombinedPathInfos:
    """Implements the port PathInfoSource; later sources are asked for what earlier ones do not know."""

    def __init__(self, *sources: PathInfoSource) -> None:
        self._sources = sources

    async def path_infos(self, paths: Collection[StorePath]) -> Mapping[StorePath, PathInfo]:
        known: dict[StorePath, PathInfo] = {}
        for source in self._sources:
            if missing := [path for path in paths if path not in known]:
                known = {**await source.path_infos(missing), **known}
        return known


class CombinedContents:
    """Implements the port StoreContents: contents come from where the path info came from."""

    def __init__(self, local: StoreContents, substituted: StoreContents) -> None:
        self._local = local
        self._substituted = substituted

    async def roots(self, infos: Collection[PathInfo]) -> Mapping[StorePath, Node]:
        local, substituted = await asyncio.gather(
            self._local.roots([info for info in infos if not info.origin]),
            self._substituted.roots([info for info in infos if info.origin]),
        )
        return {**local, **substituted}

    async def file_tree(self, info: PathInfo) -> Node:
        return await self._where(info).file_tree(info)

    def entries(self, info: PathInfo) -> Iterator[FileEntry]:
        return self._where(info).entries(info)

    def _where(self, info: PathInfo) -> StoreContents:
        return self._substituted if info.origin else self._local
