"""The web application: routes, and what holds for every request."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Mapping
from functools import partial

import structlog
from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from nixery_snap import tracing
from nixery_snap.errors import NixerySnapError, ShuttingDown, StillWorking
from nixery_snap.registry.blobs import get_blob
from nixery_snap.registry.catalogue import get_catalogue
from nixery_snap.registry.context import REGISTRY, SEPARATE, Registry
from nixery_snap.registry.errors import error_response, oci_error
from nixery_snap.registry.health import get_health, get_readiness, get_version
from nixery_snap.registry.manifests import get_manifest
from nixery_snap.registry.packages import get_packages
from nixery_snap.registry.read_only import get_upload, refuse
from nixery_snap.registry.referrers import get_referrers
from nixery_snap.registry.tags import get_tags
from nixery_snap.web.connections import BAD_REQUEST, DEFAULT_LIMITS, LIMITS, ConnectionLimits
from nixery_snap.web.forwarded import (
    NO_PROXIES,
    PROXIES,
    TrustedProxies,
    address_of,
    asked_host,
    asked_scheme,
)
from nixery_snap.web.request_log import EXPECTED, REQUEST_ID, REQUEST_ID_KEY, server_failed
from nixery_snap.web.request_metrics import InFlight, body_bytes

log = structlog.get_logger()


def make_app(
    registry: Registry,
    *,
    access_log: bool,
    subapps: Mapping[str, web.Application] = {},
    front_page: Callable[[str, str], str] | None = None,
    proxies: TrustedProxies = NO_PROXIES,
    guard: Middleware | None = None,
    separate: Mapping[str, Registry] = {},
    limits: ConnectionLimits = DEFAULT_LIMITS,
) -> web.Application:
    """`access_log` logs every request; without it only those that fail.

    `subapps` are mounted below their prefixes, and answer what fails in them by themselves. `front_page` makes
    plain text for people who look what is there, given the scheme and the host they asked. `guard` decides who gets
    an answer, of the sub-applications too. `separate` are further registries, for names of these sources.
    """

    @web.middleware
    async def every_request(request: web.Request, handler: Handler) -> web.StreamResponse:
        begun = time.perf_counter()
        request_id = request[REQUEST_ID_KEY] = uuid.uuid4().hex
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(request_id=request_id)
        proxies.look(request)
        InFlight.count += 1
        try:
            if (request.content_length or 0) > limits.body_bytes:
                response: web.StreamResponse = _bad_request(
                    413, f"a request's body may have {limits.body_bytes} bytes"
                )
                response.force_close()
            elif tracing.is_on():
                response = await _traced(request, handler, request_id)
            else:
                response = await _answer(request, handler, request_id)
        finally:
            InFlight.count -= 1
        if access_log or (response.status >= 400 and EXPECTED not in response):
            log.info(
                "request",
                method=request.method,
                path=request.raw_path[:300],
                status=response.status,
                seconds=round(time.perf_counter() - begun, 4),
                client=address_of(request),
                bytes=body_bytes(request, response),
                agent=request.headers.get("User-Agent", "")[:200],
            )
        return response

    app = web.Application(
        middlewares=[every_request, *([guard] if guard else [])], client_max_size=limits.body_bytes
    )
    app[LIMITS] = limits
    app[PROXIES] = proxies
    app[REGISTRY] = registry
    app[SEPARATE] = separate
    app[BAD_REQUEST] = _bad_request
    app.on_response_prepare.append(_add_headers)
    # The names are those of routes among the metrics.
    app.router.add_get("/v2{slash:/?}", get_version, name="version")
    app.router.add_get("/v2/{name:.+}/manifests/{reference:[^/]+}", get_manifest, name="manifest")
    app.router.add_get("/v2/{name:.+}/blobs/{digest:[^/]+}", get_blob, name="blob")
    app.router.add_get("/v2/{name:.+}/blobs/uploads/{upload:[^/]*}", get_upload, name="upload")
    app.router.add_get("/v2/{name:.+}/referrers/{digest:[^/]+}", get_referrers, name="referrers")
    app.router.add_get("/v2/{name:.+}/tags/list", get_tags, name="tags")
    app.router.add_get("/v2/_catalog", get_catalogue, name="catalogue")
    app.router.add_get("/api/v1/packages", get_packages, name="packages")
    app.router.add_get("/healthz", get_health, name="health")
    app.router.add_get("/readyz", get_readiness, name="readiness")
    if front_page is not None:
        app.router.add_get("/", partial(_get_front_page, front_page), name="front-page")
    for prefix, subapp in subapps.items():
        app.add_subapp(prefix, subapp)
    return app


def _bad_request(status: int, message: str) -> web.Response:
    code = {413: "SIZE_INVALID", 429: "TOOMANYREQUESTS"}.get(status, "NAME_INVALID")
    return oci_error(code, status, message)


async def _get_front_page(render: Callable[[str, str], str], request: web.Request) -> web.Response:
    host = (asked_host(request) or "localhost").encode("ascii", "replace").decode()
    return web.Response(text=render(asked_scheme(request), host), headers={"Cache-Control": "no-cache"})


def _is_api(request: web.Request) -> bool:
    return request.path == "/v2" or request.path.startswith("/v2/")


async def _add_headers(request: web.Request, response: web.StreamResponse) -> None:
    response.headers[REQUEST_ID] = request[REQUEST_ID_KEY]
    if _is_api(request):
        response.headers["Docker-Distribution-Api-Version"] = "registry/2.0"
    response.headers["Server"] = "nixery-snap"  # aiohttp's own tells versions


async def _traced(request: web.Request, handler: Handler, request_id: str) -> web.StreamResponse:
    facts: tracing.Facts = {
        "http.request.method": request.method,
        "url.path": request.raw_path[:300],
        "request_id": request_id,
    }
    with tracing.request_span("request", facts, request.headers):
        structlog.contextvars.bind_contextvars(trace_id=tracing.trace_id())
        response = await _answer(request, handler, request_id)
        facts["http.response.status_code"] = response.status
    return response


async def _answer(request: web.Request, handler: Handler, request_id: str) -> web.StreamResponse:
    """What the handler answers, every failure as an OCI error."""
    # No name, tag or digest needs an escape, but for the digest's colon; anything else is a disguise.
    path = request.raw_path.partition("?")[0] if _is_api(request) else ""
    if "%" in path.replace("%3A", "").replace("%3a", ""):
        return oci_error("NAME_INVALID", 400, "names, tags and digests hold no escaped characters")
    try:
        try:
            return await handler(request)
        except (web.HTTPMethodNotAllowed, web.HTTPNotFound):
            if request.method not in {"GET", "HEAD"}:
                return refuse(request)
            return oci_error("NAME_UNKNOWN", 404, "there is nothing at this path; images are below /v2/")
    except NixerySnapError as error:
        response = error_response(error, request_id)
        if response.status >= 500 and not isinstance(error, StillWorking | ShuttingDown):
            log.error("request-failed", path=request.raw_path[:300], error=str(error), exc_info=True)
        return response
    except web.HTTPException:
        raise
    except ConnectionError:
        raise
    except Exception:
        log.exception("request-crashed", path=request.raw_path[:300])
        return oci_error("UNKNOWN", 500, server_failed(request_id))
