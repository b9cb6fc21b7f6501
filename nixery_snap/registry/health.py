"""GET /v2/ (the API's version check), /healthz (the process lives) and /readyz (it can serve)."""

from __future__ import annotations

from typing import Final

from aiohttp import web

from nixery_snap.errors import NixerySnapError, StillWorking
from nixery_snap.registry.context import REGISTRY

_WAIT_SECONDS: Final = 2.0  # probes wait for a few seconds at most


async def get_version(_request: web.Request) -> web.Response:
    return web.json_response({})


async def get_health(_request: web.Request) -> web.Response:
    return web.Response(text="ok\n")


async def get_readiness(request: web.Request) -> web.Response:
    registry = request.app[REGISTRY]
    if registry.draining:
        return web.Response(status=503, text="shutting down\n")
    try:
        await registry.pipeline.ready(_WAIT_SECONDS)
    except StillWorking:
        return web.Response(status=503, text="the default package source is still being read\n")
    except NixerySnapError:
        return web.Response(
            status=503, text="the default package source cannot be read; see the server's log\n"
        )
    return web.Response(text="ready\n")
