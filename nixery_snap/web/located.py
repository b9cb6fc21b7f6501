"""What an object store has located, as an answer: from memory, by sendfile, passed on, or by telling where it is."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping
from typing import Final

from aiohttp import web

from nixery_snap.ports import Location, SignedUrl, StoredBytes, StoredFile, StoredStream
from nixery_snap.web.file_response import FileRangeResponse
from nixery_snap.web.hot_answers import HOT, always
from nixery_snap.web.ranges import UNSATISFIABLE, asked_range, not_modified
from nixery_snap.web.stream_response import Refusal, StreamedResponse

IMMUTABLE: Final = "public, max-age=31536000, immutable"
IN_MEMORY_BYTES: Final = 64 * 1024  # larger files go from the page cache to the socket by themselves


def answer(
    request: web.Request,
    location: Location,
    headers: Mapping[str, str],
    *,
    etag: str,
    refuse: Refusal,
    hot: bool = True,
) -> web.StreamResponse:
    """`etag`, with its quotes, must change with the content. `hot`: the answer holds for ever once given."""
    headers = {**headers, "ETag": etag}
    if not_modified(request, etag):
        headers.pop("Content-Type", None)
        return web.Response(status=304, headers=headers)
    headers["Accept-Ranges"] = "bytes"
    size = location.size_bytes
    if isinstance(location, SignedUrl):
        # The URL expires, and must be kept no longer than that. It takes the request's range and conditions.
        url = location.head_url if request.method == "HEAD" else location.url
        return web.Response(status=307, headers={"Location": url, "Cache-Control": "no-store"})

    span = asked_range(request, etag, size)
    if span is None:
        status, start, length = 200, 0, size
    elif span == UNSATISFIABLE:
        message = f"there are {size} bytes; ask for bytes=FIRST-LAST within them"
        return refuse(416, message, {"Content-Range": f"bytes */{size}"})
    else:
        start, end = span
        status, length = 206, end - start
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
    if isinstance(location, StoredFile):
        return FileRangeResponse(location.path, start, length, status=status, headers=headers)
    if isinstance(location, StoredStream):
        return StreamedResponse(
            location.pieces(start, length), length, refuse, status=status, headers=headers
        )
    response = web.Response(status=status, body=location.content[start : start + length], headers=headers)
    if hot:
        response[HOT] = always
    return response


async def in_memory(location: Location) -> Location:
    """The same with the content of what is small, which then can be a hot answer."""
    if location.size_bytes > IN_MEMORY_BYTES:
        return location
    if isinstance(location, StoredFile):
        return StoredBytes(await asyncio.to_thread(location.path.read_bytes))
    if isinstance(location, StoredStream):
        pieces = [piece async for piece in location.pieces(0, location.size_bytes)]
        return StoredBytes(b"".join(pieces))
    return location


async def etag_of(location: Location) -> str:
    """For content that is not named by what it holds."""
    if isinstance(location, StoredBytes):
        return f'"{hashlib.sha256(location.content).hexdigest()}"'
    if isinstance(location, StoredFile):
        modified = (await asyncio.to_thread(location.path.stat)).st_mtime_ns
        return f'"{modified:x}-{location.size_bytes:x}"'
    if isinstance(location, StoredStream):
        return f'"{location.version}"'
    return '""'  # never compared with what the URL's server says
