"""GET /v2/<name>/referrers/<digest> (OCI distribution-spec, "Listing Referrers").

Nothing is pushed here and no image that is made has a subject, so nothing refers to anything: an empty index,
which no filter makes smaller.
"""

from __future__ import annotations

from aiohttp import web

from nixery_snap.oci.digest import Digest
from nixery_snap.oci.index import Index
from nixery_snap.oci.media_types import OCI_INDEX
from nixery_snap.oci.reference import check_name
from nixery_snap.web.hot_answers import HOT, always


async def get_referrers(request: web.Request) -> web.Response:
    check_name(request.match_info["name"])
    Digest.parse(request.match_info["digest"])
    headers = {"Content-Type": OCI_INDEX, "Cache-Control": "no-cache"}
    if "artifactType" in request.query:
        headers["OCI-Filters-Applied"] = "artifactType"
    response = web.Response(body=bytes(Index({})), headers=headers)
    response[HOT] = always
    return response
