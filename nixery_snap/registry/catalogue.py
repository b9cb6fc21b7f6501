"""GET /v2/_catalog (Docker Registry HTTP API V2, "Catalog"; the OCI specification has none).

There is a repository for every list of packages, which no list can hold: these are the names under which images
have been made, as far as whoever asks may have these images.
"""

from __future__ import annotations

import asyncio
from functools import partial

from aiohttp import web

from nixery_snap.access.guard import GRANT, Grant
from nixery_snap.errors import InvalidInput
from nixery_snap.imaging.request import NameGrammar
from nixery_snap.registry.context import REGISTRY, SEPARATE
from nixery_snap.registry.errors import oci_error
from nixery_snap.registry.paging import page


async def get_catalogue(request: web.Request) -> web.Response:
    shared = request.app[REGISTRY]
    if shared.names is None:
        return oci_error("UNSUPPORTED", 404, "this registry does not tell what was asked of it")
    names: list[str] = []
    for registry in (shared, *request.app[SEPARATE].values()):
        if registry.names is not None:
            names += await registry.listings.run("names", registry.names.all, registry.wait_seconds)
    may_have = partial(_may_have, request.get(GRANT), shared.grammar)
    # Of a hundred thousand names, none of which one may have, it takes seconds.
    return await asyncio.to_thread(
        page, request, sorted(names), str, lambda found: {"repositories": found}, may_have
    )


def _may_have(grant: Grant | None, grammar: NameGrammar, name: str) -> bool:
    if grant is None:
        return True
    try:
        asked = grammar.parse(name)
    except InvalidInput:  # by settings of another time
        return False
    return grant.listed(asked.source, asked.names)
