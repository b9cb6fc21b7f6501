"""GET /v2/<name>/tags/list (OCI distribution-spec, "Listing Tags"): what can be asked for of the name's source."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any, Final

from aiohttp import web

from nixery_snap.access.guard import GRANT
from nixery_snap.errors import StillWorking
from nixery_snap.registry.context import registry_of
from nixery_snap.registry.paging import page
from nixery_snap.web.forwarded import asked_host

_RETRY_AFTER_SECONDS: Final = 10


async def get_tags(request: web.Request) -> web.Response:
    registry = registry_of(request)
    name = request.match_info["name"]
    asked = registry.grammar.parse(name, host=asked_host(request))
    source = registry.pipeline.source(asked)
    try:
        async with asyncio.timeout(registry.wait_seconds):
            tags = await source.tags()
    except TimeoutError:
        raise StillWorking(
            registry.wait_seconds, _RETRY_AFTER_SECONDS, "the source is asked for tags"
        ) from None
    grant = request.get(GRANT)

    def may_have(tag: str) -> bool:
        return grant is None or grant.image(name, asked.source, asked.names, tag)

    found = sorted(tags, key=_order)
    return await asyncio.to_thread(page, request, found, _order, partial(_listed, name), may_have)


def _listed(name: str, tags: list[str]) -> dict[str, Any]:
    return {"name": name, "tags": tags}


def _order(tag: str) -> tuple[str, str]:
    """The specification's lexical order takes no notice of case."""
    return tag.lower(), tag
