"""Realises single store paths for the snapshotter, together with what else their image needs."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path
from typing import Final

import structlog
from cachetools import LRUCache

from nixery_snap import metrics
from nixery_snap.errors import ContainerdError, InvalidFormat, NixerySnapError, StorageError
from nixery_snap.image_service.annotations import NamedPaths
from nixery_snap.image_service.containerd import Containerd
from nixery_snap.image_service.gc_roots import GcRoots
from nixery_snap.image_service.prefetch import Prefetcher
from nixery_snap.nix.store_path import StorePath
from nixery_snap.nix_stores.realiser import NixRealiser
from nixery_snap.oci.digest import Digest
from nixery_snap.oci.manifest import MAX_MANIFEST_BYTES, Manifest

log = structlog.get_logger()

_REMEMBERED_MANIFESTS: Final = 1024


class Builder:
    """Knows the neighbours of a path from the manifests in containerd's content store."""

    def __init__(
        self, containerd: Containerd, prefetcher: Prefetcher, realiser: NixRealiser, roots: GcRoots
    ) -> None:
        self._containerd = containerd
        self._prefetcher = prefetcher
        self._realiser = realiser
        self._roots = roots
        self._manifests: LRUCache[Digest, NamedPaths] = LRUCache(_REMEMBERED_MANIFESTS)
        self._looking = asyncio.Lock()

    async def realise(self, out_link: str, store_path: str) -> None:
        """Afterwards the path is there and `out_link` is a link that keeps it.

        Raises InvalidFormat, PathsNotSubstituted, RealisationTimedOut, StorageError.
        """
        path, link = StorePath.parse(store_path), Path(out_link)
        if not link.is_absolute() or ".." in link.parts:
            raise InvalidFormat("link", out_link, "it must be an absolute path")
        with suppress(NixerySnapError):  # the path by itself may still be had
            if image := await self._image_with(path):
                if await self._linked(image, link, path):
                    return
                await self._prefetcher.fetch(image.hex, self._manifests[image])
                if await self._linked(image, link, path):
                    return
        await asyncio.to_thread(_make_directory, link.parent)
        await self._realiser.fetch(link, [path], (), lambda line: None)
        metrics.BUILDER_REQUESTS.labels("nix").inc()

    async def _linked(self, image: Digest, link: Path, path: StorePath) -> bool:
        """Whether that could be done without Nix."""

        def add_link() -> bool:
            _make_directory(link.parent)
            return self._roots.add_link(image.hex, link, path)

        linked = await asyncio.to_thread(add_link)
        if linked:
            metrics.BUILDER_REQUESTS.labels("link").inc()
        return linked

    async def _image_with(self, path: StorePath) -> Digest | None:
        async with self._looking:
            if not (found := self._known(path)):
                await self._look()
                found = self._known(path)
        return found

    def _known(self, path: StorePath) -> Digest | None:
        return next((digest for digest, paths in self._manifests.items() if path in paths), None)

    async def _look(self) -> None:
        """Manifests are blobs that refer to a config; containerd has them before it unpacks their layers."""
        for digest in await self._containerd.content_with_label("containerd.io/gc.ref.content.config"):
            if digest in self._manifests:
                continue
            try:
                manifest = Manifest.parse(await self._containerd.content(digest, MAX_MANIFEST_BYTES))
                self._manifests[digest] = NamedPaths.of(manifest)
            except (ContainerdError, InvalidFormat) as error:
                log.info("manifest-unread", digest=str(digest), reason=str(error))
                self._manifests[digest] = NamedPaths(frozenset())


def _make_directory(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"no directory {path}: {error}") from error
