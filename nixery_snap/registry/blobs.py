"""GET and HEAD /v2/<name>/blobs/<digest> (OCI distribution-spec, "Pulling blobs")."""

from __future__ import annotations

from typing import Final

from aiohttp import web

from nixery_snap.access.guard import client_of
from nixery_snap.errors import BlobNotFound
from nixery_snap.oci.digest import Digest
from nixery_snap.oci.reference import check_name
from nixery_snap.ports import Location, StoredBytes
from nixery_snap.registry.context import Registry, content_headers, etag, registry_of
from nixery_snap.registry.errors import oci_error
from nixery_snap.web.located import IN_MEMORY_BYTES, answer

_OCTETS: Final = "application/octet-stream"


async def get_blob(request: web.Request) -> web.StreamResponse:
    registry = registry_of(request)
    check_name(request.match_info["name"])
    digest = Digest.parse(request.match_info["digest"])

    known = registry.memory.get(f"blob {digest}")
    location = StoredBytes(known[1]) if known else await _located(registry, digest, client_of(request))
    small = location.size_bytes <= min(IN_MEMORY_BYTES, registry.memory.maxsize)
    if known is None and small:  # to send it takes less than to send the client elsewhere
        location = StoredBytes(await registry.blobs.get(digest))
        registry.memory[f"blob {digest}"] = _OCTETS, location.content
    headers = content_headers(digest, _OCTETS)
    return answer(request, location, headers, etag=etag(digest), refuse=_refuse)


async def _located(registry: Registry, digest: Digest, client: str) -> Location:
    """Of a layer that was removed, after it has been made again. Raises BlobNotFound."""
    try:
        return await registry.blobs.locate(digest)
    except BlobNotFound:
        if registry.lost_layers is None:
            raise
    await registry.lost_layers.make(digest, registry.wait_seconds, client)
    return await registry.blobs.locate(digest)


def _refuse(status: int, message: str, headers: dict[str, str]) -> web.Response:
    return oci_error("SIZE_INVALID" if status == 416 else "UNAVAILABLE", status, message, headers=headers)
