"""What the endpoints share: the parts of the application and the helpers of several."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from aiohttp import web
from cachetools import LRUCache

from nixery_snap.imaging.again import LostLayers
from nixery_snap.imaging.pipeline import Pipeline
from nixery_snap.imaging.request import ImageFormat, NameGrammar
from nixery_snap.oci.digest import Digest
from nixery_snap.ports import UNTRACKED, BlobStore, Uses
from nixery_snap.web.located import IMMUTABLE


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
    docker_digests: LRUCache[Digest, Digest] = field(default_factory=lambda: LRUCache(4096))
    uses: Uses = UNTRACKED
    lost_layers: LostLayers | None = None
    draining: bool = field(default=False)

    def forget(self) -> None:
        """What was seen in the store."""
        self.memory.clear()
        self.docker_digests.clear()


REGISTRY: Final = web.AppKey("registry", Registry)


def asked_host(request: web.Request) -> str:
    # Not request.host, which asks the network for a name where the client sent none.
    return request.headers.get("Host", "")


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
