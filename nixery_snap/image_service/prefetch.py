"""Fetches all store paths of an image at once, before the snapshotter asks for them one after the other."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection
from typing import Final

import structlog

from nixery_snap import metrics
from nixery_snap.errors import NixerySnapError, PathsNotSubstituted
from nixery_snap.image_service.annotations import NamedPaths
from nixery_snap.image_service.gc_roots import GcRoots
from nixery_snap.imaging.coalesce import Coalescer
from nixery_snap.nix.store_path import StorePath
from nixery_snap.nix_stores.realiser import NixRealiser
from nixery_snap.ports import PathInfoSource

log = structlog.get_logger()

_SCRATCH: Final = "fetching"


class Prefetcher:
    """`local` knows what is in the store; `substituters` are shown to people whose paths are in none of them."""

    def __init__(
        self, local: PathInfoSource, realiser: NixRealiser, roots: GcRoots, substituters: tuple[str, ...]
    ) -> None:
        self._local = local
        self._realiser = realiser
        self._roots = roots
        self._substituters = substituters
        self._images: Coalescer[None] = Coalescer()
        self._under_way: dict[StorePath, asyncio.Task[None]] = {}

    async def fetch(self, key: str, named: NamedPaths) -> None:
        """Afterwards all of them are in the store, kept from its garbage collector as long as the roots `key` are.

        Those to spare may be missing. Equal calls share one fetch, which goes on when nobody waits for it any more.
        Raises PathsNotSubstituted, NixUnusable, RealisationTimedOut, StorageError.
        """

        async def work() -> None:
            with self._roots.used(key):
                try:
                    await self._fetch(key, {*named})
                except PathsNotSubstituted as error:
                    if not named.spare:
                        raise
                    log.warning("closure-info-not-fetched", key=key, reason=str(error))
                    await self._fetch(key, named.paths)

        if named:
            await self._images.run(key, work)

    async def drain(self, timeout_seconds: float) -> int:
        return await self._images.drain(timeout_seconds)

    async def used_bytes(self) -> tuple[int, int]:
        """How many bytes, and how many paths, images keep in the Nix store."""
        paths = await asyncio.to_thread(self._roots.all_paths)
        infos = await self._local.path_infos(paths)
        closure, pending = set(), [path for path in paths if path in infos]
        while pending:
            path = pending.pop()
            if path not in closure and path in infos:
                closure.add(path)
                pending += infos[path].references
        return sum(infos[path].nar_size for path in closure), len(closure)

    async def _fetch(self, key: str, paths: Collection[StorePath]) -> None:
        begun = time.perf_counter()
        missing = await self._missing(paths)
        if not missing and await asyncio.to_thread(self._roots.hold, key, paths):
            return
        if others := {self._under_way[path] for path in missing if path in self._under_way}:
            # Nix would wait for the other process path by path; what only this image lacks is fetched meanwhile.
            mine = [path for path in missing if path not in self._under_way]
            await asyncio.gather(
                *map(_quietly, others), _quietly(self._start(f"{_SCRATCH}-{key}", mine, mine))
            )
            self._roots.remove(f"{_SCRATCH}-{key}")
            missing = await self._missing(paths)
        try:
            with metrics.PREFETCHES_IN_FLIGHT.track_inprogress():
                await self._start(key, paths, missing)
        except NixerySnapError:
            metrics.PREFETCH_SECONDS.labels("failed").observe(time.perf_counter() - begun)
            raise
        if missing:
            seconds = time.perf_counter() - begun
            infos = await self._local.path_infos(missing)  # and of what they refer to
            metrics.PREFETCH_SECONDS.labels("ok").observe(seconds)
            metrics.PREFETCHED_PATHS.inc(len(missing))
            metrics.PREFETCHED_BYTES.inc(sum(infos[path].nar_size for path in missing if path in infos))
            log.info("prefetched", key=key, paths=len(missing), of=len(paths), seconds=round(seconds, 4))

    async def _missing(self, paths: Collection[StorePath]) -> list[StorePath]:
        known = await self._local.path_infos(paths)
        return [path for path in paths if path not in known]

    def _start(
        self, key: str, paths: Collection[StorePath], missing: Collection[StorePath]
    ) -> asyncio.Task[None]:
        task = asyncio.ensure_future(self._realise(key, paths))
        for path in missing:
            self._under_way[path] = task

        def finished(_: asyncio.Task[None]) -> None:
            for path in missing:
                if self._under_way.get(path) is task:
                    del self._under_way[path]

        task.add_done_callback(finished)
        return task

    async def _realise(self, key: str, paths: Collection[StorePath]) -> None:
        if paths:
            with self._roots.used(key):
                link = await asyncio.to_thread(self._roots.link, key)
                await self._realiser.fetch(
                    link, paths, self._substituters, lambda line: log.info("fetching", key=key, step=line)
                )


async def _quietly(task: asyncio.Task[None]) -> None:
    """Wait for it; whoever started it hears of its failure, and what it did not fetch is asked for again."""
    await asyncio.wait({task})
    if not task.cancelled():
        task.exception()
