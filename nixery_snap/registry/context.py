"""What the endpoints share: the parts of the application and the helpers of several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from aiohttp import web
from cachetools import LRUCache

from nixery_snap.imaging.again import LostLayers
from nixery_snap.imaging.coalesce import Coalescer
from nixery_snap.imaging.pipeline import Pipeline
from nixery_snap.imaging.request import ImageFormat, NameGrammar
from nixery_snap.oci.digest import Digest
from nixery_snap.ports import UNTRACKED, BlobStore, ImageNames, Uses
from nixery_snap.web.forwarded import asked_host
from nixery_snap.web.located import IMMUTABLE


@dataclass(frozen=True, slots=True)
class Served:
    """What metrics tell of a manifest or index: `saved_bytes` are in no layer, but in store paths that it names."""

    format: ImageFormat
    saved_bytes: int = 0


@dataclass(slots=True)
class Registry:
    """`memory` keeps what is asked for often by the digest it is served under, bounded by its bytes."""

    pipeline: Pipeline
    blobs: BlobStore
    grammar: NameGrammar
    wait_seconds: float
    memory: LRUCache[str, tuple[str, bytes]]
    index_formats: frozenset[ImageFormat] = frozenset()
    """Whose images are answered for all systems at once, where a name says no architecture."""
    served: LRUCache[Digest, Served] = field(default_factory=lambda: LRUCache(4096))
    docker_digests: LRUCache[Digest, Digest] = field(default_factory=lambda: LRUCache(4096))
    uses: Uses = UNTRACKED
    lost_layers: LostLayers | None = None
    names: ImageNames | None = None
    """What the catalogue lists; None for no catalogue."""
    listings: Coalescer[Sequence[str]] = field(default_factory=Coalescer)
    draining: bool = field(default=False)

    def forget(self) -> None:
        """What was seen in the store."""
        self.memory.clear()
        self.docker_digests.clear()


REGISTRY: Final = web.AppKey("registry", Registry)
SEPARATE: Final = web.AppKey("separate", Mapping[str, Registry])


def registry_of(request: web.Request) -> Registry:
    """The one that has the source which the asked name is of."""
    shared = request.app[REGISTRY]
    source = shared.grammar.source_of(request.match_info["name"], asked_host(request))
    return request.app[SEPARATE].get(source, shared)


def new_memory(memory_bytes: int) -> LRUCache[str, tuple[str, bytes]]:
    return LRUCache(memory_bytes, getsizeof=lambda item: len(item[1]))


def content_headers(digest: Digest, media_type: str) -> dict[str, str]:
    return {
        "Content-Type": media_type,
        "Docker-Content-Digest": str(digest),
        "ETag": etag(digest),
        "Cache-Control": IMMUTABLE,
    }


def etag(digest: Digest) -> str:
    return f'"{digest}"'
