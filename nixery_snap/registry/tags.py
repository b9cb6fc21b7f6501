"""GET /v2/<name>/tags/list (OCI distribution-spec, "Listing Tags"): what can be asked for of the name's source."""

from __future__ import annotations

import asyncio
from typing import Final

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
    if grant := request.get(GRANT):
        tags = [tag for tag in tags if grant.image(name, asked.source, asked.names, tag)]
    return page(request, sorted(tags, key=_order), _order, lambda found: {"name": name, "tags": found})


def _order(tag: str) -> tuple[str, str]:
    """The specification's lexical order takes no notice of case."""
    return tag.lower(), tag
