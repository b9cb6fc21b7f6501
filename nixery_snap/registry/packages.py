"""GET /api/v1/packages: search for packages, where the source's revision has an index.

`q` holds the words; `source`, `tag`, `system`, `limit` and `offset` are optional.
"""

from __future__ import annotations

from typing import Final

from aiohttp import web

from nixery_snap.access.guard import client_of
from nixery_snap.errors import InvalidFormat
from nixery_snap.evaluation.search import MAX_PAGE, PackageSearch
from nixery_snap.imaging.request import DEFAULT_SOURCE, DEFAULT_TAG
from nixery_snap.oci import canonical_json
from nixery_snap.oci.reference import check_tag
from nixery_snap.registry.context import REGISTRY, SEPARATE

PACKAGE_SEARCH: Final = web.AppKey("package_search", PackageSearch)
_DEFAULT_PAGE: Final = 20
_MAX_OFFSET: Final = 1_000_000
_PARAMETERS: Final = frozenset({"q", "source", "tag", "system", "limit", "offset"})


async def get_packages(request: web.Request) -> web.Response:
    asked = request.query
    if unknown := sorted(set(asked) - _PARAMETERS):
        raise InvalidFormat("search", unknown[0], f"the parameters are {', '.join(sorted(_PARAMETERS))}")
    offset = _number(asked.get("offset", "0"), 0, _MAX_OFFSET)
    search, client = request.app[PACKAGE_SEARCH], client_of(request)
    name, tag = asked.get("source", DEFAULT_SOURCE), check_tag(asked.get("tag", DEFAULT_TAG))
    registry = request.app[SEPARATE].get(name, request.app[REGISTRY])
    if name in search.sources and search.sources[name].current(tag) is None:
        await registry.pipeline.pin(name, tag, registry.wait_seconds, client)
    found = await search.search(
        asked.get("q", ""),
        name,
        tag,
        asked.get("system"),
        offset,
        _number(asked.get("limit", str(_DEFAULT_PAGE)), 1, MAX_PAGE),
        client,
    )
    body = canonical_json.encode(
        {
            "revision": found.revision,
            "system": found.system,
            "total": found.page.total,
            "offset": offset,
            "packages": [package.to_json() for package in found.page.packages],
        }
    )
    headers = {"Cache-Control": "no-cache"}  # a tag moves
    return web.Response(body=body, content_type="application/json", headers=headers)


def _number(text: str, least: int, most: int) -> int:
    if text.isascii() and text.isdecimal() and len(text) <= 9 and least <= int(text) <= most:
        return int(text)
    raise InvalidFormat("number", text, f"it is {least} to {most}")
