"""Images of this node without a registry: from archives in the Nix store, and assembled here by name."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Final

import structlog

from nixery_snap.errors import ContainerdRefused, ContainerdTooOld, InvalidArchive, ManifestNotFound
from nixery_snap.image_service import archive
from nixery_snap.image_service.annotations import NamedPaths
from nixery_snap.image_service.containerd import Containerd
from nixery_snap.image_service.gc_roots import GcRoots
from nixery_snap.image_service.images import CRI_LABELS, check_snapshotter, not_configured, settle
from nixery_snap.image_service.leases import Leases
from nixery_snap.image_service.options import node_architecture
from nixery_snap.image_service.prefetch import Prefetcher
from nixery_snap.image_service.references import NodeReference
from nixery_snap.image_service.transfer import import_archive
from nixery_snap.imaging.coalesce import Coalescer
from nixery_snap.imaging.oci_layout import archived, layout_files
from nixery_snap.imaging.pipeline import Pipeline
from nixery_snap.imaging.request import ARCHITECTURES, ImageFormat, NameGrammar
from nixery_snap.nix.store_path import StorePath
from nixery_snap.oci.digest import Digest
from nixery_snap.oci.manifest import Manifest
from nixery_snap.ports import BlobStore

log = structlog.get_logger()

_READ_BYTES: Final = 256 * 1024
_WITH_TRANSFER: Final = (1, 7)
_NO_UNPACKING: Final = "no unpack platforms defined"


class NodeImages:
    """`store_root` is the directory that physically holds `nix/store`."""

    def __init__(
        self,
        containerd: Containerd,
        prefetcher: Prefetcher,
        roots: GcRoots,
        leases: Leases,
        pipeline: Pipeline,
        grammar: NameGrammar,
        blobs: BlobStore,
        store_root: Path,
        snapshotter: str,
    ) -> None:
        self._containerd = containerd
        self._prefetcher = prefetcher
        self._roots = roots
        self._leases = leases
        self._pipeline = pipeline
        self._grammar = grammar
        self._blobs = blobs
        self._store_root = store_root
        self._snapshotter = snapshotter
        self._pulls: Coalescer[Digest] = Coalescer()
        self._architecture = node_architecture()

    async def pull(self, reference: NodeReference) -> Digest:
        """The image's id, once a container can be made of it. Equal pulls are one.

        Raises what making, fetching and importing the image raise.
        """
        return await self._pulls.run(reference.stored_name, lambda: self._pull(reference))

    async def drain(self, timeout_seconds: float) -> int:
        return await self._pulls.drain(timeout_seconds)

    async def _pull(self, reference: NodeReference) -> Digest:
        version, numbers = await self._containerd.version()
        if numbers < _WITH_TRANSFER:
            raise ContainerdTooOld(version)
        await check_snapshotter(self._containerd, self._snapshotter, self._architecture)
        if reference.archive:
            return await self._pull_archive(reference, reference.archive)
        return await self._pull_by_name(reference)

    async def _pull_archive(self, reference: NodeReference, path: StorePath) -> Digest:
        key = f"archive-{path.hash_part}"
        try:
            with self._roots.used(key):
                await self._prefetcher.fetch(key, NamedPaths(frozenset([path])))
                file = self._store_root / str(path).lstrip("/")
                if not file.is_file() or file.is_symlink():
                    raise InvalidArchive(str(path), "it is not a file")
                found = await asyncio.to_thread(archive.look_into, file, str(path), self._architecture)
                return await self._import(reference, found.digest, found.manifest, _chunks(file))
        finally:
            await asyncio.to_thread(self._roots.remove, key)

    async def _pull_by_name(self, reference: NodeReference) -> Digest:
        request = self._grammar.parse(reference.name, reference.tag)
        if not reference.name.startswith(tuple(f"{known}/" for known in ImageFormat)):
            request = replace(request, format=ImageFormat.SNAPSHOTTER)
        if request.any_system:
            system = ARCHITECTURES.get(self._architecture, request.system)
            request = replace(request, system=system)
        image = await self._pipeline.image(
            request, progress=lambda line: log.info("making", image=reference.stored_name, step=line)
        )
        content = await self._blobs.get(image.digest)
        chunks = archived(layout_files(self._blobs, content))
        return await self._import(reference, image.digest, Manifest.parse(content), chunks)

    async def _import(
        self,
        reference: NodeReference,
        digest: Digest | None,
        manifest: Manifest | None,
        chunks: Iterator[bytes],
    ) -> Digest:
        if reference.digest not in {None, digest}:
            raise ManifestNotFound(str(reference.digest))
        key = digest.hex if digest else ""
        with self._roots.used(key):
            if manifest:
                await self._prefetcher.fetch(key, NamedPaths.of(manifest))
            await self._transfer(reference, chunks)
            config = await settle(self._containerd, reference, self._snapshotter, self._architecture)
        log.info("imported", image=reference.stored_name, digest=str(digest), id=str(config))
        return config

    async def _transfer(self, reference: NodeReference, chunks: Iterator[bytes]) -> None:
        name, snapshotter, architecture = reference.stored_name, self._snapshotter, self._architecture
        try:
            async with self._leases.held() as lease:
                await import_archive(
                    self._containerd, chunks, name, snapshotter, architecture, CRI_LABELS, lease
                )
        except ContainerdRefused as error:
            if _NO_UNPACKING in error.reason:
                raise not_configured(snapshotter, error.reason, architecture) from error
            raise


def _chunks(file: Path) -> Iterator[bytes]:
    with file.open("rb") as source:
        while chunk := source.read(_READ_BYTES):
            yield chunk
