"""GET and HEAD /v2/<name>/blobs/<digest> (OCI distribution-spec, "Pulling blobs"; RFC 9110, section 14)."""

from __future__ import annotations

import re
from typing import Final

from aiohttp import web

from nixery_snap.oci.digest import Digest
from nixery_snap.oci.reference import check_name
from nixery_snap.ports import SignedUrl, StoredBytes
from nixery_snap.registry.context import REGISTRY, content_headers, not_modified
from nixery_snap.registry.errors import oci_error
from nixery_snap.registry.file_response import FileRangeResponse
from nixery_snap.registry.hot_answers import HOT, always

_OCTETS: Final = "application/octet-stream"
_IN_MEMORY_BYTES: Final = 64 * 1024  # larger blobs go from the page cache to the socket by themselves
_RANGE: Final = re.compile(r"([0-9]{0,40})-([0-9]{0,40})")


async def get_blob(request: web.Request) -> web.StreamResponse:
    registry = request.app[REGISTRY]
    check_name(request.match_info["name"])
    digest = Digest.parse(request.match_info["digest"])
    headers = content_headers(digest, _OCTETS)

    known = registry.memory.get(f"blob {digest}")
    location = StoredBytes(known[1]) if known else await registry.blobs.locate(digest)
    if not_modified(request, digest):
        del headers["Content-Type"]
        return web.Response(status=304, headers=headers)
    if isinstance(location, SignedUrl):
        raise web.HTTPTemporaryRedirect(location.url)
    size = location.size_bytes
    if known is None and size <= min(_IN_MEMORY_BYTES, registry.memory.maxsize):
        location = StoredBytes(await registry.blobs.get(digest))
        registry.memory[f"blob {digest}"] = _OCTETS, location.content

    headers["Accept-Ranges"] = "bytes"
    span = _range(request, digest, size)
    if span is None:
        status, start, length = 200, 0, size
    elif span == _UNSATISFIABLE:
        message = f"the blob has {size} bytes; ask for bytes=FIRST-LAST within them"
        return oci_error("SIZE_INVALID", 416, message, headers={"Content-Range": f"bytes */{size}"})
    else:
        start, end = span
        status, length = 206, end - start
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
    if isinstance(location, StoredBytes):
        response = web.Response(status=status, body=location.content[start : start + length], headers=headers)
        response[HOT] = always
        return response
    return FileRangeResponse(location.path, start, length, status=status, headers=headers)


_UNSATISFIABLE: Final = (-1, -1)


def _range(request: web.Request, digest: Digest, size: int) -> tuple[int, int] | None:
    """The asked half-open byte range, None for all of it, or _UNSATISFIABLE. HEAD has no ranges.

    Several ranges at once are answered with the whole, which RFC 9110 leaves to the server.
    """
    header = request.headers.get("Range", "")
    unit, _, ranges = header.partition("=")
    if request.method != "GET" or unit.strip().lower() != "bytes" or "," in ranges:
        return None
    if request.headers.get("If-Range", f'"{digest}"') != f'"{digest}"':
        return None
    match = _RANGE.fullmatch(ranges.strip())
    if match is None or ranges.strip() == "-":
        return _UNSATISFIABLE
    first, last = match.groups()
    if not first:
        start, end = max(0, size - int(last)), size
    else:
        start, end = int(first), min(size, int(last) + 1) if last else size
        if last and int(last) < start:
            return _UNSATISFIABLE
    return (start, end) if start < end else _UNSATISFIABLE
