"""What each route takes, where access is controlled. A route that is not in here is open to nobody then."""

from __future__ import annotations

from collections.abc import Mapping

from aiohttp import web

from nixery_snap.access.guard import Grant, Need, anything, everybody
from nixery_snap.imaging.request import DEFAULT_SOURCE, DEFAULT_TAG
from nixery_snap.registry.context import REGISTRY
from nixery_snap.web.forwarded import asked_host


def registry_needs(*, asks: bool) -> Mapping[str, Need]:
    """`asks`: /v2/ asks everybody who it is. Docker logs in nowhere else, nor learns elsewhere how to."""
    version = _logged_in if asks else anything
    return {
        "/v2{slash}": version,
        "/v2/{name}/manifests/{reference}": _image,
        "/v2/{name}/blobs/{digest}": _image,
        "/v2/{name}/blobs/uploads/{upload}": _image,
        "/v2/{name}/referrers/{digest}": _image,
        "/v2/{name}/tags/list": _image,
        "/v2/_catalog": _catalogue,
        "/api/v1/packages": _search,
        "/healthz": everybody,
        "/readyz": everybody,
        "/": anything,
    }


def _logged_in(_request: web.Request, grant: Grant) -> bool:
    """By name, or with a token for those who have none."""
    return bool(grant.who.user) or grant.who.repositories is not None


def _image(request: web.Request, grant: Grant) -> bool:
    """By digest, and for the list of tags, the name decides: the tag cannot be known."""
    name, reference = request.match_info["name"], request.match_info.get("reference", ":")
    tag = None if ":" in reference else reference
    asked = request.app[REGISTRY].grammar.parse(name, host=asked_host(request))
    return grant.image(name, asked.source, asked.names, tag)


def _catalogue(_request: web.Request, grant: Grant) -> bool:
    return grant.catalogue


def _search(request: web.Request, grant: Grant) -> bool:
    return grant.search(request.query.get("source", DEFAULT_SOURCE), request.query.get("tag", DEFAULT_TAG))
