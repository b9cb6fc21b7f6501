"""GET /v2/<name>/tags/list (OCI distribution-spec, "Listing Tags"): what can be asked for of the name's source."""

from __future__ import annotations

from bisect import bisect_right
from typing import Final
from urllib.parse import urlencode

from aiohttp import web

from nixery_snap.errors import InvalidFormat
from nixery_snap.registry.context import REGISTRY, asked_host

_MAX_TAGS: Final = 1000  # in one answer


async def get_tags(request: web.Request) -> web.Response:
    registry = request.app[REGISTRY]
    name = request.match_info["name"]
    source = registry.pipeline.source(registry.grammar.parse(name, host=asked_host(request)))
    last, wanted = request.query.get("last", ""), request.query.get("n", str(_MAX_TAGS))
    if not (wanted.isascii() and wanted.isdecimal()):
        raise InvalidFormat("number of tags", wanted, "n must be a whole number")
    tags = await source.tags()
    begin = bisect_right(tags, last) if last else 0
    page = tags[begin : begin + min(int(wanted), _MAX_TAGS)]
    headers = {"Cache-Control": "no-cache"}
    if page and begin + len(page) < len(tags):
        query = urlencode({"n": len(page), "last": page[-1]})
        headers["Link"] = f'</v2/{name}/tags/list?{query}>; rel="next"'
    return web.json_response({"name": name, "tags": list(page)}, headers=headers)
