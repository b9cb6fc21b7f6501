"""Pushes and deletions, all refused (OCI distribution-spec, "Content Management" and "Error Codes")."""

from __future__ import annotations

import re
from typing import Final

from aiohttp import web

from nixery_snap.oci.digest import Digest
from nixery_snap.oci.reference import check_name
from nixery_snap.registry.errors import oci_error

_OBJECT: Final = re.compile(r"/v2/(?P<name>.+?)/(?:manifests|blobs|referrers|tags)/(?P<reference>.*)")


def refuse(request: web.Request) -> web.Response:
    """What is malformed in itself is told so first. Raises InvalidName, InvalidDigest."""
    if match := _OBJECT.fullmatch(request.path):
        check_name(match["name"])
        if ":" in match["reference"]:
            Digest.parse(match["reference"])
    message = "this registry makes its images itself: it is read-only"
    return oci_error("UNSUPPORTED", 405, message, None, {"Allow": "GET, HEAD"})


async def get_upload(request: web.Request) -> web.Response:
    check_name(request.match_info["name"])
    return oci_error("BLOB_UPLOAD_UNKNOWN", 404, "there are no uploads: this registry is read-only")
