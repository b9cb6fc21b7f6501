"""Images of registries: their store paths are fetched ahead of the pull that containerd does."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection
from contextlib import ExitStack, asynccontextmanager

import structlog

from nixery_snap import metrics
from nixery_snap.errors import NixerySnapError
from nixery_snap.image_service.annotations import NamedPaths
from nixery_snap.image_service.gc_roots import GcRoots
from nixery_snap.image_service.generated.cri_pb2 import AuthConfig
from nixery_snap.image_service.prefetch import Prefetcher
from nixery_snap.image_service.registry_client import Reference, RegistryClient

log = structlog.get_logger()


class RegistryImages:
    """`registries` are those that may have snapshotter images; when empty, all of them."""

    def __init__(
        self, client: RegistryClient, prefetcher: Prefetcher, roots: GcRoots, registries: Collection[str]
    ) -> None:
        self._client = client
        self._prefetcher = prefetcher
        self._roots = roots
        self._registries = frozenset(registries)

    @asynccontextmanager
    async def prefetched(self, image: str, auth: AuthConfig) -> AsyncIterator[None]:
        """Inside, the image's store paths are there and stay, as far as they could be fetched. Raises nothing."""
        with ExitStack() as held:
            await self._prefetch(image, auth, held)
            yield

    async def _prefetch(self, image: str, auth: AuthConfig, held: ExitStack) -> None:
        try:
            reference = Reference.parse(image)
            if self._registries and reference.host not in self._registries:
                return
            digest, manifest = await self._client.manifest(reference, auth)
            if paths := NamedPaths.of(manifest):
                held.enter_context(self._roots.used(digest.hex))
                await self._prefetcher.fetch(digest.hex, paths)
        except NixerySnapError as error:
            log.warning("prefetch-failed", image=image[:300], reason=str(error)[:2000])
            metrics.PREFETCH_FAILURES.inc()
        except Exception:
            log.exception("prefetch-crashed", image=image[:300])
            metrics.PREFETCH_FAILURES.inc()
