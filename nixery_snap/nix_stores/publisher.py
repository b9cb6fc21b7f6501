"""Sees to it that clients can fetch what a snapshotter image names: publishes what no cache of theirs has."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Collection
from typing import Literal

import structlog

from nixery_snap import metrics
from nixery_snap.errors import PathsNotFetchable
from nixery_snap.nix.closure_info import closure_info, closure_info_entries
from nixery_snap.nix.narinfo import NarInfo
from nixery_snap.nix.path_info import Closure, PathInfo, references_first
from nixery_snap.nix.store_path import StorePath
from nixery_snap.nix_stores.own_cache import OwnCache
from nixery_snap.nix_stores.substituter import Substituter
from nixery_snap.nix_stores.substituters import Substituters
from nixery_snap.ports import Progress
from nixery_snap.steps import step

log = structlog.get_logger()

Publish = Literal["missing", "all", "off"]


class CachePublisher:
    """Implements the port Publisher.

    `substituters` are all that are known, our own cache `own` among them; `clients` are the URLs of those that
    clients fetch from. With `names_closure_info`, images name a closure-info path.
    """

    def __init__(
        self,
        cache: OwnCache,
        own: Substituter,
        substituters: Substituters,
        clients: Collection[str],
        upstreams: Collection[str],
        publish: Publish,
        *,
        names_closure_info: bool,
    ) -> None:
        self._cache = cache
        self._own = own
        self._substituters = substituters
        self._publish = publish
        self._names_closure_info = names_closure_info
        # What our cache reads through is fetchable by those who fetch from it.
        self._clients = frozenset({*clients, *(upstreams if own.url in clients else ())})
        self._writing: dict[StorePath, asyncio.Task[NarInfo]] = {}
        self._turns = asyncio.Semaphore(os.cpu_count() or 1)

    def closure_info(self, closure: Closure) -> StorePath | None:
        return closure_info(closure)[0].path if self._names_closure_info else None

    async def offer(self, closure: Closure, progress: Progress) -> None:
        missing = await self._missing(closure.values())
        if missing and (self._publish == "off" or self._own.url not in self._clients):
            raise PathsNotFetchable(tuple(str(info.path) for info in missing))
        await self._write(closure, missing, progress)
        if self._names_closure_info:
            info, content = closure_info(closure)
            if await self._lacking((info,), {self._own.url}):
                await self._cache.add_entries(info, closure_info_entries(content))

    async def publish(self, closure: Closure, progress: Progress) -> None:
        if self._publish != "off":
            await self._write(closure, await self._missing(closure.values()), progress)

    async def push(self, closure: Closure, progress: Progress, *, every: bool) -> int:
        """Write what no cache of the clients has, or with `every` all of it; returns how many paths."""
        infos = list(closure.values())
        missing = await self._lacking(infos, {self._own.url}) if every else await self._missing(infos)
        await self._write(closure, missing, progress)
        return len(missing)

    async def _missing(self, infos: Collection[PathInfo]) -> list[PathInfo]:
        """Those that are to be published."""
        if self._publish == "all":
            return await self._lacking(infos, {self._own.url})
        return await self._lacking(
            [info for info in infos if info.origin not in self._clients], self._clients
        )

    async def _lacking(self, infos: Collection[PathInfo], urls: Collection[str]) -> list[PathInfo]:
        """Those that none of the substituters with these URLs has, at least no good one."""
        found = await self._substituters.having([info.path for info in infos], urls)
        return [info for info in infos if info.path not in found]

    async def _write(self, closure: Closure, infos: Collection[PathInfo], progress: Progress) -> None:
        """Contents in any order, then narinfos, references first: a path is never there without its closure."""
        if not infos:
            return
        progress(f"publishing {len(infos)} store paths")
        with step("publish", paths=len(infos)):
            written = await asyncio.gather(*(self._content(info) for info in infos))
            narinfos = {narinfo.info.path: narinfo for narinfo in written}
            for info in references_first(closure):
                if narinfo := narinfos.get(info.path):
                    await self._cache.announce(narinfo)
        metrics.PUBLISHED_PATHS.inc(len(infos))
        metrics.PUBLISHED_BYTES.inc(sum(narinfo.file_size or 0 for narinfo in written))
        log.info("published", paths=len(infos))

    async def _content(self, info: PathInfo) -> NarInfo:
        """One task for each path."""
        task = self._writing.get(info.path)
        if task is None:
            task = self._writing[info.path] = asyncio.ensure_future(self._write_content(info))
            task.add_done_callback(lambda _: self._writing.pop(info.path))
        return await asyncio.shield(task)

    async def _write_content(self, info: PathInfo) -> NarInfo:
        async with self._turns:
            if not info.origin:
                return await self._cache.add_local(info)
            substituter = self._substituters.get(info.origin)
            narinfo = await substituter.narinfo(info.path)
            if narinfo is None:
                raise PathsNotFetchable((str(info.path),))
            return await self._cache.mirror(substituter, narinfo)


class NothingPublished:
    """Implements the port Publisher for a node: what it makes is in its own store."""

    def closure_info(self, closure: Closure) -> None:
        return None

    async def offer(self, closure: Closure, progress: Progress) -> None:
        return

    async def publish(self, closure: Closure, progress: Progress) -> None:
        return
