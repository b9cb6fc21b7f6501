"""GET /v2/ (the API's version check), /healthz (the process lives) and /readyz (it can serve)."""

from __future__ import annotations

from aiohttp import web

from nixery_snap.errors import NixerySnapError
from nixery_snap.registry.context import REGISTRY


async def get_version(_request: web.Request) -> web.Response:
    return web.json_response({})


async def get_health(_request: web.Request) -> web.Response:
    return web.Response(text="ok\n")


async def get_readiness(request: web.Request) -> web.Response:
    registry = request.app[REGISTRY]
    if registry.draining:
        return web.Response(status=503, text="shutting down\n")
    try:
        await registry.pipeline.ready()
    except NixerySnapError:
        return web.Response(
            status=503, text="the default package source cannot be read; see the server's log\n"
        )
    return web.Response(text="ready\n")
