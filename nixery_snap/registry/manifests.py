"""GET and HEAD /v2/<name>/manifests/<tag or digest> (OCI distribution-spec, "Pulling manifests")."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Sequence
from dataclasses import replace
from typing import Final

from aiohttp import web

from nixery_snap import metrics
from nixery_snap.access.guard import GRANT, client_of, without_hints
from nixery_snap.errors import (
    BlobNotFound,
    InvalidFormat,
    ManifestNotFound,
    PackagesUnavailable,
    StillWorking,
    TagNotFound,
)
from nixery_snap.imaging.image import Image
from nixery_snap.imaging.request import ImageFormat, ImageRequest
from nixery_snap.oci.accept import Accept
from nixery_snap.oci.compression import Compression
from nixery_snap.oci.digest import Digest
from nixery_snap.oci.index import Index
from nixery_snap.oci.manifest import MAX_MANIFEST_BYTES, Descriptor, Manifest
from nixery_snap.oci.media_types import DOCKER_MANIFEST, OCI_INDEX, OCI_LAYER_ZSTD, OCI_MANIFEST
from nixery_snap.oci.reference import check_name, check_tag
from nixery_snap.ports import UseKind, use
from nixery_snap.registry.context import Registry, Served, content_headers, etag, registry_of
from nixery_snap.web.forwarded import asked_host
from nixery_snap.web.hot_answers import HOT, USES, always
from nixery_snap.web.ranges import not_modified
from nixery_snap.web.request_metrics import FORMAT, SAVED_BYTES

REVISION_HEADER: Final = "X-Nixery-Snap-Revision"


async def get_manifest(request: web.Request) -> web.Response:
    registry = registry_of(request)
    name, reference = request.match_info["name"], request.match_info["reference"]
    if ":" in reference:
        check_name(name)
        response = await _response(request, Digest.parse(reference))
        response[HOT] = always
        return response
    asked = _parse(registry, request, name, reference)
    accept = Accept.parse(", ".join(request.headers.getall("Accept", [])))
    # Docker's older manifests cannot carry annotations on layers, so a snapshotter image has none.
    single = accept.best(
        (OCI_MANIFEST, DOCKER_MANIFEST) if asked.format is ImageFormat.CLASSIC else (OCI_MANIFEST,)
    )
    if not _takes_zstd(accept, single):
        asked = replace(asked, compression=Compression.GZIP)
    several = asked.any_system and asked.format in registry.index_formats and _wants_index(accept, single)
    systems = registry.grammar.systems if several else (asked.system,)
    requests = [replace(asked, system=system) for system in systems]
    try:
        images = await _timed(registry.pipeline.images(requests, registry.wait_seconds, client_of(request)))
    except PackagesUnavailable as error:
        if grant := request.get(GRANT):
            raise without_hints(
                error, lambda path: grant.image(name, asked.source, [path], reference)
            ) from None
        raise
    image = images[0]
    for made in images:
        if made.digest not in registry.served:
            saves = asked.format is ImageFormat.SNAPSHOTTER
            registry.served[made.digest] = Served(asked.format, made.nar_bytes if saves else 0)

    async def found() -> web.Response:
        if len(systems) > 1:
            digest = await _index_digest(registry, images)
        elif single == DOCKER_MANIFEST:
            digest = await _docker_digest(registry, image.digest)
        else:
            digest = image.digest
        registry.served.setdefault(digest, Served(asked.format))
        return await _response(request, digest, *(use(UseKind.IMAGE, image.key) for image in images))

    try:
        response = await found()
    except ManifestNotFound:  # what was stored beside the image has been removed
        registry.forget()
        response = await found()
    response.headers["Cache-Control"] = "no-cache"  # a tag moves
    response.headers[REVISION_HEADER] = image.pin.revision
    response.headers["Vary"] = "Accept"
    if len(images) == len(systems):  # what is left out today may be there tomorrow
        source, pin = registry.pipeline.source(asked), image.pin
        response[HOT] = lambda: source.current(reference) == pin
    return response


async def _timed(images: Awaitable[list[Image]]) -> list[Image]:
    """Count how long it took until they were there, and why."""
    begun, outcome = time.perf_counter(), "failed"
    try:
        made = await images
        outcome = max(image.outcome for image in made).name.lower()
    except StillWorking:
        outcome = "still-working"
        raise
    finally:
        metrics.MANIFEST_SECONDS.labels(outcome).observe(time.perf_counter() - begun)
    return made


def _parse(registry: Registry, request: web.Request, name: str, tag: str) -> ImageRequest:
    """What no tag can be is one that is not there ("Pulling manifests"), not a bad name."""
    try:
        check_tag(tag)
    except InvalidFormat as error:
        check_name(name)
        raise TagNotFound("", tag, error.reason) from None
    return registry.grammar.parse(name, tag, asked_host(request))


def _wants_index(accept: Accept, single: str) -> bool:
    """Many who take anything can make nothing of an index."""
    return accept.names(OCI_INDEX) and accept.quality(OCI_INDEX) >= accept.quality(single)


def _takes_zstd(accept: Accept, single: str) -> bool:
    """What Accept can tell: no schema 2 manifest has zstd layers, and who names OCI's has known of them since 2019."""
    named = accept.names(OCI_MANIFEST) or accept.names(OCI_INDEX)
    return single == OCI_MANIFEST and named and not accept.refuses(OCI_LAYER_ZSTD)


async def _index_digest(registry: Registry, images: Sequence[Image]) -> Digest:
    """An index of `images`, stored as well."""
    manifests = {}
    for image in images:
        digest, media_type, content = await _by_digest(registry, image.digest)
        manifests[image.architecture] = Descriptor(media_type, digest, len(content))
    return await registry.blobs.put(bytes(Index(manifests)))


async def _docker_digest(registry: Registry, digest: Digest) -> Digest:
    """The same image with a manifest in Docker's media types, stored as well."""
    if digest not in registry.docker_digests:
        manifest = Manifest.parse((await _by_digest(registry, digest))[2])
        registry.docker_digests[digest] = await registry.blobs.put(bytes(manifest.to_docker()))
    return registry.docker_digests[digest]


async def _by_digest(registry: Registry, digest: Digest) -> tuple[Digest, str, bytes]:
    """(digest, media type, content). Raises ManifestNotFound, also for a blob that is no manifest."""
    known = registry.memory.get(str(digest))
    if known is None:
        try:
            if (await registry.blobs.locate(digest)).size_bytes > MAX_MANIFEST_BYTES:
                raise ManifestNotFound(str(digest))
            content = await registry.blobs.get(digest)
            known = _media_type(content), content
        except (BlobNotFound, InvalidFormat):
            raise ManifestNotFound(str(digest)) from None
        if len(content) <= registry.memory.maxsize:
            registry.memory[str(digest)] = known
    return digest, *known


def _media_type(content: bytes) -> str:
    """Raises InvalidFormat for what is neither a manifest nor an index."""
    try:
        return Manifest.parse(content).media_type
    except InvalidFormat:
        Index.parse(content)
        return OCI_INDEX


async def _response(request: web.Request, digest: Digest, *more: str) -> web.Response:
    """The manifest or index of that digest; `more` are uses beside that. Raises ManifestNotFound."""
    registry = registry_of(request)
    used = use(UseKind.MANIFEST, digest)
    _, media_type, content = await _by_digest(registry, digest)
    if not await registry.uses.note(used):
        registry.memory.pop(str(digest), None)
        _, media_type, content = await _by_digest(registry, digest)
    headers = content_headers(digest, media_type)
    if not_modified(request, etag(digest)):
        del headers["Content-Type"]
        response = web.Response(status=304, headers=headers)
    else:
        response = web.Response(body=content, headers=headers)
    response[USES] = (used, *more)
    if served := registry.served.get(digest):
        response[FORMAT], response[SAVED_BYTES] = served.format, served.saved_bytes
    return response
