"""GET /v2/<name>/tags/list (OCI distribution-spec, "Listing Tags"): what can be asked for of the name's source."""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from typing import Final
from urllib.parse import urlencode

from aiohttp import web

from nixery_snap.access.guard import GRANT
from nixery_snap.errors import InvalidFormat, StillWorking
from nixery_snap.registry.context import registry_of
from nixery_snap.web.forwarded import asked_host

_MAX_TAGS: Final = 1000  # in one answer
_MAX_DIGITS: Final = 18
_RETRY_AFTER_SECONDS: Final = 10


async def get_tags(request: web.Request) -> web.Response:
    registry = registry_of(request)
    name = request.match_info["name"]
    asked = registry.grammar.parse(name, host=asked_host(request))
    source = registry.pipeline.source(asked)
    last, wanted = request.query.get("last", ""), request.query.get("n", str(_MAX_TAGS))
    if not (wanted.isascii() and wanted.isdecimal() and len(wanted) <= _MAX_DIGITS):
        raise InvalidFormat("number of tags", wanted, "n must be a whole number")
    try:
        async with asyncio.timeout(registry.wait_seconds):
            tags = await source.tags()
    except TimeoutError:
        raise StillWorking(
            registry.wait_seconds, _RETRY_AFTER_SECONDS, "the source is asked for tags"
        ) from None
    if grant := request.get(GRANT):
        tags = [tag for tag in tags if grant.image(name, asked.source, asked.names, tag)]
    begin = bisect_right(tags, last) if last else 0
    page = tags[begin : begin + min(int(wanted), _MAX_TAGS)]
    headers = {"Cache-Control": "no-cache"}
    if page and begin + len(page) < len(tags):
        query = urlencode({"n": len(page), "last": page[-1]})
        headers["Link"] = f'</v2/{name}/tags/list?{query}>; rel="next"'
    return web.json_response({"name": name, "tags": list(page)}, headers=headers)
